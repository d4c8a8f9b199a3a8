"""Blocks of random numbers that use their whole range, so that the weights tell the numbers."""

from __future__ import annotations

import numpy as np

from llmkit.quant import BlockFields, QuantType
from llmkit.quant.types import PackedRows


def on_grid(qtype: QuantType, rows: int, width: int, seed: int = 0) -> PackedRows:
    """Every sub-block has the lowest and the highest level, every block the largest sub-scale."""
    layout = qtype.layout
    assert layout is not None
    generator = np.random.default_rng(seed)
    blocks = (rows, width // qtype.block_size)
    sub_size = layout.sub_block_size or qtype.block_size
    subs = (*blocks, qtype.block_size // sub_size)
    quants = generator.choice(np.array(layout.levels, np.int8), (*subs, sub_size))
    quants[..., 3], quants[..., 8] = layout.levels[0], layout.levels[-1]
    scale = generator.uniform(0.001, 0.1, blocks).astype(np.float16)
    has_minimum = layout.levels[0] == 0
    if layout.sub_scale_range is None:
        minimum = (scale * -generator.uniform(3, 9, blocks)).astype(np.float16)
        return layout.pack(
            BlockFields(
                quants.reshape(*blocks, -1), scale, minimum=minimum if has_minimum else None
            )
        )
    largest = layout.sub_scale_range[1]
    sub_scales = generator.integers(1, largest + 1, subs).astype(np.int8)
    sub_minima = generator.integers(0, largest + 1, subs).astype(np.int8)
    sub_scales[..., 1] = sub_minima[..., 4] = largest
    return layout.pack(
        BlockFields(
            quants.reshape(*blocks, -1),
            scale,
            sub_scales,
            (scale * np.float16(3)) if has_minimum else None,
            sub_minima if has_minimum else None,
        )
    )
