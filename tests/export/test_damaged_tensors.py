"""Damaged tensors: `tensors` fails and names them; `metadata` and `layers` do not fail."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf_surgery import (
    Kind,
    make_checkpoint,
    tensors_of,
    with_flipped_bit,
    with_key,
    with_numbers,
    with_tensor,
    with_tensors,
)
from verify_targets import write, written

from llmkit.checkpoint.checkpoint import Checkpoint
from llmkit.errors import GGUFError, QuantizationError
from llmkit.export.check import Outcome
from llmkit.export.convert import export
from llmkit.export.gguf.reader import read_gguf
from llmkit.export.quantization.config import QuantConfig
from llmkit.export.verify.layers_check import layers_check
from llmkit.export.verify.metadata_check import metadata_check
from llmkit.export.verify.target import open_target
from llmkit.export.verify.tensors_check import tensors_check
from llmkit.export.verify.verify import verify
from llmkit.quant import dequantize, quant_type, quantize

Change = Callable[[Any], Any]
CONTEXT = torch.arange(32)
NOISE = np.random.default_rng(0).normal(size=(256, 64)).astype(np.float32)
QKV, SQUARE, UP = "blk.1.attn_qkv.weight", "blk.0.attn_output.weight", "blk.0.ffn_up.weight"
TOKENS, POSITIONS, NORM = "token_embd.weight", "position_embd.weight", "output_norm.weight"
HEAD, BIAS, NORM_BIAS = "output.weight", "blk.0.ffn_up.bias", "blk.1.attn_norm.bias"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return make_checkpoint(tmp_path_factory.mktemp("damaged") / "c", tie_embeddings=False)


@pytest.fixture(scope="module")
def good(checkpoint: Checkpoint) -> dict[str, Path]:
    folder = checkpoint.folder.parent
    types = ("f32", "f16", "q8_0", "q4_0")
    files = {qtype: write(checkpoint, folder / f"{qtype}.gguf", qtype) for qtype in types}
    text = folder / "text.txt"
    text.write_text("some words to merge, some more words " * 200, encoding="utf-8")
    quant_config = QuantConfig(quants=["q4_0"], method="gptq", calibration=text)
    return {
        **files,
        "gptq": export(checkpoint.folder, folder / "gptq", quant_config, prove=False).files[0].path,
    }


def failed(checkpoint: Checkpoint, path: Path) -> Outcome:
    check = tensors_check(open_target(checkpoint, path))
    assert not check.passed
    return check


# --- one tensor -------------------------------------------------------------------------------


def swapped(first: int, second: int, n: int) -> Change:
    def change(rows: Any) -> Any:
        parts = (slice(first, first + n), slice(second, second + n))
        rows[parts[0]], rows[parts[1]] = rows[parts[1]].copy(), rows[parts[0]].copy()
        return rows

    return change


def replaced(rows: Any) -> Change:
    def change(numbers: Any) -> Any:
        numbers[rows] = NOISE[rows]
        return numbers

    return change


def xor(row: int, byte: int, mask: int) -> Change:
    def change(data: Any) -> Any:
        data[row, byte] ^= mask
        return data

    return change


# Stored rows are changed: tensor, change, first row that differs.
ROWS: dict[str, tuple[str, Change, int]] = {
    "q and k swapped": (QKV, swapped(0, 64, 64), 0),
    "k and v swapped": (QKV, swapped(64, 128, 64), 64),
    "q and v swapped": (QKV, swapped(0, 128, 64), 0),
    "v before q and k": (QKV, lambda d: np.roll(d, 64, 0), 0),
    "two heads swapped": (QKV, swapped(0, 32, 32), 0),
    "q, k and v of each head together, as in GPT-NeoX": (
        QKV,
        lambda d: d.reshape(3, 2, 32, -1).swapaxes(0, 1).reshape(192, -1),
        32,
    ),
    "two rows swapped": (SQUARE, swapped(3, 7, 1), 3),
    "rows reversed": (SQUARE, lambda d: d[::-1], 0),
    "one row repeated": (SQUARE, lambda d: np.concatenate([d[:5], d[4:5], d[6:]]), 5),
    "all zeros": (SQUARE, lambda d: d * 0, 0),
    "tokens shifted by one": (TOKENS, lambda d: np.roll(d, 1, 0), 0),
    "tokens shifted by two": (TOKENS, lambda d: np.roll(d, -2, 0), 0),
    "one token left out": (TOKENS, lambda d: np.concatenate([d[:100], d[101:], d[:1] * 0]), 100),
    "positions shifted by one": (POSITIONS, lambda d: np.roll(d, -1, 0), 0),
    "positions shifted by two": (POSITIONS, lambda d: np.concatenate([d[2:], d[:2] * 0]), 0),
}
# Numbers are changed and rounded again.
NUMBERS: dict[str, tuple[str, Change, int]] = {
    "doubled": (UP, lambda w: 2 * w, 0),
    "negated": (UP, lambda w: -w, 0),
    "some rows scaled": (QKV, lambda w: np.concatenate([w[:64], 9 * w[64:]]), 64),
    "one row": (UP, replaced(17), 17),
    "some adjacent rows": (UP, replaced(slice(3, 9)), 3),
    "some scattered rows": (UP, replaced([9, 11, 40]), 9),
}


@pytest.mark.parametrize("kind", ["f32", "q8_0", "q4_0", "gptq"])
@pytest.mark.parametrize("name", [*ROWS, *NUMBERS])
def test_damaged_rows_are_named(
    name: str, kind: str, checkpoint: Checkpoint, good: dict[str, Path], tmp_path: Path
) -> None:
    tensor, change, row = (ROWS | NUMBERS)[name]
    damage = with_tensor if name in ROWS else with_numbers
    path = damage(good[kind], tmp_path / "m.gguf", tensor, change)
    check = failed(checkpoint, path)
    assert check.value == 1
    assert check.detail.startswith(f"{tensor} (")
    assert f"first row {row};" in check.detail
    if kind == "f32":
        target = open_target(checkpoint, path)
        assert metadata_check(target).passed
        assert layers_check(target, CONTEXT).passed  # llama.cpp computes what the file says


VECTORS: dict[str, tuple[str, Change, str]] = {
    "q and k of a bias": ("blk.1.attn_qkv.bias", swapped(0, 64, 64), "first element 0;"),
    "a bias set to zero": (BIAS, lambda d: d * 0, "256 of 256 elements"),
    "a norm less one": (NORM, lambda d: d - 1, "largest difference 1 "),
    "a norm negated": (NORM, lambda d: -d, "64 of 64 elements"),
    "two elements of a norm": (NORM, swapped(4, 9, 1), "2 of 64 elements differ, first element 4;"),
    "one element": (NORM_BIAS, lambda d: np.where(np.arange(64) == 5, 7, d).astype("f4"),
                    "1 of 64 elements differ, first element 5;"),
    "NaN in a bias": (NORM_BIAS, lambda d: d * np.nan, "nan instead of"),
    "NaN in a matrix": (QKV, lambda d: np.where(np.arange(64) == 5, np.nan, d).astype("f4"),
                        "largest difference inf in row 0: nan instead of"),
}  # fmt: skip


@pytest.mark.parametrize("name", VECTORS)
def test_damaged_elements_are_named(
    name: str, checkpoint: Checkpoint, good: dict[str, Path], tmp_path: Path
) -> None:
    tensor, change, words = VECTORS[name]
    check = failed(checkpoint, with_tensor(good["f32"], tmp_path / "m.gguf", tensor, change))
    assert check.value == 1
    assert check.detail.startswith(f"{tensor} (")
    assert words in check.detail


@pytest.mark.parametrize(
    ("kind", "damage", "row"),
    [
        # q8_0: blocks of 34 bytes, 2 of them the scale; q4_0: of 18, 2 of them the scale
        ("q8_0", xor(17, 35, 4), 17),
        ("q4_0", xor(17, 19, 4), 17),
        ("q4_0", xor(17, 0, 3), 17),
        ("q4_0", xor(9, 0, 16), 9),
        ("q8_0", xor(3, 7, 1), 3),
        ("q8_0", xor(3, 41, 3), 3),
        ("q4_0", xor(3, 25, 16), 3),
        ("q4_0", xor(3, 25, 17), 3),
        ("gptq", xor(9, 1, 16), 9),
    ],
)
def test_a_damaged_block_is_found(
    kind: str, damage: Change, row: int, checkpoint: Checkpoint, good: dict[str, Path],
    tmp_path: Path,
) -> None:  # fmt: skip
    check = failed(checkpoint, with_tensor(good[kind], tmp_path / "m.gguf", UP, damage))
    assert check.detail.startswith(f"{UP} (256, 64): 1 of 256 rows differ, first row {row};")


# Of each type, bytes of the scale, a sub-scale, the minimum and a sub-minimum (ggml-common.h).
PARTS = {"q4_1": [2], "q4_k": [2, 4, 8], "q6_k": [192, 208], "iq4_nl": [0]}


@pytest.mark.parametrize("qtype", PARTS)
def test_one_bit_of_any_part_of_a_block_is_found(
    qtype: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    name = "blk.1.ffn_down.weight"  # rows of 256
    file = write(checkpoint, tmp_path / "good.gguf", qtype)
    for byte in PARTS[qtype]:
        check = failed(checkpoint, with_tensor(file, tmp_path / "m.gguf", name, xor(3, byte, 1)))
        assert check.detail.startswith(f"{name} (64, 256): 1 of 64 rows differ, first row 3;")


@pytest.mark.parametrize("qtype", ["f32", "f16", "q8_0", "q4_0"])
def test_one_bit_of_any_tensor_is_found(
    qtype: str, checkpoint: Checkpoint, good: dict[str, Path], tmp_path: Path
) -> None:
    for bit, name in enumerate((TOKENS, BIAS, POSITIONS, QKV, NORM)):
        check = failed(checkpoint, with_flipped_bit(good[qtype], tmp_path / "m.gguf", name, bit))
        assert check.value == 1
        assert check.detail.startswith(f"{name} (")
        assert ": 1 of " in check.detail


def test_other_blocks_near_the_weights_are_found_by_their_hash(
    checkpoint: Checkpoint, good: dict[str, Path], tmp_path: Path
) -> None:
    for path in (
        with_flipped_bit(good["gptq"], tmp_path / "a.gguf", UP, 3),
        with_numbers(good["gptq"], tmp_path / "b.gguf", UP, lambda w: w * np.float32(1.01)),
    ):
        check = failed(checkpoint, path)
        assert check.value == 1
        assert "hash" in check.detail
        assert check.detail.endswith(f": {UP}")


@pytest.mark.parametrize("qtype", ["f32", "f16", "q8_0", "q4_0"])
def test_a_transposed_matrix_is_named(qtype: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Made as a converter that forgets to transpose does it: before quantization."""

    def transpose(weights: dict[str, torch.Tensor]) -> None:
        for name in ("h.0.attn.c_proj.weight", "h.1.mlp.c_fc.weight"):
            weights[name] = weights[name].T.reshape(weights[name].shape)

    other = make_checkpoint(tmp_path / "other", change=transpose, tie_embeddings=False)
    check = failed(checkpoint, write(other, tmp_path / "m.gguf", qtype))
    assert check.value == 2
    for name in (f"{SQUARE} (64, 64)", "blk.1.ffn_up.weight (256, 64)"):
        assert f"{name} is transposed" in check.detail


