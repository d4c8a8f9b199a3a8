"""The steps of a training run: update, evaluate, save, and stop cleanly on Ctrl-C.

Every random number of a step follows from (seed, step), so a resumed run goes on exactly where
it stopped without any generator's state being saved.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from llmkit.checkpoint import load_checkpoint
from llmkit.console import progress, say
from llmkit.data.tokens import open_token_file, windows
from llmkit.errors import ConfigError
from llmkit.generation import Sampling, generate_ids
from llmkit.model.config import GPTConfig
from llmkit.model.device import has_fast_bfloat16
from llmkit.model.gpt import GPT
from llmkit.quant import quant_names, quant_type
from llmkit.tokenizer import load_tokenizer
from llmkit.training.config import TrainingConfig
from llmkit.training.evaluate import validation_loss
from llmkit.training.state import Metrics, RunFolder, RunState

SAMPLE_TOKENS = 60


class TrainingLoop:
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
        self.model = self._start_model().train()
        self.optimizer = _optimizer(self.model, config)
        if state.step:
            folder.load_optimizer(self.model, self.optimizer, state.step)

    def train(self) -> None:
        """Train to the last step; on Ctrl-C finish the step, save and raise KeyboardInterrupt."""
        say(_quantization_note(self.sizes))
        say(
            f"model: {self.model.n_parameters():,} parameters, {self.device.type}, "
            f"{'bfloat16 products' if self.bfloat16 else 'float32'}"
        )
        started = time.monotonic() - self.state.elapsed_s
        losses = list(self.state.losses)
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
                        self._save(done, time.monotonic() - started, losses)
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
        if not torch.isfinite(loss):
            raise ConfigError(
                f"the loss is {float(loss.detach())} at step {step + 1}: the run diverged; train "
                "into another folder with a smaller learning_rate (this one keeps its last save)"
            )
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
        self._save(step, elapsed, [])
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

    def _save(self, step: int, elapsed: float, losses: list[float]) -> None:
        self.state = replace(self.state, step=step, elapsed_s=elapsed, losses=losses)
        self.folder.save(self.state, self.model, self.optimizer)

    def _start_model(self) -> GPT:
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


def _quantization_note(sizes: GPTConfig) -> str:
    """Which GGUF types the widths allow: a width cannot be changed after training."""
    refused = {
        qtype.name: qtype.block_size
        for qtype in map(quant_type, quant_names())
        if not qtype.fits(sizes.n_embd)
    }
    if not refused:
        return f"rows of {sizes.n_embd}: every quantization fits"
    return (
        f"rows of {sizes.n_embd} do not fit {', '.join(refused)} (multiples of "
        f"{max(refused.values())}): these matrices will stay f16 in such files"
    )


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
