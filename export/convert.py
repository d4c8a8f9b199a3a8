"""A checkpoint into GGUF files and a Modelfile."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from llmkit.architectures.registry import in_llama_cpp
from llmkit.checkpoint.checkpoint import Checkpoint, load_checkpoint
from llmkit.checkpoint.config import refuse_checkpoint
from llmkit.errors import ConfigError
from llmkit.export.check import Proof
from llmkit.export.evaluation.file_divergence import measured_kl
from llmkit.export.gguf.adapter import write_adapter
from llmkit.export.gguf.writer import ExportedFile, write_gguf
from llmkit.export.modelfile.write import modelfile_for
from llmkit.export.quantization.budget import TypePlan
from llmkit.export.quantization.config import QuantConfig, prepare
from llmkit.export.verify.proof_store import PROOF_FILE
from llmkit.export.verify.verify import verify
from llmkit.files import StrPath, all_or_nothing, write_text
from llmkit.modelfiles.modelfile import render
from llmkit.modelfiles.parameters import NONE_GIVEN, Parameters
from llmkit.quantization.tensor_types import CUSTOM, quantization_names


@dataclass(frozen=True)
class Export:
    """An export folder."""

    folder: Path
    files: list[ExportedFile]
    modelfile: Path
    adapter: ExportedFile | None
    proofs: list[Proof]  # none where nothing was verified
    plan: TypePlan | None = None  # of types that keep to a budget
    measured_kl: float | None = None  # of the plan's file; None without held-out text

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return all(proof.passed for proof in self.proofs)


def export(
    checkpoint: StrPath,
    out: StrPath,
    quant_config: QuantConfig | None = None,
    *,
    name: str | None = None,
    merge: bool = False,
    prove: bool = True,
    parameters: Parameters = NONE_GIVEN,
) -> Export:
    """Write `out`/NAME-QUANT.gguf for each quantization and a Modelfile for the smallest.

    NAME is the checkpoint folder's unless given. Matrices take the types of the quantization, or
    where their rows do not fit them what llama.cpp takes instead; biases, norms and positions stay
    f32. A LoRA adapter becomes a file beside its base, NAME-adapter.gguf, or with `merge` part of
    the weights. The base of a QLoRA adapter has the blocks that it was trained on and no others;
    weights that were trained for blocks have these unless other quantizations are named. Types
    that are chosen matrix by matrix, by a budget or by `tensor_types`, make NAME-custom.gguf.
    With `prove` each file is verified; without, the Modelfile says that it was not. `parameters`:
    PARAMETER lines of the Modelfile.

    Raises LlmkitError: unknown type, damaged checkpoint, numbers a type cannot hold, full disk.
    """
    checkpoint, out = Path(checkpoint), Path(out)
    source = load_checkpoint(checkpoint)
    apart = source.lora is not None and not merge
    if merge and source.lora is None:
        raise ConfigError(f"{checkpoint} has no adapter to merge; omit --merge")
    if apart and in_llama_cpp(source.config, lambda _: "f32")[1]:
        raise ConfigError(
            f"{checkpoint} has ReLU, which llama.cpp computes with other weights; merge the "
            "adapter with --merge"
        )
    name = name or checkpoint.resolve().name
    adapter_file = out / f"{name}-adapter.gguf"
    _check_target(out, name)
    prepared = prepare(source, quant_config or QuantConfig(), merged=not apart)
    modelfile = out / "Modelfile"
    with all_or_nothing(out):
        adapter = write_adapter(source, adapter_file, name) if apart else None
        beside = adapter_file.name if apart else None
        files = [
            write_gguf(
                source,
                out / f"{name}-{each.name}.gguf",
                each,
                name,
                beside,
                prepared.blocks(each),
                merged=not apart,
            )
            for each in prepared.quantizations
        ]
        (out / PROOF_FILE).unlink(missing_ok=True)  # it is of the files that were replaced
        write_text(modelfile, _modelfile(source, files, beside, name, prove, parameters))
    proofs = [verify(checkpoint, file.path) for file in files] if prove else []
    measured = measured_kl(source, files[0].path) if prepared.plan else None
    return Export(out, files, modelfile, adapter, proofs, prepared.plan, measured)


def ollama_name(name: str) -> str:
    """The name as Ollama takes one: letters, digits, `-`, `_` and `.`, beginning with no sign."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._") or "model"


def _check_target(out: Path, name: str) -> None:
    if not name or not name.isprintable() or any(character in '/\\"' for character in name):
        raise ConfigError(f"{name!r} is not a valid file name; use letters, digits and - in --name")
    refuse_checkpoint(out)
    known = {f"{name}-{kind}.gguf" for kind in (*quantization_names(), CUSTOM, "adapter")}
    others = sorted(file.name for file in out.glob("*.gguf") if file.name not in known)
    if others:
        raise ConfigError(
            f"{out} contains {others[0]} of another model; choose another folder with --out"
        )


def _modelfile(
    checkpoint: Checkpoint,
    files: list[ExportedFile],
    adapter: str | None,
    name: str,
    prove: bool,
    parameters: Parameters,
) -> str:
    form = checkpoint.prompt_format
    smallest = min(files, key=lambda file: file.n_bytes)
    others = [file.path.name for file in files if file is not smallest]
    comment = [
        f"{name}: made by llmkit. To create the model in Ollama and run it, in this folder:",
        f"  ollama create {ollama_name(name)} -f Modelfile",
        f"  ollama run {ollama_name(name)}",
        *([f"Other files for FROM: {', '.join(others)}"] if others else []),
        f"The proofs of these files are in {PROOF_FILE}."
        if prove
        else "These files were not verified: they were exported with --no-verify.",
    ]
    return render(
        modelfile_for(
            form,
            f"./{smallest.path.name}",
            context_length=checkpoint.config.context_length,
            is_classifier=bool(checkpoint.labels),
            adapter=f"./{adapter}" if adapter else None,
            comment=tuple(comment),
            given=parameters,
        )
    )
