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
    with_tensors,
    without_key,
)
from numpy.typing import NDArray
from parity_subjects import EVERY_TYPE, VARIANTS, lora_checkpoint, write, write_apart, written

from llmkit.checkpoint import Checkpoint
from llmkit.errors import GGUFError
from llmkit.export.gguf_file import read_gguf
from llmkit.export.parity.check import Check
from llmkit.export.parity.subject import open_subject
from llmkit.export.parity.tensors import tensors_check
from llmkit.quant import dequantize, quant_type, quantize

Change = Callable[[NDArray[Any]], NDArray[Any]]


@pytest.fixture(scope="module")
def good(
    random_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("good")
    types = ("f32", "f16", "q8_0", "q4_0")
    return {t: write(random_checkpoint, folder / f"{t}.gguf", t) for t in types}


def check(checkpoint: Checkpoint, path: Path) -> Check:
    return tensors_check(open_subject(checkpoint, path))


def with_tensor(source: Path, target: Path, name: str, change: Change) -> Path:
    """A copy in which the stored bytes or numbers of one tensor are changed."""

    def replace(tensors: dict[str, Any]) -> None:
        data, kind = tensors[name]
        tensors[name] = (np.ascontiguousarray(change(data.copy())), kind)

    return with_tensors(source, target, replace)


def with_weights(source: Path, target: Path, name: str, qtype: str, change: Change) -> Path:
    """A copy in which the numbers of one tensor are changed and quantized."""

    def replace(data: NDArray[Any]) -> NDArray[Any]:
        kind = quant_type(qtype)
        blocks = data.view(np.uint8).reshape(len(data), -1)
        packed = quantize(np.ascontiguousarray(change(dequantize(blocks, kind))), kind, name)
        return packed.view(data.dtype)

    return with_tensor(source, target, name, replace)


# --- nothing is wrong -----------------------------------------------------------------------


@pytest.mark.parametrize("qtype", ["f32", "f16", "q4_0"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_good_file_of_every_kind_of_model_passes(
    variant: str, qtype: str, tmp_path: Path
) -> None:
    checkpoint = make_checkpoint(tmp_path / "c", **VARIANTS[variant])
    found = tensors_check(written(checkpoint, tmp_path / "m.gguf", qtype))
    assert (found.name, found.passed, found.value, found.limit) == ("tensors", True, 0, 0)
    assert found.detail.endswith("equal bit for bit")


@pytest.mark.parametrize("qtype", EVERY_TYPE)
def test_a_good_file_of_every_type_passes(
    qtype: str, random_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    found = tensors_check(written(random_checkpoint, tmp_path / "m.gguf", qtype))
    assert found.passed
    assert found.detail.startswith("28 tensors ")


@pytest.mark.parametrize("base_quant", [None, "q4_0"])
def test_an_adapter_passes_apart_and_merged(base_quant: str | None, tmp_path: Path) -> None:
    checkpoint = lora_checkpoint(tmp_path / "c", base_quant=base_quant)
    apart = check(checkpoint, write_apart(checkpoint, tmp_path, base_quant or "f32"))
    assert apart.passed
    assert apart.detail.startswith("44 tensors ")
    assert tensors_check(written(checkpoint, tmp_path / "m.gguf", "q8_0")).passed


# --- one tensor is wrong --------------------------------------------------------------------


def _exchange_parts(first: int, second: int, n: int) -> Change:
    def change(data: NDArray[Any]) -> NDArray[Any]:
        parts = (slice(first, first + n), slice(second, second + n))
        data[parts[0]], data[parts[1]] = data[parts[1]].copy(), data[parts[0]].copy()
        return data

    return change


QKV, SQUARE = "blk.1.attn_qkv.weight", "blk.0.attn_output.weight"
TOKENS = "token_embd.weight"


@pytest.mark.parametrize("qtype", ["f32", "q8_0", "q4_0"])
@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        (QKV, _exchange_parts(0, 64, 64), "rows 0..63 and 64..127 are exchanged (q and k"),
        (QKV, _exchange_parts(64, 128, 64), "rows 64..127 and 128..191 are exchanged (k and v"),
        (QKV, _exchange_parts(0, 128, 64), "rows 0..63 and 128..191 are exchanged (q and v"),
        (QKV, lambda d: np.roll(d, 64, 0), "in another order: 0..63 hold 128..191, 64..191 hold 0"),
        (QKV, _exchange_parts(0, 32, 32), "rows 0..31 and 32..63 are exchanged"),
        (
            QKV,  # every head's q, k and v together, as GPT-NeoX has them
            lambda d: d.reshape(3, 2, 32, -1).swapaxes(0, 1).reshape(192, -1),
            "in another order: 32..63 hold 64..95, 64..95 hold 128..159, 96..127 hold 32..63, ...",
        ),
        (SQUARE, _exchange_parts(3, 7, 1), "rows 3 and 7 are exchanged"),
        (SQUARE, lambda d: d[::-1], "in another order: 0 hold 63, 1 hold 62, 2 hold 61, ..."),
        (SQUARE, lambda d: np.concatenate([d[:5], d[4:5], d[6:]]), "1 places: row 5 holds row 4"),
        (TOKENS, lambda d: np.roll(d, 1, 0), "rows are shifted by 1: row 1 holds row 0"),
        (TOKENS, lambda d: np.roll(d, -2, 0), "rows are shifted by 2: row 0 holds row 2"),
        (
            TOKENS,
            lambda d: np.concatenate([d[:100], d[101:], d[:1] * 0]),
            "rows are shifted by 1: row 100 holds row 101, and so on",
        ),
        (SQUARE, lambda d: d * 0, "all zeros"),
    ],
)  # fmt: skip
def test_rows_in_wrong_places_are_said_to_be(
    name: str,
    change: Change,
    expected: str,
    qtype: str,
    random_checkpoint: Checkpoint,
    good: dict[str, Path],
    tmp_path: Path,
) -> None:
    found = check(random_checkpoint, with_tensor(good[qtype], tmp_path / "m.gguf", name, change))
    assert not found.passed
    assert found.value == 1
    assert found.detail.startswith(f"{name}: ")
    assert expected in found.detail


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        ("position_embd.weight", lambda d: np.roll(d, -1, 0), "shifted by 1: row 0 holds row 1"),
        (
            "position_embd.weight",
            lambda d: np.concatenate([d[2:], d[:2] * 0]),
            "shifted by 2: row 0 holds row 2",
        ),
        ("blk.1.attn_qkv.bias", _exchange_parts(0, 64, 64), "elements 0..63 and 64..127 are exch"),
        ("blk.0.ffn_up.bias", lambda d: d * 0, "all zeros: the bias was dropped"),
        ("output_norm.weight", lambda d: d - 1, "1 less than the checkpoint's"),
        ("output_norm.weight", lambda d: -d, "-1 x the checkpoint's"),
        ("output_norm.weight", _exchange_parts(4, 9, 1), "elements 4 and 9 are exchanged"),
        ("blk.1.attn_norm.bias", lambda d: np.where(np.arange(64) == 5, 7, d).astype("f4"),
         "element 5 alone differs, one number differs: 7 instead of"),
        ("blk.1.attn_norm.bias", lambda d: d * np.nan, "numbers that are not finite"),
    ],
)  # fmt: skip
def test_faults_of_positions_norms_and_biases_are_named(
    name: str,
    change: Change,
    expected: str,
    random_checkpoint: Checkpoint,
    good: dict[str, Path],
    tmp_path: Path,
) -> None:
    path = with_tensor(good["q4_0"], tmp_path / "m.gguf", name, change)
    found = check(random_checkpoint, path)
    assert found.value == 1
    assert found.detail.startswith(f"{name}: ")
    assert expected in found.detail


