"""What is taken out of text, what stays, and that no text, however hostile, breaks or slows it."""

from __future__ import annotations

import json
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sysscan_models.documents import Document
from sysscan_models.prompts import example, finding_document
from sysscan_models.redaction import KINDS, home_users, kinds_table, redact, redact_counted, redact_deep, tokens
from sysscan_models.roles import SPECIALIST

PEM = "-----BEGIN RSA PRIVATE KEY-----\nMIIB\n-----END RSA PRIVATE KEY-----"
LINE = "MIIEpAIBAAKCAQEA7bq1" + "x9Y/" * 11

TOKENS = [
    ("hf_" + "a1B2" * 8, "HF_TOKEN"),
    ("hf_" + "abcdefghijklmnopqrstuvwx", "HF_TOKEN"),
    ("sk-" + "x9" * 15, "SK_TOKEN"),
    ("sk-proj-" + "aB3_dE5-" * 8 + "aB3dE5gH7jK9", "SK_TOKEN"),
    ("sk-ant-api03-" + "Zx8Yw7Vu6" * 6, "SK_TOKEN"),
    *((f"gh{kind}_" + "Q7" * 18, "GITHUB_TOKEN") for kind in "pousr"),
    ("github_pat_" + "11ABCDEFG0" * 2 + "zz_" + "aB3" * 19, "GITHUB_TOKEN"),
    ("glpat-" + "aB3dE5gH7jK9mN1pQ3rS", "GITLAB_TOKEN"),
    ("AKIA" + "ABCD1234" * 2, "AWS_KEY_ID"),
    ("ASIA" + "ABCD1234" * 2, "AWS_KEY_ID"),
    ("AIza" + "b" * 35, "GOOGLE_KEY"),
    ("ya29." + "a0AfB_byC3dE5fG7" * 3, "GOOGLE_OAUTH"),
    ("GOCSPX-" + "aB3dE5gH7jK9mN1pQ3rS", "GOOGLE_OAUTH"),
    ("xoxb-" + "1234567890-abc", "SLACK_TOKEN"),
    ("sk_live_" + "aB3dE5gH7jK9mN1pQ3rS", "STRIPE_KEY"),
    ("rk_live_" + "aB3dE5gH7jK9mN1pQ3rS", "STRIPE_KEY"),
    ("npm_" + "aB3dE5gH7j" * 3 + "aB3dE5", "NPM_TOKEN"),
    ("pypi-" + "AgEIcHlwaS5vcmc" + "aB3dE5gH7j" * 6, "PYPI_TOKEN"),
    ("dop_v1_" + "0123456789abcdef" * 4, "DIGITALOCEAN_TOKEN"),
    ("SG." + "aB3dE5gH7jK9mN1pQ3rSxy" + "." + "aB3dE5gH7j" * 4 + "xyz", "SENDGRID_KEY"),
    ("110201543:AA" + "HdqTcvCH1vGWJxfSeofSAs0K5PALDsawe", "TELEGRAM_TOKEN"),
    ("MTE5ODYyMjQ4MzQ3MTkyNTI0" + ".Cl2FMQ." + "ZnCjm1XVW7vRze4b7Cq4se7kKWs", "DISCORD_TOKEN"),
    ("eyJhbGciOiJI.eyJzdWIiOiIx.c2lnbmF0dXJl", "JWT"),
    (PEM, "PRIVATE_KEY"),
    (PEM.replace("RSA ", "OPENSSH "), "PRIVATE_KEY"),
    (PEM.replace("RSA ", ""), "PRIVATE_KEY"),
    (PEM.replace("KEY", "KEY BLOCK").replace("RSA", "PGP").replace("MIIB", "Version: GnuPG v2 (Linux)\n\nMIIB"), "PRIVATE_KEY"),
    ("$6$abcdefgh$" + "0123456789abcdefABCDEF./" * 3, "PASSWORD_HASH"),
    ("$y$j9T$F5Jx5fExrKuPp53xLKQ..1$" + "X3DX6M94c7o.9agCG9G317fhZg9SqC.5i5rd.RhAtQ7", "PASSWORD_HASH"),
    ("$2b$12$" + "R9h/cIPz0gi.URNNX3kh2OPST9/PgBkqquzi.Ss7KIUgO2t0jWMUW", "PASSWORD_HASH"),
    ("$apr1$abcdefgh$" + "0123456789abcdef./0123", "PASSWORD_HASH"),
    ("{SSHA}" + "0123456789abcdefABCDEF./01234567", "PASSWORD_HASH"),
    ("alice.smith@corp.io", "EMAIL"),
]


