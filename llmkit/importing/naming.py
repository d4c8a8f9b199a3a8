"""From names and shapes of tensors to their parts in a GPT, by rules that hold in most programs.

A name is read as words: `blocks.3.attn.W_query.weight` is the matrix of queries of layer 3. What
the words leave open the shapes decide. Whatever finds no place stops the import, by name.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from llmkit.errors import CheckpointError
from llmkit.importing.pickles import word_set

# Words of masks and tables of positions that programs keep beside the weights.
_MASKS = word_set("mask masked tril triu")
_POSITIONS = word_set("pos position positions idxs ids")
# Anchored, so that it does not take a bias of c_attn with it.
_MASK_BIAS = re.compile(r".*\b(attn|attention|att|sa|self_attn)\.bias")
_WEIGHT = re.compile(r"(.*?)[._](weight|scale|gamma|g)")
_BIAS = re.compile(r"(.*?)[._](bias|shift|beta|b)")
_LAYERS = (  # blocks.0.NAME, and layer_0.NAME or block1.NAME
    re.compile(r"(.*?\b)(\d+)\.(.+)"),
    re.compile(r"(.*?[A-Za-z]_?)(\d+)\.(.+)"),
)
_HEAD_NUMBER = re.compile(r"(.*?)\b(?:\w*heads?\w*)\.(\d+)\.(.+)")
_FILLERS = word_set(
    "c w to fc proj projection linear lin layer weight weights matrix mat attn "
    "attention self mha att sa net in all heads head multi"
)
_Q, _K, _V = (
    word_set("q query queries qs"),
    word_set("k key keys ks"),
    word_set("v value values vs"),
)
_QKV = word_set("qkv qvk kqv kvq vqk vkq q_k_v query_key_value")
_ATTENTION = word_set(
    "attn attention att sa mha self_attn self_attention msa mhsa csa causal_attn "
    "multi_head_attention multihead_attention causal_self_attention attn_block"
)
_FEED_FORWARD = word_set(
    "mlp ff ffn ffwd feed_forward feedforward feedfwd fc_net mlp_block ff_net ffnet post"
)
_HEADS = word_set(
    "head lm lmhead output out decoder unembed unembedding classifier score logits proj fc linear "
    "to generator final"
)
_EMBEDDINGS = word_set("emb embed embedding embeddings wte tok")
# What llama.cpp's gpt2 graph lacks, by words in the names of its tensors.
_LACKING = (
    (r"inv_freq|rotary\w*|freqs?(_cis)?|(cos|sin)_cached|rope\w*", "rotary positions (RoPE)"),
    (r"alibi\w*|slopes", "ALiBi positions"),
    (r"rel(ative)?_(pos|bias|attention)\w*", "relative positions"),
    (r"experts?|router", "a mixture of experts"),
    (r"(\w+_)?rms\w*", "RMSNorm"),
    (r"layer_?scale\w*|ls_?\d", "scaled branches (LayerScale)"),
    (r"[qk]_?(norm|ln|layernorm)|(query|key)_norm", "norms on queries and keys"),
    (r"(\w+_)?gate(_\w+)?|w_?3|fc_?3", "a gated feed-forward layer (SwiGLU)"),
)


@dataclass
class Linear:
    """A matrix (out, in) with its bias, or a norm's weight (C,) with its bias."""

    name: str
    weight: Tensor
    bias: Tensor | None = None
    bias_name: str | None = None


@dataclass
class Layer:
    """One block. Queries, keys and values are apart or one fused matrix."""

    norms: list[Linear] = field(default_factory=list)
    qkv: Linear | None = None
    q: list[Linear] = field(default_factory=list)  # one, or one per head
    k: list[Linear] = field(default_factory=list)
    v: list[Linear] = field(default_factory=list)
    attention_output: Linear | None = None
    up: Linear | None = None
    down: Linear | None = None


@dataclass
class Parts:
    """A GPT taken apart."""

    tokens: Linear
    positions: Linear
    layers: list[Layer]
    final_norm: Linear
    head: Linear | None  # None where only the token embedding is in the file
    is_transposed: bool  # matrices are (in, out), as Hugging Face's Conv1D has them
    ignored: list[str]

    @property
    def n_embd(self) -> int:
        """Width of the stream."""
        return int(self.tokens.weight.shape[1])


