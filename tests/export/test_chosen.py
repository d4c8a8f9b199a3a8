"""Files whose blocks GPTQ chose: better than rounded ones, and proved to be this checkpoint's."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from finetuned import with_adapter
from gguf import GGUFValueType as Kind
from gguf_surgery import (
    keys_of,
    make_checkpoint,
    tensors_of,
    with_flipped_bit,
    with_key,
    with_tensors,
    without_key,
)

from llmkit.architectures.registry import tensor_specs
from llmkit.checkpoint.checkpoint import Checkpoint, load_checkpoint
from llmkit.errors import ConfigError, GGUFError, QuantizationError
from llmkit.export.compare import compare
from llmkit.export.convert import export
from llmkit.export.gguf.keys import ADAPTER_KEY
from llmkit.export.gguf.metadata import BLOCKS_KEY, CALIBRATION_KEY, METHOD_KEY, hash_of_choice
from llmkit.export.gguf.reader import read_gguf
from llmkit.export.quantization.calibration import calibration_of
from llmkit.export.quantization.config import DEFAULT_QUANTS, QuantConfig, tensor_types
from llmkit.export.quantization.imatrix import collect_importance, write_imatrix
from llmkit.export.verify.metadata_check import metadata_check
from llmkit.export.verify.target import open_target
from llmkit.export.verify.tensors_check import tensors_check
from llmkit.quant import quant_type, quantize

QKV = "blk.0.attn_qkv.weight"


@pytest.fixture(scope="module")
def chosen(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("gptq")
    done = export(tiny_checkpoint, out, QuantConfig(["q4_0"], method="gptq"), prove=False)
    return done.files[0].path


@pytest.fixture(scope="module")
def source(tiny_checkpoint: Path) -> Checkpoint:
    return load_checkpoint(tiny_checkpoint)


def detail(source: Checkpoint, gguf: Path) -> str:
    check = tensors_check(open_target(source, gguf))
    assert not check.passed
    return check.detail


@pytest.mark.slow
def test_the_same_bytes_are_better_by_gptq(
    chosen: Path, files: dict[str, Path], tiny_checkpoint: Path
) -> None:
    done = compare(tiny_checkpoint, [chosen, files["q4_0"]], max_tokens=2048)
    ours, rounded = done.rows
    assert (ours.method, rounded.method) == ("gptq", "rtn")
    assert ours.quant == rounded.quant == "q4_0"
    assert ours.bits_per_weight == rounded.bits_per_weight
    assert ours.mean_kl < rounded.mean_kl / 2


@pytest.mark.slow
def test_the_whole_proof_passes(tiny_checkpoint: Path, tmp_path: Path) -> None:
    done = export(tiny_checkpoint, tmp_path / "out", QuantConfig(["q4_0"], method="gptq"))
    (proof,) = done.proofs
    assert {check.name: check.detail for check in proof.checks if not check.passed} == {}
    said = {check.name: check.detail for check in proof.checks}["tensors"]
    assert "9 have the hash of the blocks that gptq chose" in said


def test_the_file_says_what_it_was_calibrated_with(chosen: Path, source: Checkpoint) -> None:
    file = read_gguf(chosen)
    assert file.method == "gptq"
    assert file.metadata[CALIBRATION_KEY] == calibration_of(source).sha256
    hashes = json.loads(file.metadata[BLOCKS_KEY])
    blocks = {entry.checkpoint_name: entry.gguf_name for entry in tensor_specs(source.config)}
    weights = source.load_model().state_dict()
    for name, stated in hashes.items():
        content = weights[name].numpy().tobytes() + file.tensors[blocks[name]].blocks.tobytes()
        assert hashlib.sha256(content).hexdigest() == stated
    assert metadata_check(open_target(source, chosen)).passed


def test_one_other_bit_is_found(chosen: Path, source: Checkpoint, tmp_path: Path) -> None:
    path = with_flipped_bit(chosen, tmp_path / "m.gguf", QKV, 3)
    assert detail(source, path) == f"hash differs from the one in {BLOCKS_KEY}: {QKV}"


def rehashed(path: Path, target: Path, source: Checkpoint) -> Path:
    """The file with the hashes of the blocks that it has."""
    table = {entry.checkpoint_name: entry.gguf_name for entry in tensor_specs(source.config)}
    tensors = tensors_of(path)
    weights = source.load_model().state_dict()
    hashes = {
        name: hash_of_choice(weights[name].numpy(), tensors[table[name]][0])
        for name in json.loads(keys_of(path)[BLOCKS_KEY][0])
    }
    return with_key(path, target, BLOCKS_KEY, json.dumps(hashes), Kind.STRING)


def test_rows_that_are_not_the_checkpoints_are_found_whatever_hash_they_have(
    chosen: Path, source: Checkpoint, tmp_path: Path
) -> None:
    def exchange(tensors: dict[str, Any]) -> None:
        blocks, kind = tensors[QKV]
        blocks = blocks.copy()
        blocks[[3, 7]] = blocks[[7, 3]]
        tensors[QKV] = (blocks, kind)

    exchanged = with_tensors(chosen, tmp_path / "a.gguf", exchange)
    path = rehashed(exchanged, tmp_path / "b.gguf", source)
    assert detail(source, path).startswith(f"{QKV} (192, 64): 2 of 192 rows differ, first row 3;")


def test_another_checkpoints_blocks_are_found(
    chosen: Path, source: Checkpoint, tmp_path: Path
) -> None:
    def other(tensors: dict[str, Any]) -> None:
        weights = np.random.default_rng(0).normal(size=(192, 64)).astype(np.float32) / 10
        tensors[QKV] = (quantize(weights, quant_type("q4_0"), QKV), tensors[QKV][1])

    path = rehashed(with_tensors(chosen, tmp_path / "a.gguf", other), tmp_path / "b.gguf", source)
    assert detail(source, path).startswith(f"{QKV} (192, 64): 192 of 192 rows differ")


def test_zeros_are_found(chosen: Path, source: Checkpoint, tmp_path: Path) -> None:
    def zero(tensors: dict[str, Any]) -> None:
        tensors[QKV] = (np.zeros_like(tensors[QKV][0]), tensors[QKV][1])

    path = rehashed(with_tensors(chosen, tmp_path / "a.gguf", zero), tmp_path / "b.gguf", source)
    assert detail(source, path).startswith(f"{QKV} (192, 64): 192 of 192 rows differ")


def test_few_bits_do_not_hide_zeros(wide: Path, tmp_path: Path) -> None:
    source, matrix, name = load_checkpoint(wide), tmp_path / "imatrix.gguf", "blk.0.ffn_up.weight"
    write_imatrix(matrix, collect_importance(source.load_model(), torch.arange(32)[None], "text"))
    quant_config = QuantConfig(quants=["q2_k"], imatrix=matrix)
    (file,) = export(wide, tmp_path / "out", quant_config, prove=False).files
    assert tensors_check(open_target(source, file.path)).passed

    def zero(tensors: dict[str, Any]) -> None:
        tensors[name] = (np.zeros_like(tensors[name][0]), tensors[name][1])

    path = with_tensors(file.path, tmp_path / "a.gguf", zero)
    path = rehashed(path, tmp_path / "b.gguf", source)
    assert detail(source, path).startswith(f"{name} (")


@pytest.mark.slow
def test_blocks_chosen_for_other_weights_are_found(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """As near as may be: the base's file, of a checkpoint whose adapter changes little."""
    base = load_checkpoint(tiny_checkpoint)
    tuned = with_adapter(base, tmp_path / "tuned", alpha=0.1)
    quant_config = QuantConfig(quants=["q4_0"], method="gptq")
    (file,) = export(tiny_checkpoint, tmp_path / "out", quant_config, prove=False).files
    assert "hash differs" in detail(tuned, file.path)
    apart = export(tuned.folder, tmp_path / "apart", quant_config, prove=False).files[0].path
    merged = without_key(apart, tmp_path / "merged.gguf", ADAPTER_KEY)
    assert "hash differs" in detail(tuned, merged)


