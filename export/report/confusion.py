"""A classifier's test as a table and a picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from rich.table import Table

from llmkit.export.report.tables import plain_table
from llmkit.finetuning.classify import ClassifyResult
from llmkit.finetuning.scores import LabelScores

MAX_NUMBERED = 20  # labels whose counts can still be read in the picture


def classify_table(result: ClassifyResult) -> Table:
    """Each label's precision and recall, and what its texts were taken for."""
    title = f"{result.accuracy:.2%} of {result.n_records[2]:,} test texts (row: the true label)"
    return label_table(title, result.labels, result.per_label, result.confusion)


def label_table(
    title: str,
    labels: Sequence[str],
    per_label: Sequence[LabelScores],
    confusion: Sequence[Sequence[int]],
) -> Table:
    """A row for each true label, with a column for each predicted one."""
    columns = ("label", "precision", "recall", "texts", *(f"as {name}" for name in labels))
    rows = [
        (
            scores.label,
            _percent(scores.precision),
            _percent(scores.recall),
            f"{scores.n:,}",
            *(f"{count:,}" for count in counts),
        )
        for scores, counts in zip(per_label, confusion, strict=True)
    ]
    return plain_table(title, columns, rows)


def confusion_figure(result: ClassifyResult) -> Figure:
    """The confusion matrix: darker where a larger share of the true label's texts went."""
    side = 2.2 + 0.6 * min(len(result.labels), MAX_NUMBERED)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    image = draw_confusion(axes, result.labels, result.confusion)
    figure.colorbar(image, label="share of the true label's texts")
    n_texts = sum(map(sum, result.confusion))
    axes.set_title(f"accuracy {result.accuracy:.2%}, {n_texts:,} texts", fontsize=11)
    return figure


def draw_confusion(
    axes: Axes, labels: Sequence[str], confusion: Sequence[Sequence[int]]
) -> AxesImage:
    """Draw counts (row = the true label) into axes."""
    counts = np.asarray(confusion)  # (n_labels, n_labels)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    places = range(len(counts))
    axes.set_xticks(places, labels, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(places, labels)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if len(counts) <= MAX_NUMBERED:
        for (row, column), count in np.ndenumerate(counts):
            color = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, f"{count:,}", ha="center", va="center", color=color)
    return image


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.2%}"
