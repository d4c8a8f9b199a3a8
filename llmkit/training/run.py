"""One training run: prepare tokenizer and tokens, then train, evaluate and save at intervals.

Every random number of a step follows from (seed, step), so a resumed run goes on exactly where
it stopped without any generator's state being saved.
"""

from __future__ import annotations

import hashlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from llmkit.checkpoint import TOKENIZER_FILE, load_checkpoint, save_config
from llmkit.console import progress, say
from llmkit.data.sources import read_documents, source_files
from llmkit.data.tokens import open_token_file, split_documents, windows, write_token_file
from llmkit.errors import CheckpointError, DataError
from llmkit.generation import Sampling, generate_ids
from llmkit.model.config import GPTConfig, gpt_config
from llmkit.model.device import choose_device, has_fast_bfloat16
from llmkit.model.gpt import GPT
from llmkit.modelfiles.prompt_format import COMPLETION
from llmkit.tokenizer import (
    Tokenizer,
    download_gpt2,
    load_tokenizer,
    train_bpe,
    train_characters,
)
from llmkit.training.config import TrainingConfig, training_config
from llmkit.training.evaluate import validation_loss
from llmkit.training.state import Metrics, RunFolder, RunState

DEFAULT_VOCAB_SIZE = 2048
SAMPLE_TOKENS = 60


@dataclass(frozen=True)
class TrainingResult:
    """What a run came to."""

    checkpoint: Path
    steps: int
    n_parameters: int
    metrics: list[Metrics]


def train(
    data: Path,
    out: Path,
    *,
    preset: str = "nano",
    tokenizer: str = "bpe",
    vocab_size: int | None = None,
    model: dict[str, Any] | None = None,
    training: dict[str, Any] | None = None,
    resume: bool = False,
    device: str | None = None,
) -> TrainingResult:
    """Train a GPT on the text in `data` and write the checkpoint folder `out`.

    `data`: a text file, a folder of text and JSONL files, or a JSONL file. `tokenizer`: `bpe`
    or `char` (trained on the data), `gpt2`, or a folder that holds one. `model` and `training`
    change single fields of the preset (GPTConfig, TrainingConfig). With `resume` an unfinished
    run goes on where it stopped; a finished one is reported and left alone.

    Raises LlmkitError (DataError, ConfigError, CheckpointError) for what cannot be trained on,
    and KeyboardInterrupt after Ctrl-C, with the step reached saved.
    """
    config = training_config(preset, **(training or {}))
    sizes = gpt_config(preset, vocab_size=vocab_size or DEFAULT_VOCAB_SIZE, **(model or {}))
    settings: dict[str, Any] = {
        "data": _sha256(source_files(data)),
        "tokenizer": tokenizer,
        "model": {**asdict(sizes), "vocab_size": vocab_size},
        "training": asdict(config),
    }
    folder = RunFolder(out)
    state = folder.read_state()
    if state is None:
        _refuse_foreign(out)
        state = _prepare(folder, data, settings, sizes)
    else:
        _refuse_other_run(folder, state, settings)
        if state.finished:
            say(f"{out} is finished: {state.step} steps are done, nothing to train")
            return _result(folder)
        if not resume:
            raise CheckpointError(
                f"{out} holds this run, stopped at step {state.step}; add --resume to go on"
            )
        folder.recover(state)
    _Run(folder, state, config, sizes, choose_device(device)).train()
    return _result(folder)


# --- before the first step ------------------------------------------------------------------


