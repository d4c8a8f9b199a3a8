"""Schemes of names, containers and facts that no shared checkpoint has, made here."""

from __future__ import annotations

import functools
import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from any_gpt import CHARACTERS, FUSED, Gpt, H, L, T, V, save_reference, scheme
from safetensors.torch import save_file
from torch import nn

from llmkit.errors import CheckpointError, ConfigError, LlmkitError
from llmkit.importing.facts import ImportOptions
from llmkit.importing.importer import Import, import_checkpoint

# By program: its names, its parts with biases, its activation.
SCHEMES: dict[str, tuple[dict[str, str], str, str]] = {
    "minGPT or makemore": (
        scheme(
            "transformer.wte transformer.wpe transformer.ln_f lm_head",
            "transformer.h.{i}.",
            "ln_1 ln_2 mlp.c_fc mlp.c_proj attn.c_proj attn.c_attn",
        ),
        "qkv o mlp norm",
        "gelu_tanh",
    ),
    "FareedKhan-dev": (
        scheme(
            "token_embed position_embed layer_norm lm_head",
            "attn_blocks.{i}.",
            "ln1 ln2 mlp.hidden mlp.proj attn.proj "
            "attn.heads.{h}.query attn.heads.{h}.key attn.heads.{h}.value",
        ),
        "o mlp head norm",
        "relu",
    ),
    "elith-co-jp": (
        scheme(
            "token_embedding position_embedding ln_f lm_head",
            "blocks.{i}.",
            "norm1 norm2 mlp.0 mlp.2 attn.attention.linear_o attn.attention.heads.{h}.linear_q "
            "attn.attention.heads.{h}.linear_k attn.attention.heads.{h}.linear_v",
        ),
        "qkv o mlp norm",
        "gelu_erf",
    ),
    "MatinKhajavi": (
        scheme(
            "gpt.t_embedding gpt.p_embedding gpt.final_ln lm_head",
            "gpt.transformers.{i}.",
            "ln1 ln2 ff.l1 ff.final_l mha.proj mha.qkv",
        ),
        "o mlp norm",
        "gelu_tanh",
    ),
    "Hawar-Dzaee": (
        scheme(
            "embeddings.token_embedding embeddings.position_embedding ln lm_head",
            "transformer_blocks.{i}.",
            "ln1 ln2 mlp.0 mlp.2 mha.W_o mha.W_q mha.W_k mha.W_v",
        ),
        "o mlp norm",
        "gelu_erf",
    ),
    "not known": (  # camelCase, positions as a parameter
        scheme(
            "tokenEmbedding positionEmbedding! finalNorm lmHead",
            "transformerBlocks.{i}.",
            "layerNorm1 layerNorm2 feedForward.linear1 feedForward.linear2 selfAttention.outProj "
            "selfAttention.queryProj selfAttention.keyProj selfAttention.valueProj",
        ),
        "qkv o mlp norm",
        "relu",
    ),
    "not known, proj1 and proj2": (
        scheme(
            "wte wpe out_norm output",
            "decoder_blocks.{i}.",
            "attn_norm mlp_norm mlp.proj1 mlp.proj2 attn.Wo attn.Wq attn.Wk attn.Wv",
        ),
        "norm",
        "gelu_erf",
    ),
    "not known, layers without a dot": (
        {**FUSED, "layer": "transformer.layer_{i}."},
        "qkv o mlp norm",
        "gelu_tanh",
    ),
    "not known, as BERT": (
        scheme(
            "embeddings.word_embeddings embeddings.position_embeddings ln_f cls",
            "encoder.layer.{i}.",
            "attention.ln ln intermediate.dense output.dense attention.output.dense "
            "attention.self.query attention.self.key attention.self.value",
        ),
        "qkv o mlp norm",
        "gelu_erf",
    ),
    "not known, as OPT": (
        scheme(
            "embed_tokens embed_positions final_layer_norm lm_head",
            "layers.{i}.",
            "self_attn_layer_norm ff_layer_norm fc1 fc2 self_attn.out_proj "
            "self_attn.q_proj self_attn.k_proj self_attn.v_proj",
        ),
        "qkv o mlp norm",
        "relu",
    ),
}


