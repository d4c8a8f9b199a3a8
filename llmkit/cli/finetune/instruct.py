"""`llmkit finetune instruct`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmkit.cli.finetune import options
from llmkit.cli.options import CheckpointArgument

if TYPE_CHECKING:
    from llmkit.finetuning.instruct import InstructResult

N_SHOWN = 5


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("instruct")(_instruct)


@options.with_tuning
def _instruct(
    *,
    checkpoint: CheckpointArgument,
    data: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="Alpaca, Dolly, chat or prompt/completion records: JSON, JSONL, CSV or TSV.",
        ),
    ],
    out: options.OutOption,
    prompt_format: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="Prompt format: completion, alpaca, chatml, user-assistant, or a .toml file.",
            show_default="the base's, or alpaca",
        ),
    ] = None,
    mask_prompt: Annotated[bool, typer.Option(help="Compute the loss on the answers only.")] = True,
    packing: Annotated[
        bool, typer.Option("--packing", help="Pack several records into one sequence.")
    ] = False,
    tuning: options.Tuning,
) -> None:
    """Teach a model to answer instructions."""
    from llmkit.finetuning.instruct import finetune_instruct
    from llmkit.modelfiles.prompt_format import prompt_format as named_format

    tuning.run(
        finetune_instruct,
        out,
        _show,
        checkpoint=checkpoint,
        data=data,
        prompt_format=named_format(prompt_format) if prompt_format else None,
        mask_prompt=mask_prompt,
        packing=packing,
    )


def _show(result: InstructResult) -> None:
    from llmkit.console import results

    for answer in result.answers[:N_SHOWN]:
        results.print(f"\n> {answer.question}\n{answer.answer}", markup=False)
    results.print(
        f"\n{result.checkpoint}: {result.n_trained:,} of {result.n_parameters:,} parameters "
        f"trained, {result.steps} steps; on {result.n_records[2]} held-out records a loss of "
        f"{result.test_loss:.3f} nats per token of the answers; {result.end_rate:.0%} of "
        f"{len(result.answers)} answers end by themselves",
        markup=False,
        soft_wrap=True,
    )
