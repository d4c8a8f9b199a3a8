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
    prompt: Annotated[str, typer.Option(help="Text to go on from, or question.")] = "",
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
    """Continue a prompt, or answer it with a fine-tuned model."""
    from llmkit.export.running import open_runner
    from llmkit.generation import Sampling
    from llmkit.modelfiles.prompt_format import Message

    sampling = Sampling(temperature, top_k, top_p, seed, max_tokens)
    with open_runner(model) as runner:
        pieces = runner.answer(runner.prompt([Message("user", prompt)]), sampling)
        first = next(pieces, "")  # an error in the prompt comes before any output
        sys.stdout.write(prompt + first if runner.continues else first)
        for piece in pieces:
            sys.stdout.write(piece)
            sys.stdout.flush()
    sys.stdout.write("\n")
