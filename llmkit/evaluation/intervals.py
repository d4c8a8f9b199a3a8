"""95 % confidence intervals of scores, and of differences on the same items."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from llmkit.export.evaluation.divergence import ratio_interval

Interval = tuple[float, float]
_Z = NormalDist().inv_cdf(0.975)


def wilson(hits: float, n: int) -> Interval:
    """Of a share of `n` independent items (Wilson's score interval)."""
    share, z2 = hits / n, _Z**2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def score_interval(values: Sequence[float], weights: Sequence[float]) -> Interval | None:
    """Of sum(values) / sum(weights); None for a single item that is not right or wrong."""
    if set(values) <= {0.0, 1.0} and set(weights) == {1.0}:
        return wilson(sum(values), len(values))
    return ratio_interval(np.array(values), np.array(weights))


def difference_interval(
    values: Sequence[float], others: Sequence[float], weights: Sequence[float]
) -> Interval | None:
    """Of the difference of two models' scores, the items paired; None for a single item.

    Of items that are right or wrong it is Agresti and Min's (2005), which adds half an item to each
    cell: models that agree in all items may still differ in others.
    """
    if set(values) | set(others) <= {0.0, 1.0} and set(weights) == {1.0}:
        pairs = list(zip(values, others, strict=True))
        won, lost, n = pairs.count((1.0, 0.0)) + 0.5, pairs.count((0.0, 1.0)) + 0.5, len(pairs) + 2
        middle = (won - lost) / n
        half = _Z * math.sqrt(won + lost - (won - lost) ** 2 / n) / n
        return max(-1.0, middle - half), min(1.0, middle + half)
    return ratio_interval(np.array(values) - np.array(others), np.array(weights))
