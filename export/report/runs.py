"""Training runs as a table, and their losses as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from rich.table import Table

from llmkit.export.report.plots import ShownFigure
from llmkit.files import StrPath
from llmkit.training.run_state import Metrics
from llmkit.training.runs import Run

COLUMNS = (
    "run", "kind", "status", "parameters", "steps", "optimizer", "learning rate", "batch",
    "train loss", "validation loss", "best (step)", "bits per byte", "accuracy", "minutes",
)  # fmt: skip


def runs_table(runs: Sequence[Run], below: StrPath) -> Table:
    """A row for each run; paths are relative to `below`."""
    rows = [_cells(run, Path(below)) for run in runs]
    table = Table()
    used = [n for n in range(len(COLUMNS)) if any(row[n] for row in rows)]
    for n in used:
        # The name is whole, to be copied; numbers are folded before a digit is lost.
        table.add_column(
            COLUMNS[n], justify="left" if n < 3 else "right", overflow="fold", no_wrap=n == 0
        )
    for row in rows:
        table.add_row(*(row[n] for n in used))
    return table


def _cells(run: Run, below: Path) -> list[str]:
    last, best = run.last, run.best
    training = run.settings
    cells = [
        str(run.folder.relative_to(below)),
        run.kind,
        run.status,
        f"{run.n_parameters:,}",
        f"{run.steps[0]}/{run.steps[1] or '?'}",
        training["optimizer"],
        f"{training['learning_rate']:.3g}",
        str(training["batch_size"]),
    ]
    if last is None or best is None:
        return [*cells, *[""] * (len(COLUMNS) - len(cells))]
    bits, accuracy = last.val_bits_per_byte, last.accuracy
    return [
        *cells,
        f"{last.train_loss:.4f}",
        f"{last.val_loss:.4f}",
        f"{best.val_loss:.4f} ({best.step})",
        "" if bits is None else f"{bits:.3f}",
        "" if accuracy is None else f"{accuracy:.1%}",
        f"{last.elapsed_s / 60:.1f}",
    ]


def loss_figure(runs: Mapping[str, Sequence[Metrics]]) -> Figure:
    """Validation loss over steps, a line for each run; of a single run the training loss too."""
    figure = ShownFigure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for name, metrics in runs.items():
        steps = [m.step for m in metrics]
        if len(runs) == 1:
            axes.plot(steps, [m.train_loss for m in metrics], marker=".", label="training")
            name = "validation"
        axes.plot(steps, [m.val_loss for m in metrics], marker=".", label=name)
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats)" if len(runs) == 1 else "validation loss (nats)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=9)
    return figure
