"""GPTQ's blocks, read by ggml's C code, against rounding and against GPTQ from its definition."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from blocks_on_grid import on_grid
from ggml_c import c_dequantize
from numpy.typing import NDArray
from weight_cases import weight_cases

from llmkit.errors import QuantizationError
from llmkit.quant import QuantType, quant_names, quant_type, quantize
from llmkit.quant.blocks import dequantize_blocks
from llmkit.quant.gptq import DAMPING, InputMoments, gptq
from llmkit.quant.types import PackedRows

TYPES = ["q4_0", "q4_1", "q4_k", "q5_0", "q5_1", "q5_k", "q6_k", "q8_0", "iq4_nl"]
CASES = weight_cases()

Floats = NDArray[np.float64]


def inputs_of(width: int, n: int, seed: int = 0) -> Floats:
    """Inputs (n, width) as a transformer's are: few directions, noise, channels of any size."""
    generator = np.random.default_rng(seed)
    rank = width // 8
    mixed = generator.standard_normal((n, rank)) @ generator.standard_normal((rank, width))
    noise = generator.standard_normal((n, width))
    return (mixed / rank**0.5 + 0.3 * noise) * np.exp(0.7 * generator.standard_normal(width))


def moment_of(inputs: Floats) -> Floats:
    return np.asarray(inputs.T @ inputs / len(inputs))


def weights_of(rows: int, width: int, seed: int = 1) -> NDArray[np.float32]:
    generator = np.random.default_rng(seed)
    return (0.02 * generator.standard_normal((rows, width))).astype(np.float32)


def packed(
    weights: NDArray[np.float32], name: str, moment: Floats, drift: Floats | None = None
) -> PackedRows:
    of_drift = None if drift is None else torch.from_numpy(drift)
    inputs = InputMoments(torch.from_numpy(moment), of_drift)
    return gptq(torch.from_numpy(weights), quant_type(name), inputs, "w")


def restored(blocks: PackedRows, qtype: QuantType, width: int) -> NDArray[np.float32]:
    return c_dequantize(blocks, qtype.ggml_type, width)


def error(blocks: PackedRows, name: str, weights: NDArray[np.float32], moment: Floats) -> float:
    """Mean square of the outputs' error: the trace of E H E^T."""
    e = restored(blocks, quant_type(name), weights.shape[1]).astype(np.float64) - weights
    return float(np.sum((e @ moment) * e))


def test_error_feedback_knows_every_type_whose_numbers_we_take_apart() -> None:
    assert sorted(TYPES) == sorted(name for name in quant_names() if quant_type(name).layout)
    for name in set(quant_names()) - set(TYPES):
        with pytest.raises(QuantizationError, match=rf"^w: .*{name}.*rtn"):
            packed(weights_of(2, 256), name, np.eye(256))


@pytest.mark.parametrize("name", TYPES)
def test_error_is_a_fifth_of_roundings_where_inputs_are_correlated(name: str) -> None:
    weights, moment = weights_of(64, 512), moment_of(inputs_of(512, 2048))
    rounded = quantize(weights, quant_type(name), "w")
    importance = moment.diagonal().astype(np.float32)
    weighted = quantize(weights, quant_type(name), "w", importance)
    best = min(error(blocks, name, weights, moment) for blocks in (rounded, weighted))
    assert error(packed(weights, name, moment), name, weights, moment) < 0.2 * best


@pytest.mark.parametrize("name", TYPES)
def test_error_is_at_most_roundings_where_nothing_is_correlated(name: str) -> None:
    weights = weights_of(64, 512)
    rounded = error(quantize(weights, quant_type(name), "w"), name, weights, np.eye(512))
    fed_back = error(packed(weights, name, np.eye(512)), name, weights, np.eye(512))
    assert fed_back < 1.01 * rounded


