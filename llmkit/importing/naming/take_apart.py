"""From names and shapes of tensors to their parts in a GPT, by rules that hold in most programs.

A name is read as words: `blocks.3.attn.W_query.weight` is the matrix of queries of layer 3. What
the words leave open the shapes decide. Whatever finds no place stops the import, by name.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping

from torch import Tensor

from llmkit.errors import CheckpointError
from llmkit.importing.naming.ends import find_ends
from llmkit.importing.naming.layers import check_shapes, read_layer, shows_transposed
from llmkit.importing.naming.parts import Linear, Parts, refused
from llmkit.importing.naming.words import MASK_BIAS, MASKS, POSITIONS, words_of

_WEIGHT = re.compile(r"(.*?)[._](weight|scale|gamma|g)")
_BIAS = re.compile(r"(.*?)[._](bias|shift|beta|b)")
_LAYERS = (  # blocks.0.NAME, and layer_0.NAME or block1.NAME
    re.compile(r"(.*?\b)(\d+)\.(.+)"),
    re.compile(r"(.*?[A-Za-z]_?)(\d+)\.(.+)"),
)
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


def named_order(parts: Parts) -> str:
    """The order of queries, keys and values that a fused matrix's name states: of `kqv` k first."""
    fused = parts.layers[0].qkv
    words = words_of(fused.name) if fused is not None else []
    return next((word for word in words if sorted(word) == ["k", "q", "v"]), "qkv")


def is_buffer(name: str, tensor: Tensor) -> bool:
    """Whether a tensor is a mask or a list of positions, which no weight is."""
    words = set(words_of(name.rpartition(".")[2]))
    is_square = tensor.ndim >= 2 and tensor.shape[-1] == tensor.shape[-2]
    if words & MASKS and (is_square or tensor.ndim < 2):
        return True
    if not tensor.is_floating_point() and (tensor.ndim == 0 or words & POSITIONS):
        return True
    if MASK_BIAS.fullmatch(name):
        return tensor.ndim in (2, 4) and is_square
    return False


def take_apart(tensors: Mapping[str, Tensor]) -> Parts:
    """Find every tensor's part. Raises CheckpointError naming what has none, or what lacks."""
    ignored = sorted(name for name, tensor in tensors.items() if is_buffer(name, tensor))
    kept = {name: tensor for name, tensor in tensors.items() if name not in ignored}
    for pattern, what in _LACKING:
        segment = re.compile(rf"(.*\.)?({pattern})(\..*)?")
        if name := next((name for name in kept if segment.fullmatch(name.lower())), None):
            raise refused(what, name)
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
    tokens, positions, final_norm, head = find_ends(outside)
    width = int(tokens.weight.shape[1])
    is_transposed = shows_transposed(inside[0], width)
    layers = [read_layer(inside[i], f"{stem}{i}", width, is_transposed) for i in range(len(inside))]
    parts = Parts(tokens, positions, layers, final_norm, head, is_transposed, ignored)
    for layer in layers:
        check_shapes(layer, parts)
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
