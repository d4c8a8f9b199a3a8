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
        typer.Argument(
            metavar="DIR", help="Folder written by `llmkit export`.", show_default=False
        ),
    ],
    name: Annotated[
        str, typer.Option(metavar="NAME", help="Name of the model in Ollama.", show_default=False)
    ],
    host: HostOption = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Checkpoint to compare with.", show_default="the one in parity.json"
        ),
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Create a model in a running Ollama and verify it there.

    An existing model of this name is replaced only if the new one passes.
    Exit code 1 if a check fails.
    """
    from llmkit.console import results
    from llmkit.export.deploy.deploy import deploy

    done = deploy(folder, name, host=host, checkpoint=checkpoint)
    if json_output:
        print_json(done.to_dict())
    else:
        print_checks(done.checks)
        results.print(done.summary, soft_wrap=True)
    if not done.passed:
        raise typer.Exit(1)