@pytest.fixture
def bring(tmp_path: Path) -> Any:
    """Import an object that torch.save writes, or a file, with a vocabulary of characters."""
    text = tmp_path / "text.txt"
    text.write_text(CHARACTERS, encoding="utf-8")

    def bring(content: Any, reference: Path | None = None, **options: Any) -> Import:
        source = content
        if not isinstance(content, Path):
            source = tmp_path / "model.pt"
            torch.save(content, source)
        options.setdefault("tokenizer", f"chars:{text}")
        return import_checkpoint(
            source, tmp_path / "out", ImportOptions(**options), reference=reference
        )

    return bring


def refusal(bring: Any, content: Any, *args: Any, **options: Any) -> str:
    with pytest.raises(LlmkitError) as caught:
        bring(content, *args, **options)
    return str(caught.value)


@pytest.mark.parametrize("name", SCHEMES)
def test_a_scheme_of_names_is_read_and_proved(name: str, bring: Any, tmp_path: Path) -> None:
    names, biases, activation = SCHEMES[name]
    gpt = Gpt(biases, ff=2 if name == "Hawar-Dzaee" else 4)
    tensors = gpt.state_dict(names)
    if name.startswith("minGPT"):
        tensors |= {f"transformer.h.{i}.attn.bias": torch.ones(1, 1, T, T).tril() for i in range(L)}
    options: dict[str, Any] = {} if "{h}" in names.get("q", "") else {"n_head": H}
    if name.startswith("not known"):
        options["activation"] = activation
    reference = save_reference(tmp_path / "ref.npz", lambda t: gpt.logits(t, activation))
    done = bring(tensors, reference, **options)
    assert name.partition(",")[0] in done.recognised
    assert (done.config.n_head, done.config.activation) == (H, activation)
    assert done.proof is not None
    assert done.proof.max_difference < 1e-4


@pytest.mark.parametrize(
    ("computed", "given", "hint"),
    [
        ({"is_post": True}, {}, "norm post"),
        ({"is_causal": False}, {}, "mask none"),
        ({"activation": "silu"}, {}, "activation silu"),
        ({"scale": 32**-0.5}, {}, "--attention-scale embd"),
        ({}, {"activation": "relu", "n_head": 8}, "--activation gelu_erf --n-head 4"),
    ],
)
def test_a_reference_names_the_fact_that_is_wrong(
    computed: dict[str, Any], given: dict[str, Any], hint: str, bring: Any, tmp_path: Path
) -> None:
    gpt = Gpt()
    reference = save_reference(tmp_path / "ref.npz", functools.partial(gpt.logits, **computed))
    options = {"n_head": H, "activation": "gelu_erf", **given}
    assert hint in refusal(bring, gpt.state_dict(FUSED), reference, **options)
    assert not (tmp_path / "out").exists()


def test_the_reference_gives_the_number_of_heads(bring: Any, tmp_path: Path) -> None:
    gpt = Gpt()
    reference = save_reference(tmp_path / "ref.npz", gpt.logits)
    assert "--n-head" in refusal(bring, gpt.state_dict(FUSED), None, activation="gelu_erf")
    done = bring(gpt.state_dict(FUSED), reference, activation="gelu_erf")
    assert done.config.n_head == H
    assert done.proof.passed


@pytest.mark.parametrize("is_tied", [False, True])
def test_scaled_embeddings_are_found_and_folded(is_tied: bool, bring: Any, tmp_path: Path) -> None:
    gpt = Gpt()
    if is_tied:
        gpt.head = (gpt.tok, None)
    tensors = gpt.state_dict(FUSED)
    gpt.tok = gpt.tok * 32**0.5
    reference = save_reference(tmp_path / "ref.npz", gpt.logits)
    known = {"n_head": H, "activation": "gelu_erf"}
    assert "--embedding-scale sqrt" in refusal(bring, tensors, reference, **known)
    assert bring(tensors, reference, **known, embedding_scale="sqrt").proof.passed


