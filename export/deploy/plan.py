"""What is to be deployed: an export folder, and the checkpoint that it is compared with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmkit.architectures.registry import FAMILIES
from llmkit.checkpoint.checkpoint import load_checkpoint
from llmkit.checkpoint.layout import CONFIG_FILE
from llmkit.errors import CheckpointError, ConfigError, ModelfileError
from llmkit.export.check import Check
from llmkit.export.gguf.adapter import adapter_of
from llmkit.export.gguf.reader import read_gguf
from llmkit.export.gguf.sizes import architecture_of, sizes_of
from llmkit.export.modelfile.lint import lint_modelfile, local_file
from llmkit.export.ollama.store import Blob
from llmkit.export.verify.checks import Needs, check_names
from llmkit.export.verify.modelfile import disagreements
from llmkit.export.verify.proof_store import PROOF_FILE, kept_proof
from llmkit.export.verify.target import FileTarget, VerifyTarget, open_target
from llmkit.export.verify.verify import MODELFILE
from llmkit.modelfiles.modelfile import Modelfile
from llmkit.modelfiles.reading import read_modelfile


@dataclass(frozen=True)
class DeployPlan:
    """The files of a deployment."""

    modelfile: Modelfile
    target: FileTarget  # a VerifyTarget where there is a checkpoint
    model: Blob
    adapter: Blob | None
    proof: Check

    @property
    def context(self) -> int:
        """Tokens that the model will have room for."""
        length = sizes_of(self.target.file).context_length
        return min(self.modelfile.parameters.num_ctx or length, length)


def read_plan(folder: Path, checkpoint: Path | None) -> DeployPlan:
    """Read an export folder; `checkpoint` is the one that its proof names unless given.

    Raises LlmkitError: a Modelfile with errors, files that are not there.
    """
    path = folder / MODELFILE
    if (folder / CONFIG_FILE).exists():
        raise ConfigError(
            f"{folder} is a checkpoint; run llmkit export and deploy its output folder"
        )
    if folder.is_file():
        raise ConfigError(f"{folder} is a file; deploy the export folder that contains it")
    if not path.is_file():
        raise ConfigError(f"{folder} has no {MODELFILE}; give a folder written by llmkit export")
    modelfile = _sound_modelfile(path)
    gguf = local_file(modelfile.source, folder)
    if not gguf.is_file():
        raise ModelfileError(f"{path}: FROM {modelfile.source}: no such GGUF file in this folder")
    target = _target(gguf, checkpoint)
    model = _blob(gguf, target.file.sha256())
    adapter = None
    for fault in disagreements(modelfile, folder, target):
        raise ModelfileError(f"{path}: {fault}; export again")
    if target.adapter is not None and modelfile.adapter is not None:
        adapter = _blob(local_file(modelfile.adapter, folder), target.adapter.sha256())
    return DeployPlan(modelfile, target, model, adapter, _proof_check(gguf, target, model))


def _sound_modelfile(path: Path) -> Modelfile:
    errors = [found for found in lint_modelfile(path).findings if found.level == "error"]
    if errors:
        more = f" ({len(errors) - 1} more: llmkit modelfile lint {path})" if errors[1:] else ""
        raise ModelfileError(f"{errors[0]}{more}")
    modelfile = read_modelfile(path).modelfile
    if modelfile.drafts or modelfile.more_sources or modelfile.messages:
        raise ModelfileError(
            f"{path}: cannot verify DRAFT, MESSAGE or a second FROM against a checkpoint; "
            "use ollama create"
        )
    return modelfile


def _target(gguf: Path, checkpoint: Path | None) -> FileTarget:
    """The file with the checkpoint that is given or that its proof names, if one does."""
    proof = kept_proof(gguf)
    if checkpoint is not None:
        return open_target(load_checkpoint(checkpoint), gguf)
    if proof is None:
        file = read_gguf(gguf)
        return FileTarget(file, adapter_of(file))
    checkpoint = Path(str(proof.get("checkpoint")))
    if not checkpoint.is_dir():
        raise CheckpointError(
            f"{gguf.name} was exported from {checkpoint}, which does not exist here; pass it "
            "with --checkpoint"
        )
    return open_target(load_checkpoint(checkpoint), gguf)


def _proof_check(gguf: Path, target: FileTarget, model: Blob) -> Check:
    """Whether these very bytes were verified: what Ollama computes is compared with them alone.

    A part of which the proof holds no hash is not looked at.
    """
    if not isinstance(target, VerifyTarget):
        architecture = architecture_of(target.file)
        found = f"{gguf.name} ({architecture}) has no checkpoint: not compared with PyTorch"
        is_ours = architecture in FAMILIES
        return Check("proof", True, found, "pass its checkpoint with --checkpoint" * is_ours)
    proof = kept_proof(gguf)
    again = f"run llmkit verify {target.checkpoint.folder} {gguf}"
    if proof is None:
        return Check("proof", True, f"{gguf.name} was not verified", again)
    if proof.get("sha256") != model.digest.removeprefix("sha256:"):
        return Check("proof", False, f"{gguf.name} has changed since it was verified", again)
    if target.adapter is not None:
        others = proof.get("sha256_of")
        proved = others.get("adapter") if isinstance(others, dict) else None
        if proved not in (None, target.adapter.sha256()):
            found = f"{target.adapter.path.name} has changed since it was verified"
            return Check("proof", False, found, again)
    if proof.get("checkpoint_sha256") not in (None, target.checkpoint.sha256):
        found = f"{target.checkpoint.folder} has changed since {gguf.name} was verified"
        return Check("proof", False, found, again)
    if not proof.get("passed") and not _only_ollama_failed(proof):
        found = f"the verification of {gguf.name} failed"
        return Check("proof", False, found, f"see {gguf.parent / PROOF_FILE}")
    return Check("proof", True, f"{gguf.name} is unchanged since it was verified")


def _only_ollama_failed(proof: dict[str, Any]) -> bool:
    """Whether all that failed is what an Ollama of then was asked: this deployment asks anew."""
    checks = proof.get("checks") or []
    in_ollama = check_names(Needs.OLLAMA)
    return bool(checks) and all(check["passed"] or check["name"] in in_ollama for check in checks)


def _blob(path: Path, sha256: str) -> Blob:
    return Blob(path, f"sha256:{sha256}", path.stat().st_size)
