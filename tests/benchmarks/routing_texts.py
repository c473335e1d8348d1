"""Documents of our own that the shipped router is fitted on beside those of packages: word lists and frames with blanks.

They carry what few packages say: findings as a scanner of hosts words them, short hardening instructions, the vocabulary of
the field in many languages, and trades whose own words sound like security. Written for this project; nothing is copied.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from itertools import product

Text = tuple[str, str]

DECISIVE = """
    access control, adversary, aide database, apparmor, attack surface, attack vector, attacker, auditctl, auditd, backdoor,
    bind shell, bootkit, botnet, brute force, buffer overflow, c2 server, cap_sys_admin, chkrootkit, clamav, clickjacking,
    code execution, code injection, coinminer, command and control, command injection, container escape, credential dumping,
    credential theft, cross site scripting, crypter, cryptominer, csrf, cve, cvss, cwe, cyber, cybercriminal, cybersecurity,
    debsums, denial of service, deserialization, directory traversal, dos attack, dropper, espionage, exfiltrate,
    exfiltration, exploitable, fail2ban, faillock, firewalld, forensic, hardened, hardening, heap overflow, idor, improper
    authentication, improper neutralization, improper validation, incident response, indicator of compromise, infosec,
    infostealer, input validation, insecure, insecure deserialization, integer overflow, intrusion, intrusion detection,
    iptables, keylogger, kptr_restrict, lateral movement, ld_preload, least privilege, lolbin, malicious, malware, memory
    corruption, memory safety, middle attack, mimikatz, mitm, mitre, nftables, nist, nodev, noexec, nosuid, not properly,
    null pointer dereference, osquery, out of bound, owasp, pam_faillock, password cracking, path traversal, penetration
    test, pentest, phishing, privilege escalation, privileged container, process injection, prototype pollution, psexec,
    ptrace_scope, race condition, ransomware, redos, remote access tool, request forgery, reverse shell, rkhunter, rootkit,
    sandbox escape, seccomp, security advisory, security fix, security hole, security issue, security misconfiguration,
    security patch, security problem, security update, selinux, setcap, setgid, setuid, sgid, shellcode, side channel, sigma
    rule, snort, spear phishing, spyware, sql injection, ssrf, stack overflow, state sponsored, stealer, stix, suid, supply
    chain attack, suricata, sysmon, tamper, tampered, tampering, threat actor, threat group, threat hunting, timing attack,
    tripwire, trojan, trojan horse, typosquatting, unauthorised access, unauthorized, unauthorized access, untrusted input,
    use after free, vulnerability, vulnerable, web shell, webshell, world writable, xss, xxe, yara, zero day
"""
STRONG = """
    abuse, abused, advisory, allowlist, anonymous, api key, arbitrary, at job, attack, audit, audit log, audit rule,
    auditing, authenticated, authentication, authorization, baseline, blacklist, boot loader password, bpf, breach, brute
    forcing, bypass, cap_net_admin, cap_net_raw, capability, cgroup, checksum mismatch, chroot, cipher, cis benchmark,
    clock_settime, compliance, compromise, compromised, covertly, crafted, crash, credential, cron, crontab, cryptographic,
    dangling, data race, ddos, defence evasion, deleted binary, denied, deny, denylist, detection rule, disa, disclosure,
    double free, downloader, eavesdropping, ebpf, encryption, enforcing, escalate, escalation, evade, evasion, execve,
    exploit, exploitation, exploited, file permission, fingerprinting, firewall, flaw, forensics, gpgcheck, grub, hash
    mismatch, hidden process, hijack, hijacking, hipaa, honeypot, immutable, improper, improperly, inactivity, incorrectly,
    initramfs, inject, injected, injection, insider, insufficient, integrity, ioc, journald, jwt, kerberos, kernel module,
    kexec, kprobe, leaked, leaking, listening port, loader, lockout, log file, mac policy, malformed, memfd, memory leak,
    mfa, mishandle, missing authentication, missing check, misuse, mitigate, mitigation, mitre, multi factor, nfs,
    obfuscated, obfuscation, open port, openssh, out of memory, overflow, overwrite, ownership, pam, panic, passwd,
    password, patched, payload, pci dss, permission, permissive, persistence, policy violation, port scan, port scanner,
    private key, privilege, privileged, promiscuous, remediation, remote attacker, remote user, restrict, restricted, rhost,
    rlogin, root, root login, rsh, rsyslog, sandbox, sanitization, sanitize, secret, secure, secure boot, secured, securing,
    security, sensitive, sensitive data, sensitive information, session timeout, severity, shadow, siem, signature
    verification, smb, sniffing, snmp, specially crafted, spoof, spoofed, spoofing, ssh, sshd, ssl, stealth, sticky bit,
    stig, stolen, sudo, sudoer, suspicious, sysctl, syslog, tainted, tampering, targeting, telnet, tftp, threat, tls,
    trusted, two factor, umask, unauthenticated, undefined behavior, unexpected, uninitialized, unprivileged, unrestricted,
    unsafe, unsigned module, unsound, unsoundness, untrusted, victim, vulnerability scanner, weakness, whitelist, world
    readable, xinetd
