"""A classifier's head: a row for each label to train, a row for each token in the checkpoint.

The label is read where the text ends: the last token is the only one that has seen all of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from llmkit.architectures.base import LanguageModel
from llmkit.device import copied_to
from llmkit.errors import ConfigError

TEXTS_AT_ONCE = 32


def new_head(n_labels: int, n_embd: int, generator: torch.Generator) -> Tensor:
    """Random rows (n_labels, n_embd) with GPT-2's spread."""
    return torch.randn(n_labels, n_embd, generator=generator) * 0.02


def expanded_head(head: Tensor, label_ids: Sequence[int], vocab_size: int) -> Tensor:
    """Rows (V, C) for every token: the label tokens have the head's (n_labels, C) rows.

    All others have the mean of those, so their logit is the mean of the labels' and not above the
    largest: greedy decoding says a label. Blocks round each row by itself, so in a quantized file
    the mean can win where the labels are nearly equal.
    """
    rows = head.mean(dim=0).repeat(vocab_size, 1)
    rows[list(label_ids)] = head
    return rows


def put_label_head(model: LanguageModel, head: Tensor) -> None:
    """Give a model the head (n_labels, C) in the place of its own; it trains."""
    with torch.device("meta"):  # no weights that are thrown away
        model.lm_head = nn.Linear(head.shape[1], head.shape[0], bias=False)
    model.lm_head.weight = nn.Parameter(head.detach().to(model.device, torch.float32, copy=True))


def label_head(model: LanguageModel) -> Tensor:
    """The head's weight: (n_labels, C) in training, (V, C) of a checkpoint's model.

    Raises ConfigError where the token embedding is the head too.
    """
    if model.lm_head is None:
        raise ConfigError("the model is not a classifier: its head is tied to the token embedding")
    return model.lm_head.weight


def train_only(model: LanguageModel, n_blocks: int | None) -> None:
    """Let the head train and the last blocks, with the norm between; None lets all of the model."""
    model.requires_grad_(n_blocks is None)
    label_head(model).requires_grad_(True)
    if n_blocks:
        for module in (*model.blocks[-n_blocks:], model.final_norm):
            module.requires_grad_(True)


def last_states(model: LanguageModel, texts: Sequence[Sequence[int]]) -> Tensor:
    """Hidden states (B, C) of each text's own last token, whatever it is filled up with."""
    rows = pad_sequence([torch.tensor(ids) for ids in texts], batch_first=True)  # (B, T)
    hidden = model.hidden_states(copied_to(model.device, rows))  # (B, T, C)
    last = copied_to(model.device, torch.tensor([len(ids) - 1 for ids in texts]))
    return hidden[torch.arange(len(texts), device=model.device), last]


@torch.inference_mode()
def label_logits(model: LanguageModel, head: Tensor, texts: Sequence[Sequence[int]]) -> Tensor:
    """What a head (n_labels, C) says of each text: (n, n_labels) in float32 on the CPU."""
    logits = torch.empty(len(texts), len(head))
    by_length = sorted(range(len(texts)), key=lambda place: len(texts[place]))  # little filling
    for begin in range(0, len(texts), TEXTS_AT_ONCE):
        places = by_length[begin : begin + TEXTS_AT_ONCE]
        states = last_states(model, [texts[place] for place in places])  # (B, C)
        logits[places] = F.linear(states, head).float().cpu()
    return logits


def predict(
    model: LanguageModel, label_ids: Sequence[int], token_ids_list: Sequence[Sequence[int]]
) -> list[int]:
    """Which label a checkpoint's model gives each text: places in `label_ids`."""
    head = label_head(model)[list(label_ids)]  # (n_labels, C)
    return [int(place) for place in label_logits(model, head, token_ids_list).argmax(dim=1)]
