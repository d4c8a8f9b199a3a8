"""Levels, candidates and bytes of the formats, against the weights that ggml's C code reads."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from blocks_on_grid import on_grid
from ggml_c import c_dequantize
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.quant import quant_names, quant_type
from llmkit.quant.grids import ChosenNumbers, Grid, Scales, Units

TYPES = [name for name in quant_names() if quant_type(name).layout]
WITH_SUB_BLOCKS = ["q4_k", "q5_k", "q6_k"]


def grid(name: str) -> Grid:
    qtype = quant_type(name)
    assert qtype.layout is not None
    return Grid(qtype.layout, qtype.block_size)


def levels_of(name: str) -> torch.Tensor:
    layout = quant_type(name).layout
    assert layout is not None
    return torch.tensor(layout.levels, dtype=torch.float32)


def test_there_is_a_grid_for_each_format_that_is_taken_apart() -> None:
    assert len(TYPES) == 9
    for name in quant_names():
        assert quant_type(name).supports_gptq == (name in TYPES), name


@pytest.mark.parametrize("name", TYPES)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    step=st.sampled_from([1e-6, -0.003, 0.02, -1.0, 700.0]),
    start=st.floats(-3, 3, width=32),
)
def test_nearest_is_the_nearest_of_all_levels(
    name: str, seed: int, step: float, start: float
) -> None:
    levels, offset = levels_of(name), torch.tensor(start * step)
    generator = torch.Generator().manual_seed(seed)
    reach = float(levels.abs().max()) * abs(step)
    weights = offset + 1.3 * reach * (2 * torch.rand(200, generator=generator) - 1)
    found = grid(name).nearest(weights, torch.tensor(step), offset)
    assert torch.isin(found, levels).all()
    values = offset.double() + step * levels.double()
    best = (values - weights.double()[:, None]).abs().amin(1)
    ours = (offset.double() + step * found.double() - weights.double()).abs()
    # Next to the middle of two levels both are as good, but for float32's rounding.
    assert (ours <= best + 1e-5 * abs(step) * levels.abs().max()).all()


@pytest.mark.parametrize("name", TYPES)
def test_a_step_of_zero_gives_a_level_and_no_nan(name: str) -> None:
    weights = torch.tensor([-1.0, 0.0, 1.0])
    found = grid(name).nearest(weights, torch.tensor(0.0), torch.tensor(0.0))
    assert torch.isin(found, levels_of(name)).all()


@pytest.mark.parametrize("name", TYPES)
def test_blocks_hold_what_was_stored_in_any_order(name: str) -> None:
    """Sub-blocks and their columns come in the order in which they are rounded."""
    qtype, form = quant_type(name), grid(name)
    generator = np.random.default_rng(1)
    rows, width, size = 5, 512, form.sub_block_size
    chosen = ChosenNumbers(form, rows, width)
    expected = torch.full((rows, width), torch.nan, dtype=torch.float64)
    for block in generator.permutation(width // qtype.block_size):
        units = random_units(form, rows, generator)
        for sub in generator.permutation(qtype.block_size // size):
            start = int(block * qtype.block_size + sub * size)
            columns = torch.from_numpy(start + generator.permutation(size))
            scales = random_scales(form, rows, generator)
            levels = levels_of(name)[torch.from_numpy(generator.integers(0, 16, (rows, size)))]
            chosen.store(columns, units, scales, levels)
            step, offset = (x.double()[:, None] for x in (scales.step(units), scales.offset(units)))
            expected[:, columns] = step * levels.double() + offset
    found = c_dequantize(chosen.packed(), qtype.ggml_type, width)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-6, atol=1e-6)


def f16(numbers: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(numbers.astype(np.float16).astype(np.float32))


def random_units(form: Grid, rows: int, generator: np.random.Generator) -> Units:
    if form.layout.sub_scale_range is None:
        return Units(torch.ones(rows), -torch.ones(rows))
    step = f16(generator.uniform(1e-3, 0.1, rows))
    offset = f16(generator.uniform(1e-3, 0.1, rows)) if form.has_minimum else torch.zeros(rows)
    return Units(step, offset)


def random_scales(form: Grid, rows: int, generator: np.random.Generator) -> Scales:
    if form.layout.sub_scale_range is None:
        minimum = f16(generator.uniform(-1, 1, rows)) if form.has_minimum else torch.zeros(rows)
        return Scales(f16(generator.uniform(-0.1, 0.1, rows)), minimum)
    lowest, largest = form.layout.sub_scale_range
    scale, minimum = generator.integers(lowest, largest + 1, (2, rows)).astype(np.float32)
    return Scales(torch.from_numpy(scale), torch.from_numpy(minimum) * form.has_minimum)


def random_blocks(name: str, rows: int = 64, scale: float = 0.02) -> torch.Tensor:
    """Weights (rows, sub-blocks, size) of a block each."""
    form = grid(name)
    generator = torch.Generator().manual_seed(2)
    shape = (rows, form.block_size // form.sub_block_size, form.sub_block_size)
    return scale * torch.randn(shape, generator=generator)


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("scale", [1e-9, 0.02, 1e4])
def test_candidates_are_numbers_that_the_format_can_hold(name: str, scale: float) -> None:
    form, weights = grid(name), random_blocks(name, scale=scale)
    units = form.units(weights, torch.ones(weights.shape[1:]))
    found = form.candidates(weights[:, 0], units)
    assert found.scale.shape == found.minimum.shape
    assert found.scale.shape[1] == len(weights)
    numbers = [units.step, units.offset, found.scale, found.minimum]
    if form.layout.sub_scale_range is not None:
        lowest, largest = form.layout.sub_scale_range
        for whole in (found.scale, found.minimum):
            assert (whole == whole.round()).all()
            assert whole.min() >= lowest
            assert whole.max() <= largest
    for number in numbers:
        assert number.isfinite().all()
        torch.testing.assert_close(number.half().float(), number, rtol=0, atol=0)


@pytest.mark.parametrize("name", TYPES)
def test_the_range_of_the_weights_is_a_candidate(name: str) -> None:
    """Else equal weights, and those that lie on a grid, could not come back as they are."""
    qtype, form = quant_type(name), grid(name)
    packed = on_grid(qtype, rows=64, width=qtype.block_size)
    weights = torch.from_numpy(c_dequantize(packed, qtype.ggml_type, qtype.block_size))
    subs = weights.view(64, -1, form.sub_block_size)
    units = form.units(subs, torch.ones(subs.shape[1:]))
    for sub in range(subs.shape[1]):
        found = form.candidates(subs[:, sub], units)
        step, offset = found.step(units), found.offset(units)
        every = subs[:, sub].T.unsqueeze(1)  # (size, 1, rows)
        left = (form.nearest(every, step, offset) * step + offset - every).abs().amax(0)
        assert (left.amin(0) < 1e-6).all()


@pytest.mark.parametrize("name", TYPES)
def test_candidates_reach_less_and_more_far_than_the_weights(name: str) -> None:
    form, weights = grid(name), random_blocks(name)
    units = form.units(weights, torch.ones(weights.shape[1:]))
    found = form.candidates(weights[:, 0], units)
    ends = torch.stack([levels_of(name)[0], levels_of(name)[-1]])
    step, offset = found.step(units), found.offset(units)
    reach = (step * ends[:, None, None] + offset).sort(dim=0).values  # (2, candidates, rows)
    low, high = weights[:, 0].amin(1), weights[:, 0].amax(1)
    spread = (high - low).mean()
    covers = (reach[0] <= low + 1e-3 * spread) & (reach[1] >= high - 1e-3 * spread)
    cuts = (reach[0] > low + 1e-3 * spread) | (reach[1] < high - 1e-3 * spread)
    assert covers.any(0).float().mean() > 0.8
    assert cuts.any(0).all()


@pytest.mark.parametrize("name", WITH_SUB_BLOCKS)
def test_units_weigh_columns_by_their_importance(name: str) -> None:
    """An outlier that is hardly ever read does not make the steps of all others coarse."""
    form, weights = grid(name), random_blocks(name)
    weights[:, 0, 5] = 0.07
    weights[:, 1:] *= 0.1  # so that it is the first sub-block's step that decides
    importance = torch.ones(weights.shape[1:])
    alike = form.units(weights, importance).step
    importance[0, 5] = 1e-6
    unread = form.units(weights, importance).step
    assert unread.mean() < 0.99 * alike.mean()


@pytest.mark.parametrize("name", WITH_SUB_BLOCKS)
def test_the_largest_sub_blocks_step_is_the_largest_integer(name: str) -> None:
    form, weights = grid(name), random_blocks(name)
    weights[:, 3] *= 4
    units = form.units(weights, torch.ones(weights.shape[1:]))
    assert form.layout.sub_scale_range is not None
    largest = form.layout.sub_scale_range[1]
    steps = form.candidates(weights[:, 3], units).scale.abs()
    assert (steps == largest).any(0).all()
    others = form.candidates(weights[:, 0], units).scale.abs()
    assert others.max() < largest


@pytest.mark.parametrize("name", TYPES)
def test_a_block_of_zeros_stays_zero(name: str) -> None:
    form = grid(name)
    weights = torch.zeros_like(random_blocks(name, rows=3))
    units = form.units(weights, torch.ones(weights.shape[1:]))
    found = form.candidates(weights[:, 0], units)
    step, offset = found.step(units), found.offset(units)
    value = step * form.nearest(torch.zeros_like(step), step, offset) + offset
    assert (value == 0).all()


@pytest.mark.parametrize("name", ["q4_k", "q5_k"])
def test_minima_that_would_be_positive_are_left_at_zero(name: str) -> None:
    """The formats subtract a minimum that is not negative."""
    form, weights = grid(name), random_blocks(name).abs() + 0.01
    units = form.units(weights, torch.ones(weights.shape[1:]))
    found = form.candidates(weights[:, 0], units)
    assert (found.minimum >= 0).all()
    assert (found.offset(units) <= 0).all()
    negative = form.candidates(-weights[:, 0], form.units(-weights, torch.ones(weights.shape[1:])))
    assert (negative.minimum > 0).all()
