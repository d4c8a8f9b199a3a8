"""Probabilities of labels from a checkpoint and from its file, against PyTorch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llmkit.checkpoint.checkpoint import load_checkpoint
from llmkit.errors import ConfigError
from llmkit.evaluation.labelling import label_probabilities
from llmkit.export.llamacpp.runners import open_runner

TEXT = "Once there was a baker"


def test_probabilities_are_those_of_the_head(page_folder: Path) -> None:
    checkpoint = load_checkpoint(page_folder / "labels-1")
    ids = torch.tensor([checkpoint.tokenizer.encode(TEXT)])
    logits = checkpoint.load_model()(ids)[0, -1, checkpoint.label_ids].double()
    expected = dict(zip(checkpoint.labels, logits.softmax(-1).tolist(), strict=True))
    files = ("labels-1", "labels-export/labels-1-f32.gguf")
    for name in files:
        with open_runner(page_folder / name) as runner:
            assert label_probabilities(runner, TEXT) == pytest.approx(expected, abs=1e-3)
            assert label_probabilities(runner, "a baker " * 100) is None


def test_a_model_that_is_no_classifier_is_refused(page_folder: Path) -> None:
    with open_runner(page_folder / "base") as runner, pytest.raises(ConfigError):
        label_probabilities(runner, TEXT)
