"""`llmkit finetune prefer`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmkit.cli.finetune import options
from llmkit.cli.options import CheckpointArgument

if TYPE_CHECKING:
    from llmkit.finetuning.prefer import PreferResult


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("prefer")(_prefer)


@options.with_tuning
def _prefer(
    *,
    checkpoint: CheckpointArgument,
    data: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="JSON, JSONL, CSV or TSV file with fields prompt (or question, messages, "
            "instruction), chosen, rejected.",
        ),
    ],
    out: options.OutOption,
    beta: Annotated[
        float,
        typer.Option(
            metavar="X", help="DPO beta: larger values keep the model closer to the base."
        ),
    ] = 0.1,
    tuning: options.Tuning,
) -> None:
    """Teach a model to prefer one answer to another (DPO)."""
    from llmkit.finetuning.prefer import finetune_prefer

    tuning.run(
        finetune_prefer,
        out,
        _show,
        checkpoint=checkpoint,
        data=data,
        beta=beta,
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
