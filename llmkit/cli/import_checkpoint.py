"""`llmkit import`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmkit.cli.import_options import ReferenceOption, with_import_options
from llmkit.cli.options import JsonOption, print_json

if TYPE_CHECKING:
    from llmkit.importing.facts import ImportOptions


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("import")(_import)


@with_import_options
def _import(
    *,
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="File, folder or Hugging Face id: .pt, .pth, .bin, .pkl, .safetensors, llm.c's "
            ".bin, .gguf.",
        ),
    ],
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Output folder for the llmkit checkpoint.")
    ],
    given: ImportOptions,
    reference: ReferenceOption = None,
    json_output: JsonOption = False,
) -> None:
    """Import a GPT that another program trained.

    Takes checkpoints of nanoGPT, build-nanogpt, minGPT, makemore, llm.c, Hugging Face GPT-2, "Build
    a Large Language Model (From Scratch)", and of programs that name tensors in similar ways.
    """
    from llmkit.console import results
    from llmkit.importing.importer import import_checkpoint
    from llmkit.importing.summary import import_tables, next_step, proof_lines

    done = import_checkpoint(source, out, given, reference=reference)
    if json_output:
        print_json(asdict(done))
        return
    for table in import_tables(done):
        results.print(table)
    for line in (*proof_lines(done), next_step(done)):
        results.print(line, markup=False, soft_wrap=True)
