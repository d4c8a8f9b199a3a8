"""The optimizers: Muon for the matrices of the blocks and AdamW for the rest, or AdamW for all.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) replaces the momentum of a
matrix by the nearest matrix with orthonormal rows or columns, so that every direction of it moves
equally far. Its update is scaled to be as large as AdamW's (Liu et al. 2025, "Muon is scalable
for LLM training"), so that one learning rate serves both.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from llmkit.architectures.base import LanguageModel, Role
from llmkit.architectures.registry import tensor_specs
from llmkit.device import has_fast_bfloat16
from llmkit.training.config import TrainingConfig
from llmkit.training.distributed import divided, full, is_divided

# Five steps of this quintic take singular values from (0, 1] to about 1 (Jordan et al. 2024).
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5
ADAMW_RMS = 0.2  # root mean square of an AdamW update, in learning rates (Liu et al. 2025)


def orthogonalized(matrices: Tensor) -> Tensor:
    """The nearest matrices with orthonormal rows, or columns where there are fewer of them.

    matrices: (n, rows, columns), the result too. Its singular values lie between about 0.7 and
    1.2, which trains as well as exactly 1.
    """
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    if has_fast_bfloat16(x.device):
        x = x.bfloat16()
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT  # (n, rows, rows)
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)  # b G + c G G
        x = torch.baddbmm(x, polynomial, x, beta=a)  # a X + (b G + c G G) X
    return (x.mT if tall else x).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """Orthogonalized momentum, for matrices alone. A group's matrices have one shape.

    `n_parts`: how many matrices lie above each other in a parameter, each orthogonalized apart.
    """

    def __init__(self, groups: list[dict[str, Any]], config: TrainingConfig) -> None:
        defaults = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
        super().__init__(groups, {**defaults, "momentum": config.momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move the matrices that have a gradient."""
        for group in self.param_groups:
            moved = [p for p in group["params"] if p.grad is not None]
            # Of a divided model one matrix at a time is whole: all would not fit.
            at_once = 1 if any(is_divided(p) for p in moved) else max(len(moved), 1)
            for first in range(0, len(moved), at_once):
                self._move(moved[first : first + at_once], group)

    def _move(self, moved: list[nn.Parameter], group: dict[str, Any]) -> None:
        """Move matrices that are orthogonalized in one product."""
        updates = torch.stack([full(self._momentum(p, group["momentum"])) for p in moved])
        n, rows, columns = updates.shape
        parts = updates.view(n * group["n_parts"], rows // group["n_parts"], columns)
        scale = ADAMW_RMS * max(parts.shape[1:]) ** 0.5
        for p, update in zip(moved, orthogonalized(parts).view_as(updates), strict=True):
            p.mul_(1 - group["lr"] * group["weight_decay"])
            p.add_(divided(update, p), alpha=-group["lr"] * scale)

    def _momentum(self, p: nn.Parameter, momentum: float) -> Tensor:
        """The running mean of gradients, one step ahead (Nesterov's)."""
        assert p.grad is not None
        state = self.state[p]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(p)
        state["momentum"].lerp_(p.grad, 1 - momentum)
        return p.grad.lerp(state["momentum"], momentum)


def make_optimizers(model: LanguageModel, config: TrainingConfig) -> list[torch.optim.Optimizer]:
    """The optimizers that together train every parameter of a model that requires a gradient.

    Weight decay acts on matrices and embeddings, not on biases and norms.
    """
    by_muon = _block_matrices(model) if config.optimizer == "muon" else {}
    rest = [p for p in model.parameters() if p.requires_grad and p not in by_muon]
    adamw = torch.optim.AdamW(
        [
            {"params": [p for p in rest if p.dim() > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in rest if p.dim() == 1], "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        fused=True,
    )
    if not by_muon:
        return [adamw]
    return [adamw, Muon(_groups_of_one_shape(by_muon), config)]


def _block_matrices(model: LanguageModel) -> dict[nn.Parameter, int]:
    """The trained matrices of all blocks, and how many lie above each other in each: q, k and v."""
    of_blocks = {p for block in model.blocks for p in block.parameters()}
    fused = {spec.checkpoint_name for spec in tensor_specs(model.config) if spec.role is Role.QKV}
    return {
        p: 3 if name in fused else 1
        for name, p in model.named_parameters()
        if p in of_blocks and p.dim() == 2 and p.requires_grad
    }


def _groups_of_one_shape(matrices: dict[nn.Parameter, int]) -> list[dict[str, Any]]:
    groups: dict[tuple[torch.Size, int], list[nn.Parameter]] = {}
    for p, n_parts in matrices.items():
        groups.setdefault((p.shape, n_parts), []).append(p)
    return [{"params": of_shape, "n_parts": n} for (_, n), of_shape in groups.items()]