def test_what_a_file_says_of_its_blocks_has_to_agree(
    chosen: Path, source: Checkpoint, tmp_path: Path
) -> None:
    stated = json.loads(keys_of(chosen)[BLOCKS_KEY][0]) | {"h.9.weight": "0" * 64}
    path = with_key(chosen, tmp_path / "a.gguf", BLOCKS_KEY, json.dumps(stated), Kind.STRING)
    found = detail(source, path)
    assert BLOCKS_KEY in found
    assert "h.9.weight" in found
    path = without_key(chosen, tmp_path / "b.gguf", CALIBRATION_KEY)
    check = metadata_check(open_target(source, path))
    assert check.detail.startswith(f"{CALIBRATION_KEY}: missing")
    path = with_key(chosen, tmp_path / "c.gguf", METHOD_KEY, "qat", Kind.STRING)
    check = metadata_check(open_target(source, path))
    assert f"{METHOD_KEY}: 'qat'" in check.detail


def test_hashes_that_are_none_are_refused(chosen: Path, source: Checkpoint, tmp_path: Path) -> None:
    path = with_key(chosen, tmp_path / "m.gguf", BLOCKS_KEY, "[no", Kind.STRING)
    with pytest.raises(GGUFError, match=BLOCKS_KEY):
        tensors_check(open_target(source, path))


