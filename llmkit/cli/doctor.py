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
        typer.Argument(metavar="GGUF", help="GGUF file that you want to run.", show_default=False),
    ] = None,
    host: HostOption = None,
    context: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Context length in tokens to reserve memory for.",
            show_default="the model's",
        ),
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Check this machine, its memory and its Ollama.

    Exit code 1 if a check fails.
    """
    from llmkit.export.doctor.examine import doctor

    examination = doctor(gguf, host=host, context=context)
    if json_output:
        print_json(examination.to_dict())
    else:
        print_checks(examination.checks)
    if not examination.passed:
        raise typer.Exit(1)
