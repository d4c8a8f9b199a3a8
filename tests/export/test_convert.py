from __future__ import annotations

import ctypes
import errno
import json
import math
from pathlib import Path
from typing import Any

import gguf
import jinja2
import llama_cpp
import numpy as np
import pytest
import torch
from gguf_surgery import keys_of, make_checkpoint
from safetensors.torch import load_file

from llmkit.checkpoint.checkpoint import Checkpoint
from llmkit.errors import CheckpointError, ConfigError, LlmkitError, QuantizationError
from llmkit.export.convert import Export, export
from llmkit.export.gguf import writer
from llmkit.export.llamacpp.runtime import LlamaCpp
from llmkit.export.quantization.config import QuantConfig
from llmkit.export.verify.verify import verify
from llmkit.modelfiles.parameters import Parameters
from llmkit.modelfiles.reading import read_modelfile
from llmkit.tokenizer_training import train_characters

GGML_TYPES = {
    "f32": gguf.GGMLQuantizationType.F32,
    "f16": gguf.GGMLQuantizationType.F16,
    "bf16": gguf.GGMLQuantizationType.BF16,
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
    "q4_0": gguf.GGMLQuantizationType.Q4_0,
}
FILE_TYPES = {"f32": 0, "f16": 1, "bf16": 32, "q8_0": 7, "q4_0": 2}  # enum llama_ftype in llama.h
QUANTS = list(GGML_TYPES)
MATRICES = ("attn_qkv", "attn_output", "ffn_up", "ffn_down", "token_embd", "output.weight")


def _ggml() -> ctypes.CDLL:
    folder = Path(llama_cpp.__file__).parent / "lib"
    names = ("libggml-base.so", "libggml-base.dylib", "ggml-base.dll")
    library = ctypes.CDLL(str(next(folder / name for name in names if (folder / name).exists())))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = (
        ctypes.c_int,  # type
        ctypes.c_void_p,  # float32 source
        ctypes.c_void_p,  # destination
        ctypes.c_int64,  # first weight
        ctypes.c_int64,  # rows
        ctypes.c_int64,  # weights per row
        ctypes.c_void_p,  # importance matrix
    )
    return library


def ggml_bytes(weights: torch.Tensor, ggml_type: gguf.GGMLQuantizationType) -> bytes:
    """What ggml's C makes of a tensor."""
    rows = weights.float().reshape(-1, weights.shape[-1]).numpy().copy()
    room = np.empty(rows.nbytes + 64, np.uint8)
    n_bytes = _ggml().ggml_quantize_chunk(
        int(ggml_type), rows.ctypes.data, room.ctypes.data, 0, *rows.shape, None
    )
    return room[:n_bytes].tobytes()


def expected_tensors(n_layer: int) -> dict[str, str]:
    """GGUF name -> checkpoint name, written down a second time."""
    names = {
        "token_embd.weight": "wte.weight",
        "position_embd.weight": "wpe.weight",
        "output_norm.weight": "ln_f.weight",
        "output_norm.bias": "ln_f.bias",
    }
    parts = {
        "attn_norm": "ln_1",
        "attn_qkv": "attn.c_attn",
        "attn_output": "attn.c_proj",
        "ffn_norm": "ln_2",
        "ffn_up": "mlp.c_fc",
        "ffn_down": "mlp.c_proj",
    }
    for i in range(n_layer):
        for theirs, ours in parts.items():
            for kind in ("weight", "bias"):
                names[f"blk.{i}.{theirs}.{kind}"] = f"h.{i}.{ours}.{kind}"
    return names


def exported(checkpoint: Checkpoint, out: Path, *quants: str) -> Export:
    return export(checkpoint.folder, out, QuantConfig(quants), prove=False)


