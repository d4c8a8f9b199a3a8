"""Whether an answer ends where training ended it: the token, its type, the stops, the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from pathlib import Path

import gguf
import torch

from llmkit.architectures.base import LanguageModel
from llmkit.checkpoint.checkpoint import Checkpoint, load_checkpoint
from llmkit.console import progress
from llmkit.export.check import Outcome, counted
from llmkit.export.llamacpp.runtime import LlamaCpp
from llmkit.export.verify.generation_check import greedy_ids
from llmkit.export.verify.target import VerifyTarget
from llmkit.finetuning.held_out import held_out_examples
from llmkit.generation import generate_ids
from llmkit.modelfiles.modelfile import Modelfile
from llmkit.sampling import Sampling

N_ANSWERS = 100
MAX_ANSWER = 256  # tokens
MAX_TOKENS = 6000  # of all answers
# Of the answers that end in PyTorch, so many have to end in llama.cpp. Chosen, not derived:
# PyTorch answers with the original weights here, and what quantization costs has no limit
# (docs/parity.md).
ENDING_SHARE = 0.5
_EOS = gguf.Keys.Tokenizer.EOS_ID


def stop_check(target: VerifyTarget, llama: LlamaCpp, modelfile: Modelfile | None) -> Outcome:
    """Value: faults that can keep an answer from ending.

    For a checkpoint fine-tuned to answer, both programs also answer held-out prompts: PyTorch with
    the original weights, llama.cpp with the file.
    """
    source = target.checkpoint
    end = source.prompt_format.end
    faults = list(_faults(target, llama, modelfile))
    fine = f"answers end with {end!r}, token {source.end_id}, type CONTROL"
    if modelfile:
        fine += "; the Modelfile has its stops"
    if source.held_out_file.exists() and not source.labels:
        n, in_torch, in_llama = _ended(target, llama)
        ended = f"{in_torch} of {n} held-out answers end in PyTorch, {in_llama} in llama.cpp"
        fine += f"; {ended}"
        fault = _ending_fault(in_torch, in_llama)
        if fault is not None:
            faults.append(f"{ended}: {fault}")
    return counted(len(faults), fine, "; ".join(faults))


def _ending_fault(in_torch: int, in_llama: int) -> str | None:
    if not in_llama:
        return "the model never stops in llama.cpp"
    if in_llama < ENDING_SHARE * in_torch:
        return f"llama.cpp needs at least {ENDING_SHARE:.0%} as many; try a type with more bits"
    return None


def _faults(target: VerifyTarget, llama: LlamaCpp, modelfile: Modelfile | None) -> Iterator[str]:
    source = target.checkpoint
    end, end_id = source.prompt_format.end, source.end_id
    eos = target.file.metadata.get(_EOS)
    if eos != end_id:
        yield f"{_EOS} is {eos}, but training ended answers with token {end_id} ({end!r})"
    types = target.file.metadata.get(gguf.Keys.Tokenizer.TOKEN_TYPE)
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


def _ended(target: VerifyTarget, llama: LlamaCpp) -> tuple[int, int, int]:
    """How many held-out prompts were answered; how many answers ended in PyTorch, in llama.cpp."""
    source = target.checkpoint
    asked = _asked(source.folder, source.sha256)
    answers: list[list[int]] = []
    with progress("answer", len(asked.prompts), "prompts") as bar:
        for prompt in asked.prompts:
            answers.append(greedy_ids(llama, prompt, asked.room(prompt)))
            bar.update(len(answers))
            if sum(map(len, answers)) > MAX_TOKENS:
                break
    in_llama = sum(bool(ids) and llama.is_end_of_generation(ids[-1]) for ids in answers)
    return len(answers), asked.n_ended_in_pytorch(answers), in_llama


@dataclass(frozen=True)
class _Asked:
    """Held-out prompts, and whether PyTorch's own answers to the first of them end."""

    source: Checkpoint
    prompts: list[list[int]]
    ended: list[bool] = field(default_factory=list)

    def room(self, prompt: list[int]) -> int:
        """How many tokens may follow a prompt."""
        return min(MAX_ANSWER, self.source.config.context_length - len(prompt))

    def n_ended_in_pytorch(self, drafts: Sequence[Sequence[int]]) -> int:
        """Of as many answers as there are drafts, which only save time: see `_ends`."""
        n_known = len(self.ended)
        if n_known < len(drafts):
            model, stops = self.source.load_model(), self.source.stop_ids
            for prompt, draft in list(zip(self.prompts, drafts, strict=False))[n_known:]:
                self.ended.append(_ends(model, prompt, draft, self.room(prompt), stops))
        return sum(self.ended[: len(drafts)])


@lru_cache(maxsize=1)  # every file of an export is held against the same answers
def _asked(checkpoint: Path, _sha256: str) -> _Asked:
    source = load_checkpoint(checkpoint)
    examples = held_out_examples(source)[:N_ANSWERS]
    asked = _Asked(source, [list(some.ids[: some.is_answer.index(True)]) for some in examples])
    asked.prompts[:] = [prompt for prompt in asked.prompts if asked.room(prompt) > 0]
    return asked


@torch.inference_mode()
def _ends(
    model: LanguageModel, prompt: list[int], draft: Sequence[int], room: int, stops: frozenset[int]
) -> bool:
    """Whether the most probable tokens after a prompt come to a stop within `room` tokens.

    `draft` is another program's answer. As far as PyTorch would have chosen the same tokens, one
    pass over all of them says so.
    """
    tokens = torch.tensor([[*prompt, *draft[:-1]]])
    chosen = model(tokens)[0, len(prompt) - 1 :].argmax(-1).tolist()  # (len(draft),)
    said: list[int] = []
    for token_id, drafted in zip(chosen, draft, strict=False):
        said.append(token_id)
        if token_id in stops:
            return True
        if token_id != drafted:
            break
    sampling = Sampling(temperature=0)
    rest = generate_ids(model, [*prompt, *said], sampling, stops)
    return sum(1 for _ in islice(rest, room - len(said))) < room - len(said)
