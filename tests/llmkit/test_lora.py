from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from llmkit.architectures.gpt2 import GPT, GPT2, GPTConfig
from llmkit.errors import CheckpointError, ConfigError
from llmkit.lora import (
    TARGETS,
    LoRAConfig,
    LoRALinear,
    adapter_tensors,
    add_lora,
    load_adapter,
    lora_config_of,
    lora_layers,
    merge_lora,
    merged_delta,
    n_trainable,
    peft_config,
)
from llmkit.quant import quant_type
from llmkit.quantization.packed import build_packed
from llmkit.validation import validated

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "context_length": 24,
    "n_layer": 2,
    "n_head": 4,
    "n_embd": 32,
}
WIDTHS = {  # (in, out)
    "attn.c_attn": (32, 96),
    "attn.c_proj": (32, 32),
    "mlp.c_fc": (32, 128),
    "mlp.c_proj": (128, 32),
}
SUBSETS = [
    TARGETS,
    ("attn.c_attn",),
    ("attn.c_proj",),
    ("mlp.c_proj",),
    ("attn.c_attn", "mlp.c_fc"),
]


def base_model(**changes: Any) -> GPT:
    torch.manual_seed(0)
    model = GPT(GPTConfig(**{**SIZES, **changes})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


def adapted_model(config: LoRAConfig, **changes: Any) -> GPT:
    """A model whose adapters count in the logits."""
    model = base_model(**changes)
    add_lora(model, config)
    for lora in lora_layers(model).values():
        nn.init.normal_(lora.lora_B)
    return model


def random_tokens(n_sequences: int = 2, n_tokens: int = 20) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(SIZES["vocab_size"], (n_sequences, n_tokens), generator=generator)


def transformers_twin(model: GPT) -> GPT2LMHeadModel:
    sizes = model.config
    twin = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=sizes.vocab_size,
            n_positions=sizes.context_length,
            n_layer=sizes.n_layer,
            n_head=sizes.n_head,
            n_embd=sizes.n_embd,
            bos_token_id=0,
            eos_token_id=0,
        )
    ).eval()
    ours, theirs = model.state_dict(), twin.state_dict()
    for name in theirs:
        our_name = "wte.weight" if name == "lm_head.weight" else name.removeprefix("transformer.")
        is_conv1d = ours[our_name].dim() == 2 and our_name.startswith("h.")  # stores (in, out)
        theirs[name] = ours[our_name].T if is_conv1d else ours[our_name]
    twin.load_state_dict(theirs)
    return twin


def save_for_peft(model: GPT, config: LoRAConfig, folder: Path) -> None:
    save_file(adapter_tensors(model), folder / "adapter_model.safetensors")
    content = json.dumps(peft_config(config, "runs/base", GPT2))
    (folder / "adapter_config.json").write_text(content, encoding="utf-8")


@pytest.mark.parametrize("targets", SUBSETS)
@pytest.mark.parametrize("rank", [1, 4, 16])
def test_peft_loads_the_adapter_and_computes_the_same_logits(
    rank: int, targets: tuple[str, ...], tmp_path: Path
) -> None:
    config = LoRAConfig(rank=rank, alpha=3.0, dropout=0.1, targets=targets)
    model = adapted_model(config)
    save_for_peft(model, config, tmp_path)
    tokens = random_tokens()
    with torch.no_grad():
        base = base_model()(tokens)
        found = model(tokens)
        theirs = peft.PeftModel.from_pretrained(transformers_twin(base_model()), tmp_path).eval()
        assert (theirs(tokens).logits - base).abs().max() > 0.1
        torch.testing.assert_close(found, theirs(tokens).logits, rtol=1e-4, atol=1e-4)
        # In float64, rounding hides no small difference.
        torch.testing.assert_close(
            model.double()(tokens), theirs.double()(tokens).logits, rtol=1e-9, atol=1e-9
        )


