"""Preferences: compared with the paper's formula, written out over whole logits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_runs import ANIMALS, KINDS, PLACES, TRAINING

from llmkit.architectures.gpt2 import GPT
from llmkit.checkpoint.checkpoint import load_checkpoint
from llmkit.errors import CheckpointError, ConfigError
from llmkit.finetuning import prefer as finetuning_prefer
from llmkit.finetuning.config import FinetuneConfig
from llmkit.finetuning.examples import encode_conversation
from llmkit.finetuning.prefer import (
    REFERENCE_FILE,
    Pair,
    Prefer,
    PreferResult,
    all_log_probs,
    finetune_prefer,
    margins,
    pair_log_probs,
    preference_accuracy,
)
from llmkit.modelfiles.prompt_format import COMPLETION, Message
from llmkit.records.preferences import read_preferences

LONG: dict[str, Any] = {
    "steps": 160,
    "batch_size": 8,
    "learning_rate": 3e-3,
    "eval_interval": 80,
    "warmup_steps": 5,
}


class StopError(Exception):
    """Ends a run in the middle."""


@pytest.fixture(scope="module")
def preferences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty questions of which the longer answer is preferred."""
    path = tmp_path_factory.mktemp("preferences") / "preferences.jsonl"
    records = [
        {
            "prompt": f"Where is the {animal} {verb} of the {place}?",
            "chosen": f" Near the {place}.",  # the longer one, so at first the rarer
            "rejected": f" At the {place}.",
        }
        for place in PLACES
        for animal in ANIMALS
        for verb in ("and the hen", "or the dog")
    ]
    path.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    return path


def prefer(base: Path, data: Path, out: Path, **changes: Any) -> PreferResult:
    return finetune_prefer(base, data, out, **{"training": TRAINING, "device": "cpu", **changes})


@pytest.fixture(scope="module")
def results(
    small_base: Path, preferences: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], PreferResult]:
    """A run of each kind that is long enough to learn. Tests must not write into it."""
    made: dict[str, PreferResult] = {}

    def of(kind: str) -> PreferResult:
        if kind not in made:
            out = tmp_path_factory.mktemp(kind) / "out"
            rate = LONG["learning_rate"] * (1 if kind == "full" else 10)  # adapters begin at 0
            training = {**LONG, "learning_rate": rate}
            made[kind] = prefer(small_base, preferences, out, config=KINDS[kind], training=training)
        return made[kind]

    return of


def pairs_of(checkpoint: Path, data: Path) -> list[Pair]:
    tokenizer = load_checkpoint(checkpoint).tokenizer
    return [
        Pair(
            *(
                encode_conversation(
                    (*p.messages, Message("assistant", said)), COMPLETION, tokenizer, p.where
                )
                for said in (p.chosen, p.rejected)
            )
        )
        for p in read_preferences(data, COMPLETION)
    ]


@torch.inference_mode()
def log_prob_by_hand(model: GPT, ids: tuple[int, ...], is_answer: tuple[bool, ...]) -> float:
    """One sequence alone, one token after the other."""
    log_probs = model(torch.tensor([ids])).double().log_softmax(-1)[0]  # (T, V)
    return sum(
        float(log_probs[place - 1, ids[place]]) for place in range(1, len(ids)) if is_answer[place]
    )


# --- the numbers ----------------------------------------------------------------------------


def test_log_probabilities_of_a_padded_batch_are_those_of_each_answer_alone(
    small_base: Path, preferences: Path
) -> None:
    model = load_checkpoint(small_base).load_model()
    pairs = pairs_of(small_base, preferences)[:5]
    wanted = [
        [log_prob_by_hand(model, side.ids, side.is_answer) for side in (p.chosen, p.rejected)]
        for p in pairs
    ]
    assert len({len(p.chosen.ids) for p in pairs}) > 1  # else there is no filling
    torch.testing.assert_close(
        pair_log_probs(model, pairs).double(), torch.tensor(wanted).double(), rtol=1e-5, atol=1e-4
    )
    torch.testing.assert_close(
        all_log_probs(model, pairs, 2).double(), torch.tensor(wanted).double(), rtol=1e-5, atol=1e-4
    )


def test_margin_is_the_papers() -> None:
    log_probs = torch.tensor([[-3.0, -5.0], [-1.0, -1.5]])
    reference = torch.tensor([[-4.0, -4.5], [-1.0, -1.0]])
    # beta * ((chosen - its reference) - (rejected - its reference))
    torch.testing.assert_close(margins(log_probs, reference, 0.2), torch.tensor([0.3, 0.1]))
    assert preference_accuracy(log_probs) == 1
    assert preference_accuracy(log_probs.flip(1)) == 0


def test_loss_before_the_first_step_is_log_2(
    small_base: Path, preferences: Path, tmp_path: Path
) -> None:
    changed = {**TRAINING, "steps": 1, "eval_interval": 1, "learning_rate": 1e-9}
    result = prefer(small_base, preferences, tmp_path / "out", training=changed)
    assert result.last.val_loss == pytest.approx(0.693147, abs=1e-4)
    assert result.metrics[0].train_loss == pytest.approx(0.693147, abs=5e-4)  # bfloat16
    assert result.margin == pytest.approx(0, abs=1e-4)
    assert result.accuracy == result.reference_accuracy


