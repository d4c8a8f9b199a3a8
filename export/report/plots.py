"""The picture of size against quality."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation

from llmkit.errors import ConfigError, unknown_name
from llmkit.export.compare import Comparison, ComparisonRow
from llmkit.export.quantization.llama_quantize import PLAIN, WITH_IMATRIX
from llmkit.export.report.plot_labels import Label, place_labels
from llmkit.files import written_beside

PLOT_SUFFIXES = (".png", ".svg")
THEIRS = "llama.cpp (better of with and without imatrix)"
_MARKERS = "osD^vP*X"
_GAP = 7  # points between the markers of files of the same size


class ShownFigure(Figure):
    """A figure that a notebook shows; one that was made without pyplot is only named there."""

    def _repr_png_(self) -> bytes:
        drawn = io.BytesIO()
        self.savefig(drawn, format="png")
        return drawn.getvalue()


def size_quality_figure(comparison: Comparison) -> Figure:
    """Mean KL (log axis, with its confidence interval) over file size, a point per file.

    Files of the same types, ours by each method and llama.cpp's, stand side by side and have one
    label. A file whose KL is 0 has no place on the axis.
    """
    figure = ShownFigure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    series = list(dict.fromkeys(_series(row) for row in _sorted(comparison.rows)))
    _label_axes(axes, comparison)
    for number, name in enumerate(series):
        rows = [row for row in _sorted(comparison.rows) if _series(row) == name]
        _draw(figure, axes, rows, name, number, (number - (len(series) - 1) / 2) * _GAP)
    if len(series) > 1:
        axes.legend(loc="upper right", fontsize=9, framealpha=1)
    groups: dict[object, list[ComparisonRow]] = {}
    for row in _sorted(comparison.rows):
        if 0 < row.mean_kl < math.inf:
            groups.setdefault((row.quant, row.bits_per_weight), []).append(row)
    labels = [_label(rows) for rows in groups.values()]
    place_labels(figure, axes, labels, half_width=_GAP * (len(series) + 1) / 2)
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


def _sorted(rows: Sequence[ComparisonRow]) -> list[ComparisonRow]:
    return sorted(rows, key=lambda row: (_series(row) == THEIRS, row.bytes))


def _series(row: ComparisonRow) -> str:
    return THEIRS if row.method in (PLAIN, WITH_IMATRIX) else f"llmkit {row.method}"


def _draw(
    figure: Figure, axes: Axes, rows: Sequence[ComparisonRow], name: str, number: int, shift: float
) -> None:
    """One series, `shift` points to the right of where its sizes are."""
    errors: tuple[list[float], list[float]] = ([], [])
    for row in rows:
        low, high = row.mean_kl_ci or (row.mean_kl, row.mean_kl)
        errors[0].append(row.mean_kl - max(low, row.mean_kl / 10))  # there is no 0 on a log axis
        errors[1].append(high - row.mean_kl)
    aside = ScaledTranslation(shift / 72, 0, figure.dpi_scale_trans)
    axes.errorbar(
        [row.bytes / 1e6 for row in rows],
        [row.mean_kl for row in rows],
        yerr=errors,
        fmt=_MARKERS[number % len(_MARKERS)],
        color="tab:orange" if name == THEIRS else f"C{number if number < 1 else number + 1}",
        markerfacecolor="white" if name == THEIRS else None,
        markersize=7,
        capsize=3,
        label=name,
        transform=axes.transData + aside,
    )


def _label(rows: Sequence[ComparisonRow]) -> Label:
    """Of files of the same types."""
    best = min(rows, key=lambda row: row.mean_kl)
    ratios = [row.kl_ratio for row in rows if row.kl_ratio is not None]
    second = f"KL x{min(ratios):.2f}" if ratios else f"top-1 {best.top1:.1%}"
    text = f"{best.quant}\n{best.bits_per_weight:.1f} bits, {second}"
    return Label(text, [(row.bytes / 1e6, row.mean_kl) for row in rows])


def _label_axes(axes: Axes, comparison: Comparison) -> None:
    axes.set_yscale("log")
    axes.set_xlim(left=0, right=1.3 * max(row.bytes for row in comparison.rows) / 1e6)
    drawn = [row.mean_kl for row in comparison.rows if 0 < row.mean_kl < math.inf] or [1.0]
    axes.set_ylim(min(drawn) / 3, max(drawn) * 8)  # the legend is above the points
    axes.set_xlabel("file size (MB)")
    axes.set_ylabel("mean KL divergence (nats per token)")
    axes.set_title(f"Quality and size by quantization ({comparison.tokens:,} tokens)", fontsize=11)
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
