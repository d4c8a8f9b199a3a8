"""Whether a running Ollama does what a file says, without a checkpoint to compare with.

The file's own chat template stands for training, and llama.cpp here for PyTorch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llmkit.errors import GGUFError
from llmkit.export.evaluation.eval_data import tale_beginnings
from llmkit.export.gguf.reader import GGUFFile
from llmkit.export.llamacpp.runtime import LlamaCpp
from llmkit.export.modelfile.facts import chat_template_of
from llmkit.export.ollama.server import OllamaServer
from llmkit.export.verify.ollama_logprobs import N_PROMPTS, Compared, compare_logprobs
from llmkit.modelfiles.modelfile import Modelfile
from llmkit.modelfiles.prompt_format import Message

_QUESTION = Message("user", "Who is it?")
_TURNS = (_QUESTION, Message("assistant", "It is Ida."), Message("user", "And then?"))
_CONVERSATIONS = {"one question": (_QUESTION,), "two turns": _TURNS}


@dataclass(frozen=True)
class _Computed:
    """A file in llama.cpp as Logits and Vocabulary."""

    llama: LlamaCpp

    @property
    def vocab_size(self) -> int:
        return self.llama.vocab_size

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        return b"".join(map(self.llama.token_bytes, ids))

    def logits(self, ids: Tensor) -> Tensor:
        self.llama.reset()
        return torch.from_numpy(self.llama.evaluate(ids.tolist())).double()


def template_faults(
    server: OllamaServer, name: str, file: GGUFFile, modelfile: Modelfile
) -> Iterator[str]:
    """Conversations whose prompt the server writes otherwise than the file's chat template does."""
    template = chat_template_of(file)
    if template is None:
        return
    for kind, messages in _CONVERSATIONS.items():
        system = [Message("system", modelfile.system)] if modelfile.system else []
        try:
            wanted = template.text([*system, *messages])
        except GGUFError as error:
            yield f"{kind}: {error}"
            continue
        found = server.rendered(name, messages)
        if found != wanted:
            shown = f"{found[:80]!r}, the file's chat template as {wanted[:80]!r}"
            yield f"Ollama renders {kind} as {shown}"


def compared_with_llama_cpp(server: OllamaServer, name: str, file: GGUFFile) -> Compared:
    """Greedy tokens and their log-probabilities against those of llama.cpp on this machine."""
    with LlamaCpp(file.path) as exact, LlamaCpp(file.path, exact=False) as rounded:
        prompts = [
            (text, exact.with_bos(exact.tokenize(text, parse_special=True)))
            for text in tale_beginnings(N_PROMPTS)
        ]
        computed = _Computed(exact)
        return compare_logprobs(
            server,
            name,
            prompts,
            computed,
            exact.n_ctx,
            exact=computed,
            rounded=_Computed(rounded),
        )
