"""The one console: results on stdout; notes and progress on stderr, so that --json stays clean."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

SECONDS_BETWEEN_LINES = 10.0

# Output that is piped into a file has no width of its own; tables then take what they need.
WIDTH_OF_FILES = 160

# Text is shown as it is: paths and samples may hold [brackets] and :colons:.
results = Console(
    markup=False,
    emoji=False,
    highlight=False,
    width=None if sys.stdout.isatty() else WIDTH_OF_FILES,
)
# Plain lines in a notebook: its stderr calls itself a terminal, and shows a bar as many lines.
notes = Console(
    stderr=True,
    markup=False,
    emoji=False,
    highlight=False,
    soft_wrap=True,
    force_jupyter=False,
    force_terminal=False if results.is_jupyter else None,
)


def command(*words: object) -> str:
    """A command line of llmkit, quoted for a shell."""
    return shlex.join(["llmkit", *map(str, words)])


def say(text: str) -> None:
    """Print a line for the human who watches."""
    notes.print(text)


@dataclass
class Progress:
    """How far a piece of long work is; `update` may be called as often as one likes."""

    title: str
    total: int  # 0 where nobody knows
    unit: str
    bar: RichProgress | None
    _started: float = field(default_factory=time.monotonic)
    _last_line: float = field(default_factory=time.monotonic)
    _first: int | None = None

    def update(self, done: int, note: str = "") -> None:
        """Show that `done` of `total` units are done."""
        if self._first is None:
            self._first, self._started = done, time.monotonic()  # what came before is no rate
        if self.bar is not None:
            self.bar.update(self.bar.task_ids[0], completed=done, note=note)
        elif time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            self._print_line(done, note)

    def _print_line(self, done: int, note: str) -> None:
        progressed = done - (self._first or 0)
        rate = progressed / max(time.monotonic() - self._started, 1e-9)
        left = f", {(self.total - done) / rate:.0f} s left" if rate and self.total else ""
        of = f"/{self.total}" if self.total else ""
        say(f"{self.title}: {done}{of} {self.unit}{left}{', ' * bool(note)}{note}")


@contextmanager
def progress(title: str, total: int, unit: str) -> Iterator[Progress]:
    """Show progress: a bar with rate and time left on a terminal, plain lines elsewhere."""
    if not notes.is_terminal:
        yield Progress(title, total, unit, None)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with RichProgress(*columns, console=notes, transient=True) as bar:
        bar.add_task(title, total=total or None, note="")
        yield Progress(title, total, unit, bar)
