"""README.md of a folder for Hugging Face: what the model is, how to run it, what was proved."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from llmkit.architectures.registry import model_without_weights
from llmkit.checkpoint.checkpoint import Checkpoint
from llmkit.export.report.markdown import code_block, markdown_table
from llmkit.export.verify.proof_store import kept_proof
from llmkit.modelfiles.prompt_format import Message

MODEL_CARD = "README.md"
_PROOF_HEADINGS = ("file", "MB", "checks passed", "mean KL", "same top token")


def model_card(checkpoint: Checkpoint, name: str, folder: Path, *, is_merged: bool) -> str:
    """The card in Markdown, with the proofs of this checkpoint's GGUF files in `folder`."""
    task = "text-classification" if checkpoint.labels else "text-generation"
    front = ["---", "library_name: transformers", f"pipeline_tag: {task}", "tags:", "- llmkit"]
    hello = [Message("user", "Hello")]
    parts = [
        "\n".join([*front, "---"]),
        f"# {name}",
        f"A {checkpoint.config.architecture} model, exported by llmkit.",
        markdown_table(("", ""), model_facts(checkpoint).items()),
        "## Use",
        code_block("python", _usage(checkpoint, name, is_merged)),
        "A prompt, up to where the answer begins:",
        code_block("text", checkpoint.prompt_format.text(hello, for_answer=True)),
    ]
    if proofs := list(_proofs(checkpoint, folder)):
        parts += [
            "## GGUF files",
            "llmkit compared llama.cpp's computation of each file with PyTorch's "
            "(parity.json). KL divergence and top token are against the weights before "
            "quantization.",
            markdown_table(_PROOF_HEADINGS, proofs),
        ]
    return "\n\n".join(parts) + "\n"


def model_facts(checkpoint: Checkpoint) -> dict[str, str]:
    """Sizes, prompt format and weights of a model, as a card lists them."""
    config, labels = checkpoint.config, checkpoint.labels
    return {
        "parameters": f"{model_without_weights(config).n_parameters():,}",
        "layers": f"{config.n_layer}",
        "width": f"{config.n_embd}",
        "heads": f"{config.n_head}",
        "context": f"{config.context_length:,} tokens",
        "vocabulary": f"{config.vocab_size:,} tokens",
        "prompt format": checkpoint.prompt_format.name,
        "end of an answer": checkpoint.prompt_format.end,
        **({"labels": ", ".join(labels)} if labels else {}),
        "weights": f"SHA-256 {checkpoint.sha256}",
    }


def _usage(checkpoint: Checkpoint, name: str, is_merged: bool) -> str:
    pipeline = "text-classification" if checkpoint.labels else "text-generation"
    lines = ["from transformers import pipeline", ""]
    if not is_merged:
        lines.insert(0, "# needs peft: the LoRA adapter beside the weights is loaded with them")
    return "\n".join([*lines, f"model = pipeline({pipeline!r}, {name!r})", 'print(model("Hello"))'])


def _proofs(checkpoint: Checkpoint, folder: Path) -> Iterable[Sequence[str]]:
    for file in sorted(folder.glob("*.gguf")):
        proof = kept_proof(file)
        if proof is None or proof.get("checkpoint_sha256") != checkpoint.sha256:
            continue
        checks = proof.get("checks", [])
        cost = proof.get("distances", {}).get("quantization", {})
        yield (
            file.name,
            f"{file.stat().st_size / 1e6:.1f}",
            f"{sum(check['passed'] for check in checks)} of {len(checks)}",
            f"{cost['mean_kl']:.1e}" if cost else "-",
            f"{cost['top1']:.1%}" if cost else "-",
        )
