"""Gather the documents that the shipped router is fitted on, from unpacked packages: weak labels, one for each source.

    python tests/benchmarks/routing_sources.py UNPACKED OUT

UNPACKED holds `apt/` (one folder for each unpacked Debian package, `DEBIAN/` inside), `pypi/`, `npm/` and `lists/` (the
decompressed `Packages` and `Translation-XX` files of a release). OUT receives one JSON Lines file for each source and
`sources.json`: family, licence, label, number of documents and digest of each. What is missing is skipped and named. No text
of these sources is part of the project; only the coefficients that were fitted on it are.
"""

from __future__ import annotations

import ast
import csv
import gzip
import hashlib
import html
import json
import random
import re
import struct
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import routing_texts as own_texts

csv.field_size_limit(10**9)
Text = tuple[str, str]
"""Title and body."""
LANGUAGES = ("de", "fr", "es", "it", "pt", "ru", "ja", "zh", "ko", "nl", "pl", "cs", "sv", "da", "uk", "tr", "hu", "sk", "fi", "el", "id", "ro", "nb", "vi", "sr")  # fmt: skip


@dataclass(frozen=True)
class Source:
    """Where documents of one kind come from."""

    name: str
    label: str
    family: str
    licence: str
    texts: Callable[[], Iterable[Text]]
    cap: int = 600
    language: str = "en"


def read(path: Path) -> str:
    """Return a text file, unpacked if need be; what is no UTF-8 is read as Latin-1."""
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix in (".gz", ".dz") else path.read_bytes()
    except (OSError, EOFError):
        return ""
    try:
        return data[:4_000_000].decode()
    except UnicodeDecodeError:
        return data[:4_000_000].decode("latin-1")


def files(root: Path, *patterns: str, limit: int = 4000) -> list[Path]:
    """Return files below a folder, in a fixed random order."""
    found = sorted({path for pattern in patterns for path in root.rglob(pattern) if path.is_file() and not path.is_symlink()})
    random.Random(17).shuffle(found)
    return found[:limit]


# Formats --------------------------------------------------------------------------------------------------------------------

_TAG = re.compile(r"<[^<>]{0,2000}>")
_HEADING = re.compile(r"<(?:h[1-5]|title)\b[^>]{0,500}>(.*?)</(?:h[1-5]|title)>", re.DOTALL | re.IGNORECASE)
_HIDDEN = re.compile(r"<(script|style|head|nav)\b.*?</\1>", re.DOTALL | re.IGNORECASE)


def plain(markup: str) -> str:
    text = html.unescape(_TAG.sub(" ", re.sub(r"</(?:p|div|li|tr|h\d|dd|dt|pre)>", "\n", markup, flags=re.IGNORECASE)))
    return re.sub(r"[ \t\xa0]+", " ", re.sub(r"\s*\n\s*", "\n", text)).strip()


def html_sections(text: str) -> Iterator[Text]:
    pieces = _HEADING.split(_HIDDEN.sub(" ", text))
    for title, body in zip(pieces[1::2], pieces[2::2], strict=False):
        yield plain(title), plain(body)


def docbook_sections(text: str) -> Iterator[Text]:
    pieces = re.split(r"<title\b[^>]*>(.*?)</title>", text, flags=re.DOTALL)
    for title, body in zip(pieces[1::2], pieces[2::2], strict=False):
        yield plain(re.sub(r"&([\w.-]+);", r"\1", title)), plain(re.sub(r"&([\w.-]+);", r"\1", body))


def marked_sections(text: str) -> Iterator[Text]:
    """Sections of Markdown or reStructuredText."""
    text = re.sub(r"```.*?```", " ", text, flags=re.DOTALL)
    pieces = re.split(r"(?m)^(?:#{1,5} +(.+)|(\S.{2,80})\n[=\-~^*\"']{3,}) *$", text)
    for at in range(1, len(pieces) - 2, 3):
        yield (pieces[at] or pieces[at + 1] or "").strip(" #`*"), pieces[at + 2].strip()


def paragraphs(text: str) -> Iterator[Text]:
    """Blocks of plain text: the first line is the title."""
    for block in re.split(r"\n\s*\n(?=\S)", text):
        title, _, body = block.strip().partition("\n")
        yield title, body


def manual_page(text: str) -> Iterator[Text]:
    """A page in roff: its name line, and its sections two by two."""
    text = re.sub(r"\\f\[?[A-Z0-9]*?\]?(?<=[A-Z\]])|\\&|\\[|%:]", "", text)
    text = re.sub(r"\\\(aq|\\\(cq|\\\[aq\]", "'", re.sub(r"\\-|\\\(hy", "-", re.sub(r"\\\(bu|\\\(em|\\e", " ", text)))
    lines = []
    for line in text.split("\n"):
        if line.startswith((".SH", ".Sh", ".SS")):
            lines.append("\n§" + line[3:].strip().strip('"'))
        elif line.startswith((".", "'")):
            rest = re.match(r"[.'](?:B|I|BR|IR|RB|BI|IP|RI|Nm|Nd|Fl|Ar|Op|It|Xr|Pa|Em|Li|Cm)\s+(.*)", line)
            if rest:
                lines.append(rest[1].replace('"', ""))
        else:
            lines.append(line)
    sections = [part.split("\n", 1) for part in "\n".join(lines).split("\n§")[1:]]
    if not sections or len(sections[0]) < 2:
        return
    name = " ".join(sections[0][1].split())[:160]
    bodies = [f"{head}\n{body.strip()}" for head, body in (part for part in sections[1:] if len(part) == 2)]
    for at in range(0, min(len(bodies), 8), 2):
        title = name if at == 0 else f"{name.split(' ')[0]} {bodies[at].split(chr(10))[0].lower()}"
        yield title, "\n".join(bodies[at : at + 2])


