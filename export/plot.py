"""The picture of size against quality."""

from __future__ import annotations

import io
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from llmkit.errors import ConfigError, unknown_name
from llmkit.export.measure import Comparison
from llmkit.files import written_beside

PLOT_SUFFIXES = (".png", ".svg")


def size_quality_figure(comparison: Comparison) -> Figure:
    """Mean KL (log axis, with its confidence interval) over file size, a point per file."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for row in sorted(comparison.rows, key=lambda row: row.bytes):
        megabytes = row.bytes / 1e6
        low, high = row.mean_kl_ci or (row.mean_kl, row.mean_kl)
        errors = [[row.mean_kl - max(low, row.mean_kl / 10)], [high - row.mean_kl]]
        axes.errorbar(megabytes, row.mean_kl, yerr=errors, fmt="o", markersize=8, capsize=4)
        axes.annotate(
            f"{row.quant}\n{row.bits_per_weight:.1f} bits, top-1 {row.top1:.1%}",
            (megabytes, row.mean_kl),
            xytext=(9, 4),
            textcoords="offset points",
            fontsize=9,
        )
    _label(axes, comparison)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG or SVG, by the file's suffix. Raises ConfigError for another one."""
    check_plot_path(path)
    drawn = io.BytesIO()  # drawing loads libraries; nothing may be half-written meanwhile
    figure.savefig(drawn, format=path.suffix[1:].lower(), dpi=160)
    with written_beside(path) as beside:
        beside.write_bytes(drawn.getvalue())


def check_plot_path(path: Path) -> None:
    """Raise ConfigError for a suffix that cannot be drawn, before any work is done."""
    if path.suffix.lower() not in PLOT_SUFFIXES:
        raise ConfigError(f"{path}: {unknown_name('picture format', path.suffix, PLOT_SUFFIXES)}")


def _label(axes: Axes, comparison: Comparison) -> None:
    axes.set_yscale("log")
    axes.set_xlim(left=0, right=1.5 * max(row.bytes for row in comparison.rows) / 1e6)
    axes.margins(y=0.25)
    axes.set_xlabel("file size (MB)")
    axes.set_ylabel("mean KL divergence (nats per token)")
    axes.set_title(f"What each quantization costs ({comparison.tokens:,} tokens)", fontsize=11)
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