def test_presets_get_error_feedback_in_every_type(tmp_path: Path, wide: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("some words to merge, some more words " * 200, encoding="utf-8")
    done = export(
        wide,
        tmp_path / "out",
        QuantConfig(["q4_k_m"], method="gptq", calibration=text),
        prove=False,
    )
    target = open_target(load_checkpoint(wide), done.files[0].path)
    check = tensors_check(target)
    assert check.passed, check.detail
    assert "5 have the hash of the blocks that gptq chose" in check.detail


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "wide", n_embd=256, n_layer=1).folder


@pytest.mark.slow
def test_importances_choose_blocks_of_types_that_need_them_too(
    tiny_checkpoint: Path, wide: Path, tmp_path: Path
) -> None:
    source, matrix = load_checkpoint(wide), tmp_path / "imatrix.gguf"
    tokens = torch.arange(32)[None]
    write_imatrix(matrix, collect_importance(source.load_model(), tokens, "text"))
    done = export(
        wide, tmp_path / "out", QuantConfig(["iq2_xs", "q4_0"], imatrix=matrix), prove=False
    )
    for file in done.files:
        target = open_target(source, file.path)
        assert target.file.method == "imatrix"
        check = tensors_check(target)
        assert check.passed, check.detail
        assert metadata_check(target).passed
    stated = read_gguf(done.files[0].path).metadata[CALIBRATION_KEY]
    assert stated == hashlib.sha256(matrix.read_bytes()).hexdigest()
    with pytest.raises(ConfigError, match=r"--imatrix.* gptq "):
        export(
            tiny_checkpoint, tmp_path / "a", QuantConfig(["q4_0"], method="gptq", imatrix=matrix)
        )


def test_types_of_single_matrices_are_named_by_patterns(wide: Path, tmp_path: Path) -> None:
    types = {"blk.*.ffn_*": "q8_0", "blk.0.ffn_up": "q6_k"}
    out = tmp_path / "out"
    (file,) = export(wide, out, QuantConfig(["q4_k_m"], tensor_types=types), prove=False).files
    assert file.path.name.endswith("-custom.gguf")
    found = {t.name: t.tensor_type.name for t in gguf.GGUFReader(file.path).tensors}
    assert found["blk.0.ffn_up.weight"] == "Q6_K"
    assert found["blk.0.ffn_down.weight"] == "Q8_0"
    assert found["token_embd.weight"] == "Q6_K"
    assert found["blk.0.attn_output.weight"] == "Q4_K"
    target = open_target(load_checkpoint(wide), file.path)
    assert tensors_check(target).passed
    assert metadata_check(target).passed


def test_patterns_that_mean_nothing_are_refused(wide: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'attn'.*token_embd"):
        export(wide, tmp_path / "a", QuantConfig(["q4_0"], tensor_types={"attn": "q8_0"}))
    with pytest.raises(ConfigError, match=r"--tensor-type .*--quant"):
        export(wide, tmp_path / "a", QuantConfig(["q4_0", "f16"], tensor_types={"output": "q8_0"}))
    with pytest.raises(ConfigError, match="PATTERN=TYPE"):
        tensor_types(["output"])
    with pytest.raises(QuantizationError, match="q8_1"):
        tensor_types(["output=q8_1"])
    assert tensor_types(["a=int8", "b=Q4_0"]) == {"a": "q8_0", "b": "q4_0"}


def test_gptq_leaves_floats_beside_blocks_as_rounding_makes_them(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Once upon a time. " * 40, encoding="utf-8")
    done = export(
        tiny_checkpoint,
        tmp_path / "out",
        QuantConfig(method="gptq", calibration=text),
        prove=False,
    )
    assert [file.quant for file in done.files] == list(DEFAULT_QUANTS)
    methods = [read_gguf(file.path).method for file in done.files]
    assert methods == ["rtn", "gptq", "gptq"]
    f16 = export(tiny_checkpoint, tmp_path / "f16", QuantConfig("f16"), name="tiny", prove=False)
    assert done.files[0].path.read_bytes() == f16.files[0].path.read_bytes()


@pytest.mark.parametrize(("quants", "named"), [("f16,f32", "f16"), ("q4_0,iq4_xs", "iq4_xs")])
def test_types_that_gptq_does_not_support_are_refused(
    wide: Path, tmp_path: Path, quants: str, named: str
) -> None:
    with pytest.raises(QuantizationError, match=f"gptq .*{named}"):
        export(wide, tmp_path / "a", QuantConfig(quants, method="gptq"))


def test_what_gptq_cannot_do_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--calibration .*\brtn\b"):
        export(tiny_checkpoint, tmp_path / "b", QuantConfig(["q4_0"], calibration=tmp_path))
    tuned = with_adapter(load_checkpoint(tiny_checkpoint), tmp_path / "c", base_quant="q4_0")
    with pytest.raises(ConfigError, match="q4_0"):
        export(tuned.folder, tmp_path / "d", QuantConfig(["q4_0"], method="gptq"))
