"""Where a quantized file prefers another token than its original."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llmkit.checkpoint.checkpoint import load_checkpoint
from llmkit.errors import ConfigError
from llmkit.export.llamacpp.differences import differences
from llmkit.export.llamacpp.runners import open_runner
from llmkit.generation import Candidate
from llmkit.modelfiles.prompt_format import Message
from llmkit.sampling import Sampling


def test_what_the_original_prefers_is_its_greedy_token_after_the_same_text(
    page_folder: Path,
) -> None:
    with (
        open_runner(page_folder / "export" / "answers-q4_0.gguf") as small,
        open_runner(page_folder / "answers") as original,
    ):
        prompt = small.prompt([Message("user", "Once")])
        sampling = Sampling(temperature=1.5, seed=3, max_tokens=40)
        tokens = [token.described(small.token_bytes) for token in small.tokens(prompt, sampling)]
        ids = [token.id for token in tokens]
        greedy = [token.candidates[0] for token in tokens]
        found = differences(prompt, ids, greedy, original)
    logits = load_checkpoint(page_folder / "answers").load_model()(torch.tensor([[*prompt, *ids]]))
    best = logits.detach()[0, len(prompt) - 1 : -1].double().softmax(-1).max(-1)
    for place, own in enumerate(greedy):
        theirs = found[place]
        if int(best.indices[place]) == own.id:
            assert theirs is None
        else:
            assert theirs is not None
            assert theirs.id == best.indices[place]
            assert theirs.probability == pytest.approx(float(best.values[place]), rel=1e-4)
    assert 0 < sum(one is not None for one in found) < len(found)


def test_another_vocabulary_is_refused(page_folder: Path) -> None:
    with open_runner(page_folder / "answers") as original:
        with pytest.raises(ConfigError, match="'zebra'"):
            differences([1], [2], [Candidate(2, "zebra", 1.0, 1.0)], original)
        assert differences([1], [], [], original) == []
