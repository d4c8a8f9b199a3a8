"""What a run shows while it trains: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from llmkit.console import Progress, notes, progress
from llmkit.memory import peak_memory_bytes
from llmkit.training.flops import peak_flops
from llmkit.training.run_state import Metrics


@dataclass
class Display:
    """The numbers of the last step and of the last evaluation."""

    total: int  # 0 where nobody knows
    device: torch.device
    flops_per_token: int | None = None  # None where not all weights are trained
    lines: Progress | None = None  # instead of the table
    evaluation: Metrics | None = None
    sample: str = ""
    peak: float = 0.0  # FLOPs per second of plain matrix products
    _first: int | None = None
    _started: float = field(default_factory=time.monotonic)
    _rows: dict[str, str] = field(default_factory=dict)
    _done: int = 0

    def update(self, done: int, loss: float, rate: float, lr: float, grad_norm: float) -> None:
        """Show a step; `rate` in tokens per second."""
        if self.lines is not None:
            self.lines.total = self.total
            self.lines.update(done, f"loss {loss:.3f}, {rate:,.0f} tokens/s")
            return
        if self._first is None:
            self._first, self._started = done, time.monotonic()
        left = (time.monotonic() - self._started) / max(done - self._first, 1) * (self.total - done)
        is_known = done > self._first and self.total
        self._done = done
        self._rows = {
            "train loss": f"{loss:.4f}",
            "learning rate": f"{lr:.3g}",
            "gradient norm": f"{grad_norm:.3g}",
            "tokens/s": f"{rate:,.0f}",
            "time left": f"{left // 60:.0f} min {left % 60:.0f} s" if is_known else "",
            "memory": f"{peak_memory_bytes(self.device) / 1e9:.2f} GB peak",
        }
        if self.flops_per_token is not None and self.peak:
            share = rate * self.flops_per_token / self.peak
            self._rows["of matrix-product peak"] = f"{share:.0%} of {self.peak / 1e12:.3g} TFLOP/s"

    def evaluated(self, metrics: Metrics, samples: list[str]) -> None:
        """Show an evaluation."""
        self.evaluation, self.sample = metrics, samples[0] if samples else ""

    def __rich__(self) -> Group:
        """The table, as rich draws it a few times a second."""
        rows = dict(self._rows)
        if self.evaluation is not None:
            rows["validation loss"] = f"{self.evaluation.val_loss:.4f}"
            if self.evaluation.val_bits_per_byte is not None:
                rows["bits per byte"] = f"{self.evaluation.val_bits_per_byte:.3f}"
        table = Table.grid(padding=(0, 2))
        cells = [Text(f"{name}: {value}") for name, value in rows.items() if value]
        columns = 2
        for first in range(0, len(cells), columns):
            table.add_row(*cells[first : first + columns])
        bar = Table.grid(padding=(0, 1))
        bar.add_row(
            Text(f"step {self._done}/{self.total or '?'}"),
            ProgressBar(total=self.total or None, completed=self._done, width=40),
        )
        return Group(bar, table, Text(self.sample, style="dim"))


@contextmanager
def training_display(
    total: int, device: torch.device, flops_per_token: int | None
) -> Iterator[Display]:
    """A live table while the block runs if stderr is a terminal; plain lines otherwise."""
    if not notes.is_terminal:
        with progress("train", total, "steps") as lines:
            yield Display(total, device, lines=lines)
        return
    display = Display(total, device, flops_per_token)
    if flops_per_token is not None:
        display.peak = peak_flops(device)
    with Live(display, console=notes, transient=True):
        yield display
