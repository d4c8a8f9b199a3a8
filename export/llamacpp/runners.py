"""Talking to a checkpoint in PyTorch or to a GGUF file in llama.cpp, the same way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from torch.nn.utils.rnn import pad_sequence

from llmkit.architectures.base import KVCache, LanguageModel
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
from llmkit.generation import Sampling, generate_ids, prompt_ids, refuse_nan, stream_text
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

    @property
    def is_classifier(self) -> bool:
        """Whether the answer is a label."""
        ...

    @property
    def label_ids(self) -> dict[str, int]:
        """A classifier's labels, and the ids of the tokens that they are."""
        ...

    def encode(self, text: str) -> list[int]:
        """Ids of a piece of text."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for; none for a special one."""
        ...

    def begun(self, ids: list[int]) -> list[int]:
        """Ids with the token before them that the model expects; one token where there are none."""
        ...

    def branches(
        self, prefix: Sequence[int], branches: Sequence[Sequence[int]]
    ) -> list[torch.Tensor]:
        """For each branch after `prefix` the logits (len(branch), V) that foretell its tokens."""
        ...


@contextmanager
def open_runner(model: StrPath, backend: Backend = "cpu", *, branches: int = 1) -> Iterator[Runner]:
    """A checkpoint folder or a GGUF file, ready to answer. Raises LlmkitError.

    `backend`: where llama.cpp runs a GGUF file. With `branches` it computes exactly, and up to so
    many at once.
    """
    model = Path(model)
    if is_gguf(model):
        file = read_gguf(model)  # llama.cpp does not say what to do with a damaged file
        adapter_of(file)
        with LlamaCpp(model, exact=branches > 1, gpu=uses_gpu(backend), branches=branches) as llama:
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
    with open_runner(model, backend) as runner:
        ids = runner.prompt([Message("user", prompt)])
        yield from runner.answer(ids, sampling or Sampling())


def windows(runner: Runner, ids: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
    """A text in parts that fit the context, each with what the model reads before it.

    That is the last token of the part before, or the start of a document.
    """
    start = 0
    while start < len(ids):
        prefix = runner.begun(list(ids[max(0, start - 1) : start]))
        window = list(ids[start : start + runner.context_length - len(prefix) + 1])
        yield prefix, window
        start += len(window)


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
        return self.checkpoint.prompt_format.is_completion and not self.is_classifier

    def prompt(self, messages: Sequence[Message]) -> list[int]:  # noqa: D102
        if self.is_classifier:
            messages = messages[-1:]  # each text has its label, whatever came before it
        form, tokenizer = self.checkpoint.prompt_format, self.checkpoint.tokenizer
        return self.begun(encode_prompt(messages, form, tokenizer))

    def answer(self, prompt: Sequence[int], sampling: Sampling) -> Iterator[str]:  # noqa: D102
        if self.is_classifier:
            sampling = sampling.for_label()
        new_ids = generate_ids(self.model, prompt, sampling, self.checkpoint.stop_ids)
        yield from stream_text(map(self.token_bytes, new_ids))

    @property
    def is_classifier(self) -> bool:  # noqa: D102
        return bool(self.checkpoint.labels)

    @property
    def label_ids(self) -> dict[str, int]:  # noqa: D102
        return dict(zip(self.checkpoint.labels, self.checkpoint.label_ids, strict=True))

    def encode(self, text: str) -> list[int]:  # noqa: D102
        return self.checkpoint.tokenizer.encode(text)

    def token_bytes(self, token_id: int) -> bytes:  # noqa: D102
        return self.checkpoint.tokenizer.decode_bytes([token_id])

    def begun(self, ids: list[int]) -> list[int]:  # noqa: D102
        return prompt_ids(ids, self.checkpoint.tokenizer.end_of_text_id)

    @torch.inference_mode()
    def branches(  # noqa: D102
        self, prefix: Sequence[int], branches: Sequence[Sequence[int]]
    ) -> list[torch.Tensor]:
        cache = KVCache()
        device = self.model.device
        before = self.model.hidden_states(torch.tensor([prefix], device=device), cache)[:, -1:]
        hidden = before.expand(len(branches), -1, -1)  # (B, 1, C)
        inputs = [torch.tensor(branch[:-1], dtype=torch.int64) for branch in branches]
        rows = pad_sequence(inputs, batch_first=True).to(device)  # (B, T)
        if rows.shape[1]:
            shape = (len(branches), -1, -1, -1)
            wide = KVCache([(k.expand(shape), v.expand(shape)) for k, v in cache.layers])
            hidden = torch.cat((hidden, self.model.hidden_states(rows, wide)), dim=1)
        found = [
            self.model.logits(states[: len(branch)]).cpu()
            for states, branch in zip(hidden, branches, strict=True)
        ]
        for logits in found:
            refuse_nan(logits)
        return found


@dataclass
class GGUFRunner:
    """A GGUF file in llama.cpp (a Runner)."""

    llama: LlamaCpp

    @property
    def context_length(self) -> int:  # noqa: D102
        return self.llama.n_ctx

    @cached_property
    def continues(self) -> bool:  # noqa: D102
        hello = Message("user", "hello")
        bare = self._template is None or self._template.text([hello]) == hello.content
        return bare and not self.is_classifier

    def prompt(self, messages: Sequence[Message]) -> list[int]:  # noqa: D102
        if self.is_classifier:
            messages = messages[-1:]
        if self._template is None:
            if len(messages) > 1:
                raise ConfigError("the GGUF file has no chat template; it can only continue text")
            ids = self.llama.tokenize(messages[0].content)
        else:
            ids = self._template.prompt_ids(messages, self.llama)
        return self.begun(ids)

    def answer(self, prompt: Sequence[int], sampling: Sampling) -> Iterator[str]:  # noqa: D102
        self.llama.reset()
        if self.is_classifier:
            sampling = sampling.for_label()
        yield from stream_text(map(self.token_bytes, self._ids(prompt, sampling)))

    @property
    def is_classifier(self) -> bool:  # noqa: D102
        return self.llama.is_classifier

    @cached_property
    def label_ids(self) -> dict[str, int]:  # noqa: D102
        labels = self.llama.labels
        wanted = {label.encode(): label for label in labels}
        ids: dict[str, int] = {}
        for token_id in reversed(range(self.llama.vocab_size)):  # labels are the last words
            if len(ids) == len(wanted):
                break
            label = wanted.get(self.llama.token_bytes(token_id))
            if label is not None:
                ids.setdefault(label, token_id)
        return {label: ids[label] for label in labels if label in ids}

    def encode(self, text: str) -> list[int]:  # noqa: D102
        return self.llama.tokenize(text)

    def token_bytes(self, token_id: int) -> bytes:  # noqa: D102
        return self.llama.token_bytes(token_id)

    def begun(self, ids: list[int]) -> list[int]:  # noqa: D102
        return prompt_ids(self.llama.with_bos(ids), self.llama.bos_id)

    def branches(  # noqa: D102
        self, prefix: Sequence[int], branches: Sequence[Sequence[int]]
    ) -> list[torch.Tensor]:
        found = self.llama.evaluate_branches(prefix, branches)
        for logits in found:
            refuse_not_finite(logits, self.llama.path)
        return [torch.from_numpy(logits) for logits in found]

    @cached_property
    def _template(self) -> ChatTemplate | None:
        """Compiled once: that takes longer than a small model takes for a prompt."""
        source = self.llama.chat_template
        bos, eos = map(self.llama.token_text, (self.llama.bos_id, self.llama.eos_id))
        return None if source is None else ChatTemplate(source, bos, eos)

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
