"""`compare`: what each GGUF file of a checkpoint costs in bytes and in quality."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gguf
import torch

from llmkit.checkpoint import Checkpoint, load_checkpoint
from llmkit.console import progress
from llmkit.errors import GGUFError
from llmkit.export.adapter import adapter_of
from llmkit.export.divergence import Divergence, divergence, joined, mean_interval
from llmkit.export.gguf_file import GGUFFile, read_gguf
from llmkit.export.held_out import TextSequence, held_out_sequences
from llmkit.export.llama_cpp import LlamaCpp
from llmkit.export.speed import Speed, measure_speed

DEFAULT_MAX_TOKENS = 10240
SPEED_TOKENS = 128


@dataclass(frozen=True)
class ComparisonRow:
    """One GGUF file against the checkpoint. KL in nats per token."""

    file: str
    quant: str
    method: str
    bytes: int
    bits_per_weight: float
    mean_kl: float
    mean_kl_ci: tuple[float, float] | None
    p999_kl: float
    top1: float
    perplexity: float
    perplexity_ratio: float
    prompt_tokens_per_s: float
    generate_tokens_per_s: float
    peak_rss_bytes: int | None


@dataclass(frozen=True)
class Comparison:
    """All files on the same tokens."""

    reference: str
    tokens: int
    rows: list[ComparisonRow]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as `--json` prints them."""
        return asdict(self)


def compare(
    checkpoint: Path,
    ggufs: Sequence[Path],
    *,
    data: Path | None = None,
    max_tokens: int = DEFAULT_MAX_TOKENS,
) -> Comparison:
    """Measure GGUF files against their checkpoint on the same held-out text.

    `data`: a text file, folder or JSONL file; what training held out unless given. Raises
    LlmkitError for files that are not of this checkpoint's vocabulary.
    """
    source = load_checkpoint(checkpoint)
    files = [read_gguf(path) for path in ggufs]
    sequences = held_out_sequences(source, data, max_tokens)
    found = divergences(source, files, sequences)
    length = max(len(sequence.inputs) for sequence in sequences)
    rows = []
    with progress("measure speed", len(files), "files") as bar:
        for number, (file, parts) in enumerate(zip(files, found, strict=True), start=1):
            speed = measure_speed(file.path, max(1, length // 2), min(SPEED_TOKENS, length // 2))
            rows.append(_row(file, parts, speed))
            bar.update(number)
    return Comparison(
        str(checkpoint), sum(int(sequence.counts.sum()) for sequence in sequences), rows
    )


@torch.inference_mode()
def divergences(
    source: Checkpoint, files: Sequence[GGUFFile], sequences: Sequence[TextSequence]
) -> list[list[Divergence]]:
    """For each file the divergence in each sequence, where the next token counts.

    Of a classifier among its labels: the other tokens are there only to be less likely.
    """
    model = source.load_model()
    answers = torch.tensor(sorted(source.label_ids) or range(source.config.vocab_size))
    found: list[list[Divergence]] = [[] for _ in files]
    with ExitStack() as stack:
        llamas = [stack.enter_context(_opened(file, source)) for file in files]
        with progress("compare", len(sequences), "texts") as bar:
            for number, sequence in enumerate(sequences, start=1):
                inputs, counts = sequence.inputs, torch.from_numpy(sequence.counts)
                targets = torch.searchsorted(answers, sequence.targets[counts])
                reference = model(inputs[None])[0, counts][:, answers]  # (n, V or n_labels)
                for parts, llama in zip(found, llamas, strict=True):
                    llama.reset()
                    logits = torch.from_numpy(llama.evaluate(inputs.tolist()))
                    parts.append(divergence(reference, logits[counts][:, answers], targets))
                bar.update(number)
    return found


def _opened(file: GGUFFile, source: Checkpoint) -> LlamaCpp:
    llama = LlamaCpp(file.path)
    config = source.config
    if (llama.vocab_size, llama.context_length) != (config.vocab_size, config.context_length):
        raise GGUFError(
            f"{file.path} has {llama.vocab_size} tokens and a context of {llama.context_length}, "
            f"{source.folder} {config.vocab_size} and {config.context_length}: another model"
        )
    if file.metadata[gguf.Keys.Tokenizer.LIST] != source.tokenizer.tokens:
        raise GGUFError(f"{file.path} has other tokens than {source.folder}: another model")
    return llama


def _row(file: GGUFFile, parts: list[Divergence], speed: Speed) -> ComparisonRow:
    whole = joined(parts)
    adapter = adapter_of(file)
    return ComparisonRow(
        file=str(file.path),
        quant=file.quant,
        method=file.method,
        bytes=file.path.stat().st_size + (adapter.path.stat().st_size if adapter else 0),
        bits_per_weight=file.bits_per_weight,
        mean_kl=whole.mean_kl,
        mean_kl_ci=mean_interval(parts),
        p999_kl=whole.p999_kl,
        top1=whole.top1,
        perplexity=whole.perplexity,
        perplexity_ratio=whole.perplexity_ratio,
        **asdict(speed),
    )
