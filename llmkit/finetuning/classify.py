"""Classification: a text's label as the one token that follows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llmkit.architectures.base import HEAD, LanguageModel
from llmkit.checkpoint.checkpoint import load_checkpoint
from llmkit.checkpoint.layout import ADAPTER_FILE, MODEL_FILE
from llmkit.checkpoint.tensors import open_tensors
from llmkit.device import copied_to
from llmkit.errors import ConfigError
from llmkit.files import StrPath, optional_path, sha256_of
from llmkit.finetuning.config import FinetuneConfig, seed_of
from llmkit.finetuning.examples import Batches
from llmkit.finetuning.label_head import (
    label_head,
    label_logits,
    last_states,
    predict,
    put_label_head,
    train_only,
)
from llmkit.finetuning.label_texts import (
    LabelledIds,
    encoded,
    fitting,
    refuse_lost_labels,
    refuse_unknown_labels,
)
from llmkit.finetuning.run import (
    FinetuneResult,
    Records,
    run_settings,
    train_task,
    trained_model,
)
from llmkit.finetuning.scores import LabelScores, accuracy, confusion_matrix, label_scores
from llmkit.finetuning.start import Start, grown_tokenizer
from llmkit.finetuning.vocabulary import note_unseen_tokens
from llmkit.lora import adapter_tensors
from llmkit.modelfiles.prompt_format import COMPLETION
from llmkit.records.labelled import read_labelled
from llmkit.records.splits import balance as balanced
from llmkit.records.splits import split_stratified
from llmkit.records.text_files import Reading
from llmkit.training.config import TrainingConfig
from llmkit.training.run_folder import RunFolder
from llmkit.training.task import Evaluation, TensorFiles

# More is tested than of instructions, because a label is right or wrong: 300 texts tell 95 %
# from 97 %, 150 do not.
DEFAULT_SPLIT = (0.7, 0.1, 0.2)
DEFAULT_UNFREEZE = "all"
# Alone, a head learns from nothing on states that stay as they are: nothing can be torn down.
HEAD_LEARNING_RATE = 1e-2
N_SAMPLES = 3


class Classify:
    """Texts with labels, and a head that has a row for each label (a Task)."""

    def __init__(
        self,
        folder: RunFolder,
        start: Start,
        config: TrainingConfig,
        train: Sequence[LabelledIds],
        validation: Sequence[LabelledIds],
        n_blocks: int | None,
    ) -> None:
        self.folder, self.start, self.config = folder.folder, start, config
        self.train, self.validation, self.n_blocks = train, validation, n_blocks
        # In random order: where length tells labels apart, as it does spam, batches of one length
        # would be batches of one label.
        self.batches = Batches([0] * len(train), config.batch_size, config.seed)

    @property
    def tokens_per_step(self) -> float:
        """Mean number of tokens in a batch, without the filling."""
        n_tokens = sum(len(text.ids) for text in self.train)
        return n_tokens / len(self.train) * self.config.batch_size

    def load_model(self, step: int, device: torch.device) -> LanguageModel:
        """The model that was saved last, with the labels' rows alone as its head."""
        checkpoint = load_checkpoint(self.folder)
        model = checkpoint.load_model(device, for_training=True)
        # From the file: the rows of a QLoRA checkpoint's model are those of its blocks.
        with open_tensors(checkpoint.model_file) as file:
            put_label_head(model, file.get_tensor(HEAD)[checkpoint.label_ids])
        if checkpoint.lora is None:
            train_only(model, self.n_blocks)
        return model

    n_parts = 1

    def loss(self, model: LanguageModel, step: int, part: int) -> Tensor:
        """Cross-entropy of the labels, at each text's last token."""
        indices = self.batches.indices(step)
        batch = [self.train[index] for index in indices]
        logits = model.logits(last_states(model, [text.ids for text in batch]))  # (B, n_labels)
        truth = copied_to(model.device, torch.tensor([text.label for text in batch]))  # (B,)
        return F.cross_entropy(logits.float(), truth)

    def evaluate(self, model: LanguageModel) -> Evaluation:
        """Loss and accuracy on the validation part."""
        logits = self._validation_logits(model, len(self.validation))
        truth = torch.tensor([text.label for text in self.validation])
        right = (logits.argmax(dim=1) == truth).float()
        return Evaluation(float(F.cross_entropy(logits, truth)), accuracy=float(right.mean()))

    def samples(self, model: LanguageModel) -> list[str]:
        """Texts of the validation part with what they are taken for."""
        predicted = self._validation_logits(model, N_SAMPLES).argmax(dim=1)
        decode, labels = self.start.tokenizer.decode, self.start.labels
        return [
            f"{decode(text.ids)[:60]!r} -> {labels[said]}"
            f"{'' if said == text.label else f', is {labels[text.label]}'}"
            for text, said in zip(self.validation[:N_SAMPLES], predicted.tolist(), strict=False)
        ]

    def trained_tensors(self, model: LanguageModel) -> TensorFiles:
        """The model with a row for every token in its head; with LoRA the adapter too."""
        head = self.start.head(label_head(model).detach())
        if self.start.config.lora is None:
            return {MODEL_FILE: {**model.state_dict(), HEAD: head}}
        with open_tensors(self.folder / MODEL_FILE) as file:
            base = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return {ADAPTER_FILE: adapter_tensors(model), MODEL_FILE: {**base, HEAD: head}}

    def _validation_logits(self, model: LanguageModel, n: int) -> Tensor:
        texts = [text.ids for text in self.validation[:n]]
        return label_logits(model, label_head(model), texts)  # (n, n_labels)


