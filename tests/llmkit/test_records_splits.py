from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from record_files import (
    refused,
)

from llmkit.errors import ConfigError
from llmkit.records.labelled import LabelledText, read_labelled
from llmkit.records.splits import Fractions, balance, split, split_stratified

FRACTIONS = st.sampled_from([(0.7, 0.1, 0.2), (0.85, 0.05, 0.1), (1 / 3, 1 / 3, 1 / 3)])


def labelled(texts: Sequence[tuple[str, str]]) -> list[LabelledText]:
    return [
        LabelledText(text, label, f"file, line {line}")
        for line, (text, label) in enumerate(texts, start=1)
    ]


@given(
    texts=st.lists(st.text("abc", min_size=1, max_size=3), min_size=3, max_size=60).filter(
        lambda texts: len(set(texts)) >= 3
    ),
    fractions=FRACTIONS,
    seed=st.integers(0, 9),
)
def test_split_is_complete_disjoint_and_keeps_repeats_together(
    texts: list[str], fractions: Fractions, seed: int
) -> None:
    records = labelled([(text, "x") for text in texts])
    parts = split(records, fractions, seed)
    assert all(parts)
    assert sorted(r.where for part in parts for r in part) == sorted(r.where for r in records)
    seen = [{record.text for record in part} for part in parts]
    assert sum(map(len, seen)) == len(set(texts))
    assert parts == split(records, fractions, seed)


@given(
    counts=st.lists(st.integers(20, 70), min_size=2, max_size=4),
    fractions=FRACTIONS,
    seed=st.integers(0, 9),
)
def test_stratified_split_divides_each_label_within_one_record(
    counts: list[int], fractions: Fractions, seed: int
) -> None:
    records = labelled(
        [(f"{label} {n}", str(label)) for label, count in enumerate(counts) for n in range(count)]
    )
    parts = split_stratified(records, fractions, seed)
    assert sorted(r.where for part in parts for r in part) == sorted(r.where for r in records)
    for part, fraction in zip(parts, fractions, strict=True):
        for label, count in enumerate(counts):
            got = sum(record.label == str(label) for record in part)
            assert abs(got - count * fraction) < 1 + 1e-9
    assert parts == split_stratified(records, fractions, seed)


def test_repeated_spam_stays_in_one_part_of_a_stratified_split(shared_data: Path) -> None:
    records = balance(read_labelled(shared_data / "sms_spam.tsv"), seed=1)
    assert Counter(record.label for record in records) == {"ham": 747, "spam": 747}
    parts = split_stratified(records, (0.7, 0.1, 0.2), seed=1)
    assert [len(part) for part in parts] == [1046, 150, 298]
    texts = [{record.text.strip() for record in part} for part in parts]
    assert len(set.union(*texts)) == sum(map(len, texts)) < len(records)


def test_another_seed_splits_and_balances_otherwise() -> None:
    records = labelled([(str(n), "ab"[n % 3 == 0]) for n in range(40)])
    for way in (split, split_stratified):
        assert way(records, (0.5, 0.25, 0.25), 1) != way(records, (0.5, 0.25, 0.25), 2)
    assert balance(records, 1) != balance(records, 2)


def test_balance_keeps_order_and_as_many_of_each_label_as_the_rarest_has() -> None:
    records = labelled([(str(n), "ab"[n % 5 == 0]) for n in range(40)])
    balanced = balance(records, 3)
    assert Counter(record.label for record in balanced) == {"a": 8, "b": 8}
    assert balanced == [record for record in records if record in balanced]
    assert balanced == balance(records, 3)


def test_too_few_records_are_refused_with_the_number_needed() -> None:
    records = labelled([("a", "x"), ("a ", "x"), ("b", "y")])
    message = refused(lambda: split(records, (0.7, 0.1, 0.2), 1))
    assert "2 different records" in message
    assert "at least 3 are needed" in message


def test_label_with_too_few_texts_is_named_with_its_line() -> None:
    records = labelled([("v1", "head"), *[(str(n), "ab"[n % 2]) for n in range(20)]])
    message = refused(lambda: split_stratified(records, (0.7, 0.1, 0.2), 1))
    assert message.startswith(
        "file, line 1: the label 'head' has only 1 different text; at least 3"
    )


@pytest.mark.parametrize("repeats", [1, 2])
def test_label_that_is_too_rare_to_balance_is_the_one_named(repeats: int) -> None:
    rare = [(f"text {n}", "rare") for n in range(repeats)]
    records = labelled([*[(str(n), ("bad", "good")[n % 2]) for n in range(38)], *rare])
    message = refused(lambda: balance(records, 1))
    assert message.startswith(f"file, line 39: the label 'rare' has only {repeats} different text")


@pytest.mark.parametrize("fractions", [(0.8, 0.2, 0.0), (0.7, 0.2, 0.2), (1.2, -0.4, 0.2)])
def test_fractions_that_are_no_division_are_refused(fractions: Fractions) -> None:
    with pytest.raises(ConfigError, match="must be positive and add up to 1"):
        split(labelled([(str(n), "x") for n in range(9)]), fractions, 1)
