from __future__ import annotations

import json
import math
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import llmkit.checkpoint.tensors as tensors_module
from llmkit.architectures.gpt2 import GPT, GPT2
from llmkit.checkpoint.checkpoint import load_checkpoint
from llmkit.checkpoint.config import CheckpointConfig, save_config
from llmkit.checkpoint.tensors import fault_of, save_tensors
from llmkit.errors import CheckpointError
from llmkit.files import write_text
from llmkit.lora import LoRAConfig, adapter_tensors, add_lora, peft_config
from llmkit.modelfiles.prompt_format import CHATML, COMPLETION, PromptFormat, Turn
from llmkit.tokenizer_training import train_bpe


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint, for tests that damage it."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))


def refused(folder: Path, *words: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(folder).load_model()
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


def test_model_has_the_weights_in_the_file(tiny_checkpoint: Path) -> None:
    model = load_checkpoint(tiny_checkpoint).load_model()
    assert not model.training
    there = load_file(tiny_checkpoint / "model.safetensors")
    assert model.state_dict().keys() == there.keys()
    assert all(torch.equal(tensor, there[name]) for name, tensor in model.state_dict().items())


@pytest.mark.slow
def test_loading_a_model_leaves_the_compiler_of_torch_out(tiny_checkpoint: Path) -> None:
    program = (
        "import sys; from pathlib import Path; "
        "from llmkit.checkpoint.checkpoint import load_checkpoint; "
        "load_checkpoint(Path()).load_model(); print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tiny_checkpoint,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "False\n", done.stderr


def test_saved_model_and_config_come_back(tiny_checkpoint: Path, folder: Path) -> None:
    opened = load_checkpoint(tiny_checkpoint)
    torch.manual_seed(3)
    model = GPT(opened.config)
    save_tensors(folder / "model.safetensors", model.state_dict(), step=7)
    own = PromptFormat("own", Turn("S", "\n"), Turn("é: ", "\n"), Turn("A:\n", "\n"))
    save_config(folder, CheckpointConfig(opened.config, own))
    again = load_checkpoint(folder)
    assert again.config == opened.config
    assert again.prompt_format == own
    assert again.sha256 != opened.sha256
    tokens = torch.arange(5)[None]
    assert torch.equal(again.load_model()(tokens), model.eval()(tokens))


def test_same_tensors_are_the_same_file(tiny_checkpoint: Path, tmp_path: Path) -> None:
    weights = load_file(tiny_checkpoint / "model.safetensors")
    for name in ("a", "b"):
        save_tensors(tmp_path / name, weights, step=30)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    there = (tiny_checkpoint / "model.safetensors").read_bytes()
    assert (tmp_path / "a").read_bytes() == there


def test_folder_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", f"checkpoint {tmp_path / 'nowhere'} ", "llmkit train")
    refused(tmp_path, f"{tmp_path} has no config.json", "give a checkpoint folder")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/config.json").touch()
    (tmp_path / "mine.gguf").touch()
    refused(tmp_path, str(tmp_path / "mine or "), str(tmp_path / "mine.gguf"))
    file = tmp_path / "notes.txt"
    file.touch()
    refused(file, f"{file} is a file", "folder")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    refused(folder, str(folder), name)


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, int]]:
        return os.open, (str(self.file), os.O_CREAT)


@pytest.mark.parametrize("name", ["model.pt", "model.pth", "pytorch_model.bin", "last.ckpt"])
def test_pickle_is_refused_without_being_read(tmp_path: Path, name: str) -> None:
    sprung = tmp_path / "sprung"
    path = tmp_path / name
    path.write_bytes(pickle.dumps(Trap(sprung)))
    refused(path, str(path), "pickle", "model.safetensors")
    assert not sprung.exists()


def test_pickle_under_the_name_of_the_weights_is_refused_without_being_read(folder: Path) -> None:
    sprung = folder / "sprung"
    (folder / "model.safetensors").write_bytes(pickle.dumps(Trap(sprung)))
    refused(folder, str(folder / "model.safetensors"), "not a safetensors file")
    assert not sprung.exists()


@pytest.mark.parametrize("n_bytes", [0, 7, 100, 5000, -1])
def test_truncated_weights_are_refused(folder: Path, n_bytes: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:n_bytes])
    refused(folder, str(path), "truncated")


