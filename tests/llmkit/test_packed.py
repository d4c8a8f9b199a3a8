from __future__ import annotations

import re
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import gguf
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmkit.architectures.cache import KVCache
from llmkit.architectures.gpt2 import GPT, GPTConfig
from llmkit.errors import CheckpointError, ConfigError, QuantizationError
from llmkit.lora import LoRAConfig, add_lora, lora_layers, n_trainable
from llmkit.quant import QuantType, quant_names, quant_type
from llmkit.quantization.packed import (
    PackedEmbedding,
    PackedLinear,
    build_packed,
    n_weights,
)

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "context_length": 24,
    "n_layer": 2,
    "n_head": 4,
    "n_embd": 64,
}
TYPES = ["q8_0", "q4_0", "q5_1", "f16"]
PRECISIONS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "f32": nullcontext,
    "bf16": lambda: torch.autocast("cpu", torch.bfloat16),
}


def random_model(**changes: Any) -> GPT:
    torch.manual_seed(0)
    model = GPT(GPTConfig(**{**SIZES, **changes})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.1)
    return model


def random_tokens(n_sequences: int = 3, n_tokens: int = 20) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(SIZES["vocab_size"], (n_sequences, n_tokens), generator=generator)


def types_of(model: GPT, qtype: str) -> dict[str, QuantType]:
    """All matrices but the positions, as the export stores them."""
    return {
        name: quant_type(qtype)
        for name, weight in model.state_dict().items()
        if weight.dim() == 2 and name != "wpe.weight"
    }


def packed_model(model: GPT, types: dict[str, QuantType]) -> GPT:
    return cast(GPT, build_packed(model.config, model.state_dict().__getitem__, types))


def packed_and_plain(qtype: str, **changes: Any) -> tuple[GPT, GPT]:
    """A packed model, and an ordinary one of what the gguf library reads in the same blocks."""
    packed = random_model(**changes)
    types = types_of(packed, qtype)
    packed = packed_model(packed, types)
    plain = random_model(**changes)
    weights = plain.state_dict()
    for name, kind in types.items():
        module = packed.get_submodule(name.removesuffix(".weight"))
        assert isinstance(module, PackedLinear | PackedEmbedding)
        floats = gguf.quants.dequantize(module.blocks.numpy(), kind.ggml_type)
        weights[name] = torch.tensor(floats, dtype=torch.float32)
    plain.load_state_dict(weights)
    return packed, plain


def with_adapters(model: GPT) -> GPT:
    torch.manual_seed(2)
    add_lora(model, LoRAConfig(rank=4))
    for lora in lora_layers(model).values():
        nn.init.normal_(lora.lora_B, std=0.1)
    return model


@pytest.mark.parametrize("tie_embeddings", [True, False])
@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("qtype", TYPES)
def test_logits_of_blocks_are_those_of_the_dequantized_weights_bit_for_bit(
    qtype: str, precision: str, qkv_bias: bool, tie_embeddings: bool
) -> None:
    packed, plain = packed_and_plain(qtype, qkv_bias=qkv_bias, tie_embeddings=tie_embeddings)
    with torch.no_grad(), PRECISIONS[precision]():
        found, expected = packed(random_tokens()), plain(random_tokens())
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)
    original = random_model(qkv_bias=qkv_bias, tie_embeddings=tie_embeddings)
    assert not torch.equal(found.float(), original(random_tokens()))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("qtype", TYPES)
def test_adapters_on_blocks_train_as_on_the_dequantized_weights_bit_for_bit(
    qtype: str, precision: str
) -> None:
    gradients, losses = [], []
    for model in packed_and_plain(qtype):
        with_adapters(model)
        with PRECISIONS[precision]():
            loss = F.cross_entropy(model(random_tokens()).flatten(0, 1), random_tokens().flatten())
        loss.backward()
        losses.append(loss)
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    assert torch.equal(*losses)
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert gradient is not None
        assert gradient.any(), name
        assert torch.equal(gradient, gradients[1][name]), name


def test_gradient_through_a_packed_layer_is_that_of_a_linear_layer_at_any_shape() -> None:
    model = random_model()
    reference = nn.Linear(64, 192)
    reference.load_state_dict(model.get_submodule("h.0.attn.c_attn").state_dict())
    model = packed_model(model, {"h.0.attn.c_attn.weight": quant_type("f32")})
    layer = model.get_submodule("h.0.attn.c_attn")
    for shape in [(64,), (5, 64), (2, 3, 64), (0, 64)]:
        x = torch.randn(shape)
        upstream = torch.randn(*shape[:-1], 192)
        found, expected = [
            torch.autograd.grad(module(leaf), leaf, upstream)[0]
            for module in (layer, reference)
            for leaf in [x.clone().requires_grad_()]
        ]
        torch.testing.assert_close(found, expected)


def test_cached_generation_steps_work_on_blocks() -> None:
    packed, plain = packed_and_plain("q4_0")
    ours, theirs = KVCache(12), KVCache(12)
    for part in random_tokens(1, 12).split([10, 1, 1], dim=1):
        with torch.no_grad():
            assert torch.equal(packed(part, ours), plain(part, theirs))


@pytest.mark.slow
def test_every_type_that_needs_no_importances_can_be_packed() -> None:
    slow = {"iq1_m", "iq2_s"}  # ggml takes seconds to build their codebooks
    names = [n for n in quant_names() if not quant_type(n).needs_importance]
    for name in set(names) - slow:
        model = random_model(n_embd=256, n_layer=1)
        model = packed_model(model, types_of(model, name))
        assert model(random_tokens()).isfinite().all(), name


