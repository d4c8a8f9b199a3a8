"""What a training run would need: parameters, memory, operations and time, by ten timed steps."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from llmkit.architectures.base import ModelConfig
from llmkit.architectures.registry import model_without_weights
from llmkit.console import say
from llmkit.data.folders import content_bytes
from llmkit.device import choose_device, refuse_compile
from llmkit.files import StrPath
from llmkit.memory import peak_memory_bytes
from llmkit.records.text_files import Reading
from llmkit.training.config import TrainingConfig
from llmkit.training.distributed import refuse_several
from llmkit.training.flops import flops_per_token, peak_flops
from llmkit.training.loop import TrainingLoop
from llmkit.training.micro_batch import RandomTokens, with_micro_batch
from llmkit.training.options import quantization_note, resolved, sized_for
from llmkit.training.pace import evaluation_seconds, planned_steps, usable_seconds
from llmkit.training.run_folder import RunFolder
from llmkit.training.run_state import RunState

TIMED_STEPS = 10
MAX_SECONDS = 30.0  # a step of a large model may take minutes
BYTES_PER_PARAMETER = 16  # weight, gradient and two moments of AdamW, float32


@dataclass(frozen=True)
class DryRun:
    """What a run would need. Times are extrapolated from the steps that were timed."""

    n_parameters: int
    steps: int
    tokens_per_step: int
    flops_per_step: int
    model_and_optimizer_bytes: int
    peak_memory_bytes: int  # of this process, or of the GPU
    timed_steps: int
    step_s: float
    total_s: float  # without evaluations
    peak_share: float  # of plain matrix products on this device
    quantization: str  # which types fit the shape

    def __str__(self) -> str:
        parts = f"{self.steps} steps of {self.tokens_per_step:,} tokens"
        return "\n".join(
            (
                f"parameters: {self.n_parameters:,}",
                f"memory: {self.model_and_optimizer_bytes / 1e9:.2f} GB for weights, gradients and "
                f"AdamW; peak {self.peak_memory_bytes / 1e9:.2f} GB",
                f"step: {self.flops_per_step / 1e12:.3g} TFLOP, {self.step_s:.3g} s, "
                f"{self.peak_share:.0%} of plain matrix products ({self.timed_steps} steps timed)",
                f"run: {parts}, {self.steps * self.flops_per_step / 1e15:.3g} PFLOP, "
                f"{self.total_s / 60:.3g} minutes without evaluations",
                f"quantization: {self.quantization}",
            )
        )


def dry_run(
    data: StrPath,
    *,
    device: str | None = None,
    text_column: str | None = None,
    delimiter: str | None = None,
    encoding: str = "utf-8",
    **options: Any,
) -> DryRun:
    """Time ten training steps on random tokens. Takes the options of `train`; writes nothing.

    Where a step has several micro-batches, steps of one and of two are timed. Raises LlmkitError
    as `train` does.
    """
    refuse_several()
    where = choose_device(device)
    prepared, sizes, config = resolved(Path(data), device=where, **options)
    tokenizer = options.get("tokenizer", "bpe")
    if prepared is None:
        content_bytes([Path(data)])  # raises where there is none
        reading = Reading(text_column, None, delimiter, encoding)
        sizes = sized_for(Path(data), tokenizer, reading, sizes)
    if config.compile:
        refuse_compile(where)
    config = with_micro_batch(config, sizes, where)
    n_parts = -(-config.batch_size // config.micro_batch)
    n_parameters = model_without_weights(sizes).n_parameters()
    say(
        f"{n_parameters:,} parameters; timing steps of up to {min(n_parts, 2)} x "
        f"{min(config.micro_batch, config.batch_size)} x {sizes.context_length} tokens"
    )
    n_steps = TIMED_STEPS if n_parts == 1 else TIMED_STEPS // 2
    step_s, timed = _timed(config, sizes, where, n_steps, 1)
    part_s = step_s
    if n_parts > 1:  # the optimizer's time is once in a step
        two_s, more = _timed(config, sizes, where, n_steps, 2)
        part_s = max(two_s - step_s, step_s / 2)  # also where other programs disturb
        step_s, timed = step_s + (n_parts - 1) * part_s, timed + more
    flops = flops_per_token(n_parameters, sizes)
    steps = config.steps
    if minutes := options.get("minutes"):
        of_part = min(config.micro_batch, config.batch_size) * sizes.context_length
        evaluation_s = evaluation_seconds(config, part_s, of_part)
        steps = planned_steps(config, step_s, evaluation_s, usable_seconds(minutes))
    tokens_per_step = config.batch_size * sizes.context_length
    return DryRun(
        n_parameters=n_parameters,
        steps=steps,
        tokens_per_step=tokens_per_step,
        flops_per_step=flops * tokens_per_step,
        model_and_optimizer_bytes=BYTES_PER_PARAMETER * n_parameters,
        peak_memory_bytes=peak_memory_bytes(where),
        timed_steps=timed,
        step_s=step_s,
        total_s=steps * step_s,
        peak_share=flops * tokens_per_step / step_s / peak_flops(where),
        quantization=quantization_note(sizes),
    )


def _timed(
    config: TrainingConfig, sizes: ModelConfig, device: torch.device, n_steps: int, n_parts: int
) -> tuple[float, int]:
    """Seconds of a step of n_parts micro-batches, and how many steps were timed."""
    few = replace(config, batch_size=min(config.batch_size, n_parts * config.micro_batch))
    loop = TrainingLoop(RunFolder(Path()), RunState({}, {}), few, RandomTokens(few, sizes), device)
    float(loop.step(0))  # the first step is slow
    started, timed = time.monotonic(), 0
    while timed < n_steps and time.monotonic() - started < MAX_SECONDS:
        timed += 1
        float(loop.step(timed))
    return (time.monotonic() - started) / timed, timed
