from __future__ import annotations

import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from training_runs import metrics, run, snapshot

from llmkit.architectures.gpt2 import PRESETS
from llmkit.architectures.registry import model_config
from llmkit.checkpoint.checkpoint import load_checkpoint
from llmkit.errors import CheckpointError, ConfigError, DataError, LlmkitError
from llmkit.training import TrainingConfig, load_run_config, train
from llmkit.training.config import training_config
from llmkit.training.loop import TrainingLoop
from llmkit.training.options import quantization_note, resolved
from llmkit.training.prepare import refuse_other_run
from llmkit.training.pretraining import Pretraining
from llmkit.training.run_folder import RunFolder
from llmkit.training.run_state import RunState


@pytest.fixture(scope="module")
def finished(short_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run. Tests must not write into it."""
    out = tmp_path_factory.mktemp("finished") / "out"
    run(short_text, out)
    return out


# --- what comes out ---------------------------------------------------------------------------


def test_loss_falls(tiny_checkpoint: Path) -> None:
    first, *_, last = metrics(tiny_checkpoint)
    assert first["train_loss"] < math.log(512) + 0.1  # no worse than a guess
    assert last["train_loss"] < first["train_loss"] - 0.3
    assert last["val_loss"] < first["val_loss"] - 0.2


def test_text_that_can_be_learnt_is_learnt(tmp_path: Path) -> None:
    data = tmp_path / "data.txt"
    data.write_text("abcdefg" * 600, encoding="utf-8")
    training = {"steps": 100, "learning_rate": 1e-2, "eval_interval": 100, "eval_tokens": 1000}
    result = run(data, tmp_path / "out", tokenizer="char", training=training)
    assert result.metrics[-1].val_loss < 0.1


def test_metrics_have_the_promised_keys_and_intervals(finished: Path) -> None:
    lines = metrics(finished)
    keys = "step tokens train_loss val_loss val_bits_per_byte lr grad_norm tokens_per_s elapsed_s"
    assert [list(line) for line in lines] == [keys.split()] * 3
    assert [line["step"] for line in lines] == [4, 8, 12]
    assert [line["tokens"] for line in lines] == [4 * 4 * 16, 8 * 4 * 16, 12 * 4 * 16]
    times = [line["elapsed_s"] for line in lines]
    assert times == sorted(times)
    assert all(line["tokens_per_s"] > 0 for line in lines)


def test_result_says_what_the_metrics_say(short_text: Path, finished: Path) -> None:
    result = run(short_text, finished)
    assert result.checkpoint == finished
    assert result.steps == 12
    assert [m.val_loss for m in result.metrics] == [m["val_loss"] for m in metrics(finished)]
    weights = load_checkpoint(finished).load_model().state_dict()
    assert result.n_parameters == sum(tensor.numel() for tensor in weights.values())


def test_last_evaluation_comes_at_the_last_step(short_text: Path, tmp_path: Path) -> None:
    run(short_text, tmp_path / "out", training={"steps": 6})
    assert [line["step"] for line in metrics(tmp_path / "out")] == [4, 6]


def test_train_loss_is_the_mean_since_the_last_evaluation(
    short_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses, rates = [], []
    original = TrainingLoop.step

    def noted(self: TrainingLoop, step: int) -> torch.Tensor:
        loss = original(self, step)
        losses.append(float(loss))
        rates.append({group["lr"] for o in self.optimizers for group in o.param_groups})
        return loss

    monkeypatch.setattr(TrainingLoop, "step", noted)
    run(short_text, tmp_path / "out")
    found = [line["train_loss"] for line in metrics(tmp_path / "out")]
    means = [sum(losses[start : start + 4]) / 4 for start in (0, 4, 8)]
    assert found == pytest.approx(means, rel=1e-12)
    assert [line["lr"] for line in metrics(tmp_path / "out")] == [
        rate for step in (3, 7, 11) for rate in rates[step]
    ]


def test_bits_per_byte_are_those_of_the_held_out_text(short_text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(short_text, out, training={"eval_tokens": 1_000_000})  # all of it
    documents = short_text.read_text(encoding="utf-8").split("<|endoftext|>")
    held_out = [text[len(text) - len(text) // 10 :] for text in documents]  # they are few
    checkpoint = load_checkpoint(out)
    model, tokenizer = checkpoint.load_model(), checkpoint.tokenizer
    ids = [i for text in held_out for i in [*tokenizer.encode(text), tokenizer.end_of_text_id]]
    nats = []
    with torch.no_grad():
        for start in range(0, len(ids) - 16, 16):
            window = torch.tensor(ids[start : start + 17])
            probabilities = model(window[None, :-1])[0].double().log_softmax(dim=-1)
            nats += [-probabilities[i, token].item() for i, token in enumerate(window[1:])]
    last = metrics(out)[-1]
    assert last["val_loss"] == pytest.approx(np.mean(nats), rel=1e-5)
    n_bytes = sum(len(text.encode()) for text in held_out)
    bits = np.mean(nats) * len(ids) / math.log(2) / n_bytes
    assert last["val_bits_per_byte"] == pytest.approx(bits, rel=1e-5)


def test_checkpoint_holds_what_it_promises(finished: Path) -> None:
    names = {path.relative_to(finished).as_posix() for path in finished.rglob("*.*")}
    checkpoint = {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "training/optimizer.safetensors",
        "training/state.json",
        "training/train.tokens",
        "training/validation.tokens",
    }
    kept = ("training/saves/8", "training/saves/12", "training/best")
    links = {f"{place}/{name}" for place in kept for name in checkpoint}
    links.remove("training/best/training/optimizer.safetensors")
    assert names == {*checkpoint, "training/metrics.jsonl", *links}


def test_notes_go_to_stderr(
    short_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(short_text, tmp_path / "out")
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "step 12: train loss" in printed.err
    assert "sample: " in printed.err


@pytest.mark.parametrize(
    ("n_embd", "words"),
    [
        (256, ["n_embd 256", "every quantization"]),
        (64, ["q8_0 instead of q6_k;", "q5_1 instead of q5_k;", "q5_0 instead of q4_k;"]),
        (48, ["f16 instead of q8_0, ", " q6_k, ", " q5_k, ", " q4_k, "]),
    ],
)
def test_note_says_what_types_that_do_not_fit_are_stored_as(n_embd: int, words: list[str]) -> None:
    note = quantization_note(model_config("nano", vocab_size=300, n_embd=n_embd))
    assert all(word in note for word in words), note
    assert ("instead of" in note) == (n_embd != 256)


def test_task_is_asked_once_for_the_tokens_of_a_step(
    short_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(Pretraining, "tokens_per_step", property(lambda _: asked.append(1) or 64.0))
    run(short_text, tmp_path / "out")
    assert len(asked) == 1  # fine-tuning adds up all its records


def test_tokenizer_can_be_of_characters_or_of_another_run(
    short_text: Path, finished: Path, tmp_path: Path
) -> None:
    for name, kind in (("char", "char"), ("folder", str(finished))):
        run(short_text, tmp_path / name, tokenizer=kind, vocab_size=None)
    ours, theirs = (load_checkpoint(folder).tokenizer for folder in (tmp_path / "folder", finished))
    assert ours.tokens == theirs.tokens
    assert load_checkpoint(tmp_path / "char").tokenizer.vocab_size == 257  # ASCII tales


def test_vocab_size_comes_from_the_option_or_the_model_table(
    short_text: Path, tmp_path: Path
) -> None:
    run(short_text, tmp_path / "model", vocab_size=None, model={"vocab_size": 290})
    assert load_checkpoint(tmp_path / "model").config.vocab_size == 290
    run(short_text, tmp_path / "option", vocab_size=280, model={"vocab_size": 290})
    assert load_checkpoint(tmp_path / "option").config.vocab_size == 280


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"training": {"steps": 13}}, r"\(training\.steps .*\b12\b.*\b13\)"),
        ({"training": {"seed": 3}}, r"\(training\.seed .*\b1337\b.*\b3\)"),
        (
            {"preset": "micro", "training": {"learning_rate": 6e-4}},
            r"\(training\.learning_rate .*\b0\.006\b",
        ),
        ({"model": {"n_layer": 2}}, r"\(model\.n_layer .*\b1\b.*\b2\)"),
        ({"model": {"context_length": 8}}, r"\(model\.context_length .*\b16\b.*\b8\)"),
        ({"tokenizer": "char"}, r"\(tokenizer .*\bbpe\b.*\bchar\b"),
        ({"vocab_size": 299}, r"\(model\.vocab_size .*\b300\b.*\b299\)"),
    ],
)
@pytest.mark.parametrize("resume", [True, False])
def test_folder_of_another_run_is_refused(
    short_text: Path, finished: Path, changes: dict[str, Any], words: str, resume: bool
) -> None:
    before = snapshot(finished)
    with pytest.raises(CheckpointError, match=words):
        run(short_text, finished, resume=resume, **changes)
    assert snapshot(finished) == before


@pytest.mark.parametrize(
    ("there", "now", "words"),
    [
        ({"kind": "prefer", "beta": 0.1}, {"kind": "prefer"}, r"beta .*\b0\.1\b.*\bunset"),
        ({"kind": "prefer"}, {"kind": "prefer", "beta": 0.1}, r"beta .*\bunset\b.*\b0\.1"),
        ({"finetune": {"qat": None}}, {"finetune": {}}, r"finetune\.qat .*\bNone\b.*\bunset"),
    ],
)
def test_setting_that_one_run_alone_has_is_named(
    there: dict[str, Any], now: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=rf"\({words}\)"):
        refuse_other_run(RunFolder(tmp_path), RunState(there, {}), now)


def test_folder_of_a_run_on_other_text_is_refused(
    short_text: Path, finished: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.txt"
    other.write_text(short_text.read_text(encoding="utf-8") + ".", encoding="utf-8")
    before = snapshot(finished)
    with pytest.raises(CheckpointError, match=r"\(.*\bdata\b.*\).*--out"):
        run(other, finished, resume=True)
    assert snapshot(finished) == before


def test_text_may_move(short_text: Path, finished: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved.txt"
    shutil.copy(short_text, moved)
    assert run(moved, finished).steps == 12


def notes(out: Path) -> None:
    (out / "notes.txt").write_text("mine", encoding="utf-8")


def model_of_others(out: Path) -> None:
    (out / "config.json").write_text("{}", encoding="utf-8")
    (out / "tokenizer.json").write_text("{}", encoding="utf-8")


def project_with_a_folder_of_that_name(out: Path) -> None:
    (out / "training").mkdir()
    (out / "tokenizer.json").write_text("mine", encoding="utf-8")
    (out / "main.py").write_text("mine", encoding="utf-8")


def courses(out: Path) -> None:
    (out / "training").mkdir()
    (out / "training" / "monday.txt").write_text("mine", encoding="utf-8")


def run_without_its_state(out: Path) -> None:
    (out / "training").mkdir()
    (out / "training" / "metrics.jsonl").write_text("", encoding="utf-8")
    (out / "training" / "train.tokens").write_text("", encoding="utf-8")


@pytest.mark.parametrize(
    "fill",
    [notes, model_of_others, project_with_a_folder_of_that_name, courses, run_without_its_state],
)
def test_folder_with_other_things_is_refused_and_left_alone(
    short_text: Path, tmp_path: Path, fill: Callable[[Path], None]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    fill(out)
    before = snapshot(tmp_path)
    for resume in (True, False):
        with pytest.raises(CheckpointError, match=rf"^{re.escape(str(out))} .*\bempty\b.*--out"):
            run(short_text, out, resume=resume)
        assert snapshot(tmp_path) == before


def test_out_that_is_a_file_is_refused(short_text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.write_text("mine", encoding="utf-8")
    with pytest.raises(CheckpointError, match="is a file"):
        run(short_text, out)
    with pytest.raises(LlmkitError, match="cannot write"):
        run(short_text, out / "below")
    assert out.read_text(encoding="utf-8") == "mine"


def test_out_inside_the_text_is_refused(short_text: Path, tmp_path: Path) -> None:
    shutil.copy(short_text, tmp_path / "text.txt")
    for out in (tmp_path, tmp_path / "out"):
        with pytest.raises(ConfigError, match="become training text"):
            run(tmp_path, out)
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]


@pytest.mark.parametrize("text", ["short", "a few words of text " * 3])
def test_text_that_is_too_short_is_refused(tmp_path: Path, text: str) -> None:
    data = tmp_path / "data.txt"
    data.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"data\.txt .*\btrain\b.* \d+ tokens\b.*\b17\b"):
        run(data, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["", " \n"])
def test_no_text_is_refused(tmp_path: Path, text: str) -> None:
    data = tmp_path / "data.txt"
    data.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"data\.txt .*\bno text\b"):
        run(data, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_many_tiny_documents_are_too_short(tmp_path: Path) -> None:
    data = tmp_path / "data.txt"
    data.write_text("<|endoftext|>".join(["tiny"] * 19), encoding="utf-8")
    with pytest.raises(DataError, match=r"data\.txt .*\bvalidation\b.* 0 tokens\b.*\b17\b"):
        run(data, tmp_path / "out")


def test_refused_text_does_not_spoil_the_folder(short_text: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "data.txt", tmp_path / "out"
    data.write_text("short", encoding="utf-8")
    with pytest.raises(DataError, match="too short"):
        run(data, out)
    assert run(short_text, out).steps == 12


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"preset": "nanno"}, "preset 'nanno'.*'nano'"),
        ({"tokenizer": "bep"}, "tokenizer 'bep'.*bpe, word, char, gpt2"),
        ({"device": "gpu"}, "unknown device 'gpu'"),
        ({"vocab_size": 0}, "model: vocab_size"),
        ({"vocab_size": 100}, "vocab_size 100 is too small"),
        ({"model": {"n_layers": 2}}, "model: .*'n_layers'.*'n_layer'"),
        ({"model": {"preset": "nano"}}, "model: .*'preset'"),
        ({"model": {"n_layer": "2"}}, "model: n_layer .*integer"),
        ({"model": {"n_head": 3}}, r"n_embd 32\b.* n_head 3\b"),
        ({"training": {"step": 5}}, "training: .*'step'.*'steps'"),
        ({"training": {"preset": "nano"}}, "training: .*'preset'"),
        ({"training": {"steps": 0}}, "training: steps .*greater than 0"),
        ({"training": {"steps": 1.5}}, "training: steps .*integer"),
        ({"training": {"steps": "5"}}, "training: steps .*integer"),
        ({"training": {"learning_rate": "fast"}}, "training: learning_rate .*number"),
        ({"training": {"learning_rate": 0}}, "training: learning_rate"),
        (
            {"training": {"learning_rate": 1e-5, "min_learning_rate": 1e-4}},
            r"min_learning_rate 0\.0001\b.* learning_rate 1e-05",
        ),
        ({"training": {"beta1": 1.0}}, "training: beta1 .*less than 1"),
        ({"training": {"seed": -1}}, "training: seed"),
        ({"training": {"seed": 1 << 63}}, "training: seed"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_anything_is_written(
    short_text: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(LlmkitError, match=words) as caught:
        run(short_text, tmp_path / "out", **changes)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_missing_text_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        train(tmp_path / "no.txt", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- settings ---------------------------------------------------------------------------------


@given(steps=st.integers(1, 500), warmup_steps=st.integers(0, 600))
def test_learning_rate_warms_up_and_falls_to_its_minimum(steps: int, warmup_steps: int) -> None:
    config = TrainingConfig(
        steps=steps, warmup_steps=warmup_steps, learning_rate=1.0, min_learning_rate=0.1
    )
    rates = [config.learning_rate_at(step) for step in range(steps)]
    warm, falling = rates[:warmup_steps], rates[warmup_steps:]
    assert warm == pytest.approx([(i + 1) / warmup_steps for i in range(len(warm))])
    assert falling == sorted(falling, reverse=True)
    assert all(0.1 - 1e-12 <= rate <= 1.0 for rate in falling)
    if falling:
        assert falling[0] == pytest.approx(1.0)
    if len(falling) > 1:
        assert falling[-1] == pytest.approx(0.1)
        middle = (falling[(len(falling) - 1) // 2] + falling[len(falling) // 2]) / 2
        assert middle == pytest.approx(0.55)  # a cosine is symmetric


def test_gradients_are_clipped(
    short_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms = []
    original = torch.optim.AdamW.step

    def noted(self: torch.optim.AdamW, *rest: Any) -> Any:
        gradients = [p.grad for group in self.param_groups for p in group["params"]]
        norms.append(math.sqrt(sum(float(g.double().square().sum()) for g in gradients)))
        return original(self, *rest)

    monkeypatch.setattr(torch.optim.AdamW, "step", noted)
    run(short_text, tmp_path / "out", training={"grad_clip": 0.01, "optimizer": "adamw"})
    assert norms == pytest.approx([0.01] * 12, rel=1e-3)


def test_warm_up_is_short_beside_the_run() -> None:
    assert training_config("gpt2").warmup_steps == 700
    assert training_config("gpt2", steps=500).warmup_steps == 50
    assert training_config("nano", steps=20).warmup_steps == 10
    assert training_config("gpt2", steps=500, warmup_steps=400).warmup_steps == 400


def test_wsd_stays_at_the_peak_and_falls_in_a_line() -> None:
    config = TrainingConfig(
        steps=101, learning_rate=1.0, min_learning_rate=0.0, warmup_steps=10, schedule="wsd"
    )
    rates = [config.learning_rate_at(step) for step in range(101)]
    assert rates[:10] == pytest.approx([n / 10 for n in range(1, 11)])
    assert set(rates[10:71]) == {1.0}
    assert rates[70:] == pytest.approx([1 - n / 30 for n in range(31)])


def test_gradient_norm_is_that_before_clipping(
    short_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for clip in (1e-3, 1e9):
        run(short_text, tmp_path / str(clip), training={"steps": 1, "grad_clip": clip})
    clipped, free = (metrics(tmp_path / str(clip))[0]["grad_norm"] for clip in (1e-3, 1e9))
    assert clipped == free > 1e-2


def test_no_batch_is_still_being_copied_when_its_memory_is_freed(
    short_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = torch.Tensor.to

    def noted(self: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        assert not options.get("non_blocking"), "to another device it may read freed memory"
        return original(self, *args, **options)

    monkeypatch.setattr(torch.Tensor, "to", noted)
    run(short_text, tmp_path / "out", training={"steps": 1})


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_has_valid_settings(preset: str) -> None:
    config = training_config(preset, steps=None)
    assert config.steps >= 500
    assert config.min_learning_rate == pytest.approx(config.learning_rate / 10)
    assert training_config(preset, steps=7).steps == 7


CPU = torch.device("cpu")


def test_learning_rate_falls_with_the_width_of_a_depth(short_text: Path) -> None:
    found = {depth: resolved(short_text, depth=depth, device=CPU) for depth in (4, 16)}
    assert found[16][1].n_embd == 4 * found[4][1].n_embd
    assert found[16][2].learning_rate == pytest.approx(found[4][2].learning_rate / 2)
    given = resolved(short_text, depth=4, training={"learning_rate": 1e-5}, device=CPU)[2]
    assert given.min_learning_rate == pytest.approx(1e-6)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"preset": "nano"}, "preset and depth"),
        ({"model": {"n_embd": 256}}, "depth sets .*n_embd"),
        ({"depth": 0}, "depth .* 0"),
    ],
)
def test_settings_that_contradict_a_depth_are_refused(
    short_text: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        resolved(short_text, device=CPU, **{"depth": 4, **changes})


@pytest.mark.parametrize("preset", PRESETS)
def test_a_learning_rate_brings_its_minimum(preset: str) -> None:
    assert training_config(preset, learning_rate=1e-5).min_learning_rate == pytest.approx(1e-6)
    given = training_config(preset, learning_rate=1e-5, min_learning_rate=0.0)
    assert given.min_learning_rate == 0.0


def test_run_config_changes_the_preset(short_text: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("[model]\nn_layer = 2\ndropout = 0\n[training]\nsteps = 5\n", encoding="utf-8")
    tables = load_run_config(file, "nano")
    assert tables == {"model": {"n_layer": 2, "dropout": 0}, "training": {"steps": 5}}
    run(short_text, tmp_path / "out", **tables)
    assert load_checkpoint(tmp_path / "out").config.n_layer == 2
    assert metrics(tmp_path / "out")[-1]["step"] == 5
    file.write_text("", encoding="utf-8")
    assert load_run_config(file, "nano") == {}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[modle]\nn_layer = 2", "table 'modle'.*'model'"),
        (b"n_layer = 2", "unknown table 'n_layer'"),
        (b"[model]\nn_layr = 2", r"\[model\]: .*'n_layr'.*'n_layer'"),
        (b"model = 2", r"model is not a table; write \[model\]"),
        (b"[[training]]\nsteps = 2", "training is not a table"),
        (b"[training]\nsteps = -3", r"\[training\]: steps .* -3"),
        (b"[model]\nn_head = '2'", r"\[model\]: n_head .*integer.*'2'"),
        (b"[model\nn_layer = 2", "line 1"),
        (b"[model]\nn_layer = two", "line 2"),
        (b"[model]\nn_layer = 2\nn_layer = 2", "overwrite a value"),
        (b"\xff", "cannot read"),
    ],
)
def test_bad_run_config_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "run.toml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=words) as caught:
        load_run_config(file, "nano")
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_sizes_that_another_option_may_mend_are_left_to_it(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("[model]\nn_head = 3\n[training]\nlearning_rate = 1e-9\n", encoding="utf-8")
    assert load_run_config(file, "nano")["model"] == {"n_head": 3}  # n_embd is 256


def test_missing_run_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"run\.toml does not exist"):
        load_run_config(tmp_path / "run.toml", "nano")
    with pytest.raises(ConfigError, match="is a folder"):
        load_run_config(tmp_path, "nano")


def test_run_that_diverges_twice_stops_and_says_at_which_steps(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match=r"(nan|inf) at step \d+;.*(nan|inf) at step \d+\b"):
        run(corpus, tmp_path / "out", training={"learning_rate": 1e30, "warmup_steps": 0})
    assert "step 0, with 0.5" in capsys.readouterr().err
    assert not (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize("name", ["char", "gpt2"])
def test_vocab_size_is_refused_where_it_would_be_ignored(
    name: str, corpus: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=rf"\b{name}\b.*vocab_size"):
        train(corpus, tmp_path / "out", tokenizer=name, vocab_size=500)
    assert not (tmp_path / "out").exists()