@pytest.mark.parametrize("qtype", ["f32", "f16", "q8_0", "q4_0"])
def test_a_transposed_matrix_is_named(
    qtype: str, random_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """Made as a converter that forgets to transpose does it: before quantization."""

    def transpose(weights: dict[str, torch.Tensor]) -> None:
        for name in ("h.0.attn.c_proj.weight", "h.1.mlp.c_fc.weight"):
            weights[name] = weights[name].T.reshape(weights[name].shape)

    other = make_checkpoint(tmp_path / "other", change=transpose)
    found = check(random_checkpoint, write(other, tmp_path / "m.gguf", qtype))
    assert found.value == 2
    assert found.detail == "blk.0.attn_output.weight, blk.1.ffn_up.weight: transposed"


@pytest.mark.parametrize("qtype", ["f32", "f16", "q8_0", "q4_0"])
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda w: w * 2, "2 x the checkpoint's"),
        (lambda w: -w, "x the checkpoint's"),
        (lambda w: torch.cat([w[:64] * 9, w[64:]]), "rows 0..63 differ, 9 x the checkpoint's"),
    ],
)  # fmt: skip
def test_a_factor_is_found(
    change: Callable[[torch.Tensor], torch.Tensor],
    expected: str,
    qtype: str,
    random_checkpoint: Checkpoint,
    tmp_path: Path,
) -> None:
    def scale(weights: dict[str, torch.Tensor]) -> None:
        weights["h.1.attn.c_attn.weight"] = change(weights["h.1.attn.c_attn.weight"])

    other = make_checkpoint(tmp_path / "other", change=scale)
    found = check(random_checkpoint, write(other, tmp_path / "m.gguf", qtype))
    assert found.value == 1
    assert "blk.1.attn_qkv.weight: " in found.detail
    assert expected in found.detail


