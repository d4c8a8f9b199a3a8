"""llama.cpp's presets: which type each tensor has, against llama-quantize's own files."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import pytest
from gguf_surgery import make_checkpoint

from llmkit.errors import QuantizationError
from llmkit.export.convert import export
from llmkit.export.gguf_file import read_gguf
from llmkit.export.recipe import Recipe
from llmkit.model.storage import quantization, quantization_names, quantization_of

PRESETS = {
    "q4_k_s": gguf.LlamaFileType.MOSTLY_Q4_K_S,
    "q4_k_m": gguf.LlamaFileType.MOSTLY_Q4_K_M,
    "q5_k_s": gguf.LlamaFileType.MOSTLY_Q5_K_S,
    "q5_k_m": gguf.LlamaFileType.MOSTLY_Q5_K_M,
}
# Where a rule has a border: fewer layers than 8, thirds after the first eighth, a head of its own,
# rows that 256 does not divide, in part (384: 4 x 384 is 1536) or all (96).
MODELS: dict[str, dict[str, Any]] = {
    "4 layers": {"n_layer": 4, "n_embd": 256},
    "12 layers": {"n_layer": 12, "n_embd": 256},
    "untied": {"n_layer": 9, "n_embd": 256, "tie_embeddings": False},
    "width 384": {"n_layer": 8, "n_embd": 384},
    "width 96": {"n_layer": 3, "n_embd": 96},
}


def types_by_llama_quantize(f32: Path, out: Path, preset: str) -> dict[str, str]:
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = int(PRESETS[preset])
    done = llama_cpp.llama_model_quantize(
        str(f32).encode(), str(out).encode(), ctypes.byref(params)
    )
    assert done == 0
    reader = gguf.GGUFReader(out)
    stated = reader.fields["general.file_type"].contents()
    assert quantization_of(gguf.LlamaFileType(stated)).name == preset
    return types_of(reader)


def types_of(reader: gguf.GGUFReader) -> dict[str, str]:
    return {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_each_tensor_has_the_type_that_llama_quantize_takes(model: str, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "c", **MODELS[model])
    done = export(checkpoint.folder, tmp_path / "out", Recipe(["f32", *PRESETS]), prove=False)
    f32, *files = done.files
    for file in files:
        ours = types_of(gguf.GGUFReader(file.path))
        theirs = types_by_llama_quantize(f32.path, tmp_path / f"{file.quant}.gguf", file.quant)
        assert ours == theirs


@pytest.mark.slow
@pytest.mark.parametrize("name", quantization_names())
def test_a_file_says_which_quantization_it_has(name: str, tmp_path: Path) -> None:
    if quantization(name).base.needs_importance:
        pytest.skip("needs an importance matrix")
    checkpoint = make_checkpoint(tmp_path / "c", n_embd=256, n_layer=1)
    (file,) = export(checkpoint.folder, tmp_path / "out", Recipe([name]), prove=False).files
    found = read_gguf(file.path)
    assert found.quant == name
    assert found.quantization() == quantization(name)
    assert found.method == "rtn"


def test_rows_that_no_block_of_256_fits_fall_back_as_in_llama_cpp(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "c", n_embd=96, n_layer=1)
    (file,) = export(checkpoint.folder, tmp_path / "out", Recipe(["q4_k_m"]), prove=False).files
    assert "token_embd.weight: q8_0" in file.fallbacks
    assert "blk.0.ffn_up.weight: q5_0" in file.fallbacks


def test_a_wrong_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(QuantizationError, match="'q4_km': did you mean 'q4_k_m'"):
        quantization("q4_km")
    assert quantization("INT4") == quantization("q4_0")
    assert quantization("Q4_K_M").name == "q4_k_m"
    with pytest.raises(QuantizationError, match="MOSTLY_Q2_K_S is not one of those known here"):
        quantization_of(gguf.LlamaFileType.MOSTLY_Q2_K_S)