def test_a_transposed_matrix_of_chosen_blocks_is_named(
    checkpoint: Checkpoint, good: dict[str, Path], tmp_path: Path
) -> None:
    path = with_numbers(good["gptq"], tmp_path / "m.gguf", SQUARE, lambda w: w.T)
    assert failed(checkpoint, path).detail == f"{SQUARE} (64, 64) is transposed"


@pytest.mark.parametrize("qtype", ["f32", "f16", "q8_0"])
@pytest.mark.parametrize("first", ["q8_0", "q4_0", "bf16"])
def test_a_file_quantized_twice_is_said_to_be(
    first: str, qtype: str, checkpoint: Checkpoint, good: dict[str, Path], tmp_path: Path
) -> None:
    if first == qtype:
        pytest.skip("once")
    original = tensors_of(good["f32"])

    def again(tensors: dict[str, Any]) -> None:
        for name, (data, kind) in tensors.items():
            if data.ndim == 2 and name != POSITIONS:
                stored = quant_type(first)
                once = dequantize(quantize(original[name][0], stored, name), stored)
                twice = quantize(once, quant_type(qtype), name)
                tensors[name] = (twice.view(data.dtype).reshape(data.shape), kind)

    check = failed(checkpoint, with_tensors(good[qtype], tmp_path / "m.gguf", again))
    assert check.value == 10
    assert check.detail.count(f"quantized twice, first to {first}") == 3
    assert "7 more tensors" in check.detail