@pytest.mark.parametrize("targets", SUBSETS)
def test_merged_weights_are_those_that_peft_merges(
    targets: tuple[str, ...], tmp_path: Path
) -> None:
    config = LoRAConfig(rank=4, targets=targets)
    model = adapted_model(config)
    save_for_peft(model, config, tmp_path)
    wrapped = peft.PeftModel.from_pretrained(transformers_twin(base_model()), tmp_path)
    theirs = wrapped.merge_and_unload().state_dict()
    unmerged = base_model().state_dict()
    merge_lora(model)
    changed = set()
    for name, weight in model.state_dict().items():
        expected = theirs[f"transformer.{name}"]
        is_matrix = weight.dim() == 2 and name.startswith("h.")
        torch.testing.assert_close(
            weight, expected.T if is_matrix else expected, rtol=1e-6, atol=1e-6
        )
        if not torch.equal(weight, unmerged[name]):
            changed.add(name)
    assert changed == {f"h.{layer}.{target}.weight" for layer in range(2) for target in targets}


def test_adapter_that_peft_saves_is_read(tmp_path: Path) -> None:
    theirs = peft.get_peft_model(
        transformers_twin(base_model()),
        # A bare `c_proj` is both projections of a block.
        peft.LoraConfig(
            r=4,
            lora_alpha=8,
            target_modules=["c_proj", "c_attn"],
            fan_in_fan_out=True,
            init_lora_weights=False,
            task_type="CAUSAL_LM",
        ),
    ).eval()
    theirs.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "adapter_config.json").read_text(encoding="utf-8"))
    config = lora_config_of(content, "adapter_config.json")
    assert config == LoRAConfig(4, 8.0, targets=("attn.c_attn", "attn.c_proj", "mlp.c_proj"))
    model = base_model()
    add_lora(model, config)
    load_adapter(model, load_file(tmp_path / "adapter_model.safetensors"), "theirs")
    tokens = random_tokens()
    with torch.no_grad():
        assert (model(tokens) - base_model()(tokens)).abs().max() > 0.1
        torch.testing.assert_close(model(tokens), theirs(tokens).logits, rtol=1e-4, atol=1e-4)


def test_a_new_adapter_changes_no_bit_of_the_logits() -> None:
    model, tokens = base_model(dropout=0.1), random_tokens()
    expected = model(tokens)
    add_lora(model, LoRAConfig(rank=8, dropout=0.5))
    assert torch.equal(model(tokens), expected)
    for lora in lora_layers(model).values():
        assert lora.lora_A.any()
        assert not lora.lora_B.any()


def test_a_matrix_starts_as_wide_as_that_of_peft() -> None:
    torch.manual_seed(0)
    ours = LoRALinear(nn.Linear(300, 50), LoRAConfig(rank=64)).lora_A
    theirs = peft.get_peft_model(
        nn.Sequential(nn.Linear(300, 50)), peft.LoraConfig(r=64, target_modules=["0"])
    ).get_parameter("base_model.model.0.lora_A.default.weight")
    assert ours.shape == theirs.shape
    assert ours.std().item() == pytest.approx(theirs.std().item(), rel=0.03)
    assert ours.abs().max().item() == pytest.approx(theirs.abs().max().item(), rel=0.01)


def test_one_seed_gives_one_start() -> None:
    first, second = base_model(), base_model()
    for model in (first, second):
        torch.manual_seed(7)
        add_lora(model, LoRAConfig(rank=4))
    for name, tensor in adapter_tensors(first).items():
        assert torch.equal(tensor, adapter_tensors(second)[name])


@pytest.mark.parametrize("targets", SUBSETS)
@pytest.mark.parametrize("rank", [1, 8, 128])
def test_only_adapters_train_and_they_are_as_many_as_the_formula_says(
    rank: int, targets: tuple[str, ...]
) -> None:
    model = base_model()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    add_lora(model, LoRAConfig(rank=rank, targets=targets))
    assert n_trainable(model) == 2 * rank * sum(sum(WIDTHS[target]) for target in targets)
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trainable, lr=0.1)
    for _ in range(2):  # A has a gradient only once B is not zero
        optimizer.zero_grad()
        F.cross_entropy(model(random_tokens()).flatten(0, 1), random_tokens().flatten()).backward()
        optimizer.step()
    assert all(tensor.any() for tensor in adapter_tensors(model).values())
    for name, weight in model.state_dict().items():
        if "lora_" not in name:
            assert torch.equal(weight, before[name.replace(".base.", ".")]), name


