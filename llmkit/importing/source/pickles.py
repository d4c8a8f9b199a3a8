"""Pickle files read without running anything that is in them.

A pickle names classes and functions and says what to call them with. Here only what rebuilds
tensors is called; every other class becomes a `Bag` of its attributes. Names that only an attack
needs are refused.
"""

from __future__ import annotations

import io
import pickle
import struct
import sys
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Callable
from math import prod
from typing import Any, ClassVar

import torch
from torch import Tensor

from llmkit.errors import CheckpointError

_MAX_REPEATED_BYTES = 1 << 26  # of an expanded tensor, such as a mask
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # torch/serialization.py
# Of Python's own modules a checkpoint has reason to name these; the others only an attack.
_HARMLESS = {
    "__future__", "_codecs", "abc", "argparse", "array", "builtins", "collections", "copyreg",
    "dataclasses", "datetime", "decimal", "enum", "fractions", "functools", "itertools", "logging",
    "numbers", "pathlib", "random", "string", "time", "types", "typing", "uuid", "weakref",
}  # fmt: skip
_ATTACKS = ("torch.hub", "torch.jit", "torch.serialization", "numpy.load", "numpy.save")
_BUILTINS: dict[str, Any] = {
    "set": set,
    "frozenset": frozenset,
    "dict": dict,
    "list": list,
    "tuple": tuple,
    "int": int,
    "float": float,
    "bool": bool,
    "str": str,
    "bytes": lambda *args: bytes(*_not_a_size(args)),
    "bytearray": lambda *args: bytearray(*_not_a_size(args)),
    "complex": complex,
    "object": object,
    "slice": slice,
}


def _not_a_size(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Arguments of bytes(); bytes(N) would make N zeros of nothing."""
    if args and isinstance(args[0], int):
        raise pickle.UnpicklingError("bytes without content")
    return args


class Bag:
    """What a pickle says of an object: its class by name, its arguments and its attributes."""

    class_name: ClassVar[str] = ""

    def __new__(cls, *args: Any, **kwargs: Any) -> Bag:
        """Keep the arguments, whatever they are."""
        self = super().__new__(cls)
        self.__dict__["args"] = args
        return self

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take any arguments; `__new__` has kept them."""

    def __setstate__(self, state: Any) -> None:
        for part in state if isinstance(state, tuple) else (state,):
            if isinstance(part, dict):
                self.__dict__.update({str(name): value for name, value in part.items()})

    def __setitem__(self, key: Any, value: Any) -> None:
        self.__dict__.setdefault("items", {})[key] = value

    def append(self, value: Any) -> None:
        """Keep a list's element."""
        self.__dict__.setdefault("elements", []).append(value)

    def extend(self, values: Any) -> None:
        """Keep a list's elements."""
        self.__dict__.setdefault("elements", []).extend(values)


class Storage:
    """Numbers of a tensor in the file."""

    def __init__(self, storage: torch.UntypedStorage, dtype: torch.dtype) -> None:
        self.untyped, self.dtype = storage, dtype


_STORAGE_TYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "UntypedStorage": torch.uint8,
}


