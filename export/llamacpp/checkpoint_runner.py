"""A checkpoint that answers, in PyTorch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch.nn.utils.rnn import pad_sequence

from llmkit.architectures.base import LanguageModel
from llmkit.architectures.cache import KVCache
from llmkit.batch_generation import ModelBatch, batch_texts
from llmkit.checkpoint.checkpoint import Checkpoint
from llmkit.export.llamacpp.runtime import shared_length
from llmkit.finetuning.examples import encode_prompt
from llmkit.generation import ModelReader, SampledToken, generate_tokens, prompt_ids
from llmkit.modelfiles.prompt_format import Message
from llmkit.sampling import FOR_LABEL, Sampling, refuse_nan


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
        is_end, reader = self.checkpoint.stop_ids.__contains__, ModelBatch(self.model)
        return batch_texts(reader, prompts, sampling, is_end, self.token_bytes)

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
