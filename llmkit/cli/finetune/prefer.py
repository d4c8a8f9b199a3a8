"""`llmkit finetune prefer`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmkit.cli.finetune import options
from llmkit.cli.options import CheckpointArgument, JsonOption, ResumeOption

if TYPE_CHECKING:
    from llmkit.finetuning.prefer import PreferResult


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("prefer")(_prefer)


def _prefer(
    checkpoint: CheckpointArgument,
    data: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="JSON or JSONL file with fields prompt (or instruction), chosen, rejected.",
        ),
    ],
    out: options.OutOption,
    beta: Annotated[
        float,
        typer.Option(
            metavar="X", help="DPO beta: larger values keep the model closer to the base."
        ),
    ] = 0.1,
    lora: options.LoraOption = None,
    lora_alpha: options.AlphaOption = None,
    lora_dropout: options.DropoutOption = 0.0,
    lora_targets: options.TargetsOption = None,
    qlora: options.QloraOption = None,
    qat: options.QatOption = None,
    epochs: options.EpochsOption = 3,
    batch_size: options.BatchOption = None,
    learning_rate: options.RateOption = None,
    seed: options.SeedOption = 1337,
    add_tokens: options.AddTokensOption = False,
    sweep: options.SweepOption = None,
    plot: options.PlotOption = None,
    resume: ResumeOption = False,
    device: options.DeviceOption = None,
    json_output: JsonOption = False,
) -> None:
    """Teach a model to prefer one answer to another (DPO)."""
    from llmkit.finetuning.prefer import finetune_prefer

    config = options.finetune_config(
        lora, lora_alpha, lora_dropout, lora_targets, qlora, qat, epochs, add_tokens
    )
    options.run_or_sweep(
        finetune_prefer,
        out,
        sweep,
        json_output,
        _show,
        plot,
        checkpoint=checkpoint,
        data=data,
        beta=beta,
        config=config,
        training={"batch_size": batch_size, "learning_rate": learning_rate, "seed": seed},
        resume=resume,
        device=device,
    )


def _show(result: PreferResult) -> None:
    from llmkit.console import results

    results.print(
        f"{result.checkpoint}: {result.n_trained:,} of {result.n_parameters:,} parameters "
        f"trained, {result.steps} steps; on {result.n_records[2]} held-out records a reward margin "
        f"of {result.margin:.3f}, accuracy {result.accuracy:.1%} (the reference's own "
        f"{result.reference_accuracy:.1%})",
        markup=False,
        soft_wrap=True,
    )