@pytest.mark.parametrize(("secret", "kind"), TOKENS)
def test_secrets_become_typed_placeholders_everywhere(secret: str, kind: str) -> None:
    placeholder = f"[{kind}]"
    assert redact(f"a {secret} b") == f"a {placeholder} b"
    assert redact(f'{{"x": "{secret}"}}') == f'{{"x": "{placeholder}"}}'
    document = Document(
        id="d",
        title=f"T {secret}",
        description=secret,
        content=f"C {secret}",
        findings=(secret,),
        labels={"remediation": secret},
    )
    assert secret not in json.dumps(example(SPECIALIST, document).messages)


ANNOUNCED = [  # the secret stands between the marks
    "password=«hunter2»",
    "DB_PASSWORD=«s3cr3t!Pw»",
    "export DB_PASS='«s3cret pass»'",
    '"password": "«hunter2»"',
    '"password": "«hun\\"ter2»"',
    r"\"password\": \"«hunter2»\",",
    r"{\"a\": \"{\\\"password\\\": \\\"«hunter2»\\\"}\"}",
    '{"user":"bob","passwd":"«swordfish»"}',
    "passwd: «hunter2»",
    "  password: «swordfish»\n  port: 5",
    "password=«anchovy»",
    "pwd = «Summer2024!»",
    "Server=x;Uid=sa;Pwd=«Sup3r,Secret»;Database=y",
    "/?user=x&password=«a9s8d7f6»&x=y",
    "log: password=«hunter2»\\nuser=bob",
    "secret = «8f3k2j4h5g6d7s8a»",
    'api_key: "«9a8b7c6d5e4f3g2h1i»"',
    "apiKey: «9a8b7c6d5e4f3g2h1i»",
    "X-Api-Key: «9a8b7c6d5e4f3g2h1i»",
    "token=«x9y8z7w6v5u4»",
    "client_secret=«Zx9-asdkj3j2.kkk»",
    "AWS_SECRET_ACCESS_KEY=«wJalrXUtnFEMI/K7MDENG/bPxRfiCYzzzzzzzKEY»",
    '"SecretAccessKey": "«wJalrXUtnFEMI/K7MDENG/bPxRfiCYzzzzzzzKEY»"',
    "mysql -u root -p«S3cret» db",
    "mysql -u root -p'«x y z1»' db",
    "mysqldump --password=«abc123» x",
    "tool --password «hunter2» --user x",
    "sshpass -p «hunter2» ssh x",
    "curl -u bob:«hunter2» https://x",
    'echo "bob:«hunter2»" | chpasswd',
    "redis-cli -h x -a «hunter2»",
    "requirepass «hunter2»",
    "bindpw «s3cretpw»",
    "Authorization: Bearer «abcdef1234567890»",
    "Authorization: Basic «YWxhZGRpbjpvcGVu»",
    '"Authorization": "Bearer «abcdef1234567890»"',
    "CREATE USER 'a'@'%' IDENTIFIED BY '«hunter2»';",
    "ALTER ROLE bob WITH PASSWORD '«Tr0ub4dor»';",
    "machine api.x login bob password «swordfish»",
    "machine api.x\n  login bob\n  password «Tr0ub4dor»\n",
    "db.host:5432:mydb:bob:«hunter2»",
    "bob:«$6$abcdefgh$0123456789abcdefABCDEF./0123456789abcdef»:19000:0:99999:7:::",
    "postgres://app:«s3cret»@db:5432/x",
    "redis://:«p4ssw0rd»@cache:6379/0",
    'https://u:«it"s»@host',
    "<password>«hunter2»</password>",
    '<add key="Password" value="«hunter2»"/>',
    "- name: DB_PASSWORD\n  value: «hunter2»",
    '{"name": "DB_PASSWORD", "value": "«hunter2»"}',
    "'password' => '«hunter2»',",
    "define('DB_PASSWORD', '«hunter2»');",
    'password := "«hunter2»"',
    'password: str = "«hunter2»"',
    "config['password'] = '«hunter2»'",
    'psk="«mywifipass1»"',
    "\uff50\uff41\uff53\uff53\uff57\uff4f\uff52\uff44\uff1d«\uff48unter2»",
    "https://hooks.slack.com/services/«T00000000/B00000000/XXXXXXXXXXXXXXXXXXXXXXXX»",
    "AccountName=x;AccountKey=«Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==»;E=c",
    "//registry.x/:_authToken=«00000000-1111-2222-3333-abcdef123456»",
    '"auth": "«YWxhZGRpbjpvcGVuc2VzYW1l»"',
    # sentences
    "The password is «hunter2!x».",
    "The root password was «Winter2024!», change it",
    "password for user bob is «s3cr3tPw»",
    "log in with password «Tr0ub4dor&3»",
    "the default password, «Berlin669?», is known",
    'The passphrase is "«swordfish»".',
    "Your new password is:\n\n«Winter2024!»\n\nBye",
    "Found password `«Passw0rd843?»` in clear text",
    "The API key is «rk5fw5fiP4uPl9IZgOaLXBI3lWGzfUjG».",
    "The token «c8VF3bGeYqeRjDXaTSN4IXheRdmqRntFiBgWFeEe» was found",
    "credentials: admin / «Berlin758!»",
    # other languages
    "Das Passwort lautet «Geheim123!».",
    "Kennwort: «Geheim123!»",
    "Le mot de passe est «Secret!2024».",
    "Mot de passe : «Secret!2024»",
    "La contraseña es «Clave2024!».",
    "contraseña = «Clave2024!»",
    "La password è «Segreta99!».",
    "A senha é «Segredo2024!».",
    "senha=«Segredo2024!»",
    "Пароль: «Qwerty123!»",
    "пароль — «Qwerty123!»",
    "密码是«Winter2024!»。",
    "密码\uff1a«Winter2024!»",
    "パスワードは「«Winter2024!»」です",
    "비밀번호: «Winter2024!»",
    '{"contraseña": "«swordfish»"}',
    # commands, also as lists of words
    r"net use \\host\share /user:bob «hunter2x»",
    r"net use Z: \\host\share «hunter2x» /user:CORP\bob",
    "net user bob «hunter2x» /add",
    "curl -sku bob:«hunter2» https://x",
    "sshpass -p'«hunter2»' ssh x",
    "docker login -u bob -p «hunter2» reg.io",
    "sqlcmd -S x -U sa -P «hunter2» -Q y",
    "zip -P «hunter2» a b",
    "7z a -p«hunter2» a b",
    "plink -pw «hunter2» root@x",
    "snmpget -v3 -A «hunter22» -l x",
    "echo '«hunter2»' | sudo -S ls",
    "htpasswd -nb bob «hunter2»",
    "wpa_passphrase ssid «hunter22»",
    'ConvertTo-SecureString "«hunter2»" -AsPlainText',
    "sqlplus bob/«hunter2»@db",
    "lftp -u bob,«hunter2» sftp://x",
    '["--password", "«hunter2»"]',
    '["sshpass","-p","«hunter2»","ssh"]',
    '["curl", "-u", "bob:«hunter2»", "x"]',
    "- --password\n- «hunter2»\n",
    # HTTP
    "Cookie: theme=dark; PHPSESSID=«upazaaqb1od5aw6tze0u7doixb»",
    "Set-Cookie: sid=«1Du8fpV0ippzIY6YthBQB55DL9QwWrCQ»; Path=/",
    "GET /x;jsessionid=«6F1544E3BB0E9C4E6AB988C29C31F834» HTTP/1.1",
    '"sessionId": "«50WIVu9TgRcvKGg0taNJmtgY6vm284lF»"',
    "curl -b 'sid=«1Du8fpV0ippzIY6YthBQB55DL9QwWrCQ»' x",
    "X-Amz-Signature=«8cafb22575419a30d24f4b43699457099b0440a4f1ae7476e9837a1171fc690b»",
    "requests.get(u, auth=('bob', '«hunter2»'))",
    # files
    "machine x password «swordfish»",
    "localhost:6432:db:u:«hunter22»",
    "bob:«zqa4324x2423x»:19000:0:99999:7:::",
    "bob::CORP:«5741270c64459b6b:9cbc051d2e52b257a8acf9675d8bdbe7:be7d42d8f941e428b90c»",
    "rootpw --plaintext «hunter2»",
    "masterauth «hunter22»",
    "enable password 7 «5DDDBBDFEE5E12D8F512»",
    "snmp-server community «s3cr3tro» RO",
    '{"kty":"EC","d":"«870MB6gfuTJ4HtUnUvYMyJpr5eUZNP4Bk43bVdj3eAE»"}',
    "Private-Lines: 2\n«" + LINE + "\n" + LINE + "»\nPrivate-MAC: x",
    "/home/«alice»/.ssh/id_rsa",
    "/var/home/«alice.b»: x",
    "host:/home/«alice»",
    r"C:\Users\«alice»\x",
    r"C:\\Users\\«alice»\\x",
    "/Users/«alice»",
    "see ~«alice»/.ssh",
]


