from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from finetuned import as_classifier
from gguf_surgery import keys_of, make_checkpoint, tensors_of, write_file

from llmkit.checkpoint.checkpoint import Checkpoint, load_checkpoint
from llmkit.errors import DataError, GGUFError
from llmkit.export.compare import Comparison, compare
from llmkit.export.convert import export
from llmkit.export.evaluation.eval_data import held_out_sequences
from llmkit.export.gguf.reader import dequantized_weights, read_gguf
from llmkit.export.llamacpp import benchmark
from llmkit.export.llamacpp.benchmark import measure_speed
from llmkit.export.llamacpp.runtime import LlamaCpp
from llmkit.export.quantization.config import QuantConfig
from llmkit.tokenizer_files import load_tokenizer

ROW_KEYS = [
    "file", "quant", "method", "bytes", "bits_per_weight", "mean_kl", "mean_kl_ci", "p999_kl",
    "top1", "perplexity", "perplexity_ratio", "prompt_tokens_per_s", "generate_tokens_per_s",
    "peak_rss_bytes", "median_kl", "max_kl", "bits_by_group", "against", "kl_ratio", "kl_ratio_ci",
]  # fmt: skip
QUANTS = ["f32", "f16", "q8_0", "q4_0"]


@pytest.fixture(scope="module")
def comparison(files: dict[str, Path], tiny_checkpoint: Path) -> Comparison:
    return compare(tiny_checkpoint, [files[quant] for quant in QUANTS], max_tokens=1024)


def test_json_has_the_promised_keys(comparison: Comparison) -> None:
    content = json.loads(json.dumps(comparison.to_dict(), allow_nan=False))
    assert list(content) == ["reference", "tokens", "rows"]
    assert content["tokens"] == 1024
    assert [row["quant"] for row in content["rows"]] == QUANTS
    for row in content["rows"]:
        assert list(row) == ROW_KEYS
        assert row["method"] == "rtn"
        low, high = row["mean_kl_ci"]
        assert low <= row["mean_kl"] <= high


def test_sizes_are_the_files(comparison: Comparison) -> None:
    for row in comparison.rows:
        tensors = gguf.GGUFReader(row.file).tensors
        n_bits = 8 * sum(int(tensor.n_bytes) for tensor in tensors)
        assert row.bytes == Path(row.file).stat().st_size
        assert row.bits_per_weight == n_bits / sum(int(t.n_elements) for t in tensors)


def test_fewer_bits_cost_more(comparison: Comparison) -> None:
    f32, f16, q8_0, q4_0 = (row.mean_kl for row in comparison.rows)
    assert f32 < 1e-7
    assert f32 < f16 < q8_0 < q4_0
    assert f16 < 1e-6
    assert q4_0 > 10 * q8_0
    assert comparison.rows[0].top1 > 0.999
    for row in comparison.rows:
        assert row.median_kl < row.mean_kl < row.p999_kl <= row.max_kl


@pytest.mark.parametrize("quant", ["f32", "q4_0"])
def test_numbers_are_those_of_pytorch_with_the_files_weights(
    quant: str, comparison: Comparison, files: dict[str, Path], tiny_checkpoint: Path
) -> None:
    checkpoint = load_checkpoint(tiny_checkpoint)
    model = checkpoint.load_model()
    sequences = held_out_sequences(checkpoint, None, 1024)
    windows = torch.stack([torch.from_numpy(sequence.ids) for sequence in sequences])
    inputs, targets = windows[:, :-1], windows[:, 1:, None]
    with torch.inference_mode():
        log_p = model(inputs).double().log_softmax(-1)
        model.load_state_dict(dequantized_weights(read_gguf(files[quant])))
        log_q = model(inputs).double().log_softmax(-1)
    row = comparison.rows[QUANTS.index(quant)]
    kl = float((log_p.exp() * (log_p - log_q)).sum(-1).mean())
    loss = float(-log_q.gather(2, targets).mean())
    reference_loss = float(-log_p.gather(2, targets).mean())
    assert row.mean_kl == pytest.approx(kl, rel=0.05, abs=1e-8)
    assert row.perplexity == pytest.approx(np.exp(loss), rel=1e-3)
    assert row.perplexity_ratio == pytest.approx(np.exp(loss - reference_loss), rel=1e-3)


def test_speed_and_memory_are_plausible(comparison: Comparison) -> None:
    for row in comparison.rows:
        assert min(row.prompt_tokens_per_s, row.generate_tokens_per_s) > 0
        if row.peak_rss_bytes is not None:
            assert 5e6 < row.peak_rss_bytes < 150e6  # PyTorch alone takes more


def test_every_file_reads_the_same_tokens(
    comparison: Comparison, files: dict[str, Path], tiny_checkpoint: Path
) -> None:
    alone = compare(tiny_checkpoint, [files["q4_0"]], max_tokens=1024)
    row, same = alone.rows[0], comparison.rows[3]
    assert (row.mean_kl, row.perplexity, row.top1) == (same.mean_kl, same.perplexity, same.top1)


def test_one_window_has_no_interval(files: dict[str, Path], tiny_checkpoint: Path) -> None:
    found = compare(tiny_checkpoint, [files["f32"]], max_tokens=64)
    assert found.tokens == 64
    assert found.rows[0].mean_kl_ci is None


