"""The whole way on a built-in corpus: train, teach to answer, export, verify, compare, ask."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llmkit.console import say
from llmkit.data.tales import questions, tales
from llmkit.evaluation.evaluate import Evaluation, evaluate
from llmkit.export.compare import Comparison, compare
from llmkit.export.convert import Export, export
from llmkit.export.llamacpp.runners import generate
from llmkit.export.quantization.config import QuantConfig
from llmkit.export.report.plots import save_figure, size_quality_figure
from llmkit.export.report.tables import proof_table, save_table_picture
from llmkit.files import StrPath, write_text
from llmkit.finetuning.config import FinetuneConfig
from llmkit.finetuning.instruct import InstructResult, finetune_instruct
from llmkit.modelfiles.prompt_format import USER_ASSISTANT
from llmkit.report.write import report
from llmkit.sampling import Sampling
from llmkit.tokenizer import END_OF_TEXT
from llmkit.training import TrainingResult, train

CORPUS_BYTES = 4_200_000
CORPUS_SEED = QUESTIONS_SEED = 1
NAME = "tales"
QUESTION = "Where does Paul the shoemaker live?"
REQUEST = "Tell a story about Anton."
EVALUATED = "village-choices"
QUANTS = ("f16", "q8_0", "q4_0")
VOCAB_SIZE = 1536
# A tale is up to 170 tokens of this vocabulary. 340,000 tokens are enough for tales that hold
# together.
MODEL: dict[str, Any] = {"context_length": 192}
TRAINING: dict[str, Any] = {"steps": 110, "eval_interval": 55, "eval_tokens": 12288}
# The shortest format: most questions are shorter than Alpaca's system text.
PROMPT_FORMAT = USER_ASSISTANT
FINETUNING = FinetuneConfig(epochs=5)
INSTRUCT_TRAINING: dict[str, Any] = {"learning_rate": 1.5e-3, "eval_interval": 60}


@dataclass(frozen=True)
class Demo:
    """Everything the demo made."""

    folder: Path
    training: TrainingResult
    instruct: InstructResult
    export: Export
    comparison: Comparison
    evaluation: Evaluation  # what the checkpoint and the 4-bit file know of the village
    answers: list[tuple[str, str]]  # what the 4-bit file says in llama.cpp
    report: Path

    @property
    def passed(self) -> bool:
        """Whether every file was verified."""
        return self.export.passed


def demo(out: StrPath) -> Demo:
    """Walk the whole way into the folder `out`; a training done there already is not repeated."""
    out = Path(out)
    training, instruct = trained(out)
    answering, folder = instruct.checkpoint, out / "export"
    exported = export(answering, folder, QuantConfig(QUANTS), name=NAME)
    files = [file.path for file in exported.files]
    comparison = compare(answering, files)
    save_table_picture(proof_table(exported.proofs), folder / "parity.svg")
    save_figure(size_quality_figure(comparison), folder / "size-quality.png")
    evaluation = evaluate([answering, files[-1]], EVALUATED)
    _, (page, _) = report(answering, files)
    say(f"{files[-1].name} answers in llama.cpp:")
    sampling = Sampling(temperature=0)
    answers = [(text, "".join(generate(files[-1], text, sampling))) for text in (QUESTION, REQUEST)]
    return Demo(out, training, instruct, exported, comparison, evaluation, answers, page)


def trained(out: Path) -> tuple[TrainingResult, InstructResult]:
    """The base and the model that answers, trained or found finished in the folder `out`."""
    corpus, records = out / "tales.txt", out / "questions.json"
    if not corpus.exists():
        write_text(corpus, _corpus())
    if not records.exists():
        asked = [asdict(question) for question in questions(QUESTIONS_SEED)]
        write_text(records, json.dumps(asked, indent=1) + "\n")
    base = out / "base"
    training = train(
        corpus, base, vocab_size=VOCAB_SIZE, model=MODEL, training=TRAINING, resume=True
    )
    instruct = finetune_instruct(
        base,
        records,
        out / "checkpoint",
        prompt_format=PROMPT_FORMAT,
        packing=True,
        config=FINETUNING,
        training=INSTRUCT_TRAINING,
        resume=True,
    )
    return training, instruct


def _corpus() -> str:
    """Tales up to CORPUS_BYTES, with the end-of-text token between them."""
    parts: list[str] = []
    n_bytes = 0
    for tale in tales(CORPUS_SEED):
        if n_bytes >= CORPUS_BYTES:
            break
        parts.append(tale)
        n_bytes += len(tale) + len(END_OF_TEXT)
    return END_OF_TEXT.join(parts)