@pytest.mark.parametrize("marked", ANNOUNCED)
def test_a_secret_is_known_by_what_stands_before_it(marked: str) -> None:
    before, secret, after = re.split("[«»]", marked)
    made = redact(before + secret + after)
    assert made.startswith(before)
    assert made.endswith(after)
    assert re.fullmatch(r"\[[A-Z_]+\]", made[len(before) : len(made) - len(after)])
    assert redact(made) == made


KEPT = [
    "d41d8cd98f00b204e9800998ecf8427e",
    "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "commit da39a3ee5e6b4b0d3255bfef95601890afd80709",
    "550e8400-e29b-41d4-a716-446655440000",
    "CVE-2021-4034 CWE-798 GHSA-jfh8-c2jp-5v3q T1548.001 RHSA-2021:0218 v1.2.3 2.31-13+deb11u5",
    "token: CVE-2021-4034",
    "two-factor-auth: PYSEC-2020-39",
    "10.1.2.3:22 192.168.0.0/16 169.254.1.1 192.0.2.1 198.51.100.0/24 ::1 127.0.0.1 fe80::1 2001:db8::1 1.2.3.4.5",
    "task-list-of-things",
    "http://127.0.0.1:8080/a@b",
    "kernel.randomize_va_space = 2",
    "The password: must be at least 14 characters",
    "password = required",
    "Ensure password hashing algorithm is SHA-512",
    "password: sha512crypt",
    "PASS_MAX_DAYS 365",
    "passwd: files sss",
    "passwd:     files",
    "password requisite pam_pwquality.so retry=3",
    "password    [success=1 default=ignore]  pam_unix.so obscure use_authtok try_first_pass yescrypt",
    "token ring",
    "secret: see vault",
    "password: ${DB_PASSWORD}",
    "password=$DB_PASSWORD",
    "password: {{ vault_password }}",
    "<password>",
    "--password <password> --token <token>",
    "--password PASSWORD and --password=PASSWORD; the --password option",
    "password=changeme",
    "password: ********",
    "PermitEmptyPasswords no",
    "PasswordAuthentication no",
    "api_key: null",
    "password: true",
    "password: string",
    '"password": "The user\'s password, at least 8 characters"',
    "def f(password: str, token: Optional[str] = None) -> str:",
    "password = getpass.getpass()",
    "connect(password=password, token=token)",
    "token = next(tokens)",
    'password = os.environ["DB_PASSWORD"]',
    "reversed_token = token[::-1]",
    "at::_make_dep_token::call(options)",
    "account:password:UID:GID:GECOS:directory:shell",
    "you must not set\nuser or password when creating",
    "compass=north bypass=1 max_token=4096 token: RS256 key=value PWD=/root",
    "secretName: my-tls",
    "hmac-sha2-256-etm@openssh.com,aes128-gcm@openssh.com,curve25519-sha256@libssh.org,rijndael-cbc@lysator.liu.se",
    "git@github.com:a/b.git getty@tty1.service user@example.com x@mail.example.org @property @types/node a @ x alice@web01",
    "logo@2x.png root@host.net 5@1.2",
    "/home/[USER] /home /home/*/.ssh /home/${USER} /home/$USER /home/lost+found /home/<user> /home/%u /home/user /home/",
    "https://www.site.com/home/about and site.com/home/about",
    "The password is hashed with SHA-512. The password is wrong! The password is 12-character.",
    "Use the password manager KeePass2. password changed on 2024-05-01. reset password to default. We pass to modnames2paths.",
    "Passwort: mindestens 14 Zeichen. Das Passwort ist abgelaufen. Le mot de passe est requis. contraseña: obligatoria",
    "Пароль: не менее 8 символов. 密码: 至少8位. パスワードは8文字以上. 密码必须包含大写字母. La clave es importante.",
    "The API key is required for v2. access token lifetime 3600s. The token is an HS256 JWT. found password reuse in 5 hosts",
    "credentials / tokens; Login: admin/user; user/password; login server1/host2",
    "docker run -p 8080:80 nginx; mysql -u root -p db; ssh -p 2222 host; mkdir -p /opt/app1; nmap -p22,80,443 h",
    r"net use Z: \\host\share; net use * /delete; net user bob /add; curl -u $USER:$PASS x; sshpass -p \"$PASS\" ssh x",
    "Set-Cookie: lang=en-US; HttpOnly; SESSION_COOKIE_SECURE = True; session 550e8400-e29b-41d4-a716-446655440000",
    '["--password", "--user"] ["--user", "bob", "--port", "8080"] ["password", "username2"] ["--token", "$TOKEN"]',
    "root:*:19000:0:99999:7::: daemon:*:1:1:daemon:/usr/sbin:/usr/sbin/nologin bob:!!:19000:0:99999:7:::",
    "PASS: test_123\nPASS: ld-elf/pr20528a\nPASS: print-memory-usage-1",
    "52:54:00:12:34:56 00:1A:2B:3C:4D:5E 2024-05-01T12:34:56.789Z 2024-05-01 12:34:56,789",
    "auth = scram-sha-256; password: changeme123; community public",
    "desk-2024a1b2c3d4e5f6a7b8c9d0 task-1234567890abcdef1234567890abcdef laughs_and_more_words_of_an_identifier1",
    "sk-learn sk-like-words-in-prose-that-are-long-2024",
    "risk-assessment-of-the-long-word-with-digits-2024a1b2c3d4",
    "npm_config_registry_with_a_long_name hf_transfer hf_hub_download",
    "aGVsbG8gd29ybGQsIHRoaXMgaXMgaGFybWxlc3M=",
    "-----BEGIN RSA PRIVATE KEY-----",
    "grep -r 'BEGIN RSA PRIVATE KEY' /",
    "-----BEGIN PRIVATE KEY-----\n...\n-----END PRIVATE KEY-----",
    "https://user:password@host/x https://user:${PASS}@host https://u:<pass>@h",
    "crack the password: `tool -r {{path/to/file}} attack_db`",
    "1.0~beta1/foo ~/x",
    "$6$ is SHA-512, $y$ is yescrypt",
]


