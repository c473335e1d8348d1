"""Which role learns from a document, with the reason: a weighted lexicon of words, phrases and patterns.

Labels in the data win; then what only the specialist's contract knows; then the lexicon. Each term counts once, in the title
more, and is worth nothing where the text speaks of a trade in which the word is at home (an *attack* in chess, a *security*
in a portfolio). No model and no network: a linear model may take this place behind the same class of interface.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from sysscan_models.documents import Document
from sysscan_models.hookspecs import hookimpl
from sysscan_models.interfaces import Decision, Router

SPECIALIST_LABELS = ("severity", "techniques", "controls")
"""Labels that only a security document carries."""
READ_CHARS = 20_000
"""Characters of a document that are weighed; what it is about shows before that, and hostile text stays cheap."""
NO_EVIDENCE = 1.6
"""Weight that the terms must reach together for even chances."""


Term = Annotated[str, Field(pattern=r"\w")]


class RoleNames(BaseModel):
    """What the two kinds of documents are called among the configured roles."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    security: str = Field("specialist", min_length=1)
    """Role that learns from security documents."""
    general: str = Field("generalist", min_length=1)
    """Role that learns from everything else."""


class LexiconRouter(Router):
    """Weighs the security terms of a document; fast, explained, in English with the commonest terms of other languages."""

    name: ClassVar[str] = "lexicon"

    threshold: float = Field(0.5, gt=0, lt=1)
    """Probability from which a document counts as a security document; lower sends more to the specialist."""
    allow: tuple[Term, ...] = ()
    """Words or phrases that make a document a security document, whatever else it says."""
    deny: tuple[Term, ...] = ()
    """Words or phrases that make a document a general one, whatever else it says; they win over `allow`."""
    roles: RoleNames = RoleNames()
    """Names of the roles: `security` and `general`."""

    def route(self, document: Document) -> Decision:
        """Return the role, how sure the router is (0 at the threshold, 1 beyond doubt) and the terms that decided."""
        if document.role:
            return Decision(document.role, 1.0, ("label: role",))
        if known := [label for label in SPECIALIST_LABELS if document.labels.get(label) not in (None, "", [], ())]:
            return Decision(self.roles.security, 1.0, tuple(f"label: {label}" for label in known))
        text = document.text[:READ_CHARS].lower()
        for terms, role, what in ((self.deny, self.roles.general, "deny"), (self.allow, self.roles.security, "allow")):
            if terms and (found := _any_of(terms).search(text)):
                return Decision(role, 1.0, (f"{what}: {found[0]}",))
        evidence = weigh(document.title.lower()[:READ_CHARS], text)
        probability = 1 / (1 + math.exp(NO_EVIDENCE - evidence.total))
        security = probability >= self.threshold
        room = 1 - self.threshold if security else self.threshold
        score = min(abs(probability - self.threshold) / room, 1.0)
        return Decision(self.roles.security if security else self.roles.general, score, evidence.reasons(security))


@lru_cache(maxsize=16)
def _any_of(terms: tuple[str, ...]) -> re.Pattern[str]:
    phrases = (r"\s+".join(map(re.escape, term.lower().split())) for term in sorted(terms, key=len, reverse=True))
    return re.compile(rf"(?<!\w)(?:{'|'.join(phrases)})(?!\w)")


@dataclass(frozen=True)
class Evidence:
    """What the lexicon found: the weight of each distinct term, positive for security, and their damped sum."""

    weights: Mapping[str, float]
    total: float

    def reasons(self, security: bool) -> tuple[str, ...]:
        """Return the (up to five) terms that spoke for a decision, the heaviest first."""
        side = {term: weight if security else -weight for term, weight in self.weights.items()}
        found = sorted((term for term, weight in side.items() if weight > 0), key=lambda term: (-side[term], term))
        return tuple(found[:5]) or (("low threshold",) if security else ("no security terms",))


def weigh(title: str, text: str) -> Evidence:
    """Weigh lower-case text against the lexicon; a term that is also in the title counts more."""
    found, words = _find(text)
    in_title, _ = _find(title)
    weights = {term: weight * (TITLE_FACTOR if term in in_title else 1.0) for term, weight in found.items()}
    for name, trade in TRADES.items():
        if len(trade.signs & found.keys()) >= 2:
            weights = {term: weight for term, weight in weights.items() if term not in trade.own_words}
            weights[f"about {name}"] = -2.0
    if instruction := _instruction(title, weights.keys() & in_title.keys()):
        weights["hardening instruction"] = instruction
    return Evidence(weights, sum(weights.values()) / max(1.0, math.log10(words / 10 + 1)))


def _instruction(title: str, terms: Set[str]) -> float:
    """Return the weight of a title such as `Disable SSH root login`, `Set umask 027`, `Ensure that X must not ...`."""
    words = [_stem(word) for word in title.split()]
    if words and (words[0] in _ALWAYS_HARDENING or {"must", "shall"} & set(words)):
        return 1.8
    return 1.2 if HARDENING_VERBS & set(words[:2]) and any(LEXICON.get(term, 1.0) > 0 for term in terms) else 0.0


