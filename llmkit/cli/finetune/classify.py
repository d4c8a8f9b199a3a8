"""`llmkit finetune classify`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmkit.cli.finetune import options
from llmkit.cli.options import (
    CheckpointArgument,
    DelimiterOption,
    EncodingOption,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from llmkit.finetuning.classify import ClassifyResult


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("classify")(_classify)


@options.with_tuning
def _classify(
    *,
    checkpoint: CheckpointArgument,
    data: Annotated[
        Path, typer.Option(metavar="FILE", help="Texts and labels: a TSV, CSV, JSON or JSONL file.")
    ],
    out: options.OutOption,
    test_data: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Test texts and labels.", show_default="a fifth of the data"
        ),
    ] = None,
    balance: Annotated[
        bool, typer.Option("--balance", help="Use the same number of texts for every label.")
    ] = False,
    text_column: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="Column (name, or number from 1) or JSON field of the texts.",
            show_default="detected",
        ),
    ] = None,
    label_column: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="Column (name, or number from 1) or JSON field of the labels.",
            show_default="detected",
        ),
    ] = None,
    delimiter: DelimiterOption = None,
    encoding: EncodingOption = "utf-8",
    unfreeze: Annotated[
        str,
        typer.Option(
            metavar="PART",
            help="Part to train: head (classifier only), N (the last N blocks), or all.",
        ),
    ] = "all",
    tuning: options.Tuning,
) -> None:
    """Train a text classifier. In Ollama it answers with the label."""
    from llmkit.finetuning.classify import DEFAULT_SPLIT, finetune_classify

    tuning.run(
        finetune_classify,
        out,
        _show,
        _figure,
        checkpoint=checkpoint,
        data=data,
        test_data=test_data,
        text_column=text_column,
        label_column=label_column,
        delimiter=delimiter,
        encoding=encoding,
        balance=balance,
        unfreeze=unfreeze,
        config={"split": DEFAULT_SPLIT},
    )


def _figure(result: ClassifyResult) -> Figure:
    from llmkit.export.report.confusion import confusion_figure

    return confusion_figure(result)


def _show(result: ClassifyResult) -> None:
    from llmkit.console import results
    from llmkit.export.report.confusion import classify_table

    results.print(classify_table(result))
    results.print(
        f"{result.checkpoint}: {result.n_trained:,} of {result.n_parameters:,} parameters "
        f"trained, {result.steps} steps; accuracy {result.accuracy:.2%} on "
        f"{result.n_records[2]} held-out texts",
        markup=False,
        soft_wrap=True,
    )