@pytest.mark.parametrize("kept", KEPT)
def test_what_is_no_secret_stays(kept: str) -> None:
    assert redact(kept) == kept
    assert redact(f"First.\n{kept}\nLast.", public_ips=True) == f"First.\n{kept}\nLast."


@pytest.mark.parametrize("line_end", ["\\n", "\\r\\n", "\\\\n", "\r\n", "\\u000a", '\\n"\n+ "'])
def test_a_private_key_is_known_however_its_line_ends_are_written(line_end: str) -> None:
    key = line_end.join(
        ["-----BEGIN RSA PRIVATE KEY-----", "Proc-Type: 4,ENCRYPTED", "MIIB+/=", "-----END RSA PRIVATE KEY-----"]
    )
    assert redact(f"a {key}{line_end}b") == f"a [PRIVATE_KEY]{line_end}b"


@pytest.mark.parametrize("line_end", ["\n", "\\n"])
def test_a_private_key_that_was_cut_off_goes_as_far_as_it_reaches(line_end: str) -> None:
    key = line_end.join(["-----BEGIN OPENSSH PRIVATE KEY-----", LINE, LINE, LINE[:40]])
    assert redact(f"a {key}") == "a [PRIVATE_KEY]"
    assert redact(f"{key}{line_end}The next sentence.") == f"[PRIVATE_KEY]{line_end}The next sentence."


