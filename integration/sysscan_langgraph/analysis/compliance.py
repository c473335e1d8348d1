"""Controls of standards that findings speak against: those that the specialist names, and those of a small table.

The table maps techniques and words of a finding to controls of NIST SP 800-53 (revision 5), and those to requirements of
PCI DSS 4.0, the HIPAA Security Rule (45 CFR 164) and ISO/IEC 27001:2022, Annex A. It says where to look; it is no audit.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from sysscan_langgraph.analysis.records import ComplianceGap, FindingAnalysis
from sysscan_langgraph.analysis.selection import rank

LEAST = "low"
"""How severe a finding must be to speak against a control."""
REMEDIES = 3
"""Remediation steps that a gap quotes."""

NIST = "NIST SP 800-53"
_NAMED = (
    (NIST, re.compile(r"\b((?:AC|AT|AU|CA|CM|CP|IA|IR|MA|MP|PE|PL|PM|PS|PT|RA|SA|SC|SI|SR)-\d{1,2}(?:\(\d{1,2}\))?)")),
    (
        "PCI DSS",
        re.compile(
            r"\bPCI[\s-]{0,2}DSS\b(?:\s*v?[34]\.\d(?:\.\d)?(?=\s))?\D{0,24}?(?![34]\.0\b)(\d{1,2}(?:\.\d{1,2}){0,3})\b", re.I
        ),
    ),
    ("HIPAA", re.compile(r"\bHIPAA\b.{0,40}?\b(164\.\d{3}(?:\([a-zA-Z0-9]{1,4}\)){0,5})", re.I)),
    ("ISO27001", re.compile(r"\bISO(?:/IEC)?\s?27001(?::\d{4})?.{0,16}?\b(A\.\d{1,2}(?:\.\d{1,2}){1,2})\b", re.I)),
    (
        "CIS",
        re.compile(
            r"\bCIS\b(?:\s(?:Critical\s)?(?:Security\s)?Controls?)?(?:\sv\d(?:\.\d)?)?\s(\d{1,2}(?:\.\d{1,2})?)\b", re.I
        ),
    ),
)
_TECHNIQUES: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("T1548", "T1068", "T1611"), ("AC-6",)),
    (("T1078", "T1098", "T1136"), ("AC-2",)),
    (("T1222", "T1574"), ("AC-3",)),
    (("T1554", "T1565", "T1014", "T1036", "T1195", "T1547", "T1542"), ("SI-7",)),
    (("T1562", "T1070"), ("AU-12",)),
    (("T1190", "T1133", "T1210", "T1021"), ("SC-7",)),
    (("T1071", "T1095", "T1571", "T1572", "T1090", "T1041", "T1105"), ("SC-7", "SI-4")),
    (("T1059", "T1055", "T1496", "T1505"), ("SI-3", "SI-4")),
    (("T1552", "T1003", "T1110", "T1556", "T1555"), ("IA-5",)),
    (("T1543", "T1053", "T1546"), ("CM-7",)),
    (("T1040", "T1557"), ("SC-8",)),
    (("T1498", "T1499"), ("SC-5",)),
)
_WORDS = (
    (re.compile(r"\b(?:suid|sgid|setuid|setgid|file[ _]capabilit\w*|sudo\w*)\b", re.I), ("AC-6",)),
    (re.compile(r"\bworld[ _-]?writable|\bwritable by (?:everyone|anyone|all)\b", re.I), ("AC-3",)),
    (re.compile(r"\b(?:pkg_mismatch|integrity|checksum|hash mismatch|deleted_executable|unsigned module)", re.I), ("SI-7",)),
    (
        re.compile(r"/proc/sys/|\b(?:sysctl|kptr_restrict|dmesg_restrict|kernel parameter|NoNewPrivileges|ProtectSystem)\b"),
        ("CM-6",),
    ),
    (re.compile(r"\brandomize_va_space|\baddress space (?:layout )?randomi[sz]ation\b|\bASLR\b", re.I), ("SI-16",)),
    (re.compile(r"\b(?:apparmor|selinux)\b", re.I), ("AC-3",)),
    (re.compile(r"\bauditd?\b|\baudit rule", re.I), ("AU-12",)),
    (re.compile(r"\bwildcard_listen: true|\bstate: LISTEN\b|\blistens? on\b", re.I), ("SC-7",)),
    (re.compile(r"\bpattern_match: true|\bIOC\b|\bmalware\b|\bcryptominer\b", re.I), ("SI-3", "SI-4")),
)
_BESIDE: Mapping[str, Mapping[str, str]] = {
    "AC-2": {"PCI DSS": "8.2.4", "HIPAA": "164.308(a)(4)", "ISO27001": "A.5.16"},
    "AC-3": {"PCI DSS": "7.3.1", "HIPAA": "164.312(a)(1)", "ISO27001": "A.8.3"},
    "AC-6": {"PCI DSS": "7.2.2", "HIPAA": "164.312(a)(1)", "ISO27001": "A.8.2"},
    "AU-12": {"PCI DSS": "10.2.1", "HIPAA": "164.312(b)", "ISO27001": "A.8.15"},
    "CM-6": {"PCI DSS": "2.2.6", "ISO27001": "A.8.9"},
    "CM-7": {"PCI DSS": "2.2.4", "ISO27001": "A.8.9"},
    "IA-5": {"PCI DSS": "8.3.2", "HIPAA": "164.312(d)", "ISO27001": "A.5.17"},
    "SC-5": {"ISO27001": "A.8.6"},
    "SC-7": {"PCI DSS": "1.3.1", "HIPAA": "164.312(e)(1)", "ISO27001": "A.8.20"},
    "SC-8": {"PCI DSS": "4.2.1", "HIPAA": "164.312(e)(1)", "ISO27001": "A.8.24"},
    "SI-2": {"PCI DSS": "6.3.3", "ISO27001": "A.8.8"},
    "SI-3": {"PCI DSS": "5.2.1", "HIPAA": "164.308(a)(5)(ii)(B)", "ISO27001": "A.8.7"},
    "SI-4": {"PCI DSS": "11.5.1", "HIPAA": "164.308(a)(1)(ii)(D)", "ISO27001": "A.8.16"},
    "SI-7": {"PCI DSS": "11.5.2", "HIPAA": "164.312(c)(1)"},
}
"""What other standards ask for where a control of NIST is missing; a control without a close counterpart has none."""
_STANDARDS = tuple(standard for standard, _ in _NAMED)


def compliance_gaps(analyses: Sequence[FindingAnalysis]) -> list[ComplianceGap]:
    """Return the gaps by standard and control, each with the findings that it rests on."""
    found: dict[tuple[str, str], list[FindingAnalysis]] = {}
    for analysis in analyses:
        if rank(analysis.severity) <= rank(LEAST):
            for control in dict.fromkeys([*controls_of(analysis.controls), *_of_the_table(analysis)]):
                found.setdefault(control, []).append(analysis)
    return [_gap(*control, found[control]) for control in sorted(found, key=_place)]


def controls_of(texts: Sequence[str]) -> list[tuple[str, str]]:
    """Return the controls that texts name, such as `NIST SP 800-53 AC-6`, as pairs of standard and control."""
    found = ((standard, match[1]) for text in texts for standard, named in _NAMED for match in named.finditer(text[:400]))
    return list(dict.fromkeys(found))


def _of_the_table(analysis: FindingAnalysis) -> Iterator[tuple[str, str]]:
    shown = "\n".join((analysis.title, *analysis.evidence))[:4000]
    controls = [control for pattern, named in _WORDS if pattern.search(shown) for control in named]
    roots = {technique.partition(".")[0] for technique in analysis.techniques}
    controls += [control for techniques, named in _TECHNIQUES if roots & {*techniques} for control in named]
    for control in dict.fromkeys(controls):
        yield NIST, control
        yield from _BESIDE.get(control, {}).items()


def _gap(standard: str, control: str, members: Sequence[FindingAnalysis]) -> ComplianceGap:
    by_severity = sorted(members, key=lambda member: rank(member.severity))
    return ComplianceGap(
        standard=standard,
        control=control,
        finding_ids=tuple(member.finding_id for member in members),
        aliases=tuple(member.alias for member in members),
        severity=by_severity[0].severity,
        remediation=tuple(dict.fromkeys(step for member in by_severity for step in member.remediation))[:REMEDIES],
    )


def _place(control: tuple[str, str]) -> tuple[int, list[tuple[int, str]]]:
    """Return where a control stands: numbers in it count as numbers."""
    parts = re.findall(r"\d+|\D+", control[1])
    return _STANDARDS.index(control[0]), [(int(part), "") if part.isdigit() else (-1, part) for part in parts]
