"""`verify`: does llama.cpp compute from a GGUF file what PyTorch computes from its checkpoint?

Each check compares one part and names the place where it differs. `metadata` and `tensors` read
the file; the other checks run it in llama.cpp.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from llmkit.architectures.registry import tensor_specs
from llmkit.checkpoint.checkpoint import load_checkpoint
from llmkit.console import say
from llmkit.errors import GGUFError, LlmkitError, OllamaError
from llmkit.export.check import Check, Proof
from llmkit.export.evaluation.eval_data import TextSequence, proof_prompts, proof_sequences
from llmkit.export.gguf.reader import config_of
from llmkit.export.llamacpp.runtime import LlamaCpp
from llmkit.export.ollama.server import OllamaServer
from llmkit.export.verify.generation_check import generation_check
from llmkit.export.verify.layers_check import layers_check
from llmkit.export.verify.logits_check import LogitsComparison, compare_logits, logits_check
from llmkit.export.verify.metadata_check import metadata_check
from llmkit.export.verify.ollama_check import NAME as OLLAMA
from llmkit.export.verify.ollama_check import ollama_check
from llmkit.export.verify.prompt_check import prompt_check
from llmkit.export.verify.proof_store import keep
from llmkit.export.verify.reference import Reference
from llmkit.export.verify.stop_check import stop_check
from llmkit.export.verify.target import Subject, open_subject
from llmkit.export.verify.tensors_check import tensors_check
from llmkit.export.verify.tokenizer_check import tokenizer_check
from llmkit.files import StrPath, optional_path
from llmkit.modelfiles.grammar import RefusalError
from llmkit.modelfiles.modelfile import Modelfile
from llmkit.modelfiles.reading import read_modelfile

MODELFILE = "Modelfile"
DEFAULT_MAX_TOKENS = 2048
RUN_CHECKS = ("tokenizer", "prompt", "stop", "layers", "logits", "generation")
N_TEXTS = 50  # of the user's own, for the tokenizer
LAYER_TOKENS = 64  # each goes through every operation by itself


def verify(
    checkpoint: StrPath,
    gguf: StrPath,
    *,
    modelfile: StrPath | None = None,
    ollama: str | None = None,
    data: StrPath | None = None,
    html: StrPath | None = None,
    max_tokens: int = DEFAULT_MAX_TOKENS,
) -> Proof:
    """Compare a GGUF file in llama.cpp with its checkpoint in PyTorch.

    `modelfile`: by default the one beside the file. `ollama`: a model in a running Ollama, created
    from this file, to check too (at OLLAMA_HOST); if it cannot be reached, that check fails.
    `data`: text; by default what training held out, or built-in tales. The proof is saved in
    parity.json beside the file, and with `html` as a page with plots. Raises LlmkitError if the
    two cannot be compared or the page cannot be written.
    """
    checkpoint, gguf, data = Path(checkpoint), Path(gguf), optional_path(data)
    subject = open_subject(load_checkpoint(checkpoint), gguf)
    unreachable = _unreachable(ollama) if ollama else None
    if unreachable:
        say(f"{unreachable}; the other checks still run")
    source, texts = proof_sequences(subject.checkpoint, data, max_tokens)
    prompts = proof_prompts(subject.checkpoint, data)
    beside = gguf.parent / MODELFILE
    modelfile = optional_path(modelfile) or (beside if beside.exists() else None)
    said = _read(modelfile) if modelfile else None
    checks = [metadata_check(subject, modelfile), tensors_check(subject)]
    found = _Run(texts, prompts, said)
    try:
        checks += found.checks(subject)
    except GGUFError as error:
        checks += [_not_run(name, error) for name in RUN_CHECKS]
    if ollama is not None:
        try:
            if unreachable:
                raise unreachable
            checks.append(ollama_check(subject, said, prompts, ollama))
        except OllamaError as error:
            checks.append(_not_run(OLLAMA, error))
    proof = Proof(
        passed=all(check.passed for check in checks),
        checkpoint=str(checkpoint),
        gguf=str(gguf),
        sha256=subject.file.sha256(),
        quant=subject.quantization.name,
        checks=checks,
        distances=found.comparison.distances if found.comparison else {},
        checkpoint_sha256=subject.checkpoint.sha256,
        texts=source,
        sha256_of=_hashes(subject, texts, modelfile),
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

        shown = [subject.checkpoint.tokenizer.decode(prompt) for prompt in prompts]
        write_page(Path(html), proof, found.comparison, shown)
    return proof


def _unreachable(model: str) -> OllamaError | None:
    """Why Ollama cannot be asked about a model, found before the slow checks; None if it can."""
    try:
        with OllamaServer() as server:
            server.version()
            server.show(model)
    except OllamaError as error:
        return error
    return None


def _not_run(name: str, error: LlmkitError) -> Check:
    return Check(name, False, 1, 0, f"not run: {error}")


def _read(modelfile: Path) -> Modelfile | None:
    """None if Ollama refuses it, which `metadata` reports."""
    try:
        return read_modelfile(modelfile).modelfile
    except RefusalError:
        return None


@dataclass
class _Run:
    """The checks that run llama.cpp, and their comparison of logits."""

    texts: list[TextSequence]
    prompts: list[list[int]]
    modelfile: Modelfile | None
    comparison: LogitsComparison | None = None

    def checks(self, subject: Subject) -> list[Check]:
        """Run llama.cpp. Raises GGUFError if it or the reference cannot run the file."""
        source, file = subject.checkpoint, subject.file
        found, wanted = (
            [(spec.gguf_name, spec.shape) for spec in tensor_specs(config)]
            for config in (config_of(file), source.config)
        )
        if found != wanted:
            raise GGUFError("the file and the checkpoint have different sizes; metadata names them")
        reference = Reference(subject, torch.float32)
        # It loads the file by itself, so that memory holds it once.
        layers = layers_check(subject, self.texts[0].inputs[:LAYER_TOKENS])
        with LlamaCpp(file.path, n_ctx=source.config.context_length) as llama:
            own_texts = [source.tokenizer.decode(text.ids.tolist()) for text in self.texts]
            checks = [tokenizer_check(subject, llama, own_texts[:N_TEXTS])]
            checks.append(prompt_check(subject, llama, self.modelfile))
            checks.append(stop_check(subject, llama, self.modelfile))
            checks.append(layers)
            self.comparison = compare_logits(llama, subject, self.texts)
            checks.append(logits_check(self.comparison))
            noise = self.comparison.logit_noise
            checks.append(generation_check(llama, reference, self.prompts, noise))
        return checks


def _hashes(
    subject: Subject, texts: Sequence[TextSequence], modelfile: Path | None
) -> dict[str, str]:
    ids = hashlib.sha256()
    for text in texts:
        ids.update(text.ids.tobytes())
    adapter = {"adapter": subject.adapter.sha256()} if subject.adapter else {}
    beside = {MODELFILE: hashlib.sha256(modelfile.read_bytes()).hexdigest()} if modelfile else {}
    return {**adapter, **beside, "texts": ids.hexdigest()}
