"""Intermediate tensors of llama.cpp's graph, handed out while it computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from llmkit.errors import GGUFError
from llmkit.export.llamacpp import ggml


class EvalCallback:
    """Receives the tensors that it wants, by llama.cpp's name, in the order of the graph."""

    def __init__(
        self, wants: Callable[[str], bool], receive: Callable[[str, NDArray[np.float32]], None]
    ) -> None:
        """`receive` gets a tensor's name and values (n_rows, row_length)."""
        self._wants = wants
        self._receive = receive
        self._error: BaseException | None = None
        self.function = llama_cpp.ggml_backend_sched_eval_callback(self._call)

    def _call(self, tensor: int, ask: bool, _user_data: Any) -> bool:
        if self._error is not None:
            return False
        try:
            name = ggml.base.ggml_get_name(tensor).decode(errors="replace")
            if ask:
                return self._wants(name)
            self._receive(name, _values(name, tensor))
        except BaseException as error:  # it cannot pass through C: `raise_error` raises it
            self._error = error
            return False
        return True

    def raise_error(self) -> None:
        """Raise what `receive` raised, if it did."""
        if self._error is not None:
            raise self._error


def _values(name: str, tensor: int) -> NDArray[np.float32]:
    n_bytes, n_elements = ggml.base.ggml_nbytes(tensor), ggml.base.ggml_nelements(tensor)
    has_size_of_f32 = n_bytes == n_elements * np.dtype(np.float32).itemsize
    if not (has_size_of_f32 and ggml.base.ggml_is_contiguous(tensor)):
        raise GGUFError(f"llama.cpp's tensor {name} is not contiguous f32")
    values = np.empty(
        (ggml.base.ggml_nrows(tensor), n_elements // ggml.base.ggml_nrows(tensor)), np.float32
    )
    ggml.base.ggml_backend_tensor_get(tensor, values.ctypes.data, 0, n_bytes)
    return values
