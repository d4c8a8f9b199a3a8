"""`llmkit compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from llmkit.cli.options import BackendOption, JsonOption, print_json


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("compare")(_compare)


def _compare(
    reference: Annotated[
        Path,
        typer.Argument(metavar="REFERENCE", help="Checkpoint folder or GGUF file to compare with."),
    ],
    ggufs: Annotated[
        list[Path], typer.Argument(metavar="GGUF", help="GGUF files of the same model.")
    ],
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Text to compare on: a file, folder or JSONL file.",
            show_default="the held-out text; of a GGUF file built-in tales",
        ),
    ] = None,
    against: Annotated[
        Literal["llama.cpp"] | None,
        typer.Option(
            help="Also measure what llama-quantize makes of the same types, with or without an "
            "importance matrix, whichever is better.",
            show_default="none",
        ),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Calibration text for that importance matrix: a file, folder or JSONL file.",
            show_default="the training data",
        ),
    ] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write an HTML report.")] = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Plot file size against KL divergence (.png or .svg)."),
    ] = None,
    backend: BackendOption = "cpu",
    json_output: JsonOption = False,
) -> None:
    """Measure size, quality, speed and memory of GGUF files."""
    from llmkit.console import results
    from llmkit.export.compare import compare
    from llmkit.export.report.page import write_report
    from llmkit.export.report.plots import check_plot_path, save_figure, size_quality_figure
    from llmkit.export.report.tables import comparison_table

    if plot is not None:
        check_plot_path(plot)
    comparison = compare(
        reference, ggufs, data=data, against=against, calibration=calibration, backend=backend
    )
    if plot is not None:
        save_figure(size_quality_figure(comparison), plot)
    if html is not None:
        write_report(html, comparison)
    if json_output:
        print_json(comparison.to_dict())
    else:
        results.print(comparison_table(comparison))
