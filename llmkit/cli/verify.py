"""`llmkit verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmkit.cli.options import (
    BackendOption,
    HeldOutOption,
    JsonOption,
    print_json,
)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("verify")(_verify)


def _verify(
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT",
            help="Checkpoint folder, or the Hugging Face folder that another program made the "
            "file from.",
        ),
    ],
    gguf: Annotated[Path, typer.Argument(metavar="GGUF", help="GGUF file made from it.")],
    modelfile: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Modelfile to verify too.", show_default="the one beside it"
        ),
    ] = None,
    ollama: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Also verify this model in a running Ollama.", show_default=False
        ),
    ] = None,
    data: HeldOutOption = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write an HTML report with plots.")
    ] = None,
    backend: BackendOption = "cpu",
    json_output: JsonOption = False,
) -> None:
    """Check that llama.cpp computes what PyTorch computes.

    The result is saved in parity.json beside the file. Exit code 1 if a check fails.
    """
    from llmkit.console import results
    from llmkit.export.report.tables import proof_table
    from llmkit.importing.verify_source import verify_source

    proof = verify_source(
        checkpoint,
        gguf,
        modelfile=modelfile,
        ollama=ollama,
        data=data,
        html=html,
        backend=backend,
    )
    if json_output:
        print_json(proof.to_dict())
    else:
        results.print(proof_table([proof]))
    if not proof.passed:
        raise typer.Exit(1)