def test_only_adapters_train_on_blocks() -> None:
    packed, _ = packed_and_plain("q4_0")
    assert n_trainable(packed) == 0
    with_adapters(packed)
    assert all("lora_" in name for name, p in packed.named_parameters() if p.requires_grad)
    assert n_trainable(packed) == 2 * 4 * (4 * 64 + 2 * 64 + 5 * 64 + 5 * 64)


def test_weights_take_the_bytes_of_their_blocks() -> None:
    config = GPTConfig(vocab_size=2000, context_length=128, n_layer=4, n_head=4, n_embd=256)
    model = GPT(config)
    weights = model.state_dict()
    for name in ("q8_0", "q4_0"):
        packed = GPT(config)
        types = types_of(packed, name)
        block, block_bytes = gguf.GGML_QUANT_SIZES[quant_type(name).ggml_type]
        expected = sum(
            weight.numel() // block * block_bytes if key in types else weight.numel() * 4
            for key, weight in weights.items()
        )
        packed = packed_model(packed, types)
        found = sum(t.nbytes for t in (*packed.parameters(), *packed.buffers()))
        assert found == pytest.approx(expected, rel=0.01)


def shapes_kept_for_backward(model: GPT) -> set[tuple[int, ...]]:
    kept = set()

    def note(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point():
            kept.add(tuple(sorted(tensor.shape)))  # either way round
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model.hidden_states(random_tokens(1, 7)).sum().backward()
    return kept


def test_no_float_weight_is_kept_for_the_backward_pass() -> None:
    packed, plain = (with_adapters(model) for model in packed_and_plain("q4_0"))
    weights = {(64, 192), (64, 64), (64, 256)}
    assert weights <= shapes_kept_for_backward(plain)
    assert not weights & shapes_kept_for_backward(packed)


@pytest.mark.parametrize("tie_embeddings", [True, False])
def test_model_built_from_single_tensors_equals_the_packed_one(tie_embeddings: bool) -> None:
    packed, _ = packed_and_plain("q4_0", tie_embeddings=tie_embeddings)
    original = random_model(tie_embeddings=tie_embeddings)
    weights, types = original.state_dict(), types_of(original, "q4_0")
    built = build_packed(original.config, weights.__getitem__, types).eval()
    assert n_trainable(built) == 0
    found, expected = built.state_dict(), packed.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
    assert torch.equal(built(random_tokens()), packed(random_tokens()))


def test_building_holds_one_float_matrix_at_a_time() -> None:
    weights = random_model().state_dict()
    types = types_of(random_model(), "q8_0")
    alive: list[weakref.ref[Tensor]] = []

    def read(name: str) -> Tensor:
        assert all(earlier() is None for earlier in alive)
        tensor = weights[name].clone()
        if name in types:
            alive.append(weakref.ref(tensor))
        return tensor

    model = build_packed(GPTConfig(**SIZES), read, types)
    assert len(alive) == len(types) == 9
    assert not any(t.is_meta for t in (*model.parameters(), *model.buffers()))


def test_asking_for_the_device_unpacks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model()
    model = packed_model(model, types_of(model, "q8_0"))
    monkeypatch.setattr("llmkit.quantization.packed.dequantize", None)
    assert model.device == torch.device("cpu")


def test_layers_that_are_not_named_stay_floats() -> None:
    model = random_model()
    model = packed_model(model, {"h.1.mlp.c_fc.weight": quant_type("q8_0")})
    packed = {name for name, _ in model.named_modules() if isinstance(_, PackedLinear)}
    assert packed == {"h.1.mlp.c_fc"}
    assert isinstance(model.wte, nn.Embedding)


@pytest.mark.parametrize(
    "name", ["h.0.attn.c_atn.weight", "lm_head.weight", "ln_f.weight", "h.0.mlp.c_fc.bias", "wte"]
)
def test_name_that_is_no_matrix_is_refused(name: str) -> None:
    model = random_model()
    types = {"wte.weight": quant_type("q8_0"), name: quant_type("q8_0")}
    with pytest.raises(ConfigError, match=rf"\b{re.escape(name)}: .*\bmatrix\b"):
        build_packed(model.config, model.state_dict().__getitem__, types)


def test_rows_that_are_not_whole_blocks_are_refused() -> None:
    model = random_model(n_embd=24)
    with pytest.raises(QuantizationError, match=r"h\.0\.attn\.c_attn\.weight: q8_0 .* 32 .* 24"):
        packed_model(model, {"h.0.attn.c_attn.weight": quant_type("q8_0")})


@pytest.mark.parametrize("name", ["ln_f.weight", "wte.weight", "h.0.attn.c_attn.bias"])
def test_tensor_of_another_shape_is_refused(name: str) -> None:
    weights = random_model().state_dict()
    weights[name] = torch.zeros(3, 32)
    with pytest.raises(CheckpointError, match=rf"{name} has shape \(3, 32\)"):
        build_packed(GPTConfig(**SIZES), weights.__getitem__, types_of(random_model(), "q8_0"))


@pytest.mark.parametrize("sizes", [{}, {"tie_embeddings": False, "qkv_bias": False}])
def test_packing_leaves_the_number_of_weights(sizes: dict[str, Any]) -> None:
    model = random_model(**sizes)
    n = model.n_parameters()
    model = packed_model(model, types_of(model, "q4_0"))
    assert n_weights(model) == n > model.n_parameters()
