from __future__ import annotations

import numpy as np
import pytest
from ggml_c import c_dequantize, c_quantize
from numpy.typing import NDArray
from weight_cases import ROW_LENGTH, weight_cases

from llmkit.quant import QuantType, dequantize, quant_names, quant_type, quantize

CASES = weight_cases()


def assert_bits_equal(ours: NDArray[np.generic], theirs: NDArray[np.generic]) -> None:
    np.testing.assert_array_equal(ours.view(np.uint8), theirs.view(np.uint8))


def assert_packs_like_c(rows: NDArray[np.float32], qtype: QuantType) -> None:
    with np.errstate(all="raise"):  # and without any NumPy warning
        ours = qtype.pack(rows)
    assert_bits_equal(ours, c_quantize(rows, qtype.ggml_type, qtype.row_bytes(rows.shape[1])))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", quant_names())
def test_pack_is_bit_equal_to_c(name: str, case: str) -> None:
    assert_packs_like_c(CASES[case], quant_type(name))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", quant_names())
def test_unpack_is_bit_equal_to_c(name: str, case: str) -> None:
    qtype = quant_type(name)
    packed = c_quantize(CASES[case], qtype.ggml_type, qtype.row_bytes(ROW_LENGTH))
    with np.errstate(all="raise"):
        ours = qtype.unpack(packed)
    assert_bits_equal(ours, c_dequantize(packed, qtype.ggml_type, ROW_LENGTH))


@pytest.mark.parametrize("name", quant_names())
def test_pack_in_chunks_and_threads_is_bit_equal_to_c(name: str) -> None:
    qtype = quant_type(name)
    generator = np.random.default_rng(3)
    rows = generator.standard_normal((1237, 768), dtype=np.float32)
    packed = quantize(rows, qtype, "w")
    assert_bits_equal(packed, c_quantize(rows, qtype.ggml_type, qtype.row_bytes(768)))
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
    assert_bits_equal(qtype.unpack(finite), c_dequantize(finite, qtype.ggml_type, n_values))


@pytest.mark.parametrize("name", ["q8_0", "q4_0"])
def test_blocks_unpack_any_codes_and_finite_scale_like_c(name: str) -> None:
    qtype = quant_type(name)
    generator = np.random.default_rng(11)
    blocks = generator.integers(0, 256, (4096, qtype.block_bytes), dtype=np.uint8)
    blocks[:, 1] &= 0xBF  # the scale's exponent below that of infinity and NaN
    theirs = c_dequantize(blocks, qtype.ggml_type, qtype.block_size)
    assert_bits_equal(qtype.unpack(blocks), theirs)
