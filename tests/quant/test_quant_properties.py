from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from llmkit.quant import quant_names, quant_type
from llmkit.quant.q8_0 import _round_half_away

F16_HALF_STEP = 2.0**-25  # half the distance of f16 numbers next to 0
LARGEST = {"f32": 3e38, "f16": 65504.0, "bf16": 3e38, "q8_0": 8e6, "q4_0": 5e5}

Rows = NDArray[np.float32]


def rows_up_to(largest: float) -> st.SearchStrategy[Rows]:
    """Rows of one or two blocks of 32: any floats, or normal ones at any one scale."""
    limit = float(np.float32(largest))
    any_floats = arrays(
        np.float32,
        st.tuples(st.integers(1, 3), st.sampled_from([32, 64])),
        elements=st.floats(-limit, limit, width=32),
    )
    exponent = st.integers(-140, int(np.log2(largest)) - 3)
    return any_floats | st.builds(_normal_rows, st.integers(0, 2**32), exponent)


def _normal_rows(seed: int, exponent: int) -> Rows:
    normal = np.random.default_rng(seed).standard_normal((4, 64)).clip(-8, 8)
    return np.asarray(np.ldexp(normal, exponent), dtype=np.float32)


def block_extremes(rows: Rows) -> NDArray[np.float64]:
    """The largest magnitude of each weight's block of 32, in the shape of the rows."""
    blocks = np.abs(rows.astype(np.float64)).reshape(-1, 32)
    return np.repeat(blocks.max(axis=1), 32).reshape(rows.shape)


def f16_error(value: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.maximum(np.abs(value) * 2.0**-11, F16_HALF_STEP)


def error_bound(name: str, rows: Rows) -> NDArray[np.float64]:
    weights = np.abs(rows.astype(np.float64))
    if name == "f32":
        return np.zeros_like(weights)
    if name == "f16":
        return f16_error(weights)
    if name == "bf16":
        return np.maximum(weights * 2.0**-8, 2.0**-134)
    # Half a step, or a whole one for the q4_0 code 16 cut to 15; and the rounding of the scale.
    largest_code, steps = {"q8_0": (127, 0.5), "q4_0": (8, 1.0)}[name]
    scale = block_extremes(rows) / largest_code
    return steps * scale * (1 + 1e-5) + largest_code * f16_error(scale)


@pytest.mark.parametrize("name", quant_names())
@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
def test_round_trip_error_is_within_the_bound_of_the_format(name: str, data: st.DataObject) -> None:
    qtype = quant_type(name)
    rows = data.draw(rows_up_to(LARGEST[name]))
    restored = qtype.unpack(qtype.pack(rows)).astype(np.float64)
    assert (np.abs(restored - rows) <= error_bound(name, rows)).all()


@pytest.mark.parametrize("name", quant_names())
@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
def test_packing_representable_weights_again_changes_nothing(
    name: str, data: st.DataObject
) -> None:
    qtype = quant_type(name)
    packed = qtype.pack(data.draw(rows_up_to(LARGEST[name])))
    weights = qtype.unpack(packed)
    again = qtype.pack(weights)
    np.testing.assert_array_equal(qtype.unpack(again), weights)
    if qtype.block_size > 1:  # a scale of 0 leaves the codes of the second packing open
        packed, again = (p.reshape(-1, qtype.block_bytes) for p in (packed, again))
        has_scale = packed[:, :2].copy().view("<f2")[:, 0] != 0
        packed, again = packed[has_scale], again[has_scale]
    np.testing.assert_array_equal(again, packed)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(data=st.data())
def test_each_block_is_packed_by_itself(data: st.DataObject) -> None:
    for name in ("q8_0", "q4_0"):
        qtype = quant_type(name)
        rows = data.draw(rows_up_to(LARGEST[name]))
        alone = qtype.pack(rows.reshape(-1, 32)).reshape(len(rows), -1)
        np.testing.assert_array_equal(qtype.pack(rows), alone)


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
