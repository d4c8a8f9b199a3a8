"""`llmkit chat`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmkit.cli.options import HostOption
from llmkit.cli.sampling_options import with_sampling_options

if TYPE_CHECKING:
    from llmkit.sampling import Sampling


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("chat")(_chat)


@with_sampling_options
def _chat(
    *,
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
            help="CSV, TSV, JSON or JSONL file of questions and answers. A question near one of "
            "them gets its answer, marked [FAQ: ...]; the model answers the others.",
            show_default=False,
        ),
    ] = None,
    sampling: Sampling,
) -> None:
    """Chat with a model. Type /bye or Ctrl-D to quit."""
    from llmkit.console import say
    from llmkit.export.llamacpp.chat import chat, open_reply
    from llmkit.faq import Faq

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
