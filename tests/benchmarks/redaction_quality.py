"""How many planted secrets `redact` finds, of which kinds, and what it takes out of given files.

    python tests/benchmarks/redaction_quality.py [--each 200] [--seed 0] [FILE.jsonl[.gz] ...]

Plants secrets (random, of realistic shapes) in generated sentences, configuration, JSON and logs. A hit is a secret of which
 nothing stays, with the rest of the document as it was; each secret stands in each notation. Of files, every redaction is
printed with what stands around it: whether it is right must be judged by eye. Nothing is asserted here.
"""

from __future__ import annotations

import argparse
import base64
import gzip
import json
import random
import string
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sysscan_models.redaction import _RANKS, _find_people, _find_secrets, redact

ALPHANUMERIC = string.ascii_letters + string.digits
HEX, URL_SAFE, BASE64 = "0123456789abcdef", ALPHANUMERIC + "-_", ALPHANUMERIC + "+/"
TEXT = "the service reads its settings from a file that every user of the group can open and nobody checks who changed it"
WORDS = TEXT.split()


class Draw:
    """Random secrets of known shapes."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def some(self, length: int, alphabet: str = ALPHANUMERIC) -> str:
        """Return that many random characters."""
        return "".join(self.random.choices(alphabet, k=length))

    def pem(self, kind: str) -> str:
        """Return a key in PEM with random bytes."""
        lines = "\n".join(self.some(64, BASE64) for _ in range(self.random.randint(3, 20)))
        return f"-----BEGIN {kind}-----\n{lines}\n{self.some(22, BASE64)}==\n-----END {kind}-----"

    def jwt(self) -> str:
        """Return a token with three parts."""
        parts = ({"alg": "HS256", "typ": "JWT"}, {"sub": self.some(9), "iat": self.random.randint(10**9, 2 * 10**9)})
        coded = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts]
        return ".".join([*coded, self.some(43, URL_SAFE)])

    def password(self) -> str:
        """Return what people choose: a word with digits and symbols, or random characters."""
        word = self.random.choice(["winter", "dragon", "monkey", "orion", "falcon", "berlin"]).title()
        made = word + self.some(self.random.randint(2, 4), string.digits) + self.random.choice(["", "!", "#", "?", "$"])
        return self.random.choice(
            [made, self.some(self.random.randint(8, 24), ALPHANUMERIC + "!#%^*_+=.")[:-1] + "7", self.some(16, HEX)]
        )

    def name(self) -> str:
        """Return the name of a user."""
        return self.random.choice(["alice", "bob.m", "jsmith", "maria_l", "x-chen", "ole2", "Fatima"])


def shapes(draw: Draw) -> dict[str, Callable[[], str]]:
    """Return how to make a secret that its own shape gives away, by kind."""
    some = draw.some
    return {
        "HF_TOKEN": lambda: "hf_" + some(34, string.ascii_letters),
        "SK_TOKEN (OpenAI)": lambda: "sk-" + some(48),
        "SK_TOKEN (project)": lambda: "sk-proj-" + some(74, URL_SAFE) + "T3BlbkFJ" + some(74, URL_SAFE),
        "SK_TOKEN (Anthropic)": lambda: "sk-ant-api03-" + some(93, URL_SAFE) + "AA",
        "GITHUB_TOKEN": lambda: f"gh{draw.random.choice('pousr')}_" + some(36),
        "GITHUB_TOKEN (fine)": lambda: "github_pat_" + some(22) + "_" + some(59),
        "GITLAB_TOKEN": lambda: "glpat-" + some(20, URL_SAFE),
        "AWS_KEY_ID": lambda: draw.random.choice(["AKIA", "ASIA"]) + some(16, string.ascii_uppercase + "234567"),
        "GOOGLE_KEY": lambda: "AIza" + some(35, URL_SAFE),
        "GOOGLE_OAUTH": lambda: "ya29." + some(120, URL_SAFE),
        "GOOGLE_OAUTH (client)": lambda: "GOCSPX-" + some(28, URL_SAFE),
        "SLACK_TOKEN": lambda: f"xox{draw.random.choice('bp')}-{some(12, string.digits)}-{some(12, string.digits)}-{some(24)}",
        "STRIPE_KEY": lambda: draw.random.choice(["sk_live_", "rk_live_"]) + some(24),
        "NPM_TOKEN": lambda: "npm_" + some(36),
        "PYPI_TOKEN": lambda: "pypi-AgEIcHlwaS5vcmc" + some(150, URL_SAFE),
        "DIGITALOCEAN_TOKEN": lambda: "dop_v1_" + some(64, HEX),
        "SENDGRID_KEY": lambda: "SG." + some(22, URL_SAFE) + "." + some(43, URL_SAFE),
        "TELEGRAM_TOKEN": lambda: some(1, "123456789") + some(9, string.digits) + ":AA" + some(33, URL_SAFE),
        "DISCORD_TOKEN": lambda: "M" + some(25) + "." + some(6, URL_SAFE) + "." + some(38, URL_SAFE),
        "JWT": draw.jwt,
        "PRIVATE_KEY (RSA)": lambda: draw.pem("RSA PRIVATE KEY"),
        "PRIVATE_KEY (OpenSSH)": lambda: draw.pem("OPENSSH PRIVATE KEY"),
        "PRIVATE_KEY (PGP)": lambda: draw.pem("PGP PRIVATE KEY BLOCK"),
        "PRIVATE_KEY (cut off)": lambda: draw.pem("EC PRIVATE KEY").rsplit("\n", 2)[0],
        "PASSWORD_HASH ($6$)": lambda: f"$6${some(16, ALPHANUMERIC + './')}${some(86, ALPHANUMERIC + './')}",
        "PASSWORD_HASH ($y$)": lambda: f"$y$j9T${some(22, ALPHANUMERIC + './')}${some(43, ALPHANUMERIC + './')}",
        "PASSWORD_HASH ($2b$)": lambda: f"$2b$12${some(53, ALPHANUMERIC + './')}",
        "EMAIL": lambda: f"{draw.name()}@{some(7, string.ascii_lowercase)}.{draw.random.choice(['com', 'de', 'co.uk', 'io'])}",
    }


PLACES = {  # notation -> text before and after the secret
    "a sentence": ("It leaks ", " to everyone."),
    "a sentence's end": ("What we saw was ", "."),
    "JSON": ('{"value": "', '", "n": 1}'),
    "escaped JSON": (r"{\"value\": \"", r"\"}"),
    "a line of its own": ("first\n", "\nlast"),
    "behind a quoted line end": ("first\\n", "\\nlast"),
    "shell": ("export X='", "'; run"),
    "YAML": ("  item: ", "\n  next: 1"),
    "brackets": ("(see ", ")"),
}


def announced(draw: Draw) -> dict[str, tuple[str, Callable[[], str], str]]:
    """Return secrets that only what stands before them gives away: the text before, the secret, the text after."""
    some, password = draw.some, draw.password
    plain = lambda: password().translate(dict.fromkeys(map(ord, "@/:;%#?'\"$&+=^*!"), "x"))  # noqa: E731 - as URLs and shells need it
    return {
        "PASSWORD (ini)": ("user = app\npassword = ", password, "\nport = 1"),
        "PASSWORD (environment)": ("export DB_PASSWORD=", plain, "\n"),
        "PASSWORD (JSON)": ('{"user": "x", "password": "', password, '"}'),
        "PASSWORD (YAML)": ("db:\n  password: ", password, "\n  port: 1"),
        "PASSWORD (YAML, quoted)": ('db:\n  passwd: "', password, '"\n'),
        "PASSWORD (connection string)": ("Server=a;Uid=sa;Pwd=", plain, ";Database=b"),
        "PASSWORD (option)": ("run --user x --password ", plain, " --now"),
        "PASSWORD (mysql)": ("mysql -u root -p", plain, " db"),
        "PASSWORD (URL)": ("postgres://app:", plain, "@db:5432/x"),
        "PASSWORD (SQL)": ("CREATE USER x IDENTIFIED BY '", password, "';"),
        "PASSWORD (netrc)": ("machine h.io login bob password ", plain, "\n"),
        "PASSWORD (pgpass)": ("db.h.io:5432:main:bob:", plain, "\n"),
        "PASSWORD (XML)": ("<password>", plain, "</password>"),
        "BEARER_TOKEN": ("Authorization: Bearer ", lambda: some(40), "\n"),
        "BEARER_TOKEN (Basic)": ("Authorization: Basic ", lambda: base64.b64encode(some(18).encode()).decode(), "\n"),
        "AWS_SECRET_KEY": ("aws_secret_access_key = ", lambda: some(40, BASE64), "\n"),
        "SECRET (api_key)": ("api_key: ", lambda: some(32, HEX), "\n"),
        "SECRET (token)": ('"token": "', lambda: some(40), '"'),
        "SECRET (client_secret)": ("client_secret=", lambda: some(32, URL_SAFE), "&x=1"),
        "AZURE_KEY": ("AccountName=a;AccountKey=", lambda: some(86, BASE64) + "==", ";Suffix=b"),
        "SLACK_WEBHOOK": ("https://hooks.slack.com/services/", lambda: f"T{some(8)}/B{some(8)}/{some(24)}", " x"),
        "DISCORD_TOKEN (webhook)": ("https://discord.com/api/webhooks/" + "1" * 18 + "/", lambda: some(68, URL_SAFE), " x"),
        "USER (Linux)": ("owned by /home/", draw.name, "/.ssh/id_rsa"),
        "USER (macOS)": ("in /Users/", draw.name, "/Library"),
        "USER (Windows)": ("in C:\\Users\\", draw.name, "\\AppData"),
        "PUBLIC_IP": ("from ", lambda: ".".join(str(draw.random.randint(20, 99)) for _ in range(4)), " to us"),
    }


def plant(draw: Draw, each: int) -> Iterator[tuple[str, str, str, str]]:
    """Yield kind, text before, secret, text after."""
    for kind, make in shapes(draw).items():
        for number in range(each):
            yield kind, *_around(draw, *list(PLACES.values())[number % len(PLACES)], make())
    for kind, (before, make, after) in announced(draw).items():
        for _ in range(each):
            yield kind, *_around(draw, before, after, make())


def _around(draw: Draw, before: str, after: str, secret: str) -> tuple[str, str, str]:
    head, tail = (" ".join(draw.random.choices(WORDS, k=draw.random.randint(3, 40))) for _ in range(2))
    return f"{head}.\n{before}", secret, f"{after}\n{tail}"


def measure(each: int, seed: int) -> None:
    """Print hits, misses and damage to the rest of the document, for each kind."""
    rows: dict[str, Counter[str]] = {}
    missed: dict[str, str] = {}
    for kind, before, secret, after in plant(Draw(seed), each):
        made, row = redact(before + secret + after, public_ips=True), rows.setdefault(kind, Counter())
        whole = made.startswith(before) and made.endswith(after)
        middle = made[len(before) : len(made) - len(after)] if whole else made
        hit = secret not in made and (not whole or (middle[:1] == "[" and middle.rstrip(".")[-1:] == "]"))
        row["hit" if hit else "miss"] += 1
        row["damaged"] += not whole
        row["other kind"] += hit and whole and middle.rstrip(".") != f"[{kind.split(' ')[0]}]"
        if not hit or not whole:
            missed.setdefault(kind, repr((before[-30:] + secret + after[:12], made[-120:])))
    for kind, row in rows.items():
        print(
            f"{kind:32} hits {row['hit']:5} misses {row['miss']:4} other kind {row['other kind']:4} damaged {row['damaged']:4}",
            end="  ",
        )
        print(missed.get(kind, "")[:200])
    total = sum(rows.values(), Counter())
    print(f"all: {total['hit']} of {total['hit'] + total['miss']} planted secrets found ({total['damaged']} documents damaged)")


def strings(value: Any) -> Iterator[str]:
    """Yield every text in a value of JSON."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from strings(item)


def show(file: Path) -> None:
    """Print every redaction in a file of JSON Lines, with what stands around it, and what it costs."""
    with gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else file.open(encoding="utf-8") as lines:
        texts = [text for line in lines for text in strings(json.loads(line))]
    kinds: Counter[str] = Counter()
    for text in texts:
        found: list[tuple[int, int, str]] = []
        _find_secrets(text, found)
        _find_people(text, found, False)
        kinds.update(kind for _, _, kind in found)
        for start, end, kind in sorted(found):
            print(f"  {kind}: {text[max(0, start - 40) : start]!r} <<{text[start:end][:80]!r}>> {text[end : end + 20]!r}")
    began = time.process_time()
    for text in texts:
        redact(text)
    seconds, characters = time.process_time() - began, sum(map(len, texts))
    print(f"{file}: {len(texts)} texts, {characters} characters, {1e6 * seconds / len(texts):.1f} microseconds each")
    print(f"  {dict(sorted(kinds.items(), key=lambda entry: _RANKS[entry[0]]))}")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--each", type=int, default=200, help="secrets of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("files", nargs="*", type=Path)
    options = parser.parse_args()
    measure(options.each, options.seed)
    for file in options.files:
        show(file)


if __name__ == "__main__":
    main()