def words_of(name: str) -> list[str]:
    """The words of a name: of `c_attn` c and attn, of `W_query` w and query, of `fc1` fc and 1."""
    spaced = re.sub(r"([a-z])([A-Z])", r"\1_\2", name)
    spaced = re.sub(r"([a-zA-Z])(\d)", r"\1_\2", spaced)
    return [word for word in re.split(r"[._]+", spaced.lower()) if word]


def named_order(parts: Parts) -> str:
    """The order of queries, keys and values that a fused matrix's name states: of `kqv` k first."""
    fused = parts.layers[0].qkv
    words = words_of(fused.name) if fused is not None else []
    return next((word for word in words if sorted(word) == ["k", "q", "v"]), "qkv")


def is_buffer(name: str, tensor: Tensor) -> bool:
    """Whether a tensor is a mask or a list of positions, which no weight is."""
    words = set(words_of(name.rpartition(".")[2]))
    is_square = tensor.ndim >= 2 and tensor.shape[-1] == tensor.shape[-2]
    if words & _MASKS and (is_square or tensor.ndim < 2):
        return True
    if not tensor.is_floating_point() and (tensor.ndim == 0 or words & _POSITIONS):
        return True
    if _MASK_BIAS.fullmatch(name):
        return tensor.ndim in (2, 4) and is_square
    return False


def take_apart(tensors: Mapping[str, Tensor]) -> Parts:
    """Find every tensor's part. Raises CheckpointError naming what has none, or what lacks."""
    ignored = sorted(name for name, tensor in tensors.items() if is_buffer(name, tensor))
    kept = {name: tensor for name, tensor in tensors.items() if name not in ignored}
    for pattern, what in _LACKING:
        segment = re.compile(rf"(.*\.)?({pattern})(\..*)?")
        if name := next((name for name in kept if segment.fullmatch(name.lower())), None):
            raise _refused(what, name)
    modules = _modules(kept)
    stem, numbered = _layer_stem(modules)
    outside: dict[str, Linear] = {}
    inside: dict[int, dict[str, Linear]] = defaultdict(dict)
    for name, module in modules.items():
        found = numbered.fullmatch(f"{name}.")
        if found and found[1] == stem:
            inside[int(found[2])][found[3].rstrip(".")] = module
        else:
            outside[name] = module
    if sorted(inside) != list(range(len(inside))):
        raise CheckpointError(f"layers {sorted(inside)} are not numbered without gaps from 0")
    for number in range(1, len(inside)):
        _same_tensors(inside[0], inside[number], f"{stem}{number}")
    tokens, positions, final_norm, head = _ends(outside)
    width = int(tokens.weight.shape[1])
    is_transposed = _is_transposed(inside[0], width)
    layers = [_layer(inside[i], f"{stem}{i}", width, is_transposed) for i in range(len(inside))]
    parts = Parts(tokens, positions, layers, final_norm, head, is_transposed, ignored)
    for layer in layers:
        _check_shapes(layer, parts)
    return parts


def _same_tensors(first: Mapping[str, Linear], other: Mapping[str, Linear], where: str) -> None:
    """Raise CheckpointError where a layer lacks what the first has, or has other shapes."""
    for name, module in first.items():
        found = other.get(name)
        if found is None:
            raise CheckpointError(f"{where}.{name} is missing; layer 0 has it")
        if found.weight.shape != module.weight.shape:
            raise CheckpointError(
                f"{found.name} has shape {tuple(found.weight.shape)}, but that of layer 0 has "
                f"{tuple(module.weight.shape)}"
            )
        if (found.bias is None) != (module.bias is None):
            raise CheckpointError(f"{where}.{name} and that of layer 0 do not both have a bias")
    if more := sorted(other.keys() - first.keys()):
        raise CheckpointError(f"{where}.{more[0]} is there, but layer 0 has none")


