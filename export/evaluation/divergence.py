"""How far one model's predictions are from another's, position by position."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from llmkit.export.evaluation.student_t import t_of_95_percent

ROWS_AT_ONCE = 32  # float64 rows of a 50k vocabulary: 13 MB, which the heap keeps


@dataclass(frozen=True)
class Divergence:
    """One number per position (n,); KL and losses in nats."""

    kl: NDArray[np.float64]  # KL(reference || other)
    same_top: NDArray[np.bool_]
    max_logit_difference: NDArray[np.float64]
    mean_square_logit_difference: NDArray[np.float64]
    reference_loss: NDArray[np.float64]  # of the token that follows
    loss: NDArray[np.float64]

    @property
    def mean_kl(self) -> float:
        """Mean over positions."""
        return float(self.kl.mean())

    @property
    def median_kl(self) -> float:
        """The KL that half of the positions exceed."""
        return float(np.median(self.kl))

    @property
    def max_kl(self) -> float:
        """The largest KL."""
        return float(self.kl.max())

    @property
    def p999_kl(self) -> float:
        """The KL that one position in a thousand exceeds."""
        return float(np.quantile(self.kl, 0.999))

    @property
    def top1(self) -> float:
        """Share of positions where both find the same token most probable."""
        return float(self.same_top.mean())

    @property
    def perplexity(self) -> float:
        """Of the other model."""
        return _exp(self.loss.mean())

    @property
    def perplexity_ratio(self) -> float:
        """The other model's perplexity divided by the reference's."""
        return _exp(self.loss.mean() - self.reference_loss.mean())


@dataclass(frozen=True)
class Distance:
    """How far one model's logits are from another's. KL in nats."""

    mean_kl: float
    p999_kl: float
    max_kl: float
    max_difference: float  # of logits
    rms_difference: float
    top1: float  # share of positions with the same most probable token

    @staticmethod
    def of(divergence: Divergence) -> Distance:
        """Over all positions of a divergence."""
        return Distance(
            _finite(divergence.mean_kl),
            _finite(divergence.p999_kl),
            _finite(divergence.max_kl),
            _finite(divergence.max_logit_difference.max()),
            _finite(np.sqrt(divergence.mean_square_logit_difference.mean())),
            divergence.top1,
        )

    def in_units_of(self, noise: Distance, *, tail: bool = True) -> float:
        """The largest ratio of mean KL, largest and RMS difference, and with `tail` 99.9 % KL."""
        return max(
            _ratio(self.mean_kl, noise.mean_kl),
            _ratio(self.p999_kl, noise.p999_kl) if tail else 0.0,
            _ratio(self.max_difference, noise.max_difference),
            _ratio(self.rms_difference, noise.rms_difference),
        )


def larger(first: Divergence, second: Divergence) -> Divergence:
    """At each position the larger distance of two others from one reference."""
    return Divergence(
        np.maximum(first.kl, second.kl),
        first.same_top & second.same_top,
        np.maximum(first.max_logit_difference, second.max_logit_difference),
        np.maximum(first.mean_square_logit_difference, second.mean_square_logit_difference),
        first.reference_loss,
        np.maximum(first.loss, second.loss),
    )


def divergence(reference: Tensor, other: Tensor, targets: Tensor) -> Divergence:
    """Compare logits (T, V) with the reference's at each position; targets (T,) follow them."""
    starts = range(0, len(targets), ROWS_AT_ONCE)
    slices = [slice(start, start + ROWS_AT_ONCE) for start in starts]
    return joined([_divergence(reference[rows], other[rows], targets[rows]) for rows in slices])


