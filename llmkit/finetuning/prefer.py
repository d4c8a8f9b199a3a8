"""Direct preference optimization (DPO): of two answers, the model learns to prefer one.

Rafailov et al. 2023, "Direct Preference Optimization: Your Language Model is Secretly a Reward
Model", equation 7.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llmkit.architectures.base import LanguageModel
from llmkit.checkpoint.checkpoint import load_checkpoint
from llmkit.checkpoint.tensors import open_tensors, save_tensors
from llmkit.console import say
from llmkit.device import choose_device, copied_to
from llmkit.errors import ConfigError
from llmkit.files import StrPath
from llmkit.finetuning.config import FinetuneConfig, seed_of
from llmkit.finetuning.examples import (
    Batches,
    Example,
    encode_conversation,
    padded,
    without_too_long,
)
from llmkit.finetuning.instruct import sample_answers
from llmkit.finetuning.run import (
    FinetuneResult,
    Records,
    run_settings,
    train_task,
    trained_model,
)
from llmkit.finetuning.start import Start, base_that_answers, grown_tokenizer
from llmkit.finetuning.vocabulary import note_unseen_tokens
from llmkit.modelfiles.prompt_format import Message
from llmkit.records.conversations import Conversation
from llmkit.records.preferences import Preference, read_preferences
from llmkit.records.splits import split
from llmkit.training.config import TrainingConfig
from llmkit.training.run_folder import RunFolder
from llmkit.training.run_state import unusable
from llmkit.training.task import Evaluation, TensorFiles

DEFAULT_BETA = 0.1  # the paper's
# A model drifts from what it can say long before its margins are large, so the steps are
# shorter than in instruction tuning.
LEARNING_RATE = 1e-4
LORA_LEARNING_RATE = 1e-3
REFERENCE_FILE = "reference.safetensors"


@dataclass(frozen=True)
class Pair:
    """Both answers to one prompt as token ids."""

    chosen: Example
    rejected: Example

    @property
    def length(self) -> int:
        """Tokens of the longer one."""
        return max(len(self.chosen.ids), len(self.rejected.ids))


class Prefer:
    """Pairs to learn from, and what the reference makes of each (a Task)."""

    def __init__(
        self,
        folder: RunFolder,
        start: Start,
        config: TrainingConfig,
        parts: Sequence[Sequence[Pair]],  # train, validation, test
        asked: Sequence[Conversation],
        beta: float,
        device: torch.device,  # where the reference is computed
    ) -> None:
        self.folder, self.start, self.config, self.beta = folder.folder, start, config, beta
        self.train, self.validation, self.test = parts
        self.asked = asked
        lengths = [pair.length for pair in self.train]
        self.batches = Batches(lengths, config.batch_size, config.seed)
        reference = self._reference(folder, device)
        self.train_reference, self.validation_reference, self.test_reference = reference

    @property
    def tokens_per_step(self) -> float:
        """Mean number of tokens in a batch, both answers counted, without the filling."""
        n_tokens = sum(len(pair.chosen.ids) + len(pair.rejected.ids) for pair in self.train)
        return n_tokens / len(self.train) * self.config.batch_size

    def load_model(self, step: int, device: torch.device) -> LanguageModel:
        """The model that was saved last."""
        return load_checkpoint(self.folder).load_model(device, for_training=True)

    n_parts = 1

    def loss(self, model: LanguageModel, step: int, part: int) -> Tensor:
        """DPO's loss of the step's pairs."""
        indices = self.batches.indices(step)
        log_probs = pair_log_probs(model, [self.train[index] for index in indices])  # (B, 2)
        reference = copied_to(log_probs.device, self.train_reference[indices])
        return -F.logsigmoid(margins(log_probs, reference, self.beta)).mean()

    def evaluate(self, model: LanguageModel) -> Evaluation:
        """Loss, margin and how often the chosen answer is the likelier, on the validation part."""
        log_probs = all_log_probs(model, self.validation, self.config.batch_size)
        margin = margins(log_probs, self.validation_reference, self.beta)
        return Evaluation(
            float(-F.logsigmoid(margin).mean()),
            accuracy=preference_accuracy(log_probs),
            margin=float(margin.mean()),
        )

    def samples(self, model: LanguageModel) -> list[str]:
        """Answers to prompts of the validation part."""
        return sample_answers(model, self.asked, self.start)

    def trained_tensors(self, model: LanguageModel) -> TensorFiles:
        """The adapter, or all of the model."""
        return self.start.trained_tensors(model)

    def _reference(self, folder: RunFolder, device: torch.device) -> Sequence[Tensor]:
        """Log-probabilities (n, 2) of each part under the model before the first step.

        They are computed once and kept: after the first save that model is no more.
        """
        parts = (self.train, self.validation, self.test)
        path = folder.training / REFERENCE_FILE
        if not path.exists():
            state = folder.read_state()
            if state is None or state.step:
                raise unusable(path, "is missing")
            model = self.load_model(0, device).eval()
            pairs = [pair for part in parts for pair in part]
            say(f"computing the reference's log-probabilities of {len(pairs)} pairs")
            computed = all_log_probs(model, pairs, self.config.batch_size)
            save_tensors(path, {"log_probs": computed}, step=0)
        with open_tensors(path) as file:
            log_probs: Tensor = file.get_tensor("log_probs")
        sizes = [len(part) for part in parts]
        if log_probs.shape != (sum(sizes), 2):
            raise unusable(path, "belongs to other preference pairs")
        return torch.split(log_probs, sizes)


def pair_log_probs(model: LanguageModel, pairs: Sequence[Pair]) -> Tensor:
    """Sum of the log-probabilities of each answer's tokens, (B, 2) in nats: chosen, rejected."""
    both = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
    inputs, targets = padded(both, pad_id=0, answers_only=True)  # (2B, T) each
    row, place = (targets >= 0).nonzero(as_tuple=True)  # (n,) each; on a GPU this would wait
    moved = (copied_to(model.device, x) for x in (inputs, targets[row, place], row, place))
    inputs, wanted, row, place = moved
    hidden = model.hidden_states(inputs)  # (2B, T, C)
    logits = model.logits(hidden[row, place]).float()  # (n, V)
    each = -F.cross_entropy(logits, wanted, reduction="none")  # (n,)
    total = torch.zeros(len(both), device=each.device).index_add(0, row, each)  # (2B,)
    return total.view(2, len(pairs)).T


