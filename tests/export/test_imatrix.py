from __future__ import annotations

import ctypes
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
import pytest
import torch
from gguf_surgery import keys_of, make_checkpoint, tensors_of, write_file
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from llmkit.architectures.gpt2 import GPT, attention_by_hand
from llmkit.checkpoint.checkpoint import Checkpoint, load_checkpoint
from llmkit.cli.main import main
from llmkit.errors import GGUFError, QuantizationError
from llmkit.export.convert import export
from llmkit.export.quantization.config import QuantConfig
from llmkit.export.quantization.imatrix import (
    ImportanceMatrix,
    ImportanceStatistics,
    collect_importance,
    read_imatrix,
    write_imatrix,
)
from llmkit.export.quantization.requantize import requantize
from llmkit.quant import dequantize, quant_type, quantize


def tokens_for(checkpoint: Checkpoint, n: int = 3, length: int = 20) -> torch.Tensor:
    return torch.randint(0, checkpoint.config.vocab_size, (n, length))


def some(n_matrices: int = 1) -> ImportanceMatrix:
    rng = np.random.default_rng(0)
    names = ("blk.0.attn_qkv.weight", "blk.0.ffn_down.weight")
    return ImportanceMatrix(
        {
            name: ImportanceStatistics(
                rng.random((n_matrices, 64), np.float32), np.full(n_matrices, 40, np.float32)
            )
            for name in names
        },
        ("text.txt", "more.txt"),
        chunk_count=2,
        chunk_size=20,
    )


F32 = gguf.GGMLQuantizationType.F32


def same(a: ImportanceMatrix, b: ImportanceMatrix) -> bool:
    return (
        (a.datasets, a.chunk_count, a.chunk_size) == (b.datasets, b.chunk_count, b.chunk_size)
        and a.statistics.keys() == b.statistics.keys()
        and all(
            np.array_equal(a.statistics[name].in_sum2, b.statistics[name].in_sum2)
            and np.array_equal(a.statistics[name].counts, b.statistics[name].counts)
            for name in a.statistics
        )
    )


# --- collecting -----------------------------------------------------------------------------


