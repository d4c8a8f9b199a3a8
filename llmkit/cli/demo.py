"""`llmkit demo`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from llmkit.cli.options import JsonOption, print_json


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("demo")(_demo)


def _demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Output folder.")] = Path("runs/demo"),
    json_output: JsonOption = False,
) -> None:
    """Train, fine-tune, export and verify a small model.

    The corpus is built in. Exit code 1 if a check fails.
    """
    from llmkit.console import results
    from llmkit.demo import NAME, QUESTION, demo
    from llmkit.evaluation.tables import evaluation_tables
    from llmkit.export.report.tables import comparison_table, export_table, proof_table

    made = demo(out)
    if json_output:
        print_json(asdict(made))
    else:
        results.print(export_table(made.export.files))
        results.print(proof_table(made.export.proofs))
        results.print(comparison_table(made.comparison))
        for table in evaluation_tables(made.evaluation):
            results.print(table)
        for question, answer in made.answers:
            results.print(f"\n> {question}\n{answer}", markup=False)
        results.print(
            f"\nReport: {made.report}\n"
            f"Run it in Ollama:\n"
            f"  ollama create {NAME} -f {made.export.modelfile}\n"
            f'  ollama run {NAME} "{QUESTION}"',
            markup=False,
        )
    if not made.passed:
        raise typer.Exit(1)
