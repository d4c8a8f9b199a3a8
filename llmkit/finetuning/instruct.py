"""Instruction tuning: answers to prompts, in the format that is used ever after."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmkit.architectures.base import LanguageModel
from llmkit.batch_generation import ModelBatch, generate_batch
from llmkit.checkpoint.checkpoint import load_checkpoint, stop_ids
from llmkit.console import progress
from llmkit.device import copied_to
from llmkit.files import StrPath
from llmkit.finetuning.config import FinetuneConfig, seed_of
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
from llmkit.finetuning.run import (
    FinetuneResult,
    Records,
    run_settings,
    train_task,
    trained_model,
)
from llmkit.finetuning.start import Start, base_that_answers, grown_tokenizer
from llmkit.finetuning.vocabulary import note_unseen_tokens
from llmkit.modelfiles.prompt_format import ALPACA, PromptFormat
from llmkit.modelfiles.prompt_format import prompt_format as named_format
from llmkit.records.conversations import Conversation, read_conversations
from llmkit.records.splits import split
from llmkit.sampling import Sampling
from llmkit.tokenizer import Tokenizer
from llmkit.training.config import TrainingConfig
from llmkit.training.cross_entropy import head_cross_entropy
from llmkit.training.run_folder import RunFolder
from llmkit.training.task import Evaluation, TensorFiles

N_SAMPLES, SAMPLE_TOKENS = 2, 60
ANSWER_TOKENS = 256
MAX_ASKED = 100


class Instruct:
    """Examples to learn from and conversations to be asked (a Task)."""

    def __init__(
        self,
        folder: RunFolder,
        start: Start,
        config: TrainingConfig,
        train: Sequence[Example],
        validation: Sequence[Example],
        asked: Sequence[Conversation],
        *,
        mask_prompt: bool,
    ) -> None:
        self.folder, self.start, self.config = folder.folder, start, config
        self.train, self.validation, self.asked = train, validation, asked
        self.mask_prompt = mask_prompt
        lengths = [len(example.ids) for example in train]
        self.batches = Batches(lengths, config.batch_size, config.seed)

    @property
    def tokens_per_step(self) -> float:
        """Mean number of tokens in a batch, without the filling."""
        n_tokens = sum(len(example.ids) for example in self.train)
        return n_tokens / len(self.train) * self.config.batch_size

    def load_model(self, step: int, device: torch.device) -> LanguageModel:
        """The model that was saved last."""
        return load_checkpoint(self.folder).load_model(device, for_training=True)

    n_parts = 1

    def loss(self, model: LanguageModel, step: int, part: int) -> Tensor:
        """Cross-entropy of the batch's tokens: of answers alone where the prompt is masked."""
        indices = self.batches.indices(step)
        batch = [self.train[index] for index in indices]
        total, n = summed_loss(model, batch, answers_only=self.mask_prompt)
        return total / n

    def evaluate(self, model: LanguageModel) -> Evaluation:
        """Loss of the validation records' answers, whatever is trained on."""
        return Evaluation(answer_loss(model, self.validation, self.config.batch_size))

    def samples(self, model: LanguageModel) -> list[str]:
        """Answers to prompts of the validation part."""
        return sample_answers(model, self.asked, self.start)

    def trained_tensors(self, model: LanguageModel) -> TensorFiles:
        """The adapter, or all of the model."""
        return self.start.trained_tensors(model)


@dataclass(frozen=True)
class Answer:
    """What a model says to a held-out prompt, and whether it ended by itself."""

    question: str
    answer: str
    wanted: str
    ended: bool


def answers(
    model: LanguageModel,
    conversations: Sequence[Conversation],
    form: PromptFormat,
    tokenizer: Tokenizer,
    max_tokens: int = ANSWER_TOKENS,
    done: Callable[[int], None] = lambda n_answers: None,
) -> list[Answer]:
    """The greedy answers to the conversations' last questions."""
    messages = [conversation.messages for conversation in conversations]
    prompts = [encode_prompt(question, form, tokenizer) for *question, _ in messages]
    is_end = stop_ids(form, tokenizer).__contains__
    greedy = Sampling(temperature=0, max_tokens=max_tokens)
    generated = generate_batch(ModelBatch(model), prompts, greedy, is_end, done=done)
    found = []
    for (*question, wanted), prompt, ids in zip(messages, prompts, generated, strict=True):
        limit = min(max_tokens, model.config.context_length - len(prompt))
        ended = len(ids) < limit
        found.append(Answer(question[-1].content, tokenizer.decode(ids), wanted.content, ended))
    return found


def sample_answers(model: LanguageModel, asked: Sequence[Conversation], start: Start) -> list[str]:
    """A line each for the first conversations: the question and what is answered by now."""
    form, tokenizer = start.prompt_format, start.tokenizer
    given = answers(model, asked[:N_SAMPLES], form, tokenizer, SAMPLE_TOKENS)
    return [f"{answer.question[:70]!r} -> {answer.answer!r}" for answer in given]


