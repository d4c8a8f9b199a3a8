"""Error feedback through a whole model, against rounding and against its own steps by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf_surgery import make_checkpoint
from torch import Tensor

from llmkit.architectures.gpt2 import GPT
from llmkit.architectures.registry import tensor_specs
from llmkit.checkpoint.checkpoint import Checkpoint, load_checkpoint
from llmkit.data.tokens import open_token_file, windows
from llmkit.errors import QuantizationError
from llmkit.export.quantization.calibration import calibration_of
from llmkit.quant import dequantize, quant_type, quantize
from llmkit.quant.gptq import InputMoments, gptq
from llmkit.quant.types import PackedRows, QuantType
from llmkit.quantization import walk
from llmkit.quantization.walk import error_feedback

Blocks = dict[str, PackedRows]


def all_types(model: GPT, name: str = "q4_0") -> dict[str, QuantType]:
    return {
        spec.checkpoint_name: quant_type(name)
        for spec in tensor_specs(model.config)
        if spec.is_matrix
    }


def rounded(model: GPT, types: dict[str, QuantType]) -> Blocks:
    weights = model.state_dict()
    return {name: quantize(weights[name].numpy(), types[name], name) for name in types}


def with_blocks(checkpoint: Checkpoint, blocks: Blocks, types: dict[str, QuantType]) -> GPT:
    """The model with the numbers of the blocks."""
    model = checkpoint.load_model()
    for name, packed in blocks.items():
        weights = model.get_parameter(name)
        found = torch.from_numpy(dequantize(packed, types[name], tuple(weights.shape)))
        weights.data = found
    return model


@torch.no_grad()
def mean_kl(model: GPT, other: GPT, tokens: Tensor) -> float:
    p, q = model(tokens).log_softmax(-1), other(tokens).log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


def random_tokens(checkpoint: Checkpoint, n: int = 16, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (n, checkpoint.config.context_length)
    return torch.randint(checkpoint.config.vocab_size, shape, generator=generator)


def held_out(checkpoint: Checkpoint) -> Tensor:
    ids = open_token_file(checkpoint.validation_tokens_file, checkpoint.config.vocab_size)
    return torch.from_numpy(windows(ids, checkpoint.config.context_length, 4096)[:, :-1])


@pytest.fixture(scope="module")
def trained(tiny_checkpoint: Path) -> Checkpoint:
    return load_checkpoint(tiny_checkpoint)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["q4_0", "q4_1", "q5_0", "iq4_nl"])
def test_a_trained_model_loses_less_than_half_of_what_rounding_takes(
    trained: Checkpoint, name: str
) -> None:
    model, tokens = trained.load_model(), calibration_of(trained, max_tokens=8192).tokens
    types = all_types(model, name)
    fed_back = with_blocks(trained, error_feedback(model, types, tokens), types)
    plain = with_blocks(trained, rounded(model, types), types)
    text = held_out(trained)
    assert mean_kl(model, fed_back, text) < 0.5 * mean_kl(model, plain, text)


@pytest.mark.parametrize("sizes", [{}, {"tie_embeddings": False}, {"qkv_bias": False}])
def test_an_untrained_model_of_each_kind_loses_less(tmp_path: Path, sizes: dict[str, Any]) -> None:
    checkpoint = make_checkpoint(tmp_path / "model", n_embd=96, n_head=3, **sizes)
    model = checkpoint.load_model()
    types = all_types(model)
    assert ("lm_head.weight" in types) == ("tie_embeddings" in sizes)
    blocks = error_feedback(model, types, random_tokens(checkpoint, 64))
    assert list(blocks) == sorted(blocks, key=list(model.state_dict()).index)
    assert blocks.keys() == types.keys()
    fed_back = with_blocks(checkpoint, blocks, types)
    plain = with_blocks(checkpoint, rounded(model, types), types)
    text = random_tokens(checkpoint, seed=1)
    assert mean_kl(model, fed_back, text) < 0.8 * mean_kl(model, plain, text)


def packed_by_hand(model: GPT, types: dict[str, QuantType], tokens: Tensor) -> Blocks:
    """Matrix after matrix: its inputs are recorded in the model itself, whole each time."""
    quantized = GPT(model.config).eval()
    quantized.load_state_dict(model.state_dict())
    embedding = walk._of_embedding(model, tokens)
    blocks: Blocks = {}
    for name, qtype in types.items():
        weights = model.get_parameter(name).detach()
        inputs = embedding
        if name != "wte.weight":
            layer = name.removesuffix(".weight")
            x, y = (inputs_of(each, layer, tokens) for each in (quantized, model))
            inputs = InputMoments(x.T @ x / len(x), (y - x).T @ x / len(x))
        blocks[name] = gptq(weights, qtype, inputs, name)
        found = dequantize(blocks[name], qtype, tuple(weights.shape))
        quantized.get_parameter(name).data = torch.from_numpy(found)
    return blocks


@torch.no_grad()
def inputs_of(model: GPT, layer: str, tokens: Tensor) -> Tensor:
    if layer == "lm_head":  # is used without being called
        return model.hidden_states(tokens).flatten(0, 1).double()
    seen: list[Tensor] = []
    hook = model.get_submodule(layer).register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    model(tokens)
    hook.remove()
    return seen[0].flatten(0, 1).double()


def agreement(ours: Blocks, theirs: Blocks, types: dict[str, QuantType]) -> dict[str, float]:
    return {
        name: float((dequantize(ours[name], t) == dequantize(theirs[name], t)).mean())
        for name, t in types.items()
    }


@pytest.mark.parametrize("tied", [True, False])
def test_each_matrix_is_calibrated_on_what_the_quantized_ones_before_it_give(
    tmp_path: Path, tied: bool
) -> None:
    """A step that the streams skipped, or took with the weights as trained, would show here."""
    checkpoint = make_checkpoint(tmp_path / "model", tie_embeddings=tied)
    model, tokens = checkpoint.load_model(), random_tokens(checkpoint, 64)
    types = all_types(model)
    expected = packed_by_hand(model, types, tokens)
    found = error_feedback(model, types, tokens)
    # Sums in another order may flip a tie, which moves what comes after it.
    assert min(agreement(found, expected, types).values()) > 0.9


def test_matrices_without_a_type_are_left_as_they_are(random_checkpoint: Checkpoint) -> None:
    """And those after them are calibrated on what they give as they are."""
    model, tokens = random_checkpoint.load_model(), random_tokens(random_checkpoint, 64)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    every = all_types(model)
    some = {
        name: every[name]
        for name in ("h.0.attn.c_proj.weight", "h.1.attn.c_attn.weight", "h.1.mlp.c_proj.weight")
    }
    found = error_feedback(model, some, tokens)
    assert found.keys() == some.keys()
    assert min(agreement(found, packed_by_hand(model, some, tokens), some).values()) > 0.9
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert error_feedback(model, {}, tokens) == {}


def test_types_of_matrices_may_differ(random_checkpoint: Checkpoint) -> None:
    model, tokens = random_checkpoint.load_model(), random_tokens(random_checkpoint)
    types = all_types(model) | {"h.0.mlp.c_fc.weight": quant_type("q8_0")}
    blocks = error_feedback(model, types, tokens)
    for name, packed in blocks.items():
        rows, width = model.get_parameter(name).shape
        assert packed.shape == (rows, types[name].row_bytes(width)), name
        assert packed.dtype == np.uint8


def test_the_same_blocks_twice(trained: Checkpoint) -> None:
    tokens = calibration_of(trained, max_tokens=1024).tokens
    model = trained.load_model()
    torch.manual_seed(1)
    once = error_feedback(model, all_types(model), tokens)
    torch.manual_seed(2)
    twice = error_feedback(model, all_types(model), tokens)
    for name, blocks in once.items():
        np.testing.assert_array_equal(blocks, twice[name], err_msg=name)


def test_how_many_sequences_go_at_once_changes_only_rounding(
    random_checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokens = random_checkpoint.load_model(), random_tokens(random_checkpoint, 64)
    types = all_types(model)
    expected = error_feedback(model, types, tokens)
    monkeypatch.setattr(walk, "LAYER_TOKENS_AT_ONCE", 100)  # 3 sequences, the last alone
    found = error_feedback(model, types, tokens)
    assert min(agreement(found, expected, types).values()) > 0.9


def test_a_few_tokens_are_enough_to_run(random_checkpoint: Checkpoint) -> None:
    model = random_checkpoint.load_model()
    blocks = error_feedback(model, all_types(model), torch.tensor([[1, 2]]))
    for name, packed in blocks.items():
        assert np.isfinite(dequantize(packed, quant_type("q4_0"))).all(), name


def test_the_matrix_that_is_not_finite_is_named(random_checkpoint: Checkpoint) -> None:
    model = random_checkpoint.load_model()
    with torch.no_grad():
        model.get_parameter("h.1.mlp.c_fc.weight")[3, 5] = torch.nan
    types = all_types(model)
    del types["wte.weight"]  # its statistics are the whole model's
    with pytest.raises(QuantizationError, match=r"^h.1.mlp.c_fc.weight: .*NaN"):
        error_feedback(model, types, random_tokens(random_checkpoint))


def test_the_embeddings_statistics_are_the_kl_of_its_errors(random_checkpoint: Checkpoint) -> None:
    """Half e^T H e is about what errors e in the embedding cost, as an input and as the head."""
    model, tokens = random_checkpoint.load_model(), random_tokens(random_checkpoint, 64)
    moment = walk._of_embedding(model, tokens).second_moment
    assert torch.equal(moment, moment.T)
    assert (torch.linalg.eigvalsh(moment) > -1e-9).all()
    values, directions = torch.linalg.eigh(moment)

    def cost(direction: Tensor) -> float:
        changed = random_checkpoint.load_model()
        signs = torch.randint(0, 2, (len(changed.wte.weight), 1)) * 2.0 - 1
        changed.wte.weight.data = changed.wte.weight + 0.02 * signs * direction.float()
        return mean_kl(model, changed, tokens)

    assert cost(directions[:, -1]) > 4 * cost(directions[:, 0])
    assert values[-1] > 4 * values[0]


def largest_tensors(monkeypatch: pytest.MonkeyPatch, run: Callable[[], object]) -> int:
    """Numbers in the largest tensor that a linear layer gave while `run` ran."""
    sizes = [0]
    linear = torch.nn.functional.linear

    def watched(*given: Any, **named: Any) -> Tensor:
        result = linear(*given, **named)
        sizes.append(result.numel())
        return result

    monkeypatch.setattr(torch.nn.functional, "linear", watched)
    run()
    monkeypatch.undo()
    return max(sizes)


def test_neither_logits_nor_wide_activations_of_all_tokens_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = make_checkpoint(tmp_path / "model", tie_embeddings=False)
    model, tokens = checkpoint.load_model(), random_tokens(checkpoint, 64)
    monkeypatch.setattr(walk, "LAYER_TOKENS_AT_ONCE", 128)
    monkeypatch.setattr(walk, "MODEL_TOKENS_AT_ONCE", 64)
    types = all_types(model)
    largest = largest_tensors(monkeypatch, lambda: error_feedback(model, types, tokens))
    assert largest == max(128 * 4 * model.config.n_embd, 64 * model.config.vocab_size)
