"""GPT-2: the model to be read from top to bottom, then what llama.cpp has to know of it.

Shapes in comments: B sequences, T tokens, C = n_embd channels, H heads of D = C / H channels,
V tokens in the vocabulary. Parameter names are GPT-2's (wte, wpe, h.0.attn.c_attn, ...);
weights are stored (out, in) as torch.nn.Linear has them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import gguf
import torch
import torch.nn.functional as F
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from llmkit.architectures import cpu_training
from llmkit.architectures.base import (
    GGUF_HEAD,
    HEAD,
    Family,
    HuggingFace,
    LanguageModel,
    Role,
    SizeKey,
    TensorSpec,
)
from llmkit.architectures.cache import KVCache
from llmkit.architectures.graph import Attention, Embed, Gelu, Norm, Operation, Product
from llmkit.errors import ConfigError

Size = Annotated[int, Field(gt=0)]
Activation = Literal["gelu_tanh", "gelu_erf", "relu"]
SHORT_CONTEXT = 256
FAST_TYPES = (torch.float32, torch.bfloat16)


@dataclass(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class GPTConfig:
    """Sizes and switches of a GPT-2 shaped model. Everything a forward pass depends on."""

    architecture: ClassVar[str] = "gpt2"

    vocab_size: Size
    context_length: Annotated[int, Field(gt=1)]  # a prompt and one token after it
    n_layer: Size
    n_head: Size
    n_embd: Size
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    qkv_bias: bool = True
    tie_embeddings: bool = True
    layer_norm_epsilon: Annotated[float, Field(gt=0)] = 1e-5
    n_ff: Annotated[int, Field(ge=0)] = 0  # inner width of feed-forward; 0: 4 x n_embd, as GPT-2
    activation: Activation = "gelu_tanh"

    def __post_init__(self) -> None:
        if not self.n_ff:
            object.__setattr__(self, "n_ff", 4 * self.n_embd)  # the dataclass is frozen
        if self.n_embd % self.n_head:
            raise ConfigError(f"n_embd {self.n_embd} must be a multiple of n_head {self.n_head}")


def sizes_at_depth(depth: int) -> dict[str, int]:
    """The sizes that follow from the number of layers. Raises ConfigError below 1.

    64 channels a layer, as in nanochat, rounded up to a multiple of 256, so that every GGUF type,
    K-quants included, can hold the rows. 64 positions a layer: short runs learn more from many
    short windows (docs/training.md).
    """
    if depth < 1:
        raise ConfigError(f"depth must be at least 1, not {depth}")
    width = 256 * math.ceil(depth / 4)
    return {
        "n_layer": depth,
        "n_head": width // 64,
        "n_embd": width,
        "context_length": min(64 * depth, 1024),
    }


# nano and micro are for a laptop's CPU. The others are OpenAI's GPT-2 sizes.
PRESETS: dict[str, dict[str, int]] = {
    "nano": sizes_at_depth(4),
    "micro": sizes_at_depth(6),
    "gpt2": {"n_layer": 12, "n_head": 12, "n_embd": 768, "context_length": 1024},
    "gpt2-medium": {"n_layer": 24, "n_head": 16, "n_embd": 1024, "context_length": 1024},
    "gpt2-large": {"n_layer": 36, "n_head": 20, "n_embd": 1280, "context_length": 1024},
    "gpt2-xl": {"n_layer": 48, "n_head": 25, "n_embd": 1600, "context_length": 1024},
}


def attention_by_hand(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention spelled out: scores, mask, softmax, weighted sum.

    q, k, v: (B, H, T, D) -> (B, H, T, D). F.scaled_dot_product_attention computes the same in one
    fused call; a test holds the two equal.
    """
    T, D = q.shape[-2:]
    future = q.new_full((T, T), -torch.inf).triu(1)
    # One product of a batch: future + q k^T / sqrt(D), (B x H, T, T).
    scores = torch.baddbmm(future, q.flatten(0, 1), k.flatten(0, 1).mT, alpha=1 / math.sqrt(D))
    weights = scores.softmax(dim=-1)  # each row sums to 1
    return (weights @ v.flatten(0, 1)).view_as(q)


def is_trained_on_cpu(x: Tensor) -> bool:
    """Whether cpu_training.py serves this tensor."""
    return x.device.type == "cpu" and x.requires_grad and x.dtype in FAST_TYPES