@pytest.mark.parametrize("quant", QUANTS)
def test_every_tensor_is_what_ggml_makes_of_the_checkpoints(
    quant: str, files: dict[str, Path], tiny_checkpoint: Path
) -> None:
    weights = load_file(tiny_checkpoint / "model.safetensors")
    expected = expected_tensors(n_layer=2)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(files[quant]).tensors}
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        weight = weights[expected[name]]
        is_matrix = name.endswith("weight") and name.split(".")[-2] in MATRICES
        ggml_type = GGML_TYPES[quant] if is_matrix else gguf.GGMLQuantizationType.F32
        assert tensor.tensor_type == ggml_type, name
        assert tuple(reversed(tensor.shape.tolist())) == tuple(weight.shape), name
        assert tensor.data.tobytes() == ggml_bytes(weight, ggml_type), name


@pytest.mark.parametrize("quant", QUANTS)
def test_metadata_is_what_llama_cpp_needs_of_a_gpt2(
    quant: str, files: dict[str, Path], tiny_checkpoint: Path
) -> None:
    keys = {name: value for name, (value, _, _) in keys_of(files[quant]).items()}
    tokenizer = json.loads((tiny_checkpoint / "tokenizer.json").read_text(encoding="utf-8"))
    vocab = {**tokenizer["model"]["vocab"], "<|endoftext|>": 511}
    tokens = sorted(vocab, key=lambda token: vocab[token])
    merges = [" ".join(merge) for merge in tokenizer["model"]["merges"]]
    assert keys.pop("gpt2.attention.layer_norm_epsilon") == pytest.approx(1e-5)
    chat = jinja2.Template(keys.pop("tokenizer.chat_template"))
    assert chat.render(messages=[{"role": "user", "content": "Once there"}]) == "Once there"
    assert keys == {
        "general.architecture": "gpt2",
        "general.type": "model",
        "general.name": "tiny",
        "general.file_type": FILE_TYPES[quant],
        "general.quantization_version": 2,
        "gpt2.context_length": 64,
        "gpt2.embedding_length": 64,
        "gpt2.block_count": 2,
        "gpt2.feed_forward_length": 256,
        "gpt2.vocab_size": 512,
        "gpt2.attention.head_count": 2,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * 511 + [3],  # NORMAL, and CONTROL for the end of text
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 511,
        "tokenizer.ggml.eos_token_id": 511,
        "tokenizer.ggml.add_bos_token": False,
    }


def test_parameters_of_the_user_are_in_the_modelfile(tiny_checkpoint: Path, tmp_path: Path) -> None:
    given = Parameters(min_p=0.05, repeat_penalty=1.1, stop=("\n",))
    made = export(tiny_checkpoint, tmp_path, QuantConfig(["q8_0"]), prove=False, parameters=given)
    found = read_modelfile(made.modelfile).modelfile.parameters
    assert (found.min_p, found.repeat_penalty) == (0.05, 1.1)
    assert found.stop == ("<|endoftext|>", "\n")
    assert found.num_ctx == 64


def test_metadata_types_are_those_llama_cpp_reads(files: dict[str, Path]) -> None:
    kind = gguf.GGUFValueType
    types = {name: (type_, item) for name, (_, type_, item) in keys_of(files["f32"]).items()}
    assert types["gpt2.context_length"] == (kind.UINT32, None)
    assert types["gpt2.attention.layer_norm_epsilon"] == (kind.FLOAT32, None)
    assert types["tokenizer.ggml.tokens"] == (kind.ARRAY, kind.STRING)
    assert types["tokenizer.ggml.token_type"] == (kind.ARRAY, kind.INT32)
    assert types["tokenizer.ggml.merges"] == (kind.ARRAY, kind.STRING)
    assert types["tokenizer.ggml.add_bos_token"] == (kind.BOOL, None)


def test_summary_says_size_and_bits(tiny_export: Export) -> None:
    for file in tiny_export.files:
        tensors = gguf.GGUFReader(file.path).tensors
        n_bits = 8 * sum(int(tensor.n_bytes) for tensor in tensors)
        assert file.n_bytes == file.path.stat().st_size
        assert file.bits_per_weight == n_bits / sum(int(t.n_elements) for t in tensors)
        assert file.fallbacks == ()
        assert file.fallback_bytes == 0


