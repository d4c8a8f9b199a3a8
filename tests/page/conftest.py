"""A folder of models as the page finds them, made without more training than the session's."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llmkit.architectures.registry import new_model
from llmkit.checkpoint.checkpoint import Checkpoint, load_checkpoint
from llmkit.checkpoint.config import CheckpointConfig, save_config
from llmkit.checkpoint.tensors import save_tensors
from llmkit.export.check import Check, Proof
from llmkit.export.convert import export
from llmkit.export.quantization.config import QuantConfig
from llmkit.export.results import RESULTS_FILE
from llmkit.export.verify.proof_store import keep
from llmkit.finetuning.label_head import expanded_head
from llmkit.modelfiles.prompt_format import USER_ASSISTANT
from llmkit.page.finding import file_hash

LABELS = ("he", "and")


@pytest.fixture(autouse=True)
def main_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put __main__ back, which AppTest replaces: processes started later would run its script."""
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])


def _classifier(base: Checkpoint, folder: Path, seed: int) -> Checkpoint:
    """A copy of a checkpoint with a head of its own, whose rows for the labels are random."""
    shutil.copytree(base.folder, folder, ignore=shutil.ignore_patterns("training", RESULTS_FILE))
    ids = [base.tokenizer.word_id(label) for label in LABELS]
    assert None not in ids
    generator = torch.Generator().manual_seed(seed)
    head = torch.randn(len(LABELS), base.config.n_embd, generator=generator)
    weights = dict(base.load_model().state_dict())
    weights["lm_head.weight"] = expanded_head(head, [i for i in ids if i], base.config.vocab_size)
    config = replace(base.config, tie_embeddings=False)
    save_tensors(folder / "model.safetensors", weights, step=0)
    save_config(folder, CheckpointConfig(config, base.prompt_format, LABELS))
    return load_checkpoint(folder)


def _long(base: Checkpoint, folder: Path) -> None:
    """An untrained checkpoint that can go on for half a minute."""
    config = replace(base.config, context_length=4096, n_layer=6, n_embd=512, n_ff=2048)
    folder.mkdir()
    save_config(folder, CheckpointConfig(config, base.prompt_format))
    save_tensors(folder / "model.safetensors", new_model(config).state_dict(), step=0)
    base.tokenizer.save(folder / "tokenizer.json")


@pytest.fixture(scope="session")
def page_folder(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Base models, one that answers and its files, one with a proof, and classifiers."""
    folder = tmp_path_factory.mktemp("page") / "models"
    base = load_checkpoint(tiny_checkpoint)
    for name in ("base", "answers"):  # without what other tests measured of the checkpoint
        unmeasured = shutil.ignore_patterns(RESULTS_FILE)
        shutil.copytree(tiny_checkpoint, folder / name, ignore=unmeasured)
    _long(base, folder / "long")
    save_config(folder / "answers", CheckpointConfig(base.config, USER_ASSISTANT))
    made = export(folder / "answers", folder / "export", QuantConfig("f32,q4_0"), prove=False)
    small = next(file.path for file in made.files if file.quant == "q4_0")
    checks = [Check("tensors", True, "28 tensors are equal")]
    answers = str(folder / "answers")
    keep(Proof(True, answers, str(small), file_hash(small), "q4_0", checks, {}, "", "", {}, {}))
    for seed in (1, 2):
        _classifier(base, folder / f"labels-{seed}", seed)
    export(folder / "labels-1", folder / "labels-export", QuantConfig("f32"), prove=False)
    return folder
