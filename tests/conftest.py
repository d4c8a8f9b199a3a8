"""Fixtures that several folders share: small models, trained or exported once for all tests."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path

# Before any numerical library starts its threads: many tests of tiny models are faster on one.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from llmkit.data.tales import tales
from llmkit.export.convert import Export, export
from llmkit.export.quantization.config import QuantConfig
from llmkit.training import train

# Whole modules that train or verify models, start servers or import transformers: `make test-fast`
# leaves them out. The others together take about a minute.
SLOW_MODULES = frozenset(
    (
        *("test_adapter", "test_chatting", "test_chosen", "test_damaged_adapter"),
        *("test_damaged_modelfile", "test_damaged_tensors", "test_deploy", "test_deploy_source"),
        *("test_finetune_classify", "test_finetune_distill", "test_finetune_examples"),
        *("test_finetune_resume", "test_foreign", "test_grid", "test_layerwise", "test_measure"),
        *("test_other_architectures", "test_parity", "test_parity_ollama"),
        *("test_parity_tokenizer", "test_plot_report", "test_requantize", "test_to_hf"),
        *("test_trained_blocks", "test_training_resume", "test_finetune_instruct"),
        *("test_parity_logits", "test_bad_input", "test_finetune_bad_input", "test_parity_memory"),
        *("test_training", "test_presets", "test_evaluation_scores", "test_convert", "test_doctor"),
        *("test_parity_layers", "test_gptq", "test_generation", "test_evaluation_harness"),
        *("test_report", "test_evaluation_results"),
        *("test_page_tabs", "test_page_browser", "test_page_compare"),
        *("test_training_minutes", "test_training_display", "test_training_processes"),
        *("test_training_kept", "test_devices"),
    )
)

TINY_MODEL = {"n_layer": 2, "n_head": 2, "n_embd": 64, "context_length": 64}
TINY_TRAINING = {
    "steps": 30,
    "batch_size": 8,
    "eval_interval": 10,
    "eval_tokens": 1024,
    "warmup_steps": 3,
}


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text file of 300 tales."""
    path = tmp_path_factory.mktemp("corpus") / "tales.txt"
    path.write_text("<|endoftext|>".join(islice(tales(5), 300)), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny_checkpoint(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained checkpoint of some 100 thousand parameters. Tests must not write into it."""
    out = tmp_path_factory.mktemp("tiny") / "tiny"
    train(corpus, out, vocab_size=512, model=TINY_MODEL, training=TINY_TRAINING)
    return out


@pytest.fixture(scope="session")
def tiny_export(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Export:
    """The tiny checkpoint in all types. Tests must not write into it."""
    out = tmp_path_factory.mktemp("export")
    return export(
        tiny_checkpoint, out, QuantConfig(["f32", "f16", "bf16", "q8_0", "q4_0"]), prove=False
    )


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real text that lies beside some checkouts; its tests are skipped where it does not."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no folder shared/data with real text beside this checkout")
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.stem in SLOW_MODULES:
            item.add_marker(pytest.mark.slow)