def test_a_text_of_two_tokens_is_enough(
    files: dict[str, Path], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("a", encoding="utf-8")
    found = compare(tiny_checkpoint, [files["f32"]], data=text)
    assert found.tokens == 1


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Its labels are tokens that are in text, too."""
    folder = tmp_path_factory.mktemp("classifier")
    base = make_checkpoint(folder / "base", tie_embeddings=False)
    return as_classifier(base, folder / "made", ("some", " words", " to"))


def test_a_classifier_is_compared_where_a_label_follows(
    classifier: Checkpoint, tmp_path: Path
) -> None:
    path = (
        export(classifier.folder, tmp_path / "out", QuantConfig(["q4_0"]), prove=False)
        .files[0]
        .path
    )
    text = tmp_path / "text.txt"
    text.write_text("some words to merge, some more words to say " * 40 + "mill " * 60)
    found = compare(classifier.folder, [path], data=text)
    model, labels = classifier.load_model(), sorted(classifier.label_ids)
    windows = [sequence.ids for sequence in held_out_sequences(classifier, text, 10240)]
    ids = torch.from_numpy(np.stack(windows))
    follows = torch.isin(ids[:, 1:], torch.tensor(labels))
    places = torch.searchsorted(torch.tensor(labels), ids[:, 1:][follows])[:, None]
    with torch.inference_mode():
        log_p = model(ids[:, :-1])[follows][:, labels].double().log_softmax(-1)
        model.load_state_dict(dequantized_weights(read_gguf(path)))
        log_q = model(ids[:, :-1])[follows][:, labels].double().log_softmax(-1)
    (row,) = found.rows
    assert found.tokens == int(follows.sum()) < ids[:, 1:].numel()
    assert not follows.any(dim=1).all()  # windows without a label are left out
    kl = float((log_p.exp() * (log_p - log_q)).sum(-1).mean())
    assert row.mean_kl == pytest.approx(kl, rel=0.1)
    assert row.perplexity == pytest.approx(float((-log_q.gather(1, places)).mean().exp()), rel=0.01)


def test_text_without_a_label_says_nothing_of_a_classifier(
    classifier: Checkpoint, tmp_path: Path
) -> None:
    path = (
        export(classifier.folder, tmp_path / "out", QuantConfig(["f32"]), prove=False).files[0].path
    )
    text = tmp_path / "text.txt"
    text.write_text("mill " * 60)
    with pytest.raises(DataError, match=r"text\.txt: .*label.* --data "):
        compare(classifier.folder, [path], data=text)


def test_another_vocabulary_is_refused(
    files: dict[str, Path], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    other = make_checkpoint(tmp_path / "c")  # other tokens, and another context
    path = export(other.folder, tmp_path / "out", QuantConfig(["f32"]), prove=False).files[0].path
    with pytest.raises(GGUFError, match=r"\b275 and 512 tokens, context of 32 and 64\b"):
        compare(tiny_checkpoint, [path])


def test_as_many_but_other_tokens_are_refused(
    files: dict[str, Path], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    keys = keys_of(files["f32"])
    tokens, *types = keys["tokenizer.ggml.tokens"]
    keys["tokenizer.ggml.tokens"] = ([tokens[1], tokens[0], *tokens[2:]], *types)
    path = write_file(tmp_path / "m.gguf", keys, tensors_of(files["f32"]))
    with pytest.raises(GGUFError, match="different tokens"):
        compare(tiny_checkpoint, [path])


def test_another_context_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    other = make_checkpoint(
        tmp_path / "c", tokenizer=load_tokenizer(tiny_checkpoint), context_length=32
    )
    path = export(other.folder, tmp_path / "out", QuantConfig(["f32"]), prove=False).files[0].path
    with pytest.raises(GGUFError, match="context of 32"):
        compare(tiny_checkpoint, [path])


def test_a_model_that_is_refused_is_freed(
    files: dict[str, Path], tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    freed, free = [], LlamaCpp._free
    monkeypatch.setattr(LlamaCpp, "_free", lambda self: (freed.append(self), free(self)))
    keys = keys_of(files["f32"])
    tokens, *types = keys["tokenizer.ggml.tokens"]
    keys["tokenizer.ggml.tokens"] = ([tokens[1], tokens[0], *tokens[2:]], *types)
    other = write_file(tmp_path / "m.gguf", keys, tensors_of(files["f32"]))
    with pytest.raises(GGUFError, match="different tokens"):
        compare(tiny_checkpoint, [files["f32"], other])
    assert len(freed) == 2


def test_llama_cpps_files_are_removed_in_the_end(
    files: dict[str, Path], tiny_checkpoint: Path, temporary_files: Path
) -> None:
    found = compare(tiny_checkpoint, [files["q4_0"]], max_tokens=64, against="llama.cpp")
    assert found.rows[0].against == found.rows[1].file
    assert list(temporary_files.glob("llmkit-*")) == []


def test_what_failed_is_said_and_not_that_a_file_could_not_be_removed(
    files: dict[str, Path],
    tiny_checkpoint: Path,
    temporary_files: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_arguments: object, **_options: object) -> None:
        raise GGUFError("cannot measure")

    monkeypatch.setattr("llmkit.export.compare.measure_speed", fail)
    with pytest.raises(GGUFError, match="cannot measure"):
        compare(tiny_checkpoint, [files["q4_0"]], max_tokens=64, against="llama.cpp")


def test_a_file_that_cannot_run_has_no_speed(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF")
    with pytest.raises(GGUFError, match=r"cannot measure the speed of .*m\.gguf: .*llama\.cpp"):
        measure_speed(path, 4, 4)


def test_modules_in_the_users_folder_are_not_taken_for_packages(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "llama_cpp.py").write_text("raise SystemExit('not this one')", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert measure_speed(files["f32"], 4, 4).prompt_tokens_per_s > 0


def test_speed_is_tokens_by_time(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 12.0, 17.0, *[20.0, 30.0, 40.0] * (benchmark.ROUNDS - 1)])
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: next(clock))
    found = benchmark._run(files["f32"], 16, 10, gpu=False)
    assert (found.prompt_tokens_per_s, found.generate_tokens_per_s) == (8, 2)