def causal_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float
) -> Tensor:
    """Attention of queries (B, H, T, D) to keys and values (B, H, S, D): (B, H, T, D).

    PyTorch's kernel, except on a CPU with bfloat16 or dropout, where it takes more than twice the
    time of `short_attention`: that serves contexts so short that the weights are no burden for
    memory.
    """
    T = q.shape[2]
    is_short = mask is None and 1 < T <= SHORT_CONTEXT
    by_compiler = torch.compiler.is_compiling()  # it cannot follow the random numbers of dropout
    is_slow = not by_compiler if dropout else q.dtype == torch.bfloat16
    if is_short and is_slow and q.device.type == "cpu" and q.dtype in FAST_TYPES:
        return cpu_training.short_attention(q, k, v, dropout)
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None and T > 1, dropout_p=dropout
    )


class Dropout(nn.Dropout):
    """Dropout in training: each value is 0 with probability p, else divided by 1 - p."""

    def forward(self, x: Tensor) -> Tensor:
        """A tensor of any shape."""
        if self.training and self.p and is_trained_on_cpu(x) and not torch.compiler.is_compiling():
            return cpu_training.dropout(x, self.p)
        return super().forward(x)


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU by the tanh formula: x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))."""
    if torch.compiler.is_compiling():  # the sigmoid of twice the tanh's argument is faster there
        return x * torch.sigmoid(2 * math.sqrt(2 / math.pi) * x * (1 + 0.044715 * x * x))
    if is_trained_on_cpu(x):
        return cpu_training.gelu(x)
    return F.gelu(x, approximate="tanh")


# GPT-2 and llama.cpp's gpt2 graph have GELU by the tanh formula. Imported models may have another:
# the exact GELU differs by 5e-4 at most; for ReLU see `in_llama_cpp`.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_tanh": gelu_tanh,
    "gelu_erf": F.gelu,
    "relu": F.relu,
}


class CausalSelfAttention(nn.Module):
    """Every token looks at itself and the tokens before it."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.n_head = config.n_head
        self.dropout = config.dropout
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.qkv_bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x: Tensor, cache: KVCache | None) -> Tensor:
        """Attend and mix the heads: (B, T, C) -> (B, T, C)."""
        return self.c_proj(self.attend(self.c_attn(x), cache))  # type: ignore[no-any-return]

    def attend(self, qkv: Tensor, cache: KVCache | None = None) -> Tensor:
        """What each head saw, side by side: queries, keys and values (B, T, 3C) -> (B, T, C)."""
        B, T, C = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
        q, k, v = (
            part.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)  # (B, H, T, D)
            for part in torch.split(qkv, C, dim=2)
        )
        mask = None
        if cache is not None:
            mask = cache.mask(T, qkv.device)
            k, v = cache.extend(self.layer, k, v)  # (B, H, S, D), S = tokens seen + T
        y = causal_attention(q, k, v, mask, self.dropout if self.training else 0.0)
        return y.transpose(1, 2).reshape(B, T, C)


