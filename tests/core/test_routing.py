"""Which role learns from a document: labels first, then the weighted lexicon, explained and the same every time."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from sysscan_models.documents import Document
from sysscan_models.plugins import plugin_manager
from sysscan_models.routing import LEXICON, PATTERNS, READ_CHARS, LexiconRouter, weigh

ROUTER = LexiconRouter()


def doc(title: str = "", description: str = "", **fields: object) -> Document:
    return Document(id="d", title=title, description=description, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("title", "description"),
    [
        ("Disable SSH root login", ""),
        ("Set umask 027", ""),
        ("Ensure nodev is set on /dev/shm", ""),
        ("Uninstall telnet-server package", ""),
        ("Restrict core dumps", "fs.suid_dumpable is 2 on this host."),
        ("SUID bit on a copy of bash", "/tmp/.x is mode 4755 and owned by root."),
        ("CVE-2021-4034 in pkexec", "A local user becomes root."),
        ("Hidden process without a binary", "The executable of pid 811 was deleted and runs from memfd."),
        ("Buffer overflow in the parser", "Crafted input overwrites the return address."),
        ("Vulnerabilidad en el servidor", "Un atacante puede leer contraseñas."),
        ("Passwörter und Verschlüsselung", "Wie man einen Server gegen Angreifer absichert."),
        ("服务器安全", "攻击者利用漏洞入侵。"),
    ],
)
def test_security_documents_go_to_the_specialist(title, description):
    decision = ROUTER.route(doc(title, description))
    assert decision.role == "specialist", decision
    assert 0 <= decision.score <= 1
    assert decision.reasons


@pytest.mark.parametrize(
    ("title", "description"),
    [
        ("How to bake sourdough bread", "Flour, water, salt and time."),
        (
            "Portfolio risk",
            "A bond is a security with a fixed dividend; stock exposure and volatility add risk to the portfolio.",
        ),
        (
            "The king's side attack in chess",
            "White's attack exploits the weak pawn; the knight is the attacker, the bishop the defender.",
        ),
        ("Kernel density estimate", "The Gaussian kernel and its bandwidth decide the density."),
        ("Computes the mean", "Parameters: x, ndarray of float. Raises ValueError for an empty array."),
        ("Train timetable", "The railway adds trains during the holiday."),
    ],
)
def test_general_documents_and_look_alikes_go_to_the_generalist(title, description):
    decision = ROUTER.route(doc(title, description))
    assert decision.role == "generalist", decision


def test_the_role_that_the_data_names_wins():
    decision = ROUTER.route(doc("Disable SSH root login", role="generalist", labels={"severity": "high"}))
    assert (decision.role, decision.score, decision.reasons) == ("generalist", 1.0, ("label: role",))
    assert ROUTER.route(doc("Bread", role="critic")).role == "critic"


def test_labels_of_the_specialist_come_next_and_remediation_is_none_of_them():
    decision = ROUTER.route(doc("Bread", labels={"severity": "low", "controls": ["x"], "techniques": []}))
    assert (decision.role, decision.reasons) == ("specialist", ("label: severity", "label: controls"))
    assert ROUTER.route(doc("Bread", labels={"remediation": ["Bake longer."]})).role == "generalist"


def test_deny_wins_over_allow_and_both_over_the_lexicon():
    router = LexiconRouter(allow=("sour dough", "c++"), deny=("Chess",))
    assert router.route(doc("Sour\nDough bread")).reasons == ("allow: sour\ndough",)
    assert router.route(doc("Written in C++")).role == "specialist"
    assert router.route(doc("Rootkit in sour dough chess")).reasons == ("deny: chess",)
    assert router.route(doc("The chessboard")).reasons != ("deny: chess",)


@pytest.mark.parametrize("term", ["", " ", "+"])
def test_a_term_without_a_letter_is_refused(term):
    with pytest.raises(ValidationError, match="should match pattern"):
        LexiconRouter(allow=(term,))


def test_the_threshold_moves_the_decision_and_the_score_tells_the_distance():
    unsure = doc("Service account without an owner", "The account is used by a daemon of the group.")
    low, high = LexiconRouter(threshold=0.05).route(unsure), LexiconRouter(threshold=0.95).route(unsure)
    assert (low.role, high.role) == ("specialist", "generalist")
    sure = ROUTER.route(
        doc("Rootkit and backdoor", "Malware with a reverse shell for command and control, privilege escalation.")
    )
    assert sure.score > 0.8
    with pytest.raises(ValidationError, match="less than 1"):
        LexiconRouter(threshold=1)


def test_reasons_name_the_terms_the_heaviest_first():
    reasons = ROUTER.route(doc("Rootkit", "A password and a CVE-2021-4034 in the kernel.")).reasons
    assert reasons == ("rootkit", "cve-2021-4034", "password", "kernel")
    assert ROUTER.route(doc("Nothing to see")).reasons == ("no security terms",)
    assert "numpy" in ROUTER.route(doc("numpy arrays", "an ndarray of float")).reasons


def test_roles_may_have_other_names():
    router = LexiconRouter(roles={"security": "hunter", "general": "writer"})
    assert router.route(doc("Rootkit with a backdoor")).role == "hunter"
    assert router.route(doc("Bread")).role == "writer"
    assert router.route(doc("Bread", labels={"severity": "low"})).role == "hunter"
    assert router.keyed()["roles"] == {"security": "hunter", "general": "writer"}


def test_only_the_beginning_is_weighed_and_a_form_counts_three_times():
    assert ROUTER.route(doc("Bread", "x " * READ_CHARS + "rootkit malware backdoor")).role == "generalist"
    few, many = (weigh("", " ".join(f"cve-2024-{1000 + number}" for number in range(count))) for count in (3, 400))
    assert few.total == many.total == 3 * PATTERNS["weakness"][0]


def test_hostile_text_is_weighed_in_the_time_of_its_length():
    for text in ("a" * 10**6, "/etc/" * 10**5, "net.ipv4." * 10**5, "cve-" * 10**5, "0" * 10**6, "\u3042" * 10**5):
        assert ROUTER.route(doc("x", text)).role in ("specialist", "generalist")


def test_an_empty_document_is_general():
    assert ROUTER.route(doc()).role == "generalist"


def test_the_lexicon_is_well_formed():
    assert len(LEXICON) > 600
    for term in LEXICON:
        assert term == " ".join(term.lower().split())
        assert 1 <= len(term.split()) <= 3, term


def test_it_is_registered_under_its_name():
    assert plugin_manager(entry_points=False).get("routers", "lexicon") is LexiconRouter
    assert plugin_manager(entry_points=False).names("readers") == ["json", "jsonl"]