@pytest.mark.parametrize("order", ["kqv", "vkq", "heads"])
def test_the_order_of_a_fused_matrix_is_found_and_followed(
    order: str, bring: Any, tmp_path: Path
) -> None:
    gpt = Gpt()
    tensors = gpt.state_dict(FUSED, "qkv" if order == "heads" else order)
    if order == "heads":
        for name in [name for name in tensors if "qkv" in name]:
            parts = [part.unflatten(0, (H, -1)) for part in tensors[name].chunk(3)]
            tensors[name] = torch.stack(parts, 1).flatten(0, 2)
    reference = save_reference(tmp_path / "ref.npz", gpt.logits)
    known = {"n_head": H, "activation": "gelu_erf"}
    assert f"--qkv-order {order}" in refusal(bring, tensors, reference, **known)
    assert bring(tensors, reference, **known, qkv_order=order).proof.passed


def test_many_heads_are_taken_in_the_order_of_their_numbers(bring: Any, tmp_path: Path) -> None:
    gpt = Gpt("o mlp norm")
    names = SCHEMES["FareedKhan-dev"][0]
    tensors = gpt.state_dict(names, n_head=16)
    path = tmp_path / "sorted.safetensors"  # the format sorts names: heads.10 before heads.2
    save_file(tensors, path)
    reference = save_reference(tmp_path / "ref.npz", lambda t: gpt.logits(t, "relu", n_head=16))
    assert bring(path, reference).config.n_head == 16


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("h.{i}.attn.subsequentMask", torch.ones(T, T).tril()),
        ("h.{i}.attn.bias", torch.ones(1, 1, T, T).tril()),
        ("h.{i}.attn.masked_bias", torch.tensor(-1e4)),
        ("pos_ids", torch.arange(T)),
        ("n_steps", torch.tensor(3)),
    ],
)
def test_masks_and_tables_beside_the_weights_are_left_out(
    name: str, tensor: torch.Tensor, bring: Any
) -> None:
    buffers = {name.format(i=i): tensor for i in range(L)}
    done = bring(Gpt().state_dict(FUSED) | buffers, n_head=H, activation="gelu_erf")
    assert any(step.target == "nothing" and min(buffers) in step.source for step in done.steps)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(32, H, batch_first=True)
        self.ln1, self.ln2 = nn.LayerNorm(32), nn.LayerNorm(32)
        self.ff = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, n = self.ln1(x), x.shape[1]
        mask = torch.ones(n, n).triu(1).bool()
        x = x + self.attn(y, y, y, attn_mask=mask, need_weights=False)[0]
        return x + self.ff(self.ln2(x))


class Model(nn.Module):
    def __init__(self, blocks: nn.Module) -> None:
        super().__init__()
        self.tok, self.pos = nn.Embedding(V, 32), nn.Embedding(T, 32)
        self.blocks, self.norm, self.head = blocks, nn.LayerNorm(32), nn.Linear(32, V)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3)
        self.eval()

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.tok(tokens) + self.pos(torch.arange(tokens.shape[1]))
        if isinstance(self.blocks, nn.TransformerEncoder):
            mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
            return self.head(self.norm(self.blocks(x, mask=mask)))
        return self.head(self.norm(self.blocks(x)))


def with_attention() -> Model:
    torch.manual_seed(0)
    return Model(nn.Sequential(Block(), Block()))


CONTAINERS = {
    "module": lambda m: m,
    "DataParallel": nn.DataParallel,
    "module in a box": lambda m: {"model": m, "epoch": 1},
    "Lightning": lambda m: {
        "state_dict": {f"model.{name}": tensor for name, tensor in m.state_dict().items()},
        "hyper_parameters": Namespace(heads=H, act="ReLU"),
        "optimizer_states": [{"state": {}}],
    },
    "two prefixes": lambda m: {
        "weights": {f"module._orig_mod.{n}": tensor for n, tensor in m.state_dict().items()},
        "args": {"nhead": H, "activation": "relu", "version": torch.__version__},
    },
    "box of another name": lambda m: {"gpt": m.state_dict(), "n_head": H, "activation": "relu"},
    "box in a box": lambda m: {"a": {"b": m.state_dict()}, "n_head": H, "activation": "relu"},
}


