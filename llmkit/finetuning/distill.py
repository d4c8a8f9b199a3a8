"""A model's weights trained for a quantized file: by its own predictions, on its own text."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from llmkit.checkpoint.checkpoint import load_checkpoint
from llmkit.data.folders import source_files
from llmkit.data.tokens import open_token_file, windows
from llmkit.device import choose_device
from llmkit.files import StrPath, optional_path
from llmkit.finetuning.config import FinetuneConfig
from llmkit.finetuning.run import run_settings
from llmkit.finetuning.start import Start, base_that_answers
from llmkit.finetuning.training_text import own_files, write_own_text
from llmkit.lora import merge_lora
from llmkit.quantization.qat import rounded
from llmkit.training.config import TrainingConfig
from llmkit.training.distillation import Distillation, mean_kl
from llmkit.training.prepare import write_token_files
from llmkit.training.run import opened_run, train_to_the_end
from llmkit.training.run_folder import RunFolder
from llmkit.training.run_state import Metrics, RunState
from llmkit.validation import validated

CALIBRATION_TOKENS = 32768  # for the blocks to begin with
DEFAULTS: dict[str, Any] = {
    "steps": 300,
    "batch_size": 8,
    # On a GPT of 4 layers in q4_0, in 100 steps of 4 windows, the KL fell from 7.8e-4 to 6.1e-4;
    # with 2e-4 to 7.4e-4. In 300 steps to 4.7e-4, however fast norms and biases learned.
    "learning_rate": 1e-4,
    # Down to nothing: a weight near the border of two levels jumps between them as long as the
    # steps are large enough (Nagel et al. 2022, https://arxiv.org/abs/2203.11086).
    "min_learning_rate": 0.0,
    "warmup_steps": 20,
    "weight_decay": 0.0,  # the floats are to stay at the teacher's, not to shrink
}


@dataclass(frozen=True)
class DistillResult:
    """A model trained for blocks of a type. KL in nats per token, from the base, held-out text."""

    checkpoint: Path
    qat: str
    steps: int
    n_parameters: int
    rounding_kl: float  # of the base's weights rounded to such blocks without training
    metrics: list[Metrics]

    @property
    def kl(self) -> float:
        """Mean KL after training."""
        return self.metrics[-1].kl or 0.0


def finetune_distill(
    checkpoint: StrPath,
    out: StrPath,
    *,
    qat: str,
    data: StrPath | None = None,
    training: dict[str, Any] | None = None,
    resume: bool = False,
    device: str | None = None,
) -> DistillResult:
    """Train the weights of `checkpoint` for blocks of type `qat`; write the folder `out`.

    The loss is the KL divergence from the model of `checkpoint`, on the text or records that it
    was trained on unless `data` are given (as `train` takes them). `training` changes single
    fields of TrainingConfig.

    Raises LlmkitError: no text, a type that fits no matrix, a classifier.
    """
    out, data = Path(out), optional_path(data)
    config = validated(FinetuneConfig, {"qat": qat}, "finetune")
    given = {name: value for name, value in (training or {}).items() if value is not None}
    steps = validated(TrainingConfig, {**DEFAULTS, **given}, "training")
    base = base_that_answers(Path(checkpoint), "use `finetune classify --qat` on its base")
    # Two masks of dropout would tell student and teacher apart more than rounding does.
    base = replace(base, config=replace(base.config, dropout=0.0))
    start = Start(base, base.tokenizer, base.prompt_format, (), config, steps.seed)
    where = choose_device(device)
    files = source_files(data) if data else own_files(base)
    settings = run_settings("distill", base, files, config, steps)
    folder = RunFolder(out)
    with opened_run(
        folder, settings, resume, lambda: _prepare(folder, start, data, settings, where)
    ) as state:
        teacher = base.load_model(where)
        task = Distillation(folder, state, steps, base.config, teacher)
        if not state.finished:
            train_to_the_end(
                folder, state, steps, task, where, lambda: load_checkpoint(out).grid(where)
            )
    metrics = folder.metrics.read()
    model = base.load_model(where)
    merge_lora(model)
    for name, qtype in start.types.items():
        weight = model.get_parameter(name)
        weight.data = rounded(weight.data, qtype, name)
    rounding_kl = mean_kl(teacher, model, task.held_out, steps.batch_size)
    return DistillResult(
        out, str(config.qat), metrics[-1].step, model.n_parameters(), rounding_kl, metrics
    )


def _prepare(
    folder: RunFolder,
    start: Start,
    data: Path | None,
    settings: dict[str, Any],
    device: torch.device,
) -> RunState:
    """Write token files and the checkpoint as it is before the first step; commit step 0."""
    folder.remove_half_written()
    if data is None:
        n_bytes = write_own_text(start.base, folder)
    else:
        n_bytes = write_token_files(folder, data, start.tokenizer, start.sizes.context_length)
    tokens = open_token_file(folder.token_file("train"), start.sizes.vocab_size)
    some = windows(tokens, start.sizes.context_length, CALIBRATION_TOKENS)[:, :-1]
    start.write(folder, torch.from_numpy(some), device)
    base = str(start.base.folder)
    state = RunState(settings, n_bytes, sources={"data": str(data or base), "base": base})
    folder.write_state(state)
    return state
