from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from llmkit.quant import QuantType, dequantize, quant_names, quant_type, quantize
from llmkit.quant.q8_0 import _round_half_away

# The types whose numbers we know the place of; what ggml's search makes of the others is its own.
NAMES = [n for n in quant_names() if quant_type(n).layout or quant_type(n).block_size == 1]
pytestmark = pytest.mark.slow
F16_HALF_STEP = 2.0**-25  # half the distance of f16 numbers next to 0
LARGEST = {
    "f32": 3e38,
    "f16": 65504.0,
    "bf16": 3e38,
    "q8_0": 8e6,
    "q4_0": 5e5,
    "q5_0": 1e6,
}
# Of types that ggml packs by searching: the largest error in units of the block's extreme, and
# the largest factor of the stored f16 scale, which may have rounded to 0.
SEARCHED = {
    "q4_k": (0.2, 63 * 15),
    "q5_k": (0.1, 63 * 31),
    "q6_k": (0.07, 128 * 32),
    "iq4_nl": (0.2, 127),
}

Rows = NDArray[np.float32]


def rows_of(qtype: QuantType) -> st.SearchStrategy[Rows]:
    """Rows of one or two blocks: any floats, normal ones at any one scale, or all the same."""
    largest = LARGEST.get(qtype.name, 65504.0)
    limit = float(np.float32(largest))
    size = max(32, qtype.block_size)
    floats = st.floats(-limit, limit, width=32)
    shape = st.tuples(st.integers(1, 3), st.sampled_from([size, 2 * size]))
    any_floats = arrays(np.float32, shape, elements=floats)
    exponent = st.integers(-140, int(np.log2(largest)) - 3)
    normal = st.builds(partial(_normal_rows, 2 * size), st.integers(0, 2**32), exponent)
    equal = st.builds(np.full, shape, floats, st.just(np.float32))
    return any_floats | normal | equal


def _normal_rows(row_length: int, seed: int, exponent: int) -> Rows:
    normal = np.random.default_rng(seed).standard_normal((4, row_length)).clip(-8, 8)
    return np.asarray(np.ldexp(normal, exponent), dtype=np.float32)


def by_block(rows: Rows, size: int, what: Callable[..., Any]) -> NDArray[np.float64]:
    """`what`, such as np.max, of each weight's block, in the shape of the rows."""
    blocks = rows.astype(np.float64).reshape(-1, size)
    return np.repeat(what(blocks, axis=1), size).reshape(rows.shape)


def f16_error(value: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.maximum(np.abs(value) * 2.0**-11, F16_HALF_STEP)


def error_bound(qtype: QuantType, rows: Rows) -> NDArray[np.float64]:
    name, weights = qtype.name, np.abs(rows.astype(np.float64))
    if name == "f32":
        return np.zeros_like(weights)
    if name == "f16":
        return f16_error(weights)
    if name == "bf16":
        return np.maximum(weights * 2.0**-8, 2.0**-134)
    extreme = by_block(np.abs(rows), qtype.block_size, np.max)
    if name in SEARCHED:
        share, factor = SEARCHED[name]
        return share * extreme + factor * F16_HALF_STEP
    if name in ("q4_1", "q5_1"):
        highest = {"q4_1": 15, "q5_1": 31}[name]
        lowest = by_block(rows, 32, np.min)
        scale = (by_block(rows, 32, np.max) - lowest) / highest
        float32_error = 1e-6 * extreme
        return 0.5 * scale + highest * f16_error(scale) + f16_error(lowest) + float32_error
    # Half a step, or a whole one for the code above the highest cut to it; and the rounding of
    # the scale.
    largest_code, steps = {"q8_0": (127, 0.5), "q4_0": (8, 1.0), "q5_0": (16, 1.0)}[name]
    scale = extreme / largest_code
    return steps * scale * (1 + 1e-5) + largest_code * f16_error(scale)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
def test_round_trip_error_is_within_the_bound_of_the_format(name: str, data: st.DataObject) -> None:
    qtype = quant_type(name)
    rows = data.draw(rows_of(qtype))
    restored = dequantize(quantize(rows, qtype, "w"), qtype).astype(np.float64)
    assert (np.abs(restored - rows) <= error_bound(qtype, rows)).all()


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=50, deadline=None, derandomize=True)
@given(data=st.data())
def test_equal_weights_of_a_block_stay_equal(name: str, data: st.DataObject) -> None:
    qtype = quant_type(name)
    limit = float(np.float32(LARGEST.get(name, 65504.0)))
    weight = data.draw(st.floats(-limit, limit, width=32))
    rows = np.full((2, 256), weight, dtype=np.float32)
    restored = dequantize(quantize(rows, qtype, "w"), qtype)
    assert len(np.unique(restored)) == 1


# A block with a minimum is left out: where that is far larger than the scale, float32 rounds the
# difference of two weights to another scale.
@pytest.mark.parametrize("name", ["f32", "f16", "bf16", "q8_0", "q5_0", "q4_0"])
@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
def test_packing_representable_weights_again_changes_nothing(
    name: str, data: st.DataObject
) -> None:
    qtype = quant_type(name)
    packed = quantize(data.draw(rows_of(qtype)), qtype, "w")
    weights = dequantize(packed, qtype)
    again = quantize(weights, qtype, "w")
    np.testing.assert_array_equal(dequantize(again, qtype), weights)
    if qtype.block_size > 1:  # a scale of 0 leaves the codes of the second packing open
        packed, again = (p.reshape(-1, qtype.block_bytes) for p in (packed, again))
        has_scale = packed[:, :2].copy().view("<f2")[:, 0] != 0
        packed, again = packed[has_scale], again[has_scale]
    np.testing.assert_array_equal(again, packed)


@pytest.mark.parametrize("name", [n for n in NAMES if quant_type(n).block_size > 1])
@settings(max_examples=50, deadline=None, derandomize=True)
@given(data=st.data())
def test_each_block_is_packed_by_itself(name: str, data: st.DataObject) -> None:
    qtype = quant_type(name)
    rows = data.draw(rows_of(qtype))
    alone = quantize(rows.reshape(-1, qtype.block_size), qtype, "w").reshape(len(rows), -1)
    np.testing.assert_array_equal(quantize(rows, qtype, "w"), alone)


@pytest.mark.parametrize("name", ["q8_0", "q5_1", "q5_0", "q4_1", "q4_0"])
@settings(max_examples=100, deadline=None, derandomize=True)
@given(data=st.data())
def test_our_rounding_is_ggmls_for_any_weights(name: str, data: st.DataObject) -> None:
    qtype = quant_type(name)
    rows = data.draw(rows_of(qtype))
    assert qtype.round is not None
    np.testing.assert_array_equal(qtype.round(rows), quantize(rows, qtype, "w"))


def test_rounding_is_half_away_from_zero_next_to_every_half() -> None:
    halves = np.arange(-254, 255, dtype=np.float32) / 2
    values = [halves]
    for direction in (-np.inf, np.inf):
        nearby = halves
        for _ in range(3):
            nearby = np.nextafter(nearby, np.float32(direction))
            values.append(nearby)
    values.append(np.random.default_rng(5).uniform(-127, 127, 100_000).astype(np.float32))
    floats = np.concatenate(values).astype(np.float32)
    expected = np.sign(floats) * np.floor(np.abs(floats.astype(np.float64)) + 0.5)
    np.testing.assert_array_equal(_round_half_away(floats), expected)
