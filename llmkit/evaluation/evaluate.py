"""`evaluate`: models on the items of one task."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from llmkit.console import progress, say
from llmkit.errors import ConfigError, DataError
from llmkit.evaluation.intervals import Interval, difference_interval, score_interval
from llmkit.evaluation.items import Item, Outcome
from llmkit.evaluation.models import OLLAMA, open_model
from llmkit.evaluation.tasks import OTHER, Task, task_of
from llmkit.export.llamacpp.devices import Backend
from llmkit.export.results import keep_result
from llmkit.files import StrPath, optional_path
from llmkit.finetuning.scores import LabelScores, confusion_matrix, label_scores

SAMPLE_SEED = 0
SHOWN = 5
AnItem = TypeVar("AnItem", bound=Item)


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
    left_out: int  # items that some model has no score of: they are longer than its context
    chance: float | None  # accuracy of a random choice
    lower_is_better: bool
    models: list[ModelScores]
    shots: int = 0  # examples before each question, where they fit
    against: str | None = None  # the model whose answers a win rate is against

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as `--json` prints them."""
        return asdict(self)


def evaluate(
    models: StrPath | Sequence[StrPath],
    task: StrPath,
    *,
    data: StrPath | None = None,
    limit: int | None = None,
    shots: int = 0,
    backend: Backend = "cpu",
) -> Evaluation:
    """Score models on one task.

    `models`: checkpoint folders, GGUF files or ollama:NAME; the first is what the others are
    compared with. `task`: the name of a task, whose items are in `data`, or a file whose content
    tells its task. `limit`: so many items, drawn at random, the same ones for all models.
    `shots`: so many examples before each question (mmlu), fewer where they do not fit the context.
    `backend`: where llama.cpp runs a file, "cpu", "gpu" or "auto".

    Raises LlmkitError: data that cannot be read, named by line; a model that gives no
    log-probabilities where the task needs them; items that all are too long.
    """
    names = model_names(models)
    kind, items, source = task_of(str(task), optional_path(data), shots)
    items = limited(items, limit)
    found = [_outcomes(name, kind, items, backend) for name in names]
    lower = kind.lower_is_better
    evaluation = summed_up(kind.name, source, names, items, found, lower=lower, shots=shots)
    keep_evaluation(evaluation)
    return evaluation


def keep_evaluation(evaluation: Evaluation) -> None:
    """Write the result to `results.json` beside the first model on disk, for `llmkit report`."""
    against = [] if evaluation.against is None else [evaluation.against]
    names = [*against, *(model.model for model in evaluation.models)]
    on_disk = [name for name in dict.fromkeys(names) if not name.startswith(OLLAMA)]
    about = {
        "task": evaluation.task,
        "source": evaluation.source,
        "shots": evaluation.shots,
        "models": names,
    }
    if on_disk:
        keep_result("evaluations", about, on_disk, evaluation.to_dict())


def model_names(models: StrPath | Sequence[StrPath]) -> list[str]:
    """One model or several, as texts."""
    return [str(name) for name in ([models] if isinstance(models, str | Path) else models)]


def limited(items: Sequence[AnItem], limit: int | None) -> Sequence[AnItem]:
    """So many items, drawn at random. Raises ConfigError for a limit below 1."""
    if limit is not None and limit < 1:
        raise ConfigError(f"--limit {limit}: expected at least 1")
    if limit is None or limit >= len(items):
        return items
    chosen = sorted(random.Random(SAMPLE_SEED).sample(range(len(items)), limit))
    return [items[place] for place in chosen]


def summed_up(
    task: str,
    source: str,
    names: Sequence[str],
    items: Sequence[Item],
    found: Sequence[Sequence[list[Outcome] | None]],
    *,
    lower: bool = False,
    shots: int = 0,
    against: str | None = None,
    left_out: str = "longer than a model's context",
) -> Evaluation:
    """Scores of each model's outcomes, over the items that all models have some of.

    `left_out` says what is wrong with the others. Raises DataError where no item is left.
    """
    fits = [all(of_model[place] is not None for of_model in found) for place in range(len(items))]
    skipped = [item for item, fit in zip(items, fits, strict=True) if not fit]
    _note_left_out(skipped, len(items), left_out)
    outcomes = [
        [outcome for part in of_model if part is not None for outcome in part]
        for of_model in (
            [part for part, fit in zip(parts, fits, strict=True) if fit] for parts in found
        )
    ]
    chances = [one.chance for one in outcomes[0] if one.chance is not None]
    return Evaluation(
        task,
        source,
        len(outcomes[0]),
        fits.count(False),
        sum(chances) / len(chances) if chances else None,
        lower,
        [
            _model_scores(name, own, None if own is outcomes[0] else outcomes[0])
            for name, own in zip(names, outcomes, strict=True)
        ],
        shots,
        against,
    )


def _outcomes(
    name: str, task: Task, items: Sequence[Item], backend: Backend
) -> list[list[Outcome] | None]:
    found: list[list[Outcome] | None] = []
    with open_model(name, backend) as model, progress(name, len(items), "items") as bar:
        for start in range(0, len(items), task.at_once):
            found += task.score(model, items[start : start + task.at_once])
            bar.update(len(found))
    n_cut = sum(outcome.is_cut for outcomes in found for outcome in outcomes or [])
    if n_cut:
        say(f"{name}: in {n_cut} of {len(items)} items not all examples fit the model's context")
    return found


def _note_left_out(items: Sequence[Item], n: int, why: str) -> None:
    if not items:
        return
    places = "; ".join(item.where for item in items[:SHOWN]) + "; ..." * (len(items) > SHOWN)
    if len(items) == n:
        raise DataError(f"all {n} items are {why}: {places}")
    say(f"skipped {len(items)} of {n} items that are {why}: {places}")


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
