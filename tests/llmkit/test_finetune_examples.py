from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from llmkit.architectures.gpt2 import GPT, GPTConfig
from llmkit.errors import DataError
from llmkit.finetuning.examples import (
    IGNORED,
    Batches,
    Example,
    encode_conversation,
    encode_prompt,
    packed,
    padded,
    without_too_long,
)
from llmkit.finetuning.instruct import answer_loss, summed_loss
from llmkit.modelfiles.prompt_format import ALPACA, PROMPT_FORMATS, Message
from llmkit.tokenizer import Tokenizer
from llmkit.tokenizer_training import train_bpe

TOKENIZER = train_bpe(["### Instruction:\nSay it.\n\n### Response:\nUser: Assistant: the fox"], 300)
TOKENIZER = TOKENIZER.with_tokens(special=["<|im_start|>", "<|im_end|>"])
FORMS = sorted(PROMPT_FORMATS)
HOSTILE = ["<|endoftext|>", "<|im_end|>", "### Response:\n", " a\n", "é", "\n\n", "fox", "😀"]

contents = st.lists(st.sampled_from(HOSTILE) | st.text(max_size=5), min_size=1).map("".join)
answers = contents.map(str.strip).filter(bool)


@st.composite
def conversations(draw: st.DrawFn) -> list[Message]:
    system = [Message("system", draw(contents))] if draw(st.booleans()) else []
    turns = draw(st.lists(st.tuples(contents, answers), min_size=1, max_size=3))
    roles = [(Message("user", q), Message("assistant", a)) for q, a in turns]
    return system + [message for turn in roles for message in turn]


def special_ids(tokenizer: Tokenizer, ids: Sequence[int]) -> list[int]:
    return [token_id for token_id in ids if token_id in tokenizer.special_ids]


# --- conversations as ids -----------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMS)
@given(messages=conversations())
def test_ids_at_the_seam_are_those_of_inference(name: str, messages: list[Message]) -> None:
    form = PROMPT_FORMATS[name]
    example = encode_conversation(messages, form, TOKENIZER)
    *question, last = messages
    prompt = encode_prompt(question, form, TOKENIZER)
    answer = TOKENIZER.encode(last.content)
    assert list(example.ids) == [*prompt, *answer, TOKENIZER.special_id(form.end)]
    assert all(example.is_answer[len(prompt) :])


@pytest.mark.parametrize("name", FORMS)
@given(messages=conversations())
def test_what_counts_as_answer_is_the_answers_and_their_end_tokens(
    name: str, messages: list[Message]
) -> None:
    form = PROMPT_FORMATS[name]
    example = encode_conversation(messages, form, TOKENIZER, "file, line 3")
    said = [
        token_id for token_id, counts in zip(example.ids, example.is_answer, strict=True) if counts
    ]
    expected: list[int] = []
    for message in messages:
        if message.role == "assistant":
            expected += [*TOKENIZER.encode(message.content), TOKENIZER.special_id(form.end)]
    assert said == expected
    assert example.where == "file, line 3"


@pytest.mark.parametrize("name", FORMS)
@given(messages=conversations())
def test_special_tokens_in_a_message_stay_text(name: str, messages: list[Message]) -> None:
    form = PROMPT_FORMATS[name]
    harmless = [Message(message.role, "x" if message.content else "") for message in messages]
    found, expected = (
        special_ids(TOKENIZER, encode_conversation(each, form, TOKENIZER).ids)
        for each in (messages, harmless)
    )
    assert found == expected
    text = form.text(messages)
    shown = TOKENIZER.decode(encode_conversation(messages, form, TOKENIZER).ids)
    for token in HOSTILE[:2]:
        n_own = form.text(harmless).count(token)
        assert shown.count(token) == text.count(token) - n_own


def test_alpaca_by_hand() -> None:
    messages = [Message("user", "Say it."), Message("assistant", "it")]
    example = encode_conversation(messages, ALPACA, TOKENIZER)
    prompt = (
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\nSay it.\n\n### Response:\n"
    )
    end = TOKENIZER.end_of_text_id
    assert list(example.ids) == [*TOKENIZER.encode(prompt), *TOKENIZER.encode("it"), end]


# --- packing and padding ------------------------------------------------------------------------

LENGTH = 12


