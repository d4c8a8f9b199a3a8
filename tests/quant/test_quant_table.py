from __future__ import annotations

import dataclasses

import gguf
import numpy as np
import pytest
from ggml_c import block_sizes, c_dequantize, dot_type

from llmkit.errors import QuantizationError
from llmkit.quant import QuantType, quant_names, quant_type, quant_type_of

# Of types with an offset: the bytes of a block that hold its multiples.
MULTIPLES = {"q4_k": slice(4, 16), "q5_k": slice(4, 16), "q2_k": slice(0, 16)}
MULTIPLES |= dict.fromkeys(("q4_1", "q5_1", "tq1_0", "tq2_0"), slice(0))


def test_the_promised_formats_are_registered() -> None:
    promised = "f32 f16 bf16 q8_0 q4_0 q4_1 q5_0 q5_1 q4_k q5_k q6_k iq4_nl"
    promised += " q2_k q3_k iq4_xs iq3_s iq3_xxs iq2_s iq2_xs iq2_xxs iq1_m iq1_s tq2_0 tq1_0"
    assert set(promised.split()) <= set(quant_names())


@pytest.mark.parametrize("name", quant_names())
def test_sizes_and_dot_type_are_those_of_ggml(name: str) -> None:
    qtype = quant_type(name)
    assert (qtype.block_size, qtype.block_bytes) == block_sizes(qtype.ggml_type)
    assert qtype.dot_type == dot_type(qtype.ggml_type)
    row_bytes = gguf.quants.quant_shape_to_byte_shape((3, 768), qtype.ggml_type)[1]
    assert qtype.row_bytes(768) == row_bytes
    assert qtype.bits_per_weight == row_bytes * 8 / 768


@pytest.mark.parametrize("name", quant_names())
def test_largest_offset_is_the_weight_of_code_0(name: str) -> None:
    qtype = quant_type(name)
    assert (qtype.offset is not None) == (name in MULTIPLES)
    if qtype.offset is None:
        return
    block = np.zeros((1, qtype.block_bytes), np.uint8)
    block[:, MULTIPLES[name]] = 255
    block[0, qtype.offset.start :][:2] = np.frombuffer(np.float16(1).tobytes(), np.uint8)
    weights = c_dequantize(block, qtype.ggml_type, qtype.block_size)
    assert (abs(weights) == qtype.offset.largest).all()


@pytest.mark.parametrize("name", quant_names())
def test_any_row_fits_a_fallback(name: str) -> None:
    qtype = quant_type(name)
    assert (qtype.fallback is None) == (qtype.block_size == 1)
    assert qtype.fitting(qtype.block_size) is qtype
    assert qtype.fitting(1).block_size == 1
    if qtype.block_size > 32:
        assert qtype.fitting(32).block_size == 32


@pytest.mark.parametrize("fact", ["limit", "dot_type", "offset", "fallback", "is_repacked"])
def test_a_type_states_each_fact(fact: str) -> None:
    qtype = quant_type("q4_k")
    facts = {f.name: getattr(qtype, f.name) for f in dataclasses.fields(qtype)}
    assert QuantType(**facts) == qtype
    del facts[fact]
    with pytest.raises(TypeError, match=fact):
        QuantType(**facts)


@pytest.mark.parametrize("name", quant_names())
def test_name_tensor_type_and_file_type_agree(name: str) -> None:
    qtype = quant_type(name)
    assert qtype.name == name
    assert qtype.ggml_type.name.lower() == name
    # Files of one K-quant throughout are what llama-quantize calls small.
    assert qtype.file_type.name.lower().split("_", 1)[1] in (name, f"{name}_s")
    assert quant_type_of(qtype.ggml_type) is qtype


def test_names_are_found_in_any_case_and_by_alias() -> None:
    assert quant_type("Q8_0") is quant_type("q8_0") is quant_type("INT8")
    assert quant_type("int4") is quant_type("q4_0")


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(QuantizationError, match="'q4_9': did you mean 'q4_"):
        quant_type("q4_9")
    with pytest.raises(QuantizationError, match="'Q4_O': did you mean 'q4_0'"):
        quant_type("Q4_O")
    with pytest.raises(QuantizationError, match="'q4_l': did you mean 'q4_1'"):
        quant_type("q4_l")
    with pytest.raises(QuantizationError, match="did you mean 'int8'"):
        quant_type("int88")


def test_an_unknown_tensor_type_is_refused_by_name() -> None:
    with pytest.raises(QuantizationError, match=r"I32.* f32"):
        quant_type_of(gguf.GGMLQuantizationType.I32)


@pytest.mark.parametrize(
    ("name", "row_length", "fits"),
    [("q8_0", 64, True), ("q8_0", 48, False), ("q4_0", 0, False), ("f16", 1, True)],
)
def test_fits_is_whole_blocks(name: str, row_length: int, fits: bool) -> None:
    assert quant_type(name).fits(row_length) is fits


def test_a_format_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        quant_type("q8_0").block_size = 64  # type: ignore[misc]
