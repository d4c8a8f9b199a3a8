"""Instruction tuning: answers to prompts, in the format that is used ever after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llmkit.checkpoint import load_checkpoint, stop_ids
from llmkit.console import progress
from llmkit.files import StrPath
from llmkit.finetuning.config import FinetuneConfig, seed_of
from llmkit.finetuning.conversations import Conversation, read_conversations
from llmkit.finetuning.examples import (
    IGNORED,
    Example,
    batch_indices,
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
from llmkit.finetuning.splits import split
from llmkit.finetuning.start import Start, base_that_answers, grown_tokenizer
from llmkit.finetuning.vocabulary import note_unseen_tokens
from llmkit.generation import Sampling, generate_ids
from llmkit.model.gpt import GPT
from llmkit.modelfiles.prompt_format import ALPACA, COMPLETION, PromptFormat
from llmkit.modelfiles.prompt_format import prompt_format as named_format
from llmkit.tokenizer import Tokenizer
from llmkit.training.config import TrainingConfig
from llmkit.training.state import RunFolder
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

    @property
    def tokens_per_step(self) -> float:
        """Mean number of tokens in a batch, without the filling."""
        n_tokens = sum(len(example.ids) for example in self.train)
        return n_tokens / len(self.train) * self.config.batch_size

    def load_model(self, step: int, device: torch.device) -> GPT:
        """The model that was saved last."""
        return load_checkpoint(self.folder).load_model(device, for_training=True)

    def loss(self, model: GPT, step: int) -> Tensor:
        """Cross-entropy of the batch's tokens: of answers alone where the prompt is masked."""
        indices = batch_indices(len(self.train), self.config.batch_size, step, self.config.seed)
        batch = [self.train[index] for index in indices]
        total, n = summed_loss(model, batch, answers_only=self.mask_prompt)
        return total / n

    def evaluate(self, model: GPT) -> Evaluation:
        """Loss of the validation records' answers, whatever is trained on."""
        return Evaluation(answer_loss(model, self.validation, self.config.batch_size))

    def samples(self, model: GPT) -> list[str]:
        """Answers to prompts of the validation part."""
        return sample_answers(model, self.asked, self.start)

    def trained_tensors(self, model: GPT) -> TensorFiles:
        """The adapter, or all of the model."""
        return self.start.trained_tensors(model)


@dataclass(frozen=True)
class Answer:
    """What a model says to a held-out prompt, and whether it ended by itself."""

    question: str
    answer: str
    wanted: str
    ended: bool


def answer(
    model: GPT,
    conversation: Conversation,
    form: PromptFormat,
    tokenizer: Tokenizer,
    max_tokens: int = ANSWER_TOKENS,
) -> Answer:
    """The greedy answer to a conversation's last question."""
    *question, wanted = conversation.messages
    prompt = encode_prompt(question, form, tokenizer)
    sampling = Sampling(temperature=0, max_tokens=max_tokens)
    ids = list(generate_ids(model, prompt, sampling, stop_ids(form, tokenizer)))
    limit = sampling.limit(len(prompt), model.config.context_length)
    text = tokenizer.decode(ids)
    return Answer(question[-1].content, text, wanted.content, ended=len(ids) < limit)


def sample_answers(model: GPT, asked: Sequence[Conversation], start: Start) -> list[str]:
    """A line each for the first conversations: the question and what is answered by now."""
    answers = (
        answer(model, conversation, start.prompt_format, start.tokenizer, SAMPLE_TOKENS)
        for conversation in asked[:N_SAMPLES]
    )
    return [f"{given.question[:70]!r} -> {given.answer!r}" for given in answers]


def summed_loss(model: GPT, batch: Sequence[Example], *, answers_only: bool) -> tuple[Tensor, int]:
    """Sum of the tokens' cross-entropy, and their number; logits are computed only where needed."""
    inputs, targets = padded(batch, pad_id=0, answers_only=answers_only)
    inputs, targets = inputs.to(model.device), targets.to(model.device)  # (B, T) each
    hidden = model.hidden_states(inputs)  # (B, T, C)
    counts = targets != IGNORED
    logits = model.logits(hidden[counts])  # (n, V)
    return F.cross_entropy(logits.float(), targets[counts], reduction="sum"), int(counts.sum())


@torch.inference_mode()
def answer_loss(model: GPT, examples: Sequence[Example], batch_size: int) -> float:
    """Mean loss in nats per token of the examples' answers."""
    total, n_tokens = 0.0, 0
    for begin in range(0, len(examples), batch_size):
        loss, n = summed_loss(model, examples[begin : begin + batch_size], answers_only=True)
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
    form = prompt_format or (ALPACA if base.prompt_format == COMPLETION else base.prompt_format)
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
        *([{"messages": [asdict(m) for m in c.messages]} for c in part] for part in (read, asked)),
    )
    more = {"mask_prompt": mask_prompt, "packing": packing, "prompt_format": form.to_dict()}
    settings = run_settings("instruct", base, [data], config, steps, **more)

    def task(folder: RunFolder) -> Instruct:
        return Instruct(folder, start, steps, rows, validation, shown, mask_prompt=mask_prompt)

    result = train_task(out, start, records, steps, settings, task, resume=resume, device=device)
    made, model = trained_model(result, device)
    answers = []
    with progress("ask", min(MAX_ASKED, len(asked)), "prompts") as bar:
        for conversation in asked[:MAX_ASKED]:
            answers.append(answer(model, conversation, form, made.tokenizer))
            bar.update(len(answers))
    test_loss = answer_loss(model, test, steps.batch_size)
    return InstructResult(**vars(result), test_loss=test_loss, answers=answers)