def _find(text: str) -> tuple[dict[str, float], int]:
    """Return the terms of the lexicon that occur, each once with its weight, and the number of words; one pass."""
    found: dict[str, float] = {}
    forms = dict.fromkeys(PATTERNS, 0)
    before = previous = ""
    words = 0
    for match in _TOKEN.finditer(text):
        kind, token = match.lastgroup or "", match[0]
        if kind != "word":
            if token not in found and forms[kind] < SAME_FORM:
                forms[kind] += 1
                found[token] = PATTERNS[kind][0]
            before = previous = ""
            continue
        words += 1
        word = _stem(token)
        terms = [word]
        if previous in BEGINNINGS:
            terms.append(f"{previous} {word}")
        if before in BEGINNINGS:
            terms.append(f"{before} {previous} {word}")
        for term in terms:
            if (weight := LEXICON.get(term)) is not None:
                found[term] = weight
        before, previous = previous, word
    return found, words


@lru_cache(maxsize=1 << 16)
def _stem(word: str) -> str:
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is", "os")) else word


# The lexicon ---------------------------------------------------------------------------------------------------------------

TITLE_FACTOR = 1.5
SAME_FORM = 3
"""Matches of one pattern that count: a list of a thousand digests says no more than three."""

_DECISIVE = """
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
_STRONG = """
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
_WEAK = """
    account, active directory, actor, admin, administrative, administrator, affected, alert, allow, allowing, arbitrary
    file, binary, bluetooth, bug, campaign, certificate, cloud, configuration, configure, configured, container, cookie,
    daemon, dbus, default, deprecated protocol, detect, detected, detection, disable, disabled, dll, dns, docker, domain
    controller, download, enable, enabled, endpoint, enforce, ensure, espionage, exe, executable, execute, executed,
    execution, expected, file system, fixed in, group, header, host, icmp, impact, incorrect, infrastructure, inject, ipsec,
    ipv6, issue, kernel, kubelet, kubernetes, ldap, legacy, legitimate, limit, log, logging, login, malformed, module,
    monitor, monitoring, mount, namespace, network, oauth, operator, organization, owner, packet, parameter validation,
    parser, partition, patch, pod, policy, port, powershell, prevent, process, protect, protected, protection, proxy,
    registry, remote, remotely, request, require, response, risk, root user, sanitized, scanner, script, sector, server,
    service, session, session token, symlink, systemd, target, targeted, targeting, tcp, tmp, token, traffic, trust
    boundary, udp, unit, unnecessary, unneeded, unused, upgrade, user account, validate, validation, verify, vpn, windows,
    wireguard
"""
_ELSEWHERE = """
    aanvaller, absichern, absicherung, angreifer, angriff, asegurar, atacante, ataque, attaccante, attacco, attaquant,
    attaque, beveiliging, bezpieczeństwo, bảo mật, chiffrement, cifrado, contraseña, cortafuego, güvenlik, hasło, intrusion,
    intruso, invasor, kennwort, kwetsbaarheid, lösenord, mot de passe, pare feu, passwort, renforcer, schwachstelle,
    segurança, seguridad, seguro, senha, sicher, sicherheit, sicherheitslücke, sicurezza, säkerhet, sécurisation, sécuriser,
    sécurisé, sécurité, veiligheid, verschlüsselung, vulnerabilidad, vulnerabilidade, vulnerabilità, vulnérabilité,
    wachtwoord, zafiyet, атака, атаки, безопасности, безопасность, взломщик, злоумышленник, пароль, пароля, права доступа,
    уязвимости, уязвимость, шифрование
"""
_GENERAL = """
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


@dataclass(frozen=True)
class Trade:
    """A field whose own words sound like security: two of its signs, and its words weigh nothing."""

    signs: frozenset[str]
    own_words: frozenset[str]


def _split(text: str) -> Iterator[str]:
    for term in text.split(","):
        yield " ".join(_stem(word) for word in term.split())


def _trade(signs: str, own_words: str) -> Trade:
    return Trade(frozenset(_split(signs)), frozenset(_split(own_words)))


TRADES: Mapping[str, Trade] = {
    "finance": _trade(
        "accounting, bank, bond, budget, currency, deposit, dividend, drawdown, gnucash, insurance, investment, investor, "
        "invoice, landlord, ledger, loan, mortgage, payment, portfolio, rent, shareholder, stock, tax, tenant, volatility",
        "account, audit, auditing, breach, compliance, exposure, impact, integrity, owner, policies, policy, risk, "
        "security, threat, token",
    ),
    "games": _trade(
        "battle, bishop, castle, checkmate, chess, dragon, football, fortress, game, goalkeeper, hockey, knight, "
        "medieval, midfielder, opening, pawn, player, referee, scenario, siege, striker, sword, terrain, village, "
        "villager, wesnoth",
        "attack, attacker, backdoor, breach, capture, defence, defense, enemy, exploit, intrusion, penetration, shield, "
        "target, threat, unit",
    ),
    "biology": _trade(
        "bacteria, cell, disease, doctor, dough, flour, garden, gene, genome, hospital, immune, insect, kitchen, nurse, "
        "oven, patient, plant, predator, prey, protein, seed, soil, species, tree, vaccine, virus",
        "attack, attacker, colony, exploit, hardened, hardening, host, infection, injected, injection, intrusion, kernel, "
        "malicious, pam, panic, payload, penetration test, population, resistance, root, shell, threat, trojan horse, "
        "vector, vulnerable, worm",
    ),
    "mathematics": _trade(
        "array, bandwidth, convolution, density, distribution, equation, estimator, float, gaussian, integral, matrix, "
        "ndarray, numpy, optimization, polynomial, regression, statistic, theorem",
        "arbitrary, attack, exploit, exploited, host, injection, kernel, overflow, payload, policy, root, signature, "
        "token, vulnerable",
    ),
    "theatre and letters": _trade(
        "actor, audience, author, chapter, essay, film, homer, museum, novel, painting, play, poem, poet, scene, stage, "
        "theatre, troy",
        "actor, attack, cipher, compromise, exploit, forensic, intrusion, root, secret, shadow, stolen, threat, trojan "
        "horse, victim",
    ),
    "buildings and machines": _trade(
        "boat, bolt, brick, bridge, concrete, door, drill, engine, harbour, paint, plaster, roof, sail, ship, steel, "
        "timber, wall, window",
        "backdoor, breach, firewall, hardened, hardening, integrity, key, leak, mount, patch, penetration, port, root, "
        "rust, sandbox, shell",
    ),
}
_ALWAYS_HARDENING = frozenset(
    _split("ensure, disable, restrict, uninstall, enforce, harden, deny, prohibit, encrypt, avoid, lock")
)
HARDENING_VERBS = frozenset(
    _split(
        "add, all, audit, block, changing, check, checking, configure, do, drop, enable, install, keep, limit, make, "
        "mask, modify, never, no, only, prevent, preventing, protect, record, remove, require, secure, set, specify, "
        "test, unless, use, verify"
    )
)
LEXICON: Mapping[str, float] = {
    **{sign: 0.0 for trade in TRADES.values() for sign in trade.signs},
    **dict.fromkeys(_split(_GENERAL), -1.0),
    **dict.fromkeys(_split(_WEAK), 0.4),
    **dict.fromkeys(_split(_STRONG), 1.3),
    **dict.fromkeys(_split(_ELSEWHERE), 3.0),
    **dict.fromkeys(_split(_DECISIVE), 3.0),
}
BEGINNINGS = frozenset(term.partition(" ")[0] for term in LEXICON if " " in term)
"""First words of phrases; only behind one of these a phrase is looked up."""
PATTERNS: Mapping[str, tuple[float, str]] = {
    "weakness": (3.0, r"\b(?:cve-\d{4}-\d{4,7}|cwe-\d{1,4}|ghsa(?:-\w{4}){3}|(?:pysec|rustsec)-\d{4}-\d{1,5})\b"),
    "technique": (2.0, r"\bt1\d{3}(?:\.\d{3})?\b"),
    "sysctl": (2.0, r"\b(?:net\.(?:ipv[46]|core)|kernel|fs|vm)\.[a-z][a-z0-9_.]{3,60}\b"),
    "path": (
        1.5,
        r"(?:/etc/(?:g?shadow|passwd|group|sudoers|ssh|pam\.d|security|login\.defs|audit|sysctl|modprobe\.d|cron|hosts\.|fstab|ssl)"
        r"|/proc/sys|/proc/self|/var/log|/dev/shm|/sys/fs/bpf|/boot/grub|authorized_keys|known_hosts|\.ssh/)[\w./-]{0,60}",
    ),
    "mode": (1.0, r"\b0?[4267]?7[75][57]\b|\bu\+s\b|\bo\+w\b|\b0[0-7]{3}\b"),
    "digest": (0.8, r"\b(?:[0-9a-f]{64}|[0-9a-f]{40}|[0-9a-f]{32})\b"),
    "spelling": (
        2.0,
        "安全|漏洞|攻击|攻擊|恶意|惡意|入侵|防火墙|防火牆|口令|加密|セキュリティ|脆弱性|攻撃|侵入|不正|暗号|パスワード|보안|취약점|공격|암호|악성",
    ),
    "word": (0.0, r"[^\W\d_][\w+]*"),
}
"""What has a form instead of a spelling: weight, and a regular expression without nested repetition."""

_TOKEN = re.compile("|".join(f"(?P<{kind}>{pattern})" for kind, (_, pattern) in PATTERNS.items()))


@hookimpl
def sysscan_register_routers() -> Sequence[type[Router]]:
    """Return the router that comes with the package."""
    return [LexiconRouter]