def test_a_checkpoint_without_qkv_bias_gets_zeros(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "c", qkv_bias=False)
    file = exported(checkpoint, tmp_path / "out", "f32").files[0]
    biases = [t for t in gguf.GGUFReader(file.path).tensors if t.name.endswith("attn_qkv.bias")]
    assert [tensor.data.tolist() for tensor in biases] == [[0.0] * 3 * 64] * 2
    assert verify(checkpoint.folder, file.path, data=_text(tmp_path), max_tokens=128).passed


def test_a_separate_head_becomes_output_weight(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "c", tie_embeddings=False)
    file = exported(checkpoint, tmp_path / "out", "q8_0").files[0]
    head = load_file(checkpoint.model_file)["lm_head.weight"]
    tensor = next(t for t in gguf.GGUFReader(file.path).tensors if t.name == "output.weight")
    assert tensor.data.tobytes() == ggml_bytes(head, gguf.GGMLQuantizationType.Q8_0)
    assert verify(checkpoint.folder, file.path, data=_text(tmp_path), max_tokens=128).passed


@pytest.mark.parametrize("quant", ["q8_0", "q4_0"])
def test_rows_that_no_block_fits_stay_f16_and_are_named(quant: str, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "c", n_embd=48)
    file = exported(checkpoint, tmp_path / "out", quant).files[0]
    types = {t.name: t.tensor_type for t in gguf.GGUFReader(file.path).tensors}
    narrow = [
        name
        for name in types
        if any(part in name for part in MATRICES)
        and name.endswith("weight")
        and "ffn_down" not in name  # its rows are 4 x 48 = 192 wide
    ]
    assert sorted(file.fallbacks) == sorted(f"{name}: f16" for name in narrow)
    assert {types[name] for name in narrow} == {gguf.GGMLQuantizationType.F16}
    assert types["blk.0.ffn_down.weight"] == GGML_TYPES[quant]
    bits = {"q8_0": 8.5, "q4_0": 4.5}[quant]
    n_tokens = checkpoint.config.vocab_size
    n_weights = (n_tokens + 2 * (3 * 48 + 48 + 4 * 48)) * 48
    assert file.fallback_bytes == round(n_weights * (16 - bits) / 8)
    assert verify(checkpoint.folder, file.path, data=_text(tmp_path), max_tokens=128).passed


def test_a_vocabulary_without_merges_is_exported(tmp_path: Path) -> None:
    # Character tokens of pure ASCII text are the bytes, which need no merge.
    checkpoint = make_checkpoint(tmp_path / "c", tokenizer=train_characters(["plain ASCII"]))
    file = exported(checkpoint, tmp_path / "out", "f32").files[0]
    assert keys_of(file.path)["tokenizer.ggml.merges"][0] == []
    assert verify(checkpoint.folder, file.path, data=_text(tmp_path), max_tokens=128).passed


