from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from finetune_runs import KINDS, instruct, records, write_questions
from safetensors.torch import load_file
from training_runs import outcome, snapshot

from llmkit.architectures.gpt2 import GPT
from llmkit.checkpoint.checkpoint import Checkpoint, load_checkpoint
from llmkit.checkpoint.config import CheckpointConfig, save_config
from llmkit.checkpoint.tensors import save_tensors
from llmkit.data.sampler import window_starts
from llmkit.data.tokens import windows
from llmkit.errors import CheckpointError, ConfigError, DataError, QuantizationError
from llmkit.finetuning import distill as finetuning_distill
from llmkit.finetuning import start
from llmkit.finetuning.config import FinetuneConfig
from llmkit.finetuning.distill import DistillResult, finetune_distill
from llmkit.finetuning.examples import encode_conversation
from llmkit.lora import LoRAConfig
from llmkit.modelfiles.prompt_format import Message
from llmkit.quant import dequantize, quant_type, quantize
from llmkit.quantization.qat import on_grid
from llmkit.quantization.walk import error_feedback
from llmkit.training import loop
from llmkit.training.loop import TrainingLoop

TRAINING: dict[str, Any] = {
    "steps": 6,
    "batch_size": 4,
    "eval_interval": 3,
    "eval_tokens": 512,
    "warmup_steps": 1,
}


class StopError(Exception):
    """Ends a run in the middle."""


def distill(base: Path, out: Path, *, qat: str = "q4_0", **changes: Any) -> DistillResult:
    training = {**TRAINING, **changes.pop("training", {})}
    return finetune_distill(base, out, qat=qat, training=training, device="cpu", **changes)


def kl_by_hand(teacher: GPT, student: GPT, inputs: torch.Tensor) -> torch.Tensor:
    """Mean over positions of sum p (log p - log q)."""
    with torch.no_grad():
        p = teacher(inputs).softmax(dim=-1)
    q = student(inputs).softmax(dim=-1)
    return (p * (p.log() - q.log())).sum(dim=-1).mean()


def rounded(model: GPT) -> GPT:
    """The model with its matrices in q4_0, as rounding packs them."""
    q4_0 = quant_type("q4_0")
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2 and name != "wpe.weight":
            blocks = quantize(parameter.detach().numpy(), q4_0, name)
            parameter.data = torch.from_numpy(dequantize(blocks, q4_0))
    return model


