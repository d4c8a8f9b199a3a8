from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from llmkit.errors import QuantizationError
from llmkit.quant import quant_type, quantize
from llmkit.quant.rounding import rounding_of
from llmkit.quant.types import PackedRows

WITH_LEVELS = ["q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl", "q4_k", "q5_k", "q6_k"]
OTHERS = ["f32", "f16", "bf16", "q3_k", "iq4_xs"]
CPU = torch.device("cpu")


def weights_of(seed: int) -> NDArray[np.float32]:
    return (0.02 * np.random.default_rng(seed).standard_normal((3, 512))).astype(np.float32)


def unpacked(blocks: PackedRows, name: str) -> NDArray[np.float32]:
    return gguf.quants.dequantize(blocks, quant_type(name).ggml_type).astype(np.float32)


@pytest.mark.parametrize("name", [*WITH_LEVELS, *OTHERS])
def test_the_blocks_hold_what_was_rounded_to_bit_for_bit(name: str) -> None:
    qtype, first = quant_type(name), weights_of(0)
    rounding = rounding_of(quantize(first, qtype, "w"), qtype, "w", CPU)
    weights = torch.from_numpy(first + 0.3 * weights_of(1))
    found = rounding.rounded(weights)
    assert found.shape == weights.shape
    assert np.array_equal(found.numpy(), unpacked(rounding.packed(weights), name))
    assert float((found - weights).abs().mean()) < 0.01
    again = rounding.rounded(found)
    assert torch.equal(again, found) or name in OTHERS


@pytest.mark.parametrize("name", WITH_LEVELS)
def test_only_quants_change_and_each_is_the_nearest(name: str) -> None:
    qtype, first = quant_type(name), weights_of(2)
    blocks = quantize(first, qtype, "w")
    rounding = rounding_of(blocks, qtype, "w", CPU)
    weights = torch.from_numpy(first + 0.5 * weights_of(3))
    packed = rounding.packed(weights)
    assert not np.array_equal(packed, blocks)
    layout = qtype.layout
    assert layout is not None
    before, after = layout.unpack(blocks), layout.unpack(packed)
    for field in ("scale", "sub_scales", "minimum", "sub_minima"):
        assert np.array_equal(getattr(before, field), getattr(after, field)), field
    # Every level in the place of each quant: none is nearer by more than a rounding of float32.
    error = np.abs(rounding.rounded(weights).numpy() - weights.numpy())
    for level in layout.levels:
        every = np.full(before.quants.shape, level, np.int8)
        fields = type(before)(
            every, before.scale, before.sub_scales, before.minimum, before.sub_minima
        )
        other = np.abs(unpacked(layout.pack(fields), name) - weights.numpy())
        assert (error <= other + 1e-7).all()


@pytest.mark.parametrize("name", ["q4_0", "q4_k", "f16"])
@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_what_is_not_finite_is_not_packed(name: str, wrong: float) -> None:
    weights = weights_of(4)
    rounding = rounding_of(quantize(weights, quant_type(name), "w"), quant_type(name), "w", CPU)
    weights[1, 7] = wrong
    with pytest.raises(QuantizationError, match=r"^w"):
        rounding.packed(torch.from_numpy(weights))


def test_blocks_of_zeros_stay_zeros() -> None:
    zeros = np.zeros((2, 256), np.float32)
    for name in WITH_LEVELS:
        rounding = rounding_of(quantize(zeros, quant_type(name), "w"), quant_type(name), "w", CPU)
        assert not rounding.rounded(torch.ones(2, 256)).any(), name