def test_an_unknown_quantization_names_the_nearest(
    random_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    with pytest.raises(QuantizationError, match="did you mean 'q4_0'"):
        exported(random_checkpoint, tmp_path / "out", "q4_O")
    assert not (tmp_path / "out").exists()


def test_aliases_and_duplicates_give_each_file_once(
    random_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    done = exported(random_checkpoint, tmp_path, "int8", "Q8_0", "int4", "q8_0")
    assert [file.path.name for file in done.files] == ["random-q8_0.gguf", "random-q4_0.gguf"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "Modelfile", "random-q4_0.gguf", "random-q8_0.gguf",
    ]  # fmt: skip


def test_no_quantization_is_refused(random_checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="quantization type"):
        exported(random_checkpoint, tmp_path / "out")


def test_the_modelfile_names_the_smallest_file(tiny_export: Export) -> None:
    lines = tiny_export.modelfile.read_text(encoding="utf-8").splitlines()
    assert 'FROM "./tiny-q4_0.gguf"' in lines
    assert "PARAMETER num_ctx 64" in lines
    assert 'PARAMETER stop "<|endoftext|>"' in lines


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["h.1.mlp.c_fc.weight", "ln_f.bias"])
def test_numbers_that_are_none_are_refused_by_tensor_name(
    number: float, name: str, tmp_path: Path
) -> None:
    def spoil(weights: dict[str, torch.Tensor]) -> None:
        weights[name].view(-1)[7] = number

    checkpoint = make_checkpoint(tmp_path / "c", change=spoil)
    out = tmp_path / "out"
    with pytest.raises(CheckpointError, match=name):
        exported(checkpoint, out, "f32")
    assert not list(out.glob("*"))


def test_numbers_too_large_for_a_type_are_refused(tmp_path: Path) -> None:
    def enlarge(weights: dict[str, torch.Tensor]) -> None:
        weights["wte.weight"][3, 5] = 70000.0

    checkpoint = make_checkpoint(tmp_path / "c", change=enlarge)
    with pytest.raises(QuantizationError, match=r"wte\.weight: row 3, column 5"):
        exported(checkpoint, tmp_path / "out", "f16")
    exported(checkpoint, tmp_path / "out", "f32")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("h.1.ln_2.bias"), r"c/model.* h\.1\.ln_2\.bias is missing"),
        (lambda weights: weights.update({"ln_f.bias": torch.ones(64).int()}), "int32"),
        (lambda weights: weights.update({"h.2.ln_1.bias": torch.ones(64)}), r"h\.2\.ln_1\.bias"),
        (lambda weights: weights.update({"lm_head.weight": torch.ones(2, 2)}), "lm_head"),
        (lambda weights: weights.update({"ln_f.bias": torch.ones(63)}), r"ln_f\.bias has shape"),
    ],
)
def test_weights_of_another_model_are_refused(change: Any, message: str, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "c", change=change)
    with pytest.raises(CheckpointError, match=message):
        exported(checkpoint, tmp_path / "out", "f32")
    assert list((tmp_path / "out").glob("*")) == []


def test_a_bias_that_the_config_denies_is_refused(tmp_path: Path) -> None:
    def add(weights: dict[str, torch.Tensor]) -> None:
        weights["h.0.attn.c_attn.bias"] = torch.ones(3 * 64)

    checkpoint = make_checkpoint(tmp_path / "c", qkv_bias=False, change=add)
    with pytest.raises(CheckpointError, match=r"h\.0\.attn\.c_attn\.bias"):
        exported(checkpoint, tmp_path / "out", "f32")


