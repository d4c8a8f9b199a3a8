from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from llmkit.checkpoint.checkpoint import Checkpoint, load_checkpoint
from llmkit.errors import CheckpointError, GGUFError, LlmkitError, ModelfileError
from llmkit.export.inspection import inspect
from llmkit.finetuning.distill import finetune_distill

MATRIX_WEIGHTS = 512 * 64 + 2 * (3 + 1 + 4 + 4) * 64 * 64


@pytest.mark.parametrize(
    ("quant", "bits"), [("f32", 32), ("f16", 16), ("bf16", 16), ("q8_0", 8.5), ("q4_0", 4.5)]
)
def test_a_gguf_is_counted_by_type(
    quant: str, bits: float, files: dict[str, Path], tiny_checkpoint: Path
) -> None:
    n_parameters = load_checkpoint(tiny_checkpoint).load_model().n_parameters()
    found = inspect(files[quant])
    assert found.kind == "gguf"
    assert found.parameters == n_parameters
    assert found.bytes == files[quant].stat().st_size
    kept_f32 = n_parameters - MATRIX_WEIGHTS
    n_bits = MATRIX_WEIGHTS * bits + kept_f32 * 32
    assert found.bits_per_weight == pytest.approx(n_bits / n_parameters)
    groups = {group.type: group for group in found.groups}
    assert groups.keys() == {quant, "f32"}
    assert sum(group.tensors for group in found.groups) == 28
    if quant != "f32":
        assert groups[quant].parameters == MATRIX_WEIGHTS
        assert groups[quant].bytes == MATRIX_WEIGHTS * bits / 8
        assert groups["f32"].bytes == 4 * kept_f32
    assert found.tensors["blk.0.ffn_up.weight"] == (quant, (256, 64))
    assert found.metadata["gpt2.block_count"] == 2


def test_a_checkpoint_is_counted(tiny_checkpoint: Path) -> None:
    checkpoint = load_checkpoint(tiny_checkpoint)
    found = inspect(tiny_checkpoint)
    assert found.kind == "checkpoint"
    assert found.parameters == checkpoint.load_model().n_parameters()
    assert found.bytes == (tiny_checkpoint / "model.safetensors").stat().st_size
    assert found.bits_per_weight == 32
    assert [group.type for group in found.groups] == ["float32"]
    weights = load_file(checkpoint.model_file)
    assert found.tensors == {
        name: ("float32", tuple(tensor.shape)) for name, tensor in weights.items()
    }
    assert found.metadata["n_layer"] == 2
    assert found.metadata["prompt_format"] == "completion"


def test_trained_blocks_are_counted_beside_the_weights(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    training = {"steps": 1, "batch_size": 1, "eval_interval": 1, "eval_tokens": 64}
    finetune_distill(tiny_checkpoint, tmp_path / "q", qat="q4_0", training=training, device="cpu")
    found, base = inspect(tmp_path / "q"), inspect(tiny_checkpoint)
    files = ("model.safetensors", "blocks.safetensors")
    assert found.bytes == sum((tmp_path / "q" / name).stat().st_size for name in files)
    assert found.parameters == base.parameters
    weights, blocks = found.groups
    assert [weights] == base.groups
    assert (blocks.type, blocks.parameters) == ("q4_0 (blocks)", MATRIX_WEIGHTS)
    assert blocks.bytes == MATRIX_WEIGHTS * 4.5 / 8
    assert len(found.tensors) == weights.tensors + blocks.tensors


def test_what_is_meant_instead_is_named(tmp_path: Path) -> None:
    file = tmp_path / "Modelfile"
    file.write_text("FROM a.gguf\n")
    with pytest.raises(ModelfileError, match="llmkit modelfile show"):
        inspect(file)
    (tmp_path / "a.gguf").touch()
    with pytest.raises(CheckpointError, match=r"GGUF files.*a\.gguf"):
        inspect(tmp_path)


def test_long_arrays_are_cut_and_say_so(files: dict[str, Path], tiny_checkpoint: Path) -> None:
    tokens = load_checkpoint(tiny_checkpoint).tokenizer.tokens
    shown = [*tokens[:8], "... 512 in total"]
    assert inspect(files["f32"]).metadata["tokenizer.ggml.tokens"] == shown
    assert inspect(tiny_checkpoint).metadata["tokens"] == shown


def test_an_inspection_is_json(files: dict[str, Path], tiny_checkpoint: Path) -> None:
    for path in (files["q8_0"], tiny_checkpoint):
        content = json.loads(json.dumps(inspect(path).to_dict()))
        assert content["path"] == str(path)
        assert content["parameters"] > 0


def test_what_is_no_model_gives_one_line(random_checkpoint: Checkpoint, tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("no model", encoding="utf-8")
    fake = tmp_path / "fake.gguf"
    fake.write_text("no model", encoding="utf-8")
    cases = {
        text: (CheckpointError, "notes.txt .* GGUF"),
        tmp_path: (CheckpointError, r"fake\.gguf"),
        tmp_path / "none": (CheckpointError, "does not exist"),
        fake: (GGUFError, "not a GGUF file"),
        tmp_path / "none.gguf": (GGUFError, "none.gguf does not exist"),
    }
    for path, (kind, message) in cases.items():
        with pytest.raises(kind, match=message) as caught:
            inspect(path)
        assert isinstance(caught.value, LlmkitError)
        assert "\n" not in str(caught.value)
