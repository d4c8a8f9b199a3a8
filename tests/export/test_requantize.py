"""GGUF to GGUF: the same file as the checkpoint's own export, or llama-quantize's."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from finetuned import with_adapter
from gguf_surgery import keys_of, make_checkpoint, tensors_of

from llmkit.checkpoint.checkpoint import load_checkpoint
from llmkit.cli.main import main
from llmkit.errors import ConfigError, DataError
from llmkit.export.compare import compare
from llmkit.export.convert import export
from llmkit.export.gguf.metadata import OF_QUANTIZATION
from llmkit.export.gguf.reader import read_gguf
from llmkit.export.quantization.calibration import calibration_of
from llmkit.export.quantization.config import QuantConfig
from llmkit.export.quantization.imatrix import collect_importance, write_imatrix
from llmkit.export.quantization.requantize import requantize
from llmkit.export.verify.metadata_check import metadata_check
from llmkit.export.verify.target import open_target
from llmkit.export.verify.tensors_check import tensors_check


@pytest.mark.parametrize("quant", ["q8_0", "q4_0", "f16"])
def test_rounding_gives_the_checkpoints_own_export(
    quant: str, files: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "m.gguf"
    found = requantize(files["f32"], out, quant)
    assert (found.quant, found.method) == (quant, "rtn")
    assert keys_of(out) == keys_of(files[quant])
    ours, theirs = tensors_of(out), tensors_of(files[quant])
    assert ours.keys() == theirs.keys()
    for name, (blocks, kind) in ours.items():
        assert kind == theirs[name][1]
        assert np.array_equal(blocks, theirs[name][0])


def test_by_llama_cpp_the_bytes_are_llama_quantizes(tmp_path: Path) -> None:
    made = make_checkpoint(tmp_path / "c", n_embd=256, n_layer=4)
    done = export(made.folder, tmp_path / "out", QuantConfig(["f32", "q4_k_m"]), prove=False)
    f32, q4_k_m = (file.path for file in done.files)
    out = tmp_path / "m.gguf"
    assert requantize(f32, out, "q4_k_m", method="llama.cpp").quant == "q4_k_m"
    ours, theirs = tensors_of(q4_k_m), tensors_of(out)
    for name, (blocks, kind) in theirs.items():
        assert kind == ours[name][1]
        assert np.array_equal(blocks, ours[name][0])


def test_llama_cpps_blocks_are_not_said_to_be_chosen(
    files: dict[str, Path], tiny_checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    quant_config = QuantConfig(["q4_0"], method="gptq")
    (chosen,) = export(tiny_checkpoint, tmp_path / "out", quant_config, prove=False).files
    out = tmp_path / "m.gguf"
    found = requantize(chosen.path, out, "q8_0", method="llama.cpp", again=True)
    assert (found.quant, found.method) == ("q8_0", "rtn")
    assert not OF_QUANTIZATION - {"general.file_type"} & keys_of(out).keys()
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["out"]
    assert "llama_model_quantize" not in capfd.readouterr().err
    plain = requantize(files["f32"], tmp_path / "plain.gguf", "q4_k", method="llama.cpp")
    found = requantize(chosen.path, out, "q4_k", method="llama.cpp", again=True)
    assert found.quant == plain.quant == "q4_k_s"  # llama.cpp's name for what it writes


def test_importances_that_change_nothing_choose_nothing(
    files: dict[str, Path], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    source = load_checkpoint(tiny_checkpoint)
    matrix = tmp_path / "imatrix.gguf"
    write_imatrix(matrix, collect_importance(source.load_model(), torch.arange(32)[None], "text"))
    for quant in ("f16", "q8_0"):
        out = tmp_path / f"{quant}.gguf"
        assert requantize(files["f32"], out, quant, imatrix=matrix).method == "rtn"
        assert out.read_bytes() == files[quant].read_bytes()
    assert (
        requantize(files["f32"], tmp_path / "q4.gguf", "q4_0", imatrix=matrix).method == "imatrix"
    )


def test_the_file_that_is_read_is_not_written(files: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(files["f32"].read_bytes())
    link = tmp_path / "link.gguf"
    link.symlink_to(path)
    for out in (path, link):
        with pytest.raises(ConfigError, match=rf"{out.name} is .*--out"):
            requantize(path, out, "q8_0")
    assert path.read_bytes() == files["f32"].read_bytes()


def test_by_error_feedback_the_file_is_better_and_proved(
    files: dict[str, Path], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    source = load_checkpoint(tiny_checkpoint)
    text = tmp_path / "text.txt"
    tokens = calibration_of(source).tokens[:64]
    text.write_text("".join(source.tokenizer.decode(row.tolist()) for row in tokens))
    out = tmp_path / "m.gguf"
    assert requantize(files["f32"], out, "q4_0", method="gptq", calibration=text).method == "gptq"
    target = open_target(source, out)
    assert metadata_check(target).passed
    assert tensors_check(target).passed
    ours, rounded = compare(tiny_checkpoint, [out, files["q4_0"]], max_tokens=2048).rows
    assert ours.mean_kl < rounded.mean_kl / 2


def test_by_importances_blocks_are_other_ones_and_proved(
    files: dict[str, Path], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    source = load_checkpoint(tiny_checkpoint)
    matrix, out = tmp_path / "imatrix.gguf", tmp_path / "m.gguf"
    tokens = calibration_of(source).tokens[:32]
    write_imatrix(matrix, collect_importance(source.load_model(), tokens, "text"))
    assert requantize(files["f32"], out, "q4_0", imatrix=matrix).method == "imatrix"
    assert tensors_check(open_target(source, out)).passed
    ours, rounded = compare(tiny_checkpoint, [out, files["q4_0"]], max_tokens=2048).rows
    assert ours.mean_kl < rounded.mean_kl


def test_quantizing_twice_is_refused_unless_asked_for(
    files: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "m.gguf"
    with pytest.raises(ConfigError, match=r"token_embd.weight is q8_0.*--again"):
        requantize(files["q8_0"], out, "q4_0")
    assert not out.exists()
    assert requantize(files["q8_0"], out, "q4_0", again=True).quant == "q4_0"


def test_what_does_not_go_together_is_refused(
    files: dict[str, Path], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    out, empty = tmp_path / "m.gguf", tmp_path / "empty.txt"
    empty.write_text("")
    with pytest.raises(ConfigError, match=r"gptq.*--calibration"):
        requantize(files["f32"], out, "q4_0", method="gptq")
    with pytest.raises(ConfigError, match=r"--calibration.*\brtn "):
        requantize(files["f32"], out, "q4_0", calibration=empty)
    with pytest.raises(ConfigError, match=r"--imatrix.* llama\.cpp "):
        requantize(files["f32"], out, "q4_0", method="llama.cpp", imatrix=empty)
    with pytest.raises(DataError):
        requantize(files["f32"], out, "q4_0", method="gptq", calibration=empty)
    tuned = with_adapter(load_checkpoint(tiny_checkpoint), tmp_path / "tuned")
    base = export(tuned.folder, tmp_path / "apart", QuantConfig(["f32"]), prove=False).files[0].path
    with pytest.raises(ConfigError, match=r"tuned-adapter\.gguf"):
        requantize(base, out, "q4_0")
    assert not out.exists()


def test_the_command_writes_and_says_it(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "m.gguf"
    words = ["quantize", str(files["f32"]), "--out", str(out), "--quant", "q4_0", "--json"]
    assert main(words) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["quant"] == "q4_0"
    assert said["bytes"] == out.stat().st_size
    tensors = gguf.GGUFReader(out).tensors
    bits = 8 * sum(int(t.n_bytes) for t in tensors) / sum(int(t.n_elements) for t in tensors)
    assert said["bits_per_weight"] == bits == read_gguf(out).bits_per_weight