def test_a_damaged_prompt_format_is_refused_before_any_work(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "c")
    config = checkpoint.folder / "config.json"
    config.write_text(config.read_text(encoding="utf-8").replace('"before"', '"befroe"'))
    with pytest.raises(LlmkitError, match=r"config\.json: .*befroe"):
        exported(checkpoint, tmp_path / "out", "f32")
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_folder_is_no_target(random_checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a checkpoint"):
        export(random_checkpoint.folder, random_checkpoint.folder, prove=False)
    target = tmp_path / "file"
    target.write_text("mine")
    with pytest.raises(ConfigError, match=r"a file.*--out"):
        export(random_checkpoint.folder, target, prove=False)
    with pytest.raises(LlmkitError, match="cannot write"):
        export(random_checkpoint.folder, target / "below", prove=False)
    assert target.read_text() == "mine"


@pytest.mark.parametrize(
    "name", ['a"b', "a/b", "a\\b", "a\nFROM evil", "a\rFROM evil", "a\0b", "a\u2028b", "a\udcff"]
)
def test_a_name_that_a_file_or_modelfile_cannot_hold_is_refused(
    name: str, random_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match="file name"):
        export(random_checkpoint.folder, out, QuantConfig(["f32"]), name=name, prove=False)
    assert not out.exists()


def test_a_full_disk_leaves_nothing_and_is_named(
    random_checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", full)
    with pytest.raises(LlmkitError, match=r"cannot write .*random-f32\.gguf: No space left"):
        exported(random_checkpoint, tmp_path, "f32")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_leaves_the_old_file(
    random_checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported(random_checkpoint, tmp_path, "q8_0")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    pack, packed = writer.pack_tensor, []

    def interrupted(tensors: Any, entry: Any, stored: Any) -> Any:
        packed.append(entry)
        if len(packed) == 5:
            raise KeyboardInterrupt
        return pack(tensors, entry, stored)

    monkeypatch.setattr(writer, "pack_tensor", interrupted)
    with pytest.raises(KeyboardInterrupt):
        exported(random_checkpoint, tmp_path, "q8_0")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_each_tensor_is_written_before_the_next_is_read(
    random_checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = []
    pack, write = writer.pack_tensor, gguf.GGUFWriter.write_tensor_data
    monkeypatch.setattr(
        writer, "pack_tensor", lambda *args: (events.append("read"), pack(*args))[1]
    )
    monkeypatch.setattr(
        gguf.GGUFWriter,
        "write_tensor_data",
        lambda *args: (events.append("write"), write(*args))[1],
    )
    exported(random_checkpoint, tmp_path, "q4_0")
    assert events == ["read", "write"] * 28


def test_the_same_checkpoint_gives_the_same_bytes(
    random_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    first = exported(random_checkpoint, tmp_path / "a", "q4_0").files[0].path
    second = exported(random_checkpoint, tmp_path / "b", "q4_0").files[0].path
    assert first.read_bytes() == second.read_bytes()


def test_llama_cpp_computes_what_transformers_gpt2_computes(
    files: dict[str, Path], tiny_checkpoint: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=512, n_positions=64, n_embd=64, n_layer=2, n_head=2,
        activation_function="gelu_new", layer_norm_epsilon=1e-5,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    weights = load_file(tiny_checkpoint / "model.safetensors")
    projections = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    theirs = {
        f"transformer.{name}": tensor.T.contiguous() if name.endswith(projections) else tensor
        for name, tensor in weights.items()  # its Conv1D stores (in, out)
    }
    model = transformers.GPT2LMHeadModel(config).eval()
    missing, unexpected = model.load_state_dict(theirs, strict=False)
    assert set(missing) <= {"lm_head.weight"}
    assert unexpected == []
    ids = torch.randint(0, 512, (64,), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        log_p = model(ids[None]).logits[0].double().log_softmax(-1)
    with LlamaCpp(files["f32"]) as llama:
        log_q = torch.from_numpy(llama.evaluate(ids.tolist())).double().log_softmax(-1)
    assert float((log_p.exp() * (log_p - log_q)).sum(-1).mean()) < 1e-6


def _text(folder: Path) -> Path:
    path = folder / "held-out.txt"
    path.write_text("some words and more words to merge. " * 20, encoding="utf-8")
    return path


def test_another_models_export_folder_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    export(tiny_checkpoint, tmp_path / "out", QuantConfig(["q8_0"]), name="one", prove=False)
    before = (tmp_path / "out" / "Modelfile").read_bytes()
    with pytest.raises(ConfigError, match=r"one-q8_0\.gguf"):
        export(tiny_checkpoint, tmp_path / "out", QuantConfig(["q8_0"]), name="two", prove=False)
    assert (tmp_path / "out" / "Modelfile").read_bytes() == before


def test_an_older_proof_goes_with_the_files_it_proved(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    export(tiny_checkpoint, tmp_path, QuantConfig(["q8_0"]), name="one", prove=False)
    (tmp_path / "parity.json").write_text("{}")
    export(tiny_checkpoint, tmp_path, QuantConfig(["q8_0"]), name="one", prove=False)
    assert not (tmp_path / "parity.json").exists()


def test_the_comment_gives_a_name_that_ollama_takes(tiny_checkpoint: Path, tmp_path: Path) -> None:
    export(tiny_checkpoint, tmp_path, QuantConfig(["q8_0"]), name="my run (é)", prove=False)
    text = (tmp_path / "Modelfile").read_text(encoding="utf-8")
    assert "ollama create my-run -f Modelfile" in text
    assert 'FROM "./my run (é)-q8_0.gguf"' in text
