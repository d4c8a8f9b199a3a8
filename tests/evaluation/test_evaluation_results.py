"""What the page compares models by: saved results, the KL along a text, curves of runs."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from llmkit.api import compare, divergence_along, evaluate, find_results, find_runs
from llmkit.checkpoint.checkpoint import load_checkpoint
from llmkit.errors import ConfigError, GGUFError
from llmkit.evaluation.results import Results
from llmkit.export.convert import Export
from llmkit.export.llamacpp.runners import open_runner
from llmkit.export.verify.page import kept_proof_page

TEXT = "Once there was a cook named Anton who lived at the inn by the market. " * 5


@pytest.fixture(scope="module")
def files(tiny_export: Export) -> dict[str, Path]:
    return {file.quant: file.path for file in tiny_export.files}


def test_results_are_found_again_as_they_were(tiny_export: Export, tmp_path: Path) -> None:
    small = tmp_path / "a" / "small.gguf"
    small.parent.mkdir()
    q4_0, q8_0 = (
        next(file.path for file in tiny_export.files if file.quant == quant)
        for quant in ("q4_0", "q8_0")
    )
    shutil.copy(q4_0, small)
    compared = [compare(small, files, max_tokens=64) for files in ([q8_0], [q8_0, q4_0])]
    scored = evaluate(small, "village-pairs", limit=5)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "results.json").write_text("{")
    found = find_results(tmp_path)
    assert list(found.comparisons.values()) == compared[::-1]  # the newest first
    assert list(found.evaluations.values()) == [scored]
    (title, *_) = found.comparisons
    for part in ("a:", q8_0.name, q4_0.name, str(compared[1].tokens)):
        assert part in title
    shutil.copy(q8_0, small)  # another model of the same name
    assert find_results(tmp_path) == Results()


def test_kl_along_a_text_is_that_of_both_models_logits(
    tiny_checkpoint: Path, files: dict[str, Path]
) -> None:
    f32, q4_0 = divergence_along(tiny_checkpoint, [files["f32"], files["q4_0"]], TEXT)
    assert "".join(token.text for token in q4_0) == TEXT
    checkpoint = load_checkpoint(tiny_checkpoint)
    ids = checkpoint.tokenizer.encode(TEXT)
    n_context = checkpoint.config.context_length
    assert len(ids) > n_context  # the rest is read in a window of its own
    assert max(token.kl for token in f32) < 1e-5 < 1e-4 < np.mean([token.kl for token in q4_0])

    start = [checkpoint.tokenizer.end_of_text_id]
    logits = checkpoint.load_model()(torch.tensor([start + ids[: n_context - 1]]))[0].detach()
    best = logits.softmax(-1).max(-1)
    assert [token.original.id for token in q4_0[:n_context]] == best.indices.tolist()
    assert q4_0[3].original.probability == pytest.approx(float(best.values[3]), rel=1e-4)
    with open_runner(files["q4_0"]) as runner:
        (others,) = runner.branches(start, [ids[:n_context]])
    p, q = logits.double().log_softmax(-1), others.double().log_softmax(-1)
    wanted = (p.exp() * (p - q)).sum(-1)
    found = [token.kl for token in q4_0[:n_context]]
    assert found == pytest.approx(wanted.tolist(), rel=1e-3, abs=1e-6)


def test_models_of_other_words_are_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    from llmkit.training import train

    text = tmp_path / "text.txt"
    text.write_text("other words in another order, " * 200)
    sizes = {"n_layer": 1, "n_head": 1, "n_embd": 32, "context_length": 16}
    train(text, tmp_path / "c", vocab_size=300, model=sizes, training={"steps": 1, "batch_size": 1})
    with pytest.raises(ConfigError, match="vocabular"):
        divergence_along(tiny_checkpoint, tmp_path / "c", TEXT)


def test_curves_of_every_run_are_read_while_one_is_being_written(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    for name in ("a", "b/c"):
        shutil.copytree(tiny_checkpoint, tmp_path / name)
    with (tmp_path / "b/c" / "training" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "tok')
    first, second = find_runs(tmp_path)
    assert [first.folder, second.folder] == [tmp_path / "a", tmp_path / "b/c"]
    assert [metrics.step for metrics in second.metrics] == [10, 20, 30]
    assert first.metrics == second.metrics


def test_a_kept_proof_is_a_page(tmp_path: Path) -> None:
    check = {"name": "logits", "passed": False, "value": 3.5, "limit": 2.0, "detail": "<b>far</b>"}
    proof = {
        "passed": False, "checkpoint": "c", "gguf": "x/tales.gguf", "sha256": "1234",
        "quant": "q4_0", "checks": [check], "distances": {}, "checkpoint_sha256": "5678",
        "texts": "held out", "sha256_of": {}, "versions": {"torch": "2"},
    }  # fmt: skip
    html = kept_proof_page(proof)
    for part in ("tales.gguf", "&lt;b&gt;far", "3.5", "1234", "5678"):
        assert part in html
    del proof["sha256"]
    with pytest.raises(GGUFError, match=r"x/tales\.gguf"):
        kept_proof_page(proof)
