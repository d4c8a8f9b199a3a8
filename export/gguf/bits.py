"""Where a GGUF file's bits lie."""

from __future__ import annotations

from collections import defaultdict

from llmkit.export.gguf.reader import GGUFFile

# The first part of a GGUF name that fits says the group. A tied head is the embedding.
_GROUPS = {
    "token_embd.": "embedding",
    "attn_": "attention",
    "ffn_": "feed_forward",
    "output.": "head",
}
GROUPS = tuple(_GROUPS.values())


def bits_by_group(file: GGUFFile) -> dict[str, float]:
    """Bits per weight of the matrices of each group that the file has.

    Biases, norms and positions are in none: they are added, and stay f32.
    """
    n_bits: dict[str, int] = defaultdict(int)
    n_weights: dict[str, int] = defaultdict(int)
    for tensor in file.tensors.values():
        name = tensor.name.split(".", 2)[-1] if tensor.name.startswith("blk.") else tensor.name
        group = next((_GROUPS[start] for start in _GROUPS if name.startswith(start)), None)
        if group is not None and len(tensor.shape) == 2:
            n_bits[group] += 8 * tensor.blocks.nbytes
            n_weights[group] += tensor.n_weights
    return {group: n_bits[group] / n_weights[group] for group in GROUPS if group in n_bits}
