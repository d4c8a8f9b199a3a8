"""Muon against torch's and a singular value decomposition; what each optimizer moves."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from llmkit.architectures.gpt2 import GPT
from llmkit.architectures.registry import model_config
from llmkit.training.config import TrainingConfig
from llmkit.training.optimizer import Muon, make_optimizers, orthogonalized

ALONE = TrainingConfig(learning_rate=0.01, momentum=0.9, weight_decay=0.1, optimizer="muon")


@pytest.fixture
def model() -> GPT:
    torch.manual_seed(0)
    return GPT(model_config("nano", 300, n_layer=2, n_embd=64, tie_embeddings=False))


@pytest.mark.parametrize("shape", [(48, 48), (96, 32), (32, 96)])
def test_singular_vectors_stay_and_singular_values_become_about_one(
    shape: tuple[int, int],
) -> None:
    random = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1))
    u, _, vh = torch.linalg.svd(random, full_matrices=False)
    matrices = u @ torch.diag(torch.linspace(0.1, 1, min(shape))) @ vh
    inside = u.mT @ orthogonalized(matrices) @ vh.mT  # diagonal where the vectors are the same
    values = inside.diagonal(dim1=1, dim2=2)
    assert values.min() > 0.6
    assert values.max() < 1.3
    assert (inside - torch.diag_embed(values)).abs().max() < 0.05  # bfloat16 where it is fast


def test_zeros_stay_zeros() -> None:
    assert not orthogonalized(torch.zeros(2, 8, 4)).any()


def steps_of(optimizer: torch.optim.Optimizer, p: Tensor, gradients: list[Tensor]) -> None:
    for gradient in gradients:
        p.grad = gradient.clone()
        optimizer.step()


@pytest.mark.parametrize("shape", [(64, 64), (128, 32), (32, 128)])
def test_it_steps_as_torchs_muon(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(2)
    first = torch.randn(*shape, generator=generator)
    gradients = [torch.randn(*shape, generator=generator) for _ in range(3)]
    ours, theirs = (torch.nn.Parameter(first.clone()) for _ in range(2))
    steps_of(Muon([{"params": [ours], "n_parts": 1}], ALONE), ours, gradients)
    reference = torch.optim.Muon(
        [theirs], lr=0.01, momentum=0.9, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"
    )
    steps_of(reference, theirs, gradients)
    moved = (theirs - first).detach()
    assert (ours - theirs).abs().max() < 0.03 * moved.abs().max()  # torch's rounds to bfloat16


def test_queries_keys_and_values_are_taken_apart() -> None:
    first = torch.randn(96, 32, generator=torch.Generator().manual_seed(3))
    gradients = [torch.randn(96, 32, generator=torch.Generator().manual_seed(4))]
    whole = torch.nn.Parameter(first.clone())
    parts = [torch.nn.Parameter(part.clone()) for part in first.split(32)]
    steps_of(Muon([{"params": [whole], "n_parts": 3}], ALONE), whole, gradients)
    for part, gradient in zip(parts, gradients[0].split(32), strict=True):
        steps_of(Muon([{"params": [part], "n_parts": 1}], ALONE), part, [gradient])
    torch.testing.assert_close(whole, torch.cat(parts))


def test_muon_moves_the_blocks_matrices_and_adamw_the_rest(model: GPT) -> None:
    adamw, muon = make_optimizers(model, ALONE)
    names = {p: name for name, p in model.named_parameters()}
    by_muon = {names[p]: g["n_parts"] for g in muon.param_groups for p in g["params"]}
    assert by_muon == {
        f"h.{layer}.{matrix}.weight": n_parts
        for layer in range(2)
        for matrix, n_parts in [
            ("attn.c_attn", 3),
            ("attn.c_proj", 1),
            ("mlp.c_fc", 1),
            ("mlp.c_proj", 1),
        ]
    }
    by_adamw = {names[p] for g in adamw.param_groups for p in g["params"]}
    assert by_adamw == names.values() - by_muon.keys()


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_weight_decay_is_on_matrices_only(model: GPT, optimizer: str) -> None:
    config = TrainingConfig(weight_decay=0.3, beta1=0.8, beta2=0.9, optimizer=optimizer)
    names = {p: name for name, p in model.named_parameters()}
    groups = [group for o in make_optimizers(model, config) for group in o.param_groups]
    decays = {names[p]: group["weight_decay"] for group in groups for p in group["params"]}
    assert decays.keys() == set(names.values())
    for name, decay in decays.items():
        is_matrix = not name.endswith("bias") and "ln_" not in name
        assert decay == (0.3 if is_matrix else 0.0), name
    assert all(g["betas"] == (0.8, 0.9) for g in groups if "betas" in g)


def test_what_is_frozen_is_not_moved(model: GPT) -> None:
    for p in model.h[0].parameters():
        p.requires_grad_(False)
    optimizers = make_optimizers(model, ALONE)
    moved = {p for o in optimizers for group in o.param_groups for p in group["params"]}
    assert moved == {p for p in model.parameters() if p.requires_grad}
