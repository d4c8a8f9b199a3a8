from __future__ import annotations

import struct
import time
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf_surgery import Kind, flips, keys_of, tensors_of, with_key, with_tensors, without_key
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from llmkit.checkpoint.checkpoint import load_checkpoint
from llmkit.errors import GGUFError, LlmkitError
from llmkit.export.gguf.reader import GGUFFile, Writer, config_of, dequantized_weights, read_gguf

LONGEST_READ = 30  # CPU seconds; a whole read takes a few milliseconds


@pytest.fixture(scope="module")
def content(files: dict[str, Path]) -> bytes:
    return files["q4_0"].read_bytes()


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch") / "damaged.gguf"


def read_or_refuse(path: Path, content: bytes) -> GGUFFile | None:
    """Read a file of these bytes: a GGUFFile, or None for a GGUFError. All else is a failure."""
    path.write_bytes(content)
    started = time.process_time()
    try:
        file = read_gguf(path)
        config_of(file)
        dequantized_weights(file)
    except LlmkitError:
        return None
    finally:
        assert time.process_time() - started < LONGEST_READ
    return file


@pytest.mark.parametrize("quant", ["f32", "f16", "bf16", "q8_0", "q4_0"])
def test_what_was_written_is_read(quant: str, files: dict[str, Path]) -> None:
    file = read_gguf(files[quant])
    assert file.metadata == {name: value for name, (value, _, _) in keys_of(files[quant]).items()}
    expected = tensors_of(files[quant])
    assert file.tensors.keys() == expected.keys()
    for name, (data, ggml_type) in expected.items():
        assert file.tensors[name].ggml_type == ggml_type
        assert file.tensors[name].blocks.tobytes() == data.tobytes()
    assert file.quant == quant


def test_the_hash_is_the_files(files: dict[str, Path]) -> None:
    import hashlib

    path = files["q8_0"]
    assert read_gguf(path).sha256() == hashlib.sha256(path.read_bytes()).hexdigest()


def test_sizes_and_weights_are_the_checkpoints(
    files: dict[str, Path], tiny_checkpoint: Path
) -> None:
    checkpoint = load_checkpoint(tiny_checkpoint)
    file = read_gguf(files["f32"])
    found, wanted = config_of(file), checkpoint.config
    for size in ("vocab_size", "context_length", "n_layer", "n_head", "n_embd", "tie_embeddings"):
        assert getattr(found, size) == getattr(wanted, size)
    assert np.float32(found.layer_norm_epsilon) == np.float32(wanted.layer_norm_epsilon)
    weights = load_file(checkpoint.model_file)
    read = dequantized_weights(file)
    assert read.keys() == weights.keys()
    assert all(bool((read[name] == weights[name]).all()) for name in weights)


@pytest.mark.parametrize("quant", ["f16", "bf16", "q8_0", "q4_0"])
def test_weights_are_those_gguf_py_dequantizes(quant: str, files: dict[str, Path]) -> None:
    file = read_gguf(files[quant])
    for name, (data, ggml_type) in tensors_of(files[quant]).items():
        expected = gguf.quants.dequantize(data, ggml_type)
        found = file.tensors[name].dequantized()
        np.testing.assert_array_equal(found, expected.reshape(found.shape))


@pytest.mark.parametrize("n_bytes", [0, 1, 3, 4, 7, 8, 23, 24, 25, 40])
def test_a_file_cut_in_its_first_bytes_is_refused(
    n_bytes: int, content: bytes, scratch: Path
) -> None:
    assert read_or_refuse(scratch, content[:n_bytes]) is None


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_a_file_cut_anywhere_is_refused(data: st.DataObject, content: bytes, scratch: Path) -> None:
    n_bytes = data.draw(st.integers(0, len(content) - 32))  # the end may be padding
    assert read_or_refuse(scratch, content[:n_bytes]) is None


@pytest.mark.slow
@given(data=st.data(), bits=st.integers(1, 255))
@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_damaged_header_is_read_or_refused(
    data: st.DataObject, bits: int, content: bytes, scratch: Path
) -> None:
    header = gguf.GGUFReader(write(scratch, content)).data_offset
    damaged = bytearray(content)
    damaged[data.draw(st.integers(0, header - 1))] ^= bits
    read_or_refuse(scratch, bytes(damaged))


@pytest.mark.slow
def test_every_byte_of_the_first_keys_may_be_damaged(content: bytes, scratch: Path) -> None:
    until = content.index(b"tokenizer.ggml.tokens") + 64
    for damaged in flips(content, iter(range(4, until))):
        read_or_refuse(scratch, damaged)


