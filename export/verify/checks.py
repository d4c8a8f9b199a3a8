"""The checks of `verify`: one entry each. Proofs list them in this order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from pathlib import Path

from llmkit.export.check import Check, Outcome
from llmkit.export.evaluation.eval_data import TextSequence
from llmkit.export.llamacpp.runtime import LlamaCpp
from llmkit.export.verify.generation_check import generation_check
from llmkit.export.verify.layers_check import LayersComparison, compare_layers
from llmkit.export.verify.logits_check import LogitsComparison, compare_logits, logits_check, spread
from llmkit.export.verify.metadata_check import metadata_check
from llmkit.export.verify.ollama_check import ollama_check
from llmkit.export.verify.prompt_check import prompt_check
from llmkit.export.verify.reference import Reference
from llmkit.export.verify.stop_check import stop_check
from llmkit.export.verify.target import VerifyTarget
from llmkit.export.verify.tensors_check import tensors_check
from llmkit.export.verify.tokenizer_check import tokenizer_check
from llmkit.modelfiles.modelfile import Modelfile

N_TEXTS = 50  # of the user's own, for the tokenizer


class Needs(Enum):
    """What has to be there for a check. Checks run in the order of these."""

    FILES = auto()  # nothing is computed: the result is the same on any hardware
    OWN_LLAMA_CPP = auto()  # loads the file by itself, before the others, so memory holds it once
    LLAMA_CPP = auto()  # loaded once for all
    OLLAMA = auto()  # a running server that has the model


@dataclass
class CheckContext:
    """What checks read. `llama` is set while it is loaded."""

    target: VerifyTarget
    texts: list[TextSequence]
    prompts: list[list[int]]  # token ids
    modelfile_path: Path | None
    modelfile: Modelfile | None  # None also if Ollama refuses it, which `metadata` reports
    ollama: str | None  # name of the model there
    gpu: bool = False  # where llama.cpp runs
    reference: Reference = field(init=False)
    llama: LlamaCpp = field(init=False)
    layers: LayersComparison = field(init=False)  # set by `layers`, which runs before `logits`
    comparison: LogitsComparison | None = None

    def compared(self) -> LogitsComparison:
        """The comparison of logits, made by the first check that asks for it."""
        if self.comparison is None:
            ways = self.layers.arithmetics
            found = compare_logits(self.llama, self.target, self.texts, ways[0])
            apart = spread(self.target, self.texts, ways)
            self.comparison = replace(found, spread=apart, ways=ways)
        return self.comparison


@dataclass(frozen=True)
class RegisteredCheck:
    """A check: its name, what it needs, how to run it."""

    name: str
    needs: Needs
    compute: Callable[[CheckContext], Outcome]

    def run(self, context: CheckContext) -> Check:
        """The result, which says so where no hardware can change it."""
        found = self.compute(context)
        if self.needs is Needs.FILES and found.passed:
            found = replace(found, detail=f"{found.detail}; does not depend on hardware")
        return found.named(self.name)


def _tokenizer(context: CheckContext) -> Outcome:
    tokenizer = context.target.checkpoint.tokenizer
    texts = [tokenizer.decode(text.ids.tolist()) for text in context.texts[:N_TEXTS]]
    return tokenizer_check(context.target, context.llama, texts)


def _layers(context: CheckContext) -> Outcome:
    inputs = context.texts[0].inputs
    context.layers = compare_layers(context.target, inputs, gpu=context.gpu)
    return context.layers.outcome


def _generation(context: CheckContext) -> Outcome:
    noise = context.compared().logit_noise
    return generation_check(context.llama, context.reference, context.prompts, noise)


def _ollama(context: CheckContext) -> Outcome:
    return ollama_check(context.target, context.modelfile, context.prompts, context.ollama or "")


CHECKS = (
    RegisteredCheck("metadata", Needs.FILES, lambda c: metadata_check(c.target, c.modelfile_path)),
    RegisteredCheck("tensors", Needs.FILES, lambda c: tensors_check(c.target)),
    RegisteredCheck("tokenizer", Needs.LLAMA_CPP, _tokenizer),
    RegisteredCheck(
        "prompt", Needs.LLAMA_CPP, lambda c: prompt_check(c.target, c.llama, c.modelfile)
    ),
    RegisteredCheck("stop", Needs.LLAMA_CPP, lambda c: stop_check(c.target, c.llama, c.modelfile)),
    RegisteredCheck(
        "layers",
        Needs.OWN_LLAMA_CPP,
        _layers,
    ),
    RegisteredCheck("logits", Needs.LLAMA_CPP, lambda c: logits_check(c.compared())),
    RegisteredCheck("generation", Needs.LLAMA_CPP, _generation),
    RegisteredCheck("ollama", Needs.OLLAMA, _ollama),
)


def check_names(*needs: Needs) -> list[str]:
    """Names of the checks that need one of these, in order."""
    return [check.name for check in CHECKS if check.needs in needs]