"""
GENERAL = """
    agenda, album, algebra, animation, arcade, array, astronomy, audio, auditing event, axis, bibliography, bicycle,
    binding, bird, bool, branch, brush, budget, button, canvas, chart, chemistry, chord, climate, codec, color, colour,
    column, commit, convert, converter, dataframe, desktop, development file, dialog, dictionary, display, docstring,
    documentation, dough, emulator, equation, essay, estimator, exam, example, float, flour, flower, font, football, format,
    galaxy, garden, gaussian, genome, grammar, header file, histogram, holiday, hotel, icon, image editor, ink, int,
    integral, invoice, keyboard shortcut, language binding, layer, library card, locale, lyric, marathon, matplotlib,
    matrix, meeting, melody, menu, merge conflict, midi, milestone, minute, molecule, mountain, museum, music, ndarray,
    newsletter, novel, numpy, onboarding, orchestra, oven, paper, parameter, pixel, planet, plant, playback, playlist, plot,
    poem, polynomial, presentation, print the, printer, protein, pull request, pupil, puzzle, railway, rain, raise, recipe,
    regression, release note, river, roadmap, row, sauce, school, see also, seed, sequence, shared library, simulation,
    soil, song, sort, spelling, spreadsheet, sprint, staff, star, static library, story, str, teacher, telescope, tempo,
    tennis, theme, theorem, thumbnail, toolbar, tourist, train, translation, tree, tuple, tutorial, typesetting, unit test,
    video, volcano, weather, whale, widget