def docstrings(path: Path) -> Iterator[Text]:
    try:
        tree = ast.parse(read(path))
    except (SyntaxError, ValueError, RecursionError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            said = ast.get_docstring(node) or ""
            if len(said) > 80:
                title, _, body = said.partition("\n")
                yield title, body or said


def messages(path: Path, together: int = 5) -> Iterator[Text]:
    """Translated messages of a compiled catalogue, some of them together."""
    data = path.read_bytes()
    order = "<" if data[:4] == b"\xde\x12\x04\x95" else ">"
    count, _, at = struct.unpack(order + "3I", data[8:20])
    said = []
    for number in range(count):
        length, offset = struct.unpack(order + "2I", data[at + 8 * number : at + 8 * number + 8])
        text = data[offset : offset + length].split(b"\0")[0].decode("utf-8", "replace")
        if 25 <= len(text) <= 600 and "POT-Creation" not in text:
            said.append(re.sub(r"[_&](?=\w)", "", text))
    random.Random(len(said)).shuffle(said)
    for start in range(0, len(said), together):
        yield said[start], "\n".join(said[start + 1 : start + together])


def stanzas(path: Path) -> Iterator[dict[str, str]]:
    """Return the stanzas of a Debian control file."""
    if path.is_file():
        for stanza in path.read_text().split("\n\n"):
            yield dict(re.findall(r"^([\w-]+):((?:.*\n?)(?: .*\n?)*)", stanza, re.MULTILINE))


def walk(value: Any) -> Iterator[dict[str, Any]]:
    """Return every object inside a JSON value."""
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            yield from walk(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from walk(inner)


def load(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except ValueError:
        return {}


# Readers of folders ---------------------------------------------------------------------------------------------------------


def pages(root: Path, *patterns: str, sections: Callable[[str], Iterable[Text]] = html_sections, limit: int = 600) -> Callable[[], Iterator[Text]]:  # fmt: skip
    def texts() -> Iterator[Text]:
        for path in files(root, *patterns, limit=limit):
            yield from sections(read(path))

    return texts


def manuals(root: Path, language: str = "", limit: int = 900) -> Callable[[], Iterator[Text]]:
    def texts() -> Iterator[Text]:
        base = root / "usr/share/man"
        for path in files(base, "*.[1-8]*", limit=20_000)[:20_000]:
            of_page = path.relative_to(base).parts[0]
            if (not of_page.startswith("man")) == bool(language) and (not language or of_page.startswith(language)):
                yield from manual_page(read(path))

    return texts


def catalogues(root: Path, language: str) -> Callable[[], Iterator[Text]]:
    def texts() -> Iterator[Text]:
        for path in files(root, "*.mo"):
            if re.search(rf"/{language}(?:_[A-Z]+)?/LC_MESSAGES/", str(path)):
                yield from messages(path)

    return texts


def python(root: Path, limit: int = 1500) -> Callable[[], Iterator[Text]]:
    def texts() -> Iterator[Text]:
        for path in files(root, "*.py", limit=limit):
            if "test" not in path.name:
                yield from docstrings(path)

    return texts


def objects(root: Path, pattern: str, title: str, *bodies: str, limit: int = 3000) -> Callable[[], Iterator[Text]]:
    def texts() -> Iterator[Text]:
        for path in files(root, pattern, limit=limit):
            for entry in walk(load(path)):
                parts = [entry.get(key) for key in bodies]
                if isinstance(entry.get(title), str) and any(isinstance(part, str) and part for part in parts):
                    yield entry[title], "\n".join(plain(part) for part in parts if isinstance(part, str))

    return texts


def matched(root: Path, pattern: str, expression: str, together: int = 1, limit: int = 4000) -> Callable[[], Iterator[Text]]:
    """What a regular expression finds in files: groups 1 (title) and 2 (body), if it has them."""

    def texts() -> Iterator[Text]:
        for path in files(root, pattern, limit=limit):
            found = [match.groups() for match in re.finditer(expression, read(path), re.DOTALL | re.MULTILINE)]
            for start in range(0, len(found), together):
                first, *more = found[start : start + together]
                rest = [first[1] or "" if len(first) > 1 else ""] + [" ".join(filter(None, groups)) for groups in more]
                yield plain(first[0]), plain("\n".join(rest))

    return texts


# Debian's descriptions ------------------------------------------------------------------------------------------------------

_SURE = re.compile(
    r"intrusion|rootkit|malware|anti-?virus|\bvirus scan|vulnerab|penetration|pentest|exploit|firewall|forensic|hardening|"
    r"security (?:scan|audit|check|polic|tool)|audit(?:ing)? (?:tool|daemon|framework)|password (?:crack|recover)|crack(?:er|ing) (?:tool|pass)|"
    r"brute.?forc|port scan|sniffer|spoof|selinux|apparmor|integrity (?:check|measure)|honeypot|packet filter|mandatory access|"
    r"reverse engineer|disassembl.*malware|\bfuzz(?:er|ing)|iptables|nftables|yara|sandbox", re.IGNORECASE)  # fmt: skip
_PERHAPS = re.compile(
    r"secur|encrypt|crypt|cipher|password|passphrase|authentic|authoriz|attack|malicious|hash|openssl|\bssl\b|\btls\b|\bpgp|gpg|gnupg|"
    r"\bssh\b|privilege|permission|\bpam\b|kerberos|privacy|anonym|\bvpn\b|audit|certificate|sudo|\btor\b|login|credential|token|"
    r"capabilit|sniff|tunnel|hardened|trust|signature|\botp\b|spam|tamper|monitor.*log|log.*analy|packet|network scan", re.IGNORECASE)  # fmt: skip
_HARMLESS = (
    "games",
    "science",
    "sound",
    "video",
    "graphics",
    "fonts",
    "math",
    "electronics",
    "education",
    "hamradio",
    "tex",
    "gnu-r",
)


def described(unpacked: Path) -> dict[str, str]:
    """Return the label of each Debian package whose own description leaves no doubt."""
    english = {}
    for stanza in stanzas(unpacked / "lists/Translation-en"):
        english.setdefault(stanza.get("Package", "").strip(), stanza.get("Description-en", ""))
    labels = {}
    for stanza in stanzas(unpacked / "lists/Packages"):
        name, section = stanza.get("Package", "").strip(), stanza.get("Section", "").strip()
        short, tags = english.get(name, "").split("\n")[0], stanza.get("Tag", "")
        tagged = re.search(r"security::(?:\{[^}]*)?(?:ids|firewall|forensics|antivirus|integrity)", tags)
        library = section in (
            "libdevel",
            "libs",
            "golang",
            "rust",
            "haskell",
            "ocaml",
            "perl",
            "python",
            "ruby",
            "java",
            "javascript",
            "localization",
        )
        if (tagged or _SURE.search(short)) and not (library and not _SURE.search(short)) and section not in _HARMLESS:
            labels[name] = "security"
        elif "security::" not in tags and (section in _HARMLESS or not _PERHAPS.search(english.get(name, ""))):
            labels[name] = "general"
    return labels


def descriptions(unpacked: Path, language: str, label: str, labels: dict[str, str]) -> Callable[[], Iterator[Text]]:
    def texts() -> Iterator[Text]:
        wanted = []
        for path in sorted((unpacked / "lists").glob(f"Translation-{language}*")):
            for stanza in stanzas(path):
                name = stanza.get("Package", "").strip()
                said = next(
                    (value for key, value in stanza.items() if key.startswith("Description-") and key != "Description-md5"), ""
                )
                if labels.get(name) == label and len(said) > 60:
                    short, _, body = said.partition("\n")
                    wanted.append((f"{name}: {short.strip()}", re.sub(r"\n ?\.?", "\n", "\n" + body).strip()))
        random.Random(17).shuffle(wanted)
        yield from wanted

    return texts


_GUARDS = re.compile(
    r"secur|tripwire|samhain|aide|tiger|logcheck|snort|fail2ban|pam|firewall|apparmor|selinux|rkhunter|chkrootkit|sudo|john|crypt|fwknop|psad|portsentry|clamav|arpwatch|ufw|prelude|ossec|kismet|wireshark"
)


def questions(root: Path, language: str, *, security: bool) -> Callable[[], Iterator[Text]]:
    """What packages ask at their installation, in one language."""

    def texts() -> Iterator[Text]:
        for path in sorted(root.glob("*/DEBIAN/templates")):
            if bool(_GUARDS.search(path.parts[-3])) == security:
                for short, body in re.findall(
                    rf"(?mi)^Description-{language}(?:_\w+)?\.UTF-8: (.*)\n((?: .*\n)*)", path.read_text(errors="replace")
                ):
                    yield short, re.sub(r"(?m)^ \.?", "", body)

    return texts


def changelogs(root: Path, label: str) -> Callable[[], Iterator[Text]]:
    def texts() -> Iterator[Text]:
        for path in files(root, "changelog.Debian.gz", "changelog.gz"):
            for entry in re.split(r"(?m)^ -- .*$", read(path)):
                head, _, body = entry.strip().partition("\n")
                points = [" ".join(point.split()) for point in re.split(r"(?m)^\s{1,6}[*+-] ", body) if len(point) > 40]
                security = [
                    point
                    for point in points
                    if re.search(r"CVE-\d|vulnerab|buffer overflow|privilege escal|denial of service", point)
                ]
                harmless = [
                    point
                    for point in points
                    if not re.search(r"CVE|secur|vuln|exploit|overflow|attack|crypt|harden|leak", point, re.IGNORECASE)
                ]
                chosen = security if label == "security" else harmless
                if chosen and len(head) < 120:
                    yield chosen[0][:110], "\n".join(chosen[1:6]) or chosen[0]

    return texts


def fortunes(root: Path) -> Callable[[], Iterator[Text]]:
    def texts() -> Iterator[Text]:
        for path in files(root / "usr/share/games/fortunes", "*"):
            if path.suffix not in (".dat", ".u8"):
                said = [part.strip() for part in re.split(r"(?m)^%$", read(path)) if len(part) > 60]
                yield from ((part.split("\n")[0], part) for part in said)

    return texts


def dictionary(path: Path) -> Callable[[], Iterator[Text]]:
    return lambda: ((title, body) for title, body in paragraphs(read(path)) if len(body) > 60)


# The table ------------------------------------------------------------------------------------------------------------------


def table(unpacked: Path) -> Iterator[Source]:
    """Return every source."""
    apt, pypi, npm = unpacked / "apt", unpacked / "pypi", unpacked / "npm"
    yield from security_from_python(pypi)
    yield from security_from_debian(apt)
    yield from security_from_node(npm / "sec")
    yield from general_from_debian(apt)
    yield from general_from_elsewhere(pypi / "gen", npm / "gen")
    yield from translated(unpacked)
    yield from own()


ATTACK = "MITRE ATT&CK terms (royalty-free, notice required)"


def security_from_python(pypi: Path) -> Iterator[Source]:
    def source(name: str, family: str, licence: str, texts: Callable[[], Iterable[Text]], cap: int = 600) -> Source:
        return Source(name, "security", family, licence, texts, cap)

    def galaxy(name: str) -> Callable[[], Iterator[Text]]:
        return objects(pypi / "pymispgalaxies/pymispgalaxies/data/misp-galaxy/clusters", f"{name}.json", "value", "description")

    for name in ("mitre-attack-pattern", "mitre-malware", "mitre-intrusion-set", "mitre-course-of-action", "mitre-mobile-attack-attack-pattern", "mitre-ics-techniques", "mitre-atlas-attack-pattern", "mitre-tool", "tidal-software", "tidal-groups", "tidal-campaigns"):  # fmt: skip
        yield source(f"galaxy_{name}", "attack", ATTACK, galaxy(name), 350)
    for name in ("mitre-d3fend", "mitre-engage-framework", "threat-actor", "ransomware", "rat", "tool", "botnet", "banker", "stealer", "android", "malpedia", "exploit-kit", "backdoor", "cryptominers", "preventive-measure", "o365-exchange-techniques", "atrm", "tmss", "first-csirt-services-framework", "nice-framework-tasks", "nice-framework-knowledges", "scor-sparta-techniques", "scor-sparta-mitigations", "attck4fraud", "gsma-motif", "rsit", "disarm-techniques", "microsoft-activity-group", "branded_vulnerability", "sod-matrix", "tea-matrix"):  # fmt: skip
        family = (
            "attack"
            if name
            in (
                "threat-actor",
                "tool",
                "malpedia",
                "rat",
                "microsoft-activity-group",
                "botnet",
                "banker",
                "stealer",
                "backdoor",
                "android",
            )
            else "galaxy"
        )
        yield source(f"galaxy_{name}", family, "CC0-1.0 / BSD-2-Clause", galaxy(name), 200)
    yield source("sigma_galaxy", "sigma", "DRL-1.1", galaxy("sigma-rules"), 900)
    yield source(
        "prowler",
        "cloud_checks",
        "Apache-2.0",
        objects(pypi / "prowler", "*.metadata.json", "CheckTitle", "Description", "Risk", "Text"),
        900,
    )
    yield source(
        "scoutsuite",
        "cloud_checks",
        "GPL-2.0",
        objects(pypi / "ScoutSuite", "*.json", "description", "rationale", "remediation"),
        400,
    )
    yield source("checkov", "cloud_checks", "Apache-2.0", matched(pypi / "checkov", "*.py", r'^\s+name = "([^"]{15,})"'), 700)
    yield source(
        "checkov_pairs",
        "cloud_checks",
        "Apache-2.0",
        matched(pypi / "checkov", "*.json", r'"(?:title|name)": "(.{15,}?)".{0,200}?"(?:description|guideline)": "(.{15,}?)"'),
        300,
    )
    yield source(
        "njsscan",
        "code_rules",
        "LGPL-3.0",
        matched(
            pypi / "njsscan",
            "*.yaml",
            r"(?:description|message): *[>|]?-?\s*(.{30,600}?)\n\s+(?:severity|owasp|cwe|languages|pattern|metadata)",
        ),
        300,
    )
    yield source(
        "mobsfscan",
        "code_rules",
        "LGPL-3.0",
        matched(
            pypi / "mobsfscan",
            "*.yaml",
            r"(?:description|message): *[>|]?-?\s*(.{30,600}?)\n\s+(?:severity|owasp|cwe|languages|pattern|metadata)",
        ),
        300,
    )
    yield source("cfripper", "cloud_checks", "Apache-2.0", python(pypi / "cfripper"), 150)
    yield source("hardeneks", "cloud_checks", "MIT-0", matched(pypi / "hardeneks", "*.py", r'message = "(.{15,}?)"'), 150)
    yield source(
        "cloudsplaining", "cloud_checks", "BSD-3-Clause", pages(pypi / "cloudsplaining", "*.md", sections=marked_sections), 150
    )
    yield source(
        "parliament",
        "cloud_checks",
        "BSD-3-Clause",
        matched(pypi / "parliament", "config.yaml", r"title: (.*?)\n\s+description: (.*?)\n"),
        100,
    )
    yield source("kube_hunter", "scanners", "Apache-2.0", python(pypi / "kube_hunter"), 150)
    yield source(
        "wapiti_definitions",
        "scanners",
        "GPL-2.0",
        matched(pypi / "wapiti3", "*.py", r"def (?:description|solution)\(.{0,60}?return \((.*?)\n    \)"),
        150,
    )
    yield source(
        "routersploit",
        "exploits",
        "BSD",
        matched(pypi / "routersploit", "*.py", r'"name": "(.*?)".{0,20}?"description": "(.*?)",'),
        350,
    )
    yield source(
        "slither",
        "code_rules",
        "AGPL-3.0",
        matched(pypi / "slither_analyzer", "*.py", r'WIKI_TITLE = "(.*?)".*?WIKI_DESCRIPTION = (.*?)WIKI_EXPLOIT'),
        150,
    )
    yield source("mythril", "code_rules", "MIT", python(pypi / "mythril/mythril/analysis"), 120)
    yield source("bandit_docs", "bandit", "Apache-2.0", python(pypi / "bandit/bandit/plugins"), 120)
    yield source("bandit_blacklists", "bandit", "Apache-2.0", python(pypi / "bandit/bandit/blacklists"), 60)
    yield source("garak", "exploits", "Apache-2.0", python(pypi / "garak/garak/probes"), 150)
    yield source("guarddog", "malware_rules", "Apache-2.0", matched(pypi / "guarddog", "*.yar", r'description = "(.*?)"'), 100)
    yield source("guarddog_py", "malware_rules", "Apache-2.0", python(pypi / "guarddog"), 100)
    yield source("volatility", "forensics", "VSL-1.0", python(pypi / "volatility3/volatility3/framework/plugins"), 200)
    yield source(
        "impacket",
        "exploits",
        "Apache-1.1-like",
        matched(pypi / "impacket", "*.py", r"# Description:\n(.*?)\n#\n# Author"),
        150,
    )
    yield source("capa", "forensics", "Apache-2.0", python(pypi / "flare_capa"), 80)
    yield source("cwe2", "cwe", "MITRE CWE terms of use", lambda: cwe_rows(pypi / "cwe2"), 900)
    yield source(
        "pytaxonomies",
        "galaxy",
        "CC0-1.0 / BSD-2-Clause",
        objects(pypi / "pytaxonomies", "machinetag.json", "expanded", "description"),
        250,
    )
    yield source(
        "misp_objects",
        "galaxy",
        "CC0-1.0 / BSD-2-Clause",
        objects(pypi / "pymisp", "definition.json", "name", "description"),
        200,
    )
    yield source(
        "misp_modules", "forensics", "AGPL-3.0", matched(pypi / "misp_modules", "*.py", r'"description": "(.{40,}?)",'), 120
    )
    yield source(
        "pacu",
        "exploits",
        "BSD-3-Clause",
        matched(pypi / "pacu", "main.py", r'"one_liner": "(.*?)".*?"description": "(.*?)",'),
        80,
    )
    yield source("cowrie", "honeypots", "BSD-3-Clause", python(pypi / "cowrie"), 80)
    yield source(
        "opencanary", "honeypots", "BSD-3-Clause", pages(pypi / "opencanary", "*.md", "METADATA", sections=marked_sections), 40
    )
    yield source(
        "skill_scanner",
        "malware_rules",
        "Apache-2.0",
        matched(pypi / "cisco_ai_skill_scanner", "*.y*", r'description(?: = |: )"(.{20,}?)"'),
        150,
    )
    yield source(
        "security_readmes",
        "readmes_security",
        "as each package",
        lambda: (text for path in sorted(pypi.glob("*/*.dist-info/METADATA")) for text in marked_sections(read(path))),
        400,
    )
    for name in ("cancer", "firearms", "nace", "naics", "uavs", "ukhsa-culture-collections", "handicap", "region"):
        yield Source(f"galaxy_{name}", "general", "galaxy_general", "CC0-1.0 / BSD-2-Clause", galaxy(name), 120)


def cwe_rows(root: Path) -> Iterator[Text]:
    seen = set()
    for path in files(root, "*.csv"):
        for row in csv.reader(read(path).splitlines()):
            if len(row) > 5 and row[0].isdigit() and row[1] not in seen:
                seen.add(row[1])
                yield row[1], f"{row[4]}\n{row[5]}"


def security_from_debian(apt: Path) -> Iterator[Source]:
    def source(name: str, family: str, licence: str, texts: Callable[[], Iterable[Text]], cap: int = 400) -> Source:
        return Source(name, "security", family, licence, texts, cap)

    def nse() -> Iterator[Text]:
        for path in files(apt / "nmap-common", "*.nse"):
            if said := re.search(r"description = \[\[(.*?)\]\]", read(path), re.DOTALL):
                yield path.stem.replace("-", " "), said[1]

    harden = apt / "harden-doc"
    yield source(
        "harden_doc",
        "harden",
        "GPL-2.0",
        lambda: (text for path in files(harden, "*.html") if "/en-US/" in str(path) for text in html_sections(read(path))),
        500,
    )
    yield source("nmap_scripts", "scanners", "NPSL", nse, 600)
    for package in ("ssg-debian", "ssg-debderived", "ssg-applications", "ssg-base"):
        yield source(
            f"{package}",
            "ssg",
            "BSD-3-Clause",
            matched(
                apt / package,
                "*xccdf*.xml",
                r"<(?:xccdf(?:-1\.2)?:)?Rule\b.{0,600}?<(?:[\w.-]+:)?title[^>]*>(.*?)</(?:[\w.-]+:)?title>\s*(<(?:[\w.-]+:)?description.*?)<(?:[\w.-]+:)?(?:reference|ident|fix|check)\b",
            ),
            500,
        )
    yield source("ssg_guides", "ssg", "BSD-3-Clause", pages(apt / "ssg-debian", "*guide*.html", "*.html.gz"), 300)
    yield source(
        "tiger_docs",
        "tiger",
        "GPL-2+",
        lambda: (text for path in files(apt / "tiger/usr/lib/tiger/doc", "*.html") for text in tiger_messages(read(path))),
        400,
    )
    yield source(
        "lynis_tests",
        "lynis",
        "GPL-3.0",
        matched(apt / "lynis", "tests_*", r"# Test\s+: (\S+)\n\s+# Description : (.*?)\n(?:\s+# Notes\s+: .*?\n)?"),
        400,
    )
    yield source(
        "lynis_suggestions",
        "lynis",
        "GPL-3.0",
        matched(apt / "lynis", "tests_*", r'Report(?:Suggestion|Warning) "[^"]*" "([^"]{15,})"'),
        300,
    )
    yield source("rkhunter_en", "rkhunter", "GPL-2.0", lambda: rkhunter(apt, "en"), 80)
    yield source("samhain", "integrity", "GPL-2.0", pages(apt / "samhain", "*.html"), 300)
    yield source("libpam_doc", "pam", "BSD/GPL", pages(apt / "libpam-doc", "*.html"), 200)
    yield source("selinux_policy", "selinux", "GPL-2.0", pages(apt / "selinux-policy-doc", "*.html", limit=150), 250)
    yield source(
        "modsecurity_crs", "network_rules", "Apache-2.0", matched(apt / "modsecurity-crs", "*.conf", r"msg:'(.*?)'", 2), 250
    )
    yield source(
        "crs_comments",
        "network_rules",
        "Apache-2.0",
        matched(apt / "modsecurity-crs", "*.conf", r"^#\n((?:^# [^\n]{20,}\n){2,8})"),
        150,
    )
    yield source(
        "sagan_rules", "network_rules", "BSD-3-Clause", matched(apt / "sagan-rules", "*.rules", r'msg: ?"(.*?)"', 2), 500
    )
    yield source(
        "crowdsec",
        "network_rules",
        "MIT",
        matched(apt / "crowdsec", "*.yaml", r'^name: *(\S+)\s*\ndescription: *"?(.*?)"?\n'),
        300,
    )
    yield source("crowdsec_md", "network_rules", "MIT", pages(apt / "crowdsec", "*.md", sections=marked_sections), 150)
    yield source(
        "cpan_advisories",
        "advisories",
        "Artistic/GPL",
        matched(apt / "libcpan-audit-perl", "DB.pm", r"'description' => '(.{30,}?)',\n"),
        500,
    )
    yield source(
        "forensic_artifacts",
        "forensics",
        "Apache-2.0",
        lambda: (text for path in files(apt / "forensic-artifacts", "*.yaml", "*.yaml.gz") for text in artifacts(read(path))),
        200,
    )
    yield source(
        "linux_hw_vuln",
        "kernel_security",
        "GPL-2.0",
        pages(
            apt / "linux-doc-6.1/usr/share/doc/linux-doc-6.1/Documentation/admin-guide/hw-vuln",
            "*.rst*",
            sections=marked_sections,
        ),
        120,
    )
    yield source(
        "linux_lsm",
        "kernel_security",
        "GPL-2.0",
        pages(
            apt / "linux-doc-6.1/usr/share/doc/linux-doc-6.1/Documentation/admin-guide/LSM", "*.rst*", sections=marked_sections
        ),
        100,
    )
    yield source(
        "linux_security",
        "kernel_security",
        "GPL-2.0",
        pages(apt / "linux-doc-6.1/usr/share/doc/linux-doc-6.1/Documentation/security", "*.rst*", sections=marked_sections),
        150,
    )
    yield source("handbook_security", "handbook", "CC-BY-SA-3.0/GPL-2+", lambda: handbook(apt, "en-US", security=True), 40)
    yield source("debian_security_changes", "changelogs", "as each package", changelogs(apt, "security"), 700)
    yield source("shorewall", "firewalls", "GFDL-1.2", pages(apt / "shorewall-doc", "*.html"), 200)
    yield source(
        "firewalld",
        "firewalls",
        "GPL-2.0",
        matched(apt / "firewalld", "*.xml", r"<short>(.*?)</short>\s*<description>(.*?)</description>"),
        100,
    )
    yield source("wapiti_docs", "scanners", "GPL-2.0", manuals(apt / "wapiti"), 40)
    yield source("fail2ban_docs", "ids_docs", "GPL-2+", pages(apt / "fail2ban", "*.conf", sections=comments), 60)
    for package in ("fail2ban", "aide", "apparmor", "apparmor-utils", "auditd", "chkrootkit", "rkhunter", "tiger", "policycoreutils", "selinux-utils", "firejail", "nmap", "hydra", "medusa", "aircrack-ng", "sqlmap", "arpwatch", "psad", "fwsnort", "ufw", "unhide", "debsecan", "debsums", "tripwire", "john", "hashcat", "sslscan", "portsentry", "sshguard", "spectre-meltdown-checker", "checksec", "ettercap-common", "dsniff", "thc-ipv6", "whatweb", "wfuzz", "ffuf", "p0f", "ncrack", "usbguard", "samhain", "clamav", "checksecurity", "openscap-utils", "yara", "flawfinder", "slowhttptest", "nbtscan", "lynis", "wapiti"):  # fmt: skip
        yield source(f"man_{package}", "man_security", "GPL/BSD, as each package", manuals(apt / package), 25)
    for package in (
        "psad",
        "john",
        "sqlmap",
        "wfuzz",
        "testssl.sh",
        "usbguard",
        "ncrack",
        "fwsnort",
        "rkhunter",
        "chkrootkit",
        "p0f",
        "flawfinder",
        "checksecurity",
        "unhide",
        "firejail",
        "hydra",
        "patator",
        "arpon",
    ):
        yield source(
            f"readme_{package}",
            "readme_security",
            "GPL/BSD, as each package",
            pages(apt / package / "usr/share/doc", "*README*", "*.md*", "*FAQ*", "*.txt*", sections=paragraphs),
            40,
        )


def comments(text: str) -> Iterator[Text]:
    for block in re.findall(r"(?:^# ?.*\n){2,}", text, re.MULTILINE):
        yield from paragraphs(re.sub(r"(?m)^# ?", "", block))


def tiger_messages(text: str) -> Iterator[Text]:
    for part in re.split(r"<h\d|<hr", text, flags=re.IGNORECASE):
        said = plain("<x" + part)
        yield said.split("\n")[0][:120], said


def rkhunter(apt: Path, language: str) -> Iterator[Text]:
    said = re.findall(r"(?m)^[A-Z_0-9]+:(.{25,})$", read(apt / "rkhunter/var/lib/rkhunter/db/i18n" / language))
    for start in range(0, len(said), 3):
        yield said[start], "\n".join(said[start + 1 : start + 3])


def artifacts(text: str) -> Iterator[Text]:
    for name, said in re.findall(r"(?m)^name: (\w+)\ndoc: (?:\|\s*)?(.*?)\n\w+:", text, re.DOTALL):
        yield re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name), said


_SECURITY_CHAPTER = "security|firewall|apparmor|selinux|intrusion|supervision|compromised|other-security"


def handbook(apt: Path, folder: str, *, security: bool) -> Iterator[Text]:
    for path in files(apt / "debian-handbook", "*.html"):
        if f"/{folder}/" in str(path) and bool(re.search(_SECURITY_CHAPTER, path.name)) == security:
            yield from html_sections(read(path))


def security_from_node(npm: Path) -> Iterator[Source]:
    def source(name: str, family: str, licence: str, texts: Callable[[], Iterable[Text]], cap: int = 200) -> Source:
        return Source(name, "security", family, licence, texts, cap)

    for package in ("eslint-plugin-security", "eslint-plugin-secure-coding", "eslint-plugin-browser-security", "eslint-plugin-node-security", "microsoft-eslint-plugin-sdl", "eslint-plugin-no-unsanitized", "eslint-plugin-jwt", "eslint-plugin-no-secrets", "eslint-plugin-xss", "rnsec", "ecc-agentshield", "helmet", "retire", "stoplight-spectral-owasp-ruleset", "rushstack-eslint-plugin-security", "nahisaho-musubix-security", "lockfile-lint", "nsp", "nodesecure-js-x-ray", "is-my-node-vulnerable"):  # fmt: skip
        for folder in sorted(npm.glob(f"{package}-[0-9]*")):
            yield source(
                f"npm_{package}", "node_security", "MIT/Apache-2.0/ISC", pages(folder, "*.md", sections=marked_sections), 80
            )
    yield source(
        "cdk_nag",
        "cloud_checks",
        "Apache-2.0",
        lambda: (text for path in sorted(npm.glob("cdk-nag*/package/RULES.md")) for text in rows(read(path))),
        300,
    )
    yield source("spectral_owasp_rules", "code_rules", "MIT", matched(npm, "ruleset.js", r'description:\s*"(.{25,}?)"'), 60)
    yield source("solhint", "code_rules", "MIT", matched(npm, "*.js", r"description:\s*\n?\s*['\"`](.{25,}?)['\"`]"), 60)
    yield source("cwe_observed", "cwe", "MITRE CWE terms of use", lambda: observed(npm), 500)


def observed(npm: Path) -> Iterator[Text]:
    """Return the flaws seen in real software that the list of weaknesses names as examples."""
    for path in files(npm, "cwe-dictionary.json"):
        for entry in walk(load(path)):
            if {"Reference", "Description"} <= entry.keys() and isinstance(entry["Description"], str):
                yield entry["Reference"], entry["Description"]


def rows(text: str) -> Iterator[Text]:
    for line in text.splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)][1:-1]
        if len(cells) >= 3 and len(cells[1]) > 20 and "---" not in line:
            yield cells[1], " ".join(cells[2:])


