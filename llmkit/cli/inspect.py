"""`llmkit inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmkit.cli.options import JsonOption, print_json


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("inspect")(_inspect)


def _inspect(
    path: Annotated[Path, typer.Argument(metavar="MODEL", help="Checkpoint folder or GGUF file.")],
    json_output: JsonOption = False,
) -> None:
    """Show a model's size, tensor types and metadata."""
    from llmkit.console import results
    from llmkit.export.inspection import inspect
    from llmkit.export.report.tables import inspection_tables

    inspection = inspect(path)
    if json_output:
        print_json(inspection.to_dict())
    else:
        for table in inspection_tables(inspection):
            results.print(table)