"""
TRADES = {
    "finance": """
        accounting, bank, bond, budget, currency, deposit, dividend, drawdown, gnucash, insurance, investment, investor,
        invoice, landlord, ledger, loan, mortgage, payment, portfolio, rent, shareholder, stock, tax, tenant,
        volatility, account, audit, auditing, breach, compliance, exposure, impact, integrity, owner, policies, policy,
        risk, security, threat, token
    """,
    "games": """
        battle, bishop, castle, checkmate, chess, dragon, football, fortress, game, goalkeeper, hockey, knight,
        medieval, midfielder, opening, pawn, player, referee, scenario, siege, striker, sword, terrain, village,
        villager, wesnoth, attack, attacker, backdoor, breach, capture, defence, defense, enemy, exploit, intrusion,
        penetration, shield, target, threat, unit
    """,
    "biology": """
        bacteria, cell, disease, doctor, dough, flour, garden, gene, genome, hospital, immune, insect, kitchen, nurse,
        oven, patient, plant, predator, prey, protein, seed, soil, species, tree, vaccine, virus, attack, attacker,
        colony, exploit, hardened, hardening, host, infection, injected, injection, intrusion, kernel, malicious, pam,
        panic, payload, penetration test, population, resistance, root, shell, threat, trojan horse, vector, vulnerable,
        worm
    """,
    "mathematics": """
        array, bandwidth, convolution, density, distribution, equation, estimator, float, gaussian, integral, matrix,
        ndarray, numpy, optimization, polynomial, regression, statistic, theorem, arbitrary, attack, exploit, exploited,
        host, injection, kernel, overflow, payload, policy, root, signature, token, vulnerable
    """,
    "theatre and letters": """
        actor, audience, author, chapter, essay, film, homer, museum, novel, painting, play, poem, poet, scene, stage,
        theatre, troy, actor, attack, cipher, compromise, exploit, forensic, intrusion, root, secret, shadow, stolen,
        threat, trojan, horse, victim
    """,
    "buildings and machines": """
        boat, bolt, brick, bridge, concrete, door, drill, engine, harbour, paint, plaster, roof, sail, ship, steel,
        timber, wall, window, backdoor, breach, firewall, hardened, hardening, integrity, key, leak, mount, patch,
        penetration, port, root, rust, sandbox, shell
    """,
}
"""Words of other fields, those that sound like security among them."""

SECURITY_ELSEWHERE = {
    "de": "Sicherheit, Sicherheitslücke, Schwachstelle, Angriff, Angreifer, Schadsoftware, Schadcode, Firewall, Verschlüsselung, verschlüsselt, Passwort, Kennwort, Passwortrichtlinie, Zugriffsrechte, unbefugter Zugriff, Rechteausweitung, Härtung, absichern, Einbruch, Einbruchserkennung, Eindringling, Protokollierung, Überwachung, Rootkit, Hintertür, Ausnutzung, Pufferüberlauf, gefälscht, vertraulich, Authentifizierung, Berechtigung, Sicherheitsaktualisierung, kompromittiert, Manipulation, Bedrohung, Virenscanner, Paketfilter, Brute-Force-Angriff, Root-Anmeldung deaktivieren, weltweit beschreibbar, SUID-Bit, Integritätsprüfung",
    "fr": "sécurité, faille de sécurité, vulnérabilité, attaque, attaquant, logiciel malveillant, code malveillant, pare-feu, chiffrement, chiffré, mot de passe, droits d'accès, accès non autorisé, élévation de privilèges, durcissement, sécuriser, intrusion, détection d'intrusion, intrus, journalisation, surveillance, porte dérobée, exploitation, dépassement de tampon, usurpation, confidentialité, authentification, permission, mise à jour de sécurité, compromis, falsification, menace, antivirus, filtrage de paquets, force brute, désactiver la connexion de root, accessible en écriture à tous, bit SUID, contrôle d'intégrité, rançongiciel, hameçonnage",
    "es": "seguridad, fallo de seguridad, vulnerabilidad, ataque, atacante, programa malicioso, código malicioso, cortafuegos, cifrado, cifrar, contraseña, permisos de acceso, acceso no autorizado, escalada de privilegios, endurecimiento, asegurar el sistema, intrusión, detección de intrusos, intruso, registro de auditoría, puerta trasera, explotación, desbordamiento de búfer, suplantación, confidencialidad, autenticación, actualización de seguridad, comprometido, manipulación, amenaza, antivirus, filtrado de paquetes, fuerza bruta, deshabilitar el acceso de root, escritura para todos, bit SUID, comprobación de integridad, robo de credenciales",
    "it": "sicurezza, falla di sicurezza, vulnerabilità, attacco, attaccante, aggressore, codice malevolo, firewall, cifratura, crittografia, password, permessi di accesso, accesso non autorizzato, aumento dei privilegi, messa in sicurezza, intrusione, rilevamento delle intrusioni, intruso, registro di controllo, porta di servizio nascosta, sfruttare una falla, overflow del buffer, contraffazione, riservatezza, autenticazione, aggiornamento di sicurezza, compromesso, manomissione, minaccia, antivirus, filtro di pacchetti, forza bruta, disabilitare l'accesso di root, scrivibile da tutti, bit SUID, controllo di integrità",
    "pt": "segurança, falha de segurança, vulnerabilidade, ataque, atacante, invasor, código malicioso, software malicioso, firewall, criptografia, criptografado, senha, permissões de acesso, acesso não autorizado, escalação de privilégios, blindagem, proteger o sistema, intrusão, detecção de intrusão, intruso, auditoria, registo de auditoria, porta dos fundos, exploração, estouro de buffer, falsificação, confidencialidade, autenticação, atualização de segurança, comprometido, adulteração, ameaça, antivírus, filtro de pacotes, força bruta, desativar o login de root, gravável por todos, bit SUID, verificação de integridade",
    "ru": "безопасность, уязвимость, атака, злоумышленник, вредоносная программа, вредоносный код, межсетевой экран, брандмауэр, шифрование, зашифрован, пароль, права доступа, несанкционированный доступ, повышение привилегий, усиление защиты, защита системы, вторжение, обнаружение вторжений, взломщик, взлом, аудит, журнал безопасности, руткит, чёрный ход, эксплуатация уязвимости, переполнение буфера, подделка, конфиденциальность, аутентификация, обновление безопасности, скомпрометирован, угроза, антивирус, фильтр пакетов, перебор паролей, отключить вход root, доступен на запись всем, бит SUID, проверка целостности",
    "uk": "безпека, вразливість, атака, зловмисник, шкідлива програма, брандмауер, мережевий екран, шифрування, пароль, права доступу, несанкціонований доступ, підвищення привілеїв, захист системи, вторгнення, виявлення вторгнень, аудит, руткіт, переповнення буфера, підробка, розпізнавання користувача, загроза, перевірка цілісності, оновлення безпеки",
    "ja": "セキュリティ, 脆弱性, 攻撃, 攻撃者, マルウェア, 悪意のあるコード, ファイアウォール, 暗号化, パスワード, アクセス権, 不正アクセス, 権限昇格, 要塞化, 侵入, 侵入検知, 侵入者, 監査, 監査ログ, ルートキット, バックドア, 悪用, バッファオーバーフロー, なりすまし, 機密, 認証, セキュリティ更新, 改竄, 改ざん検知, 脅威, ウイルス対策, パケットフィルタ, 総当たり攻撃, root ログインを無効にする, 誰でも書き込み可能, 完全性の検査",
    "zh": "安全, 安全漏洞, 漏洞, 攻击, 攻击者, 恶意软件, 恶意代码, 防火墙, 加密, 密码, 口令, 访问权限, 未授权访问, 权限提升, 提权, 加固, 系统加固, 入侵, 入侵检测, 入侵者, 审计, 审计日志, 后门, 木马, 利用漏洞, 缓冲区溢出, 伪造, 机密, 身份验证, 认证, 安全更新, 被攻陷, 篡改, 威胁, 杀毒, 包过滤, 暴力破解, 禁止 root 登录, 任何人可写, 完整性检查, 資訊安全, 攻擊者, 惡意程式, 防火牆, 入侵偵測, 弱點, 權限提升",
    "ko": "보안, 취약점, 공격, 공격자, 악성 코드, 악성 소프트웨어, 방화벽, 암호화, 비밀번호, 암호, 접근 권한, 무단 접근, 권한 상승, 보안 강화, 침입, 침입 탐지, 침입자, 감사 로그, 루트킷, 백도어, 악용, 버퍼 오버플로, 위조, 기밀, 인증, 보안 업데이트, 변조, 위협, 바이러스 백신, 패킷 필터, 무차별 대입, root 로그인 비활성화, 무결성 검사, 해커, 해킹",
    "nl": "beveiliging, veiligheid, beveiligingslek, kwetsbaarheid, aanval, aanvaller, kwaadaardige software, kwaadaardige code, firewall, versleuteling, versleuteld, wachtwoord, toegangsrechten, ongeautoriseerde toegang, rechtenescalatie, beveiligen, inbraak, inbraakdetectie, indringer, controlelogboek, achterdeur, misbruik, bufferoverloop, vervalsing, vertrouwelijk, authenticatie, beveiligingsupdate, gecompromitteerd, bedreiging, virusscanner, pakketfilter, root-aanmelding uitschakelen, integriteitscontrole",
    "pl": "bezpieczeństwo, luka w zabezpieczeniach, podatność, atak, atakujący, złośliwe oprogramowanie, złośliwy kod, zapora sieciowa, szyfrowanie, zaszyfrowany, hasło, prawa dostępu, nieuprawniony dostęp, podniesienie uprawnień, utwardzanie, zabezpieczanie systemu, włamanie, wykrywanie włamań, intruz, włamywacz, audyt, tylna furtka, wykorzystanie luki, przepełnienie bufora, fałszowanie, poufność, uwierzytelnianie, aktualizacja bezpieczeństwa, zagrożenie, program antywirusowy, filtr pakietów, kontrola integralności",
    "cs": "bezpečnost, zranitelnost, bezpečnostní chyba, útok, útočník, škodlivý software, škodlivý kód, firewall, šifrování, zašifrovaný, heslo, přístupová práva, neoprávněný přístup, zvýšení oprávnění, zabezpečení systému, průnik, detekce průniku, vetřelec, audit, zadní vrátka, zneužití, přetečení zásobníku, padělání, důvěrnost, ověřování, bezpečnostní aktualizace, hrozba, antivir, paketový filtr, kontrola integrity",
    "sk": "bezpečnosť, zraniteľnosť, útok, útočník, škodlivý kód, šifrovanie, heslo, prístupové práva, neoprávnený prístup, zabezpečenie systému, prienik, detekcia prienikov, hrozba, overovanie, kontrola integrity, zneužitie",
    "sv": "säkerhet, sårbarhet, säkerhetshål, angrepp, attack, angripare, skadlig programvara, skadlig kod, brandvägg, kryptering, krypterad, lösenord, åtkomsträttigheter, obehörig åtkomst, höjda privilegier, säkra systemet, intrång, intrångsdetektering, inkräktare, granskning, bakdörr, utnyttja en brist, buffertspill, förfalskning, sekretess, autentisering, säkerhetsuppdatering, hot, virusskydd, paketfilter, integritetskontroll",
    "da": "sikkerhed, sårbarhed, sikkerhedshul, angreb, angriber, ondsindet program, firewall, kryptering, krypteret, adgangskode, adgangsrettigheder, uautoriseret adgang, indbrud, indtrængen, revision, bagdør, udnyttelse, bufferoverløb, forfalskning, godkendelse, sikkerhedsopdatering, trussel, antivirus, pakkefilter, integritetskontrol",
    "nb": "sikkerhet, sårbarhet, sikkerhetshull, angrep, angriper, skadelig programvare, brannmur, kryptering, passord, tilgangsrettigheter, uautorisert tilgang, inntrenging, bakdør, utnyttelse, autentisering, sikkerhetsoppdatering, trussel, integritetskontroll",
    "fi": "tietoturva, haavoittuvuus, turva-aukko, hyökkäys, hyökkääjä, haittaohjelma, palomuuri, salaus, salattu, salasana, käyttöoikeudet, luvaton pääsy, oikeuksien korotus, koventaminen, tunkeutuminen, tunkeutumisen havaitseminen, takaovi, puskurin ylivuoto, väärennös, tunnistautuminen, tietoturvapäivitys, uhka, virustorjunta, eheyden tarkistus",
    "tr": "güvenlik, güvenlik açığı, zafiyet, saldırı, saldırgan, kötü amaçlı yazılım, zararlı kod, güvenlik duvarı, şifreleme, parola, şifre, erişim hakları, yetkisiz erişim, yetki yükseltme, sıkılaştırma, sızma, saldırı tespiti, arka kapı, istismar, arabellek taşması, sahtecilik, gizlilik, kimlik doğrulama, güvenlik güncellemesi, tehdit, bütünlük denetimi",  # noqa: RUF001 - Turkish
    "hu": "biztonság, sebezhetőség, biztonsági rés, támadás, támadó, kártékony program, tűzfal, titkosítás, jelszó, hozzáférési jogok, jogosulatlan hozzáférés, behatolás, behatolásérzékelés, hátsó ajtó, puffertúlcsordulás, hamisítás, hitelesítés, biztonsági frissítés, fenyegetés, sértetlenség ellenőrzése",
    "el": "ασφάλεια, ευπάθεια, επίθεση, επιτιθέμενος, κακόβουλο λογισμικό, τείχος προστασίας, κρυπτογράφηση, κωδικός πρόσβασης, δικαιώματα πρόσβασης, μη εξουσιοδοτημένη πρόσβαση, εισβολή, εισβολέας, κερκόπορτα, απειλή, ταυτοποίηση, έλεγχος ακεραιότητας",
    "ro": "securitate, vulnerabilitate, atac, atacator, program malițios, cod malițios, paravan de protecție, criptare, parolă, drepturi de acces, acces neautorizat, intruziune, detectarea intruziunilor, amenințare, autentificare, verificarea integrității, actualizare de securitate",
    "id": "keamanan, kerentanan, celah keamanan, serangan, penyerang, perangkat lunak jahat, kode berbahaya, tembok api, enkripsi, kata sandi, hak akses, akses tanpa izin, eskalasi hak, penyusupan, pintu belakang, ancaman, autentikasi, pembaruan keamanan, pemeriksaan integritas",
    "vi": "bảo mật, lỗ hổng, tấn công, kẻ tấn công, phần mềm độc hại, mã độc, tường lửa, mã hóa, mật khẩu, quyền truy cập, truy cập trái phép, leo thang đặc quyền, xâm nhập, phát hiện xâm nhập, cửa hậu, mối đe dọa, xác thực, kiểm tra toàn vẹn",
    "sr": "безбедност, рањивост, напад, нападач, злонамерни програм, заштитни зид, шифровање, лозинка, права приступа, неовлашћен приступ, упад, откривање упада, претња, аутентификација",
    "ar": "الأمن, ثغرة أمنية, هجوم, مهاجم, برمجيات خبيثة, جدار الحماية, تشفير, كلمة المرور, صلاحيات الوصول, وصول غير مصرح به, تصعيد الامتيازات, اختراق, كشف التسلل, تهديد, مصادقة, باب خلفي",
}  # fmt: skip
"""The vocabulary of security in other languages."""

GENERAL_ELSEWHERE = {
    "de": "Rezept, Backofen, Mehl und Wasser, Reise, Bahnhof, Musik, Klavier, Garten, Gemüse, Wetter, Schule, Fußball, Spielzug beim Schach, Rechnung, Konto, Drucker, Tabelle, Schriftart, Bild bearbeiten, Matrix, Funktion zeichnen, Datei umbenennen, Paket bauen, Zweig zusammenführen",
    "fr": "recette, four, farine et eau, voyage, gare, musique, piano, jardin, légumes, météo, école, football, coup aux échecs, facture, compte, imprimante, tableau, police de caractères, retoucher une image, matrice, tracer une fonction, renommer un fichier, construire un paquet, fusionner une branche",
    "es": "receta, horno, harina y agua, viaje, estación, música, piano, jardín, verduras, tiempo, escuela, fútbol, jugada de ajedrez, factura, cuenta, impresora, tabla, tipo de letra, editar una imagen, matriz, dibujar una función, renombrar un archivo, construir un paquete, fusionar una rama",
    "it": "ricetta, forno, farina e acqua, viaggio, stazione, musica, pianoforte, giardino, verdure, tempo, scuola, calcio, mossa di scacchi, fattura, conto, stampante, tabella, carattere, modificare un'immagine, matrice, disegnare una funzione, rinominare un file, costruire un pacchetto",
    "pt": "receita, forno, farinha e água, viagem, estação, música, piano, jardim, legumes, tempo, escola, futebol, lance de xadrez, fatura, conta, impressora, tabela, tipo de letra, editar uma imagem, matriz, desenhar uma função, renomear um arquivo, construir um pacote",
    "ru": "рецепт, духовка, мука и вода, поездка, вокзал, музыка, пианино, сад, овощи, погода, школа, футбол, ход в шахматах, счёт, принтер, таблица, шрифт, изменить изображение, матрица, построить график функции, переименовать файл, собрать пакет",
    "ja": "料理, オーブン, 小麦粉と水, 旅行, 駅, 音楽, ピアノ, 庭, 野菜, 天気, 学校, サッカー, 将棋, 請求書, 口座, プリンタ, 表, フォント, 画像を編集する, 行列, 関数を描く, ファイル名を変更する, パッケージを作る",
    "zh": "食谱, 烤箱, 面粉和水, 旅行, 车站, 音乐, 钢琴, 花园, 蔬菜, 天气, 学校, 足球, 象棋, 发票, 账户, 打印机, 表格, 字体, 编辑图像, 矩阵, 绘制函数, 重命名文件, 构建软件包",
    "ko": "요리법, 오븐, 밀가루와 물, 여행, 역, 음악, 피아노, 정원, 채소, 날씨, 학교, 축구, 체스, 송장, 계정, 프린터, 표, 글꼴, 이미지 편집, 행렬, 함수 그리기, 파일 이름 바꾸기, 꾸러미 만들기",
    "nl": "recept, oven, meel en water, reis, station, muziek, piano, tuin, groenten, weer, school, voetbal, schaakzet, rekening, printer, tabel, lettertype, afbeelding bewerken, matrix, bestand hernoemen, pakket bouwen",
    "pl": "przepis, piekarnik, mąka i woda, podróż, dworzec, muzyka, fortepian, ogród, warzywa, pogoda, szkoła, piłka nożna, ruch w szachach, faktura, konto, drukarka, tabela, czcionka, edycja obrazu, macierz, zmiana nazwy pliku, budowanie pakietu",
}  # fmt: skip

# Frames ---------------------------------------------------------------------------------------------------------------------

FINDINGS = (
    "{suid} has the SUID bit set|The file is owned by root and runs with its privileges whoever starts it.",
    "SUID/SGID binary {suid}|Binary has SUID or SGID bit set",
    "SUID binary found: {suid}|mode 4755, owner root, not in the baseline",
    "File capabilities binary {suid}|Binary has file capabilities set: {cap}",
    "World-writable file {path}|Any local user may change this file (mode 0666).",
    "World writable directory without sticky bit: {path}|Anybody can replace the files of others there.",
    "Kernel parameter {sysctl} is {digit}|Expected value 1; set it in a file below /etc/sysctl.d.",
    "{sysctl} = {digit}|The recommended value differs from the current one.",
    "{proc}|current {digit}, desired {digit}. Kernel pointer addresses restricted; ASLR should be full.",
    "Module {module}|Loaded kernel module",
    "Kernel module {module} is unsigned or out of tree|The kernel is tainted by the module {module}.",
    "Loaded module {module} hidden from lsmod|It is listed in sysfs, not in /proc/modules.",
    "Process {process} listens on 0.0.0.0:{port}|TCP listening socket reachable from every network, uid 0.",
    "Listening TCP port {port}|state LISTEN, process {process}, all interfaces",
    "Open UDP port {port} ({process})|A service waits for datagrams from the network.",
    "Established connection of {process} to 203.0.113.{digit}:{port}|Outbound connection of a process run by root.",
    "Process {process} runs from a deleted executable|exe points to {tmp} (deleted)",
    "Process {process} with world-writable executable {tmp}|Suspicious location of a running program",
    "Process with LD_PRELOAD set: {process}|Environment variable LD_PRELOAD names {tmp}",
    "{process} is owned by root and has deleted binary|pid {port}, parent 1",
    "Mount point {path} lacks {mount}|Options: rw,relatime",
    "{mount} is not set on {path}|Binaries and device files there are honoured.",
    "User {user} has an empty password|The second field of the line in /etc/shadow is empty.",
    "Account {user} has UID 0|There is a second superuser in /etc/passwd.",
    "{user} may run all commands without password by sudo|NOPASSWD: ALL in {path}",
    "sshd allows {sshd}|Set it to no in /etc/ssh/sshd_config and reload the service.",
    "{sshd} is enabled in sshd_config|An attacker can guess passwords over the network.",
    "AppArmor is {mac}|Profiles loaded: {digit}; unconfined critical processes: {digit}",
    "SELinux is {mac}|getenforce says {mac}; the boot parameter selinux=0 is present",
    "AppArmor profile for {process} in complain mode|Violations are only written to the log.",
    "eBPF program attached to {hook}|loaded by pid {port} ({process}), type kprobe",
    "exec of {tmp} traced|uid 1000, comm {process}, parent sh",
    "Systemd unit {process}.service runs without {sandbox}|The unit's hardening options are missing.",
    "Unit {process}.service: {sandbox}=no|Writable system directories, no private devices.",
    "Checksum of {suid} differs from its package|dpkg --verify: ??5??????",
    "{path} changed since the last integrity check|SHA-256 differs from the database; mtime is recent.",
    "Audit rule for {path} is missing|auditctl -l shows no watch on the file.",
    "auditd is not running|Events of the kernel's audit subsystem are lost.",
    "Container {process} is privileged|It shares the host's {ns} namespace and has all capabilities.",
    "Container runs as root with the docker socket mounted|/var/run/docker.sock is writable inside.",
    "Cron job of root executes {tmp}|The script is writable by {user}.",
    "Private key {path} readable by others|mode 0644, expected 0600",
    "{path} is owned by {user}|Expected owner root:root and mode 0600.",
    "Certificate signed with SHA-1|Weak digest; TLS 1.0 and RC4 are still offered on port {port}.",
    "YARA match in {tmp}|Rule: packed ELF, entropy 7.9, indicator of compromise",
    "IOC: hash of {tmp} is known|Matched against the list of malicious digests",
    "Core dumps of SUID programs are allowed|fs.suid_dumpable is {digit}",
    "IP forwarding is enabled|{sysctl} = 1 on a host that is no router",
    "Promiscuous mode on eth0|A sniffer may be running: pid {port}",
    "{process} has CAP_SYS_ADMIN|Effective capabilities 000001ffffffffff",
    "/etc/ld.so.preload exists|It names {tmp}; user-mode rootkits hide this way.",
)
INSTRUCTIONS = (
    "Disable {service}", "Remove the package {service}", "Uninstall {service} server", "Ensure {service} is not installed", "Ensure {mount} is set on {path}",
    "Set {sysctl} to {digit}", "Ensure {sysctl} is {digit}", "Set umask 027", "Set umask to 077 for daemons", "Set the default umask in /etc/login.defs",
    "Disable {sshd}", "Set {sshd} to no", "Limit SSH access to the group {user}", "Set ClientAliveInterval to 300", "Use only strong ciphers in sshd", "Lock the account {user}",
    "Lock inactive accounts after 30 days", "Set password expiry to 365 days", "Require 14 characters in passwords", "Remember the last five passwords",
    "Lock accounts after five failed logins", "Restrict su to the group wheel", "Restrict cron to authorized users", "Restrict access to dmesg", "Restrict core dumps", "Disable core dumps",
    "Disable the kernel module {module}", "Blacklist {module}", "Disable USB storage", "Disable IPv6 if unused", "Disable ICMP redirects", "Ignore ICMP broadcast requests",
    "Log martian packets", "Enable reverse path filtering", "Enable TCP SYN cookies", "Enable ASLR", "Enable auditd", "Audit changes to {path}", "Record attempts to change the time",
    "Collect unsuccessful file access attempts", "Record the use of privileged commands", "Make the audit configuration immutable", "Install AIDE and check daily", "Configure a warning banner",
    "Set permissions of {path} to 0600", "Ensure root owns {path}", "Ensure no world-writable files exist", "Find files without owner", "Set the sticky bit on world-writable directories",
    "Set a boot loader password", "Protect single-user mode with a password", "Enable secure boot", "Set AppArmor to enforce", "Ensure SELinux is enforcing", "Drop all capabilities in containers",
    "Do not run containers as root", "Mount the root file system of containers read-only", "Pin image digests", "Do not use the host's network namespace", "Encrypt swap", "Encrypt backups at rest",
    "Rotate access keys every 90 days", "Require multi-factor authentication for administrators", "Block public access to storage buckets", "Use TLS 1.2 or newer", "Set HSTS on the web server",
    "Set the HttpOnly flag on session cookies", "Escape output of user input", "Use parameterized queries", "Validate redirects", "Hash passwords with a salt", "Do not log secrets", "Apply updates within 30 days",
    "Send logs to a remote host", "Synchronise the clock from a trusted source", "Deny by default on the firewall", "Close port {port}", "Allow port {port} only from the management network",
    "Set a timeout for idle shells", "Remove .rhosts files", "Remove {user} from the sudoers", "Disable the login shell of system accounts", "Verify package signatures", "Enable gpgcheck for all repositories",
)  # fmt: skip
FLAWS = (
    "{bug} in {part}|{lib} before {digit}.{digit} allows {who} to {effect} via {input}.",
    "{lib}: {bug}|Crafted {input} makes the {part} {memory}, and {who} can {effect}.",
    "{part} of {lib} does not check {check}|This {bug} lets {who} {effect}. Fixed in {digit}.{digit}.{digit}.",
    "{bug}|The function does not validate {check}; {memory}. Upgrade to version {digit}.{digit}.",
    "{lib} is unsound|Safe code can {memory}: {check} is never checked. No patched version exists.",
    "Malicious package {lib}|It was published to steal {loot} and has been removed; it ran a script at installation that sent {loot} to a remote server.",
)
MALWARE = (
    "{name}|{name} is a {kind} that has been used by {group} since {year} to {goal}.",
    "{name}|{name} is a {kind} written in {language}; it has been observed in campaigns against {victim}.",
    "{name}|{name} is a {origin} threat group active since at least {year}; it has targeted {victim} in order to {goal}.",
    "{group}|The group uses {kind} tools and spearphishing mails against {victim}.",
    "Use of {trick}|Adversaries may abuse {trick} to {goal}. Monitor for it on hosts of {victim}.",
)
EVERYDAY = (
    "{verb} {thing}|{howto}", "How to {verb} {thing}|{howto} {howto}", "{thing}|{howto}", "Command to {verb} {thing}|- {verb} {thing}: `{command}`", "{command}|{verb} {thing}. More information in the manual.",
)  # fmt: skip
ALIKE = (
    ("Attack on the king's wing|White attacks with rook and knight; the exchange sacrifice exploits the weak pawn structure and the bishop defends.", "The back rank attack|A queen and rook mate against a castled king without an escape square; the defender's threats come too late.", "Opening traps|Black's gambit threatens mate; White must defend accurately before counter-attacking."),
    ("Securities in a portfolio|Bonds are securities with a fixed dividend. Diversify: risk, exposure and volatility fall together.", "Security deposit|The landlord holds the tenant's deposit as security for the rent and must return it.", "Auditing the annual accounts|The auditor examines ledgers, invoices and compliance with accounting standards; a breach is reported to shareholders.", "Social security contributions|Employers pay half of the pension contribution."),
    ("Kernel density estimation|The Gaussian kernel and bandwidth decide how smooth the estimate is.", "Launching a CUDA kernel|Each thread block computes one tile; shared memory hides latency.", "Popcorn kernels|A kernel pops when the water inside turns to steam.", "Convolution kernel|A 3x3 kernel sharpens the picture."),
    ("Market penetration|The firm cut prices to penetrate the market and exploit economies of scale.", "Exploiting sparsity|The solver exploits the block structure of the matrix.", "Exploration and exploitation|The bandit policy trades exploitation of the best arm against exploration."),
    ("Keys and scales|The piece changes key from C major to A minor; the pianist presses the black keys.", "Foreign keys and indexes|A primary key names each row; a join uses the foreign key.", "Key frames|The animation moves between two key frames."),
    ("The influenza virus|The virus attacks cells of the airways; the immune system defends the host, vaccines train it.", "Plant defences|Leaves inject toxins when insects attack; roots host fungi.", "Worms in the garden|Earthworms loosen the soil around the roots.", "Trojan horse in the Aeneid|The Greeks hid in a wooden horse and entered Troy at night."),
    ("Firewalls in buildings|A fire wall of brick keeps fire from spreading between houses; doors close by themselves.", "Penetration of damp|Water penetrates the plaster where the joint leaks.", "Hardening steel|Quench the blade in oil, then temper it.", "Port and harbour fees|The ship entered the port; the captain paid for the berth."),
    ("Goalkeeper and defence|The striker attacks through the middle; the defence leaves a gap and the goalkeeper saves.", "Medieval siege|Archers shield the attackers; the enemy breaches the wall of the fortress.", "Orc raiders|Strong against villages, vulnerable to arcane damage; they attack at night."),
    ("Renaming a branch in git|git branch -m old new; push the new name and delete the old one.", "Rotating logs|logrotate compresses the files weekly and keeps four of them.", "Partitioning a new disk|Create one partition, make a file system and add it to fstab.", "Restarting a service after an update|systemctl restart reads the new unit.", "Adding a printer|The queue appears after cups finds the device.", "Slow query in PostgreSQL|An index on the date column lets the planner avoid a sequential scan.", "Deploying with containers|Build the image, push it, and roll the new version out pod by pod.", "Unit test for the parser|The fixture holds a small file; the assertion compares tokens.", "Postmortem of an outage|The disk filled up overnight; an alert on free space would have told us.", "Disk usage of home directories|du -sh sorts them by size; ask users to tidy up.", "Network card speed|ethtool shows 1000 Mb/s full duplex.", "Setting the host name|hostnamectl set-hostname changes it at once.", "Time zone and locale|timedatectl lists the zones; locale-gen makes the locales.", "Package mirror is slow|Choose a nearer mirror in the list of sources.", "Installing a compiler|apt install build-essential brings gcc and make."),
)  # fmt: skip

BLANKS = {
    "suid": "/usr/bin/passwd, /usr/bin/chage, /usr/bin/su, /tmp/.x/bash, /usr/local/bin/backup, /usr/sbin/pppd, /usr/bin/mount, /opt/tool/run, /usr/bin/newgrp, /usr/bin/pkexec, /usr/bin/ping",
    "cap": "cap_net_raw, cap_setuid, cap_sys_admin, cap_dac_override, cap_net_bind_service",
    "path": "/etc/passwd, /etc/shadow, /etc/sudoers, /etc/crontab, /tmp, /var/tmp, /dev/shm, /home, /etc/ssh/ssh_host_rsa_key, /var/log/auth.log, /boot/grub/grub.cfg, /etc/gshadow, /etc/hosts.allow, /srv/share",
    "sysctl": "kernel.kptr_restrict, kernel.randomize_va_space, net.ipv4.ip_forward, net.ipv4.conf.all.rp_filter, net.ipv4.tcp_syncookies, kernel.yama.ptrace_scope, kernel.dmesg_restrict, kernel.unprivileged_bpf_disabled, fs.protected_symlinks, net.ipv4.conf.all.accept_redirects, fs.suid_dumpable, kernel.perf_event_paranoid",
    "proc": "/proc/sys/kernel/kptr_restrict, /proc/sys/kernel/randomize_va_space, /proc/sys/net/ipv4/ip_forward, /proc/sys/fs/protected_hardlinks, /proc/sys/kernel/dmesg_restrict",
    "module": "cramfs, usb_storage, dccp, sctp, rds, tipc, nf_tables, vboxdrv, nvidia, bluetooth, snd_hda_intel, i915, overlay, squashfs, udf, hfsplus, firewire_core, br_netfilter, kvm_intel, xt_conntrack, iwlwifi",
    "process": "redis-server, mysqld, nginx, sshd, python3, dockerd, kworker, cupsd, node, java, postgres, bash, rpcbind, smbd, snapd, systemd-resolved, telegraf, agetty",
    "port": "22, 23, 80, 111, 445, 631, 2375, 3306, 4444, 5432, 5900, 6379, 8080, 9200, 11211, 27017",
    "digit": "0, 1, 2, 3, 4", "tmp": "/tmp/.X11/kd, /dev/shm/upd, /var/tmp/.cache/a.out, /tmp/run.sh, /home/user/.config/x",
    "mount": "nodev, nosuid, noexec", "user": "backup, deploy, games, oracle, test, guest, operator, www-data",
    "sshd": "PermitRootLogin, PasswordAuthentication, PermitEmptyPasswords, X11Forwarding, HostbasedAuthentication, AllowTcpForwarding",
    "mac": "disabled, permissive, not enforcing, in complain mode", "hook": "tcp_connect, sys_enter_execve, vfs_open, xdp eth0",
    "sandbox": "NoNewPrivileges, ProtectSystem, PrivateTmp, ProtectHome, CapabilityBoundingSet", "ns": "pid, network, ipc, user",
    "service": "telnet, rsh, tftp, xinetd, ypbind, avahi, rpcbind, vsftpd, talk, NFS, CUPS, SNMP, Bluetooth, autofs",
    "bug": "Buffer overflow, Use after free, Out-of-bounds read, Integer overflow, Double free, Null pointer dereference, Path traversal, SQL injection, Cross-site scripting, Uninitialized memory, Race condition, Denial of service, Infinite loop, Stack exhaustion, Improper input validation, Data race, Type confusion, Missing authorization, Open redirect, Server-side request forgery, Deserialization of untrusted data, Division by zero",
    "part": "the parser, the decoder, the XML reader, the HTTP server, the image loader, the template engine, the upload handler, the archive extractor, the login form, the admin panel, the kernel driver",
    "lib": "libfoo, an image library, the web framework, this crate, a small package, the mail gateway, the font renderer, the driver, the plugin, a tensor library",
    "who": "a remote attacker, a local user, an unauthenticated attacker, a malicious server, an authenticated user, a guest of the virtual machine",
    "effect": "execute arbitrary code, crash the program, read other users' files, gain root privileges, bypass authentication, cause a denial of service, inject script into pages, overwrite arbitrary files, obtain sensitive information",
    "input": "a crafted file, a long header, a malformed packet, a negative length, a specially crafted request, an invalid UTF-8 sequence, a deeply nested document",
    "memory": "read beyond the end of the buffer, drop uninitialized memory, write out of bounds, dereference a dangling pointer, free memory twice, expose uninitialized bytes, trigger undefined behavior, loop forever",
    "check": "the length of its argument, the size of the allocation, alignment, the signature, the return value, the origin of the request, the permissions of the caller, that indexes are in range",
    "loot": "environment variables, wallet keys, SSH keys, access tokens, passwords stored in browsers",
    "name": "DustPanda, IronVeil, NightHerald, CopperRat, SilentMantis, GreyLoom, BlueQuarry, Vipergrass, HollowPine, SaltWraith",
    "kind": "backdoor, loader, ransomware, remote access trojan, worm, credential stealer, dropper, botnet client, rootkit, downloader, banking trojan, web shell, wiper, spyware",
    "group": "an unknown actor, a state-sponsored group, criminals, an espionage group, a ransomware gang", "year": "2009, 2013, 2016, 2018, 2020, 2022",
    "goal": "steal credentials, encrypt files for ransom, exfiltrate documents, establish persistence, evade detection, move laterally, mine cryptocurrency, gain initial access, execute payloads in memory, escalate privileges",
    "language": "Go, C++, Rust, Python, PowerShell, .NET", "victim": "government, energy companies, banks, hospitals, telecommunications, defence contractors, dissidents, universities, retail",
    "origin": "suspected state-sponsored, financially motivated, Chinese-speaking, Iranian, Russian, North Korean",
    "trick": "scheduled tasks, WMI, PowerShell, DLL side-loading, startup folders, access tokens, registry run keys, remote services, valid accounts, browser extensions, cron",
    "verb": "list, show, convert, rename, create, copy, compress, merge, sort, print, download, build, start, resize, count, install",
    "thing": "all files in a directory, a branch, an image to PNG, a video, columns of a CSV file, the container images, packages of the project, the calendar, lines of a text, a database, virtual machines, a queue of messages, a web page as PDF, subtitles, an audio file, a repository",
    "howto": "Choose the item and press the button., The default is the current directory., Use the option -o to name the output., It takes a list of numbers and returns their mean., Enter the amount and the date., The window shows a preview., Several names may be given.",
    "command": "frob --list, tool convert in.png out.jpg, pkg install name, vcs merge branch, mk --jobs 4, disk show /dev/sda, player file.ogg, cloud instances list",
}  # fmt: skip


def filled(frame: str, draw: random.Random) -> Text:
    """Return a frame with its blanks filled; a bar divides title and body."""
    said = re.sub(r"\{(\w+)\}", lambda blank: draw.choice(BLANKS[blank[1]].split(", ")), frame)
    title, _, body = said.partition("|")
    return title[:1].upper() + title[1:], body


def frames(kinds: tuple[str, ...], each: int) -> Iterator[Text]:
    """Yield every frame some times."""
    draw = random.Random(17)
    for frame, _ in product(kinds, range(each if "{" in "".join(kinds) else 1)):
        yield filled(frame, draw)


def lists(terms: str, together: int, count: int) -> Iterator[Text]:
    """Yield some terms of a list together, so often that each comes up a few times."""
    draw = random.Random(17)
    known = [" ".join(term.split()) for term in terms.split(",")]
    for _ in range(count):
        title, *rest = draw.sample(known, min(together, len(known)))
        yield title, ", ".join(rest)


def alike() -> Iterator[Text]:
    for group in ALIKE:
        for said in group:
            title, _, body = said.partition("|")
            yield title, body
