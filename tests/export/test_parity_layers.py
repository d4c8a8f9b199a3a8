"""The `layers` check: good files pass within the bounds, and what is wrong is named."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gguf_surgery import make_checkpoint
from single_operations import GELU, NORM, PRODUCT, attention, bounded_alone
from torch import Tensor
from verify_targets import EVERY_TYPE, VARIANTS, lora_checkpoint, write_apart, written

from llmkit.architectures.gpt2 import attention_by_hand
from llmkit.architectures.graph import Attention, Gelu, Operation
from llmkit.export.llamacpp.eval_callback import EvalCallback
from llmkit.export.verify import layers_check as layers
from llmkit.export.verify.arithmetic import Type
from llmkit.export.verify.file_tensors import FileTensors, Matrix
from llmkit.export.verify.layers_check import layers_check
from llmkit.export.verify.operations import table
from llmkit.export.verify.target import VerifyTarget, open_target

TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0")
KINDS: dict[str, dict[str, Any]] = {
    **{name: VARIANTS[name] for name in ("as it comes", "untied", "no qkv bias", "context 8")},
    "one head, one layer": {"n_head": 1, "n_layer": 1},
    "three heads": {"n_head": 3, "n_embd": 96},
    "four heads": {"n_head": 4},
    "odd width": VARIANTS["odd width"],  # which has no blocks of 32
}
QKV = "blk.0: attn_norm -> qkv: blk.0.attn_qkv.weight"


def token_ids(target: VerifyTarget, seed: int, n: int | None = None) -> Tensor:
    config = target.checkpoint.config
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(config.vocab_size, (n or config.context_length,), generator=generator)


def larger(weights: dict[str, Tensor]) -> None:
    for tensor in weights.values():
        tensor += 0.1 * torch.randn(tensor.shape)


# --- nothing is wrong -------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("qtype", TYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_type_of_every_kind_of_model_is_within_rounding(
    kind: str, qtype: str, tmp_path: Path
) -> None:
    for seed, change in enumerate((lambda weights: None, larger)):
        folder = tmp_path / str(seed)
        made = make_checkpoint(folder, change=change, **KINDS[kind])
        target = written(made, folder / "m.gguf", qtype)
        for n in (1, 5, None):  # 5: llama.cpp multiplies 4 tokens at once, and others by themselves
            check = layers_check(target, token_ids(target, seed, n))
            assert check.passed, check.detail
            assert 0 < check.value <= check.limit == 1
            assert f"{2 + 8 * made.config.n_layer + 1} operations" in check.detail


@pytest.mark.parametrize("qtype", EVERY_TYPE)
def test_every_type_is_within_rounding_at_a_width_of_whole_blocks(
    qtype: str, tmp_path: Path
) -> None:
    made = make_checkpoint(tmp_path / "c", change=larger, n_embd=256, n_layer=1)
    target = written(made, tmp_path / "m.gguf", qtype)
    types = {tensor.ggml_type for tensor in target.file.tensors.values()}
    assert target.quantization.base.ggml_type in types  # of a preset not every matrix has it
    for seed, n in enumerate((1, 5, None)):
        check = layers_check(target, token_ids(target, seed, n))
        assert check.passed, check.detail


@pytest.mark.parametrize("qtype", ["f32", "f16", "q8_0", "q4_0"])
def test_an_adapter_apart_is_within_rounding(qtype: str, tmp_path: Path) -> None:
    tuned = lora_checkpoint(tmp_path / "c")
    target = open_target(tuned, write_apart(tuned, tmp_path, qtype))
    assert target.adapter is not None
    for seed in range(3):
        check = layers_check(target, token_ids(target, seed))
        assert check.passed, check.detail


# --- the reference sees another model than llama.cpp ------------------------------------------


@pytest.fixture(scope="module", params=TYPES)
def target(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> VerifyTarget:
    folder = tmp_path_factory.mktemp("layers")
    made = make_checkpoint(folder / "c", tie_embeddings=False)
    return written(made, folder / "m.gguf", request.param)


def failure(target: VerifyTarget) -> str:
    """What the check says on its first sequence; that it fails on others too."""
    checks = [layers_check(target, token_ids(target, seed)) for seed in range(2)]
    assert not any(check.passed for check in checks)
    assert all(check.value > check.limit for check in checks)
    return checks[0].detail


def with_weights(
    monkeypatch: pytest.MonkeyPatch, name: str, change: Callable[[Tensor], Tensor]
) -> None:
    """One tensor of the file has other values in the reference's view."""
    tensor = FileTensors.tensor

    def changed(self: FileTensors, wanted: str) -> Tensor:
        found = tensor(self, wanted)
        return change(found.clone()) if wanted == name else found

    monkeypatch.setattr(FileTensors, "tensor", changed)


