from __future__ import annotations

import ctypes
import os
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
import pytest
import torch
from gguf_surgery import make_checkpoint, tensors_of

from llmkit.checkpoint.checkpoint import Checkpoint
from llmkit.errors import GGUFError
from llmkit.export.convert import export
from llmkit.export.gguf.reader import read_gguf
from llmkit.export.quantization.config import QuantConfig
from llmkit.export.quantization.imatrix import ImportanceMatrix, collect_importance
from llmkit.export.quantization.llama_quantize import PLAIN, WITH_IMATRIX, write_like, write_peers

FileType = gguf.LlamaFileType


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def wide(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Rows of a whole K-quant block."""
    folder = tmp_path_factory.mktemp("wide") / "wide"
    return make_checkpoint(folder, n_embd=256, n_layer=4, tie_embeddings=request.param)


@pytest.fixture(scope="module")
def wide_f32(wide: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("f32")
    return export(wide.folder, out, QuantConfig(["f32"]), prove=False).files[0].path


@pytest.fixture(scope="module")
def imatrix(wide: Checkpoint) -> ImportanceMatrix:
    tokens = torch.randint(0, wide.config.vocab_size, (4, 32))
    return collect_importance(wide.load_model(), tokens, "random")


def llama_quantize(
    source: Path,
    target: Path,
    file_type: gguf.LlamaFileType,
    *,
    pure: bool = False,
    imatrix: ImportanceMatrix | None = None,
) -> Path:
    """What the program llama-quantize does: one call of its library."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.nthread, params.ftype, params.pure = 1, int(file_type), pure
    if imatrix is not None:
        rows = {name: imatrix.importance(name) for name in imatrix.statistics}
        data = (llama_cpp.llama_model_imatrix_data * (len(rows) + 1))()
        for place, (name, row) in zip(data, rows.items(), strict=False):
            assert row is not None
            place.name, place.size = name.encode(), row.size
            place.data = row.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        params.imatrix = data
    status = llama_cpp.llama_model_quantize(
        os.fsencode(source), os.fsencode(target), ctypes.byref(params)
    )
    assert status == 0
    return target


def emptied(source: Path, target: Path) -> Path:
    """A copy in which every tensor is zeros."""
    target.write_bytes(source.read_bytes())
    reader = gguf.GGUFReader(target, "r+")
    for tensor in reader.tensors:
        tensor.data.view(np.uint8)[:] = 0
    reader.data.flush()
    return target


@pytest.mark.slow
@pytest.mark.parametrize("with_imatrix", [False, True], ids=["plain", "imatrix"])
@pytest.mark.parametrize(
    ("file_type", "pure"),
    [
        (FileType.MOSTLY_Q4_0, True),
        (FileType.MOSTLY_Q4_0, False),
        (FileType.MOSTLY_Q4_K_M, False),
        (FileType.MOSTLY_Q4_K_S, False),
        (FileType.MOSTLY_Q5_K_M, False),
        (FileType.MOSTLY_IQ4_NL, False),
        (FileType.MOSTLY_Q8_0, False),
    ],
)
def test_every_byte_is_llama_quantizes(
    file_type: gguf.LlamaFileType,
    pure: bool,
    with_imatrix: bool,
    wide: Checkpoint,
    wide_f32: Path,
    imatrix: ImportanceMatrix,
    tmp_path: Path,
) -> None:
    used = imatrix if with_imatrix else None
    theirs = llama_quantize(wide_f32, tmp_path / "t.gguf", file_type, pure=pure, imatrix=used)
    like = read_gguf(emptied(theirs, tmp_path / "e.gguf"))
    write_like(like, wide, tmp_path / "ours.gguf", used)
    expected, found = tensors_of(theirs), tensors_of(tmp_path / "ours.gguf")
    assert found.keys() == expected.keys()
    for name, (data, ggml_type) in expected.items():
        assert found[name][1] == ggml_type
        np.testing.assert_array_equal(found[name][0], data, err_msg=name)
    assert (tmp_path / "ours.gguf").read_bytes() == theirs.read_bytes()


def test_importances_change_the_blocks(
    wide: Checkpoint, wide_f32: Path, imatrix: ImportanceMatrix, tmp_path: Path
) -> None:
    theirs = llama_quantize(wide_f32, tmp_path / "t.gguf", FileType.MOSTLY_Q4_K_M)
    write_like(read_gguf(theirs), wide, tmp_path / "ours.gguf", imatrix)
    plain, weighted = tensors_of(theirs), tensors_of(tmp_path / "ours.gguf")
    changed = {name for name in plain if not np.array_equal(plain[name][0], weighted[name][0])}
    assert changed == set(imatrix.statistics)


def test_files_of_the_same_types_share_their_peers(
    wide: Checkpoint, wide_f32: Path, imatrix: ImportanceMatrix, tmp_path: Path
) -> None:
    q4_0 = llama_quantize(wide_f32, tmp_path / "a.gguf", FileType.MOSTLY_Q4_0, pure=True)
    again = emptied(q4_0, tmp_path / "b.gguf")
    q8_0 = llama_quantize(wide_f32, tmp_path / "c.gguf", FileType.MOSTLY_Q8_0)
    files = [read_gguf(path) for path in (q4_0, wide_f32, q8_0, again)]
    peers = write_peers(wide, files, imatrix, tmp_path / "peers")
    assert [(peer.method, [file.path.name for file in peer.like]) for peer in peers] == [
        (PLAIN, ["a.gguf", "b.gguf"]),
        (WITH_IMATRIX, ["a.gguf", "b.gguf"]),
        (PLAIN, ["c.gguf"]),
        (WITH_IMATRIX, ["c.gguf"]),
    ]
    assert peers[0].file.path.read_bytes() == q4_0.read_bytes()


@pytest.mark.slow
def test_a_type_that_needs_importances_has_one_peer(
    wide: Checkpoint, wide_f32: Path, imatrix: ImportanceMatrix, tmp_path: Path
) -> None:
    path = llama_quantize(wide_f32, tmp_path / "t.gguf", FileType.MOSTLY_IQ2_XXS, imatrix=imatrix)
    peers = write_peers(wide, [read_gguf(path)], imatrix, tmp_path / "peers")
    assert [peer.method for peer in peers] == [WITH_IMATRIX]


def test_another_model_is_refused(
    random_checkpoint: Checkpoint, wide_f32: Path, tmp_path: Path
) -> None:
    with pytest.raises(GGUFError, match="different tensors"):
        write_like(read_gguf(wide_f32), random_checkpoint, tmp_path / "o.gguf", None)