def _rebuild_tensor(
    storage: Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> Tensor:
    if not isinstance(storage, Storage):
        raise pickle.UnpicklingError("a tensor without numbers")
    if any(part < 0 for part in (offset, *size, *stride)):
        raise pickle.UnpicklingError("a tensor of negative size")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if all(size) and (last + 1) * storage.dtype.itemsize > storage.untyped.nbytes():
        raise pickle.UnpicklingError("a tensor reaches past the end of its numbers")
    if prod(size) * storage.dtype.itemsize > max(storage.untyped.nbytes(), _MAX_REPEATED_BYTES):
        raise pickle.UnpicklingError("a tensor repeats few numbers without end")
    tensor = torch.empty(0, dtype=storage.dtype)
    return tensor.set_(storage.untyped, offset, size, stride)


def _rebuild_tensor_of_type(storage: Storage, *args: Any) -> Tensor:
    """A tensor whose type the storage's name cannot say: (..., dtype, metadata)."""
    return _rebuild_tensor(Storage(storage.untyped, checked_dtype(args[5])), *args[:3])


def _rebuild_parameter(data: Tensor, *_: Any) -> Tensor:
    return data


def _reconstructor(cls: Any, *_: Any) -> Any:
    return cls() if isinstance(cls, type) and issubclass(cls, Bag) else Bag()


class Unpickler(pickle.Unpickler):
    """Rebuilds tensors and plain data, and nothing else."""

    def __init__(self, file: io.BufferedIOBase, persistent: Callable[[Any], Any]) -> None:
        super().__init__(file)
        self._persistent = persistent

    def persistent_load(self, key: Any) -> Any:
        """A tensor's numbers, which the file keeps apart."""
        return self._persistent(key)

    def find_class(self, module: str, name: str) -> Any:
        """What may be called, or a `Bag`; raises CheckpointError for what can do harm."""
        # Python 2's names, which torch.save writes too.
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        if _is_harmful(module, name):
            raise CheckpointError(f"it calls {module}.{name} when loaded, which can harm you")
        if module == "builtins":
            if name not in _BUILTINS:
                raise CheckpointError(f"it calls {module}.{name} when loaded, which can harm you")
            return _BUILTINS[name]
        full = f"{module}.{name}"
        if full in _REBUILDERS:
            return _REBUILDERS[full]
        if module in ("torch", "torch.storage") and name in _STORAGE_TYPES:
            return _STORAGE_TYPES[name]
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if name.startswith("_rebuild"):
            raise CheckpointError(f"it has tensors of another kind ({full}); save them as floats")
        return type(name, (Bag,), {"class_name": full})


def _is_harmful(module: str, name: str) -> bool:
    *attributes, last = name.split(".")
    tops = (module.partition(".")[0], *attributes)
    return (
        any(top in sys.stdlib_module_names and top not in _HARMLESS for top in tops)
        or f"{module}.{name}".startswith(_ATTACKS)
        or last.startswith("__")
    )


_REBUILDERS: dict[str, Any] = {
    "collections.OrderedDict": OrderedDict,
    "collections.defaultdict": lambda *_: {},
    "collections.Counter": lambda *args: dict(*args),
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v3": _rebuild_tensor_of_type,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
    "torch._tensor._rebuild_from_type_v2": lambda rebuild, _, args, *__: rebuild(*args),
    "torch.nn.parameter.Parameter": _rebuild_parameter,
    "torch.storage._load_from_bytes": lambda data: read_legacy(io.BytesIO(data), len(data)),
    "torch.Size": tuple,
    "torch.device": str,
    "torch.torch_version.TorchVersion": str,
    "copyreg._reconstructor": _reconstructor,
    "_codecs.encode": lambda text, *_: text.encode("latin-1"),
    "pathlib.PosixPath": lambda *parts: "/".join(parts),
    "pathlib.WindowsPath": lambda *parts: "\\".join(parts),
}


def read_legacy(file: Any, n_bytes: int) -> Any:
    """A plain pickle, or torch.save's format before 1.6: pickles, then the numbers."""
    storages: dict[str, Storage] = {}

    def persistent(key: Any) -> Any:
        if key[0] == "module":  # a class with its source text
            return key[1]
        _, dtype, name, _, numel, *_ = key
        if name not in storages:
            size = int(numel) * checked_dtype(dtype).itemsize
            if not 0 <= size <= n_bytes:
                raise EOFError("the file is truncated")
            storages[name] = Storage(
                torch.UntypedStorage(size),  # type: ignore[no-untyped-call]
                checked_dtype(dtype),
            )
        return storages[name]

    def load() -> Any:
        return Unpickler(file, persistent).load()

    found = load()
    if found != _LEGACY_MAGIC:
        return found
    load(), load()  # the version of the format, the sizes of integers
    found = load()
    for name in load():
        (numel,) = struct.unpack("<q", file.read(8))
        storage = storages[name]
        if numel * storage.dtype.itemsize != storage.untyped.nbytes():
            raise EOFError("a tensor's numbers have another size than it says")
        data = file.read(storage.untyped.nbytes())
        if len(data) != storage.untyped.nbytes():
            raise EOFError("the file is truncated")
        if data:
            whole = torch.empty(0, dtype=torch.uint8).set_(storage.untyped)
            whole.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
    return found


def checked_dtype(found: Any) -> torch.dtype:
    """The type of a tensor's numbers. Raises CheckpointError for one that is not known."""
    if not isinstance(found, torch.dtype):
        name = getattr(found, "class_name", found)
        raise CheckpointError(f"it has tensors of type {name}; save them as floats")
    return found
