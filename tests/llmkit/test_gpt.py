from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from gpt_twin import SIZES, random_model, random_tokens, transformers_twin

from llmkit.architectures.cache import KVCache
from llmkit.architectures.gpt2 import GPT, PRESETS, GPTConfig, attention_by_hand, gelu_tanh
from llmkit.architectures.registry import model_config, model_without_weights
from llmkit.device import choose_device
from llmkit.errors import ConfigError


def test_attention_by_hand_is_what_the_model_runs() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 17, 8).double()
    fused = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(attention_by_hand(q, k, v), fused, rtol=1e-12, atol=1e-12)


def test_gelu_to_be_compiled_is_the_same_function(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.linspace(-12, 12, 1001, dtype=torch.float64)
    wanted = gelu_tanh(x)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.testing.assert_close(gelu_tanh(x), wanted, rtol=0, atol=1e-14)


@pytest.mark.parametrize("cached", [False, True])
def test_model_with_attention_by_hand_gives_the_same_logits(
    monkeypatch: pytest.MonkeyPatch, cached: bool
) -> None:
    model, tokens = random_model(), random_tokens(2, 20)
    fused = model(tokens, KVCache(20) if cached else None)
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda q, k, v, **_: attention_by_hand(q, k, v)
    )
    torch.testing.assert_close(model(tokens), fused, rtol=1e-4, atol=1e-4)


def test_training_in_bfloat16_on_a_cpu_spells_attention_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, tokens = random_model(), random_tokens(2, 20)
    wanted = model(tokens)
    monkeypatch.setattr(F, "scaled_dot_product_attention", None)
    with torch.autocast("cpu", torch.bfloat16):
        found = model(tokens).float()
    assert (found - wanted).norm() < 0.02 * wanted.norm()
    with pytest.raises(TypeError):
        model(tokens)  # float32: the fused kernel


@pytest.mark.parametrize("tie_embeddings", [True, False])
@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize("layer_norm_epsilon", [1e-5, 1e-2])
def test_logits_equal_those_of_transformers(
    tie_embeddings: bool, qkv_bias: bool, layer_norm_epsilon: float
) -> None:
    model = random_model(
        tie_embeddings=tie_embeddings, qkv_bias=qkv_bias, layer_norm_epsilon=layer_norm_epsilon
    ).double()
    tokens = random_tokens(3, SIZES["context_length"])
    with torch.no_grad():
        expected = transformers_twin(model).double()(tokens).logits
        found = model(tokens)
    assert expected.std() > 0.5
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize("tie_embeddings", [True, False])
def test_switches_decide_about_parameters(qkv_bias: bool, tie_embeddings: bool) -> None:
    names = set(random_model(qkv_bias=qkv_bias, tie_embeddings=tie_embeddings).state_dict())
    assert ("h.0.attn.c_attn.bias" in names) == qkv_bias
    assert ("lm_head.weight" in names) == (not tie_embeddings)


@pytest.mark.parametrize("cuts", [[1] * 24, [24], [5, 1, 1, 10, 7], [23, 1]])
def test_key_value_cache_goes_on_where_the_full_pass_would(cuts: list[int]) -> None:
    model, tokens = random_model().double(), random_tokens(2, 24)
    cache = KVCache(24)
    parts = []
    for part in tokens.split(cuts, dim=1):
        parts.append(model(part, cache))
        assert cache.length == sum(part.shape[1] for part in parts)
    torch.testing.assert_close(torch.cat(parts, dim=1), model(tokens), rtol=1e-9, atol=1e-9)


def test_later_tokens_do_not_change_earlier_logits() -> None:
    model, tokens = random_model(), random_tokens(1, 24)
    changed = tokens.clone()
    changed[:, 12:] = (changed[:, 12:] + 1) % SIZES["vocab_size"]
    torch.testing.assert_close(model(tokens)[:, :12], model(changed)[:, :12], rtol=0, atol=1e-5)
    assert (model(tokens)[:, 12] - model(changed)[:, 12]).abs().max() > 0.1


def test_tokens_past_the_context_are_refused() -> None:
    model = random_model()
    with pytest.raises(ConfigError, match=r"25 tokens .*\b24$"):
        model(random_tokens(1, 25))
    cache = KVCache(24)
    model(random_tokens(1, 24), cache)
    with pytest.raises(ConfigError, match="25 tokens"):
        model(random_tokens(1, 1), cache)