@pytest.mark.parametrize("is_legacy", [False, True])
@pytest.mark.parametrize("container", CONTAINERS)
def test_a_container_gives_its_weights_and_settings(
    container: str, is_legacy: bool, bring: Any, tmp_path: Path
) -> None:
    model = with_attention()
    reference = save_reference(tmp_path / "ref.npz", model)
    path = tmp_path / "saved.pt"
    torch.save(CONTAINERS[container](model), path, _use_new_zipfile_serialization=not is_legacy)
    assert bring(path, reference).proof.passed


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_the_norms_of_torchs_own_layers_are_asked_for_or_read(
    norm: str, bring: Any, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, H, 64, 0.0, batch_first=True, norm_first=norm == "pre")
    model = Model(nn.TransformerEncoder(layer, L, enable_nested_tensor=False))
    known = {"n_head": H, "activation": "relu"}
    assert "--norm" in refusal(bring, model.state_dict(), **known)
    reference = save_reference(tmp_path / "ref.npz", model)
    if norm == "pre":
        assert bring(model, reference).proof.passed
    else:
        assert "post-norm" in refusal(bring, model)
        assert "norm post" in refusal(bring, model.state_dict(), reference, **known, norm="pre")


EXTRA = {
    "RoPE": {"freqs_cis": torch.ones(T, 4)},
    "ALiBi": {"h.0.attn.slopes": torch.ones(H, 1, 1)},
    "relative": {"h.0.attn.rel_pos.weight": torch.ones(32, 4)},
    "mixture of experts": {
        "h.0.moe.experts.0.up.weight": torch.ones(64, 32),
        "h.0.moe.gate.weight": torch.ones(1, 32),
    },
    "SwiGLU": {"h.0.mlp.w3.weight": torch.ones(64, 32)},
    "queries and keys": {"h.0.attn.q_norm.weight": torch.ones(8)},
    "LayerScale": {"h.0.ls1.gamma": torch.ones(32)},
    "RMSNorm": {"rms_final.weight": torch.ones(32)},
    "norm on the embeddings": {"embed_norm.weight": torch.ones(32)},
    "foo": {"foo.weight": torch.ones(7)},
    "int8": {"h.0.attn.qkv.weight": torch.ones(96, 32, dtype=torch.int8)},
    "float8": {"h.0.attn.qkv.weight": torch.ones(96, 32).to(torch.float8_e4m3fn)},
    "(96, 32)": {f"h.{i}.attn.qkv.weight": torch.ones(64, 32) for i in range(L)},
    "lm_head": {"lm_head.weight": torch.ones(V, 64)},
    "h.1.ln_1": {"h.1.ln_1.weight": torch.ones(16)},
    "NaN": {"h.1.mlp.c_fc.weight": torch.full((128, 32), torch.nan)},
}


@pytest.mark.parametrize("reason", EXTRA)
def test_tensors_that_are_no_gpts_are_named(reason: str, bring: Any, tmp_path: Path) -> None:
    tensors = Gpt().state_dict(FUSED) | EXTRA[reason]
    said = refusal(bring, tensors, n_head=H, activation="gelu_erf")
    assert reason in said
    assert "\n" not in said
    assert not (tmp_path / "out").exists()


def test_norms_without_biases_can_be_rms(bring: Any) -> None:
    tensors = Gpt("qkv o mlp").state_dict(FUSED)
    known = {"n_head": H, "activation": "gelu_erf"}
    assert "--norm-type" in refusal(bring, tensors, **known)
    bring(tensors, **known, norm_type="layer")


