from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ggml_c import needs_importance
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from weight_cases import importance_for

from llmkit.errors import QuantizationError
from llmkit.quant import dequantize, quant_names, quant_type, quantize

# The smallest magnitude each format refuses: it, or its block's scale, would become infinity.
SMALLEST_REFUSED = {
    "f16": np.float32(65520),
    "bf16": np.uint32(0x7F7F8000).view(np.float32),
    "q8_0": np.float32(65520 * 127),
    "q4_0": np.float32(65520 * 8),
    "q5_0": np.float32(65520 * 16),
    # Stored themselves, where they are the minimum.
    "q4_1": np.float32(65520),
    "q5_1": np.float32(65520),
    # ggml's search chooses the scale: what it does with more than f16 holds is not relied on.
    "q4_k": np.float32(65520),
    "q5_k": np.float32(65520),
    "q6_k": np.float32(65520),
    "iq4_nl": np.float32(65520),
    "q2_k": np.float32(65520),
    "tq1_0": np.float32(65520),
}


def packed_of(weights: NDArray[Any], name: str, tensor_name: str = "w") -> NDArray[np.uint8]:
    importance = importance_for(name, weights.shape[-1])
    return quantize(weights, quant_type(name), tensor_name, importance)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    name=st.sampled_from(quant_names()),
    row=st.integers(0, 4),
    column=st.integers(0, 63),
    bad=st.sampled_from([np.nan, -np.nan, np.inf, -np.inf]),
)
def test_nan_and_infinity_are_refused_by_tensor_row_and_column(
    name: str, row: int, column: int, bad: float
) -> None:
    weights = np.ones((5, 256), dtype=np.float32)
    weights[row, column] = bad
    place = rf"^blk\.0\.attn_q\.weight: row {row}, column {column} .*(nan|inf)"
    with pytest.raises(QuantizationError, match=place):
        packed_of(weights, name, "blk.0.attn_q.weight")


def test_nan_is_found_beside_infinity_and_beside_a_value_too_large() -> None:
    weights = np.ones((1, 256), dtype=np.float32)
    weights[0, :3] = [1e30, np.inf, np.nan]
    for name in quant_names():
        with pytest.raises(QuantizationError, match=r"column 1 .*inf"):
            packed_of(weights, name)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", SMALLEST_REFUSED)
def test_values_that_would_become_infinity_are_refused(name: str, sign: int) -> None:
    weights = np.ones((3, 256), dtype=np.float32)
    weights[2, 40] = sign * SMALLEST_REFUSED[name]
    with pytest.raises(QuantizationError, match=rf"^w: row 2, column 40 .*{name}"):
        packed_of(weights, name)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", SMALLEST_REFUSED)
def test_the_value_below_the_smallest_refused_is_packed_as_finite(name: str, sign: int) -> None:
    qtype = quant_type(name)
    weights = np.ones((3, 256), dtype=np.float32)
    weights[2, 40] = sign * np.nextafter(SMALLEST_REFUSED[name], np.float32(0))
    assert np.isfinite(dequantize(quantize(weights, qtype, "w"), qtype)).all()


def test_f32_holds_the_largest_float() -> None:
    weights = np.full((1, 4), np.finfo(np.float32).max)
    qtype = quant_type("f32")
    np.testing.assert_array_equal(dequantize(quantize(weights, qtype, "w"), qtype), weights)


def test_float64_beyond_float32_is_refused_with_its_value() -> None:
    weights = np.ones((2, 256))
    weights[1, 3] = 1e300
    for name in quant_names():
        with pytest.raises(QuantizationError, match=r"^w: row 1, column 3 .*1e\+300"):
            packed_of(weights, name)


def test_of_bad_rows_in_several_chunks_the_first_is_named() -> None:
    weights = np.ones((3000, 1024), dtype=np.float32)
    weights[1500, 7] = np.inf
    weights[2999, 8] = np.nan
    for name in ("f32", "q8_0", "q4_k"):
        with pytest.raises(QuantizationError, match=r"row 1500, column 7 .*inf"):
            packed_of(weights, name)


@pytest.mark.parametrize("name", [n for n in quant_names() if quant_type(n).block_size > 1])
def test_rows_that_are_not_whole_blocks_are_refused(name: str) -> None:
    weights = np.ones((2, 100), dtype=np.float32)
    size = quant_type(name).block_size
    with pytest.raises(QuantizationError, match=rf"^w: {name} .*\b{size}\b.*\b100\b"):
        packed_of(weights, name)


@pytest.mark.parametrize(
    "weights", [np.ones((2, 32), dtype=np.int64), np.float32(1.0).reshape(()), np.ones((2, 0))]
)
def test_what_is_not_rows_of_floats_is_refused(weights: np.ndarray) -> None:
    with pytest.raises(QuantizationError, match=r"^w: "):
        quantize(weights, quant_type("f32"), "w")


def test_bytes_that_are_not_the_rows_of_the_shape_are_refused() -> None:
    qtype = quant_type("q4_0")
    packed = np.zeros((2, 18), dtype=np.uint8)
    with pytest.raises(QuantizationError, match=r"3 rows of 32 .*q4_0.* 54 bytes.* 36 "):
        dequantize(packed, qtype, (3, 32))
    with pytest.raises(QuantizationError, match=r"q4_0.* 32 .* 31"):
        dequantize(packed, qtype, (2, 31))
    with pytest.raises(QuantizationError, match="36 of int8"):
        dequantize(packed.view(np.int8), qtype)
    with pytest.raises(QuantizationError, match="38 of uint8"):
        dequantize(np.zeros((2, 19), dtype=np.uint8), qtype)


def test_types_that_need_importances_are_those_of_ggml_and_refused_without() -> None:
    weights = np.ones((2, 256), dtype=np.float32)
    for name in quant_names():
        qtype = quant_type(name)
        assert qtype.needs_importance == needs_importance(qtype.ggml_type), name
        if qtype.needs_importance:  # ggml itself would end the program
            with pytest.raises(QuantizationError, match=rf"^w: {name} .*importance"):
                quantize(weights, qtype, "w")


@pytest.mark.parametrize(
    ("importance", "message"),
    [
        (np.ones(255, dtype=np.float32), r"^w: .*256 importances.*\(255,\)"),
        (np.ones((2, 256), dtype=np.float32), r"^w: .*256 importances.*\(2, 256\)"),
        (np.full(256, -1, dtype=np.float32), "^w: .*negative or not finite"),
        (np.full(256, np.nan, dtype=np.float32), "^w: .*negative or not finite"),
        (np.full(256, np.inf, dtype=np.float32), "^w: .*negative or not finite"),
    ],
)
def test_importances_that_are_none_are_refused(
    importance: NDArray[np.float32], message: str
) -> None:
    with pytest.raises(QuantizationError, match=message):
        quantize(np.ones((2, 256), dtype=np.float32), quant_type("q4_k"), "w", importance)