def general_from_debian(apt: Path) -> Iterator[Source]:
    def source(
        name: str,
        family: str,
        texts: Callable[[], Iterable[Text]],
        cap: int = 300,
        licence: str = "GPL/GFDL/BSD, as each package",
    ) -> Source:
        return Source(name, "general", family, licence, texts, cap)

    for package in ("manpages", "manpages-dev", "coreutils", "git-man", "findutils", "sane-utils", "tar", "grep", "rsync", "mutt", "nano", "tmux", "cron", "logrotate", "debhelper", "devscripts", "dpkg", "dpkg-dev", "apt", "cups-client", "gnuchess", "tcpdump", "wget", "cmake-data", "quilt", "grub-common", "docker.io", "pcp-doc", "gpsd", "gnugo", "crafty", "ledger", "sqlite3-doc", "debconf-doc", "cppcheck", "tcl-doc", "needrestart"):  # fmt: skip
        yield source(f"man_{package}", "man", manuals(apt / package), 120)
    for package in ("gnucash-docs", "octave-doc", "maxima-doc", "lilypond-doc-html", "gimp-help-en", "libreoffice-help-en-us", "r-doc-html", "grass-doc", "freeciv", "simutrans-data", "hedgewars-data", "gnumeric-doc", "bash-doc", "git-doc", "postgresql-doc-15", "gcc-doc-base", "python3.11-doc", "python-sklearn-doc", "python-scipy-doc", "python-sympy-doc", "python-pandas-doc", "python-django-doc", "debian-faq", "debian-policy", "debian-reference-en", "developers-reference", "maint-guide", "aptitude-doc-en", "installation-guide-amd64", "apache2-doc", "pspp", "sqlite3-doc", "hydrogen-doc", "inkscape-tutorials", "gettext-doc", "ghc-doc", "erlang-doc", "texlive-latex-base-doc", "texlive-latex-extra-doc", "lyx-common", "debian-kernel-handbook", "pcp-doc", "nethack-common", "tcl-doc", "perl-doc", "zsh-doc", "gawk", "fwbuilder-doc-none", "gramps", "umbrello", "labplot-data", "apt-doc"):  # fmt: skip
        family = {
            "gnucash-docs": "gnucash",
            "octave-doc": "octave",
            "maxima-doc": "maxima",
            "lilypond-doc-html": "lilypond",
            "gimp-help-en": "gimp",
            "developers-reference": "debian_devref",
        }.get(package, "python_doc" if package.startswith("python") else "manuals")
        yield source(package, family, pages(apt / package, "*.html", "*.html.gz", limit=500), 250)
        yield source(
            f"{package}_docbook",
            family,
            lambda package=package: (
                text
                for path in files(apt / package, "*.docbook", limit=300)
                if "/en/" in str(path)
                for text in docbook_sections(read(path))
            ),
            120,
        )  # type: ignore[misc]
    for package in (
        "kate5-data",
        "okular",
        "dolphin",
        "konsole",
        "kmail",
        "gwenview",
        "digikam-data",
        "k3b-data",
        "kdenlive-data",
        "krita-data",
        "kstars-data",
        "kalzium-data",
        "parley-data",
        "ktouch-data",
        "kgeography-data",
        "marble-data",
        "cantor",
        "rkward-data",
        "tellico-data",
        "skrooge-common",
        "kmymoney",
        "konversation-data",
        "ktorrent-data",
        "lokalize",
        "calligra-data",
        "umbrello",
    ):
        yield source(
            f"kde_{package}",
            "kde_docs",
            lambda package=package: (
                text
                for path in files(apt / package, "*.docbook", limit=300)
                if "/en/" in str(path)
                for text in docbook_sections(read(path))
            ),
            80,
        )  # type: ignore[misc]
    yield source(
        "gnome_help",
        "gnome_docs",
        lambda: (
            text
            for path in files(apt / "gnome-user-docs/usr/share/help/C", "*.page")
            if "privacy" not in path.name and "security" not in path.name
            for text in docbook_sections(read(path))
        ),
        300,
    )
    yield source("debian_harmless_changes", "changelogs", changelogs(apt, "general"), 700)
    yield source(
        "linux_driver_docs",
        "kernel_docs",
        pages(
            apt / "linux-doc-6.1/usr/share/doc/linux-doc-6.1/Documentation",
            "*.rst.gz",
            "*.txt.gz",
            sections=lambda text: (
                marked_sections(text)
                if not re.search("secur|vulnerab|attack|exploit|privileg", text, re.IGNORECASE)
                else iter(())
            ),
        ),
        500,
    )
    yield source(
        "perl_pod", "manuals", lambda: (text for path in files(apt / "perl-doc", "*.pod") for text in pod(read(path))), 300
    )
    yield source("vim_help", "manuals", pages(apt / "vim-runtime", "*.txt", "*.txt.gz", sections=paragraphs), 150)
    yield source(
        "lintian_tags", "lintian", lambda: (text for path in files(apt / "lintian", "*.tag") for text in tag(read(path))), 300
    )
    yield source("wesnoth", "games", matched(apt / "wesnoth-1.16-data", "*.cfg", r'description= ?_ ?"([^"]{60,})"'), 300)
    yield source(
        "wesnoth_stories", "games", matched(apt / "wesnoth-1.16-data", "*.cfg", r'(?:message|story)= ?_ ?"([^"]{60,})"', 3), 400
    )
    yield source("freeciv_help", "games", matched(apt / "freeciv-data", "*", r'helptext\s*=\s*_\("(.{60,}?)"\)'), 250)
    yield source("crawl", "games", pages(apt / "crawl-common", "*.txt", sections=percent), 400)
    yield source("nethack", "games", pages(apt / "nethack-common", "*", sections=paragraphs), 100)
    yield source("angband", "games", matched(apt / "angband-data", "*.txt", r"^name:(.*?)$.{0,1500}?((?:^desc:.*?$\n)+)"), 250)
    yield source("freedroid", "games", matched(apt / "freedroidrpg-data", "*.lua", r'_"([^"]{40,})"', 3), 200)
    yield source("stellarium", "science", pages(apt / "stellarium-data", "*.html", "*.utf8", "description*"), 150)
    yield source("gromacs_man", "man", manuals(apt / "gromacs-data"), 80)
    yield source("bible", "books", pages(apt / "bible-kjv-text", "*", sections=paragraphs), 80)
    for name in ("fortunes", "fortunes-min", "fortunes-bofh-excuses", "fortunes-debian-hints"):
        yield source(name, "fortunes", fortunes(apt / name), 300)
    for name in ("foldoc", "jargon", "gcide", "wn", "devil", "elements"):
        yield source(
            f"dict_{name}",
            "dictionaries",
            lambda name=name: (text for path in files(apt / f"dict-{name}", "*.dict.dz") for text in paragraphs(read(path))),
            400 if name in ("gcide", "wn") else 150,
        )  # type: ignore[misc]
    yield source("handbook", "handbook", lambda: handbook(apt, "en-US", security=False), 250)
    for package in (
        "ardour-data",
        "audacity",
        "anki",
        "gourmet",
        "homebank",
        "qgis-common",
        "blender-data",
        "nginx-common",
        "puppet",
        "ansible",
        "emacs-el",
        "mariadb-server-core",
        "systemd-cron",
    ):
        yield source(
            f"docs_{package}",
            "readmes",
            pages(
                apt / package,
                "*.md*",
                "*README*",
                "*.rst*",
                "*.html",
                sections=lambda text: [*marked_sections(text), *html_sections(text)][:30],
                limit=200,
            ),
            80,
        )
    yield source("tldr", "tldr", pages(apt / "tldr", "*.md", sections=marked_sections), 200)
    yield source("copyright_files", "licences", pages(apt, "copyright", sections=paragraphs, limit=300), 120)


