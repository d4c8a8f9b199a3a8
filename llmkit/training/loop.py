"""The steps of a training run: update, evaluate, save, and stop cleanly on Ctrl-C.

Every random number of a step follows from (seed, step), so a resumed run goes on exactly where
it stopped without any generator's state being saved.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, replace
from itertools import pairwise
from types import FrameType

import numpy as np
import torch
from torch import Tensor

from llmkit.checkpoint.layout import BLOCKS_FILE, MODEL_FILE
from llmkit.console import say
from llmkit.device import by_compiler, has_fast_bfloat16
from llmkit.lora import n_trainable
from llmkit.memory import keep_freed_memory
from llmkit.quantization.packed import n_weights
from llmkit.quantization.qat import Roundings, on_grid, packed
from llmkit.training.config import TrainingConfig
from llmkit.training.display import training_display
from llmkit.training.distributed import ALONE, Processes, full
from llmkit.training.flops import flops_per_token
from llmkit.training.losses import READ_EVERY, DivergedError, Losses
from llmkit.training.optimizer import make_optimizers
from llmkit.training.optimizer_state import optimizer_tensors
from llmkit.training.pace import Interval, Pace, usable_seconds
from llmkit.training.run_folder import OPTIMIZER_FILE, RunFolder
from llmkit.training.run_state import Metrics, RunState
from llmkit.training.task import Task
from llmkit.training.tensorboard import TensorBoard

RATE_AFTER_DIVERGENCE = 0.5
SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")  # Ctrl-C; kill or docker stop; a terminal that closes


class TrainingLoop:
    """A task's model on its way from `state.step` to the last step."""

    def __init__(
        self,
        folder: RunFolder,
        state: RunState,
        config: TrainingConfig,
        task: Task,
        device: torch.device,
        grid: Roundings | None = None,  # what the weights are trained to be rounded to
        processes: Processes = ALONE,
    ) -> None:
        self.started = time.monotonic() - state.elapsed_s
        config = replace(config, **state.plan)
        self.folder, self.state, self.config, self.task = folder, state, config, task
        self.device, self.processes = device, processes
        self.tokens_per_step = task.tokens_per_step
        self.grid = grid or {}
        keep_freed_memory()
        self.bfloat16 = has_fast_bfloat16(device)
        self.model, self.called = processes.place(
            lambda where: task.load_model(state.step, where), device
        )
        self.model.train()
        self.model.recompute_blocks = config.activation_checkpointing
        if config.compile:
            self.model.compiled_transform = by_compiler(self.model.transform)
        self.optimizers = make_optimizers(self.model, config)
        self.metrics = processes.first(lambda: folder.metrics.up_to(state.step))
        self.tensorboard = TensorBoard(folder.tensorboard)
        if state.step:
            files = [*self.task.trained_tensors(self.model), *([BLOCKS_FILE] if grid else [])]
            folder.load_optimizers(self.model, self.optimizers, state.step, files)

    def train(self) -> None:
        """Train to the last step; on Ctrl-C finish the step, save and raise KeyboardInterrupt.

        Raises DivergedError.
        """
        say(f"model: {self._parameters()}, {self._where()}, {self._precision()}")
        losses = self._new_losses()
        interval = Interval(self.state.step)
        pace: Pace | None = None
        norm = last = math.nan
        done = self.state.step
        flops = flops_per_token(n_weights(self.model), self.model.config) // self.processes.world
        all_trained = n_trainable(self.model) == n_weights(self.model)
        total = self.state.steps or 0
        display = training_display(total, self.device, flops if all_trained else None)
        # torchrun sends SIGTERM where another process has failed, which no step would outlast.
        signals = SIGNALS[:1] if self.processes.joined else SIGNALS
        with interrupts_deferred(signals) as interrupted, display as shown:
            while done < self.config.steps:
                losses.add(self.step(done))
                done += 1
                pace = pace or Pace(done)
                rate = interval.rate(done) * self.tokens_per_step
                if done % READ_EVERY == 0 or self.device.type == "cpu" or math.isnan(norm):
                    norm = float(self.grad_norm)  # waits for a GPU
                    if self.state.steps is None and done > pace.first:
                        shown.total = self._plan(done, pace)
                last = last if losses.last is None else losses.last
                shown.update(done, last, rate, self._learning_rate_at(done - 1), norm)
                if done % self.config.eval_interval == 0 or done == self.config.steps:
                    begun = time.monotonic()
                    mean = float(np.mean(losses.all()))
                    elapsed = begun - self.started
                    shown.evaluated(*self._evaluate_and_save(done, mean, rate, elapsed))
                    pace.evaluations_s.append(time.monotonic() - begun)
                    losses = self._new_losses()
                    interval = Interval(done)
                if self.processes.any(interrupted.is_set()):
                    if self.state.step != done:
                        self._save(done, time.monotonic() - self.started, losses.all())
                    with suppress(OSError):  # of a terminal that has closed
                        say(f"stopped at step {done} and saved; continue with --resume")
                    raise KeyboardInterrupt

    def _plan(self, done: int, pace: Pace) -> int:
        """How many steps fit into the minutes; where the decay has to begin, commit this number.

        Until there the learning rate is at its peak, whatever the number is: the run is the same
        as one with this number from the start.
        """
        seconds = usable_seconds(self.state.settings["minutes"])
        elapsed, config = time.monotonic() - self.started, self.config
        more = pace.steps_in(seconds - elapsed, config, done, self.tokens_per_step)
        if self.processes.any(elapsed >= (1 - config.decay_share) * seconds):
            more = self.processes.first(lambda: more)
            self.state = self.state.planned(done + more, decay_share=more / (done + more))
            self.config = replace(config, **self.state.plan)
            self.processes.first(lambda: self.folder.write_state(self.state))
            say(f"{pace.step_s(done):.3g} s per step: {done + more} steps, {more} of them to come")
        return done + more

    def step(self, step: int) -> Tensor:
        """One update; returns the loss of its batch, which may still be computed on the device."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self._learning_rate_at(step)
        processes = self.processes
        torch.manual_seed(_mixed(self.config.seed, step, processes.rank))  # dropout
        total = torch.zeros((), device=self.device)
        last = self.task.n_parts - 1
        with on_grid(self.model, self.grid):
            for part in range(last + 1):
                apart = processes.without_sync(self.called) if part < last else nullcontext()
                with apart:
                    with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
                        loss = self.called(self.task.loss, step, part)
                    (loss * processes.world).backward()  # PyTorch takes the mean over processes
                total += loss.detach()
        parameters, limit = self.model.parameters(), self.config.grad_clip
        self.grad_norm = full(torch.nn.utils.clip_grad_norm_(parameters, limit))
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return processes.add_up(total)

    def _evaluate_and_save(
        self, step: int, train_loss: float, rate: float, elapsed: float
    ) -> tuple[Metrics, list[str]]:
        self.model.eval()
        with on_grid(self.model, self.grid):
            with torch.no_grad():
                evaluation = self.called(self.task.evaluate)
            if not math.isfinite(evaluation.val_loss):
                raise DivergedError(f"the validation loss is {evaluation.val_loss}", step)
            with_samples = self.processes.rank == 0 and not self.processes.shard
            samples = self.task.samples(self.model) if with_samples else []
        self.model.train()
        metrics = Metrics(
            step=step,
            tokens=round(step * self.tokens_per_step),
            train_loss=train_loss,
            **asdict(evaluation),
            lr=self._learning_rate_at(step - 1),
            grad_norm=float(self.grad_norm),
            tokens_per_s=rate,
            elapsed_s=elapsed,
        )
        self.processes.first(lambda: self._write_metrics(metrics))
        self.metrics.append(metrics)
        self._save(step, elapsed, [])
        say(
            f"step {step}: train loss {train_loss:.4f}, {evaluation}, learning rate "
            f"{metrics.lr:.2g}, gradient norm {metrics.grad_norm:.2g}, {rate:,.0f} tokens/s"
        )
        for sample in samples:
            say(f"  {sample}")
        if overfits(self.metrics):
            say(
                f"note: the validation loss has risen since step {self.metrics[-3].step} while the "
                "training loss falls: the model overfits; training/best has the best checkpoint"
            )
        return metrics, samples

    def _write_metrics(self, metrics: Metrics) -> None:
        self.folder.metrics.append(metrics)
        self.tensorboard.add(metrics)

    def _save(self, step: int, elapsed: float, losses: list[float]) -> None:
        state = replace(self.state, step=step, elapsed_s=elapsed, losses=losses)
        files = {
            **self.task.trained_tensors(self.model),
            OPTIMIZER_FILE: optimizer_tensors(self.model, self.optimizers),
        }
        whole = {name: self.processes.gathered(tensors) for name, tensors in files.items()}
        if self.grid:  # and the blocks that the weights are trained for
            whole[BLOCKS_FILE] = packed(self.grid, whole[MODEL_FILE])
        self.state = self.processes.first(lambda: self.folder.save(state, whole))

    def _learning_rate_at(self, step: int) -> float:
        rate = self.config.learning_rate_at(step)
        return rate * RATE_AFTER_DIVERGENCE if self.state.diverged else rate

    def _new_losses(self) -> Losses:
        return Losses(self.state, self.metrics[-1].train_loss if self.metrics else None)

    def _parameters(self) -> str:
        n_all = n_weights(self.model)
        n_trained = n_trainable(self.model)
        trained = "" if n_trained == n_all else f" ({n_trained:,} trainable)"
        return f"{n_all:,} parameters{trained}"

    def _where(self) -> str:
        several = f"{self.processes.world} processes on " if self.processes.joined else ""
        return f"{several}{self.device.type}"

    def _precision(self) -> str:
        return "bfloat16" if self.bfloat16 else "float32"


def overfits(metrics: Sequence[Metrics]) -> bool:
    """Whether the last two evaluations are the first two in a row of this kind.

    The validation loss rises while the training loss falls.
    """
    pairs = list(pairwise(metrics))
    apart = [b.val_loss > a.val_loss and b.train_loss < a.train_loss for a, b in pairs]
    return apart[-2:] == [True, True] and apart[-3:-2] != [True]


def _mixed(seed: int, step: int, rank: int) -> int:
    """One 64-bit seed from three numbers."""
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0] >> 1)


@contextmanager
def interrupts_deferred(names: Sequence[str]) -> Iterator[threading.Event]:
    """The first of these signals sets the event, to be looked at between steps.

    A second one raises KeyboardInterrupt at once, unless it is SIGHUP: shells send it twice.
    Signals without a handler stay as they are. When a KeyboardInterrupt leaves the block, the
    handler from before learns which signal it was.
    """
    event = threading.Event()
    received: list[int] = []

    def on_interrupt(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        if event.is_set() and signal.Signals(number).name != "SIGHUP":
            raise KeyboardInterrupt
        event.set()

    if threading.current_thread() is not threading.main_thread():
        yield event  # only the main thread gets signals
        return
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    before = {n: handler for n in numbers if callable(handler := signal.getsignal(n))}
    for number in before:
        signal.signal(number, on_interrupt)
    try:
        yield event
    except (KeyboardInterrupt, DivergedError):  # a run that is resumed diverges again
        if received:
            before[received[0]](received[0], None)
            raise KeyboardInterrupt from None
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