def one_row(row: int) -> Callable[[Tensor], Tensor]:
    def change(weight: Tensor) -> Tensor:
        weight[row] *= 1.01
        return weight

    return change


def exchanged(first: int, second: int) -> Callable[[Tensor], Tensor]:
    def change(weight: Tensor) -> Tensor:
        parts = list(weight.chunk(3))
        parts[first], parts[second] = parts[second], parts[first]
        return torch.cat(parts)

    return change


@pytest.mark.parametrize(
    ("name", "operation"),
    [
        ("blk.0.attn_qkv.weight", QKV),
        (
            "blk.0.attn_output.weight",
            "blk.0: attention -> stream: blk.0.attn_output.weight",
        ),
        ("blk.1.ffn_up.weight", "blk.1: ffn_norm -> ffn_up: blk.1.ffn_up.weight"),
        ("blk.1.ffn_down.weight", "blk.1: gelu -> stream: blk.1.ffn_down.weight"),
        ("output.weight", "output_norm -> logits: output.weight"),
    ],
)
def test_one_row_that_is_one_percent_off_is_named(
    name: str, operation: str, target: VerifyTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_weights(monkeypatch, name, one_row(37))
    said = failure(target)
    assert said.startswith(f"{operation}: ")
    assert "output 37" in said
    assert "first of" not in said  # no other operation differs


@pytest.mark.parametrize(
    ("parts", "named"), [((0, 1), "q and k"), ((1, 2), "k and v"), ((0, 2), "q and v")]
)
def test_exchanged_parts_of_qkv_are_named(
    parts: tuple[int, int], named: str, target: VerifyTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_weights(monkeypatch, "blk.0.attn_qkv.weight", exchanged(*parts))
    said = failure(target)
    assert said.startswith(f"{QKV}: ")
    assert f"only in {named}" in said


def test_a_bias_that_is_left_out_is_named(
    target: VerifyTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_weights(monkeypatch, "blk.1.attn_output.bias", torch.zeros_like)
    assert failure(target).startswith("blk.1: attention -> stream: blk.1.attn_output.weight: ")


def test_another_layers_weights_are_named(
    target: VerifyTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensor = FileTensors.tensor
    monkeypatch.setattr(
        FileTensors, "tensor", lambda self, name: tensor(self, name.replace("blk.1.", "blk.0."))
    )
    said = failure(target)
    assert said.startswith("blk.1: stream -> attn_norm: blk.1.attn_norm: ")
    assert "(first of 6 of 19 operations)" in said


def test_rows_of_other_positions_are_named(
    target: VerifyTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_weights(monkeypatch, "position_embd.weight", lambda rows: rows.roll(1, 0))
    assert failure(target).startswith("token_embd + position_embd: ")


def with_sizes(target: VerifyTarget, **sizes: Any) -> VerifyTarget:
    config = replace(target.checkpoint.config, **sizes)
    return replace(target, checkpoint=replace(target.checkpoint, config=config))


@pytest.mark.parametrize("factor", [2.0, 0.5])
def test_another_epsilon_is_named(factor: float, target: VerifyTarget) -> None:
    eps = target.checkpoint.config.layer_norm_epsilon
    said = failure(with_sizes(target, layer_norm_epsilon=factor * eps))
    assert said.startswith("blk.0: stream -> attn_norm: blk.0.attn_norm: ")


@pytest.mark.parametrize("n_head", [1, 4])
def test_another_number_of_heads_is_named(n_head: int, target: VerifyTarget) -> None:
    said = failure(with_sizes(target, n_head=n_head))
    assert said.startswith("blk.0: qkv -> attention: ")


def with_exact(
    monkeypatch: pytest.MonkeyPatch, operation: type[Operation], exact: Callable[..., Tensor]
) -> None:
    kind = replace(table.KINDS[operation], exact=exact)
    monkeypatch.setitem(table.KINDS, operation, kind)


def test_attention_without_its_scale_is_named(
    target: VerifyTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unscaled(operation: Attention, inputs: list[Tensor], _: Any) -> Tensor:
        parts = inputs[0].chunk(3, dim=-1)
        q, k, v = (p.unflatten(1, (operation.n_head, -1)).transpose(0, 1) for p in parts)
        mixed = attention_by_hand(q[None] * q.shape[-1] ** 0.5, k[None], v[None])[0]
        return mixed.transpose(0, 1).flatten(1)

    with_exact(monkeypatch, Attention, unscaled)
    assert failure(target).startswith("blk.0: qkv -> attention: ")


def test_gelu_with_erf_is_named(target: VerifyTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    with_exact(monkeypatch, Gelu, lambda _operation, inputs, _computation: F.gelu(inputs[0]))
    said = failure(target)
    assert said.startswith("blk.0: ffn_up -> gelu: ")


def test_an_adapter_that_is_stronger_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned = lora_checkpoint(tmp_path / "c")
    target = open_target(tuned, write_apart(tuned, tmp_path, "q8_0"))
    matrix = FileTensors.matrix

    def stronger(self: FileTensors, name: str) -> Matrix:
        found = matrix(self, name)
        lora = found.lora and replace(found.lora, scale=1.01 * found.lora.scale)
        return replace(found, lora=lora)

    monkeypatch.setattr(FileTensors, "matrix", stronger)
    assert failure(target).startswith(f"{QKV}: ")


@pytest.mark.parametrize("name", ["inpL", "kqv_out-0", "l_out-1", "result_output"])
def test_a_graph_without_an_operation_is_no_proof(
    name: str, target: VerifyTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without(wants: Callable[[str], bool], receive: Any) -> EvalCallback:
        return EvalCallback(lambda wanted: wanted != name and wants(wanted), receive)

    monkeypatch.setattr(layers, "EvalCallback", without)
    check = layers_check(target, token_ids(target, 0))
    assert not check.passed
    assert check.detail.startswith(f"not compared: llama.cpp's graph has no {name} (")


# --- the bounds -------------------------------------------------------------------------------


def random_rows(generator: torch.Generator, n_rows: int, n: int) -> Tensor:
    """Rows of many magnitudes, some with a mean far from 0, which a norm cancels."""
    rows = torch.randn(n_rows, n, generator=generator)
    rows *= 10 ** (6 * torch.rand(n_rows, 1, generator=generator) - 3)
    offset = 100 * torch.rand(n_rows, 1, generator=generator) * rows.abs().amax(-1, keepdim=True)
    return rows + offset * (torch.rand(n_rows, 1, generator=generator) < 0.5)


@pytest.mark.parametrize("n", [32, 96, 768])
def test_bounds_hold_for_float32_in_any_order(n: int) -> None:
    generator = torch.Generator().manual_seed(n)
    for _ in range(5):
        x = random_rows(generator, 64, n)
        order = torch.randperm(n, generator=generator)
        weight, bias = torch.randn(2, n, generator=generator)
        normed = F.layer_norm(x[:, order], (n,), weight[order], bias[order], 1e-5)
        norm = bounded_alone(NORM, x[:, order], weight=weight[order], bias=bias[order])
        assert norm.ratio(normed).max() <= 1

        matrix = Matrix("m", torch.randn(128, n, generator=generator), Type.F32)
        product = x[:, order] @ matrix.weight[:, order].T
        assert bounded_alone(PRODUCT, x, weight=matrix).ratio(product).max() <= 1

        qkv = torch.randn(64, 3 * n, generator=generator)
        qkv[:, : 2 * n] *= 3  # sharp and flat attention
        q, k, v = (part.reshape(64, 4, -1).transpose(0, 1) for part in qkv.chunk(3, dim=-1))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        attended = attended.transpose(0, 1).flatten(1)
        assert bounded_alone(attention(4), qkv).ratio(attended).max() <= 1


def test_bounds_are_of_the_size_of_rounding() -> None:
    """So that what is wrong by one part in a hundred is over them in most places."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(16, 768, generator=generator)
    matrix = Matrix("m", torch.randn(64, 768, generator=generator), Type.F32)
    for bounded in (
        bounded_alone(NORM, x, weight=torch.ones(768), bias=torch.zeros(768)),
        bounded_alone(PRODUCT, x, weight=matrix),
        bounded_alone(attention(4), x),
    ):
        slightly_off = (1.01 * bounded.exact).float()
        assert bounded.ratio(slightly_off).median() > 1
        assert bounded.bound.mean() < 2e-3 * bounded.exact.abs().mean()


def test_gelu_is_within_its_bound_at_every_entry_of_ggmls_table() -> None:
    lib = ctypes.CDLL(str(Path(llama_cpp.__file__).parent / "lib" / "libggml-cpu.so"))
    lib.ggml_cpu_init()
    table = (ctypes.c_uint16 * (1 << 16)).in_dll(lib, "ggml_table_gelu_f16")
    found = torch.from_numpy(np.array(table, np.uint16).view(np.float16).astype(np.float32))
    x = torch.from_numpy(np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32))
    looked_up = x.abs() < 10
    ratio = bounded_alone(GELU, x[looked_up][:, None]).ratio(found[looked_up][:, None])
    assert len(ratio) > 30_000
    assert ratio.max() <= 1


def test_what_is_no_number_is_over_every_bound() -> None:
    bounded = bounded_alone(GELU, torch.ones(1, 1))
    assert bounded.ratio(torch.full((1, 1), torch.nan)).item() == torch.inf
