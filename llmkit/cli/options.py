"""Options that several commands share."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

CheckpointArgument = Annotated[
    Path, typer.Argument(metavar="CHECKPOINT", help="Checkpoint folder.", show_default=False)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
HeldOutOption = Annotated[
    Path | None,
    typer.Option(
        help="Held-out text: a file, a folder or JSONL.",
        show_default="what training held out",
    ),
]
HostOption = Annotated[
    str | None,
    typer.Option(
        help="Where Ollama is: [http://]HOST[:PORT].",
        show_default="OLLAMA_HOST, or 127.0.0.1:11434",
    ),
]


def print_json(content: dict[str, Any]) -> None:
    """Print one JSON object on stdout."""
    json.dump(content, sys.stdout, default=str)
    sys.stdout.write("\n")