# --- tensors in wrong places ------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["f32", "f16", "q8_0", "q4_0", "gptq"])
def test_two_swapped_layers_are_named(
    kind: str, checkpoint: Checkpoint, good: dict[str, Path], tmp_path: Path
) -> None:
    def swap(tensors: dict[str, Any]) -> None:
        for name in [name for name in tensors if name.startswith("blk.0.")]:
            other = name.replace("blk.0.", "blk.1.")
            tensors[name], tensors[other] = tensors[other], tensors[name]

    check = failed(checkpoint, with_tensors(good[kind], tmp_path / "m.gguf", swap))
    assert check.value == 24
    assert check.detail.count("are swapped") == 3
    assert "blk.0.attn_norm.weight and blk.1.attn_norm.weight are swapped" in check.detail
    assert "9 more" in check.detail


@pytest.mark.parametrize("kind", ["f32", "q8_0", "gptq"])
def test_tensors_of_another_place_are_named(
    kind: str, checkpoint: Checkpoint, good: dict[str, Path], tmp_path: Path
) -> None:
    def repeat(tensors: dict[str, Any]) -> None:
        for name in [name for name in tensors if name.startswith("blk.0.")]:
            tensors[name.replace("blk.0.", "blk.1.")] = tensors[name]

    check = failed(checkpoint, with_tensors(good[kind], tmp_path / "a.gguf", repeat))
    assert check.value == 12
    assert "blk.1.attn_norm.weight holds blk.0.attn_norm.weight" in check.detail
    a, b = UP, "blk.1.ffn_up.weight"
    path = with_tensors(good[kind], tmp_path / "b.gguf", lambda t: t.update({a: t[b], b: t[a]}))
    assert failed(checkpoint, path).detail == f"{a} and {b} are swapped"
    path = with_tensors(good[kind], tmp_path / "c.gguf", lambda t: t.update({HEAD: t[TOKENS]}))
    assert failed(checkpoint, path).detail == f"{HEAD} holds {TOKENS}"


