"""`llmkit generate`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from llmkit.cli.options import BackendOption


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("generate")(_generate)


def _generate(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Checkpoint folder or GGUF file.")],
    prompt: Annotated[
        str,
        typer.Option(
            metavar="TEXT", help="Text to continue, or a question for a fine-tuned model."
        ),
    ] = "",
    temperature: Annotated[
        float,
        typer.Option(
            metavar="X", help="Sampling temperature; 0 always picks the most probable token."
        ),
    ] = 0.8,
    top_k: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Sample from the N most probable tokens.", show_default="all"
        ),
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(
            metavar="P",
            help="Sample from the most probable tokens whose probabilities add up to P (0 to 1).",
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(metavar="N", help="Random seed; the same seed gives the same text.")
    ] = 0,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Stop after N tokens.", show_default="until the context is full"
        ),
    ] = None,
    backend: BackendOption = "cpu",
) -> None:
    """Continue a text, or answer a question."""
    from llmkit.export.llamacpp.runners import open_runner
    from llmkit.generation import Sampling
    from llmkit.modelfiles.prompt_format import Message

    sampling = Sampling(temperature, top_k, top_p, seed, max_tokens)
    with open_runner(model, backend) as runner:
        pieces = runner.answer(runner.prompt([Message("user", prompt)]), sampling)
        first = next(pieces, "")  # an error in the prompt comes before any output
        sys.stdout.write(prompt + first if runner.continues else first)
        for piece in pieces:
            sys.stdout.write(piece)
            sys.stdout.flush()
    sys.stdout.write("\n")
