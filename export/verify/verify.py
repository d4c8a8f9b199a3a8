"""`verify`: does llama.cpp compute from a GGUF file what PyTorch computes from its checkpoint?

Each check compares one part and names the place where it differs. `checks.py` lists them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch

from llmkit.architectures.registry import tensor_specs
from llmkit.checkpoint.checkpoint import load_checkpoint
from llmkit.console import say
from llmkit.errors import GGUFError, LlmkitError, OllamaError
from llmkit.export.check import Check, Outcome, Proof, all_passed
from llmkit.export.evaluation.eval_data import TextSequence, proof_prompts, proof_sequences
from llmkit.export.gguf.reader import config_of
from llmkit.export.llamacpp.devices import Backend, uses_gpu
from llmkit.export.llamacpp.runtime import LlamaCpp
from llmkit.export.ollama.server import OllamaServer
from llmkit.export.verify.checks import CHECKS, CheckContext, Needs, check_names
from llmkit.export.verify.proof_store import keep
from llmkit.export.verify.reference import Reference
from llmkit.export.verify.target import VerifyTarget, open_target
from llmkit.files import StrPath, optional_path
from llmkit.modelfiles.grammar import RefusalError
from llmkit.modelfiles.modelfile import Modelfile
from llmkit.modelfiles.reading import read_modelfile

MODELFILE = "Modelfile"
DEFAULT_MAX_TOKENS = 2048


def verify(
    checkpoint: StrPath,
    gguf: StrPath,
    *,
    modelfile: StrPath | None = None,
    ollama: str | None = None,
    data: StrPath | None = None,
    html: StrPath | None = None,
    max_tokens: int = DEFAULT_MAX_TOKENS,
    backend: Backend = "cpu",
    imported_from: StrPath | None = None,
) -> Proof:
    """Compare a GGUF file in llama.cpp with its checkpoint in PyTorch.

    `modelfile`: by default the one beside the file. `ollama`: a model in a running Ollama, created
    from this file, to check too (at OLLAMA_HOST); if it cannot be reached, that check fails.
    `data`: text; by default what training held out, or built-in tales. The proof is saved in
    parity.json beside the file, and with `html` as a page with plots. `backend`: where llama.cpp
    runs, "cpu", "gpu" or "auto", which is a GPU if there is one. `imported_from`: what `checkpoint`
    was imported from, where another program made the file of it: keys that llama.cpp does without
    may be missing, and blocks need only be near the weights. Raises LlmkitError if the two cannot
    be compared or the page cannot be written.
    """
    checkpoint, gguf, data = Path(checkpoint), Path(gguf), optional_path(data)
    is_foreign = imported_from is not None
    target = open_target(load_checkpoint(checkpoint), gguf, is_foreign=is_foreign)
    unreachable = _unreachable(ollama) if ollama else None
    if unreachable:
        say(f"{unreachable}; the other checks still run")
    source, texts = proof_sequences(target.checkpoint, data, max_tokens)
    prompts = proof_prompts(target.checkpoint, data)
    beside = gguf.parent / MODELFILE
    modelfile = optional_path(modelfile) or (beside if beside.exists() else None)
    said = _read(modelfile) if modelfile else None
    gpu = uses_gpu(backend)
    context = CheckContext(target, texts, prompts, modelfile, said, ollama, gpu)
    checks = _results(context, unreachable)
    proof = Proof(
        passed=all_passed(checks),
        checkpoint=str(imported_from or checkpoint),
        gguf=str(gguf),
        sha256=target.file.sha256(),
        quant=target.file.quant,
        checks=checks,
        distances=context.comparison.distances if context.comparison else {},
        checkpoint_sha256=target.checkpoint.sha256,
        texts=source,
        sha256_of=_hashes(target, texts, modelfile),
        versions={
            package: version(package)
            for package in ("llmkit", "torch", "llama-cpp-python", "tokenizers")
        },
    )
    try:
        keep(proof)
    except LlmkitError as error:  # a folder that cannot be written does not undo what was found
        say(f"could not save the proof: {error}")
    if html is not None:
        from llmkit.export.verify.page import write_page  # matplotlib takes a while to import

        shown = [target.checkpoint.tokenizer.decode(prompt) for prompt in prompts]
        write_page(Path(html), proof, context.comparison, shown)
    return proof


def _results(context: CheckContext, unreachable: OllamaError | None) -> list[Check]:
    """Run the checks by what they need; the results are in the order of the table."""
    found = _run(context, Needs.FILES)
    try:
        _require_same_sizes(context.target)
        context.reference = Reference(context.target, torch.float32)
        in_llama = _run(context, Needs.OWN_LLAMA_CPP)
        n_ctx = context.target.checkpoint.config.context_length
        path, gpu = context.target.file.path, context.gpu
        with LlamaCpp(path, n_ctx=n_ctx, gpu=gpu) as context.llama:
            in_llama |= _run(context, Needs.LLAMA_CPP)
    except GGUFError as error:
        in_llama = _not_run(error, Needs.OWN_LLAMA_CPP, Needs.LLAMA_CPP)
    found |= in_llama
    if context.ollama is not None:
        try:
            if unreachable:
                raise unreachable
            found |= _run(context, Needs.OLLAMA)
        except OllamaError as error:
            found |= _not_run(error, Needs.OLLAMA)
    return [found[check.name] for check in CHECKS if check.name in found]


def _run(context: CheckContext, needs: Needs) -> dict[str, Check]:
    return {c.name: c.run(context) for c in CHECKS if c.needs is needs}


def _not_run(error: LlmkitError, *needs: Needs) -> dict[str, Check]:
    outcome = Outcome(False, f"not run: {error}", value=1)
    return {name: outcome.named(name) for name in check_names(*needs)}


def _require_same_sizes(target: VerifyTarget) -> None:
    found, wanted = (
        [(spec.gguf_name, spec.shape) for spec in tensor_specs(config)]
        for config in (config_of(target.file), target.checkpoint.config)
    )
    if found != wanted:
        raise GGUFError("the file and the checkpoint have different sizes; metadata names them")


def _unreachable(model: str) -> OllamaError | None:
    """Why Ollama cannot be asked about a model, found before the slow checks; None if it can."""
    try:
        with OllamaServer() as server:
            server.version()
            server.show(model)
    except OllamaError as error:
        return error
    return None


def _read(modelfile: Path) -> Modelfile | None:
    """None if Ollama refuses it, which `metadata` reports."""
    try:
        return read_modelfile(modelfile).modelfile
    except RefusalError:
        return None


def _hashes(
    target: VerifyTarget, texts: Sequence[TextSequence], modelfile: Path | None
) -> dict[str, str]:
    ids = hashlib.sha256()
    for text in texts:
        ids.update(text.ids.tobytes())
    adapter = {"adapter": target.adapter.sha256()} if target.adapter else {}
    beside = {MODELFILE: hashlib.sha256(modelfile.read_bytes()).hexdigest()} if modelfile else {}
    return {**adapter, **beside, "texts": ids.hexdigest()}
