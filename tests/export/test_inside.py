"""What happens inside a model on disk: the same for a checkpoint and its file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from deployable import exported
from gguf_surgery import make_checkpoint
from toy_family import TOY

from llmkit.api import look_inside, nearest_tokens
from llmkit.architectures import registry
from llmkit.architectures.registry import model_config
from llmkit.checkpoint.checkpoint import Checkpoint
from llmkit.errors import ConfigError, LlmkitError
from llmkit.export.llamacpp.runners import open_runner
from llmkit.interpret import attention_weights, layer_logits

TEXT = "some more words to merge"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return make_checkpoint(tmp_path_factory.mktemp("inside") / "c")


@pytest.fixture(scope="module")
def file(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = exported(checkpoint, tmp_path_factory.mktemp("inside") / "out", "f32")
    return next(folder.glob("*.gguf"))


def test_checkpoint_and_file_have_the_same_inside(checkpoint: Checkpoint, file: Path) -> None:
    ours, theirs = look_inside(str(checkpoint.folder), TEXT), look_inside(file, TEXT)
    assert "".join(ours.tokens) == TEXT
    assert theirs.tokens == ours.tokens
    np.testing.assert_allclose(theirs.attention, ours.attention, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(ours.attention.sum(-1), 1, rtol=1e-5)
    for layer, other in zip(ours.layers, theirs.layers, strict=True):
        for here, there in zip(layer, other, strict=True):
            assert [c.id for c in here] == [c.id for c in there]


def test_the_last_layer_says_what_llama_cpp_says(file: Path) -> None:
    found = look_inside(file, TEXT, 3)
    with open_runner(file) as runner:
        ids = runner.encode(TEXT)
        (logits,) = runner.branches(ids[:1], [[*ids[1:], 0]])
    probabilities = logits.softmax(-1)
    wanted = torch.topk(probabilities, 3)
    last = found.layers[-1]
    assert [[c.id for c in place] for place in last] == wanted.indices.tolist()
    assert [[c.probability for c in place] for place in last] == [
        pytest.approx(row, rel=1e-3) for row in wanted.values.tolist()
    ]
    assert len(found.layers) == len(found.attention) + 1


def test_neighbours_of_a_token_and_a_text_that_is_several(
    checkpoint: Checkpoint, file: Path
) -> None:
    ours = nearest_tokens(checkpoint.folder, "wor", 4)
    table = checkpoint.load_model().token_embedding.weight.detach().double()
    row = table[checkpoint.tokenizer.encode("wor")[0]]
    for near in ours:
        cosine = float(table[near.id] @ row / (table[near.id].norm() * row.norm()))
        assert near.cosine == pytest.approx(cosine, abs=1e-6)
        assert near.text == checkpoint.tokenizer.decode_bytes([near.id]).decode(errors="replace")
    assert [near.id for near in nearest_tokens(file, "wor", 4)] == [near.id for near in ours]
    with pytest.raises(ConfigError, match=r"'words' is 2 tokens.*'wor', 'ds'"):
        nearest_tokens(checkpoint.folder, "words")


def test_a_family_without_positions_and_means(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.FAMILIES, "toy", TOY)
    torch.manual_seed(0)
    model = registry.new_model(model_config("toy", 50)).eval()
    ids = [3, 1, 4, 1, 5, 9]
    *_, last = layer_logits(model, ids)
    torch.testing.assert_close(last, model(torch.tensor([ids]))[0].detach())
    weights = attention_weights(model, ids)
    assert weights.shape == (2, 2, 6, 6)
    assert torch.all(weights.triu(1) == 0)
    # Without positions the same token is looked at alike, wherever it stands.
    torch.testing.assert_close(weights[0, :, 5, 1], weights[0, :, 5, 3])


def test_a_file_of_another_architecture_is_refused(file: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.gguf"
    foreign.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(LlmkitError, match=r"foreign\.gguf"):
        look_inside(foreign, TEXT)