class FeedForward(nn.Module):
    """Two linear layers with an activation between, applied to each token alone."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.activation]
        self.c_fc = nn.Linear(config.n_embd, config.n_ff)
        self.c_proj = nn.Linear(config.n_ff, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        """Transform: (B, T, C) -> (B, T, C)."""
        return self.c_proj(self.activation(self.c_fc(x)))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention, then feed-forward; each on a normalised copy and added to the stream."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = CausalSelfAttention(config, layer)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = FeedForward(config)
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor, cache: KVCache | None) -> Tensor:
        """Add what attention and feed-forward say: (B, T, C) -> (B, T, C)."""
        x = x + self.dropout(self.attn(self.ln_1(x), cache))
        return x + self.dropout(self.mlp(self.ln_2(x)))  # type: ignore[no-any-return]


class GPT(LanguageModel):
    """Token ids in, a logit for every token of the vocabulary out."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.context_length, config.n_embd)
        self.dropout = Dropout(config.dropout)
        self.h = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        # A tied head is the token embedding itself and has no parameters of its own.
        self.lm_head = (
            None
            if config.tie_embeddings
            else nn.Linear(config.n_embd, config.vocab_size, bias=False)
        )
        self.apply(self._initialise)

    def _initialise(self, module: nn.Module) -> None:
        """GPT-2's start: N(0, 0.02), smaller where 2 n_layer outputs add up in the stream."""
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, CausalSelfAttention | FeedForward):
            nn.init.normal_(module.c_proj.weight, std=0.02 / math.sqrt(2 * self.config.n_layer))

    def embed(self, tokens: Tensor, positions: Tensor | None = None) -> Tensor:
        """Token and position rows added, for token ids (B, T): (B, T, C)."""
        if positions is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device)  # (T,)
        return self.wte(tokens) + self.wpe(positions)  # type: ignore[no-any-return]

    def transform(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        """What the blocks make of embedded tokens: (B, T, C) -> (B, T, C), normalised."""
        x = self.dropout(x)
        for block in self.h:
            x = self.run_block(block, x, cache)
        return self.ln_f(x)  # type: ignore[no-any-return]

    # The head's product with the result, wte^T or lm_head^T, is LanguageModel.logits.

    @property
    def token_embedding(self) -> nn.Embedding:
        """Token ids are looked up in it; a tied head multiplies with it."""
        return self.wte

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The blocks in the order in which they are run."""
        return list(self.h)

    @property
    def final_norm(self) -> nn.Module:
        """The LayerNorm before the head."""
        return self.ln_f


# What llama.cpp has to know: names, keys, memory and the order of operations.

_KEYS = gguf.Keys.LLM
SIZE_KEYS = (
    SizeKey(_KEYS.CONTEXT_LENGTH, "context_length"),
    SizeKey(_KEYS.EMBEDDING_LENGTH, "n_embd"),
    SizeKey(_KEYS.BLOCK_COUNT, "n_layer"),
    SizeKey(_KEYS.FEED_FORWARD_LENGTH, "n_ff"),
    SizeKey(_KEYS.VOCAB_SIZE, "vocab_size"),
    SizeKey(gguf.Keys.Attention.HEAD_COUNT, "n_head"),
    SizeKey(gguf.Keys.Attention.LAYERNORM_EPS, "layer_norm_epsilon", gguf.GGUFValueType.FLOAT32),
)


def tensors(config: GPTConfig) -> Iterator[TensorSpec]:
    """Every tensor of a model with these sizes, in file order."""
    C, F, V, T = config.n_embd, config.n_ff, config.vocab_size, config.context_length
    yield TensorSpec("wte.weight", "token_embd.weight", (V, C), Role.TOKEN_EMBEDDING)
    yield TensorSpec("wpe.weight", "position_embd.weight", (T, C), Role.POSITION_EMBEDDING)
    for i in range(config.n_layer):
        yield from _norm(f"h.{i}.ln_1", f"blk.{i}.attn_norm", C, i)
        for ours, theirs, shape, role in (
            ("attn.c_attn", "attn_qkv", (3 * C, C), Role.QKV),
            ("attn.c_proj", "attn_output", (C, C), Role.ATTENTION_OUTPUT),
        ):
            has_bias = role is not Role.QKV or config.qkv_bias
            yield from _linear(f"h.{i}.{ours}", f"blk.{i}.{theirs}", shape, role, i, has_bias)
        yield from _norm(f"h.{i}.ln_2", f"blk.{i}.ffn_norm", C, i)
        for ours, theirs, shape, role in (
            ("mlp.c_fc", "ffn_up", (F, C), Role.FEED_FORWARD_UP),
            ("mlp.c_proj", "ffn_down", (C, F), Role.FEED_FORWARD_DOWN),
        ):
            yield from _linear(f"h.{i}.{ours}", f"blk.{i}.{theirs}", shape, role, i)
    yield from _norm("ln_f", "output_norm", C, None)
    if not config.tie_embeddings:
        yield TensorSpec(HEAD, GGUF_HEAD, (V, C), Role.HEAD)


def _norm(ours: str, theirs: str, width: int, layer: int | None) -> Iterator[TensorSpec]:
    yield TensorSpec(f"{ours}.weight", f"{theirs}.weight", (width,), Role.NORM, layer)
    yield TensorSpec(f"{ours}.bias", f"{theirs}.bias", (width,), Role.BIAS, layer)


def _linear(
    ours: str,
    theirs: str,
    shape: tuple[int, int],
    role: Role,
    layer: int,
    has_bias: bool = True,
) -> Iterator[TensorSpec]:
    yield TensorSpec(f"{ours}.weight", f"{theirs}.weight", shape, role, layer)
    # llama.cpp needs a bias of q, k and v; zeros stand in for one that the model has not.
    yield TensorSpec(
        f"{ours}.bias", f"{theirs}.bias", shape[:1], Role.BIAS, layer, is_absent=not has_bias
    )


def graph(config: GPTConfig) -> Iterator[Operation]:
    """llama.cpp's graph of `gpt2` (llm_build_gpt2, src/models/gpt2.cpp), in its order."""
    stream = "inpL"
    yield Embed(
        (), stream, "token_embd + position_embd", "token_embd.weight", "position_embd.weight"
    )

    def norm(inputs: str, output: str, title: str, name: str) -> Norm:
        weight, bias = f"{name}.weight", f"{name}.bias"
        return Norm((inputs,), output, f"{title}: {name}", weight, bias, config.layer_norm_epsilon)

    def product(inputs: tuple[str, ...], output: str, title: str, name: str) -> Product:
        weight, bias = f"{name}.weight", f"{name}.bias"
        return Product(inputs, output, f"{title}: {weight}", weight, bias)

    for i in range(config.n_layer):
        b = f"blk.{i}"
        yield norm(stream, f"attn_norm-{i}", f"{b}: stream -> attn_norm", f"{b}.attn_norm")
        qkv = product((f"attn_norm-{i}",), f"wqkv_b-{i}", f"{b}: attn_norm -> qkv", f"{b}.attn_qkv")
        yield replace(qkv, parts=("q", "k", "v"))
        yield Attention((f"wqkv_b-{i}",), f"kqv_out-{i}", f"{b}: qkv -> attention", config.n_head)
        yield product(
            (f"kqv_out-{i}", stream),
            f"ffn_inp-{i}",
            f"{b}: attention -> stream",
            f"{b}.attn_output",
        )
        stream = f"ffn_inp-{i}"
        yield norm(stream, f"ffn_norm-{i}", f"{b}: stream -> ffn_norm", f"{b}.ffn_norm")
        yield product(
            (f"ffn_norm-{i}",), f"ffn_up_b-{i}", f"{b}: ffn_norm -> ffn_up", f"{b}.ffn_up"
        )
        yield Gelu((f"ffn_up_b-{i}",), f"ffn_gelu-{i}", f"{b}: ffn_up -> gelu")
        yield product(
            (f"ffn_gelu-{i}", stream), f"l_out-{i}", f"{b}: gelu -> stream", f"{b}.ffn_down"
        )
        stream = f"l_out-{i}"
    yield norm(stream, "result_norm", "stream -> output_norm", "output_norm")
    head = "token_embd.weight" if config.tie_embeddings else GGUF_HEAD
    yield Product(("result_norm",), "result_output", f"output_norm -> logits: {head}", head)


# By type of the second feed-forward matrix, which is divided by it: the f16 scales of blocks lose
# digits below 6e-5, and those of K-quants are smaller still. The best of eight powers of two for a
# ReLU model of three layers, by KL (tests/benchmarks/bench_relu.py).
_RELU_SCALES = {"f32": 4096.0, "bf16": 4096.0, "f16": 256.0}
_RELU_SCALE_OF_BLOCKS, _RELU_SCALE_OF_K_QUANTS = 64.0, 32.0


def _relu_scale(qtype: str) -> float:
    blocks = _RELU_SCALE_OF_K_QUANTS if qtype.endswith("_k") else _RELU_SCALE_OF_BLOCKS
    return _RELU_SCALES.get(qtype, blocks)


def in_llama_cpp(
    config: GPTConfig, type_of: Callable[[TensorSpec], str]
) -> tuple[GPTConfig, dict[str, float]]:
    """GELU by the tanh formula, whatever the model has.

    For ReLU: relu(x) is near gelu(a x) / a for a large a. The first feed-forward matrix and its
    bias are multiplied by a, a power of two, and the second matrix is divided by it.
    """
    scales: dict[str, float] = {}
    run = replace(config, activation="gelu_tanh")
    if config.activation != "relu":
        return run, scales
    specs = list(tensors(config))
    for down in specs:
        if down.role is Role.FEED_FORWARD_DOWN:
            scale = _relu_scale(type_of(down))
            scales[down.checkpoint_name] = 1 / scale
            up = next(s for s in specs if s.role is Role.FEED_FORWARD_UP and s.layer == down.layer)
            scales |= {f"{up.module}.weight": scale, f"{up.module}.bias": scale}
    return run, scales


_HUGGING_FACE_ACTIVATIONS = {"gelu_tanh": "gelu_new", "gelu_erf": "gelu", "relu": "relu"}


def huggingface_config(config: GPTConfig, is_classifier: bool) -> dict[str, Any]:
    """What transformers' GPT2Config has to know, and `n_ctx`, which llama.cpp's converter reads."""
    name = "GPT2ForSequenceClassification" if is_classifier else "GPT2LMHeadModel"
    return {
        "architectures": [name],
        "model_type": "gpt2",
        "vocab_size": config.vocab_size,
        "n_positions": config.context_length,
        "n_ctx": config.context_length,
        "n_embd": config.n_embd,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_inner": None if config.n_ff == 4 * config.n_embd else config.n_ff,
        "activation_function": _HUGGING_FACE_ACTIVATIONS[config.activation],
        "layer_norm_epsilon": config.layer_norm_epsilon,
        "tie_word_embeddings": config.tie_embeddings,
        **dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), config.dropout),
        # Not transformers': its model always has the bias, and zeros stand in.
        **({} if config.qkv_bias else {"qkv_bias": False}),
    }


GPT2 = Family(
    GPTConfig,
    GPT,
    PRESETS,
    tensors,
    SIZE_KEYS,
    graph,
    in_llama_cpp,
    HuggingFace("transformer.", True, "score.weight", huggingface_config),
)
