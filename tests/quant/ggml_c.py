"""The C functions of libggml-base that llama-cpp-python ships: the reference for every bit."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
from numpy.typing import NDArray


def _load(library: str) -> ctypes.CDLL:
    folder = Path(llama_cpp.__file__).parent / "lib"
    names = (f"lib{library}.so", f"lib{library}.dylib", f"{library}.dll")
    return ctypes.CDLL(str(next(folder / name for name in names if (folder / name).exists())))


_LIB, _CPU = _load("ggml-base"), _load("ggml-cpu")
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


def _to_float(ggml_type: gguf.GGMLQuantizationType) -> Any:
    names = {"F16": "ggml_fp16_to_fp32_row", "BF16": "ggml_bf16_to_fp32_row"}
    usual = f"dequantize_row_{ggml_type.name.lower().replace('_k', '_K')}"
    function = _LIB[names.get(ggml_type.name, usual)]
    function.restype = None
    function.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
    return function


def c_quantize(
    rows: NDArray[np.float32],
    ggml_type: gguf.GGMLQuantizationType,
    row_bytes: int,
    importance: NDArray[np.float32] | None = None,
) -> NDArray[np.uint8]:
    rows = np.ascontiguousarray(rows, dtype=np.float32)
    packed = np.empty((len(rows), row_bytes), dtype=np.uint8)
    written = _LIB.ggml_quantize_chunk(
        int(ggml_type),
        rows.ctypes.data,
        packed.ctypes.data,
        0,
        *rows.shape,
        None if importance is None else importance.ctypes.data,
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
        _to_float(ggml_type)(packed.ctypes.data, rows.ctypes.data, rows.size)
    return rows


def needs_importance(ggml_type: gguf.GGMLQuantizationType) -> bool:
    _LIB.ggml_quantize_requires_imatrix.restype = ctypes.c_bool
    return bool(_LIB.ggml_quantize_requires_imatrix(int(ggml_type)))


def block_sizes(ggml_type: gguf.GGMLQuantizationType) -> tuple[int, int]:
    """Weights and bytes of a block."""
    _LIB.ggml_blck_size.restype = ctypes.c_int64
    _LIB.ggml_type_size.restype = ctypes.c_size_t
    return _LIB.ggml_blck_size(int(ggml_type)), _LIB.ggml_type_size(int(ggml_type))


class _CPUTraits(ctypes.Structure):
    """ggml_type_traits_cpu of ggml-cpu.h."""

    _fields_ = (
        ("from_float", ctypes.c_void_p),
        ("vec_dot", ctypes.c_void_p),
        ("vec_dot_type", ctypes.c_int),
        ("nrows", ctypes.c_int64),
    )


def dot_type(ggml_type: gguf.GGMLQuantizationType) -> gguf.GGMLQuantizationType:
    _CPU.ggml_get_type_traits_cpu.restype = ctypes.POINTER(_CPUTraits)
    traits = _CPU.ggml_get_type_traits_cpu(int(ggml_type)).contents
    return gguf.GGMLQuantizationType(traits.vec_dot_type)
