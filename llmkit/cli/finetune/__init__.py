"""`llmkit finetune`: one file per kind."""

from __future__ import annotations

import typer

from llmkit.cli.finetune import classify, distill, instruct, prefer


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(
        name="finetune", help="Fine-tune a checkpoint on your own records.", no_args_is_help=True
    )
    for module in (classify, instruct, prefer, distill):
        module.register(group)
    app.add_typer(group)
