"""`llmkit verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmkit.cli.options import CheckpointArgument, HeldOutOption, JsonOption, print_json


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("verify")(_verify)


def _verify(
    checkpoint: CheckpointArgument,
    gguf: Annotated[Path, typer.Argument(metavar="GGUF", help="A GGUF file of it.")],
    modelfile: Annotated[
        Path | None, typer.Option(help="Modelfile to prove too.", show_default="the one beside it")
    ] = None,
    ollama: Annotated[
        str | None,
        typer.Option(help="Name of a model in a running Ollama to prove too.", show_default=False),
    ] = None,
    data: HeldOutOption = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with plots.")] = None,
    json_output: JsonOption = False,
) -> None:
    """Prove that llama.cpp computes what PyTorch computes. Exit code 1: a check fails.

    The proof is kept in parity.json beside the file.
    """
    from llmkit.console import results
    from llmkit.export.parity.verify import verify
    from llmkit.export.tables import proof_table

    proof = verify(checkpoint, gguf, modelfile=modelfile, ollama=ollama, data=data, html=html)
    if json_output:
        print_json(proof.to_dict())
    else:
        results.print(proof_table([proof]))
    if not proof.passed:
        raise typer.Exit(1)
