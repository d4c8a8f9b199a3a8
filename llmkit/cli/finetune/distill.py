"""`llmkit finetune distill`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmkit.cli.finetune import options
from llmkit.cli.options import (
    CheckpointArgument,
    DeviceOption,
    JsonOption,
    ResumeOption,
    print_json,
    save_loss_curve,
)

if TYPE_CHECKING:
    from llmkit.finetuning.distill import DistillResult


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("distill")(_distill)


def _distill(
    checkpoint: CheckpointArgument,
    out: options.OutOption,
    qat: Annotated[
        str, typer.Option(metavar="TYPE", help="GGUF type to train for, for example q4_0.")
    ],
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Training text: a file, folder or JSONL file.",
            show_default="the data of the checkpoint",
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(metavar="N", help="Number of training steps.", show_default="300")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(metavar="N", help="Sequences per training step.", show_default="8")
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(metavar="X", help="Peak learning rate.", show_default="1e-4")
    ] = None,
    seed: Annotated[
        int, typer.Option(metavar="N", help="Random seed; the same seed gives the same weights.")
    ] = 1337,
    resume: ResumeOption = False,
    device: DeviceOption = None,
    json_output: JsonOption = False,
) -> None:
    """Adapt weights to a quantized type (QAT by distillation).

    The unquantized checkpoint is the teacher.
    """
    from llmkit.finetuning.distill import finetune_distill

    result = finetune_distill(
        checkpoint,
        out,
        qat=qat,
        data=data,
        training={
            "steps": steps,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "seed": seed,
        },
        resume=resume,
        device=device,
    )
    save_loss_curve(result.checkpoint, result.metrics)
    if json_output:
        print_json(asdict(result))
    else:
        _show(result)


def _show(result: DistillResult) -> None:
    from llmkit.console import results

    results.print(
        f"{result.checkpoint}: {result.n_parameters:,} parameters trained for {result.qat}, "
        f"{result.steps} steps; mean KL from the base on held-out text {result.kl:.3g} nats per "
        f"token ({result.rounding_kl:.3g} by rounding alone)",
        markup=False,
        soft_wrap=True,
    )
    if result.kl >= result.rounding_kl:
        results.print(
            f"training did not improve on rounding to {result.qat}: export the base instead, "
            "or train longer",
            soft_wrap=True,
        )