@pytest.mark.parametrize("name", TYPES)
def test_levels_are_those_of_gptq_from_its_definition(name: str) -> None:
    """With the blocks' own scales given. Rounding differences of float32 may flip a tie, after
    which a row goes another way, so a few rows may differ."""
    qtype, width = quant_type(name), 256
    weights, moment = weights_of(32, width), moment_of(inputs_of(width, 2048))
    blocks = packed(weights, name, moment)
    assert qtype.layout is not None
    steps, offsets = steps_and_offsets(blocks, qtype)
    expected = gptq_from_its_definition(weights, moment, qtype, steps, offsets)
    same = np.isclose(restored(blocks, qtype, width), expected, rtol=1e-4, atol=1e-7).all(axis=1)
    assert same.mean() > 0.9


def steps_and_offsets(blocks: PackedRows, qtype: QuantType) -> tuple[Floats, Floats]:
    """Of each weight: what the weights of two neighbouring levels differ by, and level 0's."""
    assert qtype.layout is not None
    fields = qtype.layout.unpack(blocks)
    step = fields.scale.astype(np.float64)[..., None]
    if fields.sub_scales is not None:
        step = step * fields.sub_scales
    offset = np.zeros_like(step)
    if fields.minimum is not None:
        minimum = fields.minimum.astype(np.float64)[..., None]
        offset = minimum if fields.sub_minima is None else -minimum * fields.sub_minima
    n_rows, width = len(blocks), fields.quants[0].size
    size = width // step[0].size
    return tuple(np.repeat(x.reshape(n_rows, -1), size, axis=1) for x in (step, offset))  # type: ignore[return-value]


def gptq_from_its_definition(
    weights: NDArray[np.float32], moment: Floats, qtype: QuantType, steps: Floats, offsets: Floats
) -> Floats:
    """Column by column: what is left is moved to where it makes up best for all that is rounded.

    With errors e in the rounded columns F the best change of the others R solves
    H_RR d = -H_RF e: no inverse that is updated, no Cholesky factor, no blocks.
    """
    assert qtype.layout is not None
    levels = np.array(qtype.layout.levels, dtype=np.float64)
    damped = moment + DAMPING * moment.diagonal().mean() * np.eye(len(moment))
    order = most_important_first(damped.diagonal(), qtype)
    rounded = weights.astype(np.float64)
    for place, column in enumerate(order):
        done, left = order[:place], order[place:]
        e = rounded[:, done] - weights[:, done]
        change = -np.linalg.solve(damped[np.ix_(left, left)], damped[np.ix_(left, done)] @ e.T)[0]
        step, offset = steps[:, column], offsets[:, column]
        grid = offset[:, None] + step[:, None] * levels  # (rows, levels)
        wanted = weights[:, column] + change
        nearest = np.abs(grid - wanted[:, None]).argmin(axis=1)
        rounded[:, column] = grid[np.arange(len(grid)), nearest]
    return rounded


def most_important_first(importance: Floats, qtype: QuantType) -> NDArray[np.intp]:
    """Columns by the sum of their block, then of their sub-block, then their own importance."""
    assert qtype.layout is not None
    sub_size = qtype.layout.sub_block_size or qtype.block_size

    def sums(size: int) -> Floats:
        return np.repeat(importance.reshape(-1, size).sum(axis=1), size)

    keys = [sums(size) for size in (qtype.block_size, sub_size)]
    return np.lexsort((-importance, -keys[1], -keys[0]))


@pytest.mark.parametrize("name", ["q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1", "q8_0"])
def test_a_blocks_scale_is_chosen_for_its_error_with_feedback(name: str) -> None:
    """A single block, where the error of every scale can be had from the definition."""
    qtype, weights, moment = quant_type(name), weights_of(16, 32), moment_of(inputs_of(32, 256))
    damped = moment + DAMPING * moment.diagonal().mean() * np.eye(32)
    blocks = packed(weights, name, moment)
    steps, offsets = steps_and_offsets(blocks, qtype)

    def errors(factor: float) -> Floats:
        middle = offsets + steps * 7.5 * (offsets != 0)
        scaled = middle + (offsets - middle) * factor
        found = gptq_from_its_definition(weights, moment, qtype, steps * factor, scaled) - weights
        return np.asarray(np.sum((found @ damped) * found, axis=1))

    chosen = errors(1)
    for factor in (0.8, 0.9, 1.1, 1.25):
        assert chosen.mean() < errors(factor).mean(), factor


