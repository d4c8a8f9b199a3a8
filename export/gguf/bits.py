"""Where a GGUF file's bits lie."""

from __future__ import annotations

from collections import defaultdict

from llmkit.architectures.base import Role
from llmkit.export.gguf.reader import GGUFFile
from llmkit.export.gguf.sizes import specs_of

# A tied head is the embedding. Biases, norms and positions are in no group: they stay f32.
_GROUPS = {
    Role.TOKEN_EMBEDDING: "embedding",
    Role.QKV: "attention",
    Role.SHARED_VALUE: "attention",
    Role.QUERY_OR_KEY: "attention",
    Role.ATTENTION_OUTPUT: "attention",
    Role.FEED_FORWARD_UP: "feed_forward",
    Role.FEED_FORWARD_DOWN: "feed_forward",
    Role.HEAD: "head",
}
GROUPS = tuple(dict.fromkeys(_GROUPS.values()))


def bits_by_group(file: GGUFFile) -> dict[str, float]:
    """Bits per weight of the matrices of each group that the file has."""
    n_bits: dict[str, int] = defaultdict(int)
    n_weights: dict[str, int] = defaultdict(int)
    for spec in specs_of(file):
        group, tensor = _GROUPS.get(spec.role), file.tensors[spec.gguf_name]
        if group is not None:
            n_bits[group] += 8 * tensor.blocks.nbytes
            n_weights[group] += tensor.n_weights
    return {group: n_bits[group] / n_weights[group] for group in GROUPS if group in n_bits}
