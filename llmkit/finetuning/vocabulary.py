"""What the base has never seen: said before training, when there is still time to choose."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from llmkit.checkpoint.checkpoint import Checkpoint
from llmkit.checkpoint.layout import TRAINING_FOLDER
from llmkit.console import say
from llmkit.data.tokens import open_token_file

NOTED_SHARE = 0.001
TOKENS_AT_ONCE = 1 << 20


def note_unseen_tokens(base: Checkpoint, ids: Iterable[list[int]]) -> None:
    """Say how many of the tokens never occurred in the text that the base was trained on."""
    trained_on = base.folder / TRAINING_FOLDER / "train.tokens"
    if not trained_on.exists():
        return
    seen = np.zeros(base.config.vocab_size, bool)
    text = open_token_file(trained_on, len(seen))
    for begin in range(0, len(text), TOKENS_AT_ONCE):
        seen[text[begin : begin + TOKENS_AT_ONCE]] = True
    tokens = np.concatenate([np.asarray(sequence, np.int64) for sequence in ids])
    known = tokens[tokens < len(seen)]
    unseen = known[~seen[known]]
    share = len(unseen) / len(tokens)
    if share >= NOTED_SHARE:
        first = [base.tokenizer.decode([int(i)]) for i in dict.fromkeys(unseen.tolist())][:8]
        say(
            f"{share:.1%} of the tokens do not occur in the training text of {base.folder} "
            f"({', '.join(map(repr, first))}); the model must learn them now"
        )
