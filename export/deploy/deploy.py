"""`deploy`: a model into a running Ollama, under its name only when it is verified there."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llmkit.console import say
from llmkit.errors import OllamaError
from llmkit.export.check import Check, all_passed
from llmkit.export.deploy.plan import DeployPlan, read_plan
from llmkit.export.doctor.examine import room_checks
from llmkit.export.doctor.machine import gigabytes
from llmkit.export.doctor.ollama_server import server_checks
from llmkit.export.evaluation.eval_data import proof_prompts
from llmkit.export.modelfile.facts import chat_template_of
from llmkit.export.ollama.address import check_name, unverified_name
from llmkit.export.ollama.server import OllamaServer
from llmkit.export.ollama.store import copy, create, delete, upload
from llmkit.export.ollama.transport import Patience
from llmkit.export.verify.ollama_check import (
    never_stops,
    rendering_faults,
    stopped,
    stored_faults,
    summed_up,
)
from llmkit.export.verify.ollama_file_check import compared_with_llama_cpp, template_faults
from llmkit.export.verify.ollama_logprobs import Compared, compared_logprobs
from llmkit.export.verify.target import VerifyTarget
from llmkit.files import StrPath, optional_path

_LINT = "run llmkit modelfile lint to see how TEMPLATE differs"


@dataclass(frozen=True)
class Deployment:
    """What was checked, and whether the model is there under its name."""

    name: str
    url: str | None
    file: str
    taken: bool  # whether another model had the name
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether the model is verified, and so has its name."""
        return all_passed(self.checks)

    @property
    def summary(self) -> str:
        """One line: how to run the model, or that nothing has changed."""
        if self.passed:
            before = ", replacing the previous model" if self.taken else ""
            return f"{self.name} is in Ollama{before}. Run it: ollama run {self.name}"
        if self.taken:
            return f"{self.name} in Ollama is unchanged"
        return f"{self.name} was not deployed"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as `--json` prints them."""
        return {
            "passed": self.passed,
            "summary": self.summary,
            **asdict(self),
            "checks": [check.advised() for check in self.checks],
        }


def deploy(
    folder: StrPath,
    name: str,
    *,
    host: str | None = None,
    checkpoint: StrPath | None = None,
    patience: Patience | None = None,
) -> Deployment:
    """Bring the Modelfile of an export folder, with its files, into Ollama and verify it there.

    `checkpoint`: what the file was exported from; by default the one that its proof names. Without
    one, as for a file of another program, llama.cpp on this machine stands for PyTorch. The model
    is made under a name of its own and gets `name` only when Ollama stores, renders and computes
    what it has to; the other name is removed in any case. A check that fails ends it, and what had
    the name stays. Raises LlmkitError where Ollama does not answer or refuses, and for a folder
    that cannot be deployed.
    """
    check_name(name)
    plan = read_plan(Path(folder), optional_path(checkpoint))
    found = server_checks(host)
    checks = [plan.proof, *found.checks]
    if found.answers:
        checks += room_checks(plan.target.file, plan.context, is_here=found.is_here)
    taken = False
    if found.answers and all_passed(checks):
        with OllamaServer(host, patience) as server:
            taken = server.digest(name) is not None
            for check in _steps(server, plan, name):
                checks.append(check)
    return Deployment(name, found.url, str(plan.model.path), taken, tuple(checks))


def _steps(server: OllamaServer, plan: DeployPlan, name: str) -> Iterator[Check]:
    """Up to the first that fails."""
    http = server.http
    blobs = [plan.model, *([plan.adapter] if plan.adapter else [])]
    sent = [blob for blob in blobs if upload(http, blob)]
    n_bytes = sum(blob.n_bytes for blob in sent)
    yield Check(
        "upload", True, f"{gigabytes(n_bytes)} sent" if sent else "Ollama already has the files"
    )
    with _unverified(server, name) as temporary:
        say(f"creating {temporary}")
        create(http, temporary, plan.modelfile, plan.model, plan.adapter)
        yield Check("create", True, "Ollama created the model")
        for check in _verified(server, plan, temporary):
            yield check
            if not check.passed:
                return
        copy(http, temporary, name)
        if server.digest(name) != server.digest(temporary):
            raise OllamaError(
                f"{name} in Ollama is another model; if another deployment uses this name,"
                " wait for it to finish and deploy again"
            )


@contextmanager
def _unverified(server: OllamaServer, name: str) -> Iterator[str]:
    """A name of its own for the model, which is removed in the end, whatever happens."""
    temporary = unverified_name(name, secrets.token_hex(4))
    try:
        yield temporary
    finally:
        try:
            delete(server.http, temporary)
        except (OllamaError, KeyboardInterrupt) as error:  # no server, or no time to remove it
            say(f"{temporary} may still be in Ollama; remove it: ollama rm {temporary}")
            if isinstance(error, KeyboardInterrupt):
                raise


def _verified(server: OllamaServer, plan: DeployPlan, model: str) -> Iterator[Check]:
    target = plan.target
    shown = server.show(model)
    faults = list(stored_faults(shown, target, plan.modelfile))
    n_tensors = len(target.file.tensors)
    fine = f"metadata, {n_tensors} tensors, TEMPLATE, SYSTEM and stops match the folder"
    yield _check(
        "stored",
        faults,
        fine,
        "check which Ollama server this is, and whether another program changed its files",
    )
    if isinstance(target, VerifyTarget):
        yield from _as_pytorch(server, target, model)
    else:
        yield from _as_llama_cpp(server, plan, model)


def _as_pytorch(server: OllamaServer, target: VerifyTarget, model: str) -> Iterator[Check]:
    faults = list(rendering_faults(server, model, target))
    yield _check("prompt", faults, "prompts and their tokens match training", _LINT)
    prompts = proof_prompts(target.checkpoint, None)
    found = compared_logprobs(server, model, target, prompts)
    yield _logprobs_check(found, "PyTorch", f"; {found.explanation}")
    n, n_stopped = stopped(server, model, target)
    faults = [never_stops(n)] if n and not n_stopped else []
    fine = f"{n_stopped} of {n} answers end by themselves" if n else "no held-out questions"
    yield _check("stop", faults, fine, "check PARAMETER stop for the end token, or train longer")


def _as_llama_cpp(server: OllamaServer, plan: DeployPlan, model: str) -> Iterator[Check]:
    """What can be compared without a checkpoint."""
    file = plan.target.file
    faults = list(template_faults(server, model, file, plan.modelfile))
    has_template = chat_template_of(file) is not None
    fine = "prompts match the file's chat template" if has_template else "no chat template"
    yield _check("prompt", faults, fine, _LINT)
    yield _logprobs_check(compared_with_llama_cpp(server, model, file), "llama.cpp on this machine")


def _logprobs_check(found: Compared, reference: str, more: str = "") -> Check:
    fine = f"{found.n} log-probabilities match {reference} within {found.largest:.1e}{more}"
    advice = "check Ollama's version and its log" if found.n else ""
    return _check("logprobs", found.faults, fine, advice)


def _check(name: str, faults: list[str], fine: str, advice: str) -> Check:
    if faults:
        return Check(name, False, summed_up(faults), advice)
    return Check(name, True, fine)
