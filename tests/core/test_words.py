"""Words of texts: what makes no difference, what does, and the same hashes whatever the batch."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sysscan_models.splits import words
from sysscan_models.splits.words import word_hashes

TEXTS = st.lists(st.text(max_size=60) | st.text("abcXYZ019 _-.é漢字\u0301\n", max_size=60), max_size=8)


def hashes(text: str) -> list[int]:
    found: list[int] = word_hashes([text]).hashes.tolist()
    return found


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Disable SSH root login", "  disable\tssh ROOT-login!\n"),
        ("port 22 of CVE-2024-3094", "port 22, of CVE 2024 3094"),
        ("café Straße", "CAFE\u0301 STRASSE"),
        ("\uff33\uff33\uff28 ﬁle", "ssh file"),
        ("端末を禁止", "端 末 を 禁 止"),
        ("порт ٤٢", "ПОРТ ٤٢"),
    ],
)
def test_case_blanks_punctuation_and_forms_make_no_difference(one: str, other: str) -> None:
    assert hashes(one) == hashes(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("cafe naive", "café naïve"),
        ("Lodz", "Łódź"),
        ("cafe", "cafe\u0301\u0327\u20dd"),
        ("password", "p\u0430ssw\u043erd"),  # Cyrillic
        ("PASSWORD HOME", "\u0420\u0410SSW\u041eRD \u041d\u041e\u041c\u0415"),
        ("Root Kit", "R\u03bf\u03bft \u039a\u0399\u03a4"),  # Greek
        ("password", "pass\u200bwo\u00adrd\ufeff"),
        ("pass word", "pass\u200e \u200fword\ufe0f"),
        ("disable root login", "disable[1] root [23] login[4567]"),
        ("disable root login", "disable¹ root²³ login⁴"),
        ("disable root é", "disable[1] root\u200b [2] é"),
        (
            "\u05e9\u05dc\u05d5\u05dd \u0643\u062a\u0628",
            "\u05e9\u05c1\u05b8\u05dc\u05d5\u05b9\u05dd \u0643\u064e\u062a\u064e\u0640\u0628",
        ),
    ],
)
def test_what_one_does_not_see_makes_no_difference(one: str, other: str) -> None:
    assert hashes(one) == hashes(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("ab c", "a bc"),
        ("ab", "ba"),
        ("a0", "a"),
        ("root", "r00t"),
        ("端末", "末端"),
        ("か", "が"),
        ("ก", "ก่"),
        ("क", "कि"),
        ("login 12", "login"),
        ("login [12345]", "login"),
        ("login [a]", "login"),
        ("a", "aa"),
        ("22", "23"),
        ("0", "00"),
        ("a1", "a2"),
    ],
)
def test_other_words_have_other_hashes(one: str, other: str) -> None:
    assert hashes(one) != hashes(other)


def test_words_are_counted_text_by_text() -> None:
    found = word_hashes(["two words", "", "...", "端末 ok", "one"])
    assert found.offsets.tolist() == [0, 2, 2, 2, 5, 6]
    assert found.counts.tolist() == [2, 0, 0, 3, 1]
    assert word_hashes([]).offsets.tolist() == [0]
    assert word_hashes(["7 of r2d2 ٤٢", "4x"]).numbers.tolist() == [True, False, False, True, True]


def test_hashes_are_the_same_for_ever() -> None:
    """Signatures are stored, and splits follow from them: a change here changes what users get."""
    assert hashes("Root login 22 é 漢") == EVER


EVER = [6116480271497236224, 8178158623625861102, 8414473704170686957, 37660537329849962, 15935900344026464382]


@given(TEXTS)
def test_a_text_has_the_same_hashes_alone_and_in_any_batch(texts: list[str]) -> None:
    together = word_hashes(texts)
    assert together.hashes.tolist() == [value for text in texts for value in hashes(text)]
    assert together.counts.tolist() == [len(hashes(text)) for text in texts]


@given(st.text("abcdefXYZ", min_size=1), st.text("ghijk", min_size=1))
def test_equal_hashes_mean_equal_words(one: str, other: str) -> None:
    assert (hashes(one) == hashes(other)) == (one.casefold() == other.casefold())


def test_long_texts_are_hashed_in_blocks_without_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [" ".join(f"word{'x' * (number % 13)} é{number}" for number in range(300)), "plain text " * 200, "短い"]
    whole = word_hashes(texts)
    monkeypatch.setattr(words, "BLOCK", 64)
    in_blocks = word_hashes(texts)
    assert np.array_equal(whole.hashes, in_blocks.hashes)
    assert np.array_equal(whole.offsets, in_blocks.offsets)


def test_what_normalising_makes_longer_still_fits_into_blocks() -> None:
    ligature = "\ufdfa"  # becomes 18 characters
    words_of_one = len(hashes(ligature))
    assert len(hashes((ligature + " ") * words.BLOCK)) == words_of_one * words.BLOCK


def test_endless_marks_are_not_sorted() -> None:
    """`unicodedata.normalize` takes quadratic time for them: a million would take hours."""
    assert hashes("a" + "\u0301\u0316" * 500_000) == hashes("a")
    kept = "か" + "\u0316\u3099" * 500_000
    assert len(hashes(kept)) == 15 * -(-len(kept) // words.BLOCK)  # of MARKS in a row; words longer than a block are cut
    assert hashes("a" + "\u3099" * 20) != hashes("a" + "\u3099" * 21)  # as they are, while they are few


@pytest.mark.parametrize("text", ["\ud800", "\x00", "\U0010ffff", "\udfff x", "\u0301", "\xff"])
def test_any_string_is_a_text(text: str) -> None:
    assert len(word_hashes([text, "ok"])) == 2
    assert word_hashes([text, "ok"]).hashes[-1] == hashes("ok")[0]


def test_every_character_is_of_the_kind_that_unicode_says() -> None:
    for code in [*range(0x3000), *range(0xFE00, 0x11000)]:
        plain = "" if chr(code) in words._RAISED else unicodedata.normalize("NFKC", chr(code)).casefold()
        seen = [part for part in plain if not words._is_unseen(ord(part))]
        assert bool(hashes(chr(code))) == any(unicodedata.category(part)[0] in "LMN" for part in seen), hex(code)


@given(TEXTS, st.integers(1, 20))
def test_runs_are_of_consecutive_words_of_one_text(texts: list[str], length: int) -> None:
    found = word_hashes(texts)
    runs = found.runs(length)
    seen: dict[tuple[int, ...], int] = {}
    for number in range(len(texts)):
        mine = found.hashes[found.offsets[number] : found.offsets[number + 1]].tolist()
        expected = [tuple(mine[at : at + length]) for at in range(max(1, len(mine) - length + 1))] if mine else []
        values = runs.hashes[runs.offsets[number] : runs.offsets[number + 1]].tolist()
        assert len(values) == len(expected)
        assert all(seen.setdefault(run, value) == value for run, value in zip(expected, values, strict=True))
    assert len(set(seen.values())) == len(seen)


def test_runs_of_other_lengths_are_others() -> None:
    one = word_hashes(["a b c"])
    assert not set(one.runs(1).hashes.tolist()) & set(one.runs(2).hashes.tolist())
    assert one.runs(5).hashes.tolist() != one.runs(4).hashes.tolist()
