"""A sweep of fine-tuning as a table and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure
from rich.table import Table

from llmkit.export.report.tables import megabytes, plain_table
from llmkit.finetuning.sweep import Sweep

COLUMNS = ("variant", "{}", "trained", "of all", "peak MB", "seconds")


@dataclass(frozen=True)
class Panel:
    """One number of every variant."""

    title: str
    values: Sequence[float]
    logarithmic: bool = False


def sweep_table(sweep: Sweep) -> Table:
    """A row for each variant; the best one is marked."""
    best = (max if sweep.higher_is_better else min)(row.quality for row in sweep.rows)
    rows = [
        (
            row.variant,
            f"{row.quality:.4f}{' *' if row.quality == best else ''}",
            f"{row.n_trained:,}",
            f"{row.n_trained / row.n_parameters:.1%}",
            megabytes(row.peak_rss_bytes),
            f"{row.elapsed_s:.1f}",
        )
        for row in sweep.rows
    ]
    columns = [column.format(sweep.quality_name) for column in COLUMNS]
    return plain_table("Variants, all from the same seed (* = best)", columns, rows)


def sweep_figure(sweep: Sweep) -> Figure:
    """Quality, trained parameters, memory and time, a bar for each variant."""
    names = [row.variant for row in sweep.rows]
    panels = [
        Panel(sweep.quality_name, [row.quality for row in sweep.rows]),
        Panel("trained parameters", [row.n_trained for row in sweep.rows], logarithmic=True),
        Panel("peak memory (MB)", [row.peak_rss_bytes / 1e6 for row in sweep.rows]),
        Panel("time (s)", [row.elapsed_s for row in sweep.rows]),
    ]
    figure = Figure(figsize=(10, 1.2 + 0.4 * len(names)), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), sharey=True), panels, strict=True):
        bars = axes.barh(names, panel.values, color="tab:blue", height=0.6)
        axes.bar_label(bars, [f"{value:,.4g}" for value in panel.values], fontsize=8, padding=2)
        if panel.logarithmic:
            axes.set_xscale("log")
        axes.margins(x=0.3)
        axes.set_title(panel.title, fontsize=9)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].invert_yaxis()  # the first variant on top
    return figure
