"""Confidence intervals against published values and simulation."""

from __future__ import annotations

import numpy as np
import pytest

from llmkit.evaluation.intervals import difference_interval, score_interval, wilson


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [  # Newcombe, Statistics in Medicine 17 (1998), table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_is_as_published(hits: int, n: int, low: float, high: float) -> None:
    assert wilson(hits, n) == pytest.approx((low, high), abs=5e-5)
    assert score_interval([1.0] * hits + [0.0] * (n - hits), [1.0] * n) == wilson(hits, n)


def test_a_difference_of_right_or_wrong_covers_the_truth() -> None:
    """In 95 % of samples of two models that are right together more often than not."""
    rng = np.random.default_rng(0)
    n, covered = 100, 0
    for _ in range(1000):
        cells = rng.choice(4, n, p=[0.5, 0.15, 0.05, 0.3])  # both, first, second, none
        first, second = np.isin(cells, [0, 1]) * 1.0, np.isin(cells, [0, 2]) * 1.0
        interval = difference_interval(first.tolist(), second.tolist(), [1.0] * n)
        assert interval is not None
        covered += interval[0] <= 0.10 <= interval[1]
    assert 0.93 <= covered / 1000 <= 0.975


def test_models_that_agree_may_still_differ() -> None:
    interval = difference_interval([1.0, 0.0] * 100, [1.0, 0.0] * 100, [1.0] * 200)
    assert interval is not None
    assert interval[0] == -interval[1]
    assert 0.005 < interval[1] < 0.015


def test_pairing_makes_the_interval_of_a_small_difference_narrow() -> None:
    rng = np.random.default_rng(1)
    bits = rng.normal(2000, 300, 50)
    other = bits + rng.normal(10, 5, 50)
    weights = [1024.0] * 50
    alone = score_interval(bits.tolist(), weights)
    paired = difference_interval(other.tolist(), bits.tolist(), weights)
    assert alone is not None
    assert paired is not None
    # The standard error by numpy, times Student's t of 49 degrees of freedom.
    half = 2.0096 * np.std(other - bits, ddof=1) / np.sqrt(50) / 1024
    middle = np.mean(other - bits) / 1024
    assert paired == pytest.approx((middle - half, middle + half), abs=1e-6)
    assert (paired[1] - paired[0]) < (alone[1] - alone[0]) / 20
