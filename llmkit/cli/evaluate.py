"""`llmkit evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmkit.cli.options import BackendOption, JsonOption, print_json


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("evaluate")(_evaluate)


def _evaluate(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help="Checkpoint folders, GGUF files or ollama:NAME. All others are compared with the "
            "first.",
        ),
    ],
    task: Annotated[
        str,
        typer.Option(
            metavar="NAME|FILE",
            help="Task: perplexity, pairs, mmlu, hellaswag, arc, piqa, lambada, answers, classify, "
            "village-pairs, village-choices; or a file or folder whose content tells its task.",
        ),
    ],
    data: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Data of a task that is given by name.")
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Use N items, drawn at random, the same ones for all models.",
            show_default="all",
        ),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Plot the scores (.png or .svg).")
    ] = None,
    backend: BackendOption = "cpu",
    json_output: JsonOption = False,
) -> None:
    """Score models on a task, with confidence intervals.

    Ollama only answers: ollama:NAME works with the tasks answers and classify.
    """
    from llmkit.console import results
    from llmkit.evaluation.evaluate import evaluate
    from llmkit.evaluation.tables import evaluation_figure, evaluation_tables
    from llmkit.export.report.plots import check_plot_path, save_figure

    if plot is not None:
        check_plot_path(plot)
    found = evaluate(models, task, data=data, limit=limit, backend=backend)
    if plot is not None:
        save_figure(evaluation_figure(found), plot)
    if json_output:
        print_json(found.to_dict())
    else:
        for table in evaluation_tables(found):
            results.print(table)
