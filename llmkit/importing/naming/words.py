"""Words that programs give to the parts of a GPT."""

from __future__ import annotations

import re


def word_set(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


# Words of masks and tables of positions that programs keep beside the weights.
MASKS = word_set("mask masked tril triu")
POSITIONS = word_set("pos position positions idxs ids")
# Anchored, so that it does not take a bias of c_attn with it.
MASK_BIAS = re.compile(r".*\b(attn|attention|att|sa|self_attn)\.bias")
HEAD_NUMBER = re.compile(r"(.*?)\b(?:\w*heads?\w*)\.(\d+)\.(.+)")
FILLERS = word_set(
    "c w to fc proj projection linear lin layer weight weights matrix mat attn "
    "attention self mha att sa net in all heads head multi"
)
Q, K, V = (
    word_set("q query queries qs"),
    word_set("k key keys ks"),
    word_set("v value values vs"),
)
QKV = word_set("qkv qvk kqv kvq vqk vkq q_k_v query_key_value")
ATTENTION = word_set(
    "attn attention att sa mha self_attn self_attention msa mhsa csa causal_attn "
    "multi_head_attention multihead_attention causal_self_attention attn_block"
)
FEED_FORWARD = word_set(
    "mlp ff ffn ffwd feed_forward feedforward feedfwd fc_net mlp_block ff_net ffnet post"
)
HEADS = word_set(
    "head lm lmhead output out decoder unembed unembedding classifier score logits proj fc linear "
    "to generator final"
)
EMBEDDINGS = word_set("emb embed embedding embeddings wte tok")


def words_of(name: str) -> list[str]:
    """The words of a name: of `c_attn` c and attn, of `W_query` w and query, of `fc1` fc and 1."""
    spaced = re.sub(r"([a-z])([A-Z])", r"\1_\2", name)
    spaced = re.sub(r"([a-zA-Z])(\d)", r"\1_\2", spaced)
    return [word for word in re.split(r"[._]+", spaced.lower()) if word]


def numbers(name: str) -> list[int]:
    """The numbers in a name."""
    return [int(number) for number in re.findall(r"\d+", name)]
