"""Texts through classifiers: the probability of each label, and where classifiers disagree."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from llmkit.errors import ConfigError
from llmkit.export.llamacpp.runners import Runner
from llmkit.finetuning.scores import accuracy, confusion_matrix
from llmkit.modelfiles.prompt_format import Message


@dataclass(frozen=True)
class LabelledBy:
    """A text, the label that its file has for it, and what each classifier says."""

    text: str
    label: str | None
    probabilities: Mapping[str, Mapping[str, float] | None]  # by model, then by label

    @property
    def predicted(self) -> dict[str, str]:
        """The most probable label by model; without models whose context the text does not fit."""
        return {
            model: max(found, key=lambda label: found[label])
            for model, found in self.probabilities.items()
            if found
        }

    @property
    def is_disputed(self) -> bool:
        """Whether two classifiers disagree."""
        return len(set(self.predicted.values())) > 1

    @property
    def certainty(self) -> float:
        """Probability of the label that the least certain classifier gives."""
        return min((max(f.values()) for f in self.probabilities.values() if f), default=0)


@dataclass(frozen=True)
class LabelCounts:
    """What one classifier made of texts whose labels are known."""

    labels: tuple[str, ...]
    confusion: list[list[int]]  # row: the true label, column: the predicted one

    @property
    def accuracy(self) -> float:
        """Share of right labels."""
        return accuracy(self.confusion)


def label_probabilities(runner: Runner, text: str) -> dict[str, float] | None:
    """The probability of each of a classifier's labels; None where the text does not fit.

    Only labels are weighed: together they have probability 1. Raises ConfigError where the model
    is no classifier.
    """
    ids = runner.label_ids
    if not ids:
        raise ConfigError("the model is not a classifier; see `llmkit finetune classify`")
    prompt = runner.prompt([Message("user", text)])
    if len(prompt) > runner.context_length:
        return None
    (logits,) = runner.branches(prompt, [[next(iter(ids.values()))]])  # (1, V)
    found = logits[0, list(ids.values())].double().softmax(-1)
    return dict(zip(ids, found.tolist(), strict=True))


def disputed_first(rows: Iterable[LabelledBy]) -> list[LabelledBy]:
    """Texts on which classifiers disagree, then the others; the least certain ones first."""
    return sorted(rows, key=lambda row: (not row.is_disputed, row.certainty))


def label_counts(rows: Sequence[LabelledBy], model: str) -> LabelCounts | None:
    """How a classifier's labels agree with the known ones; None where none is known."""
    pairs = [
        (row.label, row.predicted[model]) for row in rows if row.label and model in row.predicted
    ]
    if not pairs:
        return None
    labels = tuple(sorted({label for pair in pairs for label in pair}))
    truth, predicted = ([labels.index(pair[side]) for pair in pairs] for side in (0, 1))
    return LabelCounts(labels, confusion_matrix(truth, predicted, len(labels)))


def labelled_csv(rows: Sequence[LabelledBy], models: Sequence[str]) -> str:
    """A table with each text, its label, and each model's label and its probability."""
    has_labels = any(row.label for row in rows)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    columns = (column for model in models for column in (model, f"{model}: probability"))
    writer.writerow(["text", *(["label"] if has_labels else []), *columns])
    for row in rows:
        cells = [row.text, *([row.label or ""] if has_labels else [])]
        for model in models:
            label = row.predicted.get(model, "")
            found = row.probabilities.get(model) or {}
            cells += [label, f"{found[label]:.6f}" if label else ""]
        writer.writerow(cells)
    return out.getvalue()
