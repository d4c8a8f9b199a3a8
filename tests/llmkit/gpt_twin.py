"""A GPT with large random weights, and the same model in transformers."""

from __future__ import annotations

from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from llmkit.architectures.gpt2 import GPT, GPTConfig

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "context_length": 24,
    "n_layer": 3,
    "n_head": 4,
    "n_embd": 32,
}


def random_model(**changes: Any) -> GPT:
    torch.manual_seed(0)
    model = GPT(GPTConfig(**{**SIZES, **changes})).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # large, so that every term counts in the logits
            parameter.normal_(std=0.3)
    return model


def random_tokens(n_sequences: int, n_tokens: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(SIZES["vocab_size"], (n_sequences, n_tokens), generator=generator)


def transformers_twin(model: GPT) -> GPT2LMHeadModel:
    sizes = model.config
    config = GPT2Config(
        vocab_size=sizes.vocab_size,
        n_positions=sizes.context_length,
        n_layer=sizes.n_layer,
        n_head=sizes.n_head,
        n_embd=sizes.n_embd,
        layer_norm_epsilon=sizes.layer_norm_epsilon,
        tie_word_embeddings=sizes.tie_embeddings,
        bos_token_id=0,
        eos_token_id=0,
    )
    twin = GPT2LMHeadModel(config).eval()
    ours = model.state_dict()
    theirs = twin.state_dict()
    for name in theirs:
        if name == "lm_head.weight":
            value = ours.get(name, ours["wte.weight"])
        else:
            our_name = name.removeprefix("transformer.")
            value = ours.get(our_name, torch.zeros_like(theirs[name]))
            # Conv1D stores (in, out).
            if value.dim() == 2 and our_name.startswith("h."):
                value = value.T
        theirs[name] = value
    twin.load_state_dict(theirs)
    return twin
