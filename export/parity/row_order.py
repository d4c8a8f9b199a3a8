"""Rows that are the right ones in the wrong places: which, in words."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

_SHOWN_RUNS = 3
_NOWHERE = -1


@dataclass(frozen=True)
class _Run:
    """`length` rows from `start` on that the wanted tensor has from `source` on."""

    start: int
    source: int
    length: int


def row_order(found: NDArray[np.uint8], wanted: NDArray[np.uint8], unit: str, size: int = 1) -> str:
    """How the rows (n_rows, n_bytes) of `found` are those of `wanted` in another order.

    Empty where they are not. `unit` names what a row is; each stands for `size` of them.
    """
    differing = np.flatnonzero((found != wanted).any(axis=1))
    sources = _sources(found, wanted)
    moved = sources[differing]
    shift = _shift(moved - differing, moved != _NOWHERE)
    if shift:
        first = int(differing[np.argmax(moved - differing == shift)])
        return (
            f"{unit}s are shifted by {abs(shift) * size}: {unit} {first * size} holds "
            f"{unit} {(first + shift) * size}, and so on"
        )
    if not len(moved) or (moved == _NOWHERE).any():
        return ""
    if len(set(moved.tolist())) < len(moved) or not set(moved.tolist()) <= set(differing.tolist()):
        return (
            f"{unit}s repeat others in {len(differing)} places: {unit} {differing[0] * size} "
            f"holds {unit} {moved[0] * size}"
        )
    return _permutation(_runs(sources), unit, size, len(wanted))


def _sources(found: NDArray[np.uint8], wanted: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Where each found row stands in `wanted`; of equal rows the one that goes on a run."""
    places: dict[bytes, list[int]] = {}
    for place, row in enumerate(wanted):
        places.setdefault(row.tobytes(), []).append(place)
    sources = np.full(len(found), _NOWHERE)
    used: Counter[bytes] = Counter()
    for place, row in enumerate(found):
        key = row.tobytes()
        candidates = places.get(key, [])
        following = int(sources[place - 1]) + 1 if place else _NOWHERE
        if place in candidates:
            sources[place] = place
        elif following in candidates:
            sources[place] = following
        elif candidates:
            sources[place] = candidates[min(used[key], len(candidates) - 1)]
        used[key] += 1
    return sources


def _shift(distances: NDArray[np.int64], known: NDArray[np.bool_]) -> int:
    """The distance that all rows moved by but those at an edge; 0 for none and for several."""
    if not known.any():
        return 0
    distance, n_moved = Counter(distances[known].tolist()).most_common(1)[0]
    n_others = len(distances) - n_moved
    # Rows at the edge come from nowhere or from the other end: as many as the distance. Where
    # they are more than a few among the rest, parts changed places.
    return distance if n_others <= abs(distance) and n_moved > 1 and n_moved >= 3 * n_others else 0


def _runs(sources: NDArray[np.int64]) -> list[_Run]:
    starts = [0, *(np.flatnonzero(np.diff(sources) != 1) + 1).tolist(), len(sources)]
    return [_Run(start, int(sources[start]), end - start) for start, end in pairwise(starts)]


def _permutation(runs: list[_Run], unit: str, size: int, n_rows: int) -> str:
    moved = [run for run in runs if run.start != run.source]
    if len(moved) == 2 and moved[0].length == moved[1].length:
        first, second = (_range(run.start, run.length, size) for run in moved)
        return f"{unit}s {first} and {second} are exchanged{_thirds(moved, unit, n_rows)}"
    parts = [
        f"{_range(run.start, run.length, size)} hold {_range(run.source, run.length, size)}"
        for run in moved[:_SHOWN_RUNS]
    ]
    more = ", ..." if len(moved) > _SHOWN_RUNS else ""
    return f"{unit}s are in another order: {', '.join(parts)}{more}"


def _thirds(moved: list[_Run], unit: str, n_rows: int) -> str:
    """Which of q, k and v two exchanged parts are, if they are thirds."""
    third = n_rows // 3
    if unit == "column" or n_rows % 3 or third < 2 or moved[0].length != third:
        return ""
    first, second = ("qkv"[run.start // third] for run in moved)
    return f" ({first} and {second}, if it is attention's)"


def _range(start: int, length: int, size: int) -> str:
    first, last = start * size, (start + length) * size - 1
    return str(first) if first == last else f"{first}..{last}"
