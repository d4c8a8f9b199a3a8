"""Running a GGUF file in llama.cpp, through the C interface that llama-cpp-python wraps."""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Sequence
from itertools import cycle, islice, pairwise
from pathlib import Path
from types import TracebackType
from typing import Any

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from llmkit.errors import GGUFError
from llmkit.export.gguf.keys import ADAPTER_KEY, CHAT_TEMPLATE_KEY, LABELS_KEY
from llmkit.export.llamacpp.eval_callback import EvalCallback
from llmkit.export.llamacpp.library import Token, batch_of, collect_errors, reason
from llmkit.export.llamacpp.vocabulary import Vocabulary
from llmkit.threads import n_cores

SMALL_MODEL = 32 << 20  # bytes of weights
DEFAULT_CONTEXT = 4096  # tokens, if the model has as many: Ollama's default; 128k take gigabytes
_BATCH = 256  # tokens at once: llama.cpp keeps logits of all of them several times
# Tokens that are computed at once in exact runs. From 32 on, ggml gives products to BLAS where it
# was built with it, on every Mac for example, and BLAS reads activations in float32.
EXACT_BATCH = 31
_GGML_TYPE_F32 = 0
_NO_DEVICES = (ctypes.c_void_p * 1)()  # a list that ends where it begins


class LlamaCpp(Vocabulary):
    """A GGUF file with the adapter that it names, loaded on the CPU or with `gpu` all on a GPU.

    Use it in a `with` statement.

    With `exact` the KV cache is f32 and attention is not fused; on the CPU ggml's own code computes
    all products, whatever llama.cpp was built with. Without it llama.cpp's defaults run, as a
    user's would.
    """

    def __init__(
        self,
        path: Path,
        *,
        n_ctx: int | None = None,
        exact: bool = True,
        gpu: bool = False,
        branches: int = 1,
        eval_callback: EvalCallback | None = None,
    ) -> None:
        """Load the file, with room for `n_ctx` tokens; no more than the model's own context.

        `branches`: how many continuations `evaluate_branches` computes at once. Raises GGUFError
        with llama.cpp's own reason where it refuses.
        """
        self.path = path
        collect_errors()
        llama_cpp.llama_backend_init()
        model_params = llama_cpp.llama_model_default_params()
        if not gpu:
            model_params.devices = ctypes.addressof(_NO_DEVICES)
        self._model = llama_cpp.llama_model_load_from_file(os.fsencode(path), model_params)
        if not self._model:
            raise GGUFError(f"llama.cpp cannot load {path}: {reason()}")
        super().__init__(self._model)
        self.context_length = int(llama_cpp.llama_model_n_ctx_train(self._model))
        self.n_ctx = min(n_ctx or DEFAULT_CONTEXT, self.context_length)
        self._eval_callback = eval_callback  # llama.cpp calls it, so it must live as long
        self._batch = min(self.n_ctx, EXACT_BATCH if exact else _BATCH)
        self._n_branches = min(branches, self._batch)  # llama.cpp has no more sequences than that
        # Branches share the cells of what is before them and need cells of their own behind it.
        self._n_cells = self.n_ctx * (1 if branches == 1 else 2)
        self._context = self._new_context(exact)
        if not self._context:
            llama_cpp.llama_model_free(self._model)
            raise GGUFError(f"llama.cpp cannot run {path}: {reason()}")
        adapter = self._metadata(ADAPTER_KEY)
        if adapter is not None:
            self._add_adapter(path.parent / Path(adapter).name)
        self._past: list[int] = []  # ids of the first sequence whose keys and values are there

    def _add_adapter(self, path: Path) -> None:
        collect_errors()
        adapter = llama_cpp.llama_adapter_lora_init(self._model, os.fsencode(path))
        if not adapter:
            self._free()
            raise GGUFError(f"llama.cpp cannot load the adapter {path}: {reason()}")
        adapters = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(adapter)
        scales = (ctypes.c_float * 1)(1.0)
        llama_cpp.llama_set_adapters_lora(self._context, adapters, 1, scales)

    def _metadata(self, key: str) -> str | None:
        """A metadata value as llama.cpp has it; None where the file has none."""
        get = llama_cpp.llama_model_meta_val_str
        length = get(self._model, key.encode(), None, 0)
        if length < 0:
            return None
        buffer = ctypes.create_string_buffer(length + 1)
        get(self._model, key.encode(), buffer, len(buffer))
        return buffer.value.decode(errors="replace")

    def _free(self) -> None:
        llama_cpp.llama_free(self._context)
        llama_cpp.llama_model_free(self._model)

    def _new_context(self, exact: bool) -> Any:
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = self._n_cells
        params.n_seq_max, params.kv_unified = self._n_branches, self._n_branches > 1
        params.n_batch = params.n_ubatch = self._batch
        # For one token of a small model threads wait for each other longer than they compute.
        is_small = llama_cpp.llama_model_size(self._model) < SMALL_MODEL
        params.n_threads = 1 if is_small else n_cores()
        params.n_threads_batch = n_cores()
        if exact:
            params.op_offload = False  # a product is computed where its weights are
            params.type_k = params.type_v = _GGML_TYPE_F32
            params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        if self._eval_callback is not None:
            params.cb_eval = self._eval_callback.function
        return llama_cpp.llama_init_from_model(self._model, params)

    def __enter__(self) -> LlamaCpp:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _value: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._free()

    @property
    def chat_template(self) -> str | None:
        """The file's Jinja template."""
        return self._metadata(CHAT_TEMPLATE_KEY)

    @property
    def is_classifier(self) -> bool:
        """Whether the first token is the whole answer."""
        return self._metadata(LABELS_KEY) is not None

    @property
    def labels(self) -> list[str]:
        """A classifier's labels; of other models none. Raises GGUFError where they are damaged."""
        try:
            return [str(label) for label in json.loads(self._metadata(LABELS_KEY) or "[]")]
        except (ValueError, TypeError) as error:
            raise GGUFError(f"{self.path}: {LABELS_KEY} is not a list in JSON") from error

    def reset(self) -> None:
        """Forget all tokens."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        self._past = []

    def evaluate(self, ids: Sequence[int], *, all_positions: bool = True) -> NDArray[np.float32]:
        """Go on with `ids`; logits (len(ids), vocab_size), or (1, vocab_size) of the last.

        Raises GGUFError where llama.cpp fails or the context is full.
        """
        n_past, n = len(self._past), len(ids)
        if n_past + n > self.n_ctx:
            raise GGUFError(f"{n_past + n} tokens do not fit in a context of {self.n_ctx}")
        logits = self.decode(
            [
                Token(token_id, n_past + i, 0, all_positions or i == n - 1)
                for i, token_id in enumerate(ids)
            ]
        )
        self._past += ids
        return logits

    def evaluate_text(self, ids: Sequence[int], positions: range) -> NDArray[np.float32]:
        """Logits (len(positions), vocab_size) of a text's positions; ask for its first ones first.

        GPUs compute few tokens in another way than many. So all are computed with as many others,
        EXACT_BATCH in exact runs: the last ones with some before them again, a short text with
        more tokens behind it. Raises GGUFError where llama.cpp fails or the context is full.
        """
        ids, n = lengthened(ids, self._batch), self._batch
        found = []
        for start in positions[::n]:
            first = min(start, len(ids) - n)
            self._keep(first)
            found.append(self.evaluate(ids[first : first + n])[start - first :])
        return np.concatenate(found)[: len(positions)]

    def evaluate_branches(
        self, prefix: Sequence[int], branches: Sequence[Sequence[int]]
    ) -> list[NDArray[np.float32]]:
        """For each branch the logits (len(branch), vocab_size) that foretell its tokens.

        Each goes on after `prefix`, which is computed once; what it shares with the prefix of the
        last call is kept. Raises GGUFError where llama.cpp fails or a branch does not fit the
        context.
        """
        if len(prefix) + max(map(len, branches)) - 1 > self.n_ctx:
            raise GGUFError(f"the prefix and its branches do not fit in a context of {self.n_ctx}")
        self._keep(shared_length(self._past, prefix[:-1]))
        first = self.evaluate(prefix[len(self._past) :], all_positions=False)  # (1, vocab_size)
        found: list[NDArray[np.float32]] = []
        while len(found) < len(branches):
            left = branches[len(found) :]
            n = self.fitting([len(branch) - 1 for branch in left], len(prefix))
            found += self._evaluate_some(len(prefix), left[:n], first)
        return found

    def _keep(self, n: int) -> None:
        """Forget all tokens but the first `n`; all, where llama.cpp cannot forget some."""
        memory = llama_cpp.llama_get_memory(self._context)
        if n and llama_cpp.llama_memory_seq_rm(memory, 0, n, -1):
            self._past = self._past[:n]
        else:
            self.reset()

    def fitting(self, lengths: Sequence[int], n_used: int = 0) -> int:
        """How many of the next sequences have cells behind `n_used` others; one at least."""
        ends = np.cumsum(lengths[: self._n_branches])
        return max(1, int((ends <= self._n_cells - n_used).sum()))

    def _evaluate_some(
        self, n_past: int, branches: Sequence[Sequence[int]], first: NDArray[np.float32]
    ) -> list[NDArray[np.float32]]:
        memory = llama_cpp.llama_get_memory(self._context)
        for number in range(1, len(branches)):
            llama_cpp.llama_memory_seq_cp(memory, 0, number, -1, -1)
        tokens = [
            Token(token_id, n_past + place, number)
            for number, branch in enumerate(branches)
            for place, token_id in enumerate(branch[:-1])
        ]
        behind = self.decode(tokens) if tokens else first[:0]
        for number in range(1, len(branches)):
            llama_cpp.llama_memory_seq_rm(memory, number, -1, -1)
        llama_cpp.llama_memory_seq_rm(memory, 0, n_past, -1)
        ends = np.cumsum([len(branch) - 1 for branch in branches])[:-1]
        return [np.concatenate((first, part)) for part in np.split(behind, ends)]

    def decode(self, tokens: Sequence[Token]) -> NDArray[np.float32]:
        """Logits (n, vocab_size) behind the tokens that want them, of any sequences.

        Raises GGUFError where llama.cpp fails.
        """
        n = len(tokens)
        n_parts = -(-n // self._batch)
        ends = [n * part // n_parts for part in range(n_parts + 1)]  # of equal parts: GPUs compute
        parts = (tokens[start:end] for start, end in pairwise(ends))  # few tokens in another way
        return np.concatenate([self._decode_part(part) for part in parts])

    def _decode_part(self, tokens: Sequence[Token]) -> NDArray[np.float32]:
        collect_errors()
        with batch_of(tokens) as batch:
            status = llama_cpp.llama_decode(self._context, batch)
        if status != 0:
            raise GGUFError(f"llama.cpp failed with status {status}: {reason()}")
        n_rows = sum(token.wants_logits for token in tokens)
        logits = llama_cpp.llama_get_logits(self._context)
        return np.ctypeslib.as_array(logits, shape=(n_rows, self.vocab_size)).copy()


def lengthened(ids: Sequence[int], n: int) -> list[int]:
    """Token ids, repeated until they are `n` at least."""
    return [*ids, *islice(cycle(ids), max(0, n - len(ids)))]


def shared_length(first: Sequence[int], second: Sequence[int]) -> int:
    """With how many equal ids both begin."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(first), len(second)))