@pytest.mark.parametrize("name", TYPES)
def test_weights_on_the_grid_come_back_as_they_are(name: str) -> None:
    """Nothing is left to make up for, and no column is mistaken for another."""
    qtype = quant_type(name)
    assert qtype.layout is not None
    weights = dequantize_blocks(qtype.layout, on_grid(qtype, rows=48, width=512))
    moment = moment_of(inputs_of(512, 2048))
    again = restored(packed(weights, name, moment), qtype, 512)
    np.testing.assert_array_equal(again, weights)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", TYPES)
def test_any_weights_are_packed_about_as_well_as_by_rounding(name: str, case: str) -> None:
    qtype = quant_type(name)
    weights = CASES[case][:48]
    rounded = quantize(weights, qtype, "w")
    with np.errstate(all="raise"):
        blocks = packed(weights, name, np.eye(256))
    # That a scale is rounded to f16 may cost all weights of a row this much.
    slack = np.maximum(2.0**-12 * np.abs(weights).max(axis=1).astype(np.float64), 2.0**-24)
    bound = (1.4 if case == "heavy_tailed" else 1.1) * error(rounded, name, weights, np.eye(256))
    assert error(blocks, name, weights, np.eye(256)) <= bound + 256 * np.sum(slack**2)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", TYPES)
def test_weights_next_to_the_limit_stay_finite(name: str, sign: int) -> None:
    """Larger scales than the weights' own are tried, and f16 ends."""
    qtype = quant_type(name)
    weights = weights_of(4, 256).clip(-0.04, 0.04) / np.float32(0.04)
    weights[:, ::7] = sign
    weights *= np.float32(np.nextafter(np.float32(qtype.limit), np.float32(0)))
    blocks = packed(weights, name, np.eye(256))
    rounded = error(quantize(weights, qtype, "w"), name, weights, np.eye(256))
    assert error(blocks, name, weights, np.eye(256)) < 1.2 * rounded


@pytest.mark.parametrize("name", TYPES)
def test_all_zero_and_all_equal_rows(name: str) -> None:
    weights = np.zeros((3, 256), np.float32)
    weights[1:] = [[0.25], [-0.25]]
    moment = moment_of(inputs_of(256, 1024))
    found = restored(packed(weights, name, moment), quant_type(name), 256)
    assert (found[0] == 0).all()
    np.testing.assert_allclose(found[1:], weights[1:], rtol=1e-3)


@pytest.mark.parametrize("name", TYPES)
def test_inputs_that_are_always_zero_harm_no_others(name: str) -> None:
    inputs = inputs_of(256, 1024)
    inputs[:, 10:40] = 0
    weights, moment = weights_of(32, 256), moment_of(inputs)
    found = packed(weights, name, moment)
    rounded = quantize(weights, quant_type(name), "w")
    assert error(found, name, weights, moment) < 0.2 * error(rounded, name, weights, moment)
    # The others may take the scale that they need, but it stays one of the weights' size.
    farthest = np.abs(restored(found, quant_type(name), 256) - weights)[:, 10:40].max()
    assert farthest < 5 * np.abs(restored(rounded, quant_type(name), 256) - weights).max()
    never_read = restored(packed(weights, name, np.zeros((256, 256))), quant_type(name), 256)
    alike = restored(packed(weights, name, np.eye(256)), quant_type(name), 256)
    np.testing.assert_array_equal(never_read, alike)


@pytest.mark.parametrize("factor", [1e-24, 1e-6, 1e6, 1e24])
def test_the_size_of_the_inputs_does_not_matter(factor: float) -> None:
    weights, moment = weights_of(16, 256), moment_of(inputs_of(256, 1024))
    expected = packed(weights, "q4_k", moment)
    # Another factor rounds otherwise, and a tie may fall to the other side.
    assert (packed(weights, "q4_k", moment * factor) == expected).mean() > 0.95


