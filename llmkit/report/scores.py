"""The scores of a run's models, from the evaluations that were kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from llmkit.evaluation.evaluate import Evaluation, Score
from llmkit.export.results import KeptResult
from llmkit.report.facts import CHECKPOINT, TaskScores


def task_scores(
    evaluations: Sequence[KeptResult[Evaluation]], names: Mapping[str, str]
) -> list[TaskScores]:
    """By task and measure. `names`: the run's models by SHA-256; scores of others are left out.

    A later evaluation replaces an earlier one, unless only the earlier one has differences.
    """
    found: dict[tuple[object, ...], TaskScores] = {}
    for kept in evaluations:
        evaluation = kept.result
        shown = {model: names[sha256] for model, sha256 in kept.sha256.items() if sha256 in names}
        replaces, scores = True, _win_rates(kept, shown)
        if evaluation.against is None:
            replaces = shown.get(evaluation.models[0].model) == CHECKPOINT
            scores = _scores(evaluation, shown, replaces)
        for name, measure, score in scores:
            facts = (evaluation.task, evaluation.source, evaluation.items)
            task = found.setdefault(
                (*facts, measure), TaskScores(*facts, evaluation.chance, measure, {})
            )
            if replaces or name not in task.scores:
                task.scores[name] = score
    return list(found.values())


NamedScore = tuple[str, str, Score]  # of a model, by a measure


def _scores(
    evaluation: Evaluation, shown: Mapping[str, str], with_base: bool
) -> Iterator[NamedScore]:
    """With differences where they are to the checkpoint."""
    for model in evaluation.models:
        if name := shown.get(model.model):
            for measure, score in model.scores.items():
                yield name, measure, score if with_base else Score(score.value, score.interval)


def _win_rates(kept: KeptResult[Evaluation], shown: Mapping[str, str]) -> Iterator[NamedScore]:
    """Against each other, or against another run's model; none if one has changed since."""
    against = kept.result.against
    if against is None or not kept.is_current():
        return
    for model in kept.result.models:
        for measure, score in model.scores.items():
            own, other, score = model.model, against, Score(score.value, score.interval)
            if own not in shown:
                own, other, score = other, own, _of_other_side(score)
            if own in shown:
                yield shown[own], f"{measure} against {shown.get(other) or Path(other).name}", score


def _of_other_side(score: Score) -> Score:
    """Of a win rate: a tie counts half for both."""
    low, high = score.interval or (0, 0)
    return Score(1 - score.value, score.interval and (1 - high, 1 - low))