@pytest.mark.slow
def test_training_brings_the_blocks_nearer_to_the_floats(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    training = {"steps": 40, "eval_interval": 20}
    result = distill(tiny_checkpoint, tmp_path / "out", training=training)
    assert result.kl < 0.6 * result.rounding_kl
    assert [line.step for line in result.metrics] == [20, 40]

    base, made = load_checkpoint(tiny_checkpoint), load_checkpoint(result.checkpoint)
    assert made.qat == result.qat == "q4_0"
    tokens = np.fromfile(made.validation_tokens_file, "<u2").astype(np.int64)
    length = base.config.context_length
    starts = np.linspace(0, (len(tokens) - 1) // length - 1, 512 // length).astype(int) * length
    inputs = torch.from_numpy(np.stack([tokens[at : at + length] for at in starts]))
    teacher = base.load_model()
    with torch.no_grad():
        kl = kl_by_hand(teacher, made.load_model(), inputs)
        rounding_kl = kl_by_hand(teacher, rounded(base.load_model()), inputs)
    assert math.isclose(kl, result.kl, rel_tol=1e-2)
    assert math.isclose(rounding_kl, result.rounding_kl, rel_tol=1e-2)


def test_one_step_is_adams_on_the_floats_with_the_rounded_weights_gradients(
    small_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "has_fast_bfloat16", lambda device: False)
    training = {"steps": 1, "warmup_steps": 0, "learning_rate": 1e-3, "seed": 5}
    result = distill(small_base, tmp_path / "out", training=training)

    before = first(small_base, tmp_path / "first", monkeypatch)
    grid = before.grid(torch.device("cpu"))
    student = before.load_model(for_training=True)
    tokens = np.fromfile(small_base / "training" / "train.tokens", "<u2").astype(np.int64)
    length = before.config.context_length
    starts = window_starts(len(tokens), length, 5, 0, 4)
    inputs = torch.from_numpy(np.stack([tokens[start : start + length] for start in starts]))
    with on_grid(student, grid):
        teacher = load_checkpoint(small_base).load_model()
        kl_by_hand(teacher, student, inputs).backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
    optimizer = torch.optim.AdamW(student.parameters(), 1e-3, (0.9, 0.99), weight_decay=0.0)
    optimizer.step()
    found = load_file(load_checkpoint(result.checkpoint).model_file)
    began = load_file(before.model_file)
    for name, wanted in student.state_dict().items():
        # Adam's first step has the gradient's sign and one size: where it is about 0, either sign.
        moved = (found[name] - began[name]).abs().amax()
        assert 0.9e-3 < moved < 1.1e-3, name
        same = torch.isclose(found[name], wanted, rtol=0, atol=2e-5)
        assert same.float().mean() > 0.98, name


def first(base: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> Checkpoint:
    """What a run writes before its first step."""

    def stop(self: TrainingLoop, number: int) -> float:
        raise StopError

    with monkeypatch.context() as patch:
        patch.setattr(TrainingLoop, "step", stop)
        with pytest.raises(StopError):
            distill(base, out)
    return load_checkpoint(out)


def test_training_begins_at_the_blocks_that_error_feedback_gives(
    small_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, base = first(small_base, tmp_path / "out", monkeypatch), load_checkpoint(small_base)
    tokens = np.fromfile(small_base / "training" / "train.tokens", "<u2").astype(np.int64)
    text = windows(tokens, base.config.context_length, 32768)[:, :-1]
    model, q4_0 = base.load_model(), quant_type("q4_0")
    types = dict.fromkeys(made.trained_blocks(), q4_0)
    assert len(types) == len([p for p in model.parameters() if p.dim() == 2]) - 1
    wanted = error_feedback(model, types, torch.from_numpy(text))
    for name, blocks in made.trained_blocks().items():
        assert np.array_equal(blocks, wanted[name]), name
    ids = torch.arange(40)[None] % base.config.vocab_size
    assert torch.equal(made.load_model()(ids), made.load_model(for_training=True)(ids))


def test_error_feedback_runs_where_the_model_trains(
    small_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[torch.device] = []

    def noted(model: GPT, types: object, tokens: torch.Tensor) -> None:
        asked.append(model.device)
        raise StopError

    monkeypatch.setattr(start, "error_feedback", noted)
    for number, name in enumerate(("meta", "mps", "cpu")):
        monkeypatch.setattr(finetuning_distill, "choose_device", lambda _, n=name: torch.device(n))
        with pytest.raises(StopError):
            distill(small_base, tmp_path / str(number))
    assert [device.type for device in asked] == ["meta", "cpu", "cpu"]  # MPS has no float64


def test_checkpoint_computes_what_its_blocks_hold(small_base: Path, tmp_path: Path) -> None:
    opened = load_checkpoint(distill(small_base, tmp_path / "out").checkpoint)
    tokens = torch.arange(40)[None] % opened.config.vocab_size
    floats = GPT(opened.config).eval()
    floats.load_state_dict(load_file(opened.model_file))
    plain = floats(tokens)
    assert torch.equal(opened.load_model(for_training=True)(tokens), plain)
    with on_grid(floats, opened.grid(torch.device("cpu"))):
        on_its_grid = floats(tokens)
    assert torch.equal(opened.load_model()(tokens), on_its_grid)
    assert not torch.equal(plain, on_its_grid)
    for name, blocks in load_file(opened.blocks_file).items():
        floats.get_parameter(name).data = torch.from_numpy(
            gguf.quants.dequantize(blocks.numpy(), gguf.GGMLQuantizationType.Q4_0)
        )
    assert torch.equal(opened.load_model()(tokens), floats(tokens))


def test_blocks_of_another_model_are_refused(small_base: Path, tmp_path: Path) -> None:
    opened = load_checkpoint(distill(small_base, tmp_path / "out").checkpoint)
    blocks = load_file(opened.blocks_file)
    before = opened.sha256
    save_tensors(opened.blocks_file, {**blocks, "wte.weight": blocks["wte.weight"][:, :-1]}, 6)
    with pytest.raises(QuantizationError, match="damaged"):
        load_checkpoint(opened.folder).load_model()
    assert load_checkpoint(opened.folder).sha256 != before
    del blocks["wte.weight"]
    save_tensors(opened.blocks_file, blocks, 6)
    with pytest.raises(CheckpointError, match=r"blocks\.safetensors .*\bmatrices\b"):
        load_checkpoint(opened.folder).load_model()


def test_dropout_of_the_base_is_left_out(small_base: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(small_base, base)
    content = json.loads((base / "config.json").read_text(encoding="utf-8"))
    content["model"]["dropout"] = 0.5
    (base / "config.json").write_text(json.dumps(content), encoding="utf-8")
    dropped = load_checkpoint(distill(base, tmp_path / "dropped").checkpoint)
    plain = load_checkpoint(distill(small_base, tmp_path / "plain").checkpoint)
    assert dropped.config == plain.config
    assert dropped.model_file.read_bytes() == plain.model_file.read_bytes()


def test_text_of_its_own_is_split_as_in_training(
    small_base: Path, short_text: Path, tmp_path: Path
) -> None:
    own = distill(small_base, tmp_path / "own").checkpoint
    given = distill(small_base, tmp_path / "given", data=short_text).checkpoint
    for part in ("train.tokens", "validation.tokens"):
        assert (own / "training" / part).read_bytes() == (given / "training" / part).read_bytes()
    assert (own / "model.safetensors").read_bytes() == (given / "model.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("step", [0, 2, 3, 5])
def test_stopped_run_resumes_exactly(
    small_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    original = TrainingLoop.step

    def stop(self: TrainingLoop, number: int) -> float:
        if number == step:
            raise StopError
        return original(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingLoop, "step", stop)
        with pytest.raises(StopError):
            distill(small_base, tmp_path / "out")
    with pytest.raises(CheckpointError, match="add --resume"):
        distill(small_base, tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"\(finetune\.qat .*\bq4_0\b.*\bq8_0\b"):
        distill(small_base, tmp_path / "out", qat="q8_0", resume=True)
    distill(small_base, tmp_path / "out", resume=True)
    distill(small_base, tmp_path / "whole")
    found, wanted = outcome(tmp_path / "out"), outcome(tmp_path / "whole")
    assert found == wanted


def test_finished_run_is_left_alone(small_base: Path, tmp_path: Path) -> None:
    first = distill(small_base, tmp_path / "out")
    before = snapshot(tmp_path / "out")
    assert distill(small_base, tmp_path / "out") == first
    assert snapshot(tmp_path / "out") == before


def test_records_of_a_fine_tuned_base_are_read_one_after_the_other(
    small_base: Path, tmp_path: Path
) -> None:
    questions = write_questions(tmp_path / "questions.jsonl", 3 * records())
    base = instruct(small_base, questions, tmp_path / "base").checkpoint
    out = distill(base, tmp_path / "out").checkpoint
    opened = load_checkpoint(out)
    lines = (base / "training" / "trained.jsonl").read_text(encoding="utf-8").splitlines()
    first_messages = [Message(**message) for message in json.loads(lines[0])["messages"]]
    wanted = encode_conversation(first_messages, opened.prompt_format, opened.tokenizer, "").ids
    tokens = np.fromfile(out / "training" / "train.tokens", "<u2")
    assert tuple(tokens[: len(wanted)]) == wanted
    assert list(tokens).count(opened.end_id) >= len(lines)
    for name in ("trained.jsonl", "held_out.jsonl"):
        there = (base / "training" / name).read_bytes()
        assert (out / "training" / name).read_bytes() == there
    distill(base, out)  # it is this run, finished


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "qlora"])
def test_adapter_of_the_base_is_merged_first(
    kind: str, small_base: Path, questions: Path, tmp_path: Path, short_text: Path
) -> None:
    base = instruct(small_base, questions, tmp_path / "base", config=KINDS[kind]).checkpoint
    result = distill(base, tmp_path / "out", data=short_text)
    assert load_checkpoint(result.checkpoint).lora is None
    opened = load_checkpoint(base)
    with opened.open_merged() as file:
        merged = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    alone = tmp_path / "alone"
    shutil.copytree(small_base, alone)
    save_tensors(alone / "model.safetensors", merged, step=0)
    save_config(alone, CheckpointConfig(opened.config, opened.prompt_format))
    wanted = distill(alone, tmp_path / "wanted", data=short_text)
    assert result.rounding_kl == pytest.approx(wanted.rounding_kl, rel=0.1)


def test_unknown_type_is_named(small_base: Path, tmp_path: Path) -> None:
    with pytest.raises(QuantizationError, match="q4_9"):
        distill(small_base, tmp_path / "out", qat="q4_9")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["iq2_xxs", "f32", "f16", "bf16"])
def test_type_that_nothing_can_be_trained_for_is_refused(
    small_base: Path, tmp_path: Path, kind: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{kind} .* choose"):
        distill(small_base, tmp_path / "out", qat=kind)
    with pytest.raises(ConfigError, match=f"^{kind} .* choose"):
        FinetuneConfig(lora=LoRAConfig(rank=2), qlora=kind)


def test_type_that_fits_no_matrix_is_refused(small_base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"256.*q4_k|q4_k.*256"):
        distill(small_base, tmp_path / "out", qat="q4_k")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("n", "part"), [(10, "validation"), (3, "train")])
def test_few_records_ask_for_text_and_leave_the_folder_free(
    n: int, part: str, small_base: Path, short_text: Path, tmp_path: Path
) -> None:
    questions = write_questions(tmp_path / "questions.jsonl", records()[:n])
    base = instruct(small_base, questions, tmp_path / "base").checkpoint
    words = rf"records .*\b{part}\b.* \d+ tokens\b.*\b65\b.*--data"
    with pytest.raises(DataError, match=words):
        distill(base, tmp_path / "out")
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []
    made = distill(base, tmp_path / "out", data=short_text).checkpoint
    assert not load_checkpoint(made).held_out_file.exists()


def test_base_without_its_text_asks_for_some(small_base: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(small_base, base)
    (base / "training" / "train.tokens").unlink()
    with pytest.raises(DataError, match=r"training text.*--data"):
        distill(base, tmp_path / "out")
