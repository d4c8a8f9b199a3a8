"""The `logits` check: its limit follows from the model's own rounding, and errors are over it."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf_surgery import make_checkpoint
from numpy.typing import NDArray
from verify_targets import VARIANTS, lora_checkpoint, write_apart, written

from llmkit.export.evaluation.divergence import Distance, Divergence, divergence
from llmkit.export.evaluation.eval_data import proof_sequences
from llmkit.export.llamacpp.runtime import LlamaCpp
from llmkit.export.verify.activations import other_of_near_ties
from llmkit.export.verify.file_tensors import FileTensors, Matrix
from llmkit.export.verify.logits_check import (
    NOISE_MULTIPLE,
    LogitsComparison,
    compare_logits,
    logits_check,
)
from llmkit.export.verify.reference import Reference
from llmkit.export.verify.target import VerifyTarget, open_target

KINDS = ("as it comes", "untied, no qkv bias", "one layer", "context 8", "odd width")
N_TOKENS = 128


def compared(target: VerifyTarget) -> LogitsComparison:
    _, texts = proof_sequences(target.checkpoint, None, N_TOKENS)
    with LlamaCpp(target.file.path) as llama:
        return compare_logits(llama, target, texts)


# --- models -----------------------------------------------------------------------------------


@pytest.mark.parametrize("qtype", ["f32", "f16", "bf16", "q8_0", "q4_0"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_good_file_differs_by_no_more_than_rounding(
    kind: str, qtype: str, tmp_path: Path
) -> None:
    made = make_checkpoint(tmp_path / "c", **VARIANTS[kind])
    found = compared(written(made, tmp_path / "m.gguf", qtype))
    check = logits_check(found)
    assert check.passed, check.detail
    assert len(found.conversion.kl) == N_TOKENS
    assert found.conversion.max_logit_difference.max() > 0  # they are two computations
    assert found.conversion.max_logit_difference.max() <= found.logit_noise


@pytest.mark.parametrize("qtype", ["f32", "q8_0"])
def test_a_good_adapter_apart_differs_by_no_more_than_rounding(qtype: str, tmp_path: Path) -> None:
    tuned = lora_checkpoint(tmp_path / "c")
    check = logits_check(compared(open_target(tuned, write_apart(tuned, tmp_path, qtype))))
    assert check.passed, check.detail


@pytest.mark.parametrize("qtype", ["f32", "f16"])
@pytest.mark.parametrize(
    "name",
    [
        "blk.0.attn_qkv.weight",
        "blk.1.attn_output.weight",
        "blk.0.ffn_up.weight",
        "blk.1.ffn_down.weight",
        "output.weight",
    ],
)
def test_a_matrix_that_is_one_percent_off_is_far_over_the_limit(
    name: str, qtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_checkpoint(tmp_path / "c", tie_embeddings=False)
    target = written(made, tmp_path / "m.gguf", qtype)
    matrix = FileTensors.matrix

    def scaled(self: FileTensors, wanted: str) -> Matrix:
        found = matrix(self, wanted)
        return replace(found, weight=found.weight * 1.01) if wanted == name else found

    monkeypatch.setattr(FileTensors, "matrix", scaled)
    check = logits_check(compared(target))
    assert not check.passed
    assert check.value > 10 * check.limit
    assert f"{check.value:.3g} times rounding alone, the limit is 2" in check.detail


def test_quantization_is_a_cost_and_no_conversion_error(tmp_path: Path) -> None:
    made = make_checkpoint(tmp_path / "c")
    exact, coarse = (
        compared(written(made, tmp_path / f"{qtype}.gguf", qtype)) for qtype in ("f32", "q4_0")
    )
    assert coarse.cost.mean_kl > 1e4 * exact.cost.mean_kl
    assert coarse.cost.mean_kl > 10 * coarse.conversion.mean_kl
    assert logits_check(coarse).passed


@pytest.mark.parametrize("qtype", ["f16", "q8_0"])
def test_near_ties_are_more_noise_than_one_computation_in_float32(
    qtype: str, tmp_path: Path
) -> None:
    """In float32 few of the near-ties happen to go the other way: too few to tell how many may."""
    made = make_checkpoint(tmp_path / "c")
    target = written(made, tmp_path / "m.gguf", qtype)
    _, (text, *_) = proof_sequences(made, None, N_TOKENS)
    exact = Reference(target, torch.float64).logits(text.inputs)
    single = Reference(target, torch.float32).logits(text.inputs)
    ties = Reference(target, torch.float64, other_of_near_ties).logits(text.inputs)
    of_single, of_ties = (
        Distance.of(divergence(exact, other, text.targets)) for other in (single, ties)
    )
    assert 0 < of_single.rms_difference < of_ties.rms_difference


# --- numbers ----------------------------------------------------------------------------------


def distances(kl: float, difference: float, n: int = 1000) -> Divergence:
    def all_of(value: float) -> NDArray[np.float64]:
        return np.full(n, value)

    return Divergence(
        kl=all_of(kl),
        same_top=np.ones(n, np.bool_),
        max_logit_difference=all_of(difference),
        mean_square_logit_difference=all_of(difference**2),
        reference_loss=all_of(1.0),
        loss=all_of(1.0),
    )


def comparison(conversion: Divergence, noise: Divergence) -> LogitsComparison:
    return LogitsComparison(conversion, noise, distances(0.1, 1.0), np.zeros((0, 2)))


NOISE = distances(1e-6, 1e-3)
FIELDS = ("kl", "max_logit_difference", "mean_square_logit_difference")


@pytest.mark.parametrize(("factor", "passes"), [(1.0, True), (1.99, True), (2.01, False)])
def test_the_limit_moves_with_the_noise(factor: float, passes: bool) -> None:
    for scale in (1e-9, 1.0, 1e3):
        noise = distances(1e-6 * scale, 1e-3 * scale)
        found = distances(1e-6 * scale * factor, 1e-3 * scale * factor)
        check = logits_check(comparison(found, noise))
        assert check.passed == passes
        assert check.value == pytest.approx(factor)
        assert check.limit == NOISE_MULTIPLE


@pytest.mark.parametrize("field", FIELDS)
def test_each_distance_counts_by_itself(field: str) -> None:
    found = replace(NOISE, **{field: 9 * getattr(NOISE, field)})
    check = logits_check(comparison(found, NOISE))
    assert not check.passed
    assert check.value == pytest.approx(3 if field == "mean_square_logit_difference" else 9)


def test_one_position_that_is_wrong_is_named() -> None:
    largest = NOISE.max_logit_difference.copy()
    largest[617] *= 5
    check = logits_check(comparison(replace(NOISE, max_logit_difference=largest), NOISE))
    assert not check.passed
    assert "at position 617" in check.detail


def test_equal_computations_have_no_distance() -> None:
    nothing = distances(0.0, 0.0)
    check = logits_check(comparison(nothing, nothing))
    assert check.passed
    assert check.value == 0


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_number_fails(field: str, value: float) -> None:
    wrong = getattr(NOISE, field).copy()
    wrong[3] = value
    assert not logits_check(comparison(replace(NOISE, **{field: wrong}), NOISE)).passed


def test_any_distance_is_too_much_where_there_is_no_rounding() -> None:
    check = logits_check(comparison(distances(1e-12, 1e-9), distances(0.0, 0.0)))
    assert not check.passed
    assert check.value == sys.float_info.max  # JSON has no infinity
