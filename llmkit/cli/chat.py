"""`llmkit chat`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from llmkit.cli.options import HostOption


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("chat")(_chat)


def _chat(
    model: Annotated[
        Path | None,
        typer.Argument(metavar="MODEL", help="Checkpoint folder or GGUF file.", show_default=False),
    ] = None,
    ollama: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Talk to this model in a running Ollama instead.",
            show_default=False,
        ),
    ] = None,
    host: HostOption = None,
    system: Annotated[
        str, typer.Option(metavar="TEXT", help="System prompt.", show_default="the prompt format's")
    ] = "",
    faq: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="CSV, JSON or JSONL file of questions and answers. A question near one of them "
            "gets its answer, marked [FAQ: ...]; the model answers the others.",
            show_default=False,
        ),
    ] = None,
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
        int, typer.Option(metavar="N", help="Random seed; the same seed gives the same answers.")
    ] = 0,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Stop each answer after N tokens.",
            show_default="until the context is full",
        ),
    ] = None,
) -> None:
    """Chat with a model. Type /bye or Ctrl-D to quit."""
    from llmkit.console import say
    from llmkit.export.llamacpp.chat import chat, open_reply
    from llmkit.faq import Faq
    from llmkit.generation import Sampling

    sampling = Sampling(temperature, top_k, top_p, seed, max_tokens)
    known = Faq.load(faq) if faq else None
    with open_reply(model, ollama, host, sampling) as reply:
        for piece in chat(reply, _lines(), system, say, known):
            sys.stdout.write(piece)
            sys.stdout.flush()


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
