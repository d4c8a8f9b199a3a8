"""A GPT whose matrices stay packed GGUF blocks and are unpacked each time they are used.

What is kept is what a GGUF file stores, byte for byte. Float weights live only as long as the
one product that needs them. Packed weights do not train: gradients pass through them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmkit.architectures.base import LanguageModel, ModelConfig
from llmkit.architectures.registry import model_without_weights
from llmkit.errors import CheckpointError, ConfigError
from llmkit.quant import QuantType, dequantize, quantize


def _unpacked(blocks: Tensor, qtype: QuantType) -> Tensor:
    """Blocks (rows, row_bytes) as float32 (rows, row_length), on the device of the blocks.

    Unpacking is NumPy's work. On the CPU nothing is copied to get there; from another device
    the blocks are copied to the CPU and the float32 weights back, at each use.
    """
    return torch.from_numpy(dequantize(blocks.cpu().numpy(), qtype)).to(blocks.device)


class _PackedProduct(torch.autograd.Function):
    """F.linear that keeps the blocks for its backward pass, and unpacks them there again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, blocks: Tensor, bias: Tensor | None, qtype: QuantType) -> Any:
        ctx.save_for_backward(blocks)
        ctx.qtype = qtype
        weight = _unpacked(blocks, qtype).to(x.dtype)  # (out, in)
        return F.linear(x, weight, None if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (blocks,) = ctx.saved_tensors
        (gradient,) = gradients  # (..., out)
        weight = _unpacked(blocks, ctx.qtype).to(gradient.dtype)
        # As one product of two matrices: what F.linear's backward does, to the bit.
        flat = gradient.reshape(-1, weight.shape[0]) @ weight  # (rows, in)
        return flat.view(*gradient.shape[:-1], weight.shape[1]), None, None, None


class PackedLinear(nn.Module):
    """A frozen nn.Linear with its weight as blocks (out, row_bytes): the same bits out."""

    blocks: Tensor
    bias: Tensor | None

    def __init__(self, blocks: Tensor, bias: Tensor | None, qtype: QuantType) -> None:
        super().__init__()
        self.qtype = qtype
        self.out_features = blocks.shape[0]
        self.in_features = blocks.shape[1] // qtype.block_bytes * qtype.block_size
        self.register_buffer("blocks", blocks)
        self.register_buffer("bias", None if bias is None else bias.detach().float())

    @property
    def weight(self) -> Tensor:
        """The weight (out, in) in float32, unpacked anew at each call."""
        return _unpacked(self.blocks, self.qtype)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply and add the bias: (..., in) -> (..., out)."""
        # Autocast does not look into an autograd.Function: cast as it would for F.linear.
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        return _PackedProduct.apply(x, self.blocks, self.bias, self.qtype)  # type: ignore[no-any-return,no-untyped-call]


class PackedEmbedding(nn.Module):
    """A frozen nn.Embedding with its rows as blocks (rows, row_bytes): the same bits out."""

    blocks: Tensor

    def __init__(self, blocks: Tensor, qtype: QuantType) -> None:
        super().__init__()
        self.qtype = qtype
        self.register_buffer("blocks", blocks)

    @property
    def weight(self) -> Tensor:
        """All rows in float32, unpacked anew at each call."""
        return _unpacked(self.blocks, self.qtype)

    def forward(self, ids: Tensor) -> Tensor:
        """The rows of these ids, and no others unpacked: (...) -> (..., C)."""
        rows = _unpacked(self.blocks[ids.flatten()], self.qtype)
        return rows.view(*ids.shape, rows.shape[-1])


def build_packed(
    config: ModelConfig, read: Callable[[str], Tensor], types: Mapping[str, QuantType]
) -> LanguageModel:
    """A frozen GPT of the tensors that `read` gives by name, packed where `types` says so.

    Tensors are read one by one, and floats that are packed are let go at once: peak memory is
    that of the packed model and one float tensor. Raises CheckpointError for a tensor of another
    shape, ConfigError for a name that is no matrix of the model, and QuantizationError for
    weights that a type cannot hold.
    """
    model = model_without_weights(config)
    _check_names(model, types)

    def read_checked(name: str, shape: torch.Size) -> Tensor:
        weight = read(name)
        if weight.shape != shape:
            raise CheckpointError(
                f"{name} has shape {tuple(weight.shape)}, expected {tuple(shape)} from the config"
            )
        return weight

    shapes = {name: weight.shape for name, weight in model.state_dict().items()}
    for name, shape in shapes.items():  # no variable keeps a tensor until the next is read
        if name in types:
            _pack(model, name, read_checked(name, shape), types[name])
        else:
            loaded = {name: read_checked(name, shape).float()}
            model.load_state_dict(loaded, strict=False, assign=True)
    return model.requires_grad_(False)


def n_weights(model: nn.Module) -> int:
    """Number of weights, those in blocks counted as the numbers that they stand for."""
    n = sum(parameter.numel() for parameter in model.parameters())
    for module in model.modules():
        if isinstance(module, PackedLinear | PackedEmbedding):
            n_blocks = module.blocks.numel() // module.qtype.block_bytes
            bias = getattr(module, "bias", None)
            n += n_blocks * module.qtype.block_size + (0 if bias is None else bias.numel())
    return n


def _pack(model: LanguageModel, name: str, weight: Tensor, qtype: QuantType) -> None:
    """Replace the module that owns the matrix `name` by a packed one."""
    path = name.removesuffix(".weight")
    module = model.get_submodule(path)
    array = weight.detach().float().cpu().numpy()
    blocks = torch.from_numpy(quantize(array, qtype, name)).to(weight.device)
    if isinstance(module, nn.Linear):
        model.set_submodule(path, PackedLinear(blocks, module.bias, qtype))
    else:
        model.set_submodule(path, PackedEmbedding(blocks, qtype))


def _check_names(model: LanguageModel, types: Mapping[str, QuantType]) -> None:
    matrices = {
        f"{path}.weight"
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Embedding)
    }
    for name in types:
        if name not in matrices:
            raise ConfigError(f"cannot pack {name}: it is not a matrix of this model")