def _modules(tensors: Mapping[str, Tensor]) -> dict[str, Linear]:
    """Weights with their biases, by the name of what they belong to, in the file's order."""
    modules: dict[str, Linear] = {}
    biases: dict[str, str] = {}
    for name, tensor in tensors.items():
        if (found := _BIAS.fullmatch(name)) and tensor.ndim == 1:
            biases[found[1]] = name
            continue
        found = _WEIGHT.fullmatch(name)
        if not tensor.is_floating_point() or tensor.itemsize < 2:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise CheckpointError(f"{name} has type {kind}; expected float32, float16 or bfloat16")
        squeezed = tensor.squeeze(0) if tensor.ndim == 3 and len(tensor) == 1 else tensor
        if squeezed.ndim not in (1, 2):
            raise CheckpointError(f"{name} has shape {tuple(tensor.shape)}; a GPT has none such")
        modules[found[1] if found else name] = Linear(name, squeezed)
    for module, name in biases.items():
        if module not in modules:
            raise CheckpointError(f"{name} is a bias, but {module} has no weight in the file")
        modules[module].bias, modules[module].bias_name = tensors[name], name
    return modules


def _layer_stem(modules: Mapping[str, Linear]) -> tuple[str, re.Pattern[str]]:
    """What stands before the number of a layer, in most names; and how it is written."""
    most: tuple[int, str, re.Pattern[str]] = (0, "", _LAYERS[0])
    for is_loose, pattern in enumerate(_LAYERS):
        numbers: dict[str, list[int]] = defaultdict(list)
        for name in modules:
            if found := pattern.fullmatch(f"{name}."):
                numbers[found[1]].append(int(found[2]))
        for stem, of_names in numbers.items():
            in_order = sorted(set(of_names)) == list(range(max(of_names) + 1))
            if len(of_names) > most[0] and (in_order or not is_loose):
                most = (len(of_names), stem, pattern)
    if not most[0]:
        raise CheckpointError("no layers were found: no name has a number in it")
    return most[1:]


def _ends(outside: dict[str, Linear]) -> tuple[Linear, Linear, Linear, Linear | None]:
    """Embeddings, final norm and head: what is in no layer."""
    matrices = {name: module for name, module in outside.items() if module.weight.ndim == 2}
    norms = {name: module for name, module in outside.items() if module.weight.ndim == 1}
    positions = {n: m for n, m in matrices.items() if _is_position(n)}
    rest = {n: m for n, m in matrices.items() if n not in positions}
    heads = {n: m for n, m in rest.items() if _is_head(n)}
    tokens = {n: m for n, m in rest.items() if n not in heads}
    if len(tokens) == 2:
        _settle(tokens, positions, heads)
    if len(tokens) != 1:
        _one_of("token embedding", tokens)
    if not positions:
        raise _refused("no table of learned positions (RoPE, ALiBi or relative ones)", "")
    position_name = next(iter(positions))
    if words_of(position_name)[-1] in ("pe", "encoding") and not any(
        "embed" in word or word == "emb" for word in words_of(position_name)
    ):
        raise _refused("sinusoidal positions", position_name)
    for kind, found in (("table of positions", positions), ("head", heads)):
        if len(found) > 1:
            _one_of(kind, found)
    token_width = next(iter(tokens.values())).weight.shape[1]
    for name, module in (positions | heads).items():
        if module.weight.shape[1] != token_width:
            raise _wrong_shape(module, ("any", token_width))
        if module.bias is not None and len(module.bias) != len(module.weight):
            raise CheckpointError(f"{module.bias_name} does not fit {name} in length")
    norms = {name: norm for name, norm in norms.items() if len(norm.weight) == token_width}
    if strange := [n for n, m in outside.items() if m.weight.ndim == 1 and n not in norms]:
        raise _no_place(strange[0], outside[strange[0]].weight)
    if early := [n for n in norms if any("emb" in word for word in words_of(n))]:
        raise _refused("a norm on the embeddings", early[0])
    if len(norms) > 1:
        raise _refused("a second norm outside the layers, as on the embeddings", next(iter(norms)))
    if not norms:
        raise _refused("no norm before the head, as post-norm models", "")
    return (
        next(iter(tokens.values())),
        positions[position_name],
        next(iter(norms.values())),
        next(iter(heads.values()), None),
    )


