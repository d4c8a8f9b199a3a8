"""The demo's village as tasks."""

from __future__ import annotations

from llmkit.data.tales_items import village_choices, village_pairs
from llmkit.evaluation.items import Choice, Way


def pairs() -> list[Choice]:
    """The minimal pairs about the village."""
    return [
        Choice(f"pair {number}", (Way("", (pair.good, pair.bad)),), 0, (pair.category,))
        for number, pair in enumerate(village_pairs(), start=1)
    ]


def choices() -> list[Choice]:
    """The multiple-choice questions about the village."""
    return [
        Choice(
            f"question {number}", (Way(item.question, item.options, is_question=True),), item.answer
        )
        for number, item in enumerate(village_choices(), start=1)
    ]
