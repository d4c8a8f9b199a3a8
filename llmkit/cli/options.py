"""Options that several commands share."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from llmkit.export.check import Check
    from llmkit.training.run_state import Metrics

CheckpointArgument = Annotated[
    Path, typer.Argument(metavar="CHECKPOINT", help="Checkpoint folder.", show_default=False)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
TextColumnOption = Annotated[
    str | None,
    typer.Option(
        metavar="COLUMN",
        help="Table column (name, or number from 1) or JSON field that holds the text.",
        show_default="text",
    ),
]
ResumeOption = Annotated[
    bool, typer.Option("--resume", help="Resume an interrupted run, or start if there is none.")
]
DeviceOption = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="cuda, mps or cpu.", show_default="the fastest available"),
]
DelimiterOption = Annotated[
    str | None,
    typer.Option(
        metavar="CHAR",
        help="Column separator of a table: one character, or tab.",
        show_default="detected: comma, tab, semicolon or bar",
    ),
]
EncodingOption = Annotated[
    str,
    typer.Option(
        metavar="NAME", help="Text encoding of the input files, for example latin-1 or utf-16."
    ),
]
NewTokenizerOption = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="bpe, word or char (trained on the text), gpt2, or a tokenizer file or its folder.",
    ),
]
VocabSizeOption = Annotated[
    int | None,
    typer.Option(
        metavar="N", help="Vocabulary size of a bpe or word tokenizer.", show_default="2048"
    ),
]
HeldOutOption = Annotated[
    Path | None,
    typer.Option(
        metavar="PATH",
        help="Held-out text: a file, folder or JSONL file.",
        show_default="the validation split of training",
    ),
]
BackendOption = Annotated[
    Literal["cpu", "gpu", "auto"],
    typer.Option(help="Where llama.cpp runs a GGUF file; auto takes a GPU if there is one."),
]
HostOption = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="Address of Ollama: [http://]HOST[:PORT].",
        show_default="OLLAMA_HOST, or 127.0.0.1:11434",
    ),
]


SourcesArgument = Annotated[
    list[Path],
    typer.Argument(
        metavar="SOURCE...",
        help="Text, JSONL, Parquet or table files, folders, patterns such as 'corpus/*.txt', or "
        "hf:USER/NAME[:CONFIG] for a data set of the Hugging Face hub.",
        show_default=False,
    ),
]
ParameterOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE",
        help="Ollama PARAMETER of the Modelfile, for example temperature=0.8. May be repeated.",
    ),
]


def save_loss_curve(checkpoint: Path, metrics: Sequence[Metrics]) -> None:
    """Draw the losses of a run into its folder."""
    from llmkit.checkpoint.layout import TRAINING_FOLDER
    from llmkit.export.report.plots import save_figure
    from llmkit.export.report.runs import loss_figure

    save_figure(loss_figure({"": metrics}), checkpoint / TRAINING_FOLDER / "loss.png")


def print_json(content: dict[str, Any]) -> None:
    """Print one JSON object on stdout."""
    json.dump(content, sys.stdout, default=str)
    sys.stdout.write("\n")


def print_checks(checks: Iterable[Check]) -> None:
    """A line each: tick or cross, what was found, what to do."""
    from llmkit.console import results

    for check in checks:
        results.print(str(check), style="green" if check.passed else "red", soft_wrap=True)
