"""Whether a running Ollama stores the file, renders its prompts and computes its numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import gguf

from llmkit.errors import OllamaError
from llmkit.export.check import Outcome
from llmkit.export.llamacpp.runtime import LlamaCpp
from llmkit.export.ollama.server import OllamaServer, Shown
from llmkit.export.verify.ollama_logprobs import compared_logprobs
from llmkit.export.verify.prompt_check import conversations, id_fault
from llmkit.export.verify.target import FileTarget, VerifyTarget
from llmkit.finetuning.held_out import held_out_questions
from llmkit.modelfiles.modelfile import Modelfile

N_ANSWERS, MAX_ANSWER = 10, 256


def ollama_check(
    target: VerifyTarget,
    modelfile: Modelfile | None,
    prompts: Sequence[Sequence[int]],
    name: str,
    host: str | None = None,
) -> Outcome:
    """Compare a model in Ollama with the file. Value: largest difference of log-probabilities.

    Raises OllamaError if no server answers or it has no such model.
    """
    with OllamaServer(host) as server:
        version = server.version()
        faults = list(stored_faults(server.show(name), target, modelfile))
        faults += rendering_faults(server, name, target)
        found = compared_logprobs(server, name, target, prompts)
        faults += found.faults
        n, n_stopped = stopped(server, name, target)
        if n and not n_stopped:
            faults.append(never_stops(n))
    detail = (
        f"Ollama {version} {found.explanation}: metadata, tensors and prompts match; "
        f"{found.n} log-probabilities match"
    ) + (f"; {n_stopped} of {n} answers stop" if n else "")
    if faults:
        detail = summed_up(faults)
    return Outcome(not faults, detail, value=found.largest, limit=found.limit)


def summed_up(faults: Sequence[str]) -> str:
    """The first fault and how many more there are."""
    return faults[0] + (f"; {len(faults) - 1} more faults" if faults[1:] else "")


def never_stops(n: int) -> str:
    """The fault of a model that reached no end token in n answers."""
    return f"the model never stops: {n} of {n} answers ran to the token limit"


def stored_faults(shown: Shown, target: FileTarget, modelfile: Modelfile | None) -> Iterator[str]:
    """Where the stored model differs from the file or the Modelfile.

    Ollama rewrites the file: it adds general.quantization_version and tells no arrays.
    """
    for key, wanted in target.file.metadata.items():
        found = shown.metadata.get(key)
        if isinstance(wanted, list) or (found is None and key not in shown.metadata):
            continue  # it does not tell all keys
        if isinstance(wanted, float) and isinstance(found, float | int):
            if abs(found - wanted) <= 1e-6 * abs(wanted):
                continue
        elif found == wanted:
            continue
        yield f"{key} is {found!r} in Ollama instead of {wanted!r}; create the model again"
    key = gguf.Keys.General.ARCHITECTURE
    if key not in shown.metadata:
        yield f"{key} is missing in Ollama"
    for name, tensor in target.file.tensors.items():
        if name not in shown.tensors:
            if shown.tensors:
                yield f"tensor {name} is missing in Ollama"
            continue
        kind, shape = shown.tensors[name]
        wanted_shape = tuple(reversed(tensor.shape))  # Ollama names the row length first
        if (kind, shape) != (tensor.ggml_type.name, wanted_shape):
            wanted = f"{tensor.ggml_type.name} {wanted_shape}"
            yield f"{name} is {kind} {shape} in Ollama instead of {wanted}"
    if modelfile:
        for what, there, wanted in (
            ("TEMPLATE", shown.template, modelfile.template),
            ("SYSTEM", shown.system, modelfile.system or ""),
        ):
            if wanted is not None and there != wanted:  # without a TEMPLATE Ollama guesses one
                yield f"{what} in Ollama differs from the Modelfile: {there[:60]!r}"
        for stop in modelfile.parameters.stop:
            if f'"{stop}"' not in shown.parameters:
                yield f"stop {stop!r} is missing in Ollama"


def rendering_faults(server: OllamaServer, name: str, target: VerifyTarget) -> Iterator[str]:
    """Conversations whose prompt the server writes otherwise than training did."""
    form = target.checkpoint.prompt_format
    with LlamaCpp(target.file.path) as llama:
        for conversation in conversations(target.checkpoint):
            wanted = form.text(conversation.messages, for_answer=True)
            found = server.rendered(name, conversation.messages)
            if found != wanted:
                shown = f"{found[:80]!r} instead of {wanted[:80]!r}"
                yield f"Ollama renders {conversation.kind} as {shown}"
                continue
            fault = id_fault(conversation.messages, target.checkpoint, llama, found)
            if fault is not None:
                yield f"{conversation.kind}, as Ollama renders it: {fault}"


def stopped(server: OllamaServer, name: str, target: VerifyTarget) -> tuple[int, int]:
    """How many held-out questions were asked, and how many answers stopped by themselves."""
    source = target.checkpoint
    if source.labels:
        return 0, 0
    questions = held_out_questions(source)[:N_ANSWERS]
    n_ctx = source.config.context_length
    try:
        said = [server.answered(name, question, MAX_ANSWER, n_ctx) for question in questions]
    except OllamaError as error:
        raise OllamaError(f"{error} (while answering a held-out question)") from error
    return len(said), sum(answer.done_reason == "stop" for answer in said)
