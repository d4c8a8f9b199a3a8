"""How well labels were told: accuracy, precision, recall, and what was taken for what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class LabelScores:
    """One label's scores; None where there is nothing to count: 0 of 0."""

    label: str
    precision: float | None  # share of the texts called so that are
    recall: float | None  # share of the texts that are so that were called so
    n: int  # texts that are so


def confusion_matrix(
    truth: Sequence[int], predicted: Sequence[int], n_labels: int
) -> list[list[int]]:
    """Counts (n_labels, n_labels): row = the true label, column = the predicted one."""
    counts = np.zeros((n_labels, n_labels), np.int64)
    np.add.at(counts, (np.asarray(truth, np.int64), np.asarray(predicted, np.int64)), 1)
    return [[int(count) for count in row] for row in counts]


def accuracy(confusion: Sequence[Sequence[int]]) -> float:
    """Share of texts on the diagonal."""
    counts = np.asarray(confusion)
    return float(counts.trace() / counts.sum())


def label_scores(labels: Sequence[str], confusion: Sequence[Sequence[int]]) -> list[LabelScores]:
    """Precision and recall of each label."""
    counts = np.asarray(confusion)
    hits, true, called = counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0)
    return [
        LabelScores(label, _share(hits[i], called[i]), _share(hits[i], true[i]), int(true[i]))
        for i, label in enumerate(labels)
    ]


def _share(part: np.int64, whole: np.int64) -> float | None:
    return float(part / whole) if whole else None
