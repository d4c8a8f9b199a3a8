"""Files of checkpoints that were trained for blocks."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf_surgery import make_checkpoint

from llmkit.checkpoint.checkpoint import Checkpoint, load_checkpoint
from llmkit.errors import ConfigError
from llmkit.export.convert import export
from llmkit.export.gguf.reader import read_gguf
from llmkit.export.quantization.config import QuantConfig
from llmkit.export.quantization.requantize import requantize
from llmkit.export.verify.metadata_check import metadata_check
from llmkit.export.verify.target import open_target
from llmkit.export.verify.tensors_check import tensors_check
from llmkit.finetuning.distill import finetune_distill


@pytest.fixture(scope="module")
def trained(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    out = tmp_path_factory.mktemp("qat") / "trained"
    training = {"steps": 4, "batch_size": 4, "eval_tokens": 512, "learning_rate": 3e-3}
    finetune_distill(tiny_checkpoint, out, qat="q4_0", training=training, device="cpu")
    return load_checkpoint(out)


def test_the_file_has_the_trained_blocks_byte_for_byte(trained: Checkpoint, tmp_path: Path) -> None:
    done = export(trained.folder, tmp_path / "out")
    (file,) = done.files  # of the trained type alone
    assert file.quant == "q4_0"
    assert done.proofs[0].passed
    assert read_gguf(file.path).method == "qat"
    found = {t.name: t.data for t in gguf.GGUFReader(file.path).tensors}
    blocks = trained.trained_blocks()
    assert np.array_equal(found["token_embd.weight"], blocks["wte.weight"])
    for number in range(trained.config.n_layer):
        for there, here in (
            ("attn_qkv", "attn.c_attn"),
            ("attn_output", "attn.c_proj"),
            ("ffn_up", "mlp.c_fc"),
            ("ffn_down", "mlp.c_proj"),
        ):
            wanted = blocks[f"h.{number}.{here}.weight"]
            assert np.array_equal(found[f"blk.{number}.{there}.weight"], wanted)


def test_blocks_chosen_after_training_are_not_the_trained_ones(
    trained: Checkpoint, tmp_path: Path
) -> None:
    path = export(trained.folder, tmp_path / "out", prove=False).files[0].path
    text = tmp_path / "text.txt"
    text.write_text("some words to choose by " * 100, encoding="utf-8")
    again = tmp_path / "again.gguf"
    requantize(path, again, "q4_0", method="gptq", calibration=text, again=True)
    target = open_target(trained, again)
    assert not tensors_check(target).passed
    said = metadata_check(target).detail
    assert "llmkit.quantization.method: 'gptq'" in said
    assert "q4_0" in said


def test_a_changed_quant_fails_the_proof(trained: Checkpoint, tmp_path: Path) -> None:
    path = export(trained.folder, tmp_path / "out", prove=False).files[0].path
    assert tensors_check(open_target(trained, path)).passed
    reader = gguf.GGUFReader(path, "r+")
    tensor = next(t for t in reader.tensors if t.name == "blk.0.ffn_up.weight")
    tensor.data[3, 5] ^= 1
    reader.data.flush()
    check = tensors_check(open_target(trained, path))
    assert not check.passed
    assert "blk.0.ffn_up.weight" in check.detail


def test_other_types_are_packed_from_what_the_blocks_hold(
    trained: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = export(trained.folder, tmp_path / "out", QuantConfig(["f32", "q8_0"]))
    assert "q4_0; f32, q8_0 " in capsys.readouterr().err
    assert all(proof.passed for proof in done.proofs)
    floats = {t.name: t.data for t in gguf.GGUFReader(done.files[0].path).tensors}
    held = gguf.quants.dequantize(
        trained.trained_blocks()["wte.weight"], gguf.GGMLQuantizationType.Q4_0
    )
    assert np.array_equal(floats["token_embd.weight"], held)


def test_trained_blocks_are_not_chosen_again(trained: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\bq4_0\b.*--method"):
        export(trained.folder, tmp_path / "out", QuantConfig(method="gptq"))


@pytest.mark.slow
def test_a_preset_is_trained_type_by_type(tmp_path: Path) -> None:
    made = make_checkpoint(tmp_path / "base", n_embd=256, n_layer=2, context_length=32)
    text = tmp_path / "text.txt"
    text.write_text("the hare sees the sea and the bear. " * 400, encoding="utf-8")
    training = {"steps": 2, "batch_size": 2, "eval_tokens": 64}
    out = tmp_path / "trained"
    finetune_distill(made.folder, out, qat="Q4_K_M", data=text, training=training, device="cpu")
    trained = load_checkpoint(out)
    done = export(out, tmp_path / "out", prove=False)
    assert done.files[0].path.name == "trained-q4_k_m.gguf"
    found = {t.name: t for t in gguf.GGUFReader(done.files[0].path).tensors}
    assert found["token_embd.weight"].tensor_type.name == "Q6_K"
    assert found["blk.0.ffn_up.weight"].tensor_type.name == "Q4_K"
    assert np.array_equal(found["token_embd.weight"].data, trained.trained_blocks()["wte.weight"])
    assert tensors_check(open_target(trained, done.files[0].path)).passed