def test_foreign_tensors_are_named(folder: Path) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    missing = {name: tensor for name, tensor in weights.items() if name != "h.1.ln_2.bias"}
    save_file(missing, path)
    refused(folder, str(path), "tensor h.1.ln_2.bias", "missing")
    save_file({**weights, "h.2.ln_1.bias": torch.zeros(64)}, path)
    refused(folder, str(path), "unexpected", "tensor h.2.ln_1.bias")
    save_file({**weights, "lm_head.weight": torch.zeros(512, 64)}, path)
    refused(folder, str(path), "unexpected", "tensor lm_head.weight")
    save_file({**weights, "wpe.weight": torch.zeros(65, 64)}, path)
    refused(folder, str(path), "wpe.weight", "(65, 64)", "(64, 64)")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", ["`model`", "`prompt_format`"]),
        ("{", ["`model`", "`prompt_format`"]),
        ("[]", ["`model`", "`prompt_format`"]),
        ("{}", ["`model`", "`prompt_format`"]),
        ('{"model_type": "gpt2", "n_embd": 64}', ["`model`", "`prompt_format`"]),
        ('{"model": [], "prompt_format": "completion"}', ["`model`", "`prompt_format`"]),
        ('{"model": {}, "prompt_format": {}}', ["vocab_size"]),
    ],
)
def test_damaged_config_is_named(folder: Path, content: str, words: list[str]) -> None:
    (folder / "config.json").write_text(content, encoding="utf-8")
    refused(folder, str(folder / "config.json"), *words)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("n_layer", "2", ["n_layer"]),
        ("n_layer", 0, ["n_layer"]),
        ("n_head", 3, ["n_embd 64", "n_head 3"]),
        ("n_experts", 8, ["n_experts"]),
        ("n_layer", 3, ["missing", "tensor h.2."]),
        ("n_embd", 128, ["wte.weight", "(512, 64)", "(512, 128)"]),
        ("vocab_size", 511, ["tokenizer.json has 512 tokens", "vocab_size 511"]),
        ("tie_embeddings", False, ["missing", "tensor lm_head.weight"]),
        ("qkv_bias", False, ["unexpected", "c_attn.bias"]),
    ],
)
def test_config_that_does_not_fit_is_refused(
    folder: Path, field: str, value: object, words: list[str]
) -> None:
    file = folder / "config.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    content["model"][field] = value
    file.write_text(json.dumps(content), encoding="utf-8")
    refused(folder, *words)


def test_tokenizer_of_another_size_is_refused(folder: Path) -> None:
    train_bpe(["some other words"], 260).save(folder / "tokenizer.json")
    refused(folder, str(folder), "tokenizer.json has 260 tokens", "vocab_size 512")


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, RuntimeError])
def test_interrupted_save_leaves_the_old_weights(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    before = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}

    def half_written(_tensors: object, path: Path, **_: object) -> None:
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr(tensors_module, "save_file", half_written)
    expected = tensors_module.CheckpointError.__base__ if error is OSError else error
    assert expected is not None
    with pytest.raises(expected):
        save_tensors(folder / "model.safetensors", {"x": torch.zeros(2)}, step=1)
    assert {f.name: f.read_bytes() for f in folder.iterdir() if f.is_file()} == before


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_files_are_as_readable_as_the_umask_says(
    tiny_checkpoint: Path, tmp_path: Path, umask: int, mode: int
) -> None:
    opened = load_checkpoint(tiny_checkpoint)
    before = os.umask(umask)
    try:
        save_tensors(tmp_path / "model.safetensors", {"x": torch.zeros(2)}, step=1)
        save_config(tmp_path, CheckpointConfig(opened.config, opened.prompt_format))
        opened.tokenizer.save(tmp_path / "tokenizer.json")
    finally:
        os.umask(before)
    modes = {file.name: file.stat().st_mode & 0o777 for file in tmp_path.iterdir()}
    assert modes == dict.fromkeys(("model.safetensors", "config.json", "tokenizer.json"), mode)


# --- adapters -----------------------------------------------------------------------------------


@pytest.fixture(params=[None, "q8_0", "q4_0"])
def adapted(folder: Path, request: pytest.FixtureRequest) -> Path:
    """The checkpoint with a random adapter, on its floats or on blocks."""
    opened = load_checkpoint(folder)
    model, lora = opened.load_model(), LoRAConfig(rank=3)
    add_lora(model, lora)
    torch.manual_seed(1)
    for name, tensor in model.named_parameters():
        if "lora_" in name:
            tensor.data.normal_(std=0.1)
    save_tensors(folder / "adapter_model.safetensors", adapter_tensors(model), step=5)
    content = json.dumps(peft_config(lora, "base", GPT2))
    (folder / "adapter_config.json").write_text(content, encoding="utf-8")
    quant = request.param
    save_config(folder, CheckpointConfig(opened.config, COMPLETION, base_quant=quant))
    return folder


def by_hand(folder: Path) -> dict[str, torch.Tensor]:
    """The weights with the adapter added, blocks read by the gguf library."""
    weights = load_file(folder / "model.safetensors")
    quant = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("base_quant")
    adapter = load_file(folder / "adapter_model.safetensors")
    for name, weight in weights.items():
        if quant and weight.dim() == 2 and name != "wpe.weight":
            kind = gguf.GGMLQuantizationType[quant.upper()]
            blocks = gguf.quants.quantize(weight.numpy(), kind)
            weights[name] = torch.from_numpy(gguf.quants.dequantize(blocks, kind))
        peft = f"base_model.model.transformer.{name.removesuffix('.weight')}"
        if f"{peft}.lora_A.weight" in adapter:
            a, b = (adapter[f"{peft}.lora_{half}.weight"] for half in "AB")
            weights[name] = weights[name] + 2.0 * (b @ a)
    return weights


