from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf_surgery import (
    Kind,
    keys_of,
    make_checkpoint,
    tensors_of,
    with_flipped_bit,
    with_key,
    with_tensors,
    without_key,
    write_file,
)
from typer.testing import CliRunner
from verify_targets import SLOW_TYPES, proof_of, said, write

from llmkit.checkpoint.checkpoint import Checkpoint, load_checkpoint
from llmkit.errors import DataError, GGUFError, LlmkitError
from llmkit.export.check import Proof
from llmkit.export.convert import export
from llmkit.export.llamacpp.runtime import LlamaCpp
from llmkit.export.quantization.config import QuantConfig
from llmkit.export.verify.checks import CHECKS, Needs
from llmkit.export.verify.file_tensors import FileTensors, Matrix
from llmkit.export.verify.generation_check import generation_check
from llmkit.export.verify.metadata_check import metadata_check
from llmkit.export.verify.target import open_target
from llmkit.export.verify.tensors_check import tensors_check
from llmkit.export.verify.verify import verify
from llmkit.quant import quant_names, quant_type

TOKENS = 256  # of held-out text: four windows


def prove(checkpoint: Path, gguf: Path) -> Proof:
    return verify(checkpoint, gguf, max_tokens=TOKENS)


def failed(proof: Proof) -> set[str]:
    assert proof.passed == all(check.passed for check in proof.checks)
    return {check.name for check in proof.checks if not check.passed}


def detail(proof: Proof, name: str) -> str:
    return next(check.detail for check in proof.checks if check.name == name)


def complaints(checkpoint: Path, gguf: Path) -> dict[str, str]:
    """What the checks say that look at a file without running it."""
    target = open_target(load_checkpoint(checkpoint), gguf)
    found = {"metadata": metadata_check(target), "tensors": tensors_check(target)}
    return {name: outcome.detail for name, outcome in found.items() if not outcome.passed}


@pytest.mark.parametrize("quant", ["f32", "f16", "bf16", "q8_0", "q4_0"])
def test_every_type_is_proved(quant: str, files: dict[str, Path], tiny_checkpoint: Path) -> None:
    proof = prove(tiny_checkpoint, files[quant])
    assert failed(proof) == set()
    without_ollama = [check.name for check in CHECKS if check.needs is not Needs.OLLAMA]
    assert [check.name for check in proof.checks] == without_ollama
    assert proof.quant == quant
    logits = next(check for check in proof.checks if check.name == "logits")
    assert 0 < logits.value < logits.limit
    assert "256 positions" in logits.detail


@pytest.mark.slow
def test_every_other_type_is_proved_at_a_width_of_whole_blocks(tmp_path: Path) -> None:
    made = make_checkpoint(tmp_path / "c", n_layer=1, n_embd=256, context_length=64)
    others = ("f32", "f16", "bf16", "q8_0", "q4_0", *SLOW_TYPES)
    names = [n for n in quant_names() if not quant_type(n).needs_importance and n not in others]
    for file in export(made.folder, tmp_path / "out", QuantConfig(names), prove=False).files:
        proof = prove(made.folder, file.path)
        assert failed(proof) == set(), (file.quant, proof.checks)
        assert proof.quant == file.quant


# --- what is wrong with the file ------------------------------------------------------------


