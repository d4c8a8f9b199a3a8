"""Types of the matrices under a budget of bytes: those of the least predicted KL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from llmkit.errors import ConfigError

_STEPS = 1 << 14  # into which the bytes that can be given out are cut


@dataclass(frozen=True)
class Option:
    """A type that a matrix may have."""

    type: str
    n_bytes: int
    kl: float  # predicted, of this matrix alone


def allocate(options: Mapping[str, Sequence[Option]], budget: int) -> dict[str, Option]:
    """One option for each matrix, at most `budget` bytes together, the sum of KL the least.

    The multiple-choice knapsack, by dynamic programming over the bytes beyond the smallest
    options', counted in steps of which each option's are rounded up: a 16384th of the budget is
    lost for a matrix at most. Raises ConfigError where the smallest options are too large.
    """
    names = list(options)
    smallest = {name: min(option.n_bytes for option in options[name]) for name in names}
    room = budget - sum(smallest.values())
    if room < 0:
        raise ConfigError(
            f"the matrices need at least {sum(smallest.values()):,} bytes, but only "
            f"{budget:,} are left; choose a larger size"
        )
    step = max(1, -(-room // _STEPS))
    n_steps = room // step
    best = np.zeros(n_steps + 1)  # the least KL of the matrices so far, by steps at hand
    picks = []
    for name in names:
        costs = np.full((len(options[name]), n_steps + 1), np.inf)
        for number, option in enumerate(options[name]):
            taken = -(-(option.n_bytes - smallest[name]) // step)
            if taken <= n_steps:
                costs[number, taken:] = best[: n_steps + 1 - taken] + option.kl
        picks.append(costs.argmin(axis=0))
        best = costs.min(axis=0)
    chosen, left = {}, n_steps
    for name, pick in zip(reversed(names), reversed(picks), strict=True):
        option = options[name][int(pick[left])]
        left -= -(-(option.n_bytes - smallest[name]) // step)
        chosen[name] = option
    return {name: chosen[name] for name in names}
