"""The arithmetics of llama.cpp's backends: each against NumPy, and which one explains numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from gguf_surgery import make_checkpoint
from numpy.typing import NDArray
from single_operations import GELU, NORM, PRODUCT, attention, bounded_alone
from torch import Tensor
from verify_targets import written

from llmkit.architectures.registry import family_of
from llmkit.errors import ConfigError
from llmkit.export.evaluation.divergence import Divergence
from llmkit.export.evaluation.eval_data import TextSequence, proof_sequences
from llmkit.export.llamacpp import devices
from llmkit.export.llamacpp.devices import Device, uses_gpu
from llmkit.export.llamacpp.runtime import EXACT_BATCH, LlamaCpp
from llmkit.export.verify import layers_check, logits_check
from llmkit.export.verify.arithmetic import CPU, EVERY, GPU, Arithmetic, Type, product_kind
from llmkit.export.verify.checks import CHECKS, CheckContext
from llmkit.export.verify.file_tensors import FileTensors, LoRA, Matrix, UnpackedTensors
from llmkit.export.verify.logits_check import LogitsComparison
from llmkit.export.verify.operations.kind import Computation
from llmkit.export.verify.operations.table import kind_of
from llmkit.export.verify.reference import Reference
from llmkit.export.verify.target import VerifyTarget

F32, F16, Q8_1, _CUDA, HALF_SUMS = GPU


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> VerifyTarget:
    folder = tmp_path_factory.mktemp("arithmetic")
    return written(make_checkpoint(folder / "c"), folder / "m.gguf", "q8_0")


def product(arithmetic: Arithmetic, dtype: torch.dtype = torch.float64) -> NDArray[np.float64]:
    x, weight = operands()
    matrix = Matrix("m", torch.from_numpy(weight), Type.Q8_0)
    y = matrix.product(torch.from_numpy(x).to(dtype), arithmetic=arithmetic)
    return y.double().numpy()


def operands() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    random = np.random.default_rng(0)
    x, weight = random.standard_normal((2, 8, 64)).astype(np.float32)
    return x, weight


def in_bytes(x: NDArray[np.float32]) -> NDArray[np.float64]:
    """Blocks of 32 as a step in f16 and whole numbers."""
    blocks = x.reshape(-1, 32)
    largest = np.abs(blocks).max(1, keepdims=True)
    codes = np.rint(blocks * (np.float32(127) / largest))
    step = (largest / np.float32(127)).astype(np.float16).astype(np.float64)
    return (codes * step).reshape(x.shape)


def test_what_a_product_reads() -> None:
    x, weight = operands()
    wide = x.astype(np.float64), weight.astype(np.float64)
    halves = x.astype(np.float16).astype(np.float64), weight.astype(np.float16).astype(np.float64)
    for arithmetic, (a, b) in (
        (F32, wide),
        (F16, halves),
        (HALF_SUMS, halves),
        (CPU, (in_bytes(x), wide[1])),
        (Q8_1, (in_bytes(x), wide[1])),
        (replace(F16, products=((product_kind(Type.Q8_0, 8), Q8_1),)), (in_bytes(x), wide[1])),
        (replace(F16, products=((product_kind(Type.Q8_0, 32), Q8_1),)), halves),
    ):
        np.testing.assert_allclose(product(arithmetic), a @ b.T, rtol=1e-12)


def test_sums_in_f16_are_rounded_after_every_product() -> None:
    x, weight = (values.astype(np.float16).astype(np.float32) for values in operands())
    sums = np.zeros((8, 8), np.float32)
    for k in range(64):
        sums = (sums + np.outer(x[:, k], weight[:, k])).astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(product(HALF_SUMS, torch.float32), sums)


@pytest.mark.parametrize(
    ("arithmetic", "dot_type", "read"),
    [
        (CPU, Type.Q8_K, Type.Q8_K),
        (F32, Type.F16, Type.F32),
        (F16, Type.BF16, Type.BF16),
        (Q8_1, Type.Q8_K, Type.Q8_1),
        (Q8_1, Type.BF16, Type.BF16),
        (Q8_1, Type.F32, Type.F16),
    ],
)
def test_what_is_read_with_a_type_of_weights(
    arithmetic: Arithmetic, dot_type: Type, read: Type
) -> None:
    assert arithmetic.reads(dot_type) == read


def test_attention_reads_halves_and_keeps_keys_and_values_as_told() -> None:
    qkv = np.random.default_rng(1).standard_normal((5, 96)).astype(np.float32)
    q, k, v = np.split(qkv.astype(np.float64), 3, axis=1)
    half = np.float16
    for arithmetic, (q_, k_, v_), reads_halves in (
        (F32, (q, k, v), False),
        (F16, tuple(x.astype(half).astype(float) for x in (q, k, v)), True),
        (CPU.with_cache(Type.F16), (q, *(x.astype(half).astype(float) for x in (k, v))), False),
        (CPU.with_cache(Type.Q8_0), (q, *(in_bytes(x) for x in np.split(qkv, 3, 1)[1:])), False),
    ):
        scores = q_ @ k_.T / np.sqrt(32) + np.triu(np.full((5, 5), -np.inf), 1)
        p = np.exp(scores - scores.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        p = p.astype(half).astype(float) if reads_halves else p
        found = bounded_alone(attention(1), torch.from_numpy(qkv), arithmetic).exact.numpy()
        np.testing.assert_allclose(found, p @ v_, rtol=1e-9, atol=1e-12)


def test_a_gpu_computes_gelu_by_its_formula() -> None:
    x = np.linspace(-12, 12, 101)
    wanted = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    found = bounded_alone(GELU, torch.from_numpy(x)[None], F32).exact[0].numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-12)


def test_the_bound_of_sums_in_f16_holds_and_that_of_f32_sums_does_not() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(31, 256, generator=generator)
    matrix = Matrix("m", torch.randn(64, 256, generator=generator), Type.F16)
    found = matrix.product(x, arithmetic=HALF_SUMS)
    in_halves, in_floats = (
        bounded_alone(PRODUCT, x, arithmetic, weight=matrix) for arithmetic in (HALF_SUMS, F16)
    )
    assert 0.05 < in_halves.ratio(found).max() <= 1
    assert in_floats.ratio(found).max() > 10


def test_an_adapter_is_computed_as_any_f32_matrix_and_bounded() -> None:
    generator = torch.Generator().manual_seed(0)
    x, a, b = (torch.randn(*shape, generator=generator) for shape in ((8, 64), (4, 64), (32, 4)))
    lora = LoRA(Matrix("a", a, Type.F32), Matrix("b", b, Type.F32), 2.0)
    matrix = Matrix("m", torch.zeros(32, 64), Type.Q8_0, lora=lora)
    x_, a_, b_ = (values.half().double() for values in (x, a, b))
    exact = 2 * (x.double() @ a.double().T) @ b.double().T
    halves = 2 * (x_ @ a_.T).half().double() @ b_.T
    for arithmetic, right, wrong in (
        (CPU, [exact], [halves, 1.0001 * exact]),
        (F32, [exact], [halves]),
        (F16, [exact, halves], [1.05 * exact]),
        (Q8_1, [exact, halves], [1.05 * exact]),
    ):
        bounded = bounded_alone(PRODUCT, x, arithmetic, weight=matrix)
        for found in right:
            assert bounded.ratio(found.float()).max() <= 1
        for found in wrong:
            assert bounded.ratio(found.float()).max() > 1
    torch.testing.assert_close(lora.product(x.double(), arithmetic=F16), halves, rtol=1e-9, atol=0)


def test_the_kl_of_one_position_counts_except_in_sums_in_f16() -> None:
    ones, same = np.ones(100), np.ones(100, np.bool_)
    noise = Divergence(ones, same, ones, ones, ones, ones)
    conversion = replace(noise, kl=np.where(np.arange(100) == 5, 20.0, 1.0))
    for arithmetic, value in ((F16, 18.12), (HALF_SUMS, 1.19)):
        found = LogitsComparison(conversion, noise, noise, np.empty((0, 2)), arithmetic)
        assert found.value == pytest.approx(value, abs=0.01)


def test_a_norm_in_one_pass_may_be_off_by_more() -> None:
    x = 1000 + torch.randn(4, 256, generator=torch.Generator().manual_seed(0))
    ones = torch.ones(256)
    variance = x.square().mean(-1, keepdim=True) - x.mean(-1, keepdim=True).square()
    found = (x - x.mean(-1, keepdim=True)) / (variance + 1e-5).sqrt()
    assert bounded_alone(NORM, x, F32, weight=ones).ratio(found).max() <= 1
    assert bounded_alone(NORM, x, CPU, weight=ones).ratio(found).max() > 1


def test_numbers_of_another_arithmetic_are_explained_and_named(
    target: VerifyTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    """llama.cpp's CPU stands for a GPU whose arithmetic is the CPU's: one of two is right."""
    _, texts = proof_sequences(target.checkpoint, None, 64)
    monkeypatch.setattr(layers_check, "GPU", (F32, CPU))
    context = CheckContext(target, texts, [], None, None, None, gpu=True)
    (layers,) = (check for check in CHECKS if check.name == "layers")
    check = layers.run(context)
    assert check.passed
    assert "CPU (18)" in check.detail  # both runs of 9 products
    assert context.layers.arithmetics == (CPU, CPU)

    with LlamaCpp(target.file.path) as context.llama:
        found = context.compared()
    assert found.arithmetic == CPU
    assert logits_check.logits_check(found).passed
    assert set(found.spread) == {arithmetic.name for arithmetic in EVERY}
    assert all(far.max_difference > 0 for far in found.spread.values())


class StandIn:
    """Hardware whose arithmetic is known: the reference in float32, with one matrix damaged."""

    vocab_size = 96

    def __init__(
        self, target: VerifyTarget, arithmetic: Arithmetic, damage: float, patch: pytest.MonkeyPatch
    ) -> None:
        self._target, self._arithmetic, self._patch = target, arithmetic, patch
        self._matrix, self._damage = FileTensors.matrix, damage

    @contextmanager
    def damaged(self) -> Iterator[None]:
        def matrix(tensors: FileTensors, name: str) -> Matrix:
            found = self._matrix(tensors, name)
            factor = 1 + self._damage * (name == "blk.0.ffn_up.weight")
            return replace(found, weight=factor * found.weight)

        with self._patch.context() as patch:
            patch.setattr(FileTensors, "matrix", matrix)
            yield

    def evaluate_text(self, ids: list[int], positions: range) -> NDArray[np.float32]:
        with self.damaged():
            reference = Reference(self._target, torch.float32, arithmetic=self._arithmetic)
            logits = reference.logits(torch.tensor(ids)).numpy()
        return logits[positions.start : positions.stop]

    def told(self, ids: Tensor) -> Arithmetic:
        """What `layers` makes of its outputs, each of its own inputs."""
        config = self._target.checkpoint.config
        operations = list(family_of(config).graph(config))
        tensors = FileTensors(self._target.file, None, 0.0)
        walk = layers_check._Walk(operations, tensors, ids, GPU)
        held: dict[str, Tensor] = {}
        for operation in operations:
            with self.damaged():
                weights = UnpackedTensors(tensors)
                computation = Computation([ids], weights, torch.float32, self._arithmetic)
                inputs = [held[name] for name in operation.inputs]
                held[operation.output] = kind_of(operation).exact(operation, inputs, computation)
            walk._receive(operation.output, held[operation.output].numpy())
        return walk.arithmetic()


@pytest.mark.parametrize(
    ("hardware", "damage"),
    [(F32, 0.003), (F16, 0.003), (Q8_1, 0.03), (_CUDA, 0.03), (HALF_SUMS, 0.03)],
    ids=lambda value: getattr(value, "name", None),
)
def test_logits_accepts_only_the_arithmetic_that_layers_tells(
    hardware: Arithmetic, damage: float, target: VerifyTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = torch.arange(EXACT_BATCH) % StandIn.vocab_size
    text = TextSequence(np.append(ids.numpy(), 0), np.ones(EXACT_BATCH, np.bool_))
    for factor, passes in ((0.0, True), (damage, False)):
        stand_in = StandIn(target, hardware, factor, monkeypatch)
        assert stand_in.told(ids) == hardware
        told, loosest = (
            logits_check.compare_logits(stand_in, target, [text], arithmetic)  # type: ignore[arg-type]
            for arithmetic in (hardware, HALF_SUMS)
        )
        assert logits_check.logits_check(told).passed is passes
        if hardware in (F32, F16):  # sums in f16 would excuse the damage
            assert logits_check.logits_check(loosest).passed


@pytest.mark.parametrize(
    ("distances", "explaining"),
    [
        ((1.0, 1e-4, 2e-3, 1e-4, 1e-4), (1, 3)),
        ((0.10, 0.12, 0.12, 0.12, 0.12), (4,)),  # the nearest by chance, but too far for f32 sums
        ((1.0, 1.0, 1.0, 0.05, 1.0), (3,)),  # an adapter in another arithmetic
        ((math.inf,) * 5, (4,)),
    ],
)
def test_what_f32_sums_do_not_explain_are_sums_in_f16(
    distances: tuple[float, ...], explaining: tuple[int, ...]
) -> None:
    outcomes = [
        layers_check._Outcome(PRODUCT, arithmetic, 0.0, 0, 0, (), distance, rounding=0.01)
        for arithmetic, distance in zip(GPU, distances, strict=True)
    ]
    assert layers_check._explaining(outcomes) == explaining


def test_a_small_damage_is_not_explained_by_a_coarser_arithmetic(
    target: VerifyTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers_check, "GPU", (CPU, HALF_SUMS))
    matrix = FileTensors.matrix

    def damaged(self: FileTensors, name: str) -> Matrix:
        found = matrix(self, name)
        return replace(found, weight=1.001 * found.weight) if "ffn_up" in name else found

    monkeypatch.setattr(FileTensors, "matrix", damaged)
    _, texts = proof_sequences(target.checkpoint, None, 64)
    check = layers_check.layers_check(target, texts[0].inputs, gpu=True)
    assert not check.passed
    assert "blk.0.ffn_up.weight" in check.detail


def test_a_backend_is_a_gpu_if_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for has_gpu in (True, False):
        seen = (Device("Vulkan0", "a GPU", is_gpu=has_gpu), Device("CPU", "a CPU", is_gpu=False))
        monkeypatch.setattr(devices, "devices", lambda seen=seen: seen)
        assert (uses_gpu("cpu"), uses_gpu("auto")) == (False, has_gpu)
    with pytest.raises(ConfigError, match="a CPU"):
        uses_gpu("gpu")
    with pytest.raises(ConfigError, match="tpu"):
        uses_gpu("tpu")  # type: ignore[arg-type]
