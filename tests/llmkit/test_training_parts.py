"""A batch in parts, logits in chunks and blocks computed twice give the same gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from training_runs import metrics, run

from llmkit.architectures.registry import model_config, new_model
from llmkit.checkpoint.checkpoint import load_checkpoint
from llmkit.errors import ConfigError
from llmkit.training import cross_entropy, loop
from llmkit.training.cross_entropy import head_cross_entropy


def head(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
    """PyTorch's loss and gradients in float64."""
    hidden, weight = (t.detach().double().requires_grad_() for t in (hidden, weight))
    loss = F.cross_entropy((hidden @ weight.T).flatten(0, 1), targets.flatten(), reduction="sum")
    (loss / 7).backward()
    assert hidden.grad is not None
    assert weight.grad is not None
    return loss.detach(), hidden.grad, weight.grad


@pytest.mark.parametrize("row_multiple", [1, 8])
@pytest.mark.parametrize("chunk", [1, 33 * 4, 1 << 24])
@pytest.mark.parametrize(("bfloat16", "tolerance"), [(False, 1e-5), (True, 2e-2)])
def test_loss_and_gradients_are_those_of_whole_logits(
    monkeypatch: pytest.MonkeyPatch, row_multiple: int, chunk: int, bfloat16: bool, tolerance: float
) -> None:
    monkeypatch.setitem(cross_entropy.CHUNK_LOGITS, "cpu", chunk)
    monkeypatch.setitem(cross_entropy.ROW_MULTIPLE, "cpu", row_multiple)
    monkeypatch.setattr(cross_entropy, "CACHED_LOGITS", 33 * 3 // torch.get_num_threads())
    torch.manual_seed(1)
    hidden = torch.randn(2, 5, 16, requires_grad=True)
    weight = torch.randn(33, 16, requires_grad=True)
    targets = torch.randint(0, 33, (2, 5))
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        loss = head_cross_entropy(hidden, weight, targets)
    (loss / 7).backward()  # type: ignore[no-untyped-call]
    assert loss.dtype == torch.float32
    for found, wanted in zip((loss, hidden.grad, weight.grad), head(hidden, weight, targets)):  # noqa: B905
        assert found is not None
        error = (found.detach().double() - wanted).norm() / wanted.norm()
        assert error < tolerance


def test_logits_of_a_batch_are_never_all_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cross_entropy.CHUNK_LOGITS, "cpu", 1000)
    sizes, original = [], Tensor.log_softmax

    def seen(logits: Tensor, *arguments: Any, **options: Any) -> Tensor:
        sizes.append(logits.numel())
        return original(logits, *arguments, **options)

    monkeypatch.setattr(Tensor, "log_softmax", seen)
    hidden, weight = torch.randn(64, 8, requires_grad=True), torch.randn(100, 8)
    head_cross_entropy(hidden, weight, torch.zeros(64, dtype=torch.long)).backward()  # type: ignore[no-untyped-call]
    assert 500 < max(sizes) <= 1000
    assert hidden.grad is not None


def gradients(changes: dict[str, Any]) -> dict[str, Tensor]:
    torch.manual_seed(3)
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 16, "context_length": 8, "dropout": 0.2}
    model = new_model(model_config("nano", vocab_size=40, **sizes)).train()
    for name, value in changes.items():
        setattr(model, name, value)
    torch.manual_seed(4)
    tokens = torch.randint(0, 40, (3, 8))
    head_cross_entropy(model.hidden_states(tokens), model.head_weight, tokens).backward()  # type: ignore[no-untyped-call]
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_blocks_that_are_run_again_have_the_same_gradients_with_dropout() -> None:
    plain, again = gradients({}), gradients({"recompute_blocks": True})
    assert plain.keys() == again.keys()
    assert all(torch.equal(plain[name], again[name]) for name in plain)


def test_blocks_are_run_again_where_it_is_asked(
    short_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llmkit.architectures import base

    calls, original = [], base.checkpoint
    monkeypatch.setattr(base, "checkpoint", lambda *a, **k: calls.append(1) or original(*a, **k))
    training = {"activation_checkpointing": True, "micro_batch": 2, "steps": 2}
    run(short_text, tmp_path / "out", training=training)
    assert len(calls) == 4  # steps x parts x layers


@pytest.mark.parametrize("micro_batch", [1, 3])
def test_parts_of_a_batch_train_as_the_whole(
    short_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, micro_batch: int
) -> None:
    monkeypatch.setattr(loop, "has_fast_bfloat16", lambda device: False)
    for name, size in (("whole", 16), ("parts", micro_batch)):
        run(short_text, tmp_path / name, training={"micro_batch": size, "optimizer": "adamw"})
    whole, parts = (metrics(tmp_path / name) for name in ("whole", "parts"))
    for a, b in zip(whole, parts, strict=True):
        assert a["train_loss"] == pytest.approx(b["train_loss"], abs=1e-4)
        assert a["tokens"] == b["tokens"]


def test_batch_can_be_given_in_tokens(short_text: Path, tmp_path: Path) -> None:
    training = {"steps": 4, "batch_size": None}
    run(short_text, tmp_path / "out", training=training, batch_tokens=100)
    assert metrics(tmp_path / "out")[0]["tokens"] == 4 * 6 * 16  # six windows of 16
    with pytest.raises(ConfigError, match="batch_size"):
        run(short_text, tmp_path / "both", batch_tokens=100)
    with pytest.raises(ConfigError, match="at least 1"):
        run(short_text, tmp_path / "none", training=training, batch_tokens=0)


def test_loss_that_is_not_finite_stops_before_it_is_saved(
    short_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, out = loop.TrainingLoop.step, tmp_path / "out"

    def diverging(self: loop.TrainingLoop, step: int) -> Tensor:
        loss = original(self, step)
        return loss * float("nan") if step == 5 else loss

    monkeypatch.setattr(loop.TrainingLoop, "step", diverging)
    with pytest.raises(ConfigError, match=r"nan at step 6"):
        run(short_text, out)
    assert [line["step"] for line in metrics(out)] == [4]
    assert load_checkpoint(out).folder == out
