"""Whether an answer ends where training ended it: the token, its type, the stops, the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path

import gguf

from llmkit.checkpoint import load_checkpoint
from llmkit.console import progress
from llmkit.export.llama_cpp import LlamaCpp
from llmkit.export.parity.check import Check, counted
from llmkit.export.parity.generation import greedy_ids
from llmkit.export.parity.subject import Subject
from llmkit.finetuning.held_out import held_out_examples
from llmkit.generation import Sampling, generate_ids
from llmkit.modelfiles.modelfile import Modelfile

N_ANSWERS = 100
MAX_ANSWER = 256  # tokens
MAX_TOKENS = 6000  # of all answers
# Of the answers that end in PyTorch, so many have to end in llama.cpp. Chosen, not derived:
# PyTorch answers with the original weights here, and what quantization costs has no limit
# (docs/parity.md).
ENDING_SHARE = 0.5
_EOS = gguf.Keys.Tokenizer.EOS_ID


def stop_check(subject: Subject, llama: LlamaCpp, modelfile: Modelfile | None) -> Check:
    """Value: faults that can keep an answer from ending.

    For a checkpoint fine-tuned to answer, both programs also answer held-out prompts: PyTorch with
    the original weights, llama.cpp with the file.
    """
    source = subject.checkpoint
    end = source.prompt_format.end
    faults = list(_faults(subject, llama, modelfile))
    fine = f"answers end with {end!r}, token {source.end_id}, type CONTROL"
    if modelfile:
        fine += "; the Modelfile has its stops"
    if source.held_out_file.exists() and not source.labels:
        n, in_torch, in_llama = _ended(subject, llama)
        ended = f"{in_torch} of {n} held-out answers end in PyTorch, {in_llama} in llama.cpp"
        fine += f"; {ended}"
        fault = _ending_fault(in_torch, in_llama)
        if fault is not None:
            faults.append(f"{ended}: {fault}")
    return counted("stop", len(faults), fine, "; ".join(faults))


def _ending_fault(in_torch: int, in_llama: int) -> str | None:
    if not in_llama:
        return "the model never stops in llama.cpp"
    if in_llama < ENDING_SHARE * in_torch:
        return f"llama.cpp needs at least {ENDING_SHARE:.0%} as many; try a type with more bits"
    return None


def _faults(subject: Subject, llama: LlamaCpp, modelfile: Modelfile | None) -> Iterator[str]:
    source = subject.checkpoint
    end, end_id = source.prompt_format.end, source.end_id
    eos = subject.file.metadata.get(_EOS)
    if eos != end_id:
        yield f"{_EOS} is {eos}, but training ended answers with token {end_id} ({end!r})"
    types = subject.file.metadata.get(gguf.Keys.Tokenizer.TOKEN_TYPE)
    kind = types[end_id] if isinstance(types, list) and end_id < len(types) else None
    if kind != gguf.TokenType.CONTROL:
        yield f"token {end_id} ({end!r}) is not CONTROL: programs print its text"
    if not llama.is_end_of_generation(end_id):
        yield f"llama.cpp does not stop at token {end_id} ({end!r})"
    if modelfile:
        missing = [stop for stop in source.prompt_format.stops if stop not in _stops(modelfile)]
        if missing:
            named = ", ".join(map(repr, missing))
            yield f"the Modelfile has no PARAMETER stop for {named}; add it"


def _stops(modelfile: Modelfile) -> Sequence[str]:
    return modelfile.parameters.stop


def _ended(subject: Subject, llama: LlamaCpp) -> tuple[int, int, int]:
    """How many held-out prompts were answered; how many answers ended in PyTorch, in llama.cpp."""
    source = subject.checkpoint
    answers = _answers(source.folder, source.sha256)
    in_torch = in_llama = 0
    with progress("answer", len(answers), "prompts") as bar:
        for number, answer in enumerate(answers, start=1):
            ids = greedy_ids(llama, list(answer.prompt), answer.room)
            in_torch += answer.ended
            in_llama += bool(ids) and llama.is_end_of_generation(ids[-1])
            bar.update(number)
    return len(answers), in_torch, in_llama


@dataclass(frozen=True)
class _Answer:
    """PyTorch's, to a held-out prompt, with room for so many tokens."""

    prompt: tuple[int, ...]
    room: int
    ended: bool


@lru_cache(maxsize=1)  # every file of an export is held against the same answers
def _answers(checkpoint: Path, _sha256: str) -> tuple[_Answer, ...]:
    source = load_checkpoint(checkpoint)
    model = source.load_model()
    sampling = Sampling(temperature=0, max_tokens=MAX_ANSWER)
    answers: list[_Answer] = []
    n_tokens = 0
    for example in held_out_examples(source)[:N_ANSWERS]:
        prompt = example.ids[: example.is_answer.index(True)]
        room = min(MAX_ANSWER, source.config.context_length - len(prompt))
        if room < 1:
            continue
        said = list(islice(generate_ids(model, list(prompt), sampling, source.stop_ids), room))
        answers.append(_Answer(tuple(prompt), room, len(said) < room))
        n_tokens += len(said)
        if n_tokens > MAX_TOKENS:
            break
    return tuple(answers)