def _sha256(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _refuse_foreign(out: Path) -> None:
    """Raise CheckpointError where `out` holds anything but a preparation that was cut short."""
    if out.exists() and not out.is_dir():
        raise CheckpointError(f"{out} is a file; choose a folder that does not exist yet")
    if out.exists() and any(out.iterdir()) and not (out / "training").is_dir():
        raise CheckpointError(f"{out} is not empty and holds no training run; choose another --out")


def _refuse_other_run(folder: RunFolder, state: RunState, settings: dict[str, Any]) -> None:
    if state.settings == settings:
        return
    there, asked = _flat(state.settings), _flat(settings)
    names = [name for name in asked if asked[name] != there.get(name)]
    detail = ", ".join(f"{name} {there.get(name)} there, {asked[name]} now" for name in names[:2])
    if names[:1] == ["data"]:
        detail = "it was trained on other text"
    raise CheckpointError(f"{folder.folder} holds another run ({detail}); choose another --out")


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat.update(
            {f"{name}.{key}": v for key, v in value.items()}
            if isinstance(value, dict)
            else {name: value}
        )
    return flat


def _prepare(folder: RunFolder, data: Path, settings: dict[str, Any], sizes: GPTConfig) -> RunState:
    """Train the tokenizer, write the token files and commit step 0."""

    def part(name: str) -> Iterator[str]:
        return split_documents(read_documents(data), name)

    tokenizer = _tokenizer(settings["tokenizer"], lambda: part("train"), sizes.vocab_size)
    sizes = replace(sizes, vocab_size=tokenizer.vocab_size)
    tokenizer.save(folder.folder / TOKENIZER_FILE)
    data_bytes = {}
    for name in ("train", "validation"):
        data_bytes[name] = write_token_file(folder.token_file(name), part(name), tokenizer)
        n_tokens = folder.token_file(name).stat().st_size // (
            2 if sizes.vocab_size <= 1 << 16 else 4
        )
        if n_tokens <= sizes.context_length:
            raise DataError(
                f"{data} is too short: its {name} part has {n_tokens} tokens and one example "
                f"needs {sizes.context_length + 1}; use more text or a smaller context_length"
            )
        say(f"{name}: {n_tokens:,} tokens of {data_bytes[name]:,} bytes")
    save_config(folder.folder, sizes, COMPLETION.name)
    state = RunState(settings, data_bytes)
    folder.write_state(state)
    return state


def _tokenizer(name: str, texts: Callable[[], Iterator[str]], vocab_size: int) -> Tokenizer:
    if name == "bpe":
        return train_bpe(texts(), vocab_size)
    if name == "char":
        return train_characters(texts())
    if name == "gpt2":
        return download_gpt2()
    if not Path(name).is_dir():
        raise DataError(f"tokenizer {name!r} is none of bpe, char, gpt2 and no folder")
    return load_tokenizer(Path(name))


def _result(folder: RunFolder) -> TrainingResult:
    checkpoint = load_checkpoint(folder.folder)
    with torch.device("meta"):
        n_parameters = GPT(checkpoint.config).n_parameters()
    metrics = folder.read_metrics()
    return TrainingResult(folder.folder, metrics[-1].step, n_parameters, metrics)


# --- the steps ------------------------------------------------------------------------------


