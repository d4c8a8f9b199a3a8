"""`llmkit runs`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from llmkit.cli.options import JsonOption, print_json


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("runs")(_runs)


def _runs(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Folder with training runs below it.")
    ] = Path("runs"),
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Plot the validation losses (.png or .svg)."),
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """List the training runs below a folder: settings and results."""
    from llmkit.console import results
    from llmkit.export.report.plots import check_plot_path, save_figure
    from llmkit.export.report.runs import loss_figure, runs_table
    from llmkit.training.runs import find_runs

    if plot is not None:
        check_plot_path(plot)
    runs = find_runs(folder)
    if plot is not None:
        names = {str(run.folder.relative_to(folder)): run.metrics for run in runs}
        save_figure(loss_figure(names), plot)
    if json_output:
        print_json({"runs": [asdict(run) for run in runs]})
        return
    results.print(runs_table(runs, folder))
    if plot is not None:
        results.print(f"plot: {plot}", soft_wrap=True)
