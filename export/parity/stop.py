"""Whether an answer ends where training ended it: the token, its type, the stops, the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import gguf

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
_EOS = gguf.Keys.Tokenizer.EOS_ID


def stop_check(subject: Subject, llama: LlamaCpp, modelfile: Modelfile | None) -> Check:
    """Value: what would keep an answer from ending.

    Of a checkpoint that was taught to answer, held-out prompts are answered in both programs.
    """
    source = subject.checkpoint
    end = source.prompt_format.end
    faults = list(_faults(subject, llama, modelfile))
    fine = f"answers end with {end!r}, id {source.end_id}, CONTROL"
    if modelfile:
        fine += ", and at the stops of the Modelfile"
    if source.held_out_file.exists() and not source.labels:
        n, in_torch, in_llama = _ended(subject, llama)
        ended = f"of {n} held-out answers {in_torch} end in PyTorch, {in_llama} in llama.cpp"
        fine += f"; {ended}"
        if not in_llama:
            cause = "it ends in PyTorch" if in_torch else "it has not learned to end"
            faults.append(f"{ended}: the model never stops, and {cause}")
    return counted("stop", len(faults), fine, "; ".join(faults))


def _faults(subject: Subject, llama: LlamaCpp, modelfile: Modelfile | None) -> Iterator[str]:
    source = subject.checkpoint
    end, end_id = source.prompt_format.end, source.end_id
    eos = subject.file.metadata.get(_EOS)
    if eos != end_id:
        yield f"{_EOS} is {eos}, and answers were trained to end with {end_id} ({end!r})"
    types = subject.file.metadata.get(gguf.Keys.Tokenizer.TOKEN_TYPE)
    kind = types[end_id] if isinstance(types, list) and end_id < len(types) else None
    if kind != gguf.TokenType.CONTROL:
        yield f"token {end_id} ({end!r}) is not CONTROL: its text would be printed"
    if not llama.is_end_of_generation(end_id):
        yield f"llama.cpp does not stop at token {end_id} ({end!r})"
    if modelfile:
        missing = [stop for stop in source.prompt_format.stops if stop not in _stops(modelfile)]
        if missing:
            named = ", ".join(map(repr, missing))
            yield f"the Modelfile has no PARAMETER stop for {named}: another model may run on"


def _stops(modelfile: Modelfile) -> Sequence[str]:
    return modelfile.parameters.stop


def _ended(subject: Subject, llama: LlamaCpp) -> tuple[int, int, int]:
    """How many held-out prompts were answered, and how many answers ended in either program."""
    source = subject.checkpoint
    model = source.load_model()
    prompts = [
        list(example.ids[: example.is_answer.index(True)])
        for example in held_out_examples(source)[:N_ANSWERS]
    ]
    n = in_torch = in_llama = n_tokens = 0
    sampling = Sampling(temperature=0, max_tokens=MAX_ANSWER)
    with progress("answer", len(prompts), "prompts") as bar:
        for prompt in prompts:
            if n_tokens > MAX_TOKENS:
                break
            room = min(MAX_ANSWER, llama.n_ctx - len(prompt))
            if room < 1:
                continue
            said = list(islice(generate_ids(model, prompt, sampling, source.stop_ids), room))
            ids = greedy_ids(llama, prompt, room)
            n, n_tokens = n + 1, n_tokens + max(len(said), len(ids))
            in_torch += len(said) < room
            in_llama += llama.is_end_of_generation(ids[-1])
            bar.update(n)
    return n, in_torch, in_llama