@pytest.mark.parametrize("quant", ["f32", "q4_0"])
@pytest.mark.parametrize("name", ["token_embd.weight", "blk.1.ffn_up.bias", "position_embd.weight"])
def test_one_bit_in_a_weight_is_found(
    quant: str, name: str, files: dict[str, Path], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    changed = with_flipped_bit(files[quant], tmp_path / "m.gguf", name)
    found = complaints(tiny_checkpoint, changed)
    assert found.keys() == {"tensors"}
    assert name in found["tensors"]


def test_two_exchanged_layers_are_found(
    files: dict[str, Path], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    def exchange(tensors: dict[str, Any]) -> None:
        for name in [name for name in tensors if name.startswith("blk.0.")]:
            other = name.replace("blk.0.", "blk.1.")
            tensors[name], tensors[other] = tensors[other], tensors[name]

    changed = with_tensors(files["q8_0"], tmp_path / "m.gguf", exchange)
    assert "tensors" in failed(prove(tiny_checkpoint, changed))


def test_another_checkpoints_file_is_found(
    files: dict[str, Path], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    def retrain(weights: dict[str, torch.Tensor]) -> None:
        weights["h.0.mlp.c_fc.weight"] += 0.01

    other = make_checkpoint(
        tmp_path / "other", tokenizer=_tokenizer(tiny_checkpoint), change=retrain, context_length=64
    )
    path = export(other.folder, tmp_path / "out", QuantConfig(["q8_0"]), prove=False).files[0].path
    found = prove(tiny_checkpoint, path)
    assert {"tensors"} <= failed(found) <= {"metadata", "tensors"}  # of another vocabulary size
    assert failed(prove(tiny_checkpoint, files["q8_0"])) == set()


def test_a_file_of_another_type_than_it_says_is_found(
    files: dict[str, Path], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    changed = with_key(files["q4_0"], tmp_path / "m.gguf", "general.file_type", 7, Kind.UINT32)
    assert "tensors" in complaints(tiny_checkpoint, changed)


@pytest.mark.parametrize(
    ("key", "value", "kind"),
    [
        ("gpt2.attention.layer_norm_epsilon", 1e-4, Kind.FLOAT32),
        ("gpt2.attention.head_count", 4, Kind.UINT32),
        ("gpt2.vocab_size", 511, Kind.UINT32),
        ("tokenizer.ggml.eos_token_id", 17, Kind.UINT32),
        ("tokenizer.ggml.bos_token_id", 17, Kind.UINT32),
        ("tokenizer.ggml.add_bos_token", True, Kind.BOOL),
        ("tokenizer.ggml.pre", "llama-bpe", Kind.STRING),
        ("tokenizer.ggml.pre", "default", Kind.STRING),
        # keys that export does not write
        ("tokenizer.ggml.add_eos_token", True, Kind.BOOL),
        ("tokenizer.ggml.eot_token_id", 17, Kind.UINT32),
        ("gpt2.attention.head_count_kv", 2, Kind.UINT32),
    ],
)
def test_a_changed_key_is_found_and_named(
    key: str, value: Any, kind: Kind, files: dict[str, Path], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    changed = with_key(files["f32"], tmp_path / "m.gguf", key, value, kind)
    found = complaints(tiny_checkpoint, changed)
    assert found.keys() == {"metadata"}
    assert key in found["metadata"]


def test_a_missing_key_is_found_and_named(
    files: dict[str, Path], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    for key in ("tokenizer.ggml.add_bos_token", "tokenizer.ggml.token_type", "general.name"):
        changed = without_key(files["f32"], tmp_path / "m.gguf", key)
        assert key in complaints(tiny_checkpoint, changed)["metadata"]


def test_what_general_keys_say_besides_is_no_error(
    files: dict[str, Path], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    path = with_key(files["f32"], tmp_path / "m.gguf", "general.author", "somebody", Kind.STRING)
    path = with_key(path, tmp_path / "n.gguf", "general.name", "another name", Kind.STRING)
    assert failed(prove(tiny_checkpoint, path)) == set()


def _without_a_merge(keys: dict[str, Any]) -> None:
    merges, *types = keys["tokenizer.ggml.merges"]
    keys["tokenizer.ggml.merges"] = (merges[:100] + merges[101:], *types)


def _with_exchanged_tokens(keys: dict[str, Any]) -> None:
    tokens, *types = keys["tokenizer.ggml.tokens"]
    tokens = list(tokens)
    tokens[300], tokens[301] = tokens[301], tokens[300]
    keys["tokenizer.ggml.tokens"] = (tokens, *types)


def _with_another_end(keys: dict[str, Any]) -> None:
    keys["tokenizer.ggml.eos_token_id"] = (17, Kind.UINT32, None)


@pytest.mark.parametrize("change", [_without_a_merge, _with_exchanged_tokens, _with_another_end])
def test_another_tokenizer_is_found_in_the_keys_and_in_llama_cpp(
    change: Callable[[dict[str, Any]], None],
    files: dict[str, Path],
    tiny_checkpoint: Path,
    tmp_path: Path,
) -> None:
    keys = keys_of(files["f32"])
    change(keys)
    path = write_file(tmp_path / "m.gguf", keys, tensors_of(files["f32"]))
    assert {"metadata", "tokenizer"} <= failed(prove(tiny_checkpoint, path))


def test_a_special_token_written_as_text_is_found(
    files: dict[str, Path], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    key = "tokenizer.ggml.token_type"
    normal = [1] * 512
    path = with_key(files["f32"], tmp_path / "a.gguf", key, normal, Kind.ARRAY, Kind.INT32)
    assert "metadata" in complaints(tiny_checkpoint, path)


def test_a_left_over_tensor_is_found(
    files: dict[str, Path], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    def add(tensors: dict[str, Any]) -> None:
        tensors["output.weight"] = tensors["token_embd.weight"]

    changed = with_tensors(files["f32"], tmp_path / "m.gguf", add)
    assert "output.weight" in complaints(tiny_checkpoint, changed)["tensors"]


def test_a_missing_tensor_is_found_without_running_the_file(
    files: dict[str, Path], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    name = "blk.1.attn_qkv.bias"
    path = with_tensors(files["f32"], tmp_path / "m.gguf", lambda tensors: tensors.pop(name))
    proof = prove(tiny_checkpoint, path)
    assert name in detail(proof, "tensors")
    assert detail(proof, "logits").startswith("not run")


@pytest.mark.parametrize(
    "sizes", [{"context_length": 32}, {"n_layer": 1}, {"n_embd": 32}, {"tie_embeddings": False}]
)
def test_a_file_of_other_sizes_fails_without_being_run(
    sizes: dict[str, Any], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    tokenizer = _tokenizer(tiny_checkpoint)
    other = make_checkpoint(
        tmp_path / "other", **{"tokenizer": tokenizer, "context_length": 64, **sizes}
    )
    path = export(other.folder, tmp_path / "out", QuantConfig(["f32"]), prove=False).files[0].path
    proof = prove(tiny_checkpoint, path)
    assert {"tensors", "tokenizer", "logits", "generation"} <= failed(proof)
    assert detail(proof, "logits").startswith("not run")


def test_a_file_that_cannot_run_is_an_error_not_a_proof(
    files: dict[str, Path], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    key = "gpt2.attention.head_count"
    bad = with_key(files["f32"], tmp_path / "a.gguf", key, 3, Kind.UINT32)
    with pytest.raises(LlmkitError, match="n_head 3"):
        prove(tiny_checkpoint, bad)
    bad = without_key(files["f32"], tmp_path / "b.gguf", "general.file_type")
    with pytest.raises(GGUFError, match="file_type"):
        prove(tiny_checkpoint, bad)
    assert not (tmp_path / "parity.json").exists()


# --- what is wrong with llama.cpp -----------------------------------------------------------


def with_logits(monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], Any]) -> None:
    """llama.cpp whose logits are changed on their way out."""
    evaluate = LlamaCpp.evaluate

    def changed(self: LlamaCpp, ids: Any, *, all_positions: bool = True) -> Any:
        return change(evaluate(self, ids, all_positions=all_positions))

    monkeypatch.setattr(LlamaCpp, "evaluate", changed)


@pytest.mark.parametrize("quant", ["f32", "f16", "bf16", "q8_0", "q4_0"])
def test_logits_that_are_a_little_wrong_fail(
    quant: str, files: dict[str, Path], tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ramp = np.linspace(0, {"f32": 1e-4, "f16": 0.02}.get(quant, 0.3), 512, dtype=np.float32)
    with_logits(monkeypatch, lambda logits: logits + ramp)
    assert "logits" in failed(prove(tiny_checkpoint, files[quant]))


def test_logits_that_are_no_numbers_fail_and_stay_json(
    files: dict[str, Path], tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_logits(monkeypatch, lambda logits: logits * np.nan)
    proof = prove(tiny_checkpoint, files["f32"])
    assert "logits" in failed(proof)
    assert "llama.cpp's logits are infinite or NaN at 256 of 256 positions" in detail(
        proof, "logits"
    )
    json.dumps(proof.to_dict(), allow_nan=False)


@pytest.mark.parametrize("quant", ["f32", "f16", "q8_0", "q4_0"])
def test_a_product_that_is_one_percent_off_fails(
    quant: str, files: dict[str, Path], tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if llama.cpp multiplied with other weights than the file's."""
    matrix = FileTensors.matrix

    def scaled(self: FileTensors, name: str) -> Matrix:
        found = matrix(self, name)
        wrong = name == "blk.0.ffn_up.weight"
        return replace(found, weight=found.weight * 1.01) if wrong else found

    monkeypatch.setattr(FileTensors, "matrix", scaled)
    proof = prove(tiny_checkpoint, files[quant])
    assert "layers" in failed(proof)
    assert "blk.0: ffn_norm -> ffn_up: blk.0.ffn_up.weight" in detail(proof, "layers")
    assert quant in ("q8_0", "q4_0") or "logits" in failed(proof)


@pytest.mark.slow
def test_an_activation_that_no_f16_holds_is_caught(tmp_path: Path) -> None:
    def overflow(weights: dict[str, torch.Tensor]) -> None:
        weights["h.0.mlp.c_fc.bias"][7] = 1e5
        weights["h.0.mlp.c_proj.weight"][:, 7] = 1e-7

    made = make_checkpoint(tmp_path / "c", change=overflow)
    found = said(proof_of(made, write(made, tmp_path / "m.gguf", "f16")))
    assert found["logits"].startswith("llama.cpp's logits are infinite or NaN at")
    assert "bf16" in found["logits"]
    assert "generation" in found
    assert said(proof_of(made, write(made, tmp_path / "b.gguf", "bf16"))) == {}


class Choosing:
    """A stand-in for llama.cpp that chooses token 5 where the reference would choose 3."""

    n_ctx = 64

    def reset(self) -> None:
        pass

    def evaluate(self, ids: Any, *, all_positions: bool = True) -> Any:
        return np.eye(1, 8, 5)

    def is_end_of_generation(self, token_id: int) -> bool:
        return False


@pytest.mark.parametrize(("gap", "passes"), [(0.5, False), (0.021, False), (0.019, True)])
def test_a_wrong_choice_passes_only_as_a_near_tie(gap: float, passes: bool) -> None:
    class Preferring:
        def last_logits(self, texts: Any, counts: list[int]) -> list[torch.Tensor]:
            row = torch.zeros(8)
            row[3], row[5] = 4.0, 4.0 - gap
            return [row.expand(n, 8) for n in counts]

    llama: Any = Choosing()
    reference: Any = Preferring()
    check = generation_check(llama, reference, [[1, 1]] * 4, noise=0.01, n_new=3)
    assert check.passed == passes
    assert check.value == (0 if passes else 12)
    assert ("12 near-ties" in check.detail) == passes


# --- the text that is compared on -----------------------------------------------------------


def test_text_of_ones_own_is_used(
    files: dict[str, Path], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Once there was a fox.", encoding="utf-8")
    proof = verify(tiny_checkpoint, _copy(files["f32"], tmp_path), data=text)
    n_tokens = len(_tokenizer(tiny_checkpoint).encode("Once there was a fox."))
    assert proof.passed
    assert f"mean KL of {n_tokens} positions" in detail(proof, "logits")  # the end of text follows


@pytest.mark.parametrize("content", ["", "   \n"])
def test_text_that_is_too_short_is_refused(
    content: str, files: dict[str, Path], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match="two tokens"):
        verify(tiny_checkpoint, files["f32"], data=text)


def test_a_checkpoint_without_held_out_text_is_proved_on_tales(
    random_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    path = (
        export(random_checkpoint.folder, tmp_path, QuantConfig(["f32"]), prove=False).files[0].path
    )
    proof = verify(random_checkpoint.folder, path, max_tokens=64)
    assert proof.passed
    assert proof.texts == "built-in tales"


def test_held_out_tokens_of_another_vocabulary_are_refused(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "c")
    checkpoint.validation_tokens_file.parent.mkdir()
    np.arange(1000, dtype="<u2").tofile(checkpoint.validation_tokens_file)
    path = (
        export(checkpoint.folder, tmp_path / "out", QuantConfig(["f32"]), prove=False).files[0].path
    )
    with pytest.raises(DataError, match=r"\b992\b.* 275 .*--data"):
        verify(checkpoint.folder, path)


# --- parity.json ----------------------------------------------------------------------------


def test_the_proof_is_what_was_promised(
    files: dict[str, Path], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    import hashlib

    path = _copy(files["q8_0"], tmp_path)
    proof = prove(tiny_checkpoint, path)
    kept = json.loads((tmp_path / "parity.json").read_text(encoding="utf-8"))["proofs"]
    assert kept == [json.loads(json.dumps(proof.to_dict()))]
    assert {"passed", "checkpoint", "gguf", "sha256", "quant", "checks"} <= kept[0].keys()
    assert kept[0]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    model = (tiny_checkpoint / "model.safetensors").read_bytes()
    assert kept[0]["checkpoint_sha256"] == hashlib.sha256(model).hexdigest()
    for check in kept[0]["checks"]:
        assert list(check) == ["name", "passed", "value", "limit", "detail"]
        assert isinstance(check["passed"], bool)
        assert math.isfinite(check["value"])


def test_json_goes_to_stdout_and_the_exit_code_tells(
    files: dict[str, Path], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    from llmkit.cli.main import app

    bad = with_flipped_bit(files["f32"], tmp_path / "m.gguf", "output_norm.bias")
    page = tmp_path / "page.html"
    for path, code in ((_copy(files["f32"], tmp_path), 0), (bad, 1)):
        command = ["verify", str(tiny_checkpoint), str(path), "--json"]
        assert not list(tmp_path.glob("*.html"))
        result = CliRunner().invoke(app, [*command, "--html", str(page)] if code else command)
        assert result.exit_code == code
        said = json.loads(result.stdout)
        assert said["passed"] == (code == 0)
        assert {tuple(c) for c in said["checks"]} == {
            ("name", "passed", "value", "limit", "detail")
        }
    html = page.read_text(encoding="utf-8")
    assert "Proof of m.gguf" in html
    assert html.count('<tr class="failed">') == 1
    assert html.count("data:image/png;base64,") == 1


def test_proofs_are_kept_side_by_side_and_replaced(
    files: dict[str, Path], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "parity.json"

    def names() -> list[tuple[str, bool]]:
        proofs = json.loads(kept.read_text(encoding="utf-8"))["proofs"]
        return [(Path(proof["gguf"]).name, proof["passed"]) for proof in proofs]

    first, second = (_copy(files[quant], tmp_path) for quant in ("f32", "q4_0"))
    prove(tiny_checkpoint, first)
    prove(tiny_checkpoint, second)
    assert names() == [("tiny-f32.gguf", True), ("tiny-q4_0.gguf", True)]
    with_flipped_bit(files["f32"], first, "output_norm.bias")
    prove(tiny_checkpoint, first)
    assert sorted(names()) == [("tiny-f32.gguf", False), ("tiny-q4_0.gguf", True)]


def test_the_proof_of_a_files_own_checkpoint_stays(
    files: dict[str, Path],
    tiny_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    gguf = _copy(files["f32"], tmp_path)
    prove(tiny_checkpoint, gguf)
    before = (tmp_path / "parity.json").read_bytes()
    other = make_checkpoint(tmp_path / "other")
    assert not prove(other.folder, gguf).passed
    assert (tmp_path / "parity.json").read_bytes() == before
    assert f"proof of {gguf.name}" in capsys.readouterr().err
    prove(other.folder, gguf.rename(tmp_path / "unproved.gguf"))
    assert (tmp_path / "parity.json").read_bytes() != before


@pytest.mark.parametrize(
    "foreign",
    ["", "not JSON", "[]", "{}", '{"proofs": 3}', '{"proofs": [1, {}, {"gguf": 2}]}', "\xff"],
)
def test_a_foreign_parity_file_is_replaced(
    foreign: str, files: dict[str, Path], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "parity.json"
    kept.write_text(foreign, encoding="latin-1")
    prove(tiny_checkpoint, _copy(files["f32"], tmp_path))
    assert len(json.loads(kept.read_text(encoding="utf-8"))["proofs"]) == 1


def _copy(path: Path, folder: Path) -> Path:
    target = folder / path.name
    target.write_bytes(path.read_bytes())
    return target


def _tokenizer(folder: Path) -> Any:
    from llmkit.tokenizer_files import load_tokenizer

    return load_tokenizer(folder)
