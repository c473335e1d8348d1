"""Held-out texts: what shares a run of words with them is found, and named by its first file."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sysscan_models.splits import contamination
from sysscan_models.splits.contamination import HeldOut
from sysscan_models.splits.words import word_hashes

QUESTION = "Which of these settings keeps an attacker from logging in as the superuser over the network without a key?"


def overlaps(held_out: HeldOut, *texts: str) -> list[str]:
    return held_out.overlaps(word_hashes(texts))


def test_a_shared_run_is_found_whatever_surrounds_it_and_however_it_is_written() -> None:
    held_out = HeldOut.from_texts([("bench.jsonl", f"Intro. {QUESTION} A, B or C")], words=13)
    inside = f"Learn this by heart: {QUESTION.upper().replace(' ', '  ')} It is the second."
    assert overlaps(held_out, "nothing of the kind", inside, "") == ["", "bench.jsonl", ""]


@pytest.mark.parametrize(("shared", "found"), [(12, ""), (13, "a"), (14, "a")])
def test_a_run_of_just_so_many_words_counts(shared: int, found: str) -> None:
    held_out = HeldOut.from_texts([("a", QUESTION)], words=13)
    assert overlaps(held_out, f"we say {' '.join(QUESTION.split()[:shared])} and more of our own words") == [found]


def test_the_first_file_is_named_whichever_run_comes_first() -> None:
    other = "umask settings for daemons belong into the unit file of each of those services on the host"
    texts = [("one", QUESTION), ("two", other), ("three", QUESTION)]
    held_out = HeldOut.from_texts(texts, words=13)
    assert held_out.names == ("one", "two", "three")
    assert overlaps(held_out, f"{other}. {QUESTION}", other, QUESTION) == ["one", "two", "one"]


def test_short_texts_are_compared_whole() -> None:
    held_out = HeldOut.from_texts([("short", "Disable SSH root login!"), ("long", QUESTION)], words=13)
    texts = ["disable ssh ROOT login", "Disable SSH root login now", "Disable SSH", " ".join(QUESTION.split()[:5])]
    assert overlaps(held_out, *texts) == ["short", "", "", ""]


FIGURES = ["1.5 | 2.5 | 3.5 | 4.5 " * 9, "0 0 0", "yes " * 40, "error 12 at 13, " * 3 + "1 2 3 4 5 6 7 8 9 0 1 2 3 4"]


@pytest.mark.parametrize("text", FIGURES)
def test_tables_of_numbers_and_rows_of_one_word_are_nobodys(text: str) -> None:
    held_out = HeldOut.from_texts([("a", text)], words=13)
    assert overlaps(held_out, text.replace("1", "7")) == [""]


def test_a_text_that_repeats_itself_is_still_found() -> None:
    text = "Check for the daemon\nCheck for the daemon (squid).\n- SQD-360 and its rules"
    assert overlaps(HeldOut.from_texts([("a", text)], words=13), text) == ["a"]


@given(st.lists(st.sampled_from(QUESTION.split()), max_size=60), st.integers(3, 15))
def test_every_text_that_says_enough_is_found_in_itself(words: list[str], length: int) -> None:
    text = " ".join(words)
    runs = [words[at : at + length] for at in range(max(1, len(words) - length + 1))] if words else []
    enough = any(len({word.casefold().strip("?") for word in run}) * 3 >= len(run) for run in runs)
    assert overlaps(HeldOut.from_texts([("a", text)], words=length), text) == ["a" if enough else ""]


def test_a_short_question_of_a_long_text_is_found_inside_others() -> None:
    asked = "Which option forbids root to log in?"
    text = (
        f"Here is a question about the daemon. {asked}\nA: this\nB: that\nOr else:\nWhat now?\nIt is up to you, is it not so?"
    )
    held_out = HeldOut.from_texts([("a", text)], words=13)
    assert held_out.shorter == (7, 9)
    texts = [f"Some asked: {asked} It is PermitRootLogin.", asked, "What now? Or else", "Which option forbids root to log"]
    assert overlaps(held_out, *texts) == ["a", "a", "", ""]
    assert overlaps(HeldOut.from_texts([("a", text)], words=7), texts[0]) == ["a"]
    chinese = HeldOut.from_texts([("a", f"{'安全加固检查说明' * 3}。如何禁止超级用户登录系统\uff1f")], words=13)
    assert overlaps(chinese, "他问如何禁止超级用户登录系统吗", "如何禁止超级用户") == ["a", ""]


TEMPLATE = "Answer the following question with the letter of the right choice and give no reason for it at all."
NAMES = [f"{first}{last}{third}" for first in ("ano", "eru", "ilo", "oma") for last in "bdfgk" for third in "xyz"]


@pytest.mark.parametrize(("count", "found"), [(21, ""), (20, "a")])
def test_what_most_texts_of_a_file_have_is_nobodys(count: int, found: str) -> None:
    """Twenty questions about one passage are nothing unusual: the passage is held out. An instruction has many more."""
    texts = [("a", f"{TEMPLATE} {name} {QUESTION.replace(' ', f' {name} ')}") for name in NAMES[:count]]
    held_out = HeldOut.from_texts([*texts, *texts], words=13)
    assert held_out.common == (0 if found else 7)
    assert overlaps(held_out, f"{TEMPLATE} What is a port?") == [found]
    assert overlaps(held_out, *(f"so {text}" for _, text in texts)) == ["a"] * count
    same = HeldOut.from_texts(reversed([*texts, *texts]), words=13)
    assert same.digest == held_out.digest


def test_what_few_texts_of_a_large_file_have_is_held_out() -> None:
    texts = [("a", f"{QUESTION if number % 3 else 'None.'} {name} {name}s") for number, name in enumerate(NAMES)]
    many = [("a", f"all {a}{b} of {b}{a} and {a}{a}{b} over there so far") for a in NAMES[:20] for b in NAMES[:20]]
    assert overlaps(HeldOut.from_texts([*texts, *many], words=13), QUESTION) == ["a"]
    assert overlaps(HeldOut.from_texts(texts, words=13), QUESTION) == [""]


@pytest.mark.parametrize("before", [0, 5, 40_000])
def test_what_overlaps_is_quoted_as_it_stands(before: int) -> None:
    held_out = HeldOut.from_texts([("b", "the ports of these services"), ("a", QUESTION)], words=13)
    text = f"{'more words ' * before}<b>{QUESTION.replace('an', 'án').replace('from', 'from[3]')}</b> Yes."
    quoted = held_out.quotation(text)
    assert quoted == "<b>Which of these settings keeps án attacker from[3] logging in as the superuser"[: len(quoted)]
    assert len(quoted.split()) == 13
    assert held_out.quotation("nothing of the kind") == ""
    assert held_out.quotation("see the ports\n of\tthese — services") == ""
    assert held_out.quotation("The ports\n of\tthese — services.") == "The ports of these — services."


def test_quotations_are_short_and_of_the_file_that_is_named() -> None:
    long = " ".join(f"{name}{'u' * 100}" for name in NAMES)
    held_out = HeldOut.from_texts([("one", long), ("two", QUESTION)], words=13)
    text = f"{QUESTION} {long}"
    assert overlaps(held_out, text) == ["one"]
    assert held_out.quotation(text) == long[: contamination.QUOTED_CHARS]
    giant = "x" * 200_000 + f" {QUESTION}"
    assert held_out.quotation(giant).startswith("Which of these")


def test_nothing_held_out_finds_nothing() -> None:
    for held_out in (HeldOut.from_texts([], words=13), HeldOut.from_texts([("empty", "")], words=13)):
        assert overlaps(held_out, "a text", "") == ["", ""]


def test_batches_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [(f"file {number % 3}", f"{QUESTION} {'abc' * number}") for number in range(40)]
    whole = HeldOut.from_texts(texts, words=5)
    monkeypatch.setattr(contamination, "BATCH_CHARS", 100)
    in_batches = HeldOut.from_texts(texts, words=5)
    assert in_batches.hashes.tolist() == whole.hashes.tolist()
    assert in_batches.files.tolist() == whole.files.tolist()
    assert in_batches.digest == whole.digest


def test_more_files_than_256_keep_their_names() -> None:
    texts = [(f"file {number}", f"unlike {'xy' * number} all the others") for number in range(300)]
    held_out = HeldOut.from_texts(texts, words=4)
    assert overlaps(held_out, texts[299][1], texts[255][1]) == ["file 299", "file 255"]


def test_the_digest_tells_what_would_be_found() -> None:
    def digest(name: str = "a", text: str = QUESTION, words: int = 13) -> str:
        return HeldOut.from_texts([(name, text)], words=words).digest

    assert digest() == digest(text=QUESTION.upper()) and len(digest()) == 64  # noqa: PT018 - one fact
    assert len({digest(), digest("b"), digest(text=QUESTION + " more"), digest(words=12), digest("\ud800")}) == 5
    assert digest(text=QUESTION.replace("superuser", "operator")) != digest()  # as many runs, but others


def test_it_can_be_sent_to_other_processes() -> None:
    held_out = pickle.loads(pickle.dumps(HeldOut.from_texts([("a", QUESTION)], words=13)))
    assert overlaps(held_out, QUESTION, "else") == ["a", ""]