def summed_loss(
    model: LanguageModel, batch: Sequence[Example], *, answers_only: bool
) -> tuple[Tensor, int]:
    """Sum of the tokens' cross-entropy, and their number; logits are computed only where needed."""
    inputs, targets = padded(batch, pad_id=0, answers_only=answers_only)
    row, place = (targets != IGNORED).nonzero(as_tuple=True)  # (n,) each; on a GPU this would wait
    moved = (copied_to(model.device, x) for x in (inputs, targets[row, place], row, place))
    inputs, wanted, row, place = moved
    hidden = model.hidden_states(inputs)[row, place]  # (n, C)
    return head_cross_entropy(hidden, model.head_weight, wanted), len(wanted)


@torch.inference_mode()
def answer_loss(model: LanguageModel, examples: Sequence[Example], batch_size: int) -> float:
    """Mean loss in nats per token of the examples' answers."""
    total, n_tokens = 0.0, 0
    by_length = sorted(examples, key=lambda example: len(example.ids))  # little padding
    for begin in range(0, len(examples), batch_size):
        loss, n = summed_loss(model, by_length[begin : begin + batch_size], answers_only=True)
        total, n_tokens = total + float(loss), n_tokens + n
    return total / n_tokens


@dataclass(frozen=True)
class InstructResult(FinetuneResult):
    """An instruction-tuned model, and how it did on the test part."""

    quality_name = "test loss (nats per token of the answers)"

    test_loss: float
    answers: list[Answer]

    @property
    def quality(self) -> float:
        """The loss on the test part, whatever was trained on."""
        return self.test_loss

    @property
    def end_rate(self) -> float:
        """Share of the test prompts whose answer ends by itself."""
        return sum(answer.ended for answer in self.answers) / len(self.answers)


def finetune_instruct(
    checkpoint: StrPath,
    data: StrPath,
    out: StrPath,
    *,
    prompt_format: PromptFormat | StrPath | None = None,
    mask_prompt: bool = True,
    packing: bool = False,
    config: FinetuneConfig | None = None,
    training: dict[str, Any] | None = None,
    resume: bool = False,
    device: str | None = None,
) -> InstructResult:
    """Teach the model of `checkpoint` to answer the prompts of `data`; write the folder `out`.

    `data`: JSON or JSONL of Alpaca, Dolly, chat or prompt/completion records. `prompt_format` may
    be a name or a TOML file; without it, it is the base's own, or Alpaca for a base that has none.
    With `mask_prompt` only answers are learned; with `packing` several records share a row of the
    batch. `training` changes single fields of TrainingConfig.

    Raises LlmkitError: records that cannot be read, named by line; tokens that are missing; a
    classifier.
    """
    data, out = Path(data), Path(out)
    config = config or FinetuneConfig()
    base = base_that_answers(Path(checkpoint), "its head predicts only labels; use its base")
    form = prompt_format or (ALPACA if base.prompt_format.is_completion else base.prompt_format)
    form = form if isinstance(form, PromptFormat) else named_format(form)
    seed = seed_of(training)
    tokenizer = grown_tokenizer(base, config, special=(form.end, *form.special_tokens))
    start = Start(base, tokenizer, form, (), config, seed)
    length = base.config.context_length
    conversations = read_conversations(data, form)
    examples = [encode_conversation(c.messages, form, tokenizer, c.where) for c in conversations]
    fitting = {e.where: e for e in without_too_long(examples, length, str(data))}
    parts = split([c for c in conversations if c.where in fitting], config.split, seed)
    train, validation, test = ([fitting[c.where] for c in part] for part in parts)
    rows = packed(train, length) if packing else train
    steps = config.training_config(len(rows), training or {})
    note_unseen_tokens(base, [list(example.ids) for example in train])
    read, shown, asked = parts
    records = Records(
        (len(train), len(validation), len(test)),
        data,
        *([{"messages": [asdict(m) for m in c.messages]} for c in part] for part in (read, asked)),
    )
    more = {"mask_prompt": mask_prompt, "packing": packing, "prompt_format": form.to_dict()}
    settings = run_settings("instruct", base, [data], config, steps, **more)

    def task(folder: RunFolder) -> Instruct:
        return Instruct(folder, start, steps, rows, validation, shown, mask_prompt=mask_prompt)

    result = train_task(out, start, records, steps, settings, task, resume=resume, device=device)
    made, model = trained_model(result, device)
    asked = asked[:MAX_ASKED]
    with progress("ask", len(asked), "prompts") as bar:
        given = answers(model, asked, form, made.tokenizer, done=bar.update)
    test_loss = answer_loss(model, test, steps.batch_size)
    return InstructResult(**vars(result), test_loss=test_loss, answers=given)