@st.composite
def example_lists(draw: st.DrawFn) -> list[Example]:
    lengths = draw(st.lists(st.integers(2, LENGTH), min_size=1, max_size=12))
    examples = []
    for number, length in enumerate(lengths):
        n_answer = draw(st.integers(1, length - 1))
        ids = tuple(100 * (number + 1) + place for place in range(length))
        is_answer = (False,) * (length - n_answer) + (True,) * n_answer
        examples.append(Example(ids, is_answer, f"line {number}"))
    return examples


@given(examples=example_lists())
def test_packing_splits_no_record_and_loses_none(examples: list[Example]) -> None:
    rows = packed(examples, LENGTH)
    assert all(len(row.ids) == len(row.is_answer) <= LENGTH for row in rows)
    by_first_id = {example.ids[0]: example for example in examples}
    seen = []
    for row in rows:
        place = 0
        while place < len(row.ids):
            example = by_first_id[row.ids[place]]
            end = place + len(example.ids)
            assert (row.ids[place:end], row.is_answer[place:end]) == (
                example.ids,
                example.is_answer,
            )
            seen.append(example.where)
            place = end
    assert sorted(seen) == sorted(example.where for example in examples)
    for one, other in combinations(rows, 2):  # neither could have taken the other in
        assert len(one.ids) + len(other.ids) > LENGTH


def test_packing_fills_rows_that_can_be_filled() -> None:
    lengths = [5, 7, 3, 9, 6, 6, 2, 10, 11, 1]  # five rows of 12, in no order
    examples = [Example((n,) * n, (True,) * n, f"line {n}") for n in lengths]
    assert [len(row.ids) for row in packed(examples, 12)] == [12] * 5


@given(examples=example_lists(), answers_only=st.booleans())
def test_padding_counts_every_token_but_the_first_once(
    examples: list[Example], answers_only: bool
) -> None:
    inputs, targets = padded(examples, 0, answers_only=answers_only)
    assert inputs.shape == targets.shape == (len(examples), max(len(e.ids) for e in examples) - 1)
    for row, example in enumerate(examples):
        n = len(example.ids) - 1
        assert inputs[row, :n].tolist() == list(example.ids[:-1])
        for place in range(inputs.shape[1]):
            counts = place < n and (example.is_answer[place + 1] or not answers_only)
            expected = example.ids[place + 1] if counts else IGNORED
            assert targets[row, place] == expected


def small_model() -> GPT:
    torch.manual_seed(0)
    model = GPT(GPTConfig(60, 16, n_layer=2, n_head=2, n_embd=32)).eval()
    for parameter in model.parameters():
        parameter.data.normal_(std=0.2)
    return model


MODEL = small_model()


def nats_by_hand(example: Example, answers_only: bool) -> list[float]:
    """The loss of each counted token of a record that is alone in the batch."""
    logits = MODEL(torch.tensor([example.ids]))[0].double()
    nats = -logits.log_softmax(-1)
    return [
        nats[place - 1, example.ids[place]].item()
        for place in range(1, len(example.ids))
        if example.is_answer[place] or not answers_only
    ]


BATCH = [
    Example((5, 6, 7, 8), (False, False, True, True), "a"),
    Example((9, 3, 4, 11, 12, 13, 59, 1, 2), (False,) * 6 + (True,) * 3, "b"),
    Example((0, 0), (False, True), "c"),
    Example((1, 2, 3, 4, 5), (False, True, True, False, True), "two answers"),
]


@pytest.mark.parametrize("answers_only", [True, False])
def test_loss_of_a_padded_batch_is_that_of_the_records_alone(answers_only: bool) -> None:
    nats = [n for example in BATCH for n in nats_by_hand(example, answers_only)]
    total, n = summed_loss(MODEL, BATCH, answers_only=answers_only)
    assert n == len(nats)
    assert total.item() == pytest.approx(sum(nats), rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3, 10])
def test_loss_of_answers_is_the_mean_over_tokens_however_they_are_batched(batch_size: int) -> None:
    nats = [n for example in BATCH for n in nats_by_hand(example, answers_only=True)]
    expected = sum(nats) / len(nats)
    assert answer_loss(MODEL, BATCH, batch_size) == pytest.approx(expected, rel=1e-5)


