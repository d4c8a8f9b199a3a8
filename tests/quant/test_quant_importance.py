"""Importances that ggml cannot compute with: it would erase the weights that they are of."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from ggml_c import c_quantize
from numpy.typing import NDArray

from llmkit.quant import dequantize, has_importance, quant_type, quantize

Floats = NDArray[np.float32]
WIDTH = 512
BLOCKS = ("q4_0", "q5_1", "iq4_nl", "q2_k", "q4_k", "q6_k")  # a search of each kind


def part(fill: float, rest: float = 1.0, columns: slice = slice(WIDTH // 2, None)) -> Floats:
    importance = np.full(WIDTH, rest, np.float32)
    importance[columns] = fill
    return importance


HARMFUL: dict[str, Callable[[], Floats]] = {
    "all zero": lambda: part(0, 0),
    "half zero": lambda: part(0),
    "within a block": lambda: part(0, columns=slice(10, 27)),
    "all but one zero": lambda: part(1, 0, slice(100, 101)),
    "a block underflows": lambda: part(1e-42),
    "all underflow": lambda: part(1e-42, 1e-42),
    "small beside the largest": lambda: part(1e-25),
    "one huge": lambda: part(3e38, 1, slice(0, 1)),
    "all huge": lambda: part(1e38, 2e38),
    "all small": lambda: part(1e-36, 2e-36),
}


@pytest.mark.parametrize("kind", HARMFUL)
@pytest.mark.parametrize("name", BLOCKS)
def test_no_importance_erases_weights(name: str, kind: str) -> None:
    weights = np.random.default_rng(0).standard_normal((4, WIDTH), np.float32) / 50
    qtype = quant_type(name)

    def error(importance: Floats) -> float:
        blocks = quantize(weights, qtype, "w", importance)
        return float(np.square(dequantize(blocks, qtype, weights.shape) - weights).mean())

    # Equal importances are the measure: uneven ones trade some columns for others.
    assert error(HARMFUL[kind]()) <= 1.5 * error(np.ones(WIDTH, np.float32))


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("scale", [1e-4, 1, 1e4])
def test_importances_of_usual_sizes_are_ggmls(name: str, scale: float) -> None:
    generator = np.random.default_rng(1)
    weights = generator.standard_normal((4, WIDTH), np.float32)
    importance = (scale * np.exp(generator.uniform(-9, 9, WIDTH))).astype(np.float32)
    assert has_importance(importance).all()
    qtype = quant_type(name)
    expected = c_quantize(weights, qtype.ggml_type, qtype.row_bytes(WIDTH), importance)
    np.testing.assert_array_equal(quantize(weights, qtype, "w", importance), expected)


def test_which_columns_count() -> None:
    importance = np.array([0, 1e-42, 1, 2, 1e-20], np.float32)
    assert has_importance(importance).tolist() == [False, False, True, True, False]
    assert has_importance(importance[:2]).tolist() == [False, False]
    assert has_importance(np.float32([1e-30, 2e-30])).all()
