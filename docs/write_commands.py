"""Write docs/commands.md: the help of every command, as `llmkit COMMAND --help` shows it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from llmkit.cli.main import whole_command

PAGE = Path(__file__).with_name("commands.md")
HEAD = """# Commands

Written by `python docs/write_commands.py` from the help of each command; do not edit.
"""
WIDTH = 80


def page() -> str:
    """The whole page."""
    return HEAD + "".join(_sections(whole_command(), "llmkit", None))


def _sections(command: Any, name: str, parent: typer.Context | None) -> Iterator[str]:
    context = typer.Context(command, parent, name, terminal_width=WIDTH)
    lines = [line.rstrip() for line in command.get_help(context).splitlines()]
    level = "##" if parent is None or parent.parent is None else "###"
    yield "\n".join(("", f"{level} {context.command_path}", "", "```text", *lines, "```", ""))
    for part_name, part in getattr(command, "commands", {}).items():
        yield from _sections(part, part_name, context)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
