"""`llmkit report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmkit.cli.options import JsonOption, print_json


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("report")(_report)


def _report(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Checkpoint folder.", show_default=False)
    ],
    ggufs: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="GGUF...",
            help="GGUF files of the run.",
            show_default="those in RUN and RUN-export, and verified ones in folders beside RUN",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write only this file: a page (.html) or a model card (.md).",
            show_default="RUN/report.html and RUN/report.md",
        ),
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Write a page and a model card about a run.

    Shows data, settings, training curves, samples, size and speed of GGUF files, and the results
    of verify, compare and evaluate. Names what is missing, with the command for it.
    """
    from llmkit.console import results
    from llmkit.report.write import report

    found, paths = report(run, ggufs or (), out=out)
    if json_output:
        print_json(found.to_dict() | {"written": paths})
        return
    for path in paths:
        results.print(f"Report: {path}", soft_wrap=True)
    for missing in found.missing:
        remedy = f": {missing.command}" if missing.command else ""
        results.print(f"Not in the report: {missing.what}{remedy}", soft_wrap=True)
