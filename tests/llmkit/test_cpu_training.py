from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llmkit.architectures import cpu_training
from llmkit.architectures.gpt2 import GPT, Dropout, causal_attention, gelu_tanh
from llmkit.architectures.registry import model_config


def with_gradients(f: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    y = f(*leaves)
    torch.manual_seed(1)
    y.backward(torch.randn(y.shape, dtype=torch.bfloat16).to(y.dtype))  # type: ignore[no-untyped-call]
    return [y.detach().double(), *(x.grad.double() for x in leaves if x.grad is not None)]


@pytest.mark.parametrize("n_tokens", [2, 64, 65, 150])
def test_short_attention_is_that_of_pytorch(n_tokens: int) -> None:
    torch.manual_seed(0)
    qkv = torch.randn(3, 2, n_tokens, 3, 8, dtype=torch.float64).transpose(2, 3)
    wanted = with_gradients(
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True), *qkv
    )
    for found, exact in zip(
        with_gradients(cpu_training.short_attention, *qkv), wanted, strict=True
    ):
        torch.testing.assert_close(found, exact, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("n_tokens", [64, 150])
def test_dropout_of_attention_is_of_its_weights(
    monkeypatch: pytest.MonkeyPatch, n_tokens: int
) -> None:
    torch.manual_seed(0)
    qkv = torch.randn(3, 2, n_tokens, 3, 8, dtype=torch.float64).transpose(2, 3)
    factors = torch.zeros(2 * 3, n_tokens, n_tokens, dtype=torch.float64)
    drawn, first = cpu_training._kept, 0

    def recorded(weights: Tensor, p: float) -> Tensor:
        nonlocal first
        last, found = first + weights.shape[1], drawn(weights, p)
        factors[:, first:last, : weights.shape[2]] = found
        first = last
        return found

    monkeypatch.setattr(cpu_training, "_kept", recorded)
    found = with_gradients(lambda q, k, v: cpu_training.short_attention(q, k, v, 0.3), *qkv)

    def by_hand(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        future = torch.full((n_tokens, n_tokens), -torch.inf, dtype=q.dtype).triu(1)
        weights = (q @ k.mT / 8**0.5 + future).softmax(-1)
        return (weights * factors.view_as(weights)) @ v

    for ours, exact in zip(found, with_gradients(by_hand, *qkv), strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.999])
def test_dropout_keeps_each_value_with_its_probability(p: float) -> None:
    n = 1 << 18
    torch.manual_seed(3)
    x = torch.linspace(1, 2, n + 3).requires_grad_()
    y = cpu_training.dropout(x, p)
    kept = y != 0
    torch.testing.assert_close(y[kept], x.detach()[kept] / (1 - p))
    (dx,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(dx, kept / (1 - p))
    for one_of_a_draw in kept[:n].view(-1, 4).T.double():
        rare = min(p, 1 - p)
        assert one_of_a_draw.mean().item() == pytest.approx(1 - p, abs=6 * (rare / n * 4) ** 0.5)
    pairs = (kept[:n].view(-1, 4).double() - (1 - p)) / max(p * (1 - p), 1e-9) ** 0.5
    together = pairs.T @ pairs / len(pairs)  # correlations of the four values of a draw
    assert p == 0.999 or together.fill_diagonal_(0).abs().max() < 0.03
    torch.manual_seed(3)
    assert torch.equal(cpu_training.dropout(x, p), y)
    cpu_training.dropout(x, 1 - 1e-9)  # below the smallest share that a draw can keep


def test_dropout_is_ours_where_a_model_trains_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_training, "dropout", lambda x, p: x * 7)
    x, layer = torch.ones(3, requires_grad=True), Dropout(0.1)
    assert layer(x).tolist() == [7, 7, 7]
    assert layer.eval()(x).tolist() == [1, 1, 1]
    assert 7 not in layer.train()(x.detach())
    model = GPT(model_config("nano", 50, n_layer=1, n_head=1, n_embd=8, dropout=0.1))
    layers = [module for module in model.modules() if isinstance(module, torch.nn.Dropout)]
    assert [type(module) for module in layers] == [Dropout, Dropout]


@pytest.mark.parametrize(
    ("dtype", "p", "is_ours"),
    [
        *((torch.float32, 0.0, False), (torch.float32, 0.1, True)),
        *((torch.bfloat16, 0.0, True), (torch.bfloat16, 0.1, True), (torch.float64, 0.1, False)),
    ],
)
def test_short_attention_is_taken_where_pytorchs_is_slow(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, p: float, is_ours: bool
) -> None:
    monkeypatch.setattr(cpu_training, "short_attention", lambda q, k, v, p: q * 7)
    q = torch.ones(1, 1, 3, 8, dtype=dtype, requires_grad=True)
    assert bool((causal_attention(q, q, q, None, p) == 7).all()) is is_ours


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-6), (torch.bfloat16, 2**-8)])
def test_gelu_of_a_cpu_is_that_of_pytorch(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, tolerance: float
) -> None:
    monkeypatch.setattr(cpu_training, "CACHED_VALUES", 100)
    x = torch.cat([torch.linspace(-9, 9, 1001), torch.tensor([-1e4, -30, 0, 30, 1e4])]).to(dtype)
    x = x[:1005].view(3, -1).T  # not contiguous
    wanted = with_gradients(lambda x: F.gelu(x, approximate="tanh"), x.double())
    for found, exact in zip(with_gradients(cpu_training.gelu, x), wanted, strict=True):
        torch.testing.assert_close(found, exact, rtol=tolerance, atol=tolerance)


def test_gelu_is_fast_where_it_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(F, "gelu", None)
    gelu_tanh(torch.zeros(3, requires_grad=True))
    for without in (torch.zeros(3), torch.zeros(3, dtype=torch.float64, requires_grad=True)):
        with pytest.raises(TypeError):
            gelu_tanh(without)