@pytest.mark.parametrize("secret", ["hf_" + "a1B2" * 8, "AKIA" + "ABCD1234" * 2, "eyJhbGciOiJI.eyJzdWIiOiIx.c2lnbmF0dXJl"])
def test_a_secret_behind_a_line_end_that_was_quoted_or_a_colour_is_known(secret: str) -> None:
    assert secret not in redact(f"first\\n{secret}")
    assert secret not in redact(f"x-{secret}\\tlast")
    assert secret not in redact(f"\x1b[31m{secret}\x1b[0m")
    assert secret not in redact(f"key%3D{secret}&x")


@pytest.mark.parametrize(
    "secret",
    [
        "hf_" + "a1B2" * 8,
        "ghp_" + "a1B2" * 9,
        "glpat-" + "aB3dE5gH7jK9mN1pQ3rS",
        "AKIA" + "ABCD1234" * 2,
        "xoxb-" + "1234567890-abc",
        "sk_live_" + "a1B2" * 6,
    ],
)
def test_a_token_that_follows_a_letter_without_a_break_is_known(secret: str) -> None:
    assert re.fullmatch(r"token\[[A-Z_]+\] b", redact(f"token{secret} b"))


@pytest.mark.parametrize(
    "secret",
    [
        *(
            "shpss_" + "0123456789abcdef" * 2,
            "ntn_" + "aB3dE5gH7j" * 4,
            "PMAK-" + "0a" * 12 + "-" + "1b" * 17,
            "NRAK-" + "A1" * 13 + "B",
        ),
        *(
            "dp.st.dev." + "aB3dE5gH7j" * 4,
            "SK" + "0123456789abcdef" * 2,
            "AC" + "0a" * 16 + ":" + "1b" * 16,
            "LTAI" + "aB3dE5gH7j" * 2,
        ),
        *("dapi" + "0123456789abcdef" * 2, "ATATT3xFfGF0" + "aB3_" * 30, "mfa." + "aB3_" * 20, "key-" + "0123456789abcdef" * 2),
        *(
            "tskey-auth-" + "aB3dE5gH7j" + "-" + "aB3dE5gH7j" * 2,
            "sgp_" + "0123456789abcdef" * 3,
            "hf_oauth_" + "aB3dE5gH7j" * 3,
        ),
        *("EAA" + "aB3dE5gH7j" * 9, "0123456789abcdef" * 2 + "-us12", "oy2" + "a1b2c" * 8 + "a1b", "EZAK" + "aB3dE5gH7" * 6),
        *("GR1348941" + "aB3dE5gH7j" * 2, "atlasv1." + "aB3dE5gH7j" * 6),
    ],
)
def test_tokens_of_services_are_known(secret: str) -> None:
    assert re.fullmatch(r"a \[(?:SERVICE|HF|DISCORD|GITLAB)_TOKEN\] b", redact(f"a {secret} b"))