def pod(text: str) -> Iterator[Text]:
    pieces = re.split(r"(?m)^=(?:head\d|item) (.+)$", text)
    yield from zip(pieces[1::2], pieces[2::2], strict=False)


def tag(text: str) -> Iterator[Text]:
    if (found := re.search(r"Tag: (\S+).*?Explanation: (.*)", text, re.DOTALL)) and not re.search("secur|harden|privacy", text):
        yield found[1].replace("-", " "), found[2]


def percent(text: str) -> Iterator[Text]:
    for part in text.split("%%%%"):
        title, _, body = part.strip().partition("\n")
        yield title, body.strip()


GENERAL_READMES = re.compile(r"secur|crypt|auth|jwt|vulnerab|attack", re.IGNORECASE)


def general_from_elsewhere(pypi: Path, npm: Path) -> Iterator[Source]:
    for folder in sorted(pypi.glob("*")) if pypi.is_dir() else ():
        name = folder.name.lower()
        if name in ("paramiko", "boto3", "botocore", "ansible", "twisted", "salt"):
            continue
        yield Source(f"pydoc_{name}", "general", "pydoc", "BSD/MIT/Apache, as each package", python(folder), 90)
    yield Source("general_readmes", "general", "readmes", "as each package", lambda: (text for path in sorted(pypi.glob("*/*.dist-info/METADATA")) for text in marked_sections(read(path)) if not GENERAL_READMES.search(" ".join(text))), 400)  # fmt: skip
    yield Source("npm_readmes", "general", "readmes", "MIT/BSD/Apache-2.0", lambda: (text for path in files(npm, "README.md", "readme.md", limit=600) for text in marked_sections(read(path)) if not GENERAL_READMES.search(" ".join(text))), 700)  # fmt: skip
    yield Source("npm_docs", "general", "node_docs", "MIT/BSD/Apache-2.0", lambda: (text for path in files(npm, "*.md", limit=2500) if "readme" not in path.name.lower() for text in marked_sections(read(path)) if not GENERAL_READMES.search(" ".join(text))), 500)  # fmt: skip


