"""llama.cpp's presets: which type each tensor has, against llama-quantize's own files."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
import pytest
import torch
from gguf_surgery import make_checkpoint

from llmkit.architectures.registry import tensor_specs
from llmkit.errors import QuantizationError
from llmkit.export.convert import export
from llmkit.export.gguf.reader import read_gguf
from llmkit.export.quantization.config import QuantConfig
from llmkit.quantization.tensor_types import quantization, quantization_names, quantization_of

PRESETS = {
    "q2_k": gguf.LlamaFileType.MOSTLY_Q2_K,
    "q2_k_s": gguf.LlamaFileType.MOSTLY_Q2_K_S,
    "q3_k_s": gguf.LlamaFileType.MOSTLY_Q3_K_S,
    "q3_k_m": gguf.LlamaFileType.MOSTLY_Q3_K_M,
    "q3_k_l": gguf.LlamaFileType.MOSTLY_Q3_K_L,
    "q4_k_s": gguf.LlamaFileType.MOSTLY_Q4_K_S,
    "q4_k_m": gguf.LlamaFileType.MOSTLY_Q4_K_M,
    "q5_k_s": gguf.LlamaFileType.MOSTLY_Q5_K_S,
    "q5_k_m": gguf.LlamaFileType.MOSTLY_Q5_K_M,
    "q6_k": gguf.LlamaFileType.MOSTLY_Q6_K,
}
# Where a rule has a border: fewer layers than 8, thirds after the first eighth, a head of its own,
# rows that 256 does not divide, in part (384: 4 x 384 is 1536) or all (96).
MODELS: dict[str, dict[str, Any]] = {
    "4 layers": {"n_layer": 4, "n_embd": 256},
    "17 layers": {"n_layer": 17, "n_embd": 256},
    "untied": {"n_layer": 9, "n_embd": 256, "tie_embeddings": False},
    "width 384": {"n_layer": 8, "n_embd": 384},
    "width 96": {"n_layer": 3, "n_embd": 96},
}


def types_by_llama_quantize(f32: Path, out: Path, preset: str) -> dict[str, str]:
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = int(PRESETS[preset])
    if preset == "q2_k_s":  # llama-quantize makes none without importances
        shapes = {tensor.name: tensor.shape[0] for tensor in gguf.GGUFReader(f32).tensors}
        row = np.ones(max(shapes.values()), np.float32)
        data = (llama_cpp.llama_model_imatrix_data * (len(shapes) + 1))()
        for place, (name, size) in zip(data, shapes.items(), strict=False):
            place.name, place.size = name.encode(), int(size)
            place.data = row.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        params.imatrix = data
    done = llama_cpp.llama_model_quantize(
        str(f32).encode(), str(out).encode(), ctypes.byref(params)
    )
    assert done == 0
    reader = gguf.GGUFReader(out)
    stated = reader.fields["general.file_type"].contents()
    assert quantization_of(gguf.LlamaFileType(stated)).name == preset
    return {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}


def set_to_zero(weights: dict[str, torch.Tensor]) -> None:
    """What no type takes long to pack."""
    for tensor in weights.values():
        tensor.zero_()


@pytest.mark.parametrize("model", MODELS)
def test_each_tensor_has_the_type_that_llama_quantize_takes(model: str, tmp_path: Path) -> None:
    made = make_checkpoint(tmp_path / "c", change=set_to_zero, **MODELS[model])
    f32 = export(made.folder, tmp_path / "out", QuantConfig(["f32"]), prove=False).files[0].path
    for preset in PRESETS:
        ours = {
            entry.gguf_name: quantization(preset).type_of(entry, made.config).ggml_type.name
            for entry in tensor_specs(made.config)
        }
        assert ours == types_by_llama_quantize(f32, tmp_path / "theirs.gguf", preset), preset


def test_the_single_type_of_a_presets_name_is_asked_for_by_tensor_type(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "c", n_embd=256, n_layer=1)
    for patterns, types in (({}, {"Q2_K", "Q3_K", "Q6_K"}), ({"*": "q2_k"}, {"Q2_K"})):
        quant_config = QuantConfig(["q2_k"], tensor_types=patterns)
        (file,) = export(checkpoint.folder, tmp_path / "out", quant_config, prove=False).files
        tensors = read_gguf(file.path).tensors.values()
        assert {tensor.ggml_type.name for tensor in tensors} - {"F32"} == types


@pytest.mark.slow
@pytest.mark.parametrize("name", quantization_names())
def test_a_file_says_which_quantization_it_has(name: str, tmp_path: Path) -> None:
    if quantization(name).base.needs_importance:
        pytest.skip("needs an importance matrix")
    checkpoint = make_checkpoint(tmp_path / "c", n_embd=256, n_layer=1)
    (file,) = export(checkpoint.folder, tmp_path / "out", QuantConfig([name]), prove=False).files
    found = read_gguf(file.path)
    assert found.quant == name
    assert found.quantization() == quantization(name)
    assert found.method == "rtn"


def test_rows_that_no_block_of_256_fits_fall_back_as_in_llama_cpp(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "c", n_embd=96, n_layer=1)
    (file,) = export(
        checkpoint.folder, tmp_path / "out", QuantConfig(["q4_k_m"]), prove=False
    ).files
    assert "token_embd.weight: q8_0" in file.fallbacks
    assert "blk.0.ffn_up.weight: q5_0" in file.fallbacks


def test_a_wrong_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(QuantizationError, match="'q4_km': did you mean 'q4_k_m'"):
        quantization("q4_km")
    assert quantization("INT4") == quantization("q4_0")
    assert quantization("Q4_K_M").name == "q4_k_m"
    with pytest.raises(QuantizationError, match="MOSTLY_IQ3_M"):
        quantization_of(gguf.LlamaFileType.MOSTLY_IQ3_M)
