"""`evaluate`: models on the items of one task."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llmkit.console import progress, say
from llmkit.errors import ConfigError, DataError
from llmkit.evaluation.intervals import Interval, difference_interval, score_interval
from llmkit.evaluation.items import Item, Outcome
from llmkit.evaluation.models import open_model
from llmkit.evaluation.tasks import OTHER, Task, task_of
from llmkit.export.llamacpp.devices import Backend
from llmkit.files import StrPath, optional_path
from llmkit.finetuning.scores import LabelScores, confusion_matrix, label_scores

SAMPLE_SEED = 0
SHOWN = 5


@dataclass(frozen=True)
class Score:
    """One measure of one model over some items, with 95 % confidence intervals.

    `difference` is to the first model on the same items; None of the first model itself.
    """

    value: float
    interval: Interval | None
    difference: float | None = None
    difference_interval: Interval | None = None


@dataclass(frozen=True)
class Confusion:
    """What the texts of each label were taken for."""

    labels: tuple[str, ...]
    counts: list[list[int]]  # row = the true label, column = the predicted one
    per_label: list[LabelScores]


@dataclass(frozen=True)
class ModelScores:
    """One model's scores by measure, over all items and by group."""

    model: str
    scores: dict[str, Score]
    groups: dict[str, dict[str, Score]]
    ties: int  # items in which two options are equally probable
    confusion: Confusion | None


@dataclass(frozen=True)
class Evaluation:
    """Models on the same items of a task."""

    task: str
    source: str
    items: int
    too_long: int  # items that are left out, because some model's context is too short
    chance: float | None  # accuracy of a random choice
    lower_is_better: bool
    models: list[ModelScores]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as `--json` prints them."""
        return asdict(self)


def evaluate(
    models: StrPath | Sequence[StrPath],
    task: StrPath,
    *,
    data: StrPath | None = None,
    limit: int | None = None,
    backend: Backend = "cpu",
) -> Evaluation:
    """Score models on one task.

    `models`: checkpoint folders, GGUF files or ollama:NAME; the first is what the others are
    compared with. `task`: the name of a task, whose items are in `data`, or a file whose content
    tells its task. `limit`: so many items, drawn at random, the same ones for all models.
    `backend`: where llama.cpp runs a file, "cpu", "gpu" or "auto".

    Raises LlmkitError: data that cannot be read, named by line; a model that gives no
    log-probabilities where the task needs them; items that all are too long.
    """
    names = [str(name) for name in ([models] if isinstance(models, str | Path) else models)]
    if limit is not None and limit < 1:
        raise ConfigError(f"--limit {limit}: expected at least 1")
    kind, items, source = task_of(str(task), optional_path(data))
    if limit is not None and limit < len(items):
        chosen = sorted(random.Random(SAMPLE_SEED).sample(range(len(items)), limit))
        items = [items[place] for place in chosen]
    found = [_outcomes(name, kind, items, backend) for name in names]
    fits = [all(of_model[place] is not None for of_model in found) for place in range(len(items))]
    _note_too_long([item for item, fit in zip(items, fits, strict=True) if not fit], len(items))
    outcomes = [
        [outcome for part in of_model if part is not None for outcome in part]
        for of_model in (
            [part for part, fit in zip(parts, fits, strict=True) if fit] for parts in found
        )
    ]
    chances = [one.chance for one in outcomes[0] if one.chance is not None]
    return Evaluation(
        kind.name,
        source,
        len(outcomes[0]),
        fits.count(False),
        sum(chances) / len(chances) if chances else None,
        kind.lower_is_better,
        [
            _model_scores(name, own, None if own is outcomes[0] else outcomes[0])
            for name, own in zip(names, outcomes, strict=True)
        ],
    )


def _outcomes(
    name: str, task: Task, items: Sequence[Item], backend: Backend
) -> list[list[Outcome] | None]:
    found = []
    with open_model(name, backend) as model, progress(name, len(items), "items") as bar:
        for number, item in enumerate(items, start=1):
            found.append(task.score(model, item))
            bar.update(number)
    return found


def _note_too_long(items: Sequence[Item], n: int) -> None:
    if not items:
        return
    places = "; ".join(item.where for item in items[:SHOWN]) + "; ..." * (len(items) > SHOWN)
    if len(items) == n:
        raise DataError(f"all {n} items are longer than a model's context: {places}")
    say(f"skipped {len(items)} of {n} items that are longer than a model's context: {places}")


def _model_scores(
    name: str, outcomes: Sequence[Outcome], first: Sequence[Outcome] | None
) -> ModelScores:
    places: dict[str, list[int]] = {}
    for place, outcome in enumerate(outcomes):
        for group in outcome.groups:
            places.setdefault(group, []).append(place)
    everything = range(len(outcomes))
    return ModelScores(
        name,
        _scores(outcomes, first, everything),
        {group: _scores(outcomes, first, at) for group, at in sorted(places.items())},
        sum(outcome.is_tie for outcome in outcomes),
        _confusion(outcomes),
    )


def _scores(
    outcomes: Sequence[Outcome], first: Sequence[Outcome] | None, places: Sequence[int]
) -> dict[str, Score]:
    own = [outcomes[place] for place in places]
    weights = [outcome.weight for outcome in own]
    found = {}
    for measure in own[0].values:
        values = [outcome.values[measure] for outcome in own]
        value, interval = sum(values) / sum(weights), score_interval(values, weights)
        if first is None:
            found[measure] = Score(value, interval)
        else:
            others = [first[place].values[measure] for place in places]
            difference = value - sum(others) / sum(weights)
            found[measure] = Score(
                value, interval, difference, difference_interval(values, others, weights)
            )
    return found


def _confusion(outcomes: Sequence[Outcome]) -> Confusion | None:
    pairs = [outcome.labels for outcome in outcomes if outcome.labels is not None]
    if not pairs:
        return None
    said = {label for pair in pairs for label in pair}
    labels = tuple(sorted(said - {OTHER})) + ((OTHER,) if OTHER in said else ())
    truth, predicted = ([labels.index(pair[side]) for pair in pairs] for side in (0, 1))
    counts = confusion_matrix(truth, predicted, len(labels))
    return Confusion(labels, counts, label_scores(labels, counts))
