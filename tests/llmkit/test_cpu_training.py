from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llmkit.architectures import cpu_training
from llmkit.architectures.gpt2 import gelu_tanh


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
