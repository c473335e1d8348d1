"""Near copies: what is alike is found, what is not is left alone, and the order of documents changes no group."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sysscan_models.splits import duplicates
from sysscan_models.splits.duplicates import Groups, K, NearCopies, band_rows, chance_of_meeting, signatures
from sysscan_models.splits.words import word_hashes

VOCABULARY = [f"{first}{second}{third}" for first in "bdfgklmnpr" for second in "aeiou" for third in "bdfgklmnprst"]


def written(seed: int, words: int = 120) -> list[str]:
    return random.Random(seed).choices(VOCABULARY, k=words)


def changed(words: list[str], share: float, seed: int) -> list[str]:
    """Replace a share of the words."""
    chance = random.Random(seed)
    return [chance.choice(VOCABULARY) if chance.random() < share else word for word in words]


def jaccard(one: list[str], other: list[str]) -> float:
    sets = [set(zip(words, words[1:], words[2:], strict=False)) for words in (one, other)]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def estimate(one: str, other: str) -> float:
    first, second = signatures(word_hashes([one, other]))
    return float((first == second).mean())


def found_pairs(folder: Path, texts: list[str], similarity: float = 0.5, batch: int = 50) -> dict[tuple[int, int], float]:
    with NearCopies(folder, similarity=similarity) as copies:
        for start in range(0, len(texts), batch):
            copies.add(signatures(word_hashes(texts[start : start + batch])))
        assert copies.count == len(texts)
        found: dict[tuple[int, int], float] = {}
        for first, second, alike in copies.pairs():
            for pair, value in zip(zip(first.tolist(), second.tolist(), strict=True), alike.tolist(), strict=True):
                assert pair not in found
                assert pair[0] < pair[1]
                found[pair] = value
    return found


def groups_of(folder: Path, texts: list[str], similarity: float = 0.5) -> list[int]:
    groups = Groups(len(texts))
    for first, second in found_pairs(folder, texts, similarity):
        groups.join(np.array([first]), np.array([second]))
    roots: list[int] = groups.roots().tolist()
    return roots


@pytest.mark.parametrize("words", [4, 12, 60, 600])
@pytest.mark.parametrize("share", [0.05, 0.2])
def test_the_estimate_is_near_the_jaccard_index(words: int, share: float) -> None:
    errors = []
    for seed in range(60):
        one = written(seed, words)
        other = changed(one, share, seed + 1000)
        errors.append(estimate(" ".join(one), " ".join(other)) - jaccard(one, other))
    assert abs(np.mean(errors)) < 0.02  # 60 of them, so a bias of a standard error's size would be seen
    assert np.std(errors) < 0.05


def test_signatures_do_not_depend_on_the_batch() -> None:
    texts = ["", "one", "two words", *(" ".join(written(seed, 3 ** (seed % 7))) for seed in range(40))]
    together = signatures(word_hashes(texts))
    assert together.shape == (len(texts), K)
    assert together.dtype == np.uint32
    for number, text in enumerate(texts):
        assert np.array_equal(signatures(word_hashes([text]))[0], together[number])


def test_short_titles_are_told_apart_but_for_how_they_are_written() -> None:
    assert estimate("Disable SSH root login", "Disable SSH empty passwords") < 0.2
    assert estimate("Disable SSH root login", "disable  ssh: Root-Login.") == 1
    assert estimate("umask", "login") == 0
    assert estimate("Set umask", "Set mount") == 0


def test_documents_without_words_are_like_no_other(tmp_path: Path) -> None:
    assert found_pairs(tmp_path, ["...", "...", "", "***", "word", "word"]) == {(4, 5): 1.0}


@pytest.mark.parametrize(("similarity", "least"), [(0.6, 0.95), (0.8, 0.999)])
def test_pairs_well_above_the_threshold_meet(similarity: float, least: float) -> None:
    assert chance_of_meeting(similarity, band_rows(0.5)) >= least


@given(st.floats(0.01, 1))
def test_bands_are_as_long_as_the_threshold_allows(similarity: float) -> None:
    rows = band_rows(similarity)
    assert 1 <= rows <= K
    assert rows == 1 or chance_of_meeting(similarity, rows) >= 0.85
    assert rows == K or chance_of_meeting(similarity, rows + 1) < 0.85


def test_perturbed_copies_are_found_and_strangers_are_not(tmp_path: Path) -> None:
    texts, expected = [], set()
    for seed in range(300):
        one = written(seed, 40 + seed % 200)
        other = changed(one, (seed % 10) / 60, seed + 5000)
        if seed % 3 == 0:  # a sentence at another place
            other = other[20:] + other[:20]
        if jaccard(one, other) >= 0.6:
            expected.add((len(texts), len(texts) + 1))
        texts += [" ".join(one), " ".join(other)]
    found = found_pairs(tmp_path, texts)
    assert len(expected) > 150
    assert len(expected & found.keys()) >= 0.99 * len(expected)
    assert all(second == first + 1 and first % 2 == 0 for first, second in found)
    assert min(found.values()) >= 0.5


@pytest.mark.parametrize("similarity", [0.3, 0.5, 0.8, 0.95, 1.0])
def test_no_pair_below_the_threshold_is_told(tmp_path: Path, similarity: float) -> None:
    base = written(1, 300)
    texts = [" ".join(changed(base, step / 200, step)) for step in range(30)]
    found = found_pairs(tmp_path, [*texts, texts[0].upper()], similarity)
    assert found[0, 30] == 1
    assert min(found.values()) >= similarity


def test_batches_and_passes_make_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = written(3, 80)
    texts = [" ".join(changed(base, (number % 9) / 30, number)) for number in range(120)] + ["", "a b c"] * 3
    whole = found_pairs(tmp_path / "whole", texts)
    monkeypatch.setattr(duplicates, "SORTED_AT_ONCE", 7)
    monkeypatch.setattr(duplicates, "COMPARED_AT_ONCE", 5)
    assert found_pairs(tmp_path / "pieces", texts, batch=1) == whole
    assert len(whole) > 100


def test_many_parts_of_candidates_hold_every_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [" ".join(changed(written(number % 25, 80), 0.03, number)) for number in range(100)]
    whole = found_pairs(tmp_path / "whole", texts)
    monkeypatch.setattr(duplicates, "PART_BITS", 3)
    assert found_pairs(tmp_path / "parts", texts) == whole
    assert len(whole) > 25 * 5
    assert all(first % 25 == second % 25 for first, second in whole)


def test_the_order_of_documents_changes_no_group(tmp_path: Path) -> None:
    texts = [" ".join(changed(written(number // 4, 100), 0.04 * (number % 4), number)) for number in range(160)]
    texts += ["same text here", "Same text, here", "another text here"]
    order = random.Random(5).sample(range(len(texts)), len(texts))
    roots = groups_of(tmp_path / "one", texts)
    others = groups_of(tmp_path / "other", [texts[number] for number in order])
    by_root: dict[int, set[int]] = {}
    for place, root in enumerate(others):
        by_root.setdefault(root, set()).add(order[place])
    expected: dict[int, set[int]] = {}
    for number, root in enumerate(roots):
        expected.setdefault(root, set()).add(number)
    assert {frozenset(group) for group in by_root.values()} == {frozenset(group) for group in expected.values()}
    assert len(expected) < 100


def test_equal_documents_are_paired_with_the_first_alone(tmp_path: Path) -> None:
    text = " ".join(written(1))
    texts = [text, "a stranger to them all", *[text.upper()] * 3000, " ".join(changed(text.split(), 0.02, 1))]
    found = found_pairs(tmp_path, texts, batch=1000)
    assert len(found) == 3001
    assert {first for first, _ in found} == {0}


def test_a_large_bucket_makes_no_quadratic_work(tmp_path: Path) -> None:
    """100,000 documents agree in a band and in nothing else; each pair of them would be 5 thousand million."""
    count = 100_000
    values = np.random.default_rng(1).integers(0, 2**31, (count, K), dtype=np.uint32)
    values[:, :4] = 7
    values[500:600] = values[400:500]
    with NearCopies(tmp_path, similarity=0.5) as copies:
        copies.add(values)
        found = [pair for first, second, _ in copies.pairs() for pair in zip(first.tolist(), second.tolist(), strict=True)]
        verified = copies.verified
    assert sorted(found) == [(number, number + 100) for number in range(400, 500)]
    assert count < verified < 10 * count


def test_the_most_alike_of_large_buckets_are_compared(tmp_path: Path) -> None:
    """Every band has but 8 values, so that all buckets are large, and like documents are far from each other in order."""
    chance = np.random.default_rng(1)
    rows = band_rows(0.5)
    values = np.repeat(chance.integers(0, 8, (1000, K // rows), dtype=np.uint32) * 16 + 2, rows, axis=1)
    other = 500 + chance.permutation(500)
    values[other] = np.where(np.repeat(chance.random((500, K // rows)) < 0.8, rows, axis=1), values[:500], values[other])
    with NearCopies(tmp_path, similarity=0.5) as copies:
        copies.add(values)
        found = {pair for first, second, _ in copies.pairs() for pair in zip(first.tolist(), second.tolist(), strict=True)}
    expected = set(zip(range(500), other.tolist(), strict=True))
    assert len(found - expected) < 5  # of half a million pairs, as like by chance
    assert len(found & expected) > 0.75 * len(expected)  # in the order of their numbers it would be 0.07


def found_parts(
    folder: Path, texts: list[str], similarity: float = 0.5, absent: tuple[int, ...] = ()
) -> dict[tuple[int, int], float]:
    taking_part = np.ones(len(texts), bool)
    taking_part[list(absent)] = False
    with NearCopies(folder, similarity=similarity) as copies:
        copies.add(signatures(word_hashes(texts)))
        return {
            (one, other): value
            for first, second, alike in copies.parts(np.arange(len(texts)), taking_part)
            for one, other, value in zip(first.tolist(), second.tolist(), alike.tolist(), strict=True)
        }


def halves_and_wholes(count: int, words: int = 150) -> list[str]:
    """Return texts, each followed by a part of it, by a text that it is part of, and by a stranger."""
    texts = []
    for seed in range(count):
        one = written(seed, words)
        start = seed * 7 % (words // 2)
        texts.append(" ".join(one))
        texts.append(" ".join(one[start : start + words // 2]))
        texts.append(" ".join([*written(seed + 10_000, words * (seed % 4)), *one, *written(seed + 20_000, words)]))
        texts.append(" ".join(written(seed + 30_000, words)))
    return texts


@pytest.mark.parametrize("words", [50, 150, 2000])
def test_a_part_is_found_in_its_whole(tmp_path: Path, words: int) -> None:
    count = 60
    found = found_parts(tmp_path, halves_and_wholes(count, words))
    assert all(first // 4 == second // 4 and second % 4 != 3 for first, second in found)
    assert min(found.values()) >= 0.5
    for one, other, least in ((0, 1, 0.98), (0, 2, 0.95), (1, 2, 0.75)):
        assert sum((4 * number + one, 4 * number + other) in found for number in range(count)) >= least * count
    assert np.mean(list(found.values())) > 0.9  # nothing of a part is missing in the whole


@pytest.mark.parametrize(("kept", "tied"), [(0.4, False), (0.9, True)])
def test_how_much_of_the_lesser_must_be_in_the_larger(tmp_path: Path, kept: float, tied: bool) -> None:
    texts = []
    for seed in range(40):
        one, part = written(seed, 600), written(seed + 1000, 200)
        part[: int(200 * kept)] = one[50 : 50 + int(200 * kept)]
        texts += [" ".join(one), " ".join(part)]
    found = found_parts(tmp_path, texts)
    assert len(found) == pytest.approx(40 if tied else 0, abs=2)
    if tied:  # as alike as two of one length that share so much: 0.9 / (2 - 0.9)
        assert np.mean(list(found.values())) == pytest.approx(kept / (2 - kept), abs=0.03)


def test_a_title_is_part_of_nothing(tmp_path: Path) -> None:
    one = written(1, 60)
    assert found_parts(tmp_path, [" ".join(one), " ".join(one[:10])]) == {}
    assert found_parts(tmp_path / "longer", [" ".join(one), " ".join(one[:25])]).keys() == {(0, 1)}


def test_common_text_ties_nothing_and_hides_no_part(tmp_path: Path) -> None:
    licence = written(1, 90)
    many = [" ".join([*licence, *written(number + 10, 60)]) for number in range(3 * duplicates.COMMON)]
    alone, few = " ".join(licence), many[: duplicates.COMMON // 2]
    assert len(found_parts(tmp_path / "few", [*few, alone])) > 20
    assert found_parts(tmp_path / "many", [*many, alone]) == {}
    part = " ".join(many[0].split()[30:])  # half of it is the licence's
    assert found_parts(tmp_path / "part", [*many, alone, part]).keys() == {(0, len(many) + 1)}


def test_parts_are_looked_for_among_those_that_take_part(tmp_path: Path) -> None:
    texts = halves_and_wholes(3)
    assert found_parts(tmp_path / "all", ["", *texts, "..."]).keys() >= {(1, 2), (1, 3), (5, 6)}
    assert not {0, 4} & {number for pair in found_parts(tmp_path / "some", texts, absent=(0, 4)) for number in pair}
    with NearCopies(tmp_path / "tied", similarity=0.5) as copies:
        copies.add(signatures(word_hashes(texts)))
        found = list(copies.parts(np.arange(len(texts)) // 4, np.ones(len(texts), bool)))
        assert sum(len(first) for first, _, _ in found) == 0  # they are in one group already


def test_batches_and_passes_make_no_difference_to_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = halves_and_wholes(30)
    whole = found_parts(tmp_path / "whole", texts)
    for name, value in (("SORTED_AT_ONCE", 7), ("COMPARED_AT_ONCE", 5), ("PART_BITS", 3)):
        monkeypatch.setattr(duplicates, name, value)
    assert found_parts(tmp_path / "pieces", texts) == whole
    assert len(whole) > 80


def test_a_value_that_many_have_makes_no_quadratic_work(tmp_path: Path) -> None:
    """20,000 documents agree in all places by which parts are looked for, as many in groups of 100."""
    count = 40_000
    values = np.random.default_rng(1).integers(0, 2**28, (count, K), dtype=np.uint32)
    values[: count // 2, ::4] = 7
    values[count // 2 :, ::4] = 100 + np.arange(count // 2)[:, None] // 100
    with NearCopies(tmp_path, similarity=0.5) as copies:
        copies.add(values)
        assert sum(len(first) for first, _, _ in copies.parts(np.arange(count), np.ones(count, bool))) == 0
        assert 0 < copies.verified < 5 * count


def test_nothing_added_has_no_pairs(tmp_path: Path) -> None:
    assert found_pairs(tmp_path, []) == {}
    assert found_parts(tmp_path / "parts", []) == {}
    with NearCopies(tmp_path / "empty", similarity=0.5) as copies:
        copies.add(np.zeros((0, K), np.uint32))
        assert list(copies.pairs()) == []


def test_a_folder_that_cannot_be_written_is_an_error_of_the_system(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file"):
        NearCopies(tmp_path / "file", similarity=0.5)


@settings(max_examples=200)
@given(
    st.integers(1, 40).flatmap(lambda count: st.tuples(st.just(count), st.lists(st.tuples(*[st.integers(0, count - 1)] * 2))))
)
def test_groups_are_what_is_joined(case: tuple[int, list[tuple[int, int]]]) -> None:
    count, joins = case
    expected = list(range(count))  # the slow way
    for first, second in joins:
        low, high = sorted((expected[first], expected[second]))
        expected = [low if root == high else root for root in expected]
    together, one_by_one, backwards = Groups(count), Groups(count), Groups(count)
    first, second = np.array([pair[0] for pair in joins], int), np.array([pair[1] for pair in joins], int)
    together.join(first, second)
    backwards.join(second[::-1], first[::-1])
    for pair in joins:
        one_by_one.join(np.array(pair[:1]), np.array(pair[1:]))
    for groups in (together, one_by_one, backwards):
        assert groups.roots().tolist() == expected
        assert groups.roots().dtype == np.int32


def test_long_chains_are_joined() -> None:
    count = 200_000
    ends = np.arange(count - 1)
    forwards, backwards, in_steps = Groups(count), Groups(count), Groups(count)
    forwards.join(ends, ends + 1)
    backwards.join(ends[::-1] + 1, ends[::-1])
    for start, end in pairwise(range(0, count, 4000)):  # from the end to the start: every join moves the root
        steps = count - 2 - np.arange(start, end)
        in_steps.join(steps, steps + 1)
    assert not forwards.roots().any()
    assert not backwards.roots().any()
    last = count - 1 - max(range(0, count, 4000))  # so far the steps have come
    assert in_steps.roots().tolist() == [*range(last), *[last] * (count - last)]


def test_pairs_of_any_documents_can_be_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "COMPARED_AT_ONCE", 2)
    texts = ["Disable SSH root login", "disable ssh root login", "something else altogether"]
    with NearCopies(tmp_path, similarity=0.5) as copies:
        copies.add(signatures(word_hashes(texts)))
        assert copies.similarities(np.array([0, 2, 1]), np.array([1, 0, 1])).tolist() == [1, 0, 1]
