"""Which windows of the training tokens a step reads: a function of the seed and the step.

In each epoch every window is read once, in an order of its own. The order is a permutation that
is computed, not stored, so it takes no memory and a resumed run needs no state.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

ROUNDS = 4  # of the Feistel network; four make a good shuffle of any size


def window_starts(n_tokens: int, length: int, seed: int, first: int, n: int) -> NDArray[np.int64]:
    """Where windows `first` to `first + n - 1` of the run begin; each has `length` + 1 tokens.

    The windows of an epoch lie side by side. Each epoch moves all of them by a random offset
    below `length`, so that a token is not always the first of its window.
    """
    n_windows = max((n_tokens - length) // length, 1)
    room = min(length, n_tokens - n_windows * length)  # for the offset
    places = np.arange(first, first + n)
    starts = np.empty(n, np.int64)
    for epoch in np.unique(places // n_windows):
        now = places // n_windows == epoch
        *keys, offset = np.random.SeedSequence((seed, int(epoch))).generate_state(
            ROUNDS + 1, np.uint64
        )
        chosen = permuted(places[now] % n_windows, n_windows, keys)
        starts[now] = chosen * length + int(offset) % room
    return starts


def permuted(places: NDArray[np.int64], n: int, keys: list[np.uint64]) -> NDArray[np.int64]:
    """Where a permutation of 0 to n - 1 sends each place.

    A Feistel network permutes the numbers of twice `half` bits; what lands at n or above is sent
    on until it lands below (Black and Rogaway 2002, "Ciphers with arbitrary finite domains").
    """
    half = np.uint64(max((n - 1).bit_length() + 1, 2) // 2)
    mask = np.uint64((1 << int(half)) - 1)
    x = places.astype(np.uint64)
    outside = np.ones(len(x), bool)
    while outside.any():
        left, right = x[outside] >> half, x[outside] & mask
        for key in keys:
            left, right = right, left ^ (_mixed(right ^ key) & mask)
        x[outside] = left << half | right
        outside = x >= n
    return x.astype(np.int64)


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Splitmix64's finalizer: every bit of the result depends on every bit of x."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
