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
