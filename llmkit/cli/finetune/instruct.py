"""`llmkit finetune instruct`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmkit.cli.finetune import options
from llmkit.cli.options import CheckpointArgument, JsonOption, ResumeOption

if TYPE_CHECKING:
    from llmkit.finetuning.instruct import InstructResult

N_SHOWN = 5


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("instruct")(_instruct)


def _instruct(
    checkpoint: CheckpointArgument,
    data: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="JSON or JSONL file of Alpaca, Dolly, chat or prompt/completion records.",
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
    """Teach a model to answer instructions."""
    from llmkit.finetuning.instruct import finetune_instruct
    from llmkit.modelfiles.prompt_format import prompt_format as named_format

    config = options.finetune_config(
        lora, lora_alpha, lora_dropout, lora_targets, qlora, qat, epochs, add_tokens
    )
    options.run_or_sweep(
        finetune_instruct,
        out,
        sweep,
        json_output,
        _show,
        plot,
        checkpoint=checkpoint,
        data=data,
        prompt_format=named_format(prompt_format) if prompt_format else None,
        mask_prompt=mask_prompt,
        packing=packing,
        config=config,
        training={"batch_size": batch_size, "learning_rate": learning_rate, "seed": seed},
        resume=resume,
        device=device,
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
