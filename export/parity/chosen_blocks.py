"""Whether blocks that no rounding gives are those that were chosen for this checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np

from llmkit.errors import GGUFError
from llmkit.export.gguf_file import GGUFFile, StoredTensor
from llmkit.export.metadata import BLOCKS_KEY, hash_of_blocks
from llmkit.export.parity.tensor_diagnosis import WantedTensor
from llmkit.export.parity.tensor_faults import rows_of
from llmkit.quant import dequantize, quantize

# How far from the weights a row may be, in distances of the rounded row. Error feedback moves
# weights to make up for others: up to 2.8 times as far in a trained GPT's feed-forward layers.
# Another row is 12 times as far in 4 bits, and farther in more.
FARTHEST = 8.0


def hashes_of(file: GGUFFile) -> Mapping[str, str]:
    """The hash of each tensor whose blocks were chosen, by names in the checkpoint.

    Raises GGUFError where the file's list is none.
    """
    text = file.metadata.get(BLOCKS_KEY)
    if text is None:
        return {}
    try:
        hashes = json.loads(text)
    except (TypeError, ValueError):
        hashes = None
    if not isinstance(hashes, dict):
        raise GGUFError(f"{file.path}: {BLOCKS_KEY} is no list of hashes; export it again")
    return hashes


def chosen_faults(
    file: GGUFFile, wanted: Sequence[WantedTensor], hashes: Mapping[str, str]
) -> dict[str, str]:
    """What is wrong, by GGUF name, with the tensors of the right shape that are in `hashes`."""
    faults = {}
    for tensor in wanted:
        if tensor.source in hashes:
            text = _fault(file.tensors[tensor.name], tensor, hashes[tensor.source])
            if text:
                faults[tensor.name] = text
    return faults


def _fault(found: StoredTensor, wanted: WantedTensor, sha256: str) -> str:
    rows = rows_of(found)
    weights = wanted.weights()
    distances = np.square(dequantize(rows, wanted.stored) - weights).mean(axis=1)
    # Types that need importances have no rounding without; all alike are as good for a measure.
    alike = np.ones(wanted.shape[-1], np.float32) if wanted.stored.needs_importance else None
    blocks = quantize(weights, wanted.stored, wanted.name, alike)
    rounded = np.square(dequantize(blocks, wanted.stored) - weights).mean(axis=1)
    # A row that rounding meets exactly may be missed by as much as the others on the mean.
    far = ~(distances <= FARTHEST**2 * np.maximum(rounded, rounded.mean()))
    if far.any():
        return (
            f"{far.sum()} of {len(far)} rows are not the checkpoint's, first row {far.argmax()}: "
            f"more than {FARTHEST:.0f} times as far from it as rounding"
        )
    if hash_of_blocks(rows) != sha256:
        return "some blocks are not those that were chosen: their hash is another"
    return ""