def test_dropout_acts_in_training_only() -> None:
    model, tokens = random_model(dropout=0.5), random_tokens(1, 8)
    assert torch.equal(model(tokens), model(tokens))
    model.train()
    assert not torch.equal(model(tokens), model(tokens))


def test_weights_start_as_in_gpt2() -> None:
    torch.manual_seed(0)
    model = GPT(model_config("nano", vocab_size=2000))
    weights = model.state_dict()
    residual = 0.02 / (2 * 4) ** 0.5
    for name, std in {
        "wte.weight": 0.02,
        "h.1.attn.c_attn.weight": 0.02,
        "h.1.mlp.c_fc.weight": 0.02,
        "h.1.attn.c_proj.weight": residual,
        "h.1.mlp.c_proj.weight": residual,
    }.items():
        assert weights[name].std().item() == pytest.approx(std, rel=0.02), name
    assert all(not weight.any() for name, weight in weights.items() if name.endswith("bias"))
    scales = [name for name in weights if "ln_" in name and name.endswith("weight")]
    assert len(scales) == 9
    assert all((weights[name] == 1).all() for name in scales)


@pytest.mark.parametrize(
    ("preset", "n_parameters"),
    [
        ("gpt2", 124_439_808),
        ("gpt2-medium", 354_823_168),
        ("gpt2-large", 774_030_080),
        ("gpt2-xl", 1_557_611_200),
    ],
)
def test_presets_have_the_published_number_of_parameters(preset: str, n_parameters: int) -> None:
    model = model_without_weights(model_config(preset, vocab_size=50257))
    assert model.n_parameters() == n_parameters
    assert all(parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize(("depth", "width"), [(1, 256), (4, 256), (5, 512), (12, 768), (32, 2048)])
def test_depth_sets_the_sizes(depth: int, width: int) -> None:
    config = model_config(depth, vocab_size=300)
    context = min(64 * depth, 1024)
    assert config == GPTConfig(300, context, depth, n_head=width // 64, n_embd=width)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_valid(preset: str) -> None:
    config = model_config(preset, vocab_size=300)
    assert config.n_embd % config.n_head == 0
    assert config.n_ff == 4 * config.n_embd


def test_fields_of_a_preset_can_be_changed() -> None:
    config = model_config("nano", vocab_size=300, n_layer=1, dropout=0, qkv_bias=False)
    assert config == GPTConfig(300, 256, 1, 4, 256, dropout=0.0, qkv_bias=False)


@pytest.mark.parametrize(
    ("preset", "changes", "words"),
    [
        ("nanno", {}, ["preset", "'nanno'", "did you mean 'nano'"]),
        ("gpt2-xxl", {}, ["did you mean 'gpt2-xl'"]),
        ("nano", {"n_head": 3}, ["n_embd 256", "n_head 3"]),
        ("nano", {"n_layers": 3}, ["model", "'n_layers'", "'n_layer'"]),
        ("nano", {"preset": "micro"}, ["model", "'preset'"]),
        ("nano", {"n_layer": "3"}, ["model: n_layer", "integer"]),
        ("nano", {"n_layer": 2.5}, ["model: n_layer", "integer"]),
        ("nano", {"n_layer": True}, ["model: n_layer", "integer"]),
        ("nano", {"n_layer": 0}, ["model: n_layer", "greater than 0"]),
        ("nano", {"context_length": -1}, ["model: context_length", "greater than 1"]),
        ("nano", {"qkv_bias": "no"}, ["model: qkv_bias", "boolean"]),
        ("nano", {"dropout": 1.0}, ["model: dropout", "less than 1"]),
        ("nano", {"dropout": float("nan")}, ["model: dropout"]),
        ("nano", {"layer_norm_epsilon": 0}, ["model: layer_norm_epsilon"]),
    ],
)
def test_sizes_that_do_not_fit_are_refused_in_one_line(
    preset: str, changes: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        model_config(preset, vocab_size=300, **changes)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [("gpu", "unknown device 'gpu'"), ("mps", "no mps device"), ("cuda", "no cuda device")],
)
def test_device_that_is_not_there_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, words: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=words):
        choose_device(name)


def test_best_device_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose_device().type == "cpu"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device().type == "mps"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device().type == "cuda"
    assert choose_device("cpu").type == "cpu"
