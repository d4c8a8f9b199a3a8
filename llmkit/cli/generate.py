"""`llmkit generate`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("generate")(_generate)


def _generate(
    model: Annotated[Path, typer.Argument(help="Checkpoint folder or GGUF file.")],
    prompt: Annotated[str, typer.Option(help="Text to go on from.")] = "",
    temperature: Annotated[float, typer.Option(help="0 takes the most probable token.")] = 0.8,
    top_k: Annotated[
        int | None, typer.Option(help="Choose among this many tokens.", show_default="all")
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(help="Choose among the tokens that make up this probability."),
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same text.")] = 0,
    max_tokens: Annotated[
        int | None, typer.Option(help="Stop after this many.", show_default="the context")
    ] = None,
) -> None:
    """Let a model go on from a prompt, streaming the text."""
    from llmkit.export.running import generate
    from llmkit.generation import Sampling

    sampling = Sampling(temperature, top_k, top_p, seed, max_tokens)
    pieces = generate(model, prompt, sampling)
    first = next(pieces, "")  # an error in the model or the prompt comes before any output
    sys.stdout.write(prompt + first)
    for piece in pieces:
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
