"""ggml's functions, with their C types, that llama-cpp-python does not wrap."""

from __future__ import annotations

import ctypes
from typing import Any

from llama_cpp._ctypes_extensions import load_shared_library
from llama_cpp._ggml import libggml, libggml_base_path

_pointer, _size = ctypes.c_void_p, ctypes.c_size_t
base: Any = load_shared_library("ggml-base", libggml_base_path)
registry: Any = libggml

_BASE = {
    "ggml_get_name": (ctypes.c_char_p, [_pointer]),
    "ggml_nbytes": (_size, [_pointer]),
    "ggml_nrows": (ctypes.c_int64, [_pointer]),
    "ggml_nelements": (ctypes.c_int64, [_pointer]),
    "ggml_is_contiguous": (ctypes.c_bool, [_pointer]),
    "ggml_backend_tensor_get": (None, [_pointer, _pointer, _size, _size]),
    "ggml_backend_dev_name": (ctypes.c_char_p, [_pointer]),
    "ggml_backend_dev_description": (ctypes.c_char_p, [_pointer]),
    "ggml_backend_dev_type": (ctypes.c_int, [_pointer]),
}
_REGISTRY = {
    "ggml_backend_dev_count": (_size, []),
    "ggml_backend_dev_get": (_pointer, [_size]),
}
for _library, _functions in ((base, _BASE), (registry, _REGISTRY)):
    for _name, (_result, _arguments) in _functions.items():
        getattr(_library, _name).restype = _result
        getattr(_library, _name).argtypes = _arguments
