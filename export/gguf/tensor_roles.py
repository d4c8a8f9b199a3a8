"""llama.cpp's names of tensors, of every architecture, and what llama-quantize does by them.

Functions of llama.cpp's src/llama-quant.cpp are named beside what follows them.
"""

from __future__ import annotations

import re

from llmkit.architectures.base import GGUF_HEAD, Role

_TOKEN_EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight")
# Matrices that stay as they are: `tensor_allows_quantization`.
_KEPT = re.compile(
    r"_norm\.weight|ffn_gate_inp\.weight|ffn_gate_tid2eid|altup|laurel|per_layer_model_proj"
    r"|position_embd|^token_types|ssm_conv1d|shortconv\.conv|indexer\.[kq]_proj"
    r"|time_mix_(first|w[012]|v[012]|a[012]|g[12]|decay_w[12]|lerp_fused)\.weight|attn_rel_b"
)
_ROLES = {  # `tensor_get_category`
    "attn_qkv.weight": Role.QKV,
    "attn_kv_b.weight": Role.QKV,
    "attn_v.weight": Role.QKV,
    "attn_k.weight": Role.QUERY_OR_KEY,
    "attn_q.weight": Role.QUERY_OR_KEY,
    "attn_output.weight": Role.ATTENTION_OUTPUT,
    "ffn_up": Role.FEED_FORWARD_UP,
    "ffn_gate": Role.FEED_FORWARD_UP,
    "ffn_down": Role.FEED_FORWARD_DOWN,
}


def role_of(name: str, shape: tuple[int, ...]) -> Role:
    """What a tensor is for."""
    if len(shape) < 2 or not name.endswith("weight") or _KEPT.search(name):
        return Role.KEPT
    if name in _TOKEN_EMBEDDINGS:
        return Role.TOKEN_EMBEDDING
    if name == GGUF_HEAD:
        return Role.HEAD
    return next((role for part, role in _ROLES.items() if part in name), Role.OTHER_MATRIX)


def is_gate(name: str) -> bool:
    """Whether a tensor gates a feed-forward layer."""
    return re.search(r"\.ffn_gate(_exps)?\.weight", name) is not None