def own() -> Iterator[Source]:
    """Return what was written for this purpose."""

    def source(name: str, label: str, texts: Callable[[], Iterable[Text]], language: str = "en") -> Source:
        return Source(f"own_{name}", label, "own", "own work (this project's licence)", texts, 900, language)

    for name, kinds, each in (
        ("findings", own_texts.FINDINGS, 10),
        ("instructions", own_texts.INSTRUCTIONS, 3),
        ("flaws", own_texts.FLAWS, 40),
        ("malware", own_texts.MALWARE, 40),
    ):
        yield source(name, "security", lambda kinds=kinds, each=each: own_texts.frames(kinds, each))  # type: ignore[misc]
    yield source("everyday", "general", lambda: own_texts.frames(own_texts.EVERYDAY, 60))
    yield source("alike", "general", own_texts.alike)
    yield source("decisive", "security", lambda: own_texts.lists(own_texts.DECISIVE, 4, 250))
    yield source("strong", "security", lambda: own_texts.lists(own_texts.STRONG, 6, 150))
    yield source("ordinary", "general", lambda: own_texts.lists(own_texts.GENERAL, 5, 300))
    for name, terms in own_texts.TRADES.items():
        yield source(f"trade_{name}", "general", lambda terms=terms: own_texts.lists(terms, 6, 40))  # type: ignore[misc]
    for code, terms in own_texts.SECURITY_ELSEWHERE.items():
        yield source(f"security_{code}", "security", lambda terms=terms: own_texts.lists(terms, 4, 40), code)  # type: ignore[misc]
    for code, terms in own_texts.GENERAL_ELSEWHERE.items():
        yield source(f"general_{code}", "general", lambda terms=terms: own_texts.lists(terms, 4, 25), code)  # type: ignore[misc]


