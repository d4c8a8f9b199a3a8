"""`llmkit deploy`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmkit.cli.options import HostOption, JsonOption, print_checks, print_json


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("deploy")(_deploy)


def _deploy(
    folder: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="Folder that export wrote.", show_default=False),
    ],
    name: Annotated[str, typer.Option(help="The model's name in Ollama.", show_default=False)],
    host: HostOption = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="Checkpoint that the file is of.", show_default="the one in parity.json"),
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Bring a model into a running Ollama and verify it there. Exit code 1: a check fails.

    A model that has the name already is replaced only by a verified one.
    """
    from llmkit.console import results
    from llmkit.export.deploy import deploy

    done = deploy(folder, name, host=host, checkpoint=checkpoint)
    if json_output:
        print_json(done.to_dict())
    else:
        print_checks(done.checks)
        results.print(done.summary, soft_wrap=True)
    if not done.passed:
        raise typer.Exit(1)
