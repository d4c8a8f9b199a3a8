"""The largest micro-batch that fits into memory, by steps on random tokens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from llmkit.architectures.base import ModelConfig
from llmkit.console import say
from llmkit.data.tokens import TokenShards
from llmkit.memory import peak_rss_bytes
from llmkit.training.config import TrainingConfig
from llmkit.training.distributed import ALONE
from llmkit.training.loop import TrainingLoop
from llmkit.training.pretraining import Pretraining
from llmkit.training.run_folder import RunFolder
from llmkit.training.run_state import RunState

CPU_SHARE = 0.5  # of the free memory; other programs need some too


class RandomTokens(Pretraining):
    """Pretraining without a folder: the model, the batches and the loss of a run."""

    def __init__(self, config: TrainingConfig, sizes: ModelConfig) -> None:
        self.config, self.sizes, self.processes = config, sizes, ALONE
        self.batch_tokens = config.batch_size * sizes.context_length
        ids = np.random.default_rng(0).integers(0, sizes.vocab_size, 64 * sizes.context_length)
        self.tokens = TokenShards([ids])


def with_micro_batch(
    config: TrainingConfig, sizes: ModelConfig, device: torch.device
) -> TrainingConfig:
    """The same settings, with a micro-batch where theirs is 0: the largest that fits.

    It is the batch or a power of two. On a GPU steps double until memory is exhausted. On a CPU,
    where the system would end the process, two small steps tell what a sequence takes.
    """
    if config.micro_batch:
        return config
    if device.type == "cpu":
        import psutil  # slow to load

        _two_steps(config, sizes, device, 1)
        before = peak_rss_bytes()
        _two_steps(config, sizes, device, 2)
        sequence_bytes = max(peak_rss_bytes() - before, 1)
        most = 2 + CPU_SHARE * psutil.virtual_memory().available / sequence_bytes
        fits = 1 << (int(most).bit_length() - 1)
    else:
        fits, tried = 1, 1
        while tried < 2 * config.batch_size and _two_steps(config, sizes, device, tried):
            fits, tried = tried, 2 * tried
    fits = min(fits, config.batch_size)
    say(f"micro-batch: {fits} of {config.batch_size} sequences fit into memory")
    return replace(config, micro_batch=fits)


def _two_steps(
    config: TrainingConfig, sizes: ModelConfig, device: torch.device, n_sequences: int
) -> bool:
    """Whether two steps fit; the second one has the optimizer's states beside its activations."""
    # Compiled steps take less memory, but compiling each of them takes long.
    one = replace(config, batch_size=n_sequences, micro_batch=n_sequences, compile=False)
    try:
        task = RandomTokens(one, sizes)
        loop = TrainingLoop(RunFolder(Path()), RunState({}, {}), one, task, device)
        for step in range(2):
            float(loop.step(step))  # waits for a GPU
    except RuntimeError as error:
        # MPS has no type of its own for this.
        if isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error):
            return False
        raise
    finally:
        loop = None  # type: ignore[assignment]
        if device.type in ("cuda", "mps"):
            getattr(torch, device.type).empty_cache()
    return True
