from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from llmkit.architectures.gpt2 import GPT, GPTConfig
from llmkit.batch_generation import ModelBatch, generate_batch
from llmkit.checkpoint.checkpoint import load_checkpoint
from llmkit.errors import ConfigError
from llmkit.generation import (
    Characters,
    ModelReader,
    SampledToken,
    before_stop,
    generate_ids,
    generate_tokens,
    prompt_ids,
)
from llmkit.sampling import Sampling
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


def never(_token_id: int) -> bool:
    return False


PROMPTS = [[1, 2, 3], [4], [5, 6, 7], [8, 9, 1, 2, 3] * 7, [3, 2, 1], [7]]


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_prompts_together_are_answered_as_each_alone(
    temperature: float, random_model: GPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"max_tokens": 8, "temperature": temperature, "repeat_penalty": 1.3}
    free = [generated(random_model, prompt, **settings) for prompt in PROMPTS]
    stops = {free[0][3], free[5][2]}
    wanted = [generated(random_model, prompt, *stops, **settings) for prompt in PROMPTS]
    assert len({len(ids) for ids in wanted}) > 1
    heard: list[int] = []
    reader, is_end = ModelBatch(random_model), stops.__contains__

    def found() -> list[list[int]]:
        return generate_batch(reader, PROMPTS, Sampling(**settings), is_end, done=heard.append)

    assert found() == wanted
    monkeypatch.setattr("llmkit.batch_generation.TEXTS_AT_ONCE", 4)
    assert found() == wanted
    assert heard == [6, 4, 6]


def test_prompts_together_go_on_to_the_end_of_the_context(random_model: GPT) -> None:
    wanted = [generated(random_model, prompt, temperature=0) for prompt in PROMPTS]
    assert {len(ids) for ids in wanted} == {5, 37, 39}
    reader, greedy = ModelBatch(random_model), Sampling(temperature=0)
    assert generate_batch(reader, PROMPTS, greedy, never) == wanted
    done = generate_batch(reader, PROMPTS, greedy, never, is_done=lambda ids: len(ids) == 3)
    assert done == [ids[:3] for ids in wanted]


def test_a_context_slides_for_one_prompt_only(random_model: GPT) -> None:
    with pytest.raises(ConfigError, match="context_shift"):
        generate_batch(ModelBatch(random_model), PROMPTS, Sampling(context_shift=True), never)


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


def test_generation_stops_at_any_stop_id_and_does_not_yield_it(random_model: GPT) -> None:
    whole = generated(random_model, [1, 2], temperature=1.0)
    early, late = whole[10], next(token_id for token_id in whole[11:] if token_id != whole[10])
    for stops in ((early,), (late,), (late, early)):
        first = min(whole.index(stop) for stop in stops)
        assert generated(random_model, [1, 2], *stops, temperature=1.0) == whole[:first]


@pytest.mark.parametrize(("n_prompt", "max_tokens", "n"), [(1, None, 39), (30, 5, 5), (30, 50, 10)])
def test_generation_ends_with_the_context_or_after_max_tokens(
    random_model: GPT, n_prompt: int, max_tokens: int | None, n: int
) -> None:
    assert len(generated(random_model, [1] * n_prompt, max_tokens=max_tokens)) == n


def letter(token_id: int) -> bytes:
    return bytes([token_id + 65])


def tokens(model: GPT, prompt: list[int], **sampling: Any) -> list[SampledToken]:
    """Each token stands for one letter."""
    settings = Sampling(**sampling)
    return list(generate_tokens(ModelReader(model), prompt, settings, lambda _: False, letter))


def test_a_full_context_slides_as_in_llama_server(random_model: GPT) -> None:
    """The rule of server-context.cpp by hand: n_left / 2 tokens behind n_keep are dropped."""
    n, n_keep, prompt = 120, 3, [1, 2, 3, 4, 5]
    greedy: dict[str, Any] = {"temperature": 0, "context_shift": True, "num_keep": n_keep}
    found = tokens(random_model, prompt, max_tokens=n, **greedy)
    context, n_shifts = list(prompt), 0
    for token in found:
        if token.dropped is not None:
            n_discard = (len(context) - 1 - n_keep) // 2
            assert len(context) - 1 == 39  # the newest is not read yet
            assert (token.dropped.start, token.dropped.stop) == (n_keep, n_keep + n_discard)
            context = context[:n_keep] + context[n_keep + n_discard :]
            n_shifts += 1
        # What remains is read at its new places, not as it was before.
        assert token.id == int(random_model(torch.tensor([context]))[0, -1].argmax())
        context.append(token.id)
    assert n_shifts == 5
    assert len(found) == n
    assert len(tokens(random_model, prompt, **greedy)) == 400  # ten contexts, as in Ollama