class _Run:
    """A model on its way from `state.step` to the last step."""

    def __init__(
        self,
        folder: RunFolder,
        state: RunState,
        config: TrainingConfig,
        sizes: GPTConfig,
        device: torch.device,
    ) -> None:
        self.folder, self.state, self.config, self.device = folder, state, config, device
        self.tokenizer = load_tokenizer(folder.folder)
        self.sizes = replace(sizes, vocab_size=self.tokenizer.vocab_size)
        self.tokens = open_token_file(folder.token_file("train"), self.sizes.vocab_size)
        validation = open_token_file(folder.token_file("validation"), self.sizes.vocab_size)
        self.held_out = windows(validation, self.sizes.context_length, config.eval_tokens)
        self.bytes_per_token = state.data_bytes["validation"] / len(validation)
        self.bfloat16 = has_fast_bfloat16(device)
        self.model = self._model().train()
        self.optimizer = _optimizer(self.model, config)
        if state.step:
            folder.load_optimizer(self.model, self.optimizer, state.step)

    def train(self) -> None:
        """Train to the last step; on Ctrl-C finish the step, save and raise KeyboardInterrupt."""
        say(
            f"model: {self.model.n_parameters():,} parameters, {self.device.type}, "
            f"{'bfloat16 products' if self.bfloat16 else 'float32'}"
        )
        started = time.monotonic() - self.state.elapsed_s
        losses: list[float] = []
        interval = _Interval(self.state.step)
        last = self.config.steps
        with interrupts_deferred() as interrupted, progress("train", last, "steps") as bar:
            for step in range(self.state.step, last):
                losses.append(self._step(step))
                done = step + 1
                rate = interval.rate(done) * self._tokens_per_step
                bar.update(done, f"loss {losses[-1]:.3f}, {rate:,.0f} tokens/s")
                if done % self.config.eval_interval == 0 or done == last:
                    elapsed = time.monotonic() - started
                    self._evaluate_and_save(done, float(np.mean(losses)), rate, elapsed)
                    losses.clear()
                    interval = _Interval(done)
                if interrupted.is_set():
                    if self.state.step != done:
                        self._save(done, time.monotonic() - started)
                    say(f"stopped at step {done}, saved; the same command with --resume goes on")
                    raise KeyboardInterrupt

    def _step(self, step: int) -> float:
        """One update; returns the loss of its batch."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate_at(step)
        torch.manual_seed(_mixed(self.config.seed, step))  # dropout
        inputs, targets = self._batch(step)  # (B, T) each
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            logits = self.model(inputs)  # (B, T, V)
        loss = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    def _batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Random windows of the training tokens: inputs and the tokens that follow them."""
        length = self.sizes.context_length
        random = np.random.default_rng((self.config.seed, step))
        starts = random.integers(0, len(self.tokens) - length, self.config.batch_size)
        examples = np.stack([self.tokens[s : s + length + 1] for s in starts]).astype(np.int64)
        batch = torch.from_numpy(examples).to(self.device, non_blocking=True)
        return batch[:, :-1], batch[:, 1:]

    def _evaluate_and_save(self, step: int, train_loss: float, rate: float, elapsed: float) -> None:
        val_loss = validation_loss(self.model, self.held_out, self.config.batch_size)
        metrics = Metrics(
            step=step,
            tokens=step * self._tokens_per_step,
            train_loss=train_loss,
            val_loss=val_loss,
            val_bits_per_byte=val_loss / math.log(2) / self.bytes_per_token,
            lr=self.config.learning_rate_at(step - 1),
            tokens_per_s=rate,
            elapsed_s=elapsed,
        )
        self.folder.append_metrics(metrics)
        self._save(step, elapsed)
        say(
            f"step {step}: train loss {train_loss:.4f}, validation loss {val_loss:.4f} "
            f"({metrics.val_bits_per_byte:.3f} bits per byte), {rate:,.0f} tokens/s"
        )
        say(f"  sample: {self._sample()!r}")

    def _sample(self) -> str:
        self.model.eval()
        end = self.tokenizer.end_of_text_id
        sampling = Sampling(seed=self.config.seed, top_k=40, max_tokens=SAMPLE_TOKENS)
        text = self.tokenizer.decode(generate_ids(self.model, [end], sampling, end))
        self.model.train()
        return text

    def _save(self, step: int, elapsed: float) -> None:
        self.state = replace(self.state, step=step, elapsed_s=elapsed)
        self.folder.save(self.state, self.model, self.optimizer)

    def _model(self) -> GPT:
        if self.state.step:
            return load_checkpoint(self.folder.folder).load_model(self.device)
        torch.manual_seed(self.config.seed)
        return GPT(self.sizes).to(self.device)

    @property
    def _tokens_per_step(self) -> int:
        return self.config.batch_size * self.sizes.context_length


def _optimizer(model: GPT, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW; weight decay on matrices and embeddings, not on biases and norms."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() == 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=True
    )


class _Interval:
    """Steps per second since the last evaluation."""

    def __init__(self, step: int) -> None:
        self.first, self.started = step, time.monotonic()

    def rate(self, step: int) -> float:
        return (step - self.first) / max(time.monotonic() - self.started, 1e-9)


def _mixed(seed: int, step: int) -> int:
    """One 64-bit seed from two numbers."""
    return int(np.random.SeedSequence((seed, step)).generate_state(1, np.uint64)[0] >> 1)


@contextmanager
def interrupts_deferred() -> Iterator[threading.Event]:
    """Ctrl-C sets the event, to be looked at between steps; a second one raises at once."""
    event = threading.Event()

    def on_interrupt(_signal: int, _frame: FrameType | None) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    if threading.current_thread() is not threading.main_thread():
        yield event  # only the main thread gets signals
        return
    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)