def test_half_a_character_hides_nothing() -> None:
    assert redact("\ud800 sshpass -p hunter2 \udfff hf_" + "a1B2" * 8) == "\ud800 sshpass -p [PASSWORD] \udfff [HF_TOKEN]"


def test_public_addresses_go_on_request_only() -> None:
    text = "from 8.8.4.4, 2606:4700::1111 and 52.94.236.248/32; version 5.0.0.62"
    assert redact(text) == text
    assert redact(text, public_ips=True) == "from [PUBLIC_IP], [PUBLIC_IP] and [PUBLIC_IP]/32; version 5.0.0.62"


def test_what_is_taken_out_is_counted() -> None:
    counts: Counter[str] = Counter(EMAIL=1)
    text = f"a@corp.io {PEM} password=hunter2 password: swordfish1 /home/alice 8.8.8.8"
    redact_counted(text, counts)
    assert counts == {"EMAIL": 2, "PRIVATE_KEY": 1, "PASSWORD": 2, "USER": 1}
    redact_counted(text, counts, public_ips=True)
    assert counts["PUBLIC_IP"] == 1
    assert counts.keys() <= KINDS.keys()


def test_without_people_only_secrets_go() -> None:
    assert redact("/home/alice a@corp.io password=hunter2", people=False) == "/home/alice a@corp.io password=[PASSWORD]"


def test_the_users_of_home_folders_are_told() -> None:
    assert list(home_users(r"/home/alice/x C:\Users\bob /home/lost+found /home/user https://x.org/home/z")) == ["alice", "bob"]


def test_evidence_is_redacted_before_it_is_quoted() -> None:
    key = "-----BEGIN PRIVATE KEY-----\nMIIB\n-----END PRIVATE KEY-----"
    token, url = "hf_" + "a1B2" * 8, 'https://u:it"s@host'
    metadata = {"list": [key, f"x\n{token}"], "deep": {f"of\n{token}": [{"url": url}]}, "n": [1, None]}
    shown = finding_document({"title": "t", "metadata": metadata}).description
    assert shown.splitlines() == [
        'list: ["[PRIVATE_KEY]","x\\n[HF_TOKEN]"]',
        'deep: {"of\\n[HF_TOKEN]":[{"url":"https://u:[PASSWORD]@host"}]}',
        "n: [1,null]",
    ]


