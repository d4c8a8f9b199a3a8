"""Files that keep to a size: kept to, predicted, and better than one type for all."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Literal

import pytest
import torch
from finetuned import as_classifier, with_adapter
from gguf_surgery import make_checkpoint

from llmkit.checkpoint.checkpoint import Checkpoint, load_checkpoint
from llmkit.cli.main import main
from llmkit.errors import ConfigError, GGUFError
from llmkit.export.compare import compare
from llmkit.export.convert import Export, export
from llmkit.export.gguf.memory_need import memory_needed
from llmkit.export.gguf.reader import read_gguf
from llmkit.export.gguf.writer import write_gguf
from llmkit.export.llamacpp.runtime import LlamaCpp
from llmkit.export.quantization.budget import Budget, _floor, budget_of, parse_bytes
from llmkit.export.quantization.config import QuantConfig
from llmkit.export.quantization.prequantized import Method
from llmkit.quantization.tensor_types import quantization
from llmkit.tokenizer_training import train_bpe


@pytest.fixture(scope="module")
def planned(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Export:
    out = tmp_path_factory.mktemp("planned")
    return export(tiny_checkpoint, out, QuantConfig(method="gptq", budget=Budget(7.0, "weights")))


@pytest.mark.slow
def test_the_file_keeps_to_its_bits_and_is_proved(planned: Export) -> None:
    (file,) = planned.files
    assert 6.8 < file.bits_per_weight <= 7.0
    assert file.quant == "custom"
    assert planned.passed
    assert planned.plan is not None
    found = read_gguf(file.path)
    types = {name: option.type for name, option in planned.plan.matrices.items()}
    stored = {name: qtype.name for name, qtype in found.quantization().chosen.items()}
    assert stored.items() >= types.items()
    assert len(set(types.values())) > 1


@pytest.mark.slow
def test_what_it_costs_is_measured_too(planned: Export, tiny_checkpoint: Path) -> None:
    (row,) = compare(tiny_checkpoint, [planned.files[0].path]).rows
    assert planned.measured_kl == row.mean_kl


@pytest.mark.slow
@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_its_kl_is_predicted_and_below_that_of_one_type(method: Method, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "c", n_layer=2).folder
    text, other = tmp_path / "text.txt", tmp_path / "other.txt"
    text.write_text(" ".join(f"{i * i} words to merge, some more {i}" for i in range(600)))
    other.write_text(" ".join(f"some {i * i * i} words merge {i % 7} more" for i in range(300)))
    done = export(
        folder,
        tmp_path / "planned",
        QuantConfig(method=method, calibration=text, budget=Budget(6.5, "weights")),
        prove=False,
    )
    uniform = export(
        folder,
        tmp_path / "uniform",
        QuantConfig(["q5_1"], method=method, calibration=text if method == "gptq" else None),
        prove=False,
    )
    paths = [done.files[0].path, uniform.files[0].path]
    ours, theirs = compare(folder, paths, data=other, max_tokens=4096).rows
    assert ours.bits_per_weight < theirs.bits_per_weight
    assert done.plan is not None
    assert ours.mean_kl == pytest.approx(done.plan.predicted_kl, rel=0.2)
    assert ours.mean_kl < theirs.mean_kl


@pytest.mark.parametrize("labels", [(" words", " merge"), ("ham", "spam")], ids=["known", "added"])
def test_a_classifiers_costs_are_all_of_the_whole_vocabulary(
    labels: tuple[str, str], tmp_path: Path
) -> None:
    tokenizer = train_bpe(["some words to merge, some more words"], 280)
    added = [label for label in labels if tokenizer.word_id(label) is None]
    base = make_checkpoint(
        tmp_path / "base",
        tokenizer=tokenizer.with_tokens(words=added) if added else tokenizer,
        tie_embeddings=False,
    )
    classifier = as_classifier(base, tmp_path / "c", labels)
    text = " ".join(f"some words to merge {i}" for i in range(40))
    ids = classifier.tokenizer.encode(text)
    file = tmp_path / "q8_0.gguf"
    write_gguf(classifier, file, quantization("q8_0"), "floor")
    with LlamaCpp(file) as llama:
        logits = torch.from_numpy(llama.evaluate(ids[:32])).double()
    with torch.inference_mode():
        log_p = classifier.load_model()(torch.tensor([ids[:32]]))[0].double().log_softmax(-1)
    kl = (log_p.exp() * (log_p - logits.log_softmax(-1))).sum(-1).mean()
    assert _floor(classifier, torch.tensor([ids[:33]])) == pytest.approx(float(kl), rel=1e-6)


def test_what_failed_is_said_and_not_that_its_file_could_not_be_removed(
    random_checkpoint: Checkpoint, temporary_files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_source: object, _files: object, *_arguments: object, **_options: object) -> None:
        raise GGUFError("cannot measure")

    monkeypatch.setattr("llmkit.export.quantization.budget.divergences", fail)
    with pytest.raises(GGUFError, match="cannot measure"):
        _floor(random_checkpoint, torch.arange(20)[None])


@pytest.mark.slow
def test_a_files_bytes_are_kept_to(tiny_checkpoint: Path, tmp_path: Path) -> None:
    limit = 130_000
    done = export(tiny_checkpoint, tmp_path, QuantConfig(budget=Budget(limit, "file")), prove=False)
    assert 0.96 * limit < done.files[0].path.stat().st_size <= limit


def test_memory_is_kept_to(tmp_path: Path) -> None:
    made = make_checkpoint(tmp_path / "c", n_embd=128, n_layer=2, context_length=300)
    text = tmp_path / "text.txt"
    text.write_text("some words to merge, some more words " * 400, encoding="utf-8")
    q8_0 = export(made.folder, tmp_path / "q8_0", QuantConfig(["q8_0"]), prove=False).files[0].path
    limit = memory_needed(read_gguf(q8_0), 200).total
    done = export(
        made.folder,
        tmp_path / "out",
        QuantConfig(calibration=text, budget=Budget(limit, "memory", 200)),
        prove=False,
    )
    assert 0.95 * limit < memory_needed(read_gguf(done.files[0].path), 200).total <= limit


@pytest.mark.parametrize("merge", [False, True], ids=["apart", "merged"])
def test_an_adapter_apart_is_counted_in_memory(merge: bool, tmp_path: Path) -> None:
    base = make_checkpoint(tmp_path / "base", n_embd=128, context_length=300)
    tuned = with_adapter(base, tmp_path / "c", rank=8)
    text = tmp_path / "text.txt"
    text.write_text("some words to merge, some more words " * 100, encoding="utf-8")
    q8_0 = export(base.folder, tmp_path / "q8_0", QuantConfig(["q8_0"]), prove=False).files[0].path
    limit = memory_needed(read_gguf(q8_0), 200).total
    done = export(
        tuned.folder,
        tmp_path / "out",
        QuantConfig(calibration=text, budget=Budget(limit, "memory", 200)),
        merge=merge,
        prove=False,
    )
    needed = memory_needed(read_gguf(done.files[0].path), 200).total
    assert 0.95 * limit < needed <= limit


def test_a_width_that_no_block_fits_stays_f16(tmp_path: Path) -> None:
    made = make_checkpoint(tmp_path / "c", n_embd=48)
    text = tmp_path / "text.txt"
    text.write_text("some words to merge, some more words " * 100, encoding="utf-8")
    out = tmp_path / "out"
    budget = Budget(16.0, "weights")
    done = export(made.folder, out, QuantConfig(calibration=text, budget=budget), prove=False)
    assert done.plan is not None
    assert done.plan.matrices["wte.weight"].type == "f16"
    assert done.measured_kl is None  # nothing was held out


def test_too_little_is_said_before_anything_is_measured(tiny_checkpoint: Path) -> None:
    source = load_checkpoint(tiny_checkpoint)
    with pytest.raises(ConfigError, match=r"^3 bits per weight .* [5-7]\.\d+"):
        Budget(3.0, "weights").for_matrices(source, 0, merged=True)
    with pytest.raises(ConfigError, match=r"^0.05 MB of file .* MB of file"):
        Budget(50_000, "file").for_matrices(source, 0, merged=True)
    with pytest.raises(ConfigError, match="MB of memory"):
        Budget(50_000, "memory", 64).for_matrices(source, 0, merged=True)


@pytest.mark.parametrize("n_layer", [1, 2, 3])
@pytest.mark.parametrize("of", ["file", "weights", "memory"])
def test_the_least_that_is_stated_is_enough(
    of: Literal["file", "weights", "memory"], n_layer: int, tmp_path: Path
) -> None:
    source = make_checkpoint(tmp_path / "c", n_layer=n_layer)
    with pytest.raises(ConfigError) as refused:
        Budget(1, of).for_matrices(source, 0, merged=True)
    found = re.search(r"need ([\d.]+)( MB)?", str(refused.value))
    assert found is not None
    limit = parse_bytes(f"{found[1]}MB") if found[2] else float(found[1])
    assert Budget(limit, of).for_matrices(source, 0, merged=True) > 0


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("60MB", 60_000_000),
        ("60 mb", 60_000_000),
        ("4GiB", 4 << 30),
        ("1.5G", 1_500_000_000),
        ("512KiB", 512 << 10),
        ("1000", 1000),
    ],
)
def test_sizes_are_read(text: str, n_bytes: int) -> None:
    assert parse_bytes(text) == n_bytes


@pytest.mark.parametrize("text", ["", "MB", "-3MB", "4 TB", "4GBit", "1,5GB", "nan"])
def test_other_texts_are_no_sizes(text: str) -> None:
    with pytest.raises(ConfigError, match="60MB or 4GiB"):
        parse_bytes(text)


def test_one_budget_is_given_or_none() -> None:
    assert budget_of(None, None, None, None) is None
    assert budget_of(None, None, "1GB", 100) == Budget(10**9, "memory", 100)
    with pytest.raises(ConfigError, match=r"--target-size.*--target-bpw"):
        budget_of("60MB", 4.5, None, None)
    with pytest.raises(ConfigError, match=r"--context .*--fit-memory"):
        budget_of("60MB", None, None, 100)


@pytest.mark.slow
def test_the_command_says_what_it_chose(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", str(tiny_checkpoint), "--out", str(tmp_path / "a"), "--no-verify"]
    assert main([*words, "--target-bpw", "7", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["plan"]["predicted_kl"] > 0
    assert main([*words, "--target-bpw", "7", "--quant", "q4_0"]) == 2
    assert "--quant" in capsys.readouterr().err
