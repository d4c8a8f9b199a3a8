from __future__ import annotations

import dataclasses

import gguf
import pytest

from llmkit.errors import QuantizationError
from llmkit.quant import quant_names, quant_type, quant_type_of


def test_the_promised_formats_are_registered() -> None:
    promised = "f32 f16 bf16 q8_0 q4_0 q4_1 q5_0 q5_1 q4_k q5_k q6_k iq4_nl"
    promised += " q2_k q3_k iq4_xs iq3_s iq3_xxs iq2_s iq2_xs iq2_xxs iq1_m iq1_s tq2_0 tq1_0"
    assert set(promised.split()) <= set(quant_names())


@pytest.mark.parametrize("name", quant_names())
def test_sizes_are_those_of_gguf(name: str) -> None:
    qtype = quant_type(name)
    assert (qtype.block_size, qtype.block_bytes) == gguf.GGML_QUANT_SIZES[qtype.ggml_type]
    row_bytes = gguf.quants.quant_shape_to_byte_shape((3, 768), qtype.ggml_type)[1]
    assert qtype.row_bytes(768) == row_bytes
    assert qtype.bits_per_weight == row_bytes * 8 / 768


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
