"""LoRA adapters and classifiers in llama.cpp."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from finetuned import as_classifier, with_adapter
from gguf_surgery import Kind, make_checkpoint, tensors_of, with_key, with_tensors
from typer.testing import CliRunner

from llmkit.checkpoint.checkpoint import Checkpoint
from llmkit.cli.main import app
from llmkit.errors import ConfigError, GGUFError
from llmkit.export.check import Proof
from llmkit.export.compare import compare
from llmkit.export.convert import export
from llmkit.export.llamacpp.runners import generate
from llmkit.export.llamacpp.runtime import LlamaCpp
from llmkit.export.quantization.config import QuantConfig
from llmkit.export.verify.verify import verify
from llmkit.modelfiles.reading import read_modelfile
from llmkit.sampling import Sampling
from llmkit.tokenizer_training import train_bpe

IDS = list(range(40, 60))


def text(folder: Path) -> Path:
    path = folder / "held_out.txt"
    path.write_text("some more words to merge, and some words more. " * 40, encoding="utf-8")
    return path


def proved(checkpoint: Checkpoint, file: Path, tmp_path: Path) -> Proof:
    return verify(checkpoint.folder, file, data=text(tmp_path), max_tokens=256)


def failed(proof: Proof) -> dict[str, str]:
    return {check.name: check.detail for check in proof.checks if not check.passed}


@torch.inference_mode()
def torch_logits(checkpoint: Checkpoint) -> np.ndarray:
    return checkpoint.load_model()(torch.tensor([IDS]))[0].numpy()


def llama_logits(file: Path) -> np.ndarray:
    with LlamaCpp(file) as llama:
        return llama.evaluate(IDS)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [8, 16, 32, 128])
def test_adapter_beside_its_base_and_merged_compute_what_pytorch_does(
    rank: int, random_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    tuned = with_adapter(random_checkpoint, tmp_path / "tuned", rank)
    apart = export(tuned.folder, tmp_path / "apart", QuantConfig(["f32", "q8_0"]), prove=False)
    merged = export(
        tuned.folder, tmp_path / "merged", QuantConfig(["f32", "q8_0"]), merge=True, prove=False
    )
    assert apart.adapter is not None
    assert merged.adapter is None
    wanted = torch_logits(tuned)
    assert (
        np.abs(wanted - torch_logits(random_checkpoint)).max() > 0.1
    )  # the adapter does something
    for exported in (apart, merged):
        np.testing.assert_allclose(llama_logits(exported.files[0].path), wanted, atol=5e-3)
        for file in exported.files:
            assert failed(proved(tuned, file.path, tmp_path)) == {}


def test_the_files_are_what_llama_cpps_own_converter_writes(
    random_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    tuned = with_adapter(random_checkpoint, tmp_path / "t", 4, alpha=12.0, targets=("mlp.c_fc",))
    made = export(tuned.folder, tmp_path / "out", QuantConfig(["f32"]), prove=False)
    assert made.adapter is not None
    reader = gguf.GGUFReader(made.adapter.path)
    keys = {name: field.contents() for name, field in reader.fields.items() if "GGUF" not in name}
    assert keys == {
        "general.architecture": "gpt2",
        "general.type": "adapter",
        "general.name": "t",
        "adapter.type": "lora",
        "adapter.lora.alpha": 12.0,
    }
    shapes = {tensor.name: tuple(reversed(tensor.shape.tolist())) for tensor in reader.tensors}
    assert shapes == {
        f"blk.{layer}.ffn_up.weight.{half}": shape
        for layer in range(2)
        for half, shape in (("lora_a", (4, 64)), ("lora_b", (256, 4)))
    }
    modelfile = read_modelfile(made.modelfile).modelfile
    assert modelfile.source == "./t-f32.gguf"
    assert modelfile.adapter == "./t-adapter.gguf"


def test_a_qlora_base_keeps_the_bytes_of_the_bases_own_export(
    random_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    tuned = with_adapter(random_checkpoint, tmp_path / "tuned", 8, base_quant="q4_0")
    file = export(tuned.folder, tmp_path / "tuned-out", prove=False).files
    assert [made.quant for made in file] == ["q4_0"]
    own = (
        export(random_checkpoint.folder, tmp_path / "own", QuantConfig(["q4_0"]), prove=False)
        .files[0]
        .path
    )
    found, wanted = tensors_of(file[0].path), tensors_of(own)
    assert found.keys() == wanted.keys()
    for name, (data, kind) in wanted.items():
        assert found[name][1] == kind
        assert found[name][0].tobytes() == data.tobytes(), name
    assert failed(proved(tuned, file[0].path, tmp_path)) == {}


def test_a_qlora_adapter_goes_with_no_other_base(
    random_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    tuned = with_adapter(random_checkpoint, tmp_path / "tuned", 8, base_quant="q4_0")
    with pytest.raises(ConfigError, match="trained on q4_0 blocks"):
        export(tuned.folder, tmp_path / "out", QuantConfig(["q8_0"]), prove=False)
    merged = (
        export(tuned.folder, tmp_path / "merged", QuantConfig(["f16"]), merge=True, prove=False)
        .files[0]
        .path
    )
    np.testing.assert_allclose(llama_logits(merged), torch_logits(tuned), atol=2e-2)


def test_there_must_be_an_adapter_to_merge(random_checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no adapter to merge"):
        export(random_checkpoint.folder, tmp_path / "out", merge=True, prove=False)


@pytest.mark.parametrize("damage", ["scale", "matrix", "missing", "another"])
def test_a_wrong_adapter_is_found(
    damage: str, random_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    tuned = with_adapter(random_checkpoint, tmp_path / "tuned", 4)
    made = export(tuned.folder, tmp_path / "out", QuantConfig(["q8_0"]), prove=False)
    assert made.adapter is not None
    path, copy = made.adapter.path, tmp_path / "copy.gguf"
    name = "blk.1.ffn_up.weight.lora_a"
    if damage == "scale":
        with_key(path, copy, "adapter.lora.alpha", 4.0, Kind.FLOAT32)
        copy.replace(path)
    elif damage == "matrix":

        def shift(tensors: dict[str, Any]) -> None:
            data, kind = tensors[name]
            tensors[name] = (data + 0.01, kind)

        with_tensors(path, copy, shift)
        copy.replace(path)
    elif damage == "another":
        other = with_adapter(random_checkpoint, tmp_path / "other", 8)
        export(
            other.folder, tmp_path / "o", QuantConfig(["q8_0"]), name="tuned", prove=False
        ).adapter.path.replace(  # type: ignore[union-attr]
            path
        )
    else:
        path.unlink()
        with pytest.raises(GGUFError, match="needs its adapter tuned-adapter"):
            proved(tuned, made.files[0].path, tmp_path)
        with pytest.raises(GGUFError, match="adapter"):
            list(generate(made.files[0].path, "some"))
        return
    found = failed(proved(tuned, made.files[0].path, tmp_path))
    assert ("metadata" if damage == "scale" else "tensors") in found


def test_generation_and_comparison_use_the_adapter(
    random_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    tuned = with_adapter(random_checkpoint, tmp_path / "tuned", 8)
    made = export(tuned.folder, tmp_path / "out", QuantConfig(["f32"]), prove=False)
    greedy = Sampling(temperature=0, max_tokens=12)
    file = made.files[0].path
    answer = list(generate(file, "some words", greedy))
    assert answer == list(generate(tuned.folder, "some words", greedy))
    assert answer != list(generate(random_checkpoint.folder, "some words", greedy))
    row = compare(tuned.folder, [file], data=text(tmp_path), max_tokens=128).rows[0]
    assert row.mean_kl < 1e-6
    assert made.adapter is not None
    assert row.bytes == file.stat().st_size + made.adapter.path.stat().st_size


# --- classifiers ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("classifier")
    tokenizer = train_bpe(["some words to merge, some more words"], 280).with_tokens(
        words=("ham", "spam", "not sure")
    )
    base = make_checkpoint(folder / "base", tokenizer=tokenizer, tie_embeddings=False)
    return as_classifier(base, folder / "made", ("ham", "spam", "not sure"))


@pytest.mark.slow
@pytest.mark.parametrize("quant", ["f32", "q8_0", "q4_0"])
def test_a_classifier_answers_with_its_label_and_nothing_else(
    quant: str, classifier: Checkpoint, tmp_path: Path
) -> None:
    made = export(classifier.folder, tmp_path / "out", QuantConfig([quant]), prove=False)
    file = made.files[0].path
    for words in ("some words", "merge", "more, more", "words to some"):
        said = "".join(generate(file, words))
        assert said in classifier.labels
        if quant == "f32":
            assert said == "".join(generate(classifier.folder, words))
    parameters = read_modelfile(made.modelfile).modelfile.parameters
    assert (parameters.num_predict, parameters.temperature) == (1, 0)
    assert failed(proved(classifier, file, tmp_path)) == {}


def test_label_probabilities_in_llama_cpp_are_the_classifiers(
    classifier: Checkpoint, tmp_path: Path
) -> None:
    file = (
        export(classifier.folder, tmp_path / "out", QuantConfig(["f32"]), prove=False).files[0].path
    )
    ids = classifier.label_ids
    found = torch.from_numpy(llama_logits(file))[:, ids].log_softmax(dim=-1)
    wanted = torch.from_numpy(torch_logits(classifier))[:, ids].log_softmax(dim=-1)
    torch.testing.assert_close(found, wanted, atol=2e-3, rtol=0)


def test_export_offers_merging_on_the_command_line(
    random_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    tuned = with_adapter(random_checkpoint, tmp_path / "tuned", 4)
    out = tmp_path / "out"
    arguments = ["export", str(tuned.folder), "--out", str(out), "--quant", "q8_0", "--merge"]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    made = {path.name for path in out.iterdir()}
    assert made == {"Modelfile", "tuned-q8_0.gguf", "parity.json"}
    assert "parity.json" in (out / "Modelfile").read_text(encoding="utf-8")


def test_what_is_not_verified_says_so(random_checkpoint: Checkpoint, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["export", str(random_checkpoint.folder), "--out", str(out), "--no-verify"]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert not (out / "parity.json").exists()
    assert "--no-verify" in (out / "Modelfile").read_text(encoding="utf-8")
