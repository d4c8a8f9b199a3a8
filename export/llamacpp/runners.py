"""Talking to a checkpoint in PyTorch or to a GGUF file in llama.cpp, the same way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from torch.nn.utils.rnn import pad_sequence

from llmkit.architectures.base import KVCache, LanguageModel
from llmkit.checkpoint.checkpoint import Checkpoint
from llmkit.console import say
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
from llmkit.export.llamacpp.runtime import LlamaCpp, shared_length
from llmkit.files import StrPath
from llmkit.finetuning.examples import encode_prompt
from llmkit.generation import (
    Candidate,
    GeneratedToken,
    ModelReader,
    SampledToken,
    before_stop,
    generate_batch,
    generate_tokens,
    prompt_ids,
)
from llmkit.modelfiles.prompt_format import Message
from llmkit.sampling import FOR_LABEL, Sampling, refuse_nan


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

    def tokens(self, prompt: Sequence[int], sampling: Sampling) -> Iterator[SampledToken]:
        """Yield the tokens that follow."""
        ...

    def answers(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[str]:
        """The text that follows each prompt."""
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
        """For each branch after `prefix` the logits (len(branch), V) that foretell its tokens.

        What `prefix` shares with that of the last call is not computed again.
        """
        ...

    def greedy(
        self,
        prompts: Sequence[Sequence[int]],
        max_tokens: int,
        is_complete: Callable[[Sequence[int]], bool],
    ) -> list[list[int]]:
        """The most probable ids after each prompt, at most `max_tokens`, in batches.

        An answer ends where the model ends it, or where `is_complete`.
        """
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


def answer_text(runner: Runner, prompt: Sequence[int], sampling: Sampling) -> Iterator[str]:
    """Yield the text that follows, piece by piece. Says what a context that slides has dropped."""
    for token in runner.tokens(prompt, sampling):
        if token.dropped is not None:
            first, last = token.dropped.start + 1, token.dropped.stop
            say(
                f"the context of {runner.context_length} tokens is full: dropped tokens {first} to "
                f"{last}, kept the first {first - 1} and the newest"
            )
        if token.text:
            yield token.text


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
        yield from answer_text(runner, ids, sampling or Sampling())


def stream_tokens(
    model: StrPath, prompt: str, sampling: Sampling | None = None, *, backend: Backend = "cpu"
) -> Iterator[GeneratedToken]:
    """Yield the tokens of what `generate` yields, with their probabilities and candidates."""
    with open_runner(Path(model), backend) as runner:
        ids = runner.prompt([Message("user", prompt)])
        for token in runner.tokens(ids, sampling or Sampling()):
            yield token.described(runner.token_bytes)


def generate_texts(
    model: StrPath,
    prompts: Sequence[str],
    sampling: Sampling | None = None,
    *,
    backend: Backend = "cpu",
) -> list[str]:
    """What `generate` says to each prompt. A checkpoint computes several at once."""
    with open_runner(Path(model), backend) as runner:
        ids = [runner.prompt([Message("user", prompt)]) for prompt in prompts]
        return runner.answers(ids, sampling or Sampling())


def token_text(runner: Runner, token_id: int) -> str:
    """The text of a token; U+FFFD for bytes that are only part of a character."""
    return runner.token_bytes(token_id).decode(errors="replace")


def candidate(runner: Runner, token_id: int, probability: float) -> Candidate:
    """A token as a model without sampling settings finds it."""
    return Candidate(token_id, token_text(runner, token_id), probability, probability)


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
    _past: tuple[list[int], KVCache] = field(init=False)  # of the last prefix

    def __post_init__(self) -> None:
        self._past = ([], KVCache(self.context_length))

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

    def tokens(  # noqa: D102
        self, prompt: Sequence[int], sampling: Sampling
    ) -> Iterator[SampledToken]:
        if self.is_classifier:
            sampling = FOR_LABEL
        is_end = self.checkpoint.stop_ids.__contains__
        reader = ModelReader(self.model)
        return generate_tokens(reader, prompt, sampling, is_end, self.token_bytes)

    def answers(  # noqa: D102
        self, prompts: Sequence[Sequence[int]], sampling: Sampling
    ) -> list[str]:
        if self.is_classifier:
            sampling = FOR_LABEL
        decode = self.checkpoint.tokenizer.decode

        def has_stopped(ids: list[int]) -> bool:
            return bool(sampling.stop) and any(stop in decode(ids) for stop in sampling.stop)

        stop_ids = self.checkpoint.stop_ids
        found = generate_batch(self.model, prompts, sampling, stop_ids, is_done=has_stopped)
        return [
            "".join(text for _, text in before_stop([(0, decode(ids))], sampling.stop))
            for ids in found
        ]

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
        past, cache = self._past
        cache.length = n = shared_length(past, prefix[:-1])
        device = self.model.device
        before = self.model.hidden_states(torch.tensor([prefix[n:]], device=device), cache)[:, -1:]
        self._past = (list(prefix), cache)
        hidden = before.expand(len(branches), -1, -1)  # (B, 1, C)
        inputs = [torch.tensor(branch[:-1], dtype=torch.int64) for branch in branches]
        rows = pad_sequence(inputs, batch_first=True).to(device)  # (B, T)
        if rows.shape[1]:
            wide = cache.repeated(len(branches), rows.shape[1])
            hidden = torch.cat((hidden, self.model.hidden_states(rows, wide)), dim=1)
        found = [
            self.model.logits(states[: len(branch)]).cpu()
            for states, branch in zip(hidden, branches, strict=True)
        ]
        for logits in found:
            refuse_nan(logits)
        return found

    def greedy(  # noqa: D102
        self,
        prompts: Sequence[Sequence[int]],
        max_tokens: int,
        is_complete: Callable[[Sequence[int]], bool],
    ) -> list[list[int]]:
        stops = self.checkpoint.stop_ids
        sampling = Sampling(temperature=0, max_tokens=max_tokens)
        return generate_batch(self.model, prompts, sampling, stops, is_done=is_complete)


@dataclass
class GGUFRunner:
    """A GGUF file in llama.cpp (a Runner and a Reader)."""

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

    def start(self, ids: Sequence[int]) -> torch.Tensor:  # noqa: D102  as a Reader
        self.llama.reset()
        return self._logits(ids)

    def read(self, token_id: int) -> torch.Tensor:  # noqa: D102
        return self._logits([token_id])

    def _logits(self, ids: Sequence[int]) -> torch.Tensor:
        (logits,) = self.llama.evaluate(ids, all_positions=False)
        refuse_not_finite(logits, self.llama.path)
        return torch.from_numpy(logits)

    def tokens(  # noqa: D102
        self, prompt: Sequence[int], sampling: Sampling
    ) -> Iterator[SampledToken]:
        if self.is_classifier:
            sampling = FOR_LABEL
        is_end = self.llama.is_end_of_generation
        return generate_tokens(self, prompt, sampling, is_end, self.token_bytes)

    def answers(  # noqa: D102
        self, prompts: Sequence[Sequence[int]], sampling: Sampling
    ) -> list[str]:
        return ["".join(answer_text(self, prompt, sampling)) for prompt in prompts]

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

    def greedy(  # noqa: D102
        self,
        prompts: Sequence[Sequence[int]],
        max_tokens: int,
        is_complete: Callable[[Sequence[int]], bool],
    ) -> list[list[int]]:
        return list(self.llama.greedy(prompts, max_tokens, is_complete))

    @cached_property
    def _template(self) -> ChatTemplate | None:
        """Compiled once: that takes longer than a small model takes for a prompt."""
        source = self.llama.chat_template
        bos, eos = map(self.llama.token_text, (self.llama.bos_id, self.llama.eos_id))
        return None if source is None else ChatTemplate(source, bos, eos)
