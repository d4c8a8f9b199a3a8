"""ggml's own C functions, from the library that llama-cpp-python brings along.

Found without importing llama_cpp, and loaded at the first use. The functions run without the GIL.
"""

from __future__ import annotations

import ctypes
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from llmkit.errors import QuantizationError
from llmkit.quant.types import FloatRows, PackedRows, QuantType

_LIBRARY_NAMES = ("libggml-base.so", "libggml-base.dylib", "ggml-base.dll")


@cache
def _library() -> ctypes.CDLL | None:
    spec = find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / "lib"
    path = next((folder / name for name in _LIBRARY_NAMES if (folder / name).exists()), None)
    if path is None:
        return None
    library = ctypes.CDLL(str(path))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = (
        ctypes.c_int,  # type
        ctypes.c_void_p,  # float32 source
        ctypes.c_void_p,  # destination
        ctypes.c_int64,  # first weight
        ctypes.c_int64,  # rows
        ctypes.c_int64,  # weights per row
        ctypes.c_void_p,  # importances of a row, or null
    )
    return library


def has_library() -> bool:
    """Whether ggml's library is installed."""
    return _library() is not None


def _required(what: str) -> ctypes.CDLL:
    library = _library()
    if library is None:
        raise QuantizationError(
            f"{what} needs {_LIBRARY_NAMES[0]}, which the installed llama-cpp-python lacks;"
            " reinstall llama-cpp-python from a wheel"
        )
    return library


def quantize_rows(
    rows: FloatRows, qtype: QuantType, importance: NDArray[np.float32] | None, packed: PackedRows
) -> None:
    """Pack rows with `ggml_quantize_chunk` into `packed`, of (n_rows, row_bytes).

    `importance` has one weight per column of the row. Raises QuantizationError without the library.
    """
    _required(f"quantizing to {qtype.name}").ggml_quantize_chunk(
        int(qtype.ggml_type),
        rows.ctypes.data,
        packed.ctypes.data,
        0,
        *rows.shape,
        None if importance is None else importance.ctypes.data,
    )


def dequantize_rows(ggml_type: gguf.GGMLQuantizationType, packed: PackedRows) -> FloatRows:
    """Unpack rows with ggml's `dequantize_row_*`. Raises QuantizationError without the library."""
    block_size, block_bytes = gguf.GGML_QUANT_SIZES[ggml_type]
    n_rows, row_bytes = packed.shape
    weights = np.empty((n_rows, row_bytes // block_bytes * block_size), dtype=np.float32)
    name = ggml_type.name.lower()
    function = _required(f"reading {name}")[f"dequantize_row_{name.replace('_k', '_K')}"]
    function.restype = None
    function.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
    function(packed.ctypes.data, weights.ctypes.data, weights.size)
    return weights