def test_a_token_tells_how_probable_it_and_the_others_are(random_model: GPT) -> None:
    (made,) = tokens(random_model, [1, 2], max_tokens=1, temperature=0.5, top_k=3, seed=3)
    token = made.described(letter)
    assert token.token == token.text == chr(token.id + 65)
    wanted = random_model(torch.tensor([[1, 2]]))[0, -1].softmax(-1).detach()
    assert token.probability == pytest.approx(float(wanted[token.id]), rel=1e-5)
    assert [candidate.id for candidate in token.candidates] == wanted.topk(10).indices.tolist()
    probabilities = [candidate.probability for candidate in token.candidates]
    assert probabilities == pytest.approx(wanted.topk(10).values.tolist(), rel=1e-5)
    sampled = torch.tensor([candidate.sampled for candidate in token.candidates])
    squares = wanted.topk(3).values ** 2  # the temperature is one half
    torch.testing.assert_close(sampled[:3], squares / squares.sum(), rtol=1e-5, atol=0)
    assert sampled[3:].tolist() == [0] * 7
    assert token.candidates[0].token == chr(token.candidates[0].id + 65)


def stopped(pieces: list[str], *stops: str) -> list[str]:
    return [text for _, text in before_stop(((None, piece) for piece in pieces), stops)]


@pytest.mark.parametrize(
    ("pieces", "stops", "shown"),
    [
        (["ab", "cd"], (), ["ab", "cd"]),
        (["ab", "c#", "##", "d"], ("###",), ["ab", "c"]),
        (["ab###cd", "e"], ("###",), ["ab"]),
        (["ab", "#", "#", "c"], ("###",), ["ab", "#", "#", "c"]),  # it was none
        (["ab", "#", "#"], ("###",), ["ab", "#", "#"]),  # nor at the end
        (["a", "###"], ("###",), ["a"]),
        (["a", "xy", "z"], ("yz", "xyz"), ["a"]),  # the one that begins first
        (["a#", "", "b"], ("#c",), ["a#", "", "b"]),
    ],
)
def test_no_part_of_a_stop_string_is_shown(
    pieces: list[str], stops: tuple[str, ...], shown: list[str]
) -> None:
    assert stopped(pieces, *stops) == shown


@given(
    pieces=st.lists(st.text(alphabet="abc", max_size=3), max_size=12),
    stops=st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=3),
)
def test_text_ends_before_the_first_stop_string(pieces: list[str], stops: list[str]) -> None:
    text = "".join(pieces)
    places = [text.index(stop) for stop in stops if stop in text]
    assert "".join(stopped(pieces, *stops)) == text[: min(places, default=None)]


@pytest.mark.parametrize("n_prompt", [40, 41, 500])
def test_prompt_that_fills_the_context_is_refused(random_model: GPT, n_prompt: int) -> None:
    with pytest.raises(ConfigError, match=rf" {n_prompt} tokens\b.* context .*\b40;"):
        generated(random_model, [1] * n_prompt)


def test_empty_prompt_begins_a_document() -> None:
    assert prompt_ids([], 3) == [3]
    assert prompt_ids([5, 6], 3) == [5, 6]


def streamed(pieces: Iterable[bytes]) -> list[str]:
    characters = Characters()
    return [text for piece in pieces if (text := characters.add(piece))]


def test_generated_ids_stream_as_text(model: GPT, tokenizer: Tokenizer) -> None:
    ids = generated(model, [tokenizer.end_of_text_id], tokenizer.end_of_text_id, seed=7)
    text = "".join(streamed(tokenizer.decode_bytes([token_id]) for token_id in ids))
    assert text.rstrip("\ufffd") == tokenizer.decode(ids).rstrip("\ufffd") != ""


@given(text=st.text(), cuts=st.lists(st.integers(0, 60)))
def test_stream_never_splits_a_character(text: str, cuts: list[int]) -> None:
    content = text.encode()
    places = [0, *sorted(min(cut, len(content)) for cut in cuts), len(content)]
    assert "".join(streamed(content[start:end] for start, end in pairwise(places))) == text
    # A character comes as soon as its last byte is there.
    assert streamed(content[i : i + 1] for i in range(len(content))) == list(text)


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
    text = "".join(streamed(content[i : i + 1] for i in range(len(content))))
    whole = [n for n in range(len(content) + 1) if validate_utf8(content[:n]) == n]
    assert text == content[: whole[-1]].decode("utf-8", errors="replace")
