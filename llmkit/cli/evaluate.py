"""`llmkit evaluate`."""

from __future__ import annotations

import sys
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
            "village-pairs, village-choices, judge, human; or a file or folder, whose content "
            "tells the task.",
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
    shots: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Put N examples before each question (mmlu: of SUBJECT_dev.csv), fewer if they do "
            "not fit the context.",
        ),
    ] = 0,
    judge: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Model that judges, of Ollama or --judge-url."),
    ] = None,
    judge_url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="OpenAI-compatible address of the judge, such as https://host/v1; its key is "
            "taken from OPENAI_API_KEY.",
            show_default="Ollama",
        ),
    ] = None,
    judge_prompt: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Prompt with {question}, {reference} and {answer}; with --pairwise {answer_a} "
            "and {answer_b}.",
            show_default="built in, and printed",
        ),
    ] = None,
    repeats: Annotated[
        int, typer.Option(metavar="N", help="Ask the judge N times, with different seeds.")
    ] = 1,
    pairwise: Annotated[
        bool,
        typer.Option(
            "--pairwise", help="Let the judge compare with the first model, in both orders."
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="JSONL file of what the judge or you said; a stopped run continues from it.",
        ),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Plot the scores (.png or .svg).")
    ] = None,
    backend: BackendOption = "cpu",
    json_output: JsonOption = False,
) -> None:
    """Score models on a task, with confidence intervals.

    Ollama only answers: ollama:NAME works with the tasks answers, classify, judge and human.
    """
    from llmkit.console import results
    from llmkit.errors import ConfigError
    from llmkit.evaluation.evaluate import evaluate
    from llmkit.evaluation.human import rate
    from llmkit.evaluation.judge import judge as run_judge
    from llmkit.evaluation.tables import evaluation_figure, evaluation_tables, judged_text
    from llmkit.export.report.plots import check_plot_path, save_figure

    if plot is not None:
        check_plot_path(plot)
    judged = None
    if task not in ("judge", "human"):
        found = evaluate(models, task, data=data, limit=limit, shots=shots, backend=backend)
    elif data is None or out is None:
        raise ConfigError(f"the task {task} needs --data (questions with answers) and --out")
    elif task == "human":
        found = rate(models, data, out, ask=_ask, limit=limit, backend=backend)
    elif judge is None:
        raise ConfigError("the task judge needs --judge")
    else:
        judged = run_judge(
            models,
            data,
            out,
            judge=judge,
            url=judge_url,
            prompt=judge_prompt,
            repeats=repeats,
            pairwise=pairwise,
            limit=limit,
            backend=backend,
        )
        found = judged.evaluation
    if plot is not None:
        save_figure(evaluation_figure(found), plot)
    if json_output:
        print_json((judged or found).to_dict())
    else:
        for table in evaluation_tables(found):
            results.print(table)
        if judged is not None:
            results.print(judged_text(judged))


def _ask(text: str) -> str:
    """What is typed after a text on stderr; q at the end of the input."""
    print(text, end="", file=sys.stderr, flush=True)
    try:
        return input()
    except EOFError:
        return "q"
