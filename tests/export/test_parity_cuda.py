"""Products of an H200 (CUDA 13.0, llama.cpp of llama-cpp-python 0.3.36), recorded tensor by tensor.

h200_products.npz has, for some weight types, 32 rows of a matrix, their bias, llama.cpp's input for
12 tokens of a batch of 31 and for a batch of 2, and llama.cpp's output.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from llmkit.architectures.graph import Product
from llmkit.export.gguf.reader import StoredTensor
from llmkit.export.verify.arithmetic import GPU, Arithmetic
from llmkit.export.verify.cuda import CudaWeights
from llmkit.export.verify.file_tensors import Matrix
from llmkit.export.verify.layers_check import LIMIT
from llmkit.export.verify.operations.kind import Computation
from llmkit.export.verify.operations.table import bounded
from llmkit.quant.types import quant_type

RECORDED = Path(__file__).with_name("h200_products.npz")
ARITHMETICS = {arithmetic.name: arithmetic for arithmetic in GPU}
QUANTIZED = ("q8_0", "q4_0", "q2_k", "q3_k", "q4_k", "q6_k")


class _Tensors:
    """One matrix and its bias."""

    def __init__(self, matrix: Matrix, bias: torch.Tensor) -> None:
        self._matrix, self._bias = matrix, bias

    def matrix(self, _name: str) -> Matrix:
        return self._matrix

    def optional(self, _name: str | None) -> torch.Tensor | None:
        return self._bias


def _ratio(folder: Path, quant: str, n: int, arithmetic: Arithmetic, damage: float = 0.0) -> float:
    """The largest error of the recorded products in units of the bound."""
    with np.load(RECORDED) as recorded:
        blocks, bias, x, y = (
            recorded[f"{quant}.{part}"] for part in ("blocks", "bias", f"x{n}", f"y{n}")
        )
    qtype = quant_type(quant)
    file = folder / quant
    file.write_bytes(blocks.tobytes())
    shape = (len(blocks), x.shape[1])
    stored = StoredTensor(file, quant, shape, qtype.ggml_type, 0, blocks.shape)
    weight = torch.from_numpy(stored.dequantized())
    weight[3] *= 1 + damage
    cuda = CudaWeights(stored) if stored.is_quantized else None
    matrix = Matrix(quant, weight, qtype.dot_type, cuda=cuda)
    tensors = _Tensors(matrix, torch.from_numpy(bias))
    computation = Computation([], tensors, arithmetic=arithmetic)  # type: ignore[arg-type]
    product = Product("y", ("x",), "a product", "w", "b")
    expected = bounded(product, [torch.from_numpy(x)], computation)
    return float(expected.ratio(torch.from_numpy(y)).max())


@pytest.mark.parametrize("n_tokens", [31, 2])
@pytest.mark.parametrize("quant", QUANTIZED)
def test_quantized_products_are_as_cuda_computes_them(
    tmp_path: Path, quant: str, n_tokens: int
) -> None:
    cuda = ARITHMETICS["q8_1 activations of CUDA"]
    assert _ratio(tmp_path, quant, n_tokens, cuda) <= LIMIT
    assert _ratio(tmp_path, quant, n_tokens, cuda, damage=0.003) > LIMIT


@pytest.mark.parametrize(
    ("quant", "n_tokens", "name"),
    [
        ("f32", 31, "f16 activations"),  # TF32
        ("f32", 2, "f32 activations"),
        ("f16", 31, "f16 sums"),
        ("f16", 2, "f16 activations"),
    ],
)
def test_float_products_are_as_cuda_computes_them(
    tmp_path: Path, quant: str, n_tokens: int, name: str
) -> None:
    assert _ratio(tmp_path, quant, n_tokens, ARITHMETICS[name]) <= LIMIT
    tighter = list(ARITHMETICS)[: list(ARITHMETICS).index(name)]
    assert all(_ratio(tmp_path, quant, n_tokens, ARITHMETICS[other]) > LIMIT for other in tighter)