@pytest.mark.slow
@pytest.mark.parametrize(
    "key", ["tokenizer.ggml.token_type", "tokenizer.ggml.merges", "tokenizer.ggml.tokens"]
)
@pytest.mark.parametrize("byte", range(2, 8))
def test_an_array_longer_than_the_file_is_refused_at_once(
    key: str, byte: int, content: bytes, scratch: Path
) -> None:
    length = content.index(key.encode()) + len(key) + 8  # after the key: type, type of items
    damaged = bytearray(content)
    damaged[length + byte] ^= 0x40
    assert read_or_refuse(scratch, bytes(damaged)) is None


def test_counts_larger_than_the_file_are_refused_at_once(content: bytes, scratch: Path) -> None:
    for position in (8, 16):  # the numbers of tensors and of keys
        damaged = bytearray(content)
        struct.pack_into("<Q", damaged, position, 1 << 60)
        assert read_or_refuse(scratch, bytes(damaged)) is None


def test_another_magic_is_named(content: bytes, scratch: Path) -> None:
    for other in (b"GGML", b"\x80\x04", b"PK\x03\x04", b"gguf"):
        with pytest.raises(GGUFError, match="not a GGUF file"):
            read_gguf(write(scratch, other + content[4:]))


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GGUFError, match=r"none\.gguf does not exist"):
        read_gguf(tmp_path / "none.gguf")
    with pytest.raises(GGUFError, match="is a folder"):
        read_gguf(tmp_path)
    for content, words in ((b"", "truncated"), (b"GG", "truncated"), (b"PK", "not a GGUF file")):
        with pytest.raises(GGUFError, match=words):
            read_gguf(write(tmp_path / "other.gguf", content))


def test_another_architecture_is_named(files: dict[str, Path], tmp_path: Path) -> None:
    key = "general.architecture"
    file = read_gguf(with_key(files["f32"], tmp_path / "m.gguf", key, "llama", Kind.STRING))
    with pytest.raises(GGUFError, match="is a llama model"):
        config_of(file)


@pytest.mark.parametrize(
    "key",
    [
        "gpt2.context_length", "gpt2.block_count", "gpt2.embedding_length",
        "gpt2.attention.head_count", "gpt2.attention.layer_norm_epsilon", "tokenizer.ggml.tokens",
    ],
)  # fmt: skip
def test_a_missing_key_or_one_of_another_type_is_named(
    key: str, files: dict[str, Path], tmp_path: Path
) -> None:
    file = read_gguf(without_key(files["f32"], tmp_path / "a.gguf", key))
    with pytest.raises(GGUFError, match=key):
        config_of(file)
    file = read_gguf(with_key(files["f32"], tmp_path / "b.gguf", key, "2", Kind.STRING))
    with pytest.raises(GGUFError, match=key):
        config_of(file)


def test_a_missing_tensor_and_a_wrong_shape_are_named(
    files: dict[str, Path], tmp_path: Path
) -> None:
    def cut(tensors: dict[str, Any]) -> None:
        data, kind = tensors["blk.1.ffn_up.weight"]
        tensors["blk.1.ffn_up.weight"] = (data[:-1], kind)

    name = "blk.0.attn_norm.bias"
    file = read_gguf(with_tensors(files["f32"], tmp_path / "a.gguf", lambda t: t.pop(name)))
    with pytest.raises(GGUFError, match=f"no tensor {name}"):
        dequantized_weights(file)
    file = read_gguf(with_tensors(files["f32"], tmp_path / "b.gguf", cut))
    with pytest.raises(GGUFError, match=r"blk\.1\.ffn_up\.weight has shape \(255, 64\)"):
        dequantized_weights(file)


def test_the_writer_writes_an_empty_array(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    writer = Writer(path, "gpt2")
    writer.add_key_value("some.array", [], Kind.ARRAY)
    writer.add_key_value("other.array", [1, 2], Kind.ARRAY)
    writer.add_tensor("t", np.zeros((1, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert read_gguf(path).metadata == {
        "general.architecture": "gpt2",
        "some.array": [],
        "other.array": [1, 2],
    }


def test_an_unknown_file_type_is_called_unknown(files: dict[str, Path], tmp_path: Path) -> None:
    key = "general.file_type"
    assert read_gguf(without_key(files["f32"], tmp_path / "a.gguf", key)).quant.startswith(
        "unknown"
    )
    path = with_key(files["f32"], tmp_path / "b.gguf", key, 999, Kind.UINT32)
    assert read_gguf(path).quant == "unknown (999)"


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path
