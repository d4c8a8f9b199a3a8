"""Dividing records into parts for training, validation and test, the same way for a seed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from random import Random
from typing import Protocol, TypeVar

from llmkit.errors import ConfigError, DataError
from llmkit.records.labelled import LabelledText
from llmkit.records.text_files import shown

Fractions = tuple[float, float, float]
PARTS = range(3)


class Splittable(Protocol):
    """A record of which a split can tell whether it repeats another."""

    @property
    def question(self) -> Hashable:
        """What the model is asked; records that share it stay in one part."""


T = TypeVar("T", bound=Splittable)


def split(
    records: Sequence[T], fractions: Fractions, seed: int
) -> tuple[list[T], list[T], list[T]]:
    """Records shuffled by the seed and divided into training, validation and test.

    Records with the same question land in one part: a question met in training would flatter
    the score in the test. Raises DataError where a part would be empty, and ConfigError for
    fractions that are not positive or do not add up to 1.
    """
    _check_fractions(fractions)
    groups = _groups(records)
    if len(groups) < len(PARTS):
        raise DataError(
            f"{_counted(len(groups), 'different record')} cannot be split into training, "
            f"validation and test; at least {len(PARTS)} are needed"
        )
    random = Random(seed)
    return _shuffled(_divided(groups, fractions, random), random)


def split_stratified(
    records: Sequence[LabelledText], fractions: Fractions, seed: int
) -> tuple[list[LabelledText], list[LabelledText], list[LabelledText]]:
    """The same for labelled texts, with each label divided by the fractions.

    A text that occurs more than once lands in one part with all its repeats, and counts for
    the label it has first. Raises DataError naming a label with too few different texts.
    """
    _check_fractions(fractions)
    refuse_rare_labels(records)
    groups = _groups(records)
    random = Random(seed)
    parts: tuple[list[LabelledText], ...] = ([], [], [])
    for label in sorted({record.label for record in records}):
        labelled = [group for group in groups if group[0].label == label]
        for part, more in zip(parts, _divided(labelled, fractions, random), strict=True):
            part.extend(more)
    return _shuffled(parts, random)


def refuse_rare_labels(records: Sequence[LabelledText]) -> None:
    """Raise DataError naming the rarest label, where it has too few different texts to divide."""
    first: dict[str, LabelledText] = {}
    counts: Counter[str] = Counter()
    for group in _groups(records):
        counts[group[0].label] += 1
    for record in records:
        first.setdefault(record.label, record)
    rarest = min(first, key=lambda label: counts[label])
    if counts[rarest] < len(PARTS):
        raise DataError(
            f"{first[rarest].where}: the label {shown(rarest)!r} has only "
            f"{_counted(counts[rarest], 'different text')}; at least {len(PARTS)} are needed "
            "for training, validation and test"
        )


def balance(records: Sequence[LabelledText], seed: int) -> list[LabelledText]:
    """As many records of each label as the rarest has, chosen by the seed, in their old order.

    Raises DataError naming the rarest, where it has too few to be divided afterwards.
    """
    refuse_rare_labels(records)
    random = Random(seed)
    places: dict[str, list[int]] = {}
    for place, record in enumerate(records):
        places.setdefault(record.label, []).append(place)
    fewest = min(map(len, places.values()), default=0)
    chosen = [place for label in sorted(places) for place in random.sample(places[label], fewest)]
    return [records[place] for place in sorted(chosen)]


def _check_fractions(fractions: Fractions) -> None:
    if min(fractions) <= 0 or not math.isclose(sum(fractions), 1.0, abs_tol=1e-6):
        raise ConfigError(
            f"the parts {', '.join(f'{fraction:g}' for fraction in fractions)} of training, "
            "validation and test must be positive and add up to 1"
        )


def _groups(records: Sequence[T]) -> list[list[T]]:
    groups: dict[Hashable, list[T]] = {}
    for record in records:
        groups.setdefault(record.question, []).append(record)
    return list(groups.values())


def _divided(
    groups: Sequence[list[T]], fractions: Fractions, random: Random
) -> tuple[list[T], list[T], list[T]]:
    """Groups drawn into three parts of the sizes that the fractions ask for; none stays empty.

    The largest come first, because the small ones can fill what they leave.
    """
    parts: tuple[list[T], list[T], list[T]] = ([], [], [])
    room = _sizes(sum(map(len, groups)), fractions)
    for left, group in zip(
        range(len(groups), 0, -1), sorted(groups, key=len, reverse=True), strict=True
    ):
        empty = [part for part in PARTS if not parts[part]]
        allowed = empty if left <= len(empty) else list(PARTS)
        fitting = [part for part in allowed if room[part] >= len(group)]
        if fitting:
            part = random.choices(fitting, [room[part] for part in fitting])[0]
        else:
            part = max(allowed, key=lambda part: room[part])
        parts[part].extend(group)
        room[part] -= len(group)
    return parts


def _sizes(count: int, fractions: Fractions) -> list[int]:
    """How many of at least three records each part gets: the nearest, but never none."""
    exact = [count * fraction for fraction in fractions]
    sizes = [max(1, math.floor(share)) for share in exact]
    while sum(sizes) < count:
        sizes[max(PARTS, key=lambda part: exact[part] - sizes[part])] += 1
    while sum(sizes) > count:
        larger = [part for part in PARTS if sizes[part] > 1]
        sizes[max(larger, key=lambda part: sizes[part] - exact[part])] -= 1
    return sizes


def _shuffled(parts: tuple[list[T], ...], random: Random) -> tuple[list[T], list[T], list[T]]:
    for part in parts:
        random.shuffle(part)
    training, validation, test = parts
    return training, validation, test


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"