def test_wrapping_twice_changes_nothing() -> None:
    model = adapted_model(LoRAConfig(rank=4))
    before = copy.deepcopy(model.state_dict())
    add_lora(model, LoRAConfig(rank=4, alpha=8.0, targets=TARGETS[::-1]))
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


@pytest.mark.parametrize(
    "other",
    [
        LoRAConfig(rank=5),
        LoRAConfig(rank=4, alpha=4.0),
        LoRAConfig(rank=4, dropout=0.1),
        LoRAConfig(rank=4, targets=("mlp.c_fc",)),
    ],
)
def test_wrapping_with_other_settings_is_refused(other: LoRAConfig) -> None:
    model = adapted_model(LoRAConfig(rank=4))
    with pytest.raises(ConfigError, match=r"LoRA adapters.*\brank=4, alpha=8\.0, dropout=0\.0\b"):
        add_lora(model, other)


def test_merging_is_exact_in_float32() -> None:
    model = adapted_model(LoRAConfig(rank=4, alpha=6.0), qkv_bias=False)
    tokens = random_tokens()
    adapted, base = model(tokens), base_model(qkv_bias=False)
    layers = lora_layers(model)
    merge_lora(model)
    assert not lora_layers(model)
    weights = model.state_dict()
    assert weights.keys() == base.state_dict().keys()
    for path, lora in layers.items():
        weight = base.get_parameter(f"{path}.weight")
        expected = weight + merged_delta(lora.lora_A, lora.lora_B, 1.5)
        assert torch.equal(weights[f"{path}.weight"], expected)
        exact = weight.double() + 1.5 * lora.lora_B.double() @ lora.lora_A.double()
        torch.testing.assert_close(expected.double(), exact, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(model(tokens), adapted, rtol=1e-4, atol=1e-4)
    assert n_trainable(model) == 0


def test_adapters_on_packed_blocks_save_load_and_merge() -> None:
    config = LoRAConfig(rank=4)
    types = {
        f"h.{layer}.{target}.weight": quant_type("q4_0") for layer in range(2) for target in TARGETS
    }
    weights = base_model().state_dict()
    model, other = (build_packed(base_model().config, weights.__getitem__, types) for _ in range(2))
    for packed in (model, other):
        add_lora(packed, config)
    for lora in lora_layers(model).values():
        nn.init.normal_(lora.lora_B)
    tokens = random_tokens()
    adapted = model(tokens)
    assert (other(tokens) - adapted).abs().max() > 0.5
    load_adapter(other, adapter_tensors(model), "adapter")
    assert torch.equal(other(tokens), adapted)
    merge_lora(other)
    assert other.state_dict().keys() == base_model().state_dict().keys()
    torch.testing.assert_close(other(tokens), adapted, rtol=1e-4, atol=1e-4)


def test_dropout_acts_on_the_adapter_in_training_only() -> None:
    model, tokens = adapted_model(LoRAConfig(rank=4, dropout=0.5)), random_tokens()
    assert torch.equal(model(tokens), model(tokens))
    model.train()
    assert not torch.equal(model(tokens), model(tokens))


def test_tensors_go_round() -> None:
    config = LoRAConfig(rank=4, targets=("mlp.c_proj",))
    model, other = adapted_model(config), base_model()
    add_lora(other, config)
    tensors = {name: tensor.clone() for name, tensor in adapter_tensors(model).items()}
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        f"base_model.model.transformer.h.{layer}.mlp.c_proj.lora_{half}.weight": shape
        for layer in range(2)
        for half, shape in (("A", (4, 128)), ("B", (32, 4)))
    }
    load_adapter(other, tensors, "adapter")
    assert torch.equal(other(random_tokens()), model(random_tokens()))
    assert n_trainable(other) == n_trainable(model)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t, name: t.pop(name), ["{name}", "missing"]),
        (lambda t, name: t.update(more=torch.zeros(1)), ["unexpected", "more;"]),
        (
            lambda t, name: t.update({name: torch.zeros(5, 32)}),
            ["{name}", "(5, 32)", "(4, 32)"],
        ),
    ],
)
def test_adapter_file_of_another_model_is_refused_in_one_line(
    change: Any, words: list[str]
) -> None:
    model, other = adapted_model(LoRAConfig(rank=4)), adapted_model(LoRAConfig(rank=4))
    tensors = {name: tensor + 1 for name, tensor in adapter_tensors(other).items()}
    name = "base_model.model.transformer.h.1.attn.c_attn.lora_A.weight"
    change(tensors, name)
    before = {name: tensor.clone() for name, tensor in adapter_tensors(model).items()}
    with pytest.raises(CheckpointError) as caught:
        load_adapter(model, tensors, "runs/x/adapter_model.safetensors")
    message = str(caught.value)
    assert message.startswith("runs/x/adapter_model.safetensors")
    assert all(word.format(name=name) in message for word in words), message
    assert "\n" not in message
    assert all(torch.equal(t, before[name]) for name, t in adapter_tensors(model).items())


