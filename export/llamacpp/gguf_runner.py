"""A GGUF file that answers, in llama.cpp."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch

from llmkit.batch_generation import batch_texts
from llmkit.errors import ConfigError
from llmkit.export.gguf.reader import refuse_not_finite
from llmkit.export.llamacpp.chat_template import ChatTemplate
from llmkit.export.llamacpp.library import Token
from llmkit.export.llamacpp.runtime import LlamaCpp
from llmkit.generation import SampledToken, generate_tokens, prompt_ids
from llmkit.modelfiles.prompt_format import Message
from llmkit.sampling import FOR_LABEL, Sampling


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
        if self.is_classifier:
            sampling = FOR_LABEL
        is_end, reader = self.llama.is_end_of_generation, Sequences(self.llama)
        return batch_texts(reader, prompts, sampling, is_end, self.token_bytes)

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


@dataclass
class Sequences:
    """Several texts in llama.cpp's cache (a BatchReader)."""

    llama: LlamaCpp
    _open: list[tuple[int, int]] = field(default_factory=list)  # number and length by row

    @property
    def context_length(self) -> int:  # noqa: D102
        return self.llama.n_ctx

    def fitting(self, lengths: Sequence[int]) -> int:  # noqa: D102
        return self.llama.fitting(lengths)

    def start(self, prompts: Sequence[Sequence[int]], n_new: int) -> torch.Tensor:  # noqa: D102
        self.llama.reset()
        self._open = [(number, len(prompt)) for number, prompt in enumerate(prompts)]
        return self._logits(
            Token(token_id, place, number, place == len(prompt) - 1)
            for number, prompt in enumerate(prompts)
            for place, token_id in enumerate(prompt)
        )

    def read(self, rows: Sequence[int], ids: Sequence[int]) -> torch.Tensor:  # noqa: D102
        kept = [self._open[row] for row in rows]
        self._open = [(number, length + 1) for number, length in kept]
        return self._logits(
            Token(token_id, length, number)
            for token_id, (number, length) in zip(ids, kept, strict=True)
        )

    def _logits(self, tokens: Iterable[Token]) -> torch.Tensor:
        logits = self.llama.decode(list(tokens))
        refuse_not_finite(logits, self.llama.path)
        return torch.from_numpy(logits)
