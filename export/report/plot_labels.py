"""Labels beside points of a picture, where nothing else is."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

FONT_SIZE = 8.5
# Where a label may be from its point, in degrees: first to the right, then left, above and below.
_ANGLES = (25, -25, 155, 205, 60, -60, 120, 240, 0, 180, 90, 270)
_DISTANCES = (0, 12, 26, 42, 60, 80, 105)  # 1/72 inch beyond the marker
_WITH_LINE = 12  # a label this far from its point has a line to it


@dataclass(frozen=True)
class Label:
    """A text that belongs to points (data coordinates); it is put beside the first if it fits."""

    text: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class _Place:
    """Where a text is, in pixels."""

    point: NDArray[np.float64]
    box: Bbox
    distance: float  # 1/72 inch


def place_labels(figure: Figure, axes: Axes, labels: Sequence[Label], half_width: float) -> None:
    """Write each label at the nearest place where it covers no marker, label or legend.

    `half_width`: of what is drawn at a point (1/72 inch). A label that fits nowhere is put beside
    its point. Limits and scale of the axes have to be final.
    """
    figure.draw_without_rendering()  # lays the axes out
    pixel = figure.dpi / 72
    taken = [
        Bbox.from_extents(
            x - half_width * pixel, y - 6 * pixel, x + half_width * pixel, y + 6 * pixel
        )
        for label in labels
        for x, y in axes.transData.transform(label.points)
    ]
    legend = axes.get_legend()
    if legend is not None:
        taken.append(legend.get_window_extent())
    for label in labels:
        places = list(_places(axes, label, half_width * pixel, pixel))
        free = (place for place in places if _is_free(place.box, axes.bbox, taken))
        place = next(free, places[0])
        taken.append(place.box)
        _write(axes, label.text, place, pixel)


def _places(axes: Axes, label: Label, half_width: float, pixel: float) -> Iterator[_Place]:
    """Places around the label's points, the nearest first."""
    text = axes.text(0, 0, label.text, fontsize=FONT_SIZE)
    extent = text.get_window_extent()
    text.remove()
    for distance in _DISTANCES:
        for point in axes.transData.transform(label.points):
            for angle in _ANGLES:
                right, up = math.cos(math.radians(angle)), math.sin(math.radians(angle))
                x = point[0] + right * (half_width + distance * pixel)
                y = point[1] + up * (4 + distance) * pixel
                # The corner or side that looks at the point.
                x -= extent.width * (1 - _sign(right)) / 2
                y -= extent.height * (1 - _sign(up)) / 2
                yield _Place(point, Bbox.from_bounds(x, y, extent.width, extent.height), distance)


def _sign(value: float) -> float:
    return 0 if abs(value) < 0.3 else math.copysign(1, value)


def _is_free(box: Bbox, inside: Bbox, taken: Sequence[Bbox]) -> bool:
    within = inside.x0 <= box.x0 and box.x1 <= inside.x1
    within = within and inside.y0 <= box.y0 and box.y1 <= inside.y1
    return within and not any(box.overlaps(other) for other in taken)


def _write(axes: Axes, text: str, place: _Place, pixel: float) -> None:
    point = axes.transData.inverted().transform(place.point)
    line = {"arrowstyle": "-", "color": "0.6", "linewidth": 0.7, "shrinkA": 0, "shrinkB": 5}
    annotation = axes.annotate(
        text,
        (float(point[0]), float(point[1])),
        xytext=tuple((place.box.min - place.point) / pixel),
        textcoords="offset points",
        verticalalignment="bottom",
        fontsize=FONT_SIZE,
        arrowprops=line if place.distance >= _WITH_LINE else None,
    )
    annotation.set_in_layout(False)  # the axes stay where they were laid out
