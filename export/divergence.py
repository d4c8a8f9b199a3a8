"""How far one model's predictions are from another's, position by position."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

ROWS_AT_ONCE = 128  # float64 rows of a 50k vocabulary: 50 MB


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
            _finite(divergence.kl.max()),
            _finite(divergence.max_logit_difference.max()),
            _finite(np.sqrt(divergence.mean_square_logit_difference.mean())),
            divergence.top1,
        )

    def in_units_of(self, noise: Distance) -> float:
        """The largest of four ratios: mean and 99.9 % KL, largest and RMS difference."""
        return max(
            _ratio(self.mean_kl, noise.mean_kl),
            _ratio(self.p999_kl, noise.p999_kl),
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

    Positions of one sequence depend on each other, sequences hardly do: the variance is that of
    a ratio of sums over sequences (Cochran, Sampling Techniques, 3rd ed., section 6.4). None for
    a single sequence.
    """
    n = len(parts)
    if n < 2:
        return None
    sums = np.array([part.kl.sum() for part in parts])
    lengths = np.array([len(part.kl) for part in parts])
    mean = sums.sum() / lengths.sum()
    spread = np.square(sums - mean * lengths).sum() * n / (n - 1)
    half = 1.96 * math.sqrt(spread) / lengths.sum()
    return float(mean - half), float(mean + half)


def _exp(nats: float) -> float:
    return math.exp(nats) if nats < math.log(sys.float_info.max) else math.inf


def _divergence(reference: Tensor, other: Tensor, targets: Tensor) -> Divergence:
    log_p = reference.double().log_softmax(dim=-1)  # (T, V)
    log_q = other.double().log_softmax(dim=-1)
    kl = (log_p.exp() * (log_p - log_q)).sum(dim=-1).clamp(min=0)
    at_target = targets[:, None]
    difference = reference.double() - other.double()
    return Divergence(
        kl=kl.numpy(),
        same_top=(log_p.argmax(-1) == log_q.argmax(-1)).numpy(),
        max_logit_difference=difference.abs().amax(-1).numpy(),
        mean_square_logit_difference=difference.square().mean(-1).numpy(),
        reference_loss=-log_p.gather(1, at_target)[:, 0].numpy(),
        loss=-log_q.gather(1, at_target)[:, 0].numpy(),
    )


def _ratio(value: float, noise: float) -> float:
    """0 of 0 is 0: two computations that are equal to the last bit."""
    if value == 0:
        return 0.0
    return value / noise if noise > 0 else math.inf


def _finite(number: float) -> float:
    """JSON has neither infinity nor NaN."""
    return float(number) if math.isfinite(number) else sys.float_info.max