@torch.inference_mode()
def all_log_probs(model: LanguageModel, pairs: Sequence[Pair], batch_size: int) -> Tensor:
    """The same of any number of pairs, (n, 2), on the CPU."""
    log_probs = torch.empty(len(pairs), 2)
    by_length = sorted(range(len(pairs)), key=lambda place: pairs[place].length)  # little padding
    for begin in range(0, len(pairs), batch_size):
        places = by_length[begin : begin + batch_size]
        log_probs[places] = pair_log_probs(model, [pairs[place] for place in places]).cpu()
    return log_probs


def margins(log_probs: Tensor, reference: Tensor, beta: float) -> Tensor:
    """Reward of the chosen answer minus that of the rejected one, (n,)."""
    rewards = beta * (log_probs - reference)  # (n, 2)
    return rewards[:, 0] - rewards[:, 1]


def preference_accuracy(log_probs: Tensor) -> float:
    """How often the chosen answer is the likelier of the two (n, 2)."""
    return float((log_probs[:, 0] > log_probs[:, 1]).float().mean())


@dataclass(frozen=True)
class PreferResult(FinetuneResult):
    """A model that learned preferences, and how it did on the test part."""

    quality_name = "preference accuracy"
    higher_is_better = True

    accuracy: float  # the chosen answer is the likelier
    reference_accuracy: float  # the same under the model before the first step
    reward_accuracy: float  # the chosen answer gained more than the rejected one
    margin: float

    @property
    def quality(self) -> float:
        """Accuracy on the test part."""
        return self.accuracy


def finetune_prefer(
    checkpoint: StrPath,
    data: StrPath,
    out: StrPath,
    *,
    beta: float = DEFAULT_BETA,
    config: FinetuneConfig | None = None,
    training: dict[str, Any] | None = None,
    resume: bool = False,
    device: str | None = None,
) -> PreferResult:
    """Teach the model of `checkpoint` to prefer the chosen answers of `data`; write `out`.

    `data`: JSON or JSONL of prompt (or instruction, or whole chats), chosen and rejected. Asked
    in the checkpoint's own prompt format. `beta` holds the model to its start: the larger, the
    closer. `training` changes single fields of TrainingConfig.

    Raises LlmkitError: records that cannot be read, named by line; a beta that is not positive.
    """
    data, out = Path(data), Path(out)
    if not beta > 0:
        raise ConfigError(f"beta must be positive, not {beta}; the usual value is {DEFAULT_BETA}")
    config = config or FinetuneConfig()
    base = base_that_answers(Path(checkpoint), "preferences need a model that answers")
    form = base.prompt_format
    changes = {name: value for name, value in (training or {}).items() if value is not None}
    changes.setdefault("learning_rate", LORA_LEARNING_RATE if config.lora else LEARNING_RATE)
    seed = seed_of(training)
    tokenizer = grown_tokenizer(base, config, special=(form.end, *form.special_tokens))
    start = Start(base, tokenizer, form, (), config, seed)

    preferences = read_preferences(data, form)

    def encoded(preference: Preference, answer: str) -> Example:
        messages = (*preference.messages, Message("assistant", answer))
        return encode_conversation(messages, form, tokenizer, preference.where)

    pairs = {p.where: Pair(encoded(p, p.chosen), encoded(p, p.rejected)) for p in preferences}
    longest = [max(p.chosen, p.rejected, key=lambda e: len(e.ids)) for p in pairs.values()]
    fitting = {e.where for e in without_too_long(longest, base.config.context_length, str(data))}
    parts = split([p for p in preferences if p.where in fitting], config.split, seed)
    train, validation, test = ([pairs[p.where] for p in part] for part in parts)
    note_unseen_tokens(base, [list(pair.chosen.ids) for pair in train])
    steps = config.training_config(len(train), changes)
    read, shown, asked = ([_conversation(p) for p in part] for part in parts)
    records = Records(
        (len(train), len(validation), len(test)),
        data,
        *([{"messages": [asdict(m) for m in c.messages]} for c in part] for part in (read, asked)),
    )
    settings = run_settings("prefer", base, [data], config, steps, beta=beta)

    where = choose_device(device)

    def task(folder: RunFolder) -> Prefer:
        return Prefer(folder, start, steps, (train, validation, test), shown, beta, where)

    result = train_task(out, start, records, steps, settings, task, resume=resume, device=device)
    _, model = trained_model(result, device)
    reference = task(RunFolder(out)).test_reference
    log_probs = all_log_probs(model, test, steps.batch_size)
    margin = margins(log_probs, reference, beta)
    return PreferResult(
        **vars(result),
        accuracy=preference_accuracy(log_probs),
        reference_accuracy=preference_accuracy(reference),
        reward_accuracy=float((margin > 0).float().mean()),
        margin=float(margin.mean()),
    )


def _conversation(preference: Preference) -> Conversation:
    messages = (*preference.messages, Message("assistant", preference.chosen))
    return Conversation(messages, preference.where)
