from __future__ import annotations

import numpy as np
import pytest
from ggml_c import c_dequantize, c_quantize
from numpy.typing import NDArray
from weight_cases import ROW_LENGTH, importance_for, weight_cases

from llmkit.errors import QuantizationError
from llmkit.quant import QuantType, dequantize, quant_names, quant_type, quantize

CASES = weight_cases()
ROUNDED = [name for name in quant_names() if quant_type(name).round]
LAID_OUT = [name for name in quant_names() if quant_type(name).layout]
SLOW = ["iq1_m", "iq1_s", "iq2_s", "iq2_xs", "iq2_xxs", "iq3_s", "iq3_xxs"]
# The upper bytes of a block's f16 numbers (ggml-common.h).
HALVES = {
    **dict.fromkeys(("q8_0", "q4_0", "q5_0", "iq4_nl"), (1,)),
    **dict.fromkeys(("q4_1", "q5_1", "q4_k", "q5_k"), (1, 3)),
    "q6_k": (209,),
}


def assert_bits_equal(ours: NDArray[np.generic], theirs: NDArray[np.generic]) -> None:
    np.testing.assert_array_equal(ours.view(np.uint8), theirs.view(np.uint8))


def assert_packs_like_c(rows: NDArray[np.float32], qtype: QuantType) -> None:
    assert qtype.round is not None
    with np.errstate(all="raise"):  # and without any NumPy warning
        ours = qtype.round(rows)
    assert_bits_equal(ours, c_quantize(rows, qtype.ggml_type, qtype.row_bytes(rows.shape[1])))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ROUNDED)
def test_rounding_is_bit_equal_to_c(name: str, case: str) -> None:
    assert_packs_like_c(CASES[case], quant_type(name))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", [*ROUNDED, *(n for n in LAID_OUT if n not in ROUNDED)])
def test_dequantized_weights_are_bit_equal_to_c(name: str, case: str) -> None:
    qtype = quant_type(name)
    row_bytes = qtype.row_bytes(ROW_LENGTH)
    packed = c_quantize(CASES[case], qtype.ggml_type, row_bytes, importance_for(name))
    with np.errstate(all="raise"):
        ours = qtype.dequantize(packed)
    assert_bits_equal(ours, c_dequantize(packed, qtype.ggml_type, ROW_LENGTH))


@pytest.mark.parametrize("name", [name for name in quant_names() if name not in SLOW])
def test_pack_in_chunks_and_threads_is_bit_equal_to_c(name: str) -> None:
    assert_chunks_are_bit_equal_to_c(name, 1237)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_what_takes_ggml_seconds_is_bit_equal_to_c(name: str) -> None:
    assert_chunks_are_bit_equal_to_c(name, 520)


def assert_chunks_are_bit_equal_to_c(name: str, n_rows: int) -> None:
    qtype = quant_type(name)
    generator = np.random.default_rng(3)
    rows = generator.standard_normal((n_rows, 768), dtype=np.float32)
    needed = importance_for(name, 768)
    packed = quantize(rows, qtype, "w", needed)
    assert_bits_equal(packed, c_quantize(rows, qtype.ggml_type, qtype.row_bytes(768), needed))
    importance = generator.uniform(0.1, 5, 768).astype(np.float32)
    weighed = c_quantize(rows, qtype.ggml_type, qtype.row_bytes(768), importance)
    assert_bits_equal(quantize(rows, qtype, "w", importance), weighed)
    assert_bits_equal(dequantize(packed, qtype), c_dequantize(packed, qtype.ggml_type, 768))


def test_f16_is_bit_equal_to_c_around_every_f16() -> None:
    exact = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    midpoints = (exact[:-1] + exact[1:]) / 2
    values = np.concatenate([exact, midpoints, [np.float32(65519.996)]])
    values = np.concatenate([values, np.nextafter(values[:-1], np.float32(np.inf))])
    values = np.concatenate([values, np.nextafter(values[1:], np.float32(0))])
    assert_packs_like_c(np.stack([values, -values]), quant_type("f16"))