def test_json_is_redacted_by_its_names_too() -> None:
    token = "hf_" + "a1B2" * 8
    assert redact_deep({"a": (token, 1), 2: None}) == {"a": ["[HF_TOKEN]", 1], 2: None}
    value = {
        "db_password": "correct horse",
        "api_key": "abc-def-1",
        "password": ["x1y", 12345678, True, None],
        "name": "swordfish",
    }
    assert redact_deep(value) == {
        "db_password": "[PASSWORD]",
        "api_key": "[SECRET]",
        "password": ["[PASSWORD]", "[PASSWORD]", True, None],
        "name": "swordfish",
    }
    assert redact_deep([{"name": "DB_PASSWORD", "value": "swordfish"}]) == [{"name": "DB_PASSWORD", "value": "[PASSWORD]"}]
    kept = {
        "password": {"min_length": 14, "policy": "swordfish"},
        "password_hash": "x",
        "token": "identifier",
        "secret": "",
        "pass": 3,
    }
    assert redact_deep(kept) == kept
    counts: Counter[str] = Counter()
    assert redact_deep({"password": "anchovy", "ip": "8.8.8.8"}, counts, public_ips=True)["ip"] == "[PUBLIC_IP]"
    assert counts == {"PASSWORD": 1, "PUBLIC_IP": 1}


def test_a_list_is_redacted_as_one_text() -> None:
    counts: Counter[str] = Counter()
    lines = ["a", "b -----BEGIN RSA PRIVATE KEY-----", LINE, LINE, "-----END RSA PRIVATE KEY----- c", "d"]
    made = redact_deep(lines, counts)
    assert made == ["a", "b [PRIVATE_KEY]", "[PRIVATE_KEY]", "[PRIVATE_KEY]", "[PRIVATE_KEY] c", "d"]
    assert counts == {"PRIVATE_KEY": 1}
    assert redact_deep(made) == made
    assert redact_deep(["x", "--password", "correct horse", "--token", "abc"])[2:] == ["[PASSWORD]", "--token", "abc"]
    assert redact_deep(["sshpass", "-p", "hunter2", "ssh"]) == ["sshpass", "-p", "[PASSWORD]", "ssh"]
    assert redact_deep(("mysql", "-u", "root", "-phunter2")) == ["mysql", "-u", "root", "-p[PASSWORD]"]
    kept = ["--password", "--user", "-p", "8080", "BEGIN PRIVATE KEY"]
    assert redact_deep(kept) == kept


def test_deep_json_is_no_recursion() -> None:
    value: object = "a@corp.io"
    for _ in range(100_000):
        value = [value]
    made = redact_deep(value)
    while isinstance(made, list):
        made = made[0]
    assert made == "[EMAIL]"


def test_every_kind_is_described_in_the_table() -> None:
    assert kinds_table().count("\n") == len(KINDS) + 2
    assert all(re.fullmatch(r"[A-Z][A-Z0-9_]{1,24}", kind) for kind in KINDS)


PIECES = [
    *("password", "=", ":", " ", '"', "'", "\\", "\n", "[PASSWORD]", "[USER]", "hunter2", "@", "corp.io", "/home/", "alice"),
    *("://", "https", "-", "hf_" + "aB3" * 10, "sk-" + "x9" * 15, "token", "secret", "eyJhbGciOiJI", ".", "$6$", "a1" * 9),
    *(",", ";", "&", "<", ">", "/", "(", ")", "{", "}", "[", "]", "api_key", "AKIA" + "A1" * 8, "-----BEGIN PRIVATE KEY-----"),
    *(LINE, "|", "`", "~", "\\n", "Bearer ", "Authorization", "x", "9", "_", "*", "curl -u ", "mysql -p", "value", "name"),
    *("1.2.3.4", "\uff1a", "\u0130", "%40", "C:\\Users\\", "login ", "machine a ", "PASSWORD 'x9y8'", "AccountKey="),
]


@given(st.lists(st.sampled_from(PIECES), max_size=24).map("".join) | st.text(max_size=200))
def test_twice_is_once_and_placeholders_are_never_within_each_other(text: str) -> None:
    made = redact(text, public_ips=True)
    assert redact(made, public_ips=True) == made
    if "[" not in text:
        assert not re.search(r"\[[^\]]*\[", made)