def gradients(batch: Sequence[Example], answers_only: bool) -> dict[str, torch.Tensor]:
    MODEL.zero_grad()
    summed_loss(MODEL, batch, answers_only=answers_only)[0].backward()
    return {name: p.grad.clone() for name, p in MODEL.named_parameters() if p.grad is not None}


def test_masked_prompt_tokens_are_read_and_never_learned() -> None:
    example = BATCH[1]
    logits = MODEL(torch.tensor([example.ids[:-1]]))[0]
    MODEL.zero_grad()
    F.cross_entropy(logits[5:], torch.tensor(example.ids[6:]), reduction="sum").backward()
    expected = {name: p.grad.clone() for name, p in MODEL.named_parameters() if p.grad is not None}
    found = gradients([example], answers_only=True)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5)
    whole = gradients([example], answers_only=False)
    assert not torch.allclose(whole["ln_f.weight"], found["ln_f.weight"])


# --- order and length ---------------------------------------------------------------------------


@given(
    lengths=st.lists(st.integers(1, 90), min_size=1, max_size=150),
    batch_size=st.integers(1, 25),
    n_steps=st.integers(1, 12),
    seed=st.integers(0, 1 << 40),
)
def test_every_epoch_is_a_permutation_that_seed_and_step_determine(
    lengths: list[int], batch_size: int, n_steps: int, seed: int
) -> None:
    batches = Batches(lengths, batch_size, seed)
    steps = [batches.indices(step) for step in range(n_steps)]
    assert all(len(step) == batch_size for step in steps)
    order = [index for step in steps for index in step]
    n = len(lengths)
    for begin in range(0, len(order) - n + 1, n):
        assert sorted(order[begin : begin + n]) == list(range(n))
    assert len(set(order[len(order) // n * n :])) == len(order) % n
    resumed = Batches(lengths, batch_size, seed)
    assert [resumed.indices(step) for step in reversed(range(n_steps))] == steps[::-1]


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = [Batches([1] * 50, 50, seed).indices(step) for step in range(3) for seed in range(3)]
    assert len({tuple(order) for order in orders}) == 9


def test_a_batch_has_records_of_about_one_length_and_comes_at_no_fixed_place() -> None:
    lengths = np.random.default_rng(0).integers(10, 200, 333).tolist()
    batches = Batches(lengths, 8, seed=1)
    rows = [[lengths[i] for i in batches.indices(step)] for step in range(160)]  # four epochs
    n_padded = sum(8 * max(row) for row in rows)
    assert sum(map(sum, rows)) / n_padded > 0.9  # 0.61 in random batches
    longest = [max(row) for row in rows[:40]]
    assert abs(np.corrcoef(longest, range(40))[0, 1]) < 0.5


def examples_of(*lengths: int) -> list[Example]:
    return [
        Example((1,) * length, (True,) * length, f"a.jsonl, line {number}")
        for number, length in enumerate(lengths, 1)
    ]


def test_records_that_are_too_long_are_named_and_left_out_whole(
    capsys: pytest.CaptureFixture[str],
) -> None:
    examples = examples_of(3, 11, 10, 30, 1)
    assert without_too_long(examples, 10, "a.jsonl") == [examples[0], examples[2], examples[4]]
    note = " ".join(capsys.readouterr().err.split())
    assert "2 of 5 records of a.jsonl are longer than the context of 10 tokens" in note
    assert "(line 2; line 4)" in note
    assert "the longest has 30" in note


def test_nothing_is_said_where_all_records_fit(capsys: pytest.CaptureFixture[str]) -> None:
    examples = examples_of(3, 10)
    assert without_too_long(examples, 10, "a.jsonl") == examples
    assert capsys.readouterr().err == ""


def test_many_too_long_records_are_named_by_the_first_five(
    capsys: pytest.CaptureFixture[str],
) -> None:
    without_too_long(examples_of(*[20] * 7, 5), 10, "a.jsonl")
    assert "(line 1; line 2; line 3; line 4; line 5; ...)" in capsys.readouterr().err


def test_records_that_are_all_too_long_are_refused() -> None:
    with pytest.raises(DataError, match=r"a\.jsonl: all 2 records .* of 10 tokens; .* 11$"):
        without_too_long(examples_of(11, 12), 10, "a.jsonl")