def _settle(
    tokens: dict[str, Linear], positions: dict[str, Linear], heads: dict[str, Linear]
) -> None:
    """Take the table of positions or the head from two matrices whose names do not tell."""
    a, b = (module.weight.shape for module in tokens.values())
    if heads and not positions and a[1] == b[1]:
        n_rows = len(next(iter(heads.values())).weight)
        found = [name for name, module in tokens.items() if len(module.weight) != n_rows]
        into = positions
    else:
        found = [name for name in tokens if not _EMBEDDINGS & set(words_of(name))]
        into = heads
    if len(found) == 1 and not into and (into is positions or a == b):
        into[found[0]] = tokens.pop(found[0])


def _is_position(name: str) -> bool:
    return any(word.startswith("pos") or word in ("wpe", "pe") for word in words_of(name))


def _is_head(name: str) -> bool:
    words = set(words_of(name))
    return bool(words & _HEADS) and not words & _EMBEDDINGS


def _layer(modules: dict[str, Linear], where: str, width: int, is_transposed: bool) -> Layer:
    layer = Layer()
    left = dict(modules)
    for name, module in modules.items():
        if module.weight.ndim == 1:
            layer.norms.append(left.pop(name))
    layer.norms = _ordered_norms(layer.norms, where)
    attention: set[str] = set()
    for name in list(left):
        kind = _projection(name, left[name], width)
        if kind is None:
            continue
        attention.add(_parent(name))
        if kind == "qkv":
            layer.qkv = left.pop(name)
        else:
            getattr(layer, kind).append(left.pop(name))
    for heads in (layer.q, layer.k, layer.v):
        heads.sort(key=lambda head: _numbers(head.name))  # some files sort 10 before 2
    counts = {len(layer.q), len(layer.k), len(layer.v)}
    if len(counts) > 1 or (layer.qkv is None) == (counts == {0}):
        raise CheckpointError(f"{where} has no complete queries, keys and values")
    outputs = [n for n in left if _is_attention_output(n, left[n], attention, width)]
    if len(outputs) > 1:
        _one_of(f"output projection of {where}", {name: left[name] for name in outputs})
    if outputs:
        layer.attention_output = left.pop(outputs[0])
    if len(left) != 2:
        name = next(iter(left), "")
        raise CheckpointError(
            f"{where} has {len(left)} matrices where a GPT has the two of its feed-forward layer"
            + (f"; the first is {name}" if name else "")
        )
    layer.up, layer.down = _feed_forward(list(left.items()), width, is_transposed)
    return layer


