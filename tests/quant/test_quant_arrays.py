from __future__ import annotations

import numpy as np
import pytest

from llmkit.quant import dequantize, quant_names, quant_type, quantize

GENERATOR = np.random.default_rng(17)
# Types of which ggml takes seconds to build the codebooks are only packed where it is asked for.
NAMES = [name for name in quant_names() if not name.startswith(("iq1", "iq2"))]
WEIGHTS = GENERATOR.standard_normal((6, 512), dtype=np.float32)


@pytest.mark.parametrize("name", NAMES)
def test_layout_and_dtype_of_the_input_do_not_matter(name: str) -> None:
    qtype = quant_type(name)
    expected = quantize(WEIGHTS, qtype, "w")
    padded = np.zeros((12, 1040), dtype=np.float32)
    padded[::2, 4:1028:2] = WEIGHTS
    for same in (np.asfortranarray(WEIGHTS), padded[::2, 4:1028:2], WEIGHTS.astype(np.float64)):
        np.testing.assert_array_equal(quantize(same, qtype, "w"), expected)


@pytest.mark.parametrize("name", NAMES)
def test_float16_weights_are_packed_as_their_float32_values(name: str) -> None:
    qtype = quant_type(name)
    half = WEIGHTS.astype(np.float16)
    expected = quantize(half.astype(np.float32), qtype, "w")
    np.testing.assert_array_equal(quantize(half, qtype, "w"), expected)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(3072,), (6, 512), (2, 3, 512), (0, 512)])
def test_any_shape_becomes_rows_and_comes_back(name: str, shape: tuple[int, ...]) -> None:
    qtype = quant_type(name)
    weights = np.resize(WEIGHTS, shape)
    packed = quantize(weights, qtype, "w")
    n_rows = weights.size // shape[-1]
    assert packed.shape == (n_rows, qtype.row_bytes(shape[-1]))
    restored = dequantize(packed, qtype, shape)
    assert restored.shape == shape
    assert restored.dtype == np.float32
    error = 0.6 if qtype.bits_per_weight > 4 else 2.1
    np.testing.assert_allclose(restored, weights, atol=error)
    np.testing.assert_array_equal(dequantize(packed.ravel(), qtype, shape), restored)
    np.testing.assert_array_equal(dequantize(packed, qtype), restored.reshape(n_rows, shape[-1]))


@pytest.mark.parametrize("shape", [(6, 512), (1, 256), (3, 256)])  # one block: its own transpose
@pytest.mark.parametrize("name", NAMES)
def test_input_is_left_alone_and_output_is_its_own_memory(
    name: str, shape: tuple[int, int]
) -> None:
    qtype = quant_type(name)
    expected = np.resize(WEIGHTS, shape)
    weights = expected.copy()
    packed = quantize(weights, qtype, "w")
    before = packed.copy()
    qtype.dequantize(packed)[:] = 7
    np.testing.assert_array_equal(packed, before)
    packed[:] = 7
    np.testing.assert_array_equal(weights, expected)
    weights.flags.writeable = False
    np.testing.assert_array_equal(quantize(weights, qtype, "w"), before)