def translated(unpacked: Path) -> Iterator[Source]:
    """What is not English; every family has its English members' family, so that leaving one out leaves all out."""
    apt, labels = unpacked / "apt", described(unpacked)
    for label in ("security", "general"):
        yield Source(
            f"descriptions_{label}",
            label,
            "descriptions",
            "Debian package metadata",
            descriptions(unpacked, "en", label, labels),
            900 if label == "security" else 1500,
        )
    for code in LANGUAGES:
        for label in ("security", "general"):
            name = {"pt": "pt", "zh": "zh"}.get(code, code)
            yield Source(
                f"descriptions_{label}_{code}",
                label,
                "descriptions",
                "Debian package metadata",
                descriptions(unpacked, name, label, labels),
                220 if label == "security" else 260,
                code,
            )
        yield Source(
            f"harden_doc_{code}",
            "security",
            "harden",
            "GPL-2.0",
            lambda code=code: (
                text
                for path in files(apt / "harden-doc", "*.html")
                if re.search(rf"[./]{code}(?:[-_][\w-]+)?[./]", str(path))
                for text in html_sections(read(path))
            ),
            250,
            code,
        )  # type: ignore[misc]
        folders = sorted({path.name for path in (apt / "debian-handbook/usr/share/doc/debian-handbook/html").glob(f"{code}-*")})
        for folder in folders[:1]:
            yield Source(
                f"handbook_security_{code}",
                "security",
                "handbook",
                "CC-BY-SA-3.0/GPL-2+",
                lambda folder=folder: handbook(apt, folder, security=True),
                40,
                code,
            )  # type: ignore[misc]
            yield Source(
                f"handbook_{code}",
                "general",
                "handbook",
                "CC-BY-SA-3.0/GPL-2+",
                lambda folder=folder: handbook(apt, folder, security=False),
                60,
                code,
            )  # type: ignore[misc]
        for package in (
            "policycoreutils",
            "firewalld",
            "gufw",
            "ufw",
            "clamtk",
            "apparmor",
            "apparmor-utils",
            "libpwquality-common",
            "debian-security-support",
        ):
            yield Source(
                f"messages_{package}_{code}",
                "security",
                "messages_security",
                "GPL, as each package",
                catalogues(apt / package, code),
                15,
                code,
            )
        for package in ("e2fsprogs-l10n", "util-linux-locales", "libc-l10n", "wesnoth-1.16-data", "gimp-data", "gnucash-common", "evince-common", "totem-common", "aisleriot", "rhythmbox-data", "gedit-common", "nautilus-data", "coreutils", "apt", "dpkg", "gramps", "stellarium-data", "vlc-l10n", "homebank", "tuxpaint-data", "gnome-chess", "shotwell-common", "frozen-bubble-data", "pspp", "grub-common", "wget", "supertux-data"):  # fmt: skip
            yield Source(
                f"messages_{package}_{code}",
                "general",
                "games"
                if package.startswith("wesnoth")
                else "gnucash"
                if package.startswith("gnucash")
                else "gimp"
                if package.startswith("gimp")
                else "messages",
                "GPL, as each package",
                catalogues(apt / package, code),
                18,
                code,
            )
        yield Source(
            f"debconf_security_{code}", "security", "debconf", "as each package", questions(apt, code, security=True), 80, code
        )
        yield Source(f"debconf_{code}", "general", "debconf", "as each package", questions(apt, code, security=False), 80, code)
        yield Source(
            f"apache_security_{code}",
            "security",
            "manuals_security",
            "Apache-2.0",
            lambda code=code: (
                text
                for path in files(apt / "apache2-doc", f"*.html.{code}*", limit=3000)
                if re.search("secur|auth|access|ssl|suexec", path.name)
                for text in html_sections(read(path))
            ),
            40,
            code,
        )  # type: ignore[misc]
        yield Source(
            f"apache_{code}",
            "general",
            "manuals",
            "Apache-2.0",
            lambda code=code: (
                text
                for path in files(apt / "apache2-doc", f"*.html.{code}*", limit=3000)
                if not re.search("secur|auth|access|ssl|suexec", path.name)
                for text in html_sections(read(path))
            ),
            40,
            code,
        )  # type: ignore[misc]
        yield Source(f"nmap_man_{code}", "security", "scanners", "NPSL", manuals(apt / "nmap", code), 20, code)
        for package in (f"manpages-{code}", f"manpages-{code}-br", "man-db"):
            yield Source(
                f"man_{package}_{code}",
                "general",
                "man",
                "GPL, as each page",
                lambda package=package, code=code: (
                    text for text in manuals(apt / package, code)() if not _PERHAPS_NAME.search(text[0])
                ),
                120,
                code,
            )  # type: ignore[misc]
        for package in (
            f"debian-faq-{code}",
            f"debian-reference-{code}",
            f"maint-guide-{code}",
            f"developers-reference-{code}",
            f"gimp-help-{code}",
            f"libreoffice-help-{code}",
            f"aptitude-doc-{code}",
            f"debian-faq-{code}-cn",
            f"debian-reference-{code}-cn",
            f"debian-reference-{code}-br",
            f"libreoffice-help-{code}-cn",
            f"libreoffice-help-{code}-br",
            f"maxima-doc-{code}",
            f"maint-guide-{code}-cn",
        ):
            family = (
                "gimp"
                if package.startswith("gimp")
                else "debian_devref"
                if package.startswith("developers")
                else "maxima"
                if package.startswith("maxima")
                else "manuals"
            )
            yield Source(
                f"{package}",
                "general",
                family,
                "GPL/GFDL/MPL",
                pages(apt / package, "*.html", "*.html.gz", limit=300),
                70,
                code,
            )
        yield Source(
            f"gnome_help_{code}",
            "general",
            "gnome_docs",
            "CC-BY-SA-3.0",
            lambda code=code: (
                text
                for folder in sorted((apt / "gnome-user-docs/usr/share/help").glob(f"{code}*"))
                for path in files(folder, "*.page", limit=80)
                if "privacy" not in path.name and "security" not in path.name
                for text in docbook_sections(read(path))
            ),
            60,
            code,
        )  # type: ignore[misc]
        yield Source(
            f"gnucash_help_{code}",
            "general",
            "gnucash",
            "GFDL-1.1+",
            lambda code=code: (
                text
                for path in files(apt / "gnucash-docs", "*.html", limit=6000)
                if re.search(rf"/{code}(?:_\w+)?/", str(path))
                for text in html_sections(read(path))
            ),
            40,
            code,
        )  # type: ignore[misc]
        yield Source(
            f"kde_{code}",
            "general",
            "kde_docs",
            "GFDL-1.2",
            lambda code=code: (
                text
                for package in (
                    "kate5-data",
                    "okular",
                    "dolphin",
                    "konsole",
                    "kmail",
                    "gwenview",
                    "kstars-data",
                    "parley-data",
                    "kgeography-data",
                    "k3b-data",
                )
                for path in files(apt / package, "*.docbook", limit=2000)
                if re.search(rf"/HTML/{code}(?:_\w+)?/", str(path))
                for text in docbook_sections(read(path))
            ),
            60,
            code,
        )  # type: ignore[misc]
        yield Source(
            f"fortunes-{code}",
            "general",
            "fortunes",
            "GPL, as each package",
            fortunes(apt / f"fortunes-{'br' if code == 'pt' else code}"),
            80,
            code,
        )
        yield Source(
            f"rkhunter_{code}",
            "security",
            "rkhunter",
            "GPL-2.0",
            lambda code=code: rkhunter(apt, {"tr": "tr.utf8", "zh": "zh.utf8"}.get(code, code)),
            60,
            code,
        )  # type: ignore[misc]
        yield Source(
            f"lynis_{code}",
            "security",
            "lynis",
            "GPL-3.0",
            matched(apt / "lynis/usr/share/lynis/db/languages", code, r'^[A-Z_]+="(.{12,}?)"', 3),
            30,
            code,
        )
        yield Source(
            f"tldr_{code}",
            "general",
            "tldr",
            "CC-BY-4.0",
            pages(apt / f"tldr/pages.{code}", "*.md", sections=marked_sections),
            60,
            code,
        )


