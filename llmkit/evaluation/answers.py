"""What models answer to the questions of a file, for judges and people."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llmkit.console import progress
from llmkit.errors import DataError
from llmkit.evaluation.evaluate import limited
from llmkit.evaluation.formats import answers
from llmkit.evaluation.items import Question
from llmkit.evaluation.models import BRANCHES, open_model
from llmkit.export.llamacpp.devices import Backend


def answered(
    names: Sequence[str], data: Path, limit: int | None, backend: Backend
) -> tuple[list[Question], list[list[str]]]:
    """Questions that fit all models, and each model's greedy answers to them.

    Raises DataError where no question does.
    """
    questions = limited(answers(data), limit)
    found: list[list[str | None]] = []
    for name in names:
        of_model: list[str | None] = []
        with open_model(name, backend) as model, progress(name, len(questions), "answers") as bar:
            for start in range(0, len(questions), BRANCHES):
                asked = questions[start : start + BRANCHES]
                of_model += model.answers([question.question for question in asked])
                bar.update(len(of_model))
        found.append(of_model)
    fits = [place for place, own in enumerate(zip(*found, strict=True)) if None not in own]
    if not fits:
        raise DataError(f"{data}: all {len(questions)} questions are longer than a model's context")
    return [questions[place] for place in fits], [
        [one[place] or "" for place in fits] for one in found
    ]