def test_missing_tensors_are_named(bring: Any) -> None:
    for name in ("h.1.mlp.c_fc.weight", "h.1.mlp.c_fc.bias"):
        tensors = Gpt().state_dict(FUSED)
        del tensors[name]
        said = refusal(bring, tensors, n_head=H, activation="gelu_erf")
        assert "h.1.mlp.c_fc" in said


def test_tied_weights_that_safetensors_wrote_once_are_found(bring: Any, tmp_path: Path) -> None:
    gpt = Gpt()
    gpt.head = (gpt.tok, None)
    tensors = gpt.state_dict(FUSED)
    del tensors["wte.weight"]
    path = tmp_path / "model.safetensors"
    known = {"n_head": H, "activation": "gelu_erf"}
    save_file(tensors, path)
    assert "token embedding" in refusal(bring, path, **known)
    save_file(tensors, path, metadata={"wte.weight": "lm_head.weight"})
    reference = save_reference(tmp_path / "ref.npz", gpt.logits)
    assert bring(path, reference, **known).proof.passed


def test_settings_that_contradict_the_tensors_are_named(bring: Any, tmp_path: Path) -> None:
    folder = tmp_path / "hf"
    folder.mkdir()
    tensors = Gpt().state_dict(SCHEMES["minGPT or makemore"][0])
    turned = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    tensors = {n: t.T.contiguous() if n.endswith(turned) else t for n, t in tensors.items()}
    save_file(tensors, folder / "model.safetensors")
    config = {"n_layer": L, "n_head": H, "n_embd": 32, "n_ctx": T, "vocab_size": V}
    for name in ("n_layer", "n_embd", "n_ctx", "vocab_size"):
        (folder / "config.json").write_text(json.dumps({**config, name: 64}))
        assert "64" in refusal(bring, folder)
    (folder / "config.json").write_text(json.dumps(config))
    assert bring(folder).recognised == "Hugging Face GPT-2"


ODD = ["<pad>", "<eos>", "é", "漢", "😀", *CHARACTERS[: V - 5]]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("vocab.json", ODD),
        ("meta.json", {"stoi": {c: i for i, c in enumerate(ODD)}}),
        ("any.json", {"itos": {str(i): c for i, c in enumerate(ODD)}}),
        (None, {"itos": dict(enumerate(ODD))}),
        (None, {"config": {"stoi": {c: i for i, c in enumerate(ODD)}}}),
    ],
)
def test_characters_are_found_under_any_name(
    name: str | None, content: Any, bring: Any, tmp_path: Path
) -> None:
    from llmkit.tokenizer_files import load_tokenizer

    if name:
        (tmp_path / name).write_text(json.dumps(content), encoding="utf-8")
    saved = {"model": Gpt().state_dict(FUSED), **({} if name else content)}
    done = bring(saved, n_head=H, activation="gelu_erf", tokenizer=None)
    tokenizer = load_tokenizer(done.folder)
    assert list(tokenizer.encode("é!漢😀")) == [2, 5, 3, 4]
    assert tokenizer.special_id("<eos>") == 1


def test_a_vocabulary_of_another_size_is_refused(bring: Any, tmp_path: Path) -> None:
    path = tmp_path / "chars.json"
    for characters in (CHARACTERS[:-1], CHARACTERS + "é"):
        path.write_text(json.dumps(list(characters)), encoding="utf-8")
        with pytest.raises(CheckpointError, match=str(len(characters))):
            bring(Gpt().state_dict(FUSED), n_head=H, activation="gelu_erf", tokenizer=str(path))


def test_a_reference_beyond_the_tokenizer_is_refused(bring: Any, tmp_path: Path) -> None:
    gpt = Gpt()
    reference = save_reference(tmp_path / "ref.npz", gpt.logits)
    path = tmp_path / "short.txt"
    path.write_text(CHARACTERS[:20])
    with pytest.raises(ConfigError, match="0 to 19"):
        bring(
            {"model": gpt.state_dict(FUSED), "vocab_size": 20},
            reference,
            n_head=H,
            activation="gelu_erf",
            tokenizer=f"chars:{path}",
        )