@pytest.mark.parametrize("qtype", ["f32", "f16", "q8_0"])
@pytest.mark.parametrize("way", ["q8_0", "q4_0", "bf16"])
def test_a_file_quantized_twice_is_said_to_be(
    way: str, qtype: str, random_checkpoint: Checkpoint, good: dict[str, Path], tmp_path: Path
) -> None:
    if way == qtype:
        pytest.skip("once")
    original = tensors_of(good["f32"])

    def again(tensors: dict[str, Any]) -> None:
        for name, (data, kind) in tensors.items():
            if data.ndim == 2 and name != "position_embd.weight":
                first, second = quant_type(way), quant_type(qtype)
                once = dequantize(quantize(original[name][0], first, name), first)
                twice = quantize(once, second, name)
                tensors[name] = (twice.view(data.dtype).reshape(data.shape), kind)

    found = check(random_checkpoint, with_tensors(good[qtype], tmp_path / "m.gguf", again))
    assert found.value == 9
    assert f"quantized twice, by way of {way}" in found.detail
    assert "and 6 more tensors differ" in found.detail


# --- a row, a block, a bit ------------------------------------------------------------------


def _at(row: int, byte: int, change: Callable[[int], int]) -> Change:
    def changed(data: NDArray[Any]) -> NDArray[Any]:
        data[row, byte] = change(int(data[row, byte]))
        return data

    return changed


def test_one_row_is_named(
    random_checkpoint: Checkpoint, good: dict[str, Path], tmp_path: Path
) -> None:
    noise = np.random.default_rng(0).normal(size=64)

    def change(weights: NDArray[Any]) -> NDArray[Any]:
        weights[17] = noise
        return weights

    for qtype in ("f32", "f16", "q8_0", "q4_0"):
        path = with_weights(good[qtype], tmp_path / "m.gguf", "blk.0.ffn_up.weight", qtype, change)
        found = check(random_checkpoint, path)
        expected = "blk.0.ffn_up.weight: row 17 alone differs, other numbers (relative RMS error "
        assert found.detail.startswith(expected)