def test_drift_is_made_up_for() -> None:
    """Outputs on inputs that were quantized come near those on the inputs that were not."""
    width, n = 256, 2048
    wanted = inputs_of(width, n)
    mixing = np.random.default_rng(3).standard_normal((width, width)) / width**0.5
    drifted = wanted + 0.1 * wanted @ mixing  # an error as of layers before: it depends on x
    weights, moment = weights_of(64, width), moment_of(drifted)
    drift = (wanted - drifted).T @ drifted / n

    def output_error(blocks: PackedRows) -> float:
        found = restored(blocks, quant_type("q5_0"), width)
        return float(np.square(drifted @ found.T - wanted @ weights.T).mean())

    without = output_error(packed(weights, "q5_0", moment))
    assert output_error(packed(weights, "q5_0", moment, drift)) < 0.5 * without


def test_what_makes_up_for_drift_is_the_least_squares_solution() -> None:
    width, n = 64, 512
    wanted = inputs_of(width, n)
    drifted = wanted + 0.2 * np.random.default_rng(4).standard_normal((n, width)) * wanted.std(0)
    weights, moment = weights_of(16, width), moment_of(drifted)
    drift = (wanted - drifted).T @ drifted / n
    # min |drifted W'^T - wanted W^T|^2 + damping |W' - W|^2, as rows below the inputs
    ridge = np.sqrt(DAMPING * moment.diagonal().mean() * n) * np.eye(width)
    left = np.concatenate([drifted, ridge])
    right = np.concatenate([wanted @ weights.T, ridge @ weights.T])
    solution = np.linalg.lstsq(left, right)[0].T
    found = packed(weights, "q8_0", moment, drift)
    expected = packed(solution.astype(np.float32), "q8_0", moment)
    assert (found == expected).mean() > 0.95


def test_the_same_twice() -> None:
    weights, moment = weights_of(32, 512), moment_of(inputs_of(512, 2048))
    np.testing.assert_array_equal(packed(weights, "q4_k", moment), packed(weights, "q4_k", moment))


def test_rows_of_several_chunks_are_packed_as_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    weights, moment = weights_of(70, 256), moment_of(inputs_of(256, 1024))
    at_once = packed(weights, "q4_0", moment)
    monkeypatch.setattr("llmkit.quant.gptq._ROWS_AT_ONCE", 32)
    in_chunks = packed(weights, "q4_0", moment)
    assert at_once.shape == in_chunks.shape == (70, 256 // 32 * 18)
    same = (at_once == in_chunks).all(axis=1)  # a product of fewer rows may round otherwise
    assert same.mean() > 0.9


def test_weights_are_left_as_they_were() -> None:
    weights, moment = weights_of(4, 256), moment_of(inputs_of(256, 512))
    before = weights.copy()
    packed(weights, "q4_0", moment, drift=0.1 * moment)
    np.testing.assert_array_equal(weights, before)


@pytest.mark.parametrize("name", TYPES)
def test_rows_that_are_not_whole_blocks_are_refused(name: str) -> None:
    with pytest.raises(QuantizationError, match=rf"^w: {name} .*\b100\b"):
        packed(weights_of(2, 100), name, np.eye(100))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("what", ["weights", "moment", "drift"])
def test_what_is_not_finite_is_refused_with_the_tensors_name(what: str, bad: float) -> None:
    given: dict[str, Any] = {"weights": weights_of(2, 256)}
    given |= {"moment": np.eye(256), "drift": np.zeros((256, 256))}
    given[what][1, 3] = bad
    with pytest.raises(QuantizationError, match=r"^w: .*NaN.* q4_k"):
        packed(given["weights"], "q4_k", given["moment"], given["drift"])


@pytest.mark.parametrize("name", TYPES)
def test_what_a_type_cannot_hold_is_refused(name: str) -> None:
    weights = weights_of(2, 256)
    weights[0, 9] = quant_type(name).limit
    with pytest.raises(QuantizationError, match=rf"^w: .*{name}"):
        packed(weights, name, np.eye(256))


def test_a_correction_too_large_for_the_type_is_refused() -> None:
    weights = np.full((2, 256), 6e4, np.float32)
    with pytest.raises(QuantizationError, match=r"^w: .*q4_k"):
        packed(weights, "q4_k", np.eye(256), drift=np.eye(256))
