"""`llmkit finetune distill`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmkit.cli.finetune import options
from llmkit.cli.options import CheckpointArgument, JsonOption, print_json

if TYPE_CHECKING:
    from llmkit.finetuning.distill import DistillResult


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("distill")(_distill)


def _distill(
    checkpoint: CheckpointArgument,
    out: options.OutOption,
    qat: Annotated[str, typer.Option(help="GGUF type to train the weights for, such as q4_0.")],
    data: Annotated[
        Path | None,
        typer.Option(
            help="Text file, folder of text, or JSONL.",
            show_default="what the checkpoint was trained on",
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Steps.", show_default="300")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Windows of text per step.", show_default="8")
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Highest learning rate.", show_default="1e-4")
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same weights.")] = 1337,
    resume: options.ResumeOption = False,
    device: options.DeviceOption = None,
    json_output: JsonOption = False,
) -> None:
    """Train a model's weights for a quantized file. It keeps predicting what it predicts now."""
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
            f"training has gained nothing over rounding to {result.qat}: export the base instead, "
            "or train longer",
            soft_wrap=True,
        )
