"""`verify`: does llama.cpp compute from a GGUF file what PyTorch computes from its checkpoint?

Conversion error and quantization cost are two numbers. The first compares llama.cpp with PyTorch
on the file's own dequantized weights, so that nothing is left but the conversion; the second
compares with PyTorch on the original weights.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from llmkit.checkpoint import Checkpoint, build_model, load_checkpoint, open_tensors
from llmkit.console import progress, say
from llmkit.errors import GGUFError, LlmkitError
from llmkit.export.convert import PROOF_FILE, pack_tensor, stored_type
from llmkit.export.divergence import Divergence, divergence, joined
from llmkit.export.gguf_file import GGUFFile, config_of, dequantized_weights, read_gguf
from llmkit.export.hard_texts import HARD_TEXTS
from llmkit.export.held_out import held_out_windows
from llmkit.export.llama_cpp import LlamaCpp
from llmkit.export.metadata import ARCHITECTURE, metadata_of
from llmkit.export.names import tensor_table
from llmkit.files import write_text
from llmkit.generation import Sampling, generate_ids
from llmkit.model.config import GPTConfig
from llmkit.model.gpt import GPT
from llmkit.quant.types import QuantType, quant_type

DEFAULT_MAX_TOKENS = 4096
# Mean KL in nats. Picked by hand: ten times and more what was measured (docs/architecture.md).
# The types that llama.cpp multiplies in f32 or f16 are held to the tighter one.
EXACT_LIMIT, ROUNDED_LIMIT = 1e-5, 5e-4
EXACT_TYPES = ("f32", "f16")
N_PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 10, 16, 32


@dataclass(frozen=True)
class Check:
    """One thing that was compared. `value` passes up to `limit`."""

    name: str
    passed: bool
    value: float
    limit: float
    detail: str


@dataclass(frozen=True)
class Proof:
    """What `verify` found out about one GGUF file."""

    passed: bool
    checkpoint: str
    gguf: str
    sha256: str
    quant: str
    checks: list[Check]
    checkpoint_sha256: str
    versions: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as `--json` prints them."""
        return asdict(self)


def verify(
    checkpoint: Path,
    gguf: Path,
    *,
    data: Path | None = None,
    max_tokens: int = DEFAULT_MAX_TOKENS,
) -> Proof:
    """Compare a GGUF file in llama.cpp with its checkpoint in PyTorch.

    `data`: held-out text; what training held out unless given. The proof is also written into
    parity.json beside the file. Raises LlmkitError where the two cannot be compared at all.
    """
    source = load_checkpoint(checkpoint)
    file = read_gguf(gguf)
    qtype = _file_quant(file)
    windows = held_out_windows(source, data, max_tokens)
    checks = [_metadata_check(source, file, qtype), _tensors_check(source, file, qtype)]
    if _same_shapes(config_of(file), source.config):
        checks += _run_checks(source, file, qtype, windows)
    else:
        checks += [
            Check(name, False, 1, 0, "not run: the file's sizes are not the checkpoint's")
            for name in ("tokenizer", "logits", "generation")
        ]
    proof = Proof(
        passed=all(check.passed for check in checks),
        checkpoint=str(checkpoint),
        gguf=str(gguf),
        sha256=file.sha256(),
        quant=file.file_type,
        checks=checks,
        checkpoint_sha256=source.sha256,
        versions={
            package: version(package)
            for package in ("llmkit", "torch", "llama-cpp-python", "tokenizers")
        },
    )
    try:
        _keep(proof, gguf.parent / PROOF_FILE)
    except LlmkitError as error:  # a folder that cannot be written does not undo what was found
        say(f"the proof was not kept: {error}")
    return proof


def _file_quant(file: GGUFFile) -> QuantType:
    if file.file_type.startswith("unknown"):
        raise GGUFError(f"{file.path} has no known general.file_type; export it again")
    return quant_type(file.file_type)


def _same_shapes(found: GPTConfig, wanted: GPTConfig) -> bool:
    return tensor_table(found) == tensor_table(replace(wanted, qkv_bias=True))


