"""`llmkit chat`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("chat")(_chat)


def _chat(
    model: Annotated[Path, typer.Argument(help="Checkpoint folder or GGUF file.")],
    system: Annotated[str, typer.Option(help="System text.", show_default="the format's")] = "",
    temperature: Annotated[float, typer.Option(help="0 takes the most probable token.")] = 0.8,
    top_k: Annotated[
        int | None, typer.Option(help="Choose among this many tokens.", show_default="all")
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(help="Choose among the tokens that make up this probability."),
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same answers.")] = 0,
    max_tokens: Annotated[
        int | None, typer.Option(help="Stop after this many.", show_default="the context")
    ] = None,
) -> None:
    """Talk with a model, in the prompt format that it was trained with. /bye or Ctrl-D ends."""
    from llmkit.console import say
    from llmkit.export.running import open_runner
    from llmkit.generation import Sampling
    from llmkit.modelfiles.prompt_format import Message

    sampling = Sampling(temperature, top_k, top_p, seed, max_tokens)
    first = [Message("system", system)] if system else []
    with open_runner(model) as runner:
        turns: list[Message] = []
        for line in _lines():
            turns.append(Message("user", line))
            prompt = runner.prompt([*first, *turns])
            while len(prompt) >= runner.context_length and len(turns) > 1:
                turns = turns[2:]
                say("the oldest question and answer no longer fit the context and are forgotten")
                prompt = runner.prompt([*first, *turns])
            answer = ""
            for piece in runner.answer(prompt, sampling):
                answer += piece
                sys.stdout.write(piece)
                sys.stdout.flush()
            sys.stdout.write("\n")
            if answer.strip():
                turns.append(Message("assistant", answer.strip()))
            else:
                turns.pop()  # an empty answer cannot be part of what follows


def _lines() -> Iterator[str]:
    """What the user types, line by line; a prompt is shown only to a person."""
    while True:
        if sys.stdin.isatty():
            sys.stderr.write(">>> ")
            sys.stderr.flush()
        line = sys.stdin.readline()
        if not line or line.strip() == "/bye":
            return
        if line.strip():
            yield line.strip()