@given(
    rank=st.integers(1, 4096),
    alpha=st.none() | st.floats(0, 1e6, exclude_min=True),
    dropout=st.floats(0, 1, exclude_max=True),
    targets=st.sets(st.sampled_from(TARGETS), min_size=1),
)
def test_settings_go_round_through_json(
    rank: int, alpha: float | None, dropout: float, targets: set[str]
) -> None:
    config = LoRAConfig(rank, alpha, dropout, tuple(targets))
    content = json.loads(json.dumps(peft_config(config, "base", GPT2)))
    found = lora_config_of(content, "adapter_config.json")
    assert found == config
    assert found.scale == (2.0 if alpha is None else alpha / rank)
    assert peft.LoraConfig(**content).r == rank


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"rank": 0}, ["lora: rank", "greater than 0"]),
        ({"rank": 8.0}, ["lora: rank", "integer"]),
        ({"alpha": 0.0}, ["lora: alpha", "greater than 0"]),
        ({"alpha": float("inf")}, ["lora: alpha"]),
        ({"alpha": "16"}, ["lora: alpha"]),
        ({"dropout": 1.0}, ["lora: dropout", "less than 1"]),
        ({"ranks": 8}, ["lora: unknown", "'ranks'", "'rank'"]),
        ({"targets": ["attn.c_atn"]}, ["LoRA target 'attn.c_atn'", "did you mean 'attn.c_attn'"]),
        ({"targets": ["c_proj"]}, ["LoRA target 'c_proj'", "mlp.c_proj"]),
        ({"targets": []}, ["LoRA needs", "attn.c_attn"]),
    ],
)
def test_settings_that_cannot_be_are_refused_in_one_line(
    fields: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        validated(LoRAConfig, {"rank": 8, **fields}, "lora")
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"peft_type": "IA3"}, ["peft_type LORA"]),
        ({"r": "8"}, ["rank", "integer"]),
        ({"lora_alpha": None, "r": 0}, ["rank"]),
        ({"use_dora": True}, ["use_dora"]),
        ({"use_rslora": True, "bias": "all"}, ["use_rslora, bias"]),
        ({"rank_pattern": {"c_attn": 4}}, ["rank_pattern"]),
        ({"target_modules": ["q_proj"]}, ["unknown LoRA target 'q_proj'"]),
        ({"target_modules": "all-linear"}, ["target_modules"]),
    ],
)
def test_adapter_settings_that_llmkit_has_not_are_refused_in_one_line(
    changes: dict[str, Any], words: list[str]
) -> None:
    content = {**peft_config(LoRAConfig(rank=8), "base", GPT2), **changes}
    with pytest.raises(CheckpointError) as caught:
        lora_config_of(content, "x/adapter_config.json")
    assert str(caught.value).startswith("x/adapter_config.json")
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)