@given(st.lists(st.text("abcdefghijklmnopqrstuvwxyzäßж", min_size=1, max_size=12), max_size=60))
def test_plain_words_stay(words: list[str]) -> None:
    assert redact(" ".join(words)) == " ".join(words)


@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=20), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_values_keep_their_shape(value: object) -> None:
    made = redact_deep(value)
    assert type(made) is type(value)
    assert redact_deep(made) == made


BAITS = [
    *sorted({token.prefix for token in tokens._TOKENS}),
    *("sk-a-", "AKIA", "AIza", "eyJ", "eyJ-", "eyJaaaaaaaa.", ":" + "a" * 34, "M" * 26 + ".aaaaaa.", "1//0", "AccountKey="),
    *("-----BEGIN PRIVATE KEY-----", "-----BEGIN PRIVATE KEY-----\\n-a", "-----BEGIN PRIVATE KEY PRIVATE KEY", "-----BEGIN "),
    *(
        "-----BEGIN PRIVATE KEY-----\n" + "+" * 34,
        "$6$",
        "$6$aaaaaaaaaaaaaaa",
        "{SSHA}",
        "pbkdf2_sha256$",
        "scrypt:1:1:1$",
        ":::",
    ),
    *("a://", "a.b.c.d://u:", "a://u:p", "password", "password=", 'password="', "password='", "password=`", 'password=\\"'),
    *("password: ", "password:'''", "password=\\", "password \t ", "--password ", "password=a,", "password;;;", "password=["),
    *("[PASSWORD]", "[HF_TOKEN]@a.b", '"password",\n value', "password>a<", "pass=", "pwd=", "token=", "api_key: ", "psk="),
    *("machine a login b password ", "login ", "PASSWORD 'a", "define('password', '", "authorization: bearer ", "bearer a"),
    *(
        "identified by '",
        "mysql ",
        "mysql -p'",
        "redis-cli ",
        "curl -u a:",
        "echo a:bcd",
        "htpasswd -b a b ",
        "a:5432:",
        "a:5432:b:c:d",
    ),
    *(
        "@",
        "a@",
        "a@a.",
        "a@b.co",
        "@a.a.a.a.a.a.",
        "%40a.b",
        "/home/",
        "/home/a/",
        "\\Users\\",
        "~a/",
        " ",
        "\n",
        "a",
        "-",
        ".",
        "'",
    ),
    *("1.1.1.1 ", "2001:", "2222:", "\u0130password=x9y8z7w6 ", "\uff1a"),
]


MORE_BAITS = [
    *(
        "password is ",
        "password for a is ",
        "credentials: a/",
        "login a:",
        "密码是",
        "парол",
        "пароль: ",
        "mot de passe ",
        "net use ",
    ),
    *(
        "net use \\\\a ",
        "net user a ",
        " -p",
        " -u a:",
        '"-p","',
        "curl -u ",
        "zip -P ",
        "htpasswd -nb ",
        "sqlplus a/",
        "cookie: a=",
    ),
    *(
        "cookie: ",
        "a=b; ",
        "sess=",
        "jsessionid=aaaaaaaaaaaaaaaa",
        "auth=('a',",
        "SK0",
        "AC0",
        "EAA",
        "dapi0",
        "ATATT3x",
        "-us",
        "::a:",
    ),
    *(
        ":aaaaaaaaaaaaa:1",
        ":5432:a:b:",
        ":a:b:c:d",
        '"kty"',
        '"kty""d":"',
        "<RSAKeyValue<D>",
        "b3BlbnNzaC1rZXktdjEA",
        "SCRAM-SHA-1$",
    ),
    *("echo a", "echo a |sudo -S", "-- -", "<<<kinit ", "Private-Lines: 1\n", "machine a ", "\ud800"),
]
"""Only in the slow suite, as each takes a second."""


@pytest.mark.parametrize("bait", BAITS)
@pytest.mark.timeout(60)  # linear takes a second, what reads the text again from each place in it some minutes
def test_hostile_text_does_not_hang_redaction(bait: str) -> None:
    text = (bait * (300_000 // len(bait) + 1))[:300_000]
    made = redact(text, public_ips=True)
    assert redact(made, public_ips=True) == made


@pytest.mark.slow
@pytest.mark.parametrize("bait", BAITS + MORE_BAITS)
@pytest.mark.timeout(60)
def test_megabytes_of_hostile_text_do_not_hang_redaction(bait: str) -> None:
    redact(bait * (2_000_000 // len(bait)), public_ips=True)