def test_merged_tensors_are_the_base_or_its_blocks_with_the_adapter_added(adapted: Path) -> None:
    expected = by_hand(adapted)
    with load_checkpoint(adapted).open_merged() as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-6)


def test_model_with_an_adapter_computes_what_the_merged_tensors_do(adapted: Path) -> None:
    opened = load_checkpoint(adapted)
    tokens = torch.arange(40)[None] * 7
    merged = GPT(opened.config).eval()
    merged.load_state_dict(by_hand(adapted))
    plain = opened.load_model()(tokens)
    torch.testing.assert_close(plain, merged(tokens), rtol=1e-4, atol=1e-4)
    assert torch.equal(plain, opened.load_model(for_training=True)(tokens))


def test_hash_is_of_the_adapter_too(adapted: Path) -> None:
    before = load_checkpoint(adapted).sha256
    path = adapted / "adapter_model.safetensors"
    save_tensors(path, load_file(path), step=6)
    assert load_checkpoint(adapted).sha256 != before


def test_adapter_of_another_shape_or_none_is_refused(adapted: Path) -> None:
    path = adapted / "adapter_model.safetensors"
    tensors = load_file(path)
    save_tensors(path, {name: tensor[:, :2] for name, tensor in tensors.items()}, step=5)
    refused(adapted, str(path))
    path.unlink()
    refused(adapted, str(path))
    (adapted / "adapter_config.json").write_text("{", encoding="utf-8")
    refused(adapted, str(adapted / "adapter_config.json"))


def test_model_without_an_adapter_has_none_to_add(tiny_checkpoint: Path) -> None:
    opened = load_checkpoint(tiny_checkpoint)
    with pytest.raises(CheckpointError, match="has no adapter"):
        opened.add_adapter(opened.load_model())


def test_tokenizer_without_the_end_of_an_answer_is_refused(folder: Path) -> None:
    save_config(folder, CheckpointConfig(load_checkpoint(folder).config, CHATML))
    refused(folder, str(folder), "no special token <|im_end|>")


def test_tokenizer_without_a_label_is_refused(folder: Path) -> None:
    config = load_checkpoint(folder).config
    save_config(folder, CheckpointConfig(config, COMPLETION, ("unheard-of label",)))
    refused(folder, str(folder), "no single token for the label 'unheard-of label'")


# --- weights that nothing can compute with -------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ([1.0, math.nan, math.nan, -math.inf], ["NaN in 2 of 4"]),
        ([1.0, math.inf, -math.inf], ["infinity in 2 of 3"]),
        ([-1e30, 1.0], ["1e+30"]),
        ([7e4, -7e4, 0.0], None),  # too large for f16 alone
        ([], None),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fault_of_weights(
    weights: list[float], words: list[str] | None, dtype: torch.dtype
) -> None:
    fault = fault_of(torch.tensor(weights, dtype=dtype))
    if words is None:
        assert fault is None
    else:
        assert fault is not None
        assert all(word in fault for word in words), fault


def test_blocks_of_bytes_have_no_fault() -> None:
    assert fault_of(torch.full((4,), 255, dtype=torch.uint8)) is None


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
@pytest.mark.parametrize("part", ["model", "adapter"])
def test_every_way_to_read_weights_names_the_faulty_tensor(
    tiny_checkpoint: Path, tmp_path: Path, value: float, part: str
) -> None:
    folder = tmp_path / "poisoned"
    shutil.copytree(tiny_checkpoint, folder)
    if part == "adapter":
        lora = LoRAConfig(rank=2)
        model = load_checkpoint(folder).load_model()
        add_lora(model, lora)
        save_tensors(folder / "adapter_model.safetensors", adapter_tensors(model), 1)
        write_text(folder / "adapter_config.json", json.dumps(peft_config(lora, "base", GPT2)))
    path = folder / ("adapter_model.safetensors" if part == "adapter" else "model.safetensors")
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    name = next(name for name in tensors if tensors[name].ndim == 2 and "h.1" in name)
    tensors[name][1, 1] = value
    save_tensors(path, tensors, 1)
    checkpoint = load_checkpoint(folder)
    with pytest.raises(CheckpointError, match=f"{path.name}: tensor {name} "):
        checkpoint.load_model()
    weight = (
        name.replace("base_model.model.transformer.", "")
        .replace("lora_A.", "")
        .replace("lora_B.", "")
    )
    with checkpoint.open_merged() as merged, pytest.raises(CheckpointError, match=name):
        merged.get_tensor(weight)
