"""`llmkit doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmkit.cli.options import HostOption, JsonOption, print_checks, print_json


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("doctor")(_doctor)


def _doctor(
    gguf: Annotated[
        Path | None,
        typer.Argument(metavar="[GGUF]", help="A file that is to run.", show_default=False),
    ] = None,
    host: HostOption = None,
    context: Annotated[
        int | None,
        typer.Option(help="Tokens the file shall have room for.", show_default="the model's"),
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Look at this machine, its Ollama, its port, its memory. Exit code 1: there is a cross."""
    from llmkit.export.doctor.examine import doctor

    diagnosis = doctor(gguf, host=host, context=context)
    if json_output:
        print_json(diagnosis.to_dict())
    else:
        print_checks(diagnosis.checks)
    if not diagnosis.passed:
        raise typer.Exit(1)
