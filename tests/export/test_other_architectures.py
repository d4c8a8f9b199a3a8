"""Files of architectures that llmkit does not train, through every command that takes them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf_surgery import Kind, keys_of, tensors_of, with_key, without_key
from numpy.typing import NDArray
from ollama_servers import stand_in
from ollama_stand_in import StandIn
from other_architectures import CHAT_TEMPLATE, SHAPES, write_model
from test_memory import ROUNDED, allocated

from llmkit.architectures.registry import tensor_specs
from llmkit.errors import ConfigError, GGUFError
from llmkit.export.compare import compare
from llmkit.export.deploy.deploy import deploy
from llmkit.export.doctor import machine
from llmkit.export.doctor.examine import doctor
from llmkit.export.doctor.fit import fit_check
from llmkit.export.evaluation.eval_data import file_sequences
from llmkit.export.gguf.bits import bits_by_group
from llmkit.export.gguf.memory_need import memory_needed, memory_needed_as, repacked_bytes
from llmkit.export.gguf.reader import config_of, read_gguf
from llmkit.export.gguf.sizes import ModelSizes, named_spec, sizes_of, sizes_of_config, specs_of
from llmkit.export.llamacpp.benchmark import Speed
from llmkit.export.llamacpp.chat_template import ChatTemplate
from llmkit.export.llamacpp.runners import answer_text, open_runner
from llmkit.export.llamacpp.runtime import LlamaCpp
from llmkit.export.modelfile.write import write_modelfile
from llmkit.export.ollama.server import OllamaServer
from llmkit.export.quantization.imatrix import (
    ImportanceMatrix,
    ImportanceStatistics,
    write_imatrix,
)
from llmkit.export.quantization.requantize import requantize
from llmkit.export.verify.ollama_file_check import compared_with_llama_cpp
from llmkit.export.verify.verify import verify
from llmkit.modelfiles.prompt_format import Message
from llmkit.quantization.tensor_types import quantization
from llmkit.sampling import Sampling


def log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max(axis=1, keepdims=True)
    found: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return found


WIDE = {"n_embd": 256, "n_ff": 256, "head_length": 64, "n_layer": 4}
ESTIMATE = 0.2  # of the compute buffer


@pytest.fixture(scope="module", params=list(SHAPES))
def architecture(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(architecture: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("other") / f"{architecture}.gguf", architecture)


# Sizes and memory


def test_sizes_are_those_that_the_file_states(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf", "llama")
    n_tokens = len(keys_of(path)["tokenizer.ggml.tokens"][0])
    found = sizes_of(read_gguf(path))
    assert found == ModelSizes(
        context_length=96,
        n_layer=2,
        n_embd=64,
        vocab_size=n_tokens,
        n_cached=2 * 2 * 2 * 16,  # layers, keys and values, heads, numbers
        n_feed_forward=4 * 128,
        heads_per_value=2,
        tie_embeddings=False,
    )
    of_each = with_key(
        path, tmp_path / "each.gguf", "llama.attention.head_count_kv", [2, 1], Kind.ARRAY,
        Kind.UINT32,
    )  # fmt: skip
    assert sizes_of(read_gguf(of_each)) == replace(found, n_cached=3 * 2 * 16)


def test_the_need_is_what_llama_cpp_allocates(architecture: str, tmp_path: Path) -> None:
    shape = replace(SHAPES[architecture], context=1000, n_embd=128, n_ff=512, head_length=32)
    file = read_gguf(write_model(tmp_path / "m.gguf", architecture, shape))
    q4_0 = requantize(file.path, tmp_path / "q4_0.gguf", "q4_0")
    there, need = allocated(q4_0.path, 1000), memory_needed(q4_0, 1000)
    copies = repacked_bytes(q4_0)
    assert need.weights - copies == pytest.approx(there["model"], abs=ROUNDED)
    if there["repacked"]:  # other CPUs repack other types, or none
        assert copies == pytest.approx(there["repacked"], abs=ROUNDED)
    assert need.kv_cache == pytest.approx(there["KV"], abs=ROUNDED)
    compute = there["compute"] + there["output"]
    assert need.compute_buffer == pytest.approx(compute, rel=ESTIMATE)
    assert memory_needed_as(file, quantization("q4_0"), 1000) == need


def test_of_gpt2_the_names_say_what_the_family_says(files: dict[str, Path]) -> None:
    file = read_gguf(files["f32"])
    config = config_of(file)
    assert sizes_of(file) == sizes_of_config(config)
    for spec in tensor_specs(config):
        named = named_spec(spec.gguf_name, spec.shape, sizes_of(file))
        assert (named.is_matrix, named.layer) == (spec.is_matrix, spec.layer)
        if spec.is_matrix:
            assert named.role is spec.role


@pytest.mark.parametrize("key", ["block_count", "context_length", "embedding_length"])
def test_a_size_that_is_missing_or_damaged_is_named(key: str, tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf", "llama")
    name = f"llama.{key}"
    with pytest.raises(GGUFError, match=name):
        sizes_of(read_gguf(without_key(path, tmp_path / "a.gguf", name)))
    with pytest.raises(GGUFError, match=name):
        sizes_of(read_gguf(with_key(path, tmp_path / "b.gguf", name, "2", Kind.STRING)))
    huge = with_key(path, tmp_path / "c.gguf", "llama.block_count", 2**31, Kind.UINT32)
    with pytest.raises(GGUFError, match=str(2**31)):
        sizes_of(read_gguf(huge))


def test_the_doctor_says_whether_it_fits(model: Path, architecture: str) -> None:
    checks = {check.name: check for check in doctor(model, host="127.0.0.1:9").checks}
    assert checks["file"].passed
    assert checks["memory"].passed
    for part in (architecture, "f32", "context 96"):
        assert part in checks["file"].detail


def test_of_a_file_without_a_checkpoint_the_doctor_quantizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = read_gguf(write_model(tmp_path / "m.gguf", "llama"))
    need = memory_needed_as(file, quantization("q8_0"), 96).total
    monkeypatch.setattr(machine, "free_memory", lambda: need)
    monkeypatch.setattr(machine, "free_gpu_memory", lambda: 0)
    check = fit_check(file, 96)
    out = tmp_path / "m-q8_0.gguf"
    assert f"llmkit quantize {file.path} --out {out} --quant q8_0" in check.advice


# Quantization


@pytest.mark.parametrize(("architecture", "n_head_kv"), [("llama", 2), ("qwen2", 1), ("gemma", 1)])
def test_presets_have_llama_quantizes_types(
    architecture: str, n_head_kv: int, tmp_path: Path
) -> None:
    shape = replace(SHAPES[architecture], n_head_kv=n_head_kv, **WIDE)
    file = read_gguf(write_model(tmp_path / "m.gguf", architecture, shape))
    for quant in ("q8_0", "q2_k", "q3_k_m", "q3_k_l", "q4_k_s", "q4_k_m"):
        out = tmp_path / f"{quant}.gguf"
        wanted = requantize(file.path, out, quant, method="llama.cpp").tensors
        for spec in specs_of(file):
            if spec.is_matrix:
                qtype = quantization(quant).type_of(spec, sizes_of(file))
                assert (spec.gguf_name, qtype) == (spec.gguf_name, wanted[spec.gguf_name].qtype)
            else:
                kept = file.tensors[spec.gguf_name].ggml_type
                assert wanted[spec.gguf_name].ggml_type == kept


def test_rows_that_do_not_fit_fall_back_as_llama_quantizes(model: Path, tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours.gguf", tmp_path / "theirs.gguf"
    requantize(model, ours, "q4_k_m")
    requantize(model, theirs, "q4_k_m", method="llama.cpp")
    wanted = {name: kind for name, (_, kind) in tensors_of(theirs).items()}
    assert {name: kind for name, (_, kind) in tensors_of(ours).items()} == wanted


def test_what_is_no_matrix_stays_and_the_file_runs(
    model: Path, architecture: str, tmp_path: Path
) -> None:
    out = tmp_path / "m.gguf"
    requantize(model, out, "q8_0")
    before, after = tensors_of(model), tensors_of(out)
    assert list(before) == list(after)
    for name, (data, kind) in after.items():
        is_kept = data.ndim == 1 or "gate_inp" in name
        assert (kind == gguf.GGMLQuantizationType.Q8_0) != is_kept
        if is_kept:
            assert np.array_equal(data, before[name][0])
    changed = {"general.file_type"}
    keys = keys_of(model)
    assert {n: key for n, key in keys_of(out).items() if n not in changed} == {
        n: key for n, key in keys.items() if n not in changed
    }
    with LlamaCpp(model) as exact, LlamaCpp(out) as rounded:
        difference = np.abs(exact.evaluate([1, 2, 3]) - rounded.evaluate([1, 2, 3]))
    assert 0 < difference.max() < 0.2
    groups = bits_by_group(read_gguf(out))
    assert set(groups.values()) == {8.5}
    assert {"embedding", "attention", "feed_forward"} <= groups.keys()


def test_importances_are_taken_for_each_expert(tmp_path: Path) -> None:
    source = write_model(tmp_path / "m.gguf", "qwen3moe")
    name, n_experts, n_columns = "blk.0.ffn_up_exps.weight", 4, 64
    sums = np.random.default_rng(1).uniform(0.1, 10, (n_experts, n_columns)).astype(np.float32)
    statistics = ImportanceStatistics(sums, np.ones(n_experts, np.float32))
    matrix = tmp_path / "imatrix.gguf"
    write_imatrix(matrix, ImportanceMatrix({name: statistics}, ("text",), 1, 1))
    out = tmp_path / "q4_0.gguf"
    assert requantize(source, out, "q4_0", imatrix=matrix).method == "imatrix"
    file = read_gguf(out)
    weights = read_gguf(source).tensors[name].dequantized()
    plain = requantize(source, tmp_path / "plain.gguf", "q4_0").tensors[name].dequantized()
    for expert in range(n_experts):
        found = file.tensors[name].dequantized()[expert]
        errors = [
            float((sums[expert] * (weights[expert] - rounded) ** 2).sum())
            for rounded in (found, plain[expert])
        ]
        assert errors[0] < errors[1]


def test_error_feedback_names_the_architecture_and_what_works(
    model: Path, architecture: str, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("some words")
    with pytest.raises(ConfigError) as caught:
        requantize(model, tmp_path / "m.gguf", "q4_0", method="gptq", calibration=text)
    for word in (architecture, "gptq", "gpt2", "rtn", "llama.cpp"):
        assert word in str(caught.value)


# Comparison


def test_files_are_compared_with_a_file(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmkit.export.compare.measure_speed", lambda *_, **__: Speed(1, 1, 1))
    text = tmp_path / "text.txt"
    text.write_text("some words to merge, some more words. " * 40)
    q8_0 = requantize(model, tmp_path / "q8_0.gguf", "q8_0").path
    found = compare(model, [model, q8_0], data=text, max_tokens=150)  # one window
    same, rounded = found.rows
    assert found.reference == str(model)
    assert (same.mean_kl, same.top1, same.perplexity_ratio) == (0, 1, 1)
    with LlamaCpp(model) as exact, LlamaCpp(q8_0) as other:
        ids = [*exact.tokenize(text.read_text()), exact.bos_id]
        log_p, log_q = (
            log_softmax(llama.evaluate(ids[:96]).astype(np.float64)) for llama in (exact, other)
        )
    kl = (np.exp(log_p) * (log_p - log_q)).sum(1)
    loss = -log_q[np.arange(96), ids[1:97]]
    assert rounded.mean_kl == pytest.approx(kl.mean(), rel=1e-6)
    assert rounded.perplexity == pytest.approx(np.exp(loss.mean()), rel=1e-6)
    assert rounded.bytes == q8_0.stat().st_size


def test_a_file_as_reference_says_what_its_checkpoint_says(
    files: dict[str, Path], tiny_checkpoint: Path, corpus: Path
) -> None:
    of_file, of_checkpoint = (
        compare(reference, files["q4_0"], data=corpus, max_tokens=512)
        for reference in (files["f32"], tiny_checkpoint)
    )
    assert of_file.tokens == of_checkpoint.tokens
    ours, theirs = of_file.rows[0], of_checkpoint.rows[0]
    for name in ("mean_kl", "perplexity", "perplexity_ratio", "top1"):
        assert getattr(ours, name) == pytest.approx(getattr(theirs, name), rel=1e-3)


def test_texts_begin_as_the_file_wants_it(tmp_path: Path) -> None:
    add_bos = {"tokenizer.ggml.add_bos_token": (True, Kind.BOOL, None)}
    file = read_gguf(write_model(tmp_path / "m.gguf", "llama", more=add_bos))
    plain = read_gguf(write_model(tmp_path / "plain.gguf", "llama"))
    wanted = file_sequences(plain, None, 200)
    for sequence in file_sequences(file, None, 200):
        assert sequence.ids[0] == keys_of(file.path)["tokenizer.ggml.bos_token_id"][0]
        assert not sequence.counts[0]
        assert sequence.counts[1:].all()
        assert len(sequence.inputs) == 96
    assert all(sequence.counts.all() for sequence in wanted)


def test_a_long_context_is_not_filled(tmp_path: Path) -> None:
    shape = replace(SHAPES["llama"], context=1 << 17)
    path = write_model(tmp_path / "m.gguf", "llama", shape)
    assert {len(text.inputs) for text in file_sequences(read_gguf(path), None, 2000)} == {512}
    with open_runner(path) as runner:
        assert runner.context_length == 4096


def test_what_cannot_be_compared_is_named(
    model: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(GGUFError, match=r"f32\.gguf and .* tokens"):
        compare(model, files["f32"])
    with pytest.raises(ConfigError, match=r"--against.*quantize"):
        compare(model, model, against="llama.cpp")


# Running


def test_a_file_answers_in_its_own_format(tmp_path: Path) -> None:
    template = "{{ bos_token }}" + CHAT_TEMPLATE
    add_bos = {"tokenizer.ggml.add_bos_token": (True, Kind.BOOL, None)}
    path = write_model(tmp_path / "m.gguf", "llama", chat_template=template, more=add_bos)
    with open_runner(path) as runner, LlamaCpp(path) as llama:
        prompt = runner.prompt([Message("user", "some words")])
        assert prompt == [llama.bos_id, *llama.tokenize("[user] some words\n[assistant] ")]
        assert "".join(answer_text(runner, prompt, Sampling(max_tokens=4)))
        assert not runner.continues
    base = write_model(tmp_path / "base.gguf", "llama", more=add_bos)
    with open_runner(base) as runner:
        prompt = runner.prompt([Message("user", "some words")])
        assert prompt == [llama.bos_id, *prompt[1:]]
        assert runner.continues


def test_a_template_that_refuses_is_told_with_its_words() -> None:
    template = ChatTemplate("{{ raise_exception('no system role') }}")
    with pytest.raises(GGUFError, match="no system role"):
        template.text([Message("user", "hi")])


# Ollama


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandIn]:
    with stand_in(tmp_path_factory.mktemp("server")) as found:
        yield found


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, None])
def test_a_file_is_deployed_without_a_checkpoint(
    template: str | None, server: StandIn, tmp_path: Path
) -> None:
    add_bos = {"tokenizer.ggml.add_bos_token": (True, Kind.BOOL, None)}
    f32 = write_model(tmp_path / "f32.gguf", "llama", chat_template=template, more=add_bos)
    q4_0 = requantize(f32, tmp_path / "out" / "m.gguf", "q4_0").path
    modelfile = write_modelfile(q4_0)
    done = deploy(q4_0.parent, "other", host=server.url)
    assert done.passed, done.checks
    checks = {check.name: check for check in done.checks}
    assert list(checks)[-5:] == ["upload", "create", "stored", "prompt", "logprobs"]
    for part in ("llama", "not compared with PyTorch"):
        assert part in checks["proof"].detail
    assert "llama.cpp" in checks["logprobs"].detail
    with OllamaServer(server.url) as client:
        assert compared_with_llama_cpp(client, "other", read_gguf(f32)).faults
    if template is not None:
        text = modelfile.read_text(encoding="utf-8")
        modelfile.write_text(text.replace("[user]", "[human]"), encoding="utf-8")
        done = deploy(q4_0.parent, "wrong", host=server.url)
        assert [check.name for check in done.checks if not check.passed] == ["prompt"]


def test_verify_names_the_architecture_and_what_works(model: Path, tiny_checkpoint: Path) -> None:
    with pytest.raises(GGUFError) as caught:
        verify(tiny_checkpoint, model)
    for word in (model.stem, "gpt2", "compare", "deploy"):
        assert word in str(caught.value)
