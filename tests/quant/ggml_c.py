"""The C functions of libggml-base that llama-cpp-python ships: the reference for every bit."""

from __future__ import annotations

import ctypes
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
from numpy.typing import NDArray


def _load() -> ctypes.CDLL:
    folder = Path(llama_cpp.__file__).parent / "lib"
    names = ("libggml-base.so", "libggml-base.dylib", "ggml-base.dll")
    return ctypes.CDLL(str(next(folder / name for name in names if (folder / name).exists())))


_LIB = _load()
_LIB.ggml_quantize_chunk.restype = ctypes.c_size_t
_LIB.ggml_quantize_chunk.argtypes = (
    ctypes.c_int,  # type
    ctypes.c_void_p,  # float32 source
    ctypes.c_void_p,  # destination
    ctypes.c_int64,  # first weight
    ctypes.c_int64,  # rows
    ctypes.c_int64,  # weights per row
    ctypes.c_void_p,  # importance matrix
)

_TO_FLOAT = {
    gguf.GGMLQuantizationType.F16: _LIB.ggml_fp16_to_fp32_row,
    gguf.GGMLQuantizationType.BF16: _LIB.ggml_bf16_to_fp32_row,
    gguf.GGMLQuantizationType.Q8_0: _LIB.dequantize_row_q8_0,
    gguf.GGMLQuantizationType.Q4_0: _LIB.dequantize_row_q4_0,
}
for _function in _TO_FLOAT.values():
    _function.restype = None
    _function.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)


def c_quantize(
    rows: NDArray[np.float32], ggml_type: gguf.GGMLQuantizationType, row_bytes: int
) -> NDArray[np.uint8]:
    rows = np.ascontiguousarray(rows, dtype=np.float32)
    packed = np.empty((len(rows), row_bytes), dtype=np.uint8)
    written = _LIB.ggml_quantize_chunk(
        int(ggml_type), rows.ctypes.data, packed.ctypes.data, 0, *rows.shape, None
    )
    assert written == packed.nbytes
    return packed


def c_dequantize(
    packed: NDArray[np.uint8], ggml_type: gguf.GGMLQuantizationType, row_length: int
) -> NDArray[np.float32]:
    packed = np.ascontiguousarray(packed)
    rows = np.empty((len(packed), row_length), dtype=np.float32)
    if ggml_type == gguf.GGMLQuantizationType.F32:  # has no C function: it is a copy
        rows.view(np.uint8)[:] = packed
    else:
        _TO_FLOAT[ggml_type](packed.ctypes.data, rows.ctypes.data, rows.size)
    return rows