def _metadata_check(source: Checkpoint, file: GGUFFile, qtype: QuantType) -> Check:
    """The keys are export's, with the checkpoint's values. Value: keys that differ."""
    wanted = metadata_of(source, qtype, str(file.metadata.get("general.name")))
    differing = [
        item.key for item in wanted if not _same_value(file.metadata.get(item.key), item.value)
    ]
    # A key that export does not write, such as add_eos_token, may change what llama.cpp does.
    read_by_llama = [key for key in file.metadata if key.startswith((ARCHITECTURE, "tokenizer."))]
    differing += sorted(set(read_by_llama) - {item.key for item in wanted})
    detail = f"{len(wanted)} keys equal"
    if differing:
        detail = f"{', '.join(differing)} differ from the checkpoint: export it again"
    return Check("metadata", not differing, len(differing), 0, detail)


def _same_value(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, float):
        return isinstance(found, float) and np.float32(found) == np.float32(wanted)
    return type(found) is type(wanted) and bool(found == wanted)


def _tensors_check(source: Checkpoint, file: GGUFFile, qtype: QuantType) -> Check:
    """Every tensor's bytes are the checkpoint's, quantized. Value: tensors that differ."""
    table = tensor_table(source.config)
    wrong = sorted(file.tensors.keys() - {entry.gguf_name for entry in table})
    with open_tensors(source.model_file) as tensors:
        for entry in table:
            stored, found = stored_type(entry, qtype), file.tensors.get(entry.gguf_name)
            if (
                found is None
                or found.shape != entry.shape
                or found.ggml_type != stored.ggml_type
                or found.blocks.tobytes() != pack_tensor(tensors, entry, stored).tobytes()
            ):
                wrong.append(entry.gguf_name)
    detail = f"{len(table)} tensors equal bit for bit"
    if wrong:
        detail = (
            f"{', '.join(wrong[:3])}{' ...' * (len(wrong) > 3)} not made from this checkpoint's: "
            "the file is of another model or damaged"
        )
    return Check("tensors", not wrong, len(wrong), 0, detail)


def _run_checks(
    source: Checkpoint, file: GGUFFile, qtype: QuantType, windows: NDArray[np.int64]
) -> list[Check]:
    original = source.load_model()
    dequantized = build_model(config_of(file), dequantized_weights(file), str(file.path)).eval()
    with LlamaCpp(file.path, n_ctx=source.config.context_length) as llama:
        tokenizer_check = _tokenizer_check(source, llama)
        conversion, cost = _divergences(llama, dequantized, original, windows)
        noise = float(conversion.max_logit_difference.max())
        return [
            tokenizer_check,
            _logits_check(conversion, cost, qtype),
            _generation_check(llama, dequantized, windows, noise),
        ]


def _tokenizer_check(source: Checkpoint, llama: LlamaCpp) -> Check:
    """Same ids for texts, same bytes and end for tokens. Value: texts and tokens that differ."""
    tokenizer = source.tokenizer
    all_texts = [*HARD_TEXTS, *(tokenizer.decode([i]) for i in range(tokenizer.vocab_size))]
    texts = [text for text in all_texts if llama.tokenize(text) != tokenizer.encode(text)]
    tokens = [
        token_id
        for token_id in range(tokenizer.vocab_size)
        if llama.token_bytes(token_id) != tokenizer.decode_bytes([token_id])
        or llama.is_end_of_generation(token_id) != (token_id == tokenizer.end_of_text_id)
    ]
    detail = f"{len(all_texts)} texts give the same ids, {tokenizer.vocab_size} tokens are the same"
    if texts:
        detail = f"llama.cpp gives other ids, first for {texts[0][:40]!r}: another split or merges"
    elif tokens:
        detail = f"token {tokens[0]} has other bytes or another end of generation in llama.cpp"
    n_differing = len(texts) + len(tokens)
    return Check("tokenizer", n_differing == 0, n_differing, 0, detail)


@torch.inference_mode()
def _divergences(
    llama: LlamaCpp, dequantized: GPT, original: GPT, windows: NDArray[np.int64]
) -> tuple[Divergence, Divergence]:
    """llama.cpp against PyTorch on the file's weights and on the original weights."""
    conversion, cost = [], []
    with progress("compare logits", len(windows), "windows") as bar:
        for number, window in enumerate(torch.from_numpy(windows), start=1):
            inputs, targets = window[:-1], window[1:]
            llama.reset()
            logits = torch.from_numpy(llama.evaluate(inputs.tolist()))  # (T, V)
            conversion.append(divergence(dequantized(inputs[None])[0], logits, targets))
            cost.append(divergence(original(inputs[None])[0], logits, targets))
            bar.update(number)
    return joined(conversion), joined(cost)


