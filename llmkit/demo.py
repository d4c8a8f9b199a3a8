"""The whole way on a built-in corpus: train, export, verify, compare, let llama.cpp tell a tale."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmkit.console import say
from llmkit.data.tales import tales
from llmkit.export.convert import Export, export
from llmkit.export.measure import Comparison, compare
from llmkit.export.parity import Proof, verify
from llmkit.export.plot import save_figure, size_quality_figure
from llmkit.export.report import write_report
from llmkit.export.running import generate
from llmkit.export.tables import proof_table, save_table_picture
from llmkit.files import write_text
from llmkit.generation import Sampling
from llmkit.tokenizer import END_OF_TEXT
from llmkit.training import TrainingResult, train

CORPUS_BYTES = 4_200_000
CORPUS_SEED = 1
NAME = "tales"
PROMPT = "Once there was"
QUANTS = ("f16", "q8_0", "q4_0")
VOCAB_SIZE = 1536
# A tale is up to 170 tokens of this vocabulary. A million tokens, two minutes on two cores,
# are enough for tales that hold together.
MODEL: dict[str, Any] = {"context_length": 192}
TRAINING: dict[str, Any] = {
    "steps": 330,
    "warmup_steps": 30,
    "learning_rate": 3e-3,
    "eval_interval": 110,
    "eval_tokens": 12288,
}


@dataclass(frozen=True)
class Demo:
    """Everything the demo made."""

    folder: Path
    training: TrainingResult
    export: Export
    proofs: list[Proof]
    comparison: Comparison
    tale: str

    @property
    def passed(self) -> bool:
        """Whether every file was proved."""
        return all(proof.passed for proof in self.proofs)


def demo(out: Path) -> Demo:
    """Walk the whole way into the folder `out`; a training done there already is not repeated."""
    corpus = out / "tales.txt"
    if not corpus.exists():
        write_text(corpus, _corpus())
    checkpoint = out / "checkpoint"
    training = train(
        corpus, checkpoint, vocab_size=VOCAB_SIZE, model=MODEL, training=TRAINING, resume=True
    )
    folder = out / "export"
    exported = export(checkpoint, folder, quants=QUANTS, name=NAME)
    files = [file.path for file in exported.files]
    proofs = [verify(checkpoint, file) for file in files]
    comparison = compare(checkpoint, files)
    save_table_picture(proof_table(proofs), folder / "parity.svg")
    save_figure(size_quality_figure(comparison), folder / "size-quality.png")
    write_report(folder / "report.html", comparison, proofs, title=f"{NAME}: from text to Ollama")
    say(f"{files[-1].name} in llama.cpp, asked to go on from {PROMPT!r}:")
    tale = PROMPT + "".join(generate(files[-1], PROMPT, Sampling(temperature=0.5, top_k=40)))
    return Demo(out, training, exported, proofs, comparison, tale)


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
