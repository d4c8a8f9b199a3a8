"""Log-probabilities of options against those of transformers: largest differences in nats.

python tests/benchmarks/bench_exact_scores.py FOLDER MODEL...

FOLDER is the model as `llmkit export --to hf` writes it; MODEL is its checkpoint or a GGUF file.
The second row of each model is against transformers with inputs and outputs of GELU in half
precision, as in llama.cpp's table.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from bench_evaluation import write_items
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from llmkit.data.tales_items import village_choices, village_pairs
from llmkit.evaluation.formats import hellaswag
from llmkit.evaluation.models import Model, open_model

N_ITEMS = 500
Item = tuple[str, Sequence[str]]  # context, options


class HalfGELU(torch.nn.Module):
    """GELU of llama.cpp's CPU code (GGML_GELU_FP16)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shape and type of the input."""
        return torch.nn.functional.gelu(x.half().float(), approximate="tanh").half().float()


class Transformers:
    """The exported folder in Hugging Face's library."""

    def __init__(self, folder: str, *, half_gelu: bool) -> None:
        self.model = GPT2LMHeadModel.from_pretrained(folder).eval()
        self.tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        if half_gelu:
            for block in self.model.transformer.h:
                block.mlp.act = HalfGELU()

    @torch.inference_mode()
    def log_probability(self, context: str, option: str) -> float:
        """Of the option's tokens, each text computed whole and alone."""
        ids = self.tokenizer(context)["input_ids"]
        whole = self.tokenizer(f"{context} {option}" if context else option)["input_ids"]
        prefix, option_ids = ids or [self.tokenizer.eos_token_id], whole[len(ids) :]
        read = torch.tensor([[*prefix, *option_ids[:-1]]])
        logits = self.model(read).logits[0, len(prefix) - 1 :].double()
        return float(logits.log_softmax(-1)[range(len(option_ids)), option_ids].sum())


def tasks() -> dict[str, list[Item]]:
    """The items by their kind."""
    with tempfile.TemporaryDirectory() as folder:
        write_items(Path(folder) / "items.jsonl", N_ITEMS)
        four_way = hellaswag(Path(folder) / "items.jsonl")
    return {
        "four-way": [(item.ways[0].context, item.ways[0].options) for item in four_way],
        "pairs": [("", (pair.good, pair.bad)) for pair in village_pairs()],
        "village questions": [(item.question, item.options) for item in village_choices()],
    }


def scores(model: Model, items: Sequence[Item]) -> list[list[float]]:
    """Log-probabilities by item and option."""
    found = [model.continuations(context, options) or [] for context, options in items]
    return [[option.log_probability for option in item] for item in found]


def main(folder: str, names: Sequence[str]) -> None:
    """One line for each model, each of the two references and each kind of items."""
    by_task = tasks()
    wanted = {
        gelu: {
            task: [[library.log_probability(context, one) for one in own] for context, own in items]
            for task, items in by_task.items()
        }
        for gelu in ("float32", "half")
        for library in [Transformers(folder, half_gelu=gelu == "half")]
    }
    for name in names:
        with open_model(name) as model:
            assert isinstance(model, Model)
            found = {task: scores(model, items) for task, items in by_task.items()}
        for gelu, reference in wanted.items():
            for task, items in reference.items():
                pairs = list(zip(found[task], items, strict=True))
                furthest = max(
                    abs(a - b) for own, right in pairs for a, b in zip(own, right, strict=True)
                )
                others = sum(own.index(max(own)) != right.index(max(right)) for own, right in pairs)
                print(
                    f"{name}, GELU of transformers in {gelu}, {len(pairs)} {task}: "
                    f"{furthest:.5f}, {others} other decisions",
                    flush=True,
                )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
