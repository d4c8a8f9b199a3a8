from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from llmkit.architectures.gpt2 import GPT, GPTConfig
from llmkit.checkpoint.checkpoint import load_checkpoint
from llmkit.errors import ConfigError
from llmkit.generation import Sampling, generate_ids, greedy_ids, prompt_ids, stream_text
from llmkit.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(tiny_checkpoint: Path) -> Tokenizer:
    return load_checkpoint(tiny_checkpoint).tokenizer


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> GPT:
    return load_checkpoint(tiny_checkpoint).load_model()


@pytest.fixture(scope="module")
def random_model() -> GPT:
    """A model whose next tokens are far from certain."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(50, 40, n_layer=2, n_head=2, n_embd=32, tie_embeddings=False)).eval()
    assert model.lm_head is not None
    with torch.no_grad():
        model.lm_head.weight.normal_(std=0.3)
    return model


def generated(model: GPT, prompt: list[int], *stops: int, **sampling: Any) -> list[int]:
    return list(generate_ids(model, prompt, Sampling(**sampling), stops))


def greedy_by_hand(model: GPT, prompt: list[int], n: int) -> list[int]:
    ids = list(prompt)
    for _ in range(n):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return ids[len(prompt) :]


def test_greedy_takes_the_most_probable_token_each_time(model: GPT, random_model: GPT) -> None:
    for each, prompt in ((model, [5, 6, 7]), (random_model, [1, 2, 3])):
        n = each.config.context_length - len(prompt)
        expected = greedy_by_hand(each, prompt, n)
        assert generated(each, prompt, temperature=0) == expected
        assert generated(each, prompt, temperature=1.5, top_k=1, seed=9) == expected
        assert generated(each, prompt, temperature=1.5, top_p=1e-9, seed=9) == expected


def test_prompts_together_are_answered_as_each_alone(
    random_model: GPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [[1, 2, 3], [4], [5, 6, 7], [8, 9, 1, 2, 3], [3, 2, 1], [7]]
    free = [generated(random_model, prompt, temperature=0, max_tokens=8) for prompt in prompts]
    stops = {free[0][3], free[5][2]}
    wanted = [
        generated(random_model, prompt, *stops, temperature=0, max_tokens=8) for prompt in prompts
    ]
    assert len({len(ids) for ids in wanted}) > 1
    heard: list[int] = []
    assert greedy_ids(random_model, prompts, 8, stops, heard.append) == wanted
    assert heard == [2, 5, 6]
    monkeypatch.setattr("llmkit.generation.PROMPTS_AT_ONCE", 2)
    assert greedy_ids(random_model, prompts, 8, stops, heard.append) == wanted
    assert heard[3:] == [2, 4, 5, 6]


def test_same_seed_gives_the_same_text(random_model: GPT) -> None:
    texts = [generated(random_model, [1], seed=seed, temperature=1.0) for seed in (4, 4, 5)]
    assert texts[0] == texts[1] != texts[2]
    assert len(set(texts[0])) > 10


def test_sampling_leaves_the_global_random_numbers_alone(random_model: GPT) -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    generated(random_model, [1])
    assert torch.equal(torch.rand(3), expected)


def frequencies(logits: torch.Tensor, n: int = 4000, **sampling: Any) -> torch.Tensor:
    sampler = Sampling(**sampling)
    generator = sampler.generator()
    ids = torch.tensor([sampler.choose(logits, generator) for _ in range(n)])
    return ids.bincount(minlength=len(logits)) / n


LOGITS = torch.tensor([0.5, 0.15, 0.05, 0.3]).log()


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        ({"temperature": 1.0}, [0.5, 0.15, 0.05, 0.3]),
        ({"temperature": 1.0, "top_k": 9, "top_p": 1.0}, [0.5, 0.15, 0.05, 0.3]),
        ({"temperature": 1.0, "top_k": 2}, [0.625, 0, 0, 0.375]),
        ({"temperature": 1.0, "top_p": 0.49}, [1, 0, 0, 0]),
        ({"temperature": 1.0, "top_p": 0.51}, [0.625, 0, 0, 0.375]),
        ({"temperature": 1.0, "top_p": 0.81}, [0.5 / 0.95, 0.15 / 0.95, 0, 0.3 / 0.95]),
        # top-p counts what top-k has left: 0.625 of two tokens
        ({"temperature": 1.0, "top_k": 2, "top_p": 0.6}, [1, 0, 0, 0]),
        ({"temperature": 0.5}, [0.25 / 0.365, 0.0225 / 0.365, 0.0025 / 0.365, 0.09 / 0.365]),
        ({"temperature": 1e9}, [0.25, 0.25, 0.25, 0.25]),
        ({"temperature": 1e-300}, [1, 0, 0, 0]),
        ({"temperature": 0}, [1, 0, 0, 0]),
    ],
)
def test_tokens_come_as_often_as_their_probabilities_say(
    sampling: dict[str, Any], expected: list[float]
) -> None:
    found = frequencies(LOGITS, **sampling)
    # Five standard deviations of 4,000 draws.
    torch.testing.assert_close(
        found, torch.tensor(expected, dtype=torch.float32), rtol=0, atol=0.04
    )
    assert all(found[i] == 0 for i, probability in enumerate(expected) if probability == 0)


class OnMPS(torch.Tensor):
    """A tensor of a device that has no float64."""

    def double(self) -> torch.Tensor:
        raise TypeError("the MPS framework doesn't support float64")

    def cpu(self) -> torch.Tensor:
        return self.as_subclass(torch.Tensor)


def test_a_device_without_float64_is_sampled_from() -> None:
    logits = torch.randn(20, generator=torch.Generator().manual_seed(0))
    for sampling in (Sampling(seed=1), Sampling(temperature=0)):
        wanted = sampling.choose(logits, sampling.generator())
        assert sampling.choose(logits.as_subclass(OnMPS), sampling.generator()) == wanted


@pytest.mark.parametrize(
    ("sampling", "words"),
    [
        ({"temperature": -0.1}, "temperature .*not -0.1$"),
        ({"temperature": float("nan")}, "temperature .*not nan$"),
        ({"temperature": float("inf")}, "temperature .*not inf$"),
        ({"top_k": 0}, "top-k .*not 0$"),
        ({"top_k": -1}, "top-k .*not -1$"),
        ({"top_p": 0.0}, "top-p .*not 0.0$"),
        ({"top_p": 1.01}, "top-p .*not 1.01$"),
        ({"top_p": float("nan")}, "top-p .*not nan$"),
        ({"max_tokens": 0}, "max-tokens .*not 0$"),
        ({"seed": -1}, "seed .*not -1$"),
        ({"seed": 1 << 64}, "seed .*not 18446744073709551616$"),
    ],
)
def test_settings_without_a_meaning_are_refused(sampling: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Sampling(**sampling)


def test_generation_stops_at_any_stop_id_and_does_not_yield_it(random_model: GPT) -> None:
    whole = generated(random_model, [1, 2], temperature=1.0)
    early, late = whole[10], next(token_id for token_id in whole[11:] if token_id != whole[10])
    for stops in ((early,), (late,), (late, early)):
        first = min(whole.index(stop) for stop in stops)
        assert generated(random_model, [1, 2], *stops, temperature=1.0) == whole[:first]


def test_a_label_is_one_token_and_the_most_probable() -> None:
    sampling = Sampling(temperature=0.5, top_k=3, max_tokens=50)
    assert sampling.for_label() == Sampling(temperature=0, top_k=3, max_tokens=1)


@pytest.mark.parametrize(("n_prompt", "max_tokens", "n"), [(1, None, 39), (30, 5, 5), (30, 50, 10)])
def test_generation_ends_with_the_context_or_after_max_tokens(
    random_model: GPT, n_prompt: int, max_tokens: int | None, n: int
) -> None:
    assert len(generated(random_model, [1] * n_prompt, max_tokens=max_tokens)) == n


@pytest.mark.parametrize("n_prompt", [40, 41, 500])
def test_prompt_that_fills_the_context_is_refused(random_model: GPT, n_prompt: int) -> None:
    with pytest.raises(ConfigError, match=rf" {n_prompt} tokens\b.* context .*\b40;"):
        generated(random_model, [1] * n_prompt)


def test_empty_prompt_begins_a_document() -> None:
    assert prompt_ids([], 3) == [3]
    assert prompt_ids([5, 6], 3) == [5, 6]


def test_generated_ids_stream_as_text(model: GPT, tokenizer: Tokenizer) -> None:
    ids = generated(model, [tokenizer.end_of_text_id], tokenizer.end_of_text_id, seed=7)
    streamed = "".join(stream_text(tokenizer.decode_bytes([token_id]) for token_id in ids))
    assert streamed.rstrip("\ufffd") == tokenizer.decode(ids).rstrip("\ufffd") != ""


@given(text=st.text(), cuts=st.lists(st.integers(0, 60)))
def test_stream_never_splits_a_character(text: str, cuts: list[int]) -> None:
    content = text.encode()
    places = [0, *sorted(min(cut, len(content)) for cut in cuts), len(content)]
    pieces = [content[start:end] for start, end in pairwise(places)]
    streamed = list(stream_text(pieces))
    assert "".join(streamed) == text
    assert all(streamed)
    # A character comes as soon as its last byte is there.
    iterator = stream_text(content[i : i + 1] for i in range(len(content)))
    assert list(iterator) == list(text)


def validate_utf8(text: bytes) -> int:
    """How much of a text ends with a whole character, in server-common.cpp of llama.cpp."""
    for i in range(1, min(4, len(text)) + 1):
        c = text[-i]
        if (
            (c & 0xE0 == 0xC0 and i < 2)
            or (c & 0xF0 == 0xE0 and i < 3)
            or (c & 0xF8 == 0xF0 and i < 4)
        ):
            return len(text) - i
    return len(text)


@given(content=st.binary() | st.lists(st.sampled_from([0x41, 0x80, 0xC3, 0xE9, 0xF0])).map(bytes))
@example(content=b"a\xe9")
@example(content=b"\xe9\xe9")
def test_broken_bytes_stream_as_from_llama_cpps_server(content: bytes) -> None:
    streamed = "".join(stream_text(content[i : i + 1] for i in range(len(content))))
    whole = [n for n in range(len(content) + 1) if validate_utf8(content[:n]) == n]
    assert streamed == content[: whole[-1]].decode("utf-8", errors="replace")