def test_bf16_is_bit_equal_to_c_around_every_bf16() -> None:
    upper = np.arange(0x7F80, dtype=np.uint32)[:, np.newaxis] << np.uint32(16)
    lower = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], dtype=np.uint32)
    values = (upper | lower).ravel()[:-3].view(np.float32)  # the last three round to infinity
    assert_packs_like_c(np.stack([values, -values]), quant_type("bf16"))


def test_f16_unpacks_every_bit_pattern_like_c() -> None:
    patterns = np.arange(2**16, dtype="<u2")
    finite = patterns[(patterns & 0x7C00) != 0x7C00].view(np.uint8)[np.newaxis]
    qtype = quant_type("f16")
    n_values = finite.shape[1] // 2
    assert_bits_equal(qtype.dequantize(finite), c_dequantize(finite, qtype.ggml_type, n_values))


def any_blocks(qtype: QuantType) -> NDArray[np.uint8]:
    blocks = np.random.default_rng(11).integers(0, 256, (4096, qtype.block_bytes), dtype=np.uint8)
    blocks[:, HALVES[qtype.name]] &= 0xBF  # exponents below that of infinity and NaN
    return blocks


@pytest.mark.parametrize("name", LAID_OUT)
def test_blocks_of_any_bytes_and_finite_scales_are_read_like_c(name: str) -> None:
    qtype = quant_type(name)
    blocks = any_blocks(qtype)
    theirs = c_dequantize(blocks, qtype.ggml_type, qtype.block_size)
    assert_bits_equal(qtype.dequantize(blocks), theirs)


@pytest.mark.parametrize("name", LAID_OUT)
def test_numbers_taken_out_of_any_bytes_are_put_back(name: str) -> None:
    qtype = quant_type(name)
    assert qtype.layout is not None
    blocks = any_blocks(qtype)
    for rows in (blocks, blocks.reshape(512, -1)):
        assert_bits_equal(qtype.layout.pack(qtype.layout.unpack(rows)), rows)


@pytest.mark.parametrize("name", LAID_OUT)
def test_the_numbers_have_the_stated_shapes_and_ranges(name: str) -> None:
    qtype = quant_type(name)
    layout = qtype.layout
    assert layout is not None
    fields = layout.unpack(any_blocks(qtype).reshape(512, -1))
    assert fields.quants.shape == (512, 8, qtype.block_size)
    assert fields.scale.shape == (512, 8)
    assert (fields.quants.dtype, fields.scale.dtype) == (np.int8, np.float16)
    read_only = {-128} if name == "q8_0" else set()
    assert set(np.unique(fields.quants).tolist()) - read_only == set(layout.levels)
    assert list(layout.levels) == sorted(layout.levels)
    if layout.sub_block_size is None:
        assert (fields.sub_scales, fields.sub_minima) == (None, None)
        return
    for sub in (fields.sub_scales, fields.sub_minima):
        if sub is not None:
            assert sub.dtype == np.int8
            assert sub.shape == (512, 8, qtype.block_size // layout.sub_block_size)
            assert (sub.min(), sub.max()) == layout.sub_scale_range


def test_without_the_library_rounding_gives_the_same_bytes_and_searching_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = CASES["trained_like"]
    expected = {name: quantize(rows, quant_type(name), "w") for name in ROUNDED}
    monkeypatch.setattr("llmkit.quant.ggml._library", lambda: None)
    for name in quant_names():
        qtype = quant_type(name)
        if name in expected:
            assert_bits_equal(quantize(rows, qtype, "w"), expected[name])
        else:
            with pytest.raises(QuantizationError, match=f"quantizing to {name}.*llama-cpp-python"):
                quantize(rows, qtype, "w", importance_for(name))
            if qtype.layout is None:
                with pytest.raises(QuantizationError, match=f"reading {name}.*llama-cpp-python"):
                    dequantize(np.zeros((2, qtype.block_bytes), dtype=np.uint8), qtype)
    with pytest.raises(QuantizationError, match="llama-cpp-python"):
        quantize(rows, quant_type("q4_0"), "w", np.ones(ROW_LENGTH, dtype=np.float32))
