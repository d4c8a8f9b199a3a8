"""Tables and code blocks in Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; cells are shown as text."""
    lines = [[_cell(cell) for cell in line] for line in (headings, *rows)]
    lines.insert(1, ["---"] * len(headings))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def code_block(language: str, text: str) -> str:
    """A block between tildes, more of them than the text has."""
    fence = "~" * max([3, *(len(run) + 1 for run in re.findall("~+", text))])
    return f"{fence}{language}\n{text}\n{fence}"


def _cell(text: str) -> str:
    return re.sub(r"([\\`*<|\[])", r"\\\1", text).replace("\n", " ")