def _numbers(name: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", name)]


def _ordered_norms(norms: list[Linear], where: str) -> list[Linear]:
    if len(norms) != 2:
        raise CheckpointError(f"{where} has {len(norms)} norms; a GPT has two in each layer")

    def is_second(norm: Linear) -> int:
        words = set(words_of(norm.name.rpartition(".")[0].rpartition(".")[2]))
        if words & (_FEED_FORWARD | {"2", "second", "after"}):
            return 1
        return -1 if words & (_ATTENTION | {"1", "first", "before", "input", "pre"}) else 0

    return sorted(norms, key=is_second)


def _projection(name: str, module: Linear, width: int) -> str | None:
    """Whether it makes queries, keys, values or all three."""
    per_head = _HEAD_NUMBER.fullmatch(name)
    last = (per_head[3] if per_head else name).split(".")
    for segment in reversed(last):
        words = [word for word in words_of(segment) if word not in _FILLERS and not word.isdigit()]
        joined = "_".join(words)
        if len(words) == 1 and len(words[0]) > 1 and words[0][0] == "w":
            joined = words[0][1:]
        if joined in _QKV or joined.replace("_", "") == "qkv":
            return "qkv"
        for kind, names in (("q", _Q), ("k", _K), ("v", _V)):
            if joined in names:
                return kind
        if joined:
            break
    if sorted(module.weight.shape) == sorted((3 * width, width)) and (
        set(words_of(name)) & _ATTENTION
    ):
        return "qkv"
    return None


def _is_attention_output(name: str, module: Linear, parents: set[str], width: int) -> bool:
    if module.weight.shape != (width, width):
        return False
    if set(words_of(name)) & _FEED_FORWARD:
        return False
    parent = _parent(name)
    near = any(p == parent or p.startswith(f"{parent}.") or parent.startswith(p) for p in parents)
    return near or bool(set(words_of(name)) & _ATTENTION)


def _parent(name: str) -> str:
    """The module that a layer's matrix lies in; of one head's, that of the heads."""
    per_head = _HEAD_NUMBER.fullmatch(name)
    return per_head[1].rstrip(".") if per_head else name.rpartition(".")[0]


def _feed_forward(
    found: Sequence[tuple[str, Linear]], width: int, is_transposed: bool
) -> tuple[Linear, Linear]:
    """The matrix into the wider space and the one back: by shapes, or by names where both fit."""
    (first_name, first), (second_name, second) = found
    if first.weight.shape != second.weight.shape[::-1]:
        raise CheckpointError(
            f"{first.name} {tuple(first.weight.shape)} and {second.name} "
            f"{tuple(second.weight.shape)} do not make a feed-forward layer"
        )
    n_in, n_out = (linear.weight.shape[not is_transposed] for linear in (first, second))
    if n_in == n_out:
        is_second = _is_down(first_name) and not _is_down(second_name)
        is_second |= _numbers(first_name) > _numbers(second_name)
    else:
        is_second = n_in != width
    return (second, first) if is_second else (first, second)


def _is_down(name: str) -> bool:
    words = set(words_of(name.rpartition(".")[2]))
    return bool(words & {"down", "proj", "out", "2", "output"}) and "up" not in words


def _is_transposed(modules: Mapping[str, Linear], width: int) -> bool:
    """Whether matrices are (in, out): a fused one of q, k and v shows it, or a bias's length."""
    for name, module in modules.items():
        shape = tuple(module.weight.shape)
        if len(shape) != 2 or shape[0] == shape[1]:
            continue
        if module.bias is not None:
            return len(module.bias) == shape[1]
        if _projection(name, module, width) == "qkv":
            return shape == (width, 3 * width)
    return False


def _check_shapes(layer: Layer, parts: Parts) -> None:
    """Raise CheckpointError where a layer's tensors do not fit together, naming one."""
    width = parts.n_embd
    if sum(len(head.weight) for head in layer.q) > sum(len(head.weight) for head in layer.k):
        raise _refused("fewer keys than queries (grouped-query attention)", layer.k[0].name)
    n_apart = len(layer.q) or 1
    wanted: list[tuple[Linear | None, tuple[int, int]]] = [
        (layer.qkv, (3 * width, width)),
        *((head, (width // n_apart, width)) for head in (*layer.q, *layer.k, *layer.v)),
        (layer.attention_output, (width, width)),
        *((norm, (width, 0)) for norm in (*layer.norms, parts.final_norm)),
    ]
    if layer.up is not None and layer.down is not None:
        n_ff = layer.up.weight.shape[parts.is_transposed]
        wanted += [(layer.up, (n_ff, width)), (layer.down, (width, n_ff))]
    for linear, (n_out, n_in) in wanted:
        if linear is None:
            continue
        shape = (n_in, n_out) if parts.is_transposed else (n_out, n_in)
        if tuple(linear.weight.shape) != (shape if n_in else (n_out,)):
            raise _wrong_shape(linear, shape)
        if linear.bias is not None and len(linear.bias) != n_out:
            raise CheckpointError(
                f"{linear.bias_name} has {len(linear.bias)} numbers; {n_out} would fit"
            )


def _wrong_shape(module: Linear, wanted: tuple[object, ...]) -> CheckpointError:
    shown = ", ".join(map(str, wanted))
    return CheckpointError(
        f"{module.name} has shape {tuple(module.weight.shape)}; a GPT of this width needs ({shown})"
    )


def _one_of(kind: str, found: Mapping[str, Linear]) -> None:
    names = ", ".join(f"{n} {tuple(m.weight.shape)}" for n, m in found.items()) or "none"
    raise CheckpointError(f"expected one {kind}, found {names}")


def _no_place(name: str, tensor: Tensor) -> CheckpointError:
    return CheckpointError(f"{name} {tuple(tensor.shape)} has no place in a GPT-2 model")


def _refused(what: str, name: str) -> CheckpointError:
    found = f" ({name})" if name else ""
    return CheckpointError(
        f"the model has {what}{found}; llama.cpp's gpt2 graph cannot compute that, and llmkit "
        "has no other yet"
    )