def test_some_rows_are_named(
    random_checkpoint: Checkpoint, good: dict[str, Path], tmp_path: Path
) -> None:
    noise = np.random.default_rng(0).normal(size=(256, 64))

    def change(weights: NDArray[Any], rows: Any) -> NDArray[Any]:
        weights[rows] = noise[rows]
        return weights

    name = "blk.0.ffn_up.weight"
    for rows, expected in (
        (slice(3, 9), "rows 3..8 differ, other numbers"),
        ([9, 11, 40], "3 of 256 rows differ, first row 9, other numbers"),
    ):
        path = with_weights(
            good["q8_0"], tmp_path / "m.gguf", name, "q8_0", lambda w, r=rows: change(w, r)
        )
        assert f"{name}: {expected}" in check(random_checkpoint, path).detail


@pytest.mark.parametrize(
    ("qtype", "change", "expected"),
    [
        # q8_0: 34 bytes a block, two of scale; q4_0: 18, two of scale; byte i: weights i and i+16
        ("q8_0", _at(17, 34 + 1, lambda b: b ^ 4), "block 1: the scale differs (one bit), "),
        ("q4_0", _at(17, 18 + 1, lambda b: b ^ 4), "block 1: the scale differs (one bit), "),
        ("q4_0", _at(17, 0, lambda b: b ^ 3), "block 0: the scale differs, 1.00"),
        ("q8_0", _at(3, 2 + 5, lambda b: b ^ 1), "block 0: one bit differs, at column 5: "),
        ("q8_0", _at(3, 36 + 5, lambda b: b ^ 3), "block 1: one quant differs, at column 37: "),
        ("q4_0", _at(3, 20 + 5, lambda b: b ^ 0x10), "block 1: one bit differs, at column 53: "),
        ("q4_0", _at(3, 20 + 5, lambda b: b ^ 0x11), "block 1: 2 quants differ"),
    ],
)  # fmt: skip
def test_one_block_is_named_and_what_of_it_differs(
    qtype: str,
    change: Change,
    expected: str,
    random_checkpoint: Checkpoint,
    good: dict[str, Path],
    tmp_path: Path,
) -> None:
    name = "blk.1.ffn_up.weight"
    path = with_tensor(good[qtype], tmp_path / "m.gguf", name, change)
    found = check(random_checkpoint, path)
    assert found.value == 1
    row = 17 if "scale" in expected else 3
    assert found.detail.startswith(f"{name}: row {row} alone differs, {expected}")