_PERHAPS_NAME = re.compile(r"passw|shadow|crypt|selinux|pam|audit|cap|login|sudo|gpg|ssh|acl|security", re.IGNORECASE)


# From texts to records --------------------------------------------------------------------------------------------------------


_SECURITY_TITLE = re.compile(
    r"\bsecur|vulnerab|exploit|malware|malicious|firewall|intrusion|selinux|apparmor|encrypt|password|authenticat|sicherheit|sécurité|"
    r"seguridad|segurança|sicurezza|безопасн|安全|セキュリティ|beveilig|bezpiecz|bezpečn|säkerhet|mot de passe|contraseña|пароль|暗号|密码", re.IGNORECASE)  # fmt: skip
"""A title that says that a page of a general manual is about security: its label is not sure."""


def record(text: Text, source: Source, seen: set[bytes]) -> dict[str, Any] | None:
    title, body = " ".join(text[0].split())[:200], re.sub(r"[ \t]+", " ", text[1]).strip()
    letters = sum(3 if character > "\u3000" else 1 for character in title + body[:2000] if character.isalpha())
    if (
        source.label == "general"
        and source.family
        in (
            "manuals",
            "kde_docs",
            "gnome_docs",
            "handbook",
            "messages",
            "readmes",
            "node_docs",
            "debian_devref",
            "lintian",
            "pydoc",
            "kernel_docs",
        )
        and _SECURITY_TITLE.search(title)
    ):
        return None
    if letters < (10 if source.family == "own" else 25) or letters < 0.45 * len((title + body[:2000]).strip()):
        return None
    key = hashlib.blake2b(
        re.sub(r"\W+|\d+", "", (title + body).lower())[:160].encode("utf-8", "replace"), digest_size=12
    ).digest()
    if key in seen:
        return None
    seen.add(key)
    body = body[: random.Random(key).choice((300, 600, 900, 1500, 2500))]  # as long as records of datasets are
    description, _, content = body.partition("\n")
    return {"title": title, "description": description, "content": content, "findings": [], "label": source.label,
            "source": source.name, "family": source.family, "language": source.language}  # fmt: skip