def _logits_check(conversion: Divergence, cost: Divergence, qtype: QuantType) -> Check:
    """Value: mean KL against the file's weights; for exact types, against the original ones too."""
    exact = qtype.name in EXACT_TYPES
    value = max(conversion.mean_kl, cost.mean_kl) if exact else conversion.mean_kl
    limit = EXACT_LIMIT if exact else ROUNDED_LIMIT
    detail = (
        f"mean KL of {len(conversion.kl)} positions: conversion {conversion.mean_kl:.1e}, "
        f"quantization {cost.mean_kl:.1e}; top-1 {cost.top1:.2%}"
    )
    passed = value <= limit
    if not passed:  # NaN too
        detail += ": llama.cpp does not compute what PyTorch does"
    shown = value if math.isfinite(value) else sys.float_info.max  # JSON has no infinity
    return Check("logits", passed, shown, limit, detail)


def _generation_check(
    llama: LlamaCpp, dequantized: GPT, windows: NDArray[np.int64], noise: float
) -> Check:
    """Greedy continuations are equal until the first near-tie. Value: real divergences."""
    length = windows.shape[1] - 1
    n_prompt = min(PROMPT_TOKENS, max(1, length // 2))
    n_new = min(NEW_TOKENS, dequantized.config.context_length - n_prompt)
    equal, near_ties, gaps = 0, 0, []
    for window in windows[:: max(1, len(windows) // N_PROMPTS)][:N_PROMPTS]:
        gap = _greedy_gap(llama, dequantized, window[:n_prompt].tolist(), n_new)
        if gap is None:
            equal += 1
        elif gap <= 2 * noise:  # each of two logits may move by the noise
            near_ties += 1
        else:
            gaps.append(gap)
    detail = (
        f"{equal} of {equal + near_ties + len(gaps)} continuations equal, {near_ties} near-ties"
    )
    if gaps:
        detail += f"; a divergence at a gap of {max(gaps):.3g} is more than the noise {noise:.1g}"
    return Check("generation", not gaps, len(gaps), 0, detail)


def _greedy_gap(llama: LlamaCpp, model: GPT, prompt: list[int], n_new: int) -> float | None:
    """PyTorch's logit gap between the two choices where greedy continuations part, if they do."""
    greedy = Sampling(temperature=0, max_tokens=n_new)
    ours = list(generate_ids(model, prompt, greedy, stop=-1))
    theirs = _greedy_ids(llama, prompt, n_new)
    for position, (our_id, their_id) in enumerate(zip(ours, theirs, strict=True)):
        if our_id != their_id:
            with torch.inference_mode():
                logits = model(torch.tensor([prompt + ours[:position]]))[0, -1]
            return float(logits[our_id] - logits[their_id])
    return None


def _greedy_ids(llama: LlamaCpp, prompt: Sequence[int], n_new: int) -> list[int]:
    llama.reset()
    logits = llama.evaluate(prompt, all_positions=False)
    ids = [int(logits[0].argmax())]
    while len(ids) < n_new:
        ids.append(int(llama.evaluate(ids[-1:], all_positions=False)[0].argmax()))
    return ids


def _keep(proof: Proof, path: Path) -> None:
    """Put the proof into parity.json in place of an older one of the same file."""
    kept = [old for old in _kept_proofs(path) if Path(old["gguf"]).name != Path(proof.gguf).name]
    write_text(path, json.dumps({"proofs": [*kept, proof.to_dict()]}, indent=2) + "\n")


def _kept_proofs(path: Path) -> Iterable[dict[str, Any]]:
    try:
        proofs = list(json.loads(path.read_text(encoding="utf-8"))["proofs"])
    except (OSError, ValueError, LookupError, TypeError):
        return []  # none yet, or not ours: the new proof is what counts
    return [old for old in proofs if isinstance(old, dict) and isinstance(old.get("gguf"), str)]