@pytest.mark.parametrize(
    ("qtype", "byte", "expected"),
    [
        # where they lie: block_q4_1, block_q4_K and block_q6_K of ggml-common.h
        ("q4_1", 2, "the minimum differs (one bit)"),
        ("q4_k", 2, "the minimum differs (one bit)"),
        ("q4_k", 4, "a sub-scale differs (one bit)"),
        ("q4_k", 8, "a sub-minimum differs (one bit)"),
        ("q6_k", 192, "a sub-scale differs (one bit), "),
        ("q6_k", 208, "the scale differs (one bit), 1.00"),
        ("iq4_nl", 0, "the scale differs (one bit), 1.00"),
    ],
)
def test_the_number_of_a_block_that_differs_is_named(
    qtype: str, byte: int, expected: str, random_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    name = "blk.1.ffn_down.weight"  # rows of 256
    good = write(random_checkpoint, tmp_path / "good.gguf", qtype)
    path = with_tensor(good, tmp_path / "m.gguf", name, _at(3, byte, lambda b: b ^ 1))
    found = check(random_checkpoint, path)
    assert found.detail.startswith(f"{name}: row 3 alone differs, block 0: {expected}")


@pytest.mark.parametrize("qtype", ["f32", "f16", "q8_0", "q4_0"])
@pytest.mark.parametrize("bit", range(8))
def test_one_bit_of_any_tensor_is_found(
    bit: int, qtype: str, random_checkpoint: Checkpoint, good: dict[str, Path], tmp_path: Path
) -> None:
    names = ("token_embd.weight", "blk.1.ffn_up.bias", "position_embd.weight", QKV)
    for name in names[bit % 2 :: 2]:
        path = with_flipped_bit(good[qtype], tmp_path / "m.gguf", name, bit)
        found = check(random_checkpoint, path)
        assert found.value == 1
        assert found.detail.startswith(f"{name}: ")
        assert "one bit" in found.detail


# --- tensors in wrong places ----------------------------------------------------------------


def _exchange(*pairs: tuple[str, str]) -> Callable[[dict[str, Any]], None]:
    def change(tensors: dict[str, Any]) -> None:
        for a, b in pairs:
            tensors[a], tensors[b] = tensors[b], tensors[a]

    return change


def test_two_exchanged_layers_are_said_to_be(
    random_checkpoint: Checkpoint, good: dict[str, Path], tmp_path: Path
) -> None:
    def change(tensors: dict[str, Any]) -> None:
        names = [name for name in tensors if name.startswith("blk.0.")]
        _exchange(*((name, name.replace("blk.0.", "blk.1.")) for name in names))(tensors)

    for qtype, path in good.items():
        found = check(random_checkpoint, with_tensors(path, tmp_path / "m.gguf", change))
        assert found.value == 24, qtype
        assert found.detail == "layers 0 and 1 are exchanged: blk.0 holds h.1, blk.1 holds h.0"


def test_a_layer_that_is_there_twice_is_named(
    random_checkpoint: Checkpoint, good: dict[str, Path], tmp_path: Path
) -> None:
    def change(tensors: dict[str, Any]) -> None:
        for name in [name for name in tensors if name.startswith("blk.0.")]:
            tensors[name.replace("blk.0.", "blk.1.")] = tensors[name]

    found = check(random_checkpoint, with_tensors(good["q8_0"], tmp_path / "m.gguf", change))
    assert found.value == 12
    assert found.detail == "blk.1 holds layer h.0"


def test_exchanged_tensors_are_named_with_what_they_hold(
    random_checkpoint: Checkpoint, good: dict[str, Path], tmp_path: Path
) -> None:
    a, b = "blk.0.ffn_norm.weight", "blk.1.ffn_norm.weight"
    path = with_tensors(good["q4_0"], tmp_path / "m.gguf", _exchange((a, b)))
    found = check(random_checkpoint, path)
    assert found.value == 2
    assert found.detail == f"{a} and {b} are exchanged: {a} holds h.1.ln_2.weight"

    def copy(tensors: dict[str, Any]) -> None:
        tensors[a] = tensors[b]

    path = with_tensors(good["q4_0"], tmp_path / "m.gguf", copy)
    assert check(random_checkpoint, path).detail == f"{a} holds h.1.ln_2.weight"


# --- tensors of other shapes and types, missing, left over ----------------------------------


def _drop(*names: str) -> Callable[[dict[str, Any]], None]:
    def change(tensors: dict[str, Any]) -> None:
        for name in names:
            del tensors[name]

    return change


def test_dropped_biases_are_said_to_be(
    random_checkpoint: Checkpoint, good: dict[str, Path], tmp_path: Path
) -> None:
    path = with_tensors(good["f32"], tmp_path / "a.gguf", _drop("blk.1.attn_qkv.bias"))
    detail = check(random_checkpoint, path).detail
    assert detail.startswith("blk.1.attn_qkv.bias is missing: biases were dropped")
    biases = [name for name in tensors_of(good["f32"]) if name.endswith(".bias")]
    path = with_tensors(good["f32"], tmp_path / "b.gguf", _drop(*biases))
    found = check(random_checkpoint, path)
    assert found.value == len(biases) == 13
    assert "and 10 more are missing: biases were dropped" in found.detail


def test_a_head_that_is_tied_and_should_not_be_is_named(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "c", tie_embeddings=False)
    good = write(checkpoint, tmp_path / "m.gguf", "q8_0")
    found = check(checkpoint, with_tensors(good, tmp_path / "n.gguf", _drop("output.weight")))
    assert found.value == 1
    assert found.detail.startswith("output.weight is missing: the head is tied to token_embd")

    def tie(tensors: dict[str, Any]) -> None:
        tensors["output.weight"] = tensors["token_embd.weight"]

    found = check(checkpoint, with_tensors(good, tmp_path / "o.gguf", tie))
    assert found.detail == "output.weight holds wte.weight"


def test_left_over_tensors_are_named(
    random_checkpoint: Checkpoint, good: dict[str, Path], tmp_path: Path
) -> None:
    def add(source: str, target: str) -> Callable[[dict[str, Any]], None]:
        return lambda tensors: tensors.update({target: tensors[source]})

    for source, target, expected in (
        ("token_embd.weight", "output.weight", "output.weight is left over, a copy of token_embd"),
        ("blk.0.ffn_up.weight", "output.weight", "output.weight is left over, another head"),
        ("blk.0.ffn_up.weight", "blk.2.ffn_up.weight", "blk.2.ffn_up.weight is left over"),
    ):
        path = with_tensors(good["f32"], tmp_path / "m.gguf", add(source, target))
        found = check(random_checkpoint, path)
        assert found.value == 1
        assert found.detail.startswith(expected)


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        ("position_embd.weight", lambda d: d[:-1], "has 31 rows instead of 32: the last 1 missing"),
        ("position_embd.weight", lambda d: d[2:], "has 30 rows instead of 32: the first 2 missing"),
        ("token_embd.weight", lambda d: d[:-1], "has 274 rows instead of 275: the last 1 missing"),
        ("token_embd.weight", lambda d: np.concatenate([d, d[:5] * 0]),
         "has 280 rows instead of 275: the first 275 are right, the last 5 are zeros"),
        ("token_embd.weight", lambda d: np.concatenate([d, d[:5]]),
         "has 280 rows instead of 275: the first 275 are right, the last 5 are padding"),
        ("token_embd.weight", lambda d: np.concatenate([d[:5] * 0, d]),
         "has 280 rows instead of 275: more before the first"),
        ("token_embd.weight", lambda d: np.concatenate([d[:9], d[10:]]),
         "has 274 rows instead of 275, and differs from row 9 on"),
        ("blk.0.ffn_norm.bias", lambda d: d[:-1], "has shape (63,) instead of (64,)"),
    ],
)  # fmt: skip
def test_rows_too_few_and_too_many_are_counted(
    name: str,
    change: Change,
    expected: str,
    random_checkpoint: Checkpoint,
    good: dict[str, Path],
    tmp_path: Path,
) -> None:
    path = with_tensor(good["q8_0"], tmp_path / "m.gguf", name, change)
    found = check(random_checkpoint, path)
    assert found.value == 1
    assert found.detail == f"{name} {expected}"