def joined(parts: Sequence[Divergence]) -> Divergence:
    """One divergence over all positions of several."""
    return Divergence(
        kl=np.concatenate([part.kl for part in parts]),
        same_top=np.concatenate([part.same_top for part in parts]),
        max_logit_difference=np.concatenate([part.max_logit_difference for part in parts]),
        mean_square_logit_difference=np.concatenate(
            [part.mean_square_logit_difference for part in parts]
        ),
        reference_loss=np.concatenate([part.reference_loss for part in parts]),
        loss=np.concatenate([part.loss for part in parts]),
    )


def mean_interval(parts: Sequence[Divergence]) -> tuple[float, float] | None:
    """95 % confidence interval of the mean KL, from how much the sequences differ.

    Positions of one sequence depend on each other, sequences hardly do. None for one sequence.
    """
    sums = np.array([part.kl.sum() for part in parts])
    return ratio_interval(sums, np.array([len(part.kl) for part in parts]))


def kl_ratio(parts: Sequence[Divergence], others: Sequence[Divergence]) -> float | None:
    """Mean KL divided by that of another model on the same sequences; None where that is 0."""
    mean, other = joined(parts).mean_kl, joined(others).mean_kl
    return mean / other if other > 0 else None


def kl_ratio_interval(
    parts: Sequence[Divergence], others: Sequence[Divergence]
) -> tuple[float, float] | None:
    """95 % confidence interval of `kl_ratio`, the sequences paired.

    A sequence on which both models do badly says little about which is better, and adds little to
    this interval. None for one sequence, or where the ratio is none.
    """
    if kl_ratio(parts, others) is None:
        return None
    return ratio_interval(
        np.array([part.kl.sum() for part in parts]), np.array([part.kl.sum() for part in others])
    )


def ratio_interval(
    numerators: NDArray[np.float64], denominators: NDArray[Any]
) -> tuple[float, float] | None:
    """95 % confidence interval of a ratio of sums over independent pairs.

    The variance is that of the ratio estimator (Cochran, Sampling Techniques, 3rd ed., section
    6.4), the distribution Student's t with one degree of freedom less than pairs, as of the mean of
    normally distributed numbers. None for a single pair.
    """
    n = len(numerators)
    if n < 2:
        return None
    ratio = numerators.sum() / denominators.sum()
    spread = np.square(numerators - ratio * denominators).sum() * n / (n - 1)
    half = t_of_95_percent(n - 1) * math.sqrt(spread) / denominators.sum()
    return float(ratio - half), float(ratio + half)


def _exp(nats: float) -> float:
    return math.exp(nats) if nats < math.log(sys.float_info.max) else math.inf


def _divergence(reference: Tensor, other: Tensor, targets: Tensor) -> Divergence:
    log_p = reference.double().log_softmax(dim=-1)  # (T, V)
    log_q = other.double().log_softmax(dim=-1)
    kl = (log_p.exp() * (log_p - log_q)).sum(dim=-1).clamp(min=0)
    at_target = targets[:, None]
    # A token that both give less than e^-100 is never said. Imported models have some, with logits
    # of -10,000, whose rounding alone would be larger than all that counts.
    never = (log_p < _NEVER_SAID) & (log_q < _NEVER_SAID)
    difference = (reference.double() - other.double()).masked_fill(never, 0)
    return Divergence(
        kl=kl.numpy(),
        same_top=(log_p.argmax(-1) == log_q.argmax(-1)).numpy(),
        max_logit_difference=difference.abs().amax(-1).numpy(),
        mean_square_logit_difference=difference.square().mean(-1).numpy(),
        reference_loss=-log_p.gather(1, at_target)[:, 0].numpy(),
        loss=-log_q.gather(1, at_target)[:, 0].numpy(),
    )


_NEVER_SAID = -100.0  # log probability


def _ratio(value: float, noise: float) -> float:
    """0 of 0 is 0: two computations that are equal to the last bit."""
    if value == 0:
        return 0.0
    return value / noise if noise > 0 else math.inf


def _finite(number: float) -> float:
    """JSON has neither infinity nor NaN."""
    return float(number) if math.isfinite(number) else sys.float_info.max