@dataclass(frozen=True)
class ClassifyResult(FinetuneResult):
    """A classifier, and how it did on the test part."""

    quality_name = "test accuracy"
    higher_is_better = True

    labels: tuple[str, ...]
    accuracy: float
    per_label: list[LabelScores]
    confusion: list[list[int]]  # (n_labels, n_labels): row = truth, column = prediction

    @property
    def quality(self) -> float:
        """Accuracy on the test part."""
        return self.accuracy


def finetune_classify(
    checkpoint: StrPath,
    data: StrPath,
    out: StrPath,
    *,
    test_data: StrPath | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
    delimiter: str | None = None,
    encoding: str = "utf-8",
    unfreeze: str = DEFAULT_UNFREEZE,
    balance: bool = False,
    config: FinetuneConfig | None = None,
    training: dict[str, Any] | None = None,
    resume: bool = False,
    device: str | None = None,
) -> ClassifyResult:
    """Teach the model of `checkpoint` the labels of the texts in `data`; write the folder `out`.

    `data`: TSV, CSV, JSON or JSONL with a text and a label each. Which columns these are and what
    divides them is found, unless `text_column`, `label_column` and `delimiter` say it; `encoding`
    is that of tables. The data are split by label; where `test_data` are given, the test part is
    theirs and training has the rest. `unfreeze`: `head`,
    `all`, or how many of the last blocks train; with LoRA its adapters and the head do, whatever
    `unfreeze` says.
    With `balance` as many texts of each label are taken from `data` as the rarest has.
    `training` changes single fields of TrainingConfig.

    Raises LlmkitError: records that cannot be read and labels of `test_data` that `data` have
    not, named by line; labels that are no single tokens.
    """
    data, out, test_data = Path(data), Path(out), optional_path(test_data)
    config = config or FinetuneConfig(split=DEFAULT_SPLIT)
    base = load_checkpoint(Path(checkpoint))
    n_blocks = blocks_to_train(unfreeze, base.config.n_layer)
    seed = seed_of(training)
    reading = Reading(text_column, label_column, delimiter, encoding)
    records = read_labelled(data, reading)
    labels = tuple(sorted({record.label for record in records}))
    tokenizer = grown_tokenizer(base, config, words=labels)
    start = Start(base, tokenizer, COMPLETION, labels, config, seed)
    length = base.config.context_length
    records = fitting(records, tokenizer, length, data)
    refuse_lost_labels(records, labels, data)
    parts = split_stratified(balanced(records, seed) if balance else records, config.split, seed)
    if test_data is not None:
        test_records = read_labelled(test_data, reading)
        refuse_unknown_labels(test_records, labels, data)
        parts = parts[0] + parts[2], parts[1], fitting(test_records, tokenizer, length, test_data)
    train, validation, test = (encoded(part, tokenizer, labels) for part in parts)
    note_unseen_tokens(base, [list(text.ids) for text in train])
    changes = {name: value for name, value in (training or {}).items() if value is not None}
    if unfreeze == "head" and config.lora is None:
        changes.setdefault("learning_rate", HEAD_LEARNING_RATE)
    steps = config.training_config(len(train), changes)
    kept = Records(
        (len(train), len(validation), len(test)),
        data,
        *([{"text": r.text, "label": r.label} for r in part] for part in (parts[0], parts[2])),
    )
    more = {
        "reading": asdict(reading),
        "balance": balance,
        "unfreeze": None if config.lora else unfreeze,
        "test_data": sha256_of([test_data]) if test_data else None,
    }
    settings = run_settings("classify", base, [data], config, steps, **more)

    def task(folder: RunFolder) -> Classify:
        return Classify(folder, start, steps, train, validation, n_blocks)

    result = train_task(out, start, kept, steps, settings, task, resume=resume, device=device)
    made, model = trained_model(result, device)
    predicted = predict(model, made.label_ids, [text.ids for text in test])
    confusion = confusion_matrix([text.label for text in test], predicted, len(labels))
    return ClassifyResult(
        **vars(result),
        labels=labels,
        accuracy=accuracy(confusion),
        per_label=label_scores(labels, confusion),
        confusion=confusion,
    )


def blocks_to_train(unfreeze: str, n_layer: int) -> int | None:
    """How many of the last blocks train, None for everything. Raises ConfigError."""
    if unfreeze in ("head", "all"):
        return 0 if unfreeze == "head" else None
    n_blocks = int(unfreeze) if unfreeze.isdecimal() else 0
    if not 0 < n_blocks <= n_layer:
        raise ConfigError(
            f"unknown unfreeze {unfreeze!r}; use head, all, or a number of blocks (1 to {n_layer})"
        )
    return n_blocks