def test_tensors_of_another_type_are_named(
    random_checkpoint: Checkpoint, good: dict[str, Path], tmp_path: Path
) -> None:
    path = with_key(good["q4_0"], tmp_path / "a.gguf", "general.file_type", 7, Kind.UINT32)
    found = check(random_checkpoint, path)
    assert found.value == 9
    assert "and 6 more are q4_0 instead of q8_0 (the first's numbers are the" in found.detail
    name = "blk.0.ffn_norm.bias"
    zeros = np.zeros(64, np.float16)

    def change(tensors: dict[str, Any]) -> None:
        tensors[name] = (zeros, gguf.GGMLQuantizationType.F16)

    found = check(random_checkpoint, with_tensors(good["q4_0"], tmp_path / "b.gguf", change))
    assert found.detail == f"{name} is f16 instead of f32"


# --- other files ----------------------------------------------------------------------------


def test_another_checkpoints_file_is_said_to_be(
    random_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    generator = torch.Generator().manual_seed(1)

    def spread(by: float) -> Callable[[dict[str, torch.Tensor]], None]:
        def change(weights: dict[str, torch.Tensor]) -> None:
            for name, tensor in weights.items():
                weights[name] = tensor + by * torch.randn(tensor.shape, generator=generator)

        return change

    for by, expected in ((0.01, "error 0.1"), (1.0, "error 1")):
        other = make_checkpoint(tmp_path / str(by), change=spread(by))
        found = check(random_checkpoint, write(other, tmp_path / f"{by}.gguf", "q8_0"))
        assert found.value == 28
        assert found.detail.startswith("another checkpoint's file: every matrix differs (relative")
        assert expected in found.detail
        assert len(found.detail) < 200


def test_one_wrong_tensor_is_not_another_checkpoint(
    random_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    def shift(weights: dict[str, torch.Tensor]) -> None:
        weights["h.0.mlp.c_fc.weight"] += 0.01 * torch.randn(256, 64)

    other = make_checkpoint(tmp_path / "c", change=shift)
    found = check(random_checkpoint, write(other, tmp_path / "m.gguf", "q8_0"))
    assert found.value == 1
    assert found.detail.startswith("blk.0.ffn_up.weight: other numbers (relative RMS error 0.")


def test_a_truncated_file_is_refused_before(good: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(good["q8_0"].read_bytes()[:-100])
    with pytest.raises(GGUFError, match="truncated or damaged"):
        read_gguf(path)


# --- adapters -------------------------------------------------------------------------------


def test_an_adapter_that_is_not_merged_is_named(tmp_path: Path) -> None:
    checkpoint = lora_checkpoint(tmp_path / "c")
    path = write_apart(checkpoint, tmp_path, "q8_0")
    alone = without_key(path, tmp_path / "alone.gguf", "llmkit.adapter")
    found = check(checkpoint, alone)
    assert found.value == 8
    assert found.detail.startswith("the adapter is missing")


def test_an_adapter_that_would_be_added_twice_is_named(tmp_path: Path) -> None:
    checkpoint = lora_checkpoint(tmp_path / "c")
    write_apart(checkpoint, tmp_path)
    merged = write(checkpoint, tmp_path / "merged.gguf")
    value = "adapter.gguf"
    twice = with_key(merged, tmp_path / "twice.gguf", "llmkit.adapter", value, Kind.STRING)
    found = check(checkpoint, twice)
    assert found.value == 8
    assert found.detail.startswith("the adapter is applied twice")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda d: d * 3, "3 x the checkpoint's"),
        (_exchange_parts(0, 1, 1), "rows 0 and 1 are exchanged"),
        (lambda d: d * 0, "all zeros"),
        (lambda d: d[:2], "has 2 rows instead of 4: the last 2 missing"),
    ],
)
def test_wrong_adapter_matrices_are_named(change: Change, expected: str, tmp_path: Path) -> None:
    checkpoint = lora_checkpoint(tmp_path / "c")
    path = write_apart(checkpoint, tmp_path)
    good = (tmp_path / "adapter.gguf").rename(tmp_path / "good.gguf")
    name = "blk.1.ffn_up.weight.lora_a"
    with_tensor(good, tmp_path / "adapter.gguf", name, change)
    found = check(checkpoint, path)
    assert found.value == 1
    assert found.detail.startswith(f"adapter.gguf: {name}")
    assert expected in found.detail


def test_missing_and_left_over_adapter_matrices_are_named(tmp_path: Path) -> None:
    checkpoint = lora_checkpoint(tmp_path / "c")
    path = write_apart(checkpoint, tmp_path)
    good = (tmp_path / "adapter.gguf").rename(tmp_path / "good.gguf")
    name = "blk.1.ffn_up.weight.lora_a"

    def rename(tensors: dict[str, Any]) -> None:
        tensors[name.replace("blk.1", "blk.7")] = tensors.pop(name)

    with_tensors(good, tmp_path / "adapter.gguf", rename)
    found = check(checkpoint, path)
    assert found.value == 2
    assert f"{name} is missing" in found.detail
    assert "blk.7.ffn_up.weight.lora_a is left over" in found.detail
