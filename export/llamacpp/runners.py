"""Talking to a checkpoint in PyTorch or to a GGUF file in llama.cpp, the same way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from llmkit.architectures.base import LanguageModel
from llmkit.checkpoint.checkpoint import Checkpoint
from llmkit.device import choose_device
from llmkit.errors import ConfigError, QuantizationError
from llmkit.export.gguf.adapter import adapter_of
from llmkit.export.gguf.reader import (
    is_gguf,
    load_folder,
    read_gguf,
    refuse_faulty_weights,
    refuse_not_finite,
)
from llmkit.export.llamacpp.chat_template import ChatTemplate
from llmkit.export.llamacpp.devices import Backend, uses_gpu
from llmkit.export.llamacpp.runtime import LlamaCpp
from llmkit.files import StrPath
from llmkit.finetuning.examples import encode_prompt
from llmkit.generation import Sampling, generate_ids, prompt_ids, stream_text
from llmkit.modelfiles.prompt_format import Message


class Runner(Protocol):
    """A model that answers, in the prompt format that it was trained with."""

    @property
    def context_length(self) -> int:
        """How many tokens the model sees."""
        ...

    @property
    def continues(self) -> bool:
        """Whether it goes on from a text, as a base model does, instead of answering it."""
        ...

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Ids up to where the answer to the last message begins."""
        ...

    def answer(self, prompt: Sequence[int], sampling: Sampling) -> Iterator[str]:
        """Yield the text that follows, piece by piece."""
        ...


@contextmanager
def open_runner(model: Path, backend: Backend = "cpu") -> Iterator[Runner]:
    """A checkpoint folder or a GGUF file, ready to answer. Raises LlmkitError.

    `backend`: where llama.cpp runs a GGUF file.
    """
    if is_gguf(model):
        file = read_gguf(model)  # llama.cpp does not say what to do with a damaged file
        adapter_of(file)
        with LlamaCpp(model, exact=False, gpu=uses_gpu(backend)) as llama:
            with suppress(QuantizationError):  # another program's file, of a type that is unknown
                refuse_faulty_weights(file)
            yield GGUFRunner(llama)
    else:
        checkpoint = load_folder(model)
        yield CheckpointRunner(checkpoint, checkpoint.load_model(choose_device()))


def generate(
    model: StrPath, prompt: str, sampling: Sampling | None = None, *, backend: Backend = "cpu"
) -> Iterator[str]:
    """Yield what a model says to `prompt`, piece by piece; a base model goes on from it.

    `model`: a checkpoint folder or a GGUF file. The same sampler with the same seed works on
    both. `backend`: where llama.cpp runs a file, "cpu", "gpu" or "auto", which is a GPU if there is
    one. Raises LlmkitError: a file that cannot be read, a prompt that fills the context.
    """
    with open_runner(Path(model), backend) as runner:
        ids = runner.prompt([Message("user", prompt)])
        yield from runner.answer(ids, sampling or Sampling())


@dataclass
class CheckpointRunner:
    """A checkpoint's model in PyTorch (a Runner)."""

    checkpoint: Checkpoint
    model: LanguageModel

    @property
    def context_length(self) -> int:  # noqa: D102
        return self.checkpoint.config.context_length

    @property
    def continues(self) -> bool:  # noqa: D102
        return self.checkpoint.prompt_format.is_completion and not self.checkpoint.labels

    def prompt(self, messages: Sequence[Message]) -> list[int]:  # noqa: D102
        if self.checkpoint.labels:
            messages = messages[-1:]  # each text has its label, whatever came before it
        tokenizer = self.checkpoint.tokenizer
        ids = encode_prompt(messages, self.checkpoint.prompt_format, tokenizer)
        return prompt_ids(ids, tokenizer.end_of_text_id)

    def answer(self, prompt: Sequence[int], sampling: Sampling) -> Iterator[str]:  # noqa: D102
        if self.checkpoint.labels:
            sampling = sampling.for_label()
        decode = self.checkpoint.tokenizer.decode_bytes
        new_ids = generate_ids(self.model, prompt, sampling, self.checkpoint.stop_ids)
        yield from stream_text(decode([token_id]) for token_id in new_ids)


@dataclass
class GGUFRunner:
    """A GGUF file in llama.cpp (a Runner)."""

    llama: LlamaCpp

    @property
    def context_length(self) -> int:  # noqa: D102
        return self.llama.n_ctx

    @property
    def continues(self) -> bool:  # noqa: D102
        template = self.llama.chat_template
        hello = Message("user", "hello")
        bare = template is None or ChatTemplate(template).text([hello]) == hello.content
        return bare and not self.llama.is_classifier

    def prompt(self, messages: Sequence[Message]) -> list[int]:  # noqa: D102
        if self.llama.is_classifier:
            messages = messages[-1:]
        if self.llama.chat_template is None:
            if len(messages) > 1:
                raise ConfigError("the GGUF file has no chat template; it can only continue text")
            ids = self.llama.tokenize(messages[0].content)
        else:
            bos, eos = map(self.llama.token_text, (self.llama.bos_id, self.llama.eos_id))
            template = ChatTemplate(self.llama.chat_template, bos, eos)
            ids = template.prompt_ids(messages, self.llama)
        return prompt_ids(self.llama.with_bos(ids), self.llama.bos_id)

    def answer(self, prompt: Sequence[int], sampling: Sampling) -> Iterator[str]:  # noqa: D102
        self.llama.reset()
        if self.llama.is_classifier:
            sampling = sampling.for_label()
        yield from stream_text(
            self.llama.token_bytes(token_id) for token_id in self._ids(prompt, sampling)
        )

    def _ids(self, prompt: Sequence[int], sampling: Sampling) -> Iterator[int]:
        generator = sampling.generator()
        new = list(prompt)
        for _ in range(sampling.limit(len(prompt), self.llama.n_ctx)):
            (logits,) = self.llama.evaluate(new, all_positions=False)
            refuse_not_finite(logits, self.llama.path)
            new = [sampling.choose(torch.from_numpy(logits), generator)]
            if self.llama.is_end_of_generation(new[0]):
                return
            yield new[0]
