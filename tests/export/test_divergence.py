from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from llmkit.export.evaluation.divergence import (
    Divergence,
    divergence,
    joined,
    kl_ratio,
    kl_ratio_interval,
    mean_interval,
)

V = 50


def logits(seed: int, n: int, scale: float = 3.0) -> NDArray[np.float32]:
    return (np.random.default_rng(seed).normal(size=(n, V)) * scale).astype(np.float32)


def probabilities(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    powers = np.exp(rows.astype(np.float64))
    return powers / powers.sum(axis=1, keepdims=True)


def measured(a: NDArray[np.float32], b: NDArray[np.float32], seed: int = 9) -> Divergence:
    targets = np.random.default_rng(seed).integers(0, V, len(a))
    return divergence(torch.from_numpy(a), torch.from_numpy(b), torch.from_numpy(targets))


@pytest.mark.parametrize("n", [1, 127, 128, 129, 300])  # around the rows done at once
def test_each_number_is_what_its_definition_gives(n: int) -> None:
    a, b = logits(1, n), logits(2, n)
    targets = np.random.default_rng(9).integers(0, V, n)
    p, q = probabilities(a), probabilities(b)
    found = measured(a, b)
    np.testing.assert_allclose(found.kl, (p * np.log(p / q)).sum(axis=1), rtol=1e-9)
    np.testing.assert_array_equal(found.same_top, p.argmax(1) == q.argmax(1))
    np.testing.assert_allclose(found.max_logit_difference, np.abs(a.astype(float) - b).max(1))
    np.testing.assert_allclose(found.loss, -np.log(q[np.arange(n), targets]), rtol=1e-9)
    np.testing.assert_allclose(found.reference_loss, -np.log(p[np.arange(n), targets]), rtol=1e-9)
    assert found.mean_kl == pytest.approx((p * np.log(p / q)).sum(axis=1).mean())
    assert found.perplexity == pytest.approx(math.exp(-np.log(q[np.arange(n), targets]).sum() / n))
    assert found.perplexity_ratio == pytest.approx(
        math.exp((found.loss.sum() - found.reference_loss.sum()) / n)
    )


def test_kl_is_the_references_not_the_others() -> None:
    a, b = logits(1, 50), logits(2, 50, scale=0.5)
    assert measured(a, b).mean_kl != pytest.approx(measured(b, a).mean_kl, rel=0.1)


def test_equal_logits_and_a_common_shift_are_no_divergence() -> None:
    a = logits(1, 20)
    assert measured(a, a).mean_kl == 0
    assert measured(a, a + np.float32(4)).mean_kl == pytest.approx(0, abs=1e-10)
    assert measured(a, a).top1 == 1
    assert measured(a, a).perplexity_ratio == 1


def test_kl_is_never_negative() -> None:
    a = logits(1, 1000)
    nudged = a + np.float32(1e-7) * logits(3, 1000)
    assert (measured(a, nudged).kl >= 0).all()


def test_small_divergences_are_not_lost_in_rounding() -> None:
    # KL of logits that differ by d is about Var_p(d) / 2.
    a, d = logits(1, 200).astype(np.float64), logits(2, 200) * 1e-4
    p = probabilities(a)
    variance = (p * d**2).sum(1) - (p * d).sum(1) ** 2
    found = divergence(torch.from_numpy(a), torch.from_numpy(a + d), torch.zeros(200).long())
    assert found.mean_kl == pytest.approx(variance.mean() / 2, rel=1e-2)


def test_parts_joined_are_the_whole() -> None:
    a, b = logits(1, 300), logits(2, 300)
    targets = torch.randint(0, V, (300,), generator=torch.Generator().manual_seed(1))
    ta, tb = torch.from_numpy(a), torch.from_numpy(b)
    whole = divergence(ta, tb, targets)
    cuts = [slice(0, 7), slice(7, 200), slice(200, 300)]
    parts = joined([divergence(ta[cut], tb[cut], targets[cut]) for cut in cuts])
    for field in ("kl", "same_top", "max_logit_difference", "reference_loss", "loss"):
        np.testing.assert_array_equal(getattr(parts, field), getattr(whole, field))


def of_kl(*kl: float) -> Divergence:
    zeros = np.zeros(len(kl))
    return Divergence(np.array(kl), zeros == 0, zeros, zeros, zeros, zeros)


def test_the_top_thousandth_is_exceeded_by_one_in_a_thousand() -> None:
    values = np.random.default_rng(0).permutation(np.arange(10001.0))
    assert of_kl(*values).p999_kl == 9990
    assert (values > of_kl(*values).p999_kl).sum() == 10


def test_median_and_maximum_are_of_all_positions() -> None:
    assert of_kl(5, 1, 9, 2, 3).median_kl == 3
    assert of_kl(5, 1, 9, 2, 3).max_kl == 9


# 4.302653: the t distribution's 97.5 % quantile, two degrees of freedom.
def test_the_interval_is_the_means_over_windows() -> None:
    parts = [of_kl(1, 3), of_kl(2, 4), of_kl(6, 6)]  # means 2, 3, 6
    half = 4.302653 * math.sqrt(((2 - 11 / 3) ** 2 + (3 - 11 / 3) ** 2 + (6 - 11 / 3) ** 2) / 2 / 3)
    interval = mean_interval(parts)
    assert interval is not None
    assert interval == pytest.approx((11 / 3 - half, 11 / 3 + half))
    assert sum(interval) / 2 == pytest.approx(joined(parts).mean_kl)


def test_one_window_has_no_interval() -> None:
    assert mean_interval([of_kl(1, 2, 3)]) is None


@pytest.mark.parametrize("n", [3, 10, 40])
def test_the_interval_holds_the_true_mean_about_19_times_in_20(n: int) -> None:
    generator = np.random.default_rng(4)
    inside = 0
    for _ in range(400):
        interval = mean_interval([of_kl(*generator.exponential(size=64)) for _ in range(n)])
        assert interval is not None
        inside += interval[0] <= 1 <= interval[1]
    assert 0.90 < inside / 400 < 0.98


def test_the_ratio_is_of_sums_and_its_interval_of_pairs() -> None:
    ours, theirs = [of_kl(1, 1), of_kl(3, 3), of_kl(6)], [of_kl(2, 2), of_kl(4, 4), of_kl(8)]
    assert kl_ratio(ours, theirs) == pytest.approx(14 / 20)
    # Cochran: the variance of R is sum of (y - R x)^2 / (n - 1) times n, by the square of sum x.
    residuals = [2 - 0.7 * 4, 6 - 0.7 * 8, 6 - 0.7 * 8]
    half = 4.302653 * math.sqrt(3 / 2 * sum(residual**2 for residual in residuals)) / 20
    assert kl_ratio_interval(ours, theirs) == pytest.approx((0.7 - half, 0.7 + half))


def test_what_both_have_in_common_does_not_widen_the_ratios_interval() -> None:
    theirs = [of_kl(size) for size in (1.0, 100.0, 3.0, 50.0)]
    half = [of_kl(float(part.kl[0]) / 2) for part in theirs]
    assert kl_ratio_interval(half, theirs) == pytest.approx((0.5, 0.5))
    lone = mean_interval(half)
    assert lone is not None
    assert lone[0] < 0 < lone[1]


def test_there_is_no_ratio_to_nothing_and_no_interval_of_one_pair() -> None:
    assert kl_ratio([of_kl(1)], [of_kl(0)]) is None
    assert kl_ratio_interval([of_kl(1), of_kl(1)], [of_kl(0), of_kl(0)]) is None
    assert kl_ratio([of_kl(1)], [of_kl(2)]) == 0.5
    assert kl_ratio_interval([of_kl(1)], [of_kl(2)]) is None


def test_the_ratios_interval_holds_the_true_ratio_about_19_times_in_20() -> None:
    generator = np.random.default_rng(5)
    inside = 0
    for _ in range(400):
        hardness = generator.exponential(size=40)  # of a text, for both models
        theirs = [of_kl(*generator.exponential(scale, size=8)) for scale in hardness]
        ours = [of_kl(*generator.exponential(0.3 * scale, size=8)) for scale in hardness]
        interval = kl_ratio_interval(ours, theirs)
        assert interval is not None
        inside += interval[0] <= 0.3 <= interval[1]
    assert 0.90 < inside / 400 < 0.98


def test_a_loss_past_all_numbers_is_infinite_perplexity() -> None:
    zeros = np.zeros(1)
    broken = Divergence(zeros, zeros == 0, zeros, zeros, zeros, np.array([2000.0]))
    assert broken.perplexity == broken.perplexity_ratio == math.inf


def test_a_token_that_both_never_say_does_not_count() -> None:
    reference = torch.tensor([[1.0, 2.0, -10_000.0]])
    other = torch.tensor([[1.0, 2.25, -9_000.0]])
    found = divergence(reference, other, torch.tensor([0]))
    assert found.max_logit_difference.tolist() == [0.25]
    raised = divergence(reference, torch.tensor([[1.0, 2.25, -20.0]]), torch.tensor([0]))
    assert raised.max_logit_difference.tolist() == [9_980.0]
