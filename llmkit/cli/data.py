"""`llmkit data`: getting data sets, and text made ready for training."""

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
    SourcesArgument,
    TextColumnOption,
    VocabSizeOption,
    print_json,
)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(name="data", help="Get and prepare training data.", no_args_is_help=True)
    group.callback()(_group)
    group.command("prepare")(_prepare)
    group.command("list")(_list)
    group.command("get")(_get)
    app.add_typer(group)


def _group() -> None:
    """Get and prepare training data."""


def _list(json_output: JsonOption = False) -> None:
    """List well-known data sets with licences and checksums."""
    from rich.table import Table

    from llmkit.console import results
    from llmkit.data.known_sets import KNOWN_SETS, known_sets_as_json

    if json_output:
        print_json(known_sets_as_json())
        return
    table = Table("name", "what", "MB", "licence", "SHA-256 of the download", "for")
    for name, known in KNOWN_SETS.items():
        checksum = known.sha256[:16] if known.sha256 else "none published; the first is noted"
        size = f"{known.megabytes:,g}"
        table.add_row(name, known.about, size, known.licence, checksum, known.used_by)
    results.print(table)


def _get(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="Name from `llmkit data list`.", show_default=False),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the file.")] = Path("data"),
    json_output: JsonOption = False,
) -> None:
    """Download a well-known data set and verify its checksum.

    After an interruption, the same command continues.
    """
    from llmkit.console import results
    from llmkit.data.known_sets import KNOWN_SETS, get_data

    got = get_data(name, out)
    if json_output:
        print_json(asdict(got))
        return
    checked = "verified" if got.verified else "none published to compare with; noted for next time"
    command = KNOWN_SETS[name].used_by
    results.print(
        f"{got.file}\nlicence: {got.licence}\nSHA-256: {got.sha256} ({checked})\nfor: {command}",
        soft_wrap=True,
    )


def _prepare(
    sources: SourcesArgument,
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