def inputs_by_hand(model: GPT, row: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and input (T, in) of every matrix, the forward pass written out."""
    x = model.wte.weight[row] + model.wpe.weight[: len(row)]
    for number, block in enumerate(model.h):
        normed = block.ln_1(x)
        yield f"blk.{number}.attn_qkv.weight", normed
        n_head = model.config.n_head
        qkv = block.attn.c_attn(normed).view(len(row), 3, n_head, -1)  # (T, 3, H, D)
        q, k, v = qkv.permute(1, 2, 0, 3)[:, None]
        mixed = attention_by_hand(q, k, v)[0].transpose(0, 1).flatten(1)
        yield f"blk.{number}.attn_output.weight", mixed
        x = x + block.attn.c_proj(mixed)
        normed = block.ln_2(x)
        yield f"blk.{number}.ffn_up.weight", normed
        inner = torch.nn.functional.gelu(block.mlp.c_fc(normed), approximate="tanh")
        yield f"blk.{number}.ffn_down.weight", inner
        x = x + block.mlp.c_proj(inner)
    head = "token_embd.weight" if model.config.tie_embeddings else "output.weight"
    yield head, model.ln_f(x)


@pytest.mark.parametrize("tied", [True, False])
@torch.inference_mode()
def test_sums_are_those_of_a_forward_pass_written_out(tied: bool, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "c", tie_embeddings=tied)
    model, tokens = checkpoint.load_model(), tokens_for(checkpoint)
    expected: dict[str, torch.Tensor] = {}
    for row in tokens:
        for name, inputs in inputs_by_hand(model, row):
            squares = inputs.double().square().sum(0)
            expected[name] = expected.get(name, torch.zeros_like(squares)) + squares
    found = collect_importance(model, tokens, "text.txt")
    assert found.statistics.keys() == expected.keys()
    for name, sums in expected.items():
        statistics = found.statistics[name]
        np.testing.assert_allclose(statistics.in_sum2[0], sums.numpy(), rtol=1e-4)
        np.testing.assert_array_equal(statistics.counts, [60])
        np.testing.assert_allclose(found.importance(name), sums.numpy() / 60, rtol=1e-4)
    assert (found.datasets, found.chunk_count, found.chunk_size) == (("text.txt",), 3, 20)


def test_collecting_leaves_no_hooks(random_checkpoint: Checkpoint) -> None:
    model = random_checkpoint.load_model()
    collect_importance(model, tokens_for(random_checkpoint, 1), "text.txt")
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_tensor_that_was_not_measured_has_no_importance() -> None:
    assert some().importance("output.weight") is None


# --- files ----------------------------------------------------------------------------------


def test_a_matrix_without_tokens_counts_everywhere_alike() -> None:
    sums = np.array([[2, 4], [0, 0]], np.float32)
    found = ImportanceStatistics(sums, np.array([2, 0], np.float32)).importance
    np.testing.assert_array_equal(found, [1, 2, 1, 1])  # as quantize.cpp fills it up


@given(
    sums=arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 70)),
                elements=st.floats(0, 2.0**100, width=32)),
    count=st.integers(0, 10**6),
    datasets=st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=3),
)  # fmt: skip
def test_what_is_written_is_read(
    sums: np.ndarray, count: int, datasets: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("imatrix") / "i.gguf"
    counts = np.full(len(sums), count, np.float32)
    written = ImportanceMatrix(
        {"blk.0.ffn_up.weight": ImportanceStatistics(sums, counts)}, tuple(datasets), 7, 512
    )
    write_imatrix(path, written)
    assert same(read_imatrix(path), written)


def test_gguf_py_reads_what_llama_imatrix_would_have_written(tmp_path: Path) -> None:
    imatrix = some()
    write_imatrix(tmp_path / "i.gguf", imatrix)
    reader = gguf.GGUFReader(tmp_path / "i.gguf")
    keys = {name: field.contents() for name, field in reader.fields.items()}
    assert {name: value for name, value in keys.items() if not name.startswith("GGUF.")} == {
        "general.type": "imatrix",
        "imatrix.datasets": ["text.txt", "more.txt"],
        "imatrix.chunk_count": 2,
        "imatrix.chunk_size": 20,
    }
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert len(tensors) == 2 * len(imatrix.statistics)
    for name, found in imatrix.statistics.items():
        assert list(tensors[f"{name}.in_sum2"].shape) == [64]
        assert list(tensors[f"{name}.counts"].shape) == [1]
        np.testing.assert_array_equal(tensors[f"{name}.in_sum2"].data, found.in_sum2[0])


class _InitParams(ctypes.Structure):
    _fields_ = [("no_alloc", ctypes.c_bool), ("ctx", ctypes.POINTER(ctypes.c_void_p))]


@pytest.mark.parametrize("n_matrices", [1, 3])
def test_ggmls_own_reader_finds_what_llama_quantize_looks_for(
    n_matrices: int, tmp_path: Path
) -> None:
    imatrix = some(n_matrices)
    path = tmp_path / "i.gguf"
    write_imatrix(path, imatrix)
    folder = Path(llama_cpp.__file__).parent / "lib"
    lib = ctypes.CDLL(str(next(folder.glob("*ggml-base.*"))))
    pointer = ctypes.c_void_p
    for function, result, arguments in (
        ("gguf_init_from_file", pointer, (ctypes.c_char_p, _InitParams)),
        ("gguf_find_key", ctypes.c_int64, (pointer, ctypes.c_char_p)),
        ("gguf_get_val_u32", ctypes.c_uint32, (pointer, ctypes.c_int64)),
        ("gguf_get_arr_n", ctypes.c_size_t, (pointer, ctypes.c_int64)),
        ("gguf_get_arr_str", ctypes.c_char_p, (pointer, ctypes.c_int64, ctypes.c_size_t)),
        ("gguf_get_n_tensors", ctypes.c_int64, (pointer,)),
        ("ggml_get_tensor", pointer, (pointer, ctypes.c_char_p)),
        ("ggml_get_data_f32", ctypes.POINTER(ctypes.c_float), (pointer,)),
        ("ggml_nelements", ctypes.c_int64, (pointer,)),
        ("gguf_free", None, (pointer,)),
        ("ggml_free", None, (pointer,)),
    ):
        found = getattr(lib, function)
        found.restype, found.argtypes = result, arguments
    context = ctypes.c_void_p()
    opened = lib.gguf_init_from_file(bytes(path), _InitParams(False, ctypes.pointer(context)))
    assert opened
    chunks = lib.gguf_find_key(opened, b"imatrix.chunk_size")
    datasets = lib.gguf_find_key(opened, b"imatrix.datasets")
    assert lib.gguf_get_val_u32(opened, chunks) == 20
    assert lib.gguf_get_arr_n(opened, datasets) == 2
    assert lib.gguf_get_arr_str(opened, datasets, 1) == b"more.txt"
    assert lib.gguf_get_n_tensors(opened) == 4
    for name, found in imatrix.statistics.items():
        for suffix, expected in ((".in_sum2", found.in_sum2), (".counts", found.counts)):
            tensor = lib.ggml_get_tensor(context, (name + suffix).encode())
            assert lib.ggml_nelements(tensor) == expected.size
            data = np.ctypeslib.as_array(lib.ggml_get_data_f32(tensor), (expected.size,))
            np.testing.assert_array_equal(data, expected.reshape(-1))
    lib.gguf_free(opened)
    lib.ggml_free(context)


def test_another_file_is_refused(files: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(GGUFError, match="not an importance matrix"):
        read_imatrix(files["f32"])
    old = tmp_path / "imatrix.dat"  # llama.cpp's format before GGUF begins with a number of entries
    old.write_bytes((2).to_bytes(4, "little") + bytes(100))
    with pytest.raises(GGUFError, match="not a GGUF file"):
        read_imatrix(old)


@pytest.mark.parametrize("key", ["imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"])
def test_a_missing_key_is_named(key: str, tmp_path: Path) -> None:
    path = tmp_path / "i.gguf"
    write_imatrix(path, some())
    keys = keys_of(path)
    del keys[key]
    broken = write_file(tmp_path / "b.gguf", keys, tensors_of(path))
    with pytest.raises(GGUFError, match=key):
        read_imatrix(broken)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda tensors: tensors.pop("blk.0.ffn_down.weight.counts"),
            r"blk\.0\.ffn_down\.weight\.counts",
        ),
        (
            lambda tensors: tensors.update(
                {"blk.0.ffn_down.weight.counts": (np.ones(3, np.float32), F32)}
            ),
            r"\b3 counts",
        ),
        (
            lambda tensors: tensors.update(
                {"blk.0.ffn_down.weight.in_sum2": (-np.ones(64, np.float32), F32)}
            ),
            "sums",
        ),
        (
            lambda tensors: tensors.update(
                {"blk.0.ffn_down.weight.counts": (np.full(1, np.nan, np.float32), F32)}
            ),
            "sums",
        ),
        (
            lambda tensors: tensors.update(
                {
                    "blk.0.ffn_down.weight.in_sum2": (
                        np.ones(64, np.float16),
                        gguf.GGMLQuantizationType.F16,
                    )
                }
            ),
            "F16, not F32",
        ),
    ],
)
def test_damage_is_named(change: object, message: str, tmp_path: Path) -> None:
    path = tmp_path / "i.gguf"
    write_imatrix(path, some())
    tensors = tensors_of(path)
    assert callable(change)
    change(tensors)
    broken = write_file(tmp_path / "b.gguf", keys_of(path), tensors)
    with pytest.raises(GGUFError, match=message):
        read_imatrix(broken)


def test_the_command_writes_what_the_training_text_uses(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "imatrix.gguf"
    assert main(["imatrix", str(tiny_checkpoint), "--out", str(out), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    found, source = read_imatrix(out), load_checkpoint(tiny_checkpoint)
    assert found.datasets == (str(source.train_tokens_file),)
    assert said["matrices"] == len(found.statistics) == 9
    assert said["tokens"] == found.chunk_count * found.chunk_size


# --- importances that are none ---------------------------------------------------------------

DOWN = "blk.1.ffn_down.weight"


def zeros(found: ImportanceStatistics) -> ImportanceStatistics:
    return ImportanceStatistics(np.zeros_like(found.in_sum2), found.counts)


def half_zeros(found: ImportanceStatistics) -> ImportanceStatistics:
    sums = found.in_sum2.copy()
    sums[:, : sums.shape[1] // 2] = 0
    return ImportanceStatistics(sums, found.counts)


def underflowing(found: ImportanceStatistics) -> ImportanceStatistics:
    return ImportanceStatistics((found.in_sum2 * 1e-42).astype(np.float32), found.counts)


def never_reached(found: ImportanceStatistics) -> ImportanceStatistics:
    return ImportanceStatistics(np.zeros_like(found.in_sum2), np.zeros_like(found.counts))


CHANGES = {
    "zeros": (zeros, "256 of 256"),
    "half": (half_zeros, "128 of 256"),
    "underflowing": (underflowing, "256 of 256"),
    "never reached": (never_reached, "256 of 256"),
    "missing": (None, "256 of 256"),
}


def changed(
    imatrix: ImportanceMatrix,
    change: Callable[[ImportanceStatistics], ImportanceStatistics] | None,
    names: Sequence[str],
) -> ImportanceMatrix:
    statistics = dict(imatrix.statistics)
    for name in names:
        found = statistics.pop(name)
        statistics |= {name: change(found)} if change else {}
    return replace(imatrix, statistics=statistics)


@pytest.fixture(scope="module")
def own(random_checkpoint: Checkpoint) -> ImportanceMatrix:
    tokens = tokens_for(random_checkpoint)
    return collect_importance(random_checkpoint.load_model(), tokens, "text.txt")


@pytest.mark.parametrize("kind", CHANGES)
@pytest.mark.parametrize("command", ["export", "quantize"])
def test_matrices_without_importance_are_rounded_and_named(
    command: str,
    kind: str,
    own: ImportanceMatrix,
    random_checkpoint: Checkpoint,
    random_f32: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    change, columns = CHANGES[kind]
    matrix, folder = tmp_path / "imatrix.gguf", random_checkpoint.folder
    write_imatrix(matrix, changed(own, change, [DOWN]))
    if command == "export":
        quant_config = QuantConfig(["q8_0", "q4_0"], imatrix=matrix)
        found = export(folder, tmp_path / "out", quant_config, prove=False).files[1].path
    else:
        found = tmp_path / "out.gguf"
        requantize(random_f32, found, "q4_0", imatrix=matrix)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if DOWN in line]
    assert f"{DOWN} ({columns} columns)" in line
    assert "attn_qkv" not in line
    weights = tensors_of(random_f32)[DOWN][0]
    plain = quantize(weights, quant_type("q4_0"), DOWN)
    there = tensors_of(found)[DOWN][0].view(np.uint8)
    if kind == "half":
        restored = dequantize(there, quant_type("q4_0"))
        cost = np.square(dequantize(plain, quant_type("q4_0")) - weights).mean()
        assert np.square(restored - weights).mean() < 1.1 * cost
    else:
        np.testing.assert_array_equal(there, plain)


@pytest.mark.parametrize("kind", ["zeros", "underflowing", "never reached", "missing"])
def test_without_any_importance_the_file_is_refused(
    kind: str, own: ImportanceMatrix, random_f32: Path, tmp_path: Path
) -> None:
    change, _ = CHANGES[kind]
    matrix, out = tmp_path / "imatrix.gguf", tmp_path / "out.gguf"
    write_imatrix(matrix, changed(own, change, list(own.statistics)))
    with pytest.raises(GGUFError, match="importances"):
        requantize(random_f32, out, "q4_0", imatrix=matrix)
    assert not out.exists()


def test_an_importance_matrix_of_another_model_is_refused(
    own: ImportanceMatrix, random_f32: Path, tmp_path: Path
) -> None:
    matrix = tmp_path / "imatrix.gguf"
    names = {f"model.{name}": found for name, found in own.statistics.items()}
    write_imatrix(matrix, replace(own, statistics=names))
    with pytest.raises(QuantizationError, match=r"model\.blk"):
        requantize(random_f32, tmp_path / "out.gguf", "q4_0", imatrix=matrix)


@pytest.fixture(scope="module")
def random_f32(random_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("f32")
    return export(random_checkpoint.folder, out, QuantConfig(["f32"]), prove=False).files[0].path