# --- tensors of other shapes and types, missing, left over ------------------------------------


@pytest.mark.parametrize(
    ("name", "change", "shapes"),
    [
        (POSITIONS, lambda d: d[:-1], "(31, 64) instead of (32, 64)"),
        (POSITIONS, lambda d: d[2:], "(30, 64) instead of (32, 64)"),
        (TOKENS, lambda d: d[:-1], "(274, 64) instead of (275, 64)"),
        (TOKENS, lambda d: np.concatenate([d, d[:5] * 0]), "(280, 64) instead of (275, 64)"),
        (TOKENS, lambda d: np.concatenate([d, d[:5]]), "(280, 64) instead of (275, 64)"),
        (TOKENS, lambda d: np.concatenate([d[:9], d[10:]]), "(274, 64) instead of (275, 64)"),
        ("blk.0.ffn_norm.bias", lambda d: d[:-1], "(63,) instead of (64,)"),
    ],
)
def test_a_wrong_shape_is_named(
    name: str, change: Change, shapes: str, checkpoint: Checkpoint, good: dict[str, Path],
    tmp_path: Path,
) -> None:  # fmt: skip
    check = failed(checkpoint, with_tensor(good["q8_0"], tmp_path / "m.gguf", name, change))
    assert check.value == 1
    assert check.detail == f"{name} has shape {shapes}"


def test_missing_tensors_are_named(
    checkpoint: Checkpoint, good: dict[str, Path], tmp_path: Path
) -> None:
    biases = [name for name in tensors_of(good["f32"]) if name.endswith(".bias")]
    assert len(biases) == 13
    for names in (["blk.1.attn_qkv.bias"], biases, [HEAD]):

        def drop(tensors: dict[str, Any], names: list[str] = names) -> None:
            for name in names:
                del tensors[name]

        check = failed(checkpoint, with_tensors(good["f32"], tmp_path / "m.gguf", drop))
        assert check.value == len(names)
        assert check.detail.startswith(f"missing: {', '.join(names[:3])}")
        assert ("10 more" in check.detail) == (names == biases)


