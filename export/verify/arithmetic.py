"""How the backends of llama.cpp compute, as a table. Sources: docs/parity.md.

All of them compute the same graph. They differ in what a product reads (f32, f16, or blocks of
bytes), in how its sums are kept, in what attention reads and in how keys and values are stored.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import gguf

Type = gguf.GGMLQuantizationType
# The dot type of a matrix's type, and whether whole tiles of CUDA's own kernels cover its rows: the
# others go to cuBLAS (mmf_get_rows_per_block in ggml-cuda/mmf.cuh).
ProductKind = tuple[Type, bool]
_TILE_ROWS = 32


def product_kind(dot_type: Type, n_rows: int) -> ProductKind:
    """Products of one kind are computed by the same kernel, for the same number of tokens."""
    return dot_type, n_rows % _TILE_ROWS == 0


@dataclass(frozen=True)
class Arithmetic:
    """One way to compute a model. What is not said here is computed in float32."""

    name: str
    # What a product reads of its activations; None: the dot type of each matrix's own type. With
    # F16 weights are rounded to f16 as well.
    activations: Type | None = None
    sums: Type = Type.F32  # of products
    attention: Type = Type.F32  # what the two products of attention read; Q8_0: queries alone
    flash: bool = False  # attention is fused: its weights are f32, with f16 values its sums f16
    kv: Type = Type.F32  # stored keys and values
    gelu_table: bool = False  # GELU is looked up in a table from f16 to f16
    cuda: bool = False  # quantized weights as CUDA's kernels read them (cuda.py)
    norm_in_one_pass: bool = False  # variance as the mean of squares minus the square of the mean
    # Kinds of products that are computed in another arithmetic.
    products: tuple[tuple[ProductKind, Arithmetic], ...] = ()

    def of_product(self, dot_type: Type, n_rows: int) -> Arithmetic:
        """The arithmetic of the products with a matrix."""
        return dict(self.products).get(product_kind(dot_type, n_rows), self)

    @property
    def has_half_sums(self) -> bool:
        """Whether sums of some products are kept in f16."""
        return Type.F16 in (self.sums, *(other.sums for _, other in self.products))

    def reads(self, dot_type: Type) -> Type:
        """What a product reads, with a matrix of a type that has this dot type."""
        is_float = dot_type in (Type.F32, Type.F16, Type.BF16)
        if self.activations is None:
            return dot_type
        if self.activations == Type.F16:
            return Type.BF16 if dot_type == Type.BF16 else Type.F16
        if self.activations == Type.Q8_1 and is_float:
            return Type.F16 if dot_type == Type.F32 else dot_type
        return self.activations

    def with_cache(self, kv: Type) -> Arithmetic:
        """The same with keys and values stored as another type."""
        return replace(self, name=f"{self.name}, {kv.name.lower()} KV cache", kv=kv)

    def served(self) -> tuple[Arithmetic, ...]:
        """As Ollama may run it: with each OLLAMA_KV_CACHE_TYPE and OLLAMA_FLASH_ATTENTION.

        Quantized keys and values need flash attention. Of a GPU's only the types are known.
        """
        if self is not CPU:
            return tuple(self.with_cache(kv) for kv in (Type.F16, Type.Q8_0, Type.Q4_0))
        f16 = replace(self.with_cache(Type.F16), attention=Type.F16)
        flash = replace(f16, name=f"{f16.name}, flash attention", flash=True)
        return (
            f16,
            flash,
            *(
                replace(self.with_cache(kv), attention=Type.Q8_0, flash=True)
                for kv in (Type.Q8_0, Type.Q4_0)
            ),
            self.with_cache(Type.F32),
        )


CPU = Arithmetic("CPU", gelu_table=True)
BLAS = Arithmetic("BLAS", Type.F32, gelu_table=True)
# From the tightest to the loosest.
GPU = (
    Arithmetic("f32 activations", Type.F32, norm_in_one_pass=True),
    Arithmetic("f16 activations", Type.F16, attention=Type.F16, norm_in_one_pass=True),
    Arithmetic("q8_1 activations", Type.Q8_1, norm_in_one_pass=True),
    Arithmetic(
        "q8_1 activations of CUDA", Type.Q8_1, attention=Type.F16, cuda=True, norm_in_one_pass=True
    ),
    Arithmetic("f16 sums", Type.F16, Type.F16, Type.F16, norm_in_one_pass=True),
)
EVERY = (BLAS, *GPU)  # besides the CPU's own
