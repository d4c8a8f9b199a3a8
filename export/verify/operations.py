"""Each kind of operation of a graph as llama.cpp computes it, and how far float32 may miss it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from llmkit.architectures.graph import Attention, Embed, Gelu, Norm, Operation, Product
from llmkit.export.verify import bounds
from llmkit.export.verify.activations import Ties, gelu, nearest
from llmkit.export.verify.arithmetic import CPU, Arithmetic
from llmkit.export.verify.attention import attention
from llmkit.export.verify.bounds import Bounded
from llmkit.export.verify.file_tensors import Tensors


def exact(
    operation: Operation,
    tensors: Tensors,
    inputs: Sequence[Tensor],
    ties: Ties = nearest,
    arithmetic: Arithmetic = CPU,
) -> Tensor:
    """What an operation makes of one sequence (T, C), in the precision of its inputs."""
    x = inputs[0]
    match operation:
        case Norm():
            weight = tensors.tensor(operation.weight).to(x.dtype)
            bias = _bias(operation, tensors)
            epsilon = float(np.float32(operation.epsilon))  # the file has an f32
            if not operation.subtracts_mean:
                return F.rms_norm(x, weight.shape, weight, epsilon)
            shift = None if bias is None else bias.to(x.dtype)
            return F.layer_norm(x, weight.shape, weight, shift, epsilon)
        case Product():
            y = tensors.matrix(operation.weight).product(x, ties, arithmetic)
            bias = _bias(operation, tensors)
            if bias is not None:
                y.add_(bias.to(x.dtype))
            return inputs[1] + y if len(inputs) > 1 else y
        case Attention():
            return attention(x, operation.n_head, arithmetic)
        case Gelu():
            return gelu(x, ties, arithmetic)
    raise TypeError(operation)


def embedded(
    operation: Embed, tensors: Tensors, ids: Sequence[Tensor]
) -> tuple[Tensor, Tensor | None]:
    """Rows (T, C) of the tokens and of the positions of several sequences, one after the other."""
    rows = tensors.tensor(operation.tokens)[torch.cat(list(ids))]
    if operation.positions is None:
        return rows, None
    positions = tensors.tensor(operation.positions)
    return rows, torch.cat([positions[: len(some)] for some in ids])


def bounded(
    operation: Operation,
    tensors: Tensors,
    inputs: Sequence[Tensor],
    ids: Tensor,
    arithmetic: Arithmetic = CPU,
) -> Bounded:
    """What an operation makes of llama.cpp's own inputs (T, C), and how far float32 may miss it."""
    match operation:
        case Embed():
            return bounds.embedding_sum(*embedded(operation, tensors, [ids]))
        case Norm():
            weight, bias = tensors.tensor(operation.weight), _bias(operation, tensors)
            norm = bounds.layer_norm if operation.subtracts_mean else bounds.rms_norm
            return norm(inputs[0], weight, bias, float(np.float32(operation.epsilon)), arithmetic)
        case Product():
            residual = inputs[1] if len(inputs) > 1 else None
            matrix = tensors.matrix(operation.weight)
            return bounds.linear(inputs[0], matrix, _bias(operation, tensors), residual, arithmetic)
        case Attention():
            return bounds.causal_attention(inputs[0], operation.n_head, arithmetic)
        case Gelu():
            return bounds.gelu_bound(inputs[0], arithmetic)
    raise TypeError(operation)


def _bias(operation: Norm | Product, tensors: Tensors) -> Tensor | None:
    if operation.bias is None or not tensors.has(operation.bias):
        return None
    return tensors.tensor(operation.bias)
