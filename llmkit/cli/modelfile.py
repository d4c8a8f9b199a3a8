"""`llmkit modelfile`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from llmkit.cli.options import JsonOption, print_json


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(name="modelfile", help="Check a Modelfile.", no_args_is_help=True)
    group.command("lint")(_lint)
    app.add_typer(group)


def _lint(
    path: Annotated[Path, typer.Argument(metavar="MODELFILE", help="A Modelfile.")],
    json_output: JsonOption = False,
) -> None:
    """Find what Ollama will refuse or do otherwise than meant. Exit code 1: there are errors."""
    from llmkit.console import results
    from llmkit.export.modelfile_lint import lint_modelfile

    found = lint_modelfile(path)
    if json_output:
        print_json({"findings": [asdict(finding) for finding in found]})
    else:
        for finding in found:
            line = f"{finding.place}: {finding.level}: {finding.message}"
            results.print(line, markup=False, soft_wrap=True)
        if not found:
            results.print(f"{path}: nothing to mend", markup=False)
    if any(finding.level == "error" for finding in found):
        raise typer.Exit(1)
