"""What happens inside a model, against transformers and PyTorch's own attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from gpt_twin import random_model, random_tokens, transformers_twin

from llmkit.errors import ConfigError
from llmkit.interpret import _AttentionWeights, attention_weights, layer_logits, nearest_embeddings

N_TOKENS = 17


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def model(request: pytest.FixtureRequest) -> Any:
    return random_model(tie_embeddings=request.param)


def test_attention_of_each_head_is_that_of_transformers(model: Any) -> None:
    ids = random_tokens(1, N_TOKENS)
    twin = transformers_twin(model)
    twin.set_attn_implementation("eager")  # the fused one does not return weights
    theirs = twin(ids, output_attentions=True).attentions
    ours = attention_weights(model, ids[0].tolist())
    assert ours.shape == (3, 4, N_TOKENS, N_TOKENS)
    torch.testing.assert_close(ours, torch.cat(theirs), rtol=1e-4, atol=1e-5)
    assert len(set(ours[:, :, 16, 3].flatten().tolist())) == 12  # no head is another one's


def test_logits_after_each_layer_are_those_of_transformers_hidden_states(model: Any) -> None:
    ids = random_tokens(1, N_TOKENS)
    twin = transformers_twin(model)
    found = twin(ids, output_hidden_states=True)
    *streams, normalised = found.hidden_states  # the last has been through the final norm
    wanted = [*(twin.lm_head(twin.transformer.ln_f(x)) for x in streams), twin.lm_head(normalised)]
    ours = list(layer_logits(model, ids[0].tolist()))
    assert len(ours) == 4
    for layer, logits in zip(wanted, ours, strict=True):
        torch.testing.assert_close(logits, layer[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours[-1], model(ids)[0])
    assert not torch.allclose(ours[-2], ours[-1], atol=0.1)


def test_the_nearest_embeddings_are_those_of_the_largest_cosine(model: Any) -> None:
    table = model.state_dict()["wte.weight"].double()
    with torch.no_grad():
        model.get_parameter("wte.weight")[30] = 3 * table[7] + 0.1  # nearly the same direction
    table = model.state_dict()["wte.weight"].double()
    table = table / table.norm(dim=1, keepdim=True)
    wanted = sorted(((float(row @ table[7]), n) for n, row in enumerate(table) if n != 7))[::-1][:5]
    found = nearest_embeddings(model, 7, 5)
    assert [token_id for token_id, _ in found] == [n for _, n in wanted]
    assert found[0][0] == 30
    assert [cosine for _, cosine in found] == pytest.approx([c for c, _ in wanted], abs=1e-6)
    assert len(nearest_embeddings(model, 7, 1000)) == len(table) - 1


MASK = torch.rand(6, 6, generator=torch.Generator().manual_seed(3)) > 0.5
MASK[:, 0] = True


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"is_causal": True},
        {"attn_mask": MASK},
        {"attn_mask": torch.where(MASK, 1.5, -2.0)},
        {"scale": 0.1},
        {"enable_gqa": True, "is_causal": True},
    ],
)
def test_weights_are_those_of_pytorchs_attention_whatever_a_family_asks_of_it(
    options: dict[str, Any],
) -> None:
    torch.manual_seed(0)
    n_kv = 2 if "enable_gqa" in options else 4
    q, k = torch.randn(1, 4, 6, 8), torch.randn(1, n_kv, 6, 8)
    values = torch.eye(6).expand(1, n_kv, 6, 6)  # what is seen of them are the weights
    with _AttentionWeights() as seen:
        wanted = F.scaled_dot_product_attention(q, k, values, **options)
    torch.testing.assert_close(seen.weights[0], wanted[0], rtol=1e-5, atol=1e-6)


def test_more_tokens_than_the_context_are_refused(model: Any) -> None:
    for look in (attention_weights, lambda m, ids: list(layer_logits(m, ids))):
        with pytest.raises(ConfigError, match="25"):
            look(model, [1] * 25)
