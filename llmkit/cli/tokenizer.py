"""`llmkit tokenizer`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from llmkit.cli.options import (
    DelimiterOption,
    EncodingOption,
    JsonOption,
    SourcesArgument,
    TextColumnOption,
    VocabSizeOption,
    print_json,
)

if TYPE_CHECKING:
    from llmkit.data.tokenizers import TokenizerStatistics
    from llmkit.tokenizer import Tokenizer

_COLOURS = ("on dark_blue", "on dark_green", "on dark_red", "on purple4", "on orange4")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(
        name="tokenizer", help="Train a tokenizer, or show what it does.", no_args_is_help=True
    )
    group.command("train")(_train)
    group.command("show")(_show)
    app.add_typer(group)


def _train(
    sources: SourcesArgument,
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="File to write, for `train --tokenizer FILE`.")
    ],
    kind: Annotated[
        Literal["bpe", "word", "char"],
        typer.Option(
            help="bpe merges frequent pairs; word has the most frequent words, and bytes for "
            "others; char has the characters of the text."
        ),
    ] = "bpe",
    vocab_size: VocabSizeOption = None,
    text_column: TextColumnOption = None,
    delimiter: DelimiterOption = None,
    encoding: EncodingOption = "utf-8",
    json_output: JsonOption = False,
) -> None:
    """Train a tokenizer on text.

    Like `train`, it holds out about a tenth of the text, and counts the tokens of that part.
    """
    from llmkit.console import results
    from llmkit.data.tokenizers import train_tokenizer

    made = train_tokenizer(
        sources,
        out,
        kind=kind,
        vocab_size=vocab_size,
        text_column=text_column,
        delimiter=delimiter,
        encoding=encoding,
    )
    if json_output:
        print_json(_as_dict(made))
        return
    _print(made, "the held-out text")
    results.print(f"next: llmkit train --tokenizer {out} --data TEXT --out DIR", soft_wrap=True)


def _show(
    tokenizer: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="Tokenizer file, or a checkpoint folder.", show_default=False
        ),
    ],
    text: Annotated[
        str, typer.Option(metavar="TEXT", help="Text to show in tokens.", show_default=False)
    ] = "",
    file: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Text file to count the tokens of.", show_default=False),
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Show a tokenizer: vocabulary, longest tokens, and a text in tokens."""
    from llmkit.data.tokenizers import statistics, token_text
    from llmkit.records.text_files import read_text
    from llmkit.tokenizer_files import load_tokenizer

    loaded = load_tokenizer(tokenizer)
    measured = read_text(file, "a text file") if file else text
    found = statistics(loaded, [measured])
    ids = loaded.encode(text)
    if json_output:
        tokens = [{"id": token_id, "token": token_text(loaded, token_id)} for token_id in ids]
        print_json(_as_dict(found) | {"tokens": tokens})
        return
    _print(found, str(file) if file else "the text")
    if text:
        _print_tokens(loaded, ids)


def _as_dict(found: TokenizerStatistics) -> dict[str, object]:
    return asdict(found) | {"bytes_per_token": found.bytes_per_token}


def _print(found: TokenizerStatistics, measured: str) -> None:
    from llmkit.console import results

    how = "words looked up whole" if found.looks_up_words else f"{found.n_merges:,} merges"
    special = f"{len(found.special)} special ({', '.join(found.special[:5])})"
    results.print(f"{found.vocab_size:,} tokens: 256 bytes, {how}, {special}", soft_wrap=True)
    if found.longest:
        results.print(f"longest: {' '.join(map(repr, found.longest))}", soft_wrap=True)
    if found.bytes_per_token:
        results.print(
            f"{measured}: {found.n_bytes:,} bytes in {found.n_tokens:,} tokens, "
            f"{found.bytes_per_token:.2f} bytes per token",
            soft_wrap=True,
        )


def _print_tokens(tokenizer: Tokenizer, ids: list[int]) -> None:
    """Each token in a colour unlike its neighbours'; without colours, | between them."""
    from rich.text import Text

    from llmkit.console import results
    from llmkit.data.tokenizers import token_text

    shown = Text("" if results.is_terminal else "|").join(
        Text(token_text(tokenizer, token_id), style=_COLOURS[number % len(_COLOURS)])
        for number, token_id in enumerate(ids)
    )
    results.print(shown, soft_wrap=True)
    results.print(" ".join(map(str, ids)), soft_wrap=True)