# --- what is learnt -------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_margins_grow_and_the_preferred_answer_becomes_the_likelier(
    kind: str, results: Callable[[str], PreferResult]
) -> None:
    result = results(kind)
    assert result.metrics[1].margin > result.metrics[0].margin > 0  # type: ignore[operator]
    assert result.reward_accuracy == 1
    assert result.accuracy > result.reference_accuracy == 0
    assert result.quality == result.accuracy
    assert sum(result.n_records) == 40


def test_reference_is_the_model_before_the_first_step(
    results: Callable[[str], PreferResult], small_base: Path, preferences: Path
) -> None:
    result = results("full")
    held_out = (result.checkpoint / "training" / "held_out.jsonl").read_text(encoding="utf-8")
    asked = {json.loads(line)["messages"][0]["content"] for line in held_out.splitlines()}
    pairs = [
        pair
        for pair, record in zip(
            pairs_of(small_base, preferences),
            read_preferences(preferences, COMPLETION),
            strict=True,
        )
        if record.messages[0].content in asked
    ]
    before = all_log_probs(load_checkpoint(small_base).load_model(), pairs, 4)
    after = all_log_probs(load_checkpoint(result.checkpoint).load_model(), pairs, 4)
    assert result.reference_accuracy == preference_accuracy(before)
    assert result.margin == pytest.approx(float(margins(after, before, 0.1).mean()), rel=1e-3)


def test_reference_is_computed_where_the_model_trains(
    small_base: Path, preferences: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[torch.device] = []

    def noted(self: Prefer, step: int, device: torch.device) -> GPT:
        asked.append(device)
        raise StopError

    monkeypatch.setattr(Prefer, "load_model", noted)
    monkeypatch.setattr(finetuning_prefer, "choose_device", lambda name: torch.device("meta"))
    with pytest.raises(StopError):
        prefer(small_base, preferences, tmp_path / "out")
    assert asked == [torch.device("meta")]


@pytest.mark.slow
def test_a_large_beta_stays_near_the_start(
    small_base: Path, preferences: Path, tmp_path: Path
) -> None:
    moved = {}
    for beta in (0.05, 5.0):
        out = tmp_path / str(beta)
        prefer(small_base, preferences, out, beta=beta, training=LONG)
        model, start = (load_checkpoint(folder).load_model() for folder in (out, small_base))
        pairs = pairs_of(small_base, preferences)
        moved[beta] = (all_log_probs(model, pairs, 8) - all_log_probs(start, pairs, 8)).abs().mean()
    assert moved[5.0] < moved[0.05] / 2


# --- stopping, and what cannot be -----------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_stopped_run_goes_on_with_the_same_reference(
    kind: str, small_base: Path, preferences: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = prefer(small_base, preferences, tmp_path / "whole", config=KINDS[kind])

    import llmkit.finetuning.prefer as module

    evaluate = module.Prefer.evaluate

    def stop_at_the_second(self: module.Prefer, model: GPT) -> Any:
        if stop_at_the_second.calls:  # type: ignore[attr-defined]
            raise KeyboardInterrupt
        stop_at_the_second.calls += 1  # type: ignore[attr-defined]
        return evaluate(self, model)

    stop_at_the_second.calls = 0  # type: ignore[attr-defined]
    monkeypatch.setattr(module.Prefer, "evaluate", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        prefer(small_base, preferences, tmp_path / "stopped", config=KINDS[kind])
    monkeypatch.setattr(module.Prefer, "evaluate", evaluate)
    resumed = prefer(small_base, preferences, tmp_path / "stopped", config=KINDS[kind], resume=True)
    assert (resumed.margin, resumed.accuracy) == (whole.margin, whole.accuracy)


def test_a_reference_that_is_lost_is_not_made_up(
    small_base: Path, preferences: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    prefer(small_base, preferences, out)
    (out / "training" / REFERENCE_FILE).unlink()
    with pytest.raises(CheckpointError, match=f"{REFERENCE_FILE} is missing"):
        prefer(small_base, preferences, out)


@pytest.mark.parametrize("beta", [0.0, -1.0, float("nan")])
def test_beta_must_be_positive(
    beta: float, small_base: Path, preferences: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=rf"beta .*not {beta}\b"):
        prefer(small_base, preferences, tmp_path / "out", beta=beta)
    assert not (tmp_path / "out").exists()


def test_pairs_that_are_too_long_are_left_out_whole(
    small_base: Path, preferences: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    longer = json.dumps(
        {"prompt": "Where?", "chosen": " There.", "rejected": " There, I said." * 40}
    )
    data = tmp_path / "p.jsonl"
    data.write_text(f"{preferences.read_text(encoding='utf-8')}\n{longer}\n", encoding="utf-8")
    result = prefer(small_base, data, tmp_path / "out", config=FinetuneConfig(epochs=1))
    assert sum(result.n_records) == 40
    assert "line 41" in capsys.readouterr().err
