from __future__ import annotations

from typing import Any

import gguf
import pytest
import torch
import torch.nn.functional as F

from llmkit.architectures.gpt2 import GPT, GPTConfig
from llmkit.errors import QuantizationError
from llmkit.quant import quantize
from llmkit.quant.rounding import rounding_of
from llmkit.quantization.qat import Roundings, matrix_types, on_grid
from llmkit.quantization.tensor_types import quantization

SIZES: dict[str, Any] = {"vocab_size": 40, "context_length": 8, "n_layer": 2, "n_head": 2}
TYPES = ["q8_0", "q4_0", "q5_1", "iq4_nl", "q4_k", "q6_k"]
TOKENS = torch.arange(16).view(2, 8) * 5 % 40
TARGETS = (TOKENS + 3) % 40


def make(n_embd: int = 256, **changes: Any) -> GPT:
    torch.manual_seed(0)
    model = GPT(GPTConfig(**{**SIZES, "n_embd": n_embd, **changes}))
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape)
    return model


def grid_of(model: GPT, name: str) -> Roundings:
    """The grid that keeps the scales of the model's own blocks."""
    types = matrix_types(model.config, quantization(name))
    weights = {key: model.get_parameter(key).detach().numpy() for key in types}
    cpu = torch.device("cpu")
    return {
        key: rounding_of(quantize(weights[key], qtype, key), qtype, key, cpu)
        for key, qtype in types.items()
    }


def on_blocks(model: GPT, name: str) -> GPT:
    """A plain model of the numbers that the blocks hold, as the gguf library reads them."""
    grid, types = grid_of(model, name), matrix_types(model.config, quantization(name))
    other = GPT(model.config)
    weights = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    for key, qtype in types.items():
        blocks = grid[key].packed(weights[key])
        floats = gguf.quants.dequantize(blocks, qtype.ggml_type).astype("<f4")
        weights[key] = torch.from_numpy(floats.reshape(weights[key].shape))
    other.load_state_dict(weights)
    return other


def loss_of(model: GPT) -> torch.Tensor:
    return F.cross_entropy(model(TOKENS).flatten(0, 1), TARGETS.flatten())


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("tied", [True, False])
def test_forward_is_that_of_the_blocks_to_the_bit(name: str, tied: bool) -> None:
    model = make(tie_embeddings=tied)
    grid = grid_of(model, name)
    assert ("lm_head.weight" in grid) is not tied
    plain = model(TOKENS)
    with on_grid(model, grid):
        found = model(TOKENS)
    assert torch.equal(found, on_blocks(model, name)(TOKENS))
    assert not torch.equal(found, plain)
    assert torch.equal(model(TOKENS), plain)  # the floats are back


def test_matrices_whose_rows_do_not_fit_are_computed_as_the_f16_that_they_stay() -> None:
    model = make(n_embd=48)  # the rows of 192 of mlp.c_proj alone are whole blocks
    grid = grid_of(model, "q4_0")
    types = matrix_types(model.config, quantization("q4_0"))
    kinds = {name: qtype.name for name, qtype in types.items()}
    assert {name for name, kind in kinds.items() if kind == "q4_0"} == {
        "h.0.mlp.c_proj.weight",
        "h.1.mlp.c_proj.weight",
    }
    wanted = on_blocks(model, "q4_0")(TOKENS)
    with on_grid(model, grid):
        assert torch.equal(model(TOKENS), wanted)


@pytest.mark.parametrize("tied", [True, False])
def test_gradients_of_the_rounded_weights_go_straight_to_the_floats(tied: bool) -> None:
    model = make(tie_embeddings=tied)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with on_grid(model, grid_of(model, "q4_0")):
        loss_of(model).backward()  # type: ignore[no-untyped-call]
    by_hand = on_blocks(model, "q4_0")
    loss_of(by_hand).backward()  # type: ignore[no-untyped-call]
    for name, parameter in model.named_parameters():
        wanted = by_hand.get_parameter(name).grad
        assert wanted is not None
        assert parameter.grad is not None
        assert wanted.any()
        assert torch.equal(parameter.grad, wanted), name
        assert torch.equal(parameter, before[name]), name


def test_floats_come_back_where_a_step_fails() -> None:
    model = make()
    before = model(TOKENS)
    with (
        pytest.raises(ZeroDivisionError),
        on_grid(model, grid_of(model, "q4_0")),
    ):
        raise ZeroDivisionError
    assert torch.equal(model(TOKENS), before)


def test_floats_come_back_where_a_weight_cannot_be_rounded() -> None:
    model = make(n_embd=48)
    grid = grid_of(model, "q4_0")  # c_fc stays f16, which is packed anew each time
    model.h[1].mlp.c_fc.weight.data[3, 5] = torch.nan
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with (
        pytest.raises(QuantizationError, match=r"h\.1\.mlp\.c_fc\.weight: row 3, column 5"),
        on_grid(model, grid),
    ):
        pass
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor.nan_to_num(), before[name].nan_to_num()), name
