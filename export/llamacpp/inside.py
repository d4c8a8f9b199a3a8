"""What happens inside a checkpoint or a GGUF file, in PyTorch, with tokens as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmkit.architectures.base import LanguageModel
from llmkit.checkpoint.tensors import build_model
from llmkit.errors import ConfigError
from llmkit.export.gguf.adapter import adapter_of
from llmkit.export.gguf.reader import config_of, dequantized_weights, read_gguf
from llmkit.export.llamacpp.checkpoint_runner import CheckpointRunner
from llmkit.export.llamacpp.gguf_runner import GGUFRunner
from llmkit.export.llamacpp.runners import Runner, candidate, open_runner, token_text
from llmkit.files import StrPath
from llmkit.generation import Candidate
from llmkit.interpret import attention_weights, layer_logits, nearest_embeddings


@dataclass(frozen=True)
class Inside:
    """What a model computes from a text of T tokens on its way through L layers of H heads."""

    tokens: tuple[str, ...]
    attention: NDArray[np.float32]  # (L, H, T, T): what each token looks at, rows add up to 1
    # The most probable next tokens by layer and place: of the embeddings first, then after each
    # layer. The last are the model's own.
    layers: tuple[tuple[tuple[Candidate, ...], ...], ...]


@dataclass(frozen=True)
class Neighbour:
    """A token with the cosine of its embedding to another's."""

    id: int
    text: str
    cosine: float


def look_inside(model: StrPath, text: str, count: int = 5) -> Inside:
    """Attention of each head over `text`, and the `count` likeliest tokens after each layer.

    `model`: a checkpoint folder, or a GGUF file of a family that llmkit has in PyTorch. Raises
    LlmkitError: another architecture, more tokens than the context length.
    """
    with open_runner(Path(model)) as runner:
        ids = runner.begun(runner.encode(text))
        return inside(runner, pytorch_model(runner), ids, count)


def nearest_tokens(model: StrPath, token: str, count: int = 10) -> list[Neighbour]:
    """The tokens whose embeddings are nearest to that of `token`, a text of one token.

    Raises ConfigError where the text is several tokens.
    """
    with open_runner(Path(model)) as runner:
        return neighbours(runner, pytorch_model(runner), one_token(runner, token), count)


def pytorch_model(runner: Runner) -> LanguageModel:
    """The model of a runner in PyTorch; of a GGUF file with its weights unpacked to float32.

    Raises GGUFError for an architecture that llmkit does not have.
    """
    if isinstance(runner, CheckpointRunner):
        return runner.model
    if not isinstance(runner, GGUFRunner):
        raise TypeError(runner)
    file = read_gguf(runner.llama.path)
    if adapter_of(file) is not None:
        raise ConfigError(f"{file.path} has a LoRA adapter; look inside its checkpoint instead")
    return build_model(config_of(file), dequantized_weights(file), str(file.path)).eval()


def inside(runner: Runner, model: LanguageModel, ids: Sequence[int], count: int) -> Inside:
    """What `model`, that of `runner`, computes from token ids; see `look_inside`."""
    return Inside(
        tuple(token_text(runner, token_id) for token_id in ids),
        attention_weights(model, ids).cpu().numpy(),
        tuple(_likeliest(runner, logits, count) for logits in layer_logits(model, ids)),
    )


def neighbours(runner: Runner, model: LanguageModel, token_id: int, count: int) -> list[Neighbour]:
    """The tokens whose embeddings are nearest to a token's; see `nearest_tokens`."""
    return [
        Neighbour(near, token_text(runner, near), cosine)
        for near, cosine in nearest_embeddings(model, token_id, count)
    ]


def one_token(runner: Runner, text: str) -> int:
    """The id of a text that is one token. Raises ConfigError where it is none or several."""
    ids = runner.encode(text)
    if len(ids) != 1:
        parts = ", ".join(repr(token_text(runner, token_id)) for token_id in ids) or "none"
        raise ConfigError(f"{text!r} is {len(ids)} tokens: {parts}; give one of them")
    return ids[0]


def _likeliest(runner: Runner, logits: Tensor, count: int) -> tuple[tuple[Candidate, ...], ...]:
    """The most probable tokens at each place, from logits (T, V)."""
    top = torch.topk(logits.softmax(-1), min(count, logits.shape[-1]))
    return tuple(
        tuple(
            candidate(runner, token_id, probability)
            for token_id, probability in zip(ids, probabilities, strict=True)
        )
        for ids, probabilities in zip(top.indices.tolist(), top.values.tolist(), strict=True)
    )
