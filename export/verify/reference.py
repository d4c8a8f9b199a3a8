"""What llama.cpp computes from a GGUF file on a CPU, spelled out in PyTorch.

It is the family's graph with f32 keys and values and attention in single steps, which
`LlamaCpp(exact=True)` runs. Three roundings in it are part of the format, not errors, and are
made here as well:

- ggml rounds what a matrix reads to the dot type of the matrix's own type before the product, to
  blocks of bytes for the quantized types (`ggml_compute_forward_mul_mat`, ggml-cpu.c);
- it looks GELU up in a table from f16 to f16 (`ggml_vec_gelu_f32`, vec.h);
- it reads the norms' epsilon from the file, an f32.

All else is computed in the precision that is asked for. In float64 what is left to llama.cpp is
the rounding of float32. How much that may be, two other computations say: the same in float32,
and the same with each of the three roundings going the other way wherever it is a near-tie. Near
is what float32 may be off; two programs then round to neighbours, and both are right.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from llmkit.architectures.base import ModelConfig
from llmkit.architectures.graph import Operation, Product
from llmkit.architectures.registry import family_of
from llmkit.export.gguf.reader import config_of
from llmkit.export.verify.activations import Ties, nearest
from llmkit.export.verify.arithmetic import CPU, Arithmetic
from llmkit.export.verify.file_tensors import FileTensors, Matrix, UnpackedTensors, lora_alpha
from llmkit.export.verify.operations.kind import Computation
from llmkit.export.verify.operations.table import kind_of
from llmkit.export.verify.target import VerifyTarget

_TOKENS_AT_ONCE = 512  # through operations on each token alone: roundings take several copies


class Reference:
    """The model of a file as llama.cpp computes it, in float32 or float64."""

    def __init__(
        self,
        target: VerifyTarget,
        dtype: torch.dtype,
        ties: Ties = nearest,
        arithmetic: Arithmetic = CPU,
    ) -> None:
        """Unpack nothing yet. Raises GGUFError where the file or its adapter lacks something."""
        self._ties, self.arithmetic, self._dtype = ties, arithmetic, dtype
        self.config: ModelConfig = config_of(target.file)
        *self.operations, self._head = family_of(self.config).graph(self.config)
        self.tensors = FileTensors(target.file, target.adapter, lora_alpha(target.adapter))

    def logits(self, ids: Tensor) -> Tensor:
        """Logits (T, V) of one sequence of token ids (T,)."""
        return next(self.last_logits([ids], [len(ids)]))

    def last_logits(self, texts: Sequence[Tensor], counts: Sequence[int]) -> Iterator[Tensor]:
        """Logits (n, V) of the last n positions of each text, n its count."""
        (hidden,) = hidden_states([self], texts)
        head, parts = self.head(), torch.split(hidden, [len(text) for text in texts])
        for states, n in zip(parts, counts, strict=True):
            yield self.head_logits(states[len(states) - n :], head)

    def head(self) -> Matrix:
        """The matrix that makes the logits, unpacked."""
        assert isinstance(self._head, Product)
        return self.tensors.matrix(self._head.weight)

    @torch.inference_mode()
    def head_logits(self, hidden: Tensor, head: Matrix) -> Tensor:
        """What the head says of hidden states: (T, C) -> (T, V)."""
        return head.product(hidden, self._ties, self.arithmetic)

    def run(
        self,
        operations: Sequence[Operation],
        texts: Sequence[Tensor],
        weights: UnpackedTensors,
        held: dict[str, Tensor],
        wanted: set[str],
    ) -> None:
        """Run one part of the graph (`_parts`); hold those of its outputs that are wanted."""
        computation = Computation(texts, weights, self._dtype, self.arithmetic, self._ties)
        read = {name for operation in operations for name in operation.inputs} & held.keys()
        n_tokens = sum(map(len, texts))
        at_once = _TOKENS_AT_ONCE if kind_of(operations[0]).by_token else n_tokens
        made: dict[str, list[Tensor]] = {}
        for start in range(0, n_tokens, at_once):
            some = {name: held[name][start : start + at_once] for name in read}
            for operation in operations:
                inputs = [some[name] for name in operation.inputs]
                some[operation.output] = kind_of(operation).exact(operation, inputs, computation)
            for operation in operations:
                if operation.output in wanted:
                    made.setdefault(operation.output, []).append(some[operation.output])
        held.update((name, torch.cat(parts)) for name, parts in made.items())


@torch.inference_mode()
def hidden_states(references: Sequence[Reference], texts: Sequence[Tensor]) -> list[Tensor]:
    """Normalised outputs (T, C) of the last layer, of each reference: T tokens of all texts.

    The references are of one file. All texts go through a part of a layer before the next is
    unpacked, so that memory holds the weights of one layer.
    """
    tensors, operations = references[0].tensors, references[0].operations
    streams: list[dict[str, Tensor]] = [{} for _ in references]
    for part, later in _parts(operations):
        weights = UnpackedTensors(tensors)
        wanted = {name for operation in later for name in operation.inputs}
        wanted.add(operations[-1].output)
        for reference, held in zip(references, streams, strict=True):
            reference.run(part, texts, weights, held, wanted)
            for name in held.keys() - wanted:
                del held[name]
    return [held[operations[-1].output] for held in streams]


def _parts(
    operations: Sequence[Operation],
) -> Iterator[tuple[Sequence[Operation], Sequence[Operation]]]:
    """Operations on each token by itself together, any other alone; and all that follow."""
    part: list[Operation] = []
    for number, operation in enumerate(operations):
        if not kind_of(operation).by_token:
            if part:
                yield part, operations[number:]
            yield [operation], operations[number + 1 :]
            part = []
        else:
            part.append(operation)
    if part:
        yield part, ()
