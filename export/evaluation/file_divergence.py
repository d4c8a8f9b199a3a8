"""How far GGUF files in llama.cpp are from their checkpoint in PyTorch, or from another file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import gguf
import torch
from torch import Tensor

from llmkit.checkpoint.checkpoint import Checkpoint
from llmkit.console import progress
from llmkit.errors import DataError, GGUFError
from llmkit.export.evaluation.divergence import Divergence, divergence, joined
from llmkit.export.evaluation.eval_data import TextSequence, compared_sequences
from llmkit.export.gguf.reader import GGUFFile, read_gguf, refuse_faulty_weights, refuse_not_finite
from llmkit.export.llamacpp.runtime import LlamaCpp

DEFAULT_MAX_TOKENS = 10240


def measured_kl(source: Checkpoint, gguf: Path) -> float | None:
    """Mean KL of a file on what training held out, as `compare` has it; None without such text."""
    try:
        sequences = compared_sequences(source, None, DEFAULT_MAX_TOKENS)
    except DataError:
        return None
    (parts,) = divergences(source, [read_gguf(gguf)], sequences, among=source.label_ids or None)
    return joined(parts).mean_kl


@torch.inference_mode()
def divergences(
    source: Checkpoint,
    files: Sequence[GGUFFile],
    sequences: Sequence[TextSequence],
    *,
    among: Sequence[int] | None,
    gpu: bool = False,
) -> list[list[Divergence]]:
    """For each file the divergence in each sequence, where the next token counts.

    `among`: ids of the tokens between which the models choose, every token that counts one of
    them; None for the whole vocabulary. A classifier is compared among its labels: its other tokens
    are there only to be less likely.
    """
    model = source.load_model()
    answers = torch.tensor(sorted(among or range(source.config.vocab_size)))
    with ExitStack() as stack:
        n_ctx = source.config.context_length
        llamas = [stack.enter_context(LlamaCpp(file.path, n_ctx=n_ctx, gpu=gpu)) for file in files]
        for file, llama in zip(files, llamas, strict=True):
            _check_is_of(source, file, llama)
        return _divergences(lambda ids: model(ids[None])[0], llamas, sequences, answers)


def divergences_from_file(
    reference: GGUFFile,
    files: Sequence[GGUFFile],
    sequences: Sequence[TextSequence],
    *,
    gpu: bool = False,
) -> list[list[Divergence]]:
    """For each file the divergence from another file in each sequence, both in llama.cpp.

    Raises GGUFError for files of another vocabulary.
    """
    for file in (reference, *files):
        refuse_faulty_weights(file)
        if tokens_of(file) != tokens_of(reference):
            raise GGUFError(
                f"{file.path} and {reference.path} have different tokens; "
                "compare files of one model"
            )
    n_ctx = max(len(sequence.inputs) for sequence in sequences)
    with ExitStack() as stack:
        base, *llamas = (
            stack.enter_context(LlamaCpp(file.path, n_ctx=n_ctx, gpu=gpu))
            for file in (reference, *files)
        )
        answers = torch.arange(base.vocab_size)
        return _divergences(lambda ids: _computed(base, ids), llamas, sequences, answers)


def _divergences(
    reference: Callable[[Tensor], Tensor],
    llamas: Sequence[LlamaCpp],
    sequences: Sequence[TextSequence],
    answers: Tensor,
) -> list[list[Divergence]]:
    """`reference`: logits (T, V) of token ids (T,). `answers`: ids that are chosen between."""
    found: list[list[Divergence]] = [[] for _ in llamas]
    with progress("compare", len(sequences), "texts") as bar:
        for number, sequence in enumerate(sequences, start=1):
            inputs, counts = sequence.inputs, torch.from_numpy(sequence.counts)
            targets = torch.searchsorted(answers, sequence.targets[counts])
            wanted = reference(inputs)[counts][:, answers]  # (n, V or n_labels)
            for parts, llama in zip(found, llamas, strict=True):
                logits = _computed(llama, inputs)[counts][:, answers]
                parts.append(divergence(wanted, logits, targets))
            bar.update(number)
    return found


def _computed(llama: LlamaCpp, ids: Tensor) -> Tensor:
    """Logits (T, V) of token ids (T,), from an empty context."""
    llama.reset()
    computed = llama.evaluate(ids.tolist())
    refuse_not_finite(computed, llama.path)
    return torch.from_numpy(computed)


def tokens_of(file: GGUFFile) -> list[str]:
    """The vocabulary. Raises GGUFError for a file without one."""
    tokens = file.metadata.get(gguf.Keys.Tokenizer.LIST)
    if not isinstance(tokens, list):
        raise GGUFError(f"{file.path} has no {gguf.Keys.Tokenizer.LIST}; is it a model?")
    return tokens


def _check_is_of(source: Checkpoint, file: GGUFFile, llama: LlamaCpp) -> None:
    refuse_faulty_weights(file)
    config = source.config
    if (llama.vocab_size, llama.context_length) != (config.vocab_size, config.context_length):
        sizes = (
            f"sizes ({llama.vocab_size} and {config.vocab_size} tokens, "
            f"context of {llama.context_length} and {config.context_length})"
        )
        raise different_models(file.path, source, sizes)
    if file.metadata[gguf.Keys.Tokenizer.LIST] != source.tokenizer.tokens:
        raise different_models(file.path, source, "tokens")


def different_models(path: Path, checkpoint: Checkpoint, what: str) -> GGUFError:
    """The error for a file that was not made from this checkpoint."""
    return GGUFError(
        f"{path} and {checkpoint.folder} have different {what}; "
        "use a file made from this checkpoint"
    )