def main() -> None:
    unpacked, out = Path(sys.argv[1]), Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    seen: set[bytes] = set()
    merged: dict[str, dict[str, Any]] = {}
    lines: dict[str, list[str]] = defaultdict(list)
    for source in table(unpacked):
        made = []
        for text in source.texts():
            if (entry := record(text, source, seen)) is not None:
                made.append(json.dumps(entry, ensure_ascii=True))
                if len(made) >= 8 * source.cap:
                    break
        random.Random(17).shuffle(made)
        lines[source.name] += made[: source.cap]
        merged[source.name] = {
            "label": source.label,
            "family": source.family,
            "licence": source.licence,
            "language": source.language,
        }
        if not made:
            print(f"nothing from {source.name}", file=sys.stderr)
    for name, of_source in lines.items():
        data = "".join(f"{line}\n" for line in of_source).encode()
        merged[name] |= {"documents": len(of_source), "sha256": hashlib.sha256(data).hexdigest()}
        if of_source:
            (out / f"{re.sub(r'[^a-zA-Z0-9_.-]', '_', name)}.jsonl").write_bytes(data)
    (out / "sources.json").write_text(
        json.dumps({name: entry for name, entry in merged.items() if entry["documents"]}, indent=1)
    )


if __name__ == "__main__":
    main()
