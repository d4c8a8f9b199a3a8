"""`llmkit imatrix`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmkit.cli.options import CheckpointArgument, JsonOption, print_json


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("imatrix")(_imatrix)


def _imatrix(
    checkpoint: CheckpointArgument,
    out: Annotated[Path, typer.Option(metavar="FILE", help="GGUF file to write.")],
    calibration: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Calibration text: a file, folder or JSONL file.",
            show_default="the training data",
        ),
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Write an importance matrix in llama.cpp's format."""
    from llmkit.console import results
    from llmkit.export.quantization.imatrix import make_imatrix

    made = make_imatrix(checkpoint, out, calibration)
    n_tokens = made.chunk_count * made.chunk_size
    if json_output:
        print_json({"path": out, "matrices": len(made.statistics), "tokens": n_tokens})
        return
    results.print(
        f"{out}: importances of {len(made.statistics)} matrices on {n_tokens:,} tokens; "
        "llmkit export --imatrix and llama-quantize --imatrix read it",
        soft_wrap=True,
    )
