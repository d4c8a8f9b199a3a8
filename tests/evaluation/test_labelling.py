"""Probabilities of labels, and what is made of them."""

from __future__ import annotations

import csv
import io

from llmkit.evaluation.labelling import (
    LabelledBy,
    disputed_first,
    label_counts,
    labelled_csv,
)

ROWS = [
    LabelledBy("same, sure", "x", {"m": {"x": 0.9, "y": 0.1}, "n": {"x": 0.8, "y": 0.2}}),
    LabelledBy("same, unsure", "y", {"m": {"x": 0.6, "y": 0.4}, "n": {"x": 0.6, "y": 0.4}}),
    LabelledBy('"disputed", sure', "x", {"m": {"x": 0.9, "y": 0.1}, "n": {"x": 0.1, "y": 0.9}}),
    LabelledBy("disputed, unsure", "y", {"m": {"x": 0.4, "y": 0.6}, "n": {"x": 0.6, "y": 0.4}}),
    LabelledBy("too long", "y", {"m": None, "n": {"x": 1.0, "y": 0.0}}),
]


def test_disagreements_come_first_then_the_unsure() -> None:
    assert [row.text for row in disputed_first(ROWS)] == [
        "disputed, unsure", '"disputed", sure', "same, unsure", "same, sure", "too long",
    ]  # fmt: skip


def test_confusion_counts_what_fits() -> None:
    m, n = label_counts(ROWS, "m"), label_counts(ROWS, "n")
    assert m is not None
    assert n is not None
    assert (m.labels, m.confusion, m.accuracy) == (("x", "y"), [[2, 0], [1, 1]], 0.75)
    assert n.confusion == [[1, 1], [3, 0]]
    assert label_counts([LabelledBy("a", None, {"m": {"x": 1.0}})], "m") is None


def test_the_table_can_be_read_again() -> None:
    rows = list(csv.DictReader(io.StringIO(labelled_csv(ROWS, ["m", "n"]))))
    assert [row["text"] for row in rows] == [row.text for row in ROWS]
    assert (rows[2]["label"], rows[2]["m"], rows[2]["n"]) == ("x", "x", "y")
    assert float(rows[2]["n: probability"]) == 0.9
    assert (rows[4]["m"], rows[4]["m: probability"]) == ("", "")