@pytest.mark.parametrize(
    ("source", "target"),
    [(TOKENS, HEAD), (UP, HEAD), (UP, "blk.2.ffn_up.weight"), (SQUARE, "blk.0.attn_q.weight")],
)
def test_left_over_tensors_are_named(
    source: str, target: str, random_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    good = write(random_checkpoint, tmp_path / "good.gguf")  # its head is tied
    path = with_tensors(good, tmp_path / "m.gguf", lambda t: t.update({target: t[source]}))
    check = failed(random_checkpoint, path)
    assert check.value == 1
    assert check.detail == f"not in the checkpoint: {target}"


def test_tensors_of_another_type_are_named(
    checkpoint: Checkpoint, good: dict[str, Path], tmp_path: Path
) -> None:
    path = with_key(good["q4_0"], tmp_path / "a.gguf", "general.file_type", 7, Kind.UINT32)
    check = failed(checkpoint, path)
    assert check.value == 10
    assert check.detail.startswith("q4_0 instead of q8_0: ")
    assert check.detail.endswith("7 more")
    name = "blk.0.ffn_norm.bias"
    other = (np.zeros(64, np.float16), gguf.GGMLQuantizationType.F16)
    path = with_tensors(good["q4_0"], tmp_path / "b.gguf", lambda t: t.update({name: other}))
    assert failed(checkpoint, path).detail == f"f16 instead of f32: {name}"


# --- other files ------------------------------------------------------------------------------


def test_another_checkpoints_file_is_said_to_be(
    checkpoint: Checkpoint, good: dict[str, Path], tmp_path: Path
) -> None:
    generator = torch.Generator().manual_seed(1)

    def retrained(by: float) -> Callable[[dict[str, torch.Tensor]], None]:
        def change(weights: dict[str, torch.Tensor]) -> None:
            for tensor in weights.values():
                tensor += by * torch.randn(tensor.shape, generator=generator)

        return change

    for by in (0.01, 1.0):
        other = make_checkpoint(tmp_path / str(by), change=retrained(by), tie_embeddings=False)
        target = written(other, tmp_path / f"{by}.gguf", "q8_0", of=checkpoint)
        check = tensors_check(target)
        assert check.value == 29
        assert check.detail.startswith("every matrix differs")
        assert f"{TOKENS} (275, 64): 275 of 275 rows differ" in check.detail
        check = failed(other, good["gptq"])  # matrices may be this near to it
        assert POSITIONS in check.detail


def test_one_wrong_tensor_is_not_another_checkpoint(checkpoint: Checkpoint, tmp_path: Path) -> None:
    def shift(weights: dict[str, torch.Tensor]) -> None:
        weights["h.0.mlp.c_fc.weight"] += 0.01 * torch.randn(256, 64)

    other = make_checkpoint(tmp_path / "c", change=shift, tie_embeddings=False)
    check = failed(checkpoint, write(other, tmp_path / "m.gguf", "q8_0"))
    assert check.value == 1
    assert check.detail.startswith(f"{UP} (256, 64): 256 of 256 rows differ")


def test_a_truncated_file_is_refused(
    checkpoint: Checkpoint, good: dict[str, Path], tmp_path: Path
) -> None:
    content = good["q8_0"].read_bytes()
    path = tmp_path / "m.gguf"
    for n in (len(content) - 64, len(content) // 2, 100, 0):
        path.write_bytes(content[:n])
        with pytest.raises(GGUFError, match=str(path)):
            read_gguf(path)
        with pytest.raises(GGUFError):
            verify(checkpoint.folder, path)


def test_a_tensor_of_an_unknown_type_is_named_with_its_file(
    checkpoint: Checkpoint, good: dict[str, Path], tmp_path: Path
) -> None:
    def change(tensors: dict[str, Any]) -> None:
        kind = gguf.GGMLQuantizationType.MXFP4  # 17 bytes hold 32 weights
        tensors[UP] = (np.zeros((256, 64 // 32 * 17), np.uint8), kind)

    path = with_tensors(good["q8_0"], tmp_path / "m.gguf", change)
    with pytest.raises(QuantizationError, match=rf"m\.gguf, tensor {UP}: .*MXFP4"):
        verify(checkpoint.folder, path)
    path = with_key(good["q8_0"], path, "general.file_type", 38, Kind.UINT32)
    with pytest.raises(QuantizationError, match=r"m\.gguf: .*MXFP4"):
        verify(checkpoint.folder, path)
