"""`llmkit data`: text made ready for training."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from llmkit.cli.options import (
    DelimiterOption,
    EncodingOption,
    JsonOption,
    NewTokenizerOption,
    TextColumnOption,
    VocabSizeOption,
    print_json,
)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(name="data", help="Prepare training text.", no_args_is_help=True)
    group.callback()(_group)
    group.command("prepare")(_prepare)
    app.add_typer(group)


def _group() -> None:
    """Prepare training text."""


def _prepare(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="SOURCE...",
            help="Text, JSONL, Parquet or table files, or folders of them.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the token shards.")],
    tokenizer: NewTokenizerOption = "bpe",
    vocab_size: VocabSizeOption = None,
    text_column: TextColumnOption = None,
    delimiter: DelimiterOption = None,
    encoding: EncodingOption = "utf-8",
    json_output: JsonOption = False,
) -> None:
    """Tokenize text of any size into a folder for `train --data DIR`.

    Uses all cores and little memory. After an interruption, the same command continues.
    """
    from llmkit.console import results
    from llmkit.data.prepared import prepare_data
    from llmkit.data.tokens import PARTS

    prepared = prepare_data(
        sources,
        out,
        tokenizer=tokenizer,
        vocab_size=vocab_size,
        text_column=text_column,
        delimiter=delimiter,
        encoding=encoding,
    )
    totals = {part: prepared.total(part) for part in PARTS}
    if json_output:
        counts = {part: asdict(total) for part, total in totals.items()}
        about = {"tokenizer_sha256": prepared.tokenizer_sha256, "n_shards": len(prepared.shards)}
        print_json({"folder": out, "vocab_size": prepared.vocab_size, **about, **counts})
        return
    for part, total in totals.items():
        results.print(
            f"{part}: {total.tokens:,} tokens, {total.documents:,} documents, {total.bytes:,} bytes"
        )
    results.print(f"next: llmkit train --data {out} --out DIR", soft_wrap=True)
