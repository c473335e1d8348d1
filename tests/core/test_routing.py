"""Which role learns from a document: labels first, then rules, then hashed words, explained and the same every time."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from pydantic import ValidationError

from sysscan_models.cli import fit_router
from sysscan_models.documents import Document
from sysscan_models.errors import DataError, UserError
from sysscan_models.plugins import plugin_manager
from sysscan_models.routing import LinearRouter, RoleNames
from sysscan_models.routing.coefficients import SHIPPED, Coefficients, digest_of, load_coefficients
from sysscan_models.routing.features import READ_CHARS, batches, find_words, text_parts
from sysscan_models.routing.fitting import find_terms, fit, quantized
from sysscan_models.routing.labels import read_labelled

ROUTER = LinearRouter()


def doc(title: str = "", description: str = "", **fields: object) -> Document:
    return Document(id="d", title=title, description=description, **fields)  # type: ignore[arg-type]


SECURITY = [
    ("Disable SSH root login", ""),
    ("Set umask 027", ""),
    ("Ensure nodev is set on /dev/shm", ""),
    ("Uninstall telnet-server package", ""),
    ("Restrict core dumps", "fs.suid_dumpable is 2 on this host."),
    ("SUID bit on a copy of bash", "/tmp/.x is mode 4755 and owned by root."),
    ("CVE-2021-4034 in pkexec", "A local user becomes root."),
    ("Hidden process without a binary", "The executable of pid 811 was deleted and runs from memfd."),
    ("Buffer overflow in the parser", "Crafted input overwrites the return address."),
    ("Module vboxdrv", "Loaded kernel module"),
    ("Kernel parameter kernel.kptr_restrict is 0", "Expected 1."),
    ("World-writable file below /etc", "Any local user can change it."),
    ("Listening TCP socket on port 2375", "dockerd accepts commands from every network without a certificate."),
    ("GhostPalm", "GhostPalm is a backdoor used by a state-sponsored group to steal documents from ministries."),
    ("S3 bucket allows public read", "Anyone on the internet can list objects; block public access."),
    ("Vulnerabilidad en el servidor", "Un atacante puede leer contraseñas."),
    ("Passwörter und Verschlüsselung", "Wie man einen Server gegen Angreifer absichert."),
    ("Faille dans le pare-feu", "Un attaquant contourne le filtrage et obtient un accès non autorisé."),
    ("Уязвимость в ядре", "Злоумышленник может получить права root."),
    ("ファイアウォールの設定", "不正アクセスを防ぐため、攻撃者の接続を遮断する。"),
    ("服务器安全", "攻击者利用漏洞入侵。"),
]
GENERAL = [
    ("How to bake sourdough bread", "Flour, water, salt and time."),
    ("Kernel density estimate", "The Gaussian kernel and its bandwidth decide the density."),
    ("Computes the mean", "Parameters: x, ndarray of float. Raises ValueError for an empty array."),
    ("Train timetable", "The railway adds trains during the holiday."),
    ("Portfolio of bonds", "A bond pays a fixed dividend; shares and their volatility decide what the portfolio yields."),
    ("The knight's opening", "White moves the knight, Black answers with a pawn; the bishop waits for its diagonal."),
    ("Renaming a branch", "git branch -m renames it; push the new name and delete the old one."),
    ("Scales in music", "The key of C major has no sharps; its relative minor is A."),
    ("Brotrezept", "Mehl, Wasser und Salz verkneten und im Ofen backen."),
    ("Le menu Fichier", "Cette commande ouvre une image dans une nouvelle fenêtre."),
    ("Рецепт хлеба", "Смешайте муку, воду и соль и выпекайте в духовке."),
    ("图像编辑", "选择图层并调整颜色。"),
]


@pytest.mark.parametrize(("title", "description"), SECURITY)
def test_security_documents_go_to_the_specialist(title, description):
    decision = ROUTER.route(doc(title, description))
    assert decision.role == "specialist", decision
    assert 0 <= decision.score <= 1
    assert 1 <= len(decision.reasons) <= 5


@pytest.mark.parametrize(("title", "description"), GENERAL)
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
    assert ROUTER.route(doc("Bread and butter", labels={"remediation": ["Bake longer."]})).role == "generalist"


def test_deny_wins_over_allow_and_both_over_the_weights():
    router = LinearRouter(allow=("sour dough", "c++"), deny=("Chess",))
    assert router.route(doc("Sour\nDough bread")).reasons == ("allow: sour\ndough",)
    assert router.route(doc("Written in C++")).role == "specialist"
    assert router.route(doc("Rootkit in sour dough chess")).reasons == ("deny: chess",)
    assert router.route(doc("The chessboard")).reasons != ("deny: chess",)


@pytest.mark.parametrize("term", ["", " ", "+"])
def test_a_term_without_a_letter_is_refused(term):
    with pytest.raises(ValidationError, match="should match pattern"):
        LinearRouter(allow=(term,))


def test_the_threshold_moves_the_decision_and_the_score_tells_the_distance():
    unsure = doc("Service account without an owner", "The account is used by a daemon of the group.")
    low, high = LinearRouter(threshold=0.001).route(unsure), LinearRouter(threshold=0.999).route(unsure)
    assert (low.role, high.role) == ("specialist", "generalist")
    sure = ROUTER.route(doc("Rootkit and backdoor", "Malware with a reverse shell for command and control."))
    assert sure.score > 0.8
    near = LinearRouter(threshold=0.5 + sure.score / 2).route(
        doc("Rootkit and backdoor", "Malware with a reverse shell for command and control.")
    )
    assert near.score == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValidationError, match="less than 1"):
        LinearRouter(threshold=1)


def test_reasons_are_terms_of_the_document_on_the_side_that_was_chosen():
    said = doc("Rootkit found", "A hidden Kernel module opens a Backdoor; the flour is in the kitchen.")
    reasons = ROUTER.route(said).reasons
    assert "rootkit" in reasons
    assert "backdoor" in reasons
    assert not {"flour", "kitchen"} & set(reasons)
    assert all(all(word in said.text.lower() for word in reason.split()) for reason in reasons)
    assert len(set(reasons)) == len(reasons)
    assert ROUTER.route(doc()).reasons == ("no terms",)


def test_roles_may_have_other_names():
    router = LinearRouter(roles={"security": "hunter", "general": "writer"})
    assert router.route(doc("Rootkit with a backdoor")).role == "hunter"
    assert router.route(doc("How to bake sourdough bread")).role == "writer"
    assert router.route(doc("Bread", labels={"severity": "low"})).role == "hunter"
    assert router.keyed()["roles"] == {"security": "hunter", "general": "writer"}


def test_one_document_is_decided_as_in_a_batch_and_order_does_not_matter():
    draw = random.Random(5)
    documents = [doc(title, body) for title, body in SECURITY + GENERAL]
    documents += [
        doc(
            "",
            " ".join(
                draw.choices(["root", "kernel", "flour", "安全", "key", "ß", "Ünï", "port", "bread"], k=draw.randrange(400))
            ),
        )
        for _ in range(60)
    ]
    documents += [doc("Bread", role="critic"), doc(), doc("\x00", "\ud800")]
    together = ROUTER.route_all(documents)
    assert together == [ROUTER.route(document) for document in documents]
    order = list(range(len(documents)))
    draw.shuffle(order)
    assert [together[place] for place in order] == ROUTER.route_all([documents[place] for place in order])


def test_many_and_long_documents_are_divided_into_batches_without_a_difference():
    documents = [doc(f"Note {number}", "bread " * (number % 7)) for number in range(2500)]
    documents[3] = doc("Long", "x" * READ_CHARS * 3)
    documents[4:40] = [doc("Rootkit", "Ω" * READ_CHARS)] * 36
    assert len(list(batches([text_parts(document) for document in documents]))) > 3
    decided = ROUTER.route_all(documents)
    assert [decided[place] for place in (0, 3, 4, 39, 40, 2499)] == [
        ROUTER.route(documents[place]) for place in (0, 3, 4, 39, 40, 2499)
    ]


def test_only_the_beginning_is_weighed_and_a_repeated_word_counts_once():
    bread = "flour water salt oven dough bake knead crust loaf yeast "
    assert ROUTER.route(doc("Bread", (bread * READ_CHARS)[:READ_CHARS] + "rootkit malware backdoor")).role == "generalist"
    recipe = "Knead flour, water and salt, let the dough rest, and bake the loaf in a hot oven until the crust is brown."
    once = ROUTER.route(doc("Sourdough bread recipe", f"{recipe} rootkit"))
    stuffed = ROUTER.route(doc("Sourdough bread recipe", f"{recipe} {'rootkit ' * 1000}"))
    assert stuffed.role == once.role == "generalist"


@pytest.mark.parametrize(
    "text",
    [
        "a" * 10**6,
        "/etc/" * 10**5,
        "cve-" * 10**5,
        "0" * 10**6,
        "\u3042" * 10**5,
        "\x00" * 10**5,
        "\ud800" * 10**5,
        "\udfff a" * 10**4,
        "İ" * 10**5,
        "😀 " * 10**5,
        "\u0301" * 10**5,
        "root " * 10**5,
        "\n",
        "\u202erootkit",
        "ß" * 10**5,
    ],
)
def test_hostile_text_is_weighed(text):
    for document in (doc("x", text), doc(text), doc(text, text, content=text, findings=(text, text))):
        assert ROUTER.route(document).role in ("specialist", "generalist")


def test_words_are_found_whatever_stands_around_them():
    words = find_words([("the ROOT kit".lower(), "the-root,kit 2024"), ("安全 x", "")])
    assert [words.text(start, end) for start, end in zip(words.starts, words.ends, strict=True)] == [
        "the",
        "root",
        "kit",
        "the",
        "root",
        "kit",
        "2024",
        "安",
        "全",
        "x",
    ]
    assert words.document.tolist() == [0] * 7 + [1] * 3
    assert words.in_title.tolist() == [True] * 3 + [False] * 4 + [True] * 3
    assert words.first.tolist() == [True] * 3 + [False] * 3 + [True] * 4
    assert words.hashes[0] == words.hashes[3] != words.hashes[1]


def test_every_digit_is_the_same_digit():
    words = find_words([("", "cve-2021-4034 cve-1999-1234")])
    assert words.hashes[1] == words.hashes[2] == words.hashes[4]


# Coefficients ---------------------------------------------------------------------------------------------------------------


def test_the_shipped_file_is_small_and_holds_numbers_only():
    assert SHIPPED.stat().st_size <= 2_000_000
    with np.load(SHIPPED, allow_pickle=False) as arrays:
        assert {name: arrays[name].dtype.kind for name in arrays.files} == {
            "format": "i",
            "words": "i",
            "pieces": "i",
            "line": "f",
        }
    assert ROUTER.keyed()["coefficients"] == digest_of(SHIPPED)


def tiny(path: Path, bias: float) -> Path:
    Coefficients(np.zeros(256, np.int16), np.zeros(256, np.int16), 1.0, bias).save(path)
    return path


def test_other_coefficients_decide_otherwise_and_change_the_key(tmp_path):
    always, never = tiny(tmp_path / "always.npz", 5.0), tiny(tmp_path / "never.npz", -5.0)
    assert LinearRouter(coefficients=str(always)).route(doc("Bread")).role == "specialist"
    router = LinearRouter(coefficients=str(never))
    assert router.route(doc("Rootkit")).role == "generalist"
    assert router.route(doc("Rootkit")).reasons == ("no terms",)
    assert router.keyed()["coefficients"] == digest_of(never) != ROUTER.keyed()["coefficients"]
    assert tiny(tmp_path / "again.npz", 5.0).read_bytes() == always.read_bytes()


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "not a numpy archive"),
        (b"words", "not a numpy archive"),
        (b"PK\x03\x04 cut", "holds no coefficients"),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path, data, why):
    (path := tmp_path / "bad.npz").write_bytes(data)
    with pytest.raises(UserError, match=why):
        LinearRouter(coefficients=str(path)).route(doc("x"))


@pytest.mark.parametrize(
    ("arrays", "why"),
    [
        ({"format": 2}, "format 2, expected 1"),
        ({"words": np.zeros(300, np.int8)}, "power of two"),
        ({"pieces": np.zeros(256, np.float32)}, "power of two"),
        ({"line": np.array([1.0, np.nan])}, "not two numbers"),
        ({"words": np.array([{}] * 256)}, "pickle"),
    ],
)
def test_arrays_of_another_shape_are_refused(tmp_path, arrays, why):
    whole = {"format": 1, "words": np.zeros(256, np.int8), "pieces": np.zeros(256, np.int8), "line": np.array([1.0, 0.0])}
    np.savez(tmp_path / "odd.npz", **{**whole, **arrays})
    with pytest.raises(UserError, match=why):
        load_coefficients(tmp_path / "odd.npz")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.npz cannot be read: .*fit-router"):
        LinearRouter(coefficients=str(tmp_path / "none.npz")).keyed()


# Fitting --------------------------------------------------------------------------------------------------------------------

RIVERS = [
    "The heron waits at the river bank",
    "A barge on the canal below the lock",
    "Trout swim upstream in spring",
    "The ferry crosses the estuary",
    "Reeds grow along the stream",
]
HILLS = [
    "Snow lies on the summit until June",
    "The shepherd climbs the ridge",
    "Granite boulders line the pass",
    "A hut below the glacier",
    "Chamois graze above the tree line",
]


def labels(path: Path, **more: object) -> Path:
    lines = [{"title": title, "label": "security", **more} for title in RIVERS] + [
        {"title": title, "role": "generalist", **more} for title in HILLS
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_refit_on_own_labels_changes_decisions_and_little_else(tmp_path):
    out = tmp_path / "my_router.npz"
    result = CliRunner().invoke(fit_router, [str(labels(tmp_path / "mine.jsonl")), "--out", str(out)], catch_exceptions=False)
    assert result.exit_code == 0
    assert "precision" in result.output
    assert "refined" in result.output
    assert out.stat().st_size <= 2_000_000
    before, after = LinearRouter(), LinearRouter(coefficients=str(out))
    river = doc("A heron at the canal", "The ferry and the barge wait below the lock.")
    assert (before.route(river).role, after.route(river).role) == ("generalist", "specialist")
    for title, body in SECURITY[:5]:
        assert after.route(doc(title, body)).role == "specialist"


def test_fitting_twice_gives_the_same_bytes_and_from_nothing_knows_only_the_labels(tmp_path):
    mine = labels(tmp_path / "mine.jsonl")
    for name in ("one.npz", "two.npz"):
        CliRunner().invoke(fit_router, [str(mine), "--out", str(tmp_path / name), "--from", "nothing"], catch_exceptions=False)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    router = LinearRouter(coefficients=str(tmp_path / "one.npz"))
    assert router.route(doc(RIVERS[0])).role == "specialist"
    assert router.route(doc(HILLS[0])).role == "generalist"


def test_weights_that_are_fitted_are_those_that_decide():
    parts = [text_parts(doc(title, title)) for title in (*RIVERS, *HILLS)]
    weights, bias = fit(find_terms(parts), np.array([True] * 5 + [False] * 5), ["a", "b"] * 5, fewest_families=1)
    exact = find_terms(parts).logits(weights, bias)
    assert np.allclose(quantized(weights, bias).weigh(parts).logits, exact, atol=0.3)
    assert (exact[:5] > 0).all()
    assert (exact[5:] < 0).all()


def test_a_term_of_a_single_family_is_left_out():
    parts = [text_parts(doc(word)) for word in ("heron", "heron", "granite", "granite")]
    weights, _ = fit(find_terms(parts), np.array([True, True, False, False]), ["a", "b", "c", "c"])
    logits = find_terms(parts).logits(weights, 0.0)
    assert logits[0] > 0.01
    assert logits[2] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", r"bad\.jsonl:6: not JSON"),
        ("[1]", r"bad\.jsonl:6: expected an object, found list"),
        ('{"title": "x"}', r"6: found label 'None' and role 'None'; expected"),
        ('{"title": "x", "label": "secure"}', r'6: found label \'secure\'.*"security" or "general"'),
        ('{"title": 3, "label": "general"}', r"bad\.jsonl:6: no text"),
        ('{"title": "x", "role": "critic"}', r'role \'critic\'.*"specialist" or "generalist"'),
        ("", "0 documents are labelled general"),
    ],
)
def test_bad_labels_are_refused(tmp_path, line, why):
    good = [json.dumps({"title": title, "label": "security"}) for title in RIVERS]
    (path := tmp_path / "bad.jsonl").write_text("\n".join([*good, line, ""]))
    with pytest.raises(DataError, match=why):
        read_labelled([path], RoleNames())


def test_labels_that_cannot_be_read_or_written_are_named(tmp_path):
    with pytest.raises(UserError, match=r"labels .*none\.jsonl cannot be read"):
        read_labelled([tmp_path / "none.jsonl"], RoleNames())
    (tmp_path / "cut.jsonl.gz").write_bytes(b"\x1f\x8b")
    with pytest.raises(UserError, match=r"cut\.jsonl\.gz cannot be read"):
        read_labelled([tmp_path / "cut.jsonl.gz"], RoleNames())
    mine = labels(tmp_path / "mine.jsonl")
    for out, why in (("x.txt", r"must end in \.npz"), ("no/x.npz", "cannot be written")):
        result = CliRunner().invoke(fit_router, [str(mine), "--out", str(tmp_path / out), "--from", "nothing"])
        assert isinstance(result.exception, UserError)
        with pytest.raises(UserError, match=why):
            raise result.exception


def test_sources_are_left_out_whole_when_there_are_enough(tmp_path):
    paths = [labels(tmp_path / f"{name}.jsonl", source=name) for name in "abcde"]
    result = CliRunner().invoke(fit_router, [*map(str, paths), "--out", str(tmp_path / "o.npz"), "--from", "nothing"])
    assert result.output.splitlines()[0].split() == ["on", "documents", "unseen", "precision", "recall", "F1"]
    assert "from nothing" in result.output


def test_it_is_registered_under_its_name():
    assert plugin_manager(entry_points=False).get("routers", "linear") is LinearRouter
