"""Named float32 arrays that between them reach every branch and rounding of the formats."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

ROW_LENGTH = 256


def _rows(values: NDArray[np.floating]) -> NDArray[np.float32]:
    """Fill rows with `values`, repeating them to complete the last row."""
    n_rows = -(-values.size // ROW_LENGTH)
    return np.resize(values.astype(np.float32), (n_rows, ROW_LENGTH))


def _signed_zeros(generator: np.random.Generator) -> NDArray[np.float32]:
    zeros = np.zeros((4, ROW_LENGTH), dtype=np.float32)
    zeros[1] = -0.0
    zeros[2] = np.where(generator.random(ROW_LENGTH) < 0.5, 0.0, -0.0)
    zeros[3, ::5] = 1.5
    return zeros


def _denormals(generator: np.random.Generator) -> NDArray[np.float32]:
    """Blocks whose largest bits run over every power of two up to the normal floats and past."""
    limit = np.repeat(np.uint64(1) << np.arange(1, 28, dtype=np.uint64), 64)
    bits = generator.integers(0, limit[:, np.newaxis], (limit.size, 32)).astype(np.uint32)
    bits |= generator.integers(0, 2, bits.shape).astype(np.uint32) << np.uint32(31)
    return bits.view(np.float32).reshape(-1, ROW_LENGTH)


def _reciprocal_edge() -> NDArray[np.float32]:
    """Extremes around the scale 2**-128, from which on 1 / scale is finite."""
    blocks = []
    for quotient in (8, 15, 16, 31, 127):
        start = int(np.float32(quotient * 2.0**-128).view(np.uint32))
        for bits in range(start - 40, start + 40):
            extreme = np.uint32(bits).view(np.float32)
            for sign in (1, -1):
                blocks.append(np.linspace(-0.9, 0.9, 32, dtype=np.float32) * extreme)
                blocks[-1][7] = sign * extreme
                blocks[-1][8] = 0.0
    return _rows(np.concatenate(blocks))


def _ties_after_scaling() -> NDArray[np.float32]:
    """Multiples of half a step, and their neighbours, in blocks whose scale is a power of two."""
    blocks = []
    for largest in (127.0, -127.0, 8.0, -8.0, 16.0, -16.0):
        halves = np.arange(-2 * abs(largest) + 1, 2 * abs(largest)) / 2
        for direction in (0.0, -np.inf, np.inf):
            values = halves.astype(np.float32)
            if direction:
                values = np.nextafter(values, np.float32(direction))
            values = values[np.abs(values) < abs(largest)]
            for part in np.array_split(values, -(-values.size // 31)):
                block = np.zeros(32, dtype=np.float32)
                block[0] = largest
                block[1 : 1 + part.size] = part
                blocks += [block, block * np.float32(2.0**-9), block * np.float32(2.0**9)]
    return _rows(np.concatenate(blocks))


def _ties_between_extremes(generator: np.random.Generator) -> NDArray[np.float32]:
    """The same for levels from a minimum up: blocks of 15 or 31 steps that begin anywhere."""
    blocks = []
    for highest in (15, 31):
        halves = generator.integers(0, 2 * highest + 1, (256, 32)) / 2
        halves[:, 5], halves[:, 9] = 0, highest
        minimum = generator.integers(-highest, 2, (256, 1)) * 0.5
        for step in (1.0, 2.0**-9, 2.0**9, 0.3):
            values = ((halves + minimum) * step).astype(np.float32)
            blocks += [values, np.nextafter(values, np.float32(np.inf))]
    return np.concatenate(blocks).reshape(-1, ROW_LENGTH)


def _tied_extremes(generator: np.random.Generator) -> NDArray[np.float32]:
    """Blocks with the largest magnitude several times, in both signs and any order."""
    blocks = generator.uniform(-1, 1, (512, 32)).astype(np.float32)
    for block in blocks:
        places = generator.choice(32, size=generator.integers(2, 6), replace=False)
        block[places] = generator.choice([-1.25, 1.25], size=places.size)
    return blocks.reshape(-1, ROW_LENGTH)


def _trained_like(generator: np.random.Generator) -> NDArray[np.float32]:
    """A low-rank part, a few outlier columns and noise: the look of a trained matrix."""
    low_rank = generator.standard_normal((512, 8)) @ generator.standard_normal((8, ROW_LENGTH))
    noise = generator.standard_normal((512, ROW_LENGTH))
    outlier = np.where(generator.random(ROW_LENGTH) < 0.02, 12.0, 1.0)
    return ((0.01 * low_rank + 0.02 * noise) * outlier).astype(np.float32)


def importance_for(name: str, row_length: int = ROW_LENGTH) -> NDArray[np.float32] | None:
    """Importances of columns for a type that cannot do without, none for the others."""
    if name not in ("iq2_xxs", "iq2_xs", "iq1_s"):
        return None
    return np.random.default_rng(23).uniform(0.1, 5, row_length).astype(np.float32)


def weight_cases() -> dict[str, NDArray[np.float32]]:
    generator = np.random.default_rng(7)
    normal = generator.standard_normal((512, ROW_LENGTH)).astype(np.float32)
    all_equal = np.repeat(generator.standard_normal(64), ROW_LENGTH)
    scales = np.exp2(generator.uniform(-40, 15, (512, 1))).astype(np.float32)
    return {
        "normal": normal,
        "uniform": generator.uniform(-0.1, 0.1, (512, ROW_LENGTH)).astype(np.float32),
        "heavy_tailed": np.clip(_rows(generator.standard_cauchy(2**17)), -6e4, 6e4),
        "signed_zeros": _signed_zeros(generator),
        "all_equal": _rows(all_equal),
        "grid": _rows(generator.integers(-8, 9, 2**14) / 16),
        "denormals": _denormals(generator),
        "reciprocal_edge": _reciprocal_edge(),
        "huge": np.clip(normal * np.float32(2e4), -65504, 65504),
        "tiny": normal * np.float32(1e-7),
        "any_scale": np.clip(normal * scales, -65504, 65504),
        "ties_after_scaling": _ties_after_scaling(),
        "ties_between_extremes": _ties_between_extremes(generator),
        "tied_extremes": _tied_extremes(generator),
        "trained_like": _trained_like(generator),
    }
