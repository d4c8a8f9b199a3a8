"""Keys and values that attention reads again for each new token."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class KVCache:
    """Keys and values of the tokens seen so far, in buffers (B, H, capacity, D) made once.

    `padding` (B,): how many tokens at the start of each row are none of the text. They are not
    attended to, and positions count from the first token behind them.
    """

    def __init__(self, capacity: int, padding: Tensor | None = None) -> None:
        self.capacity = capacity
        self.padding = padding
        self.length = 0  # tokens seen, padding included
        self._layers: list[tuple[Tensor, Tensor]] = []

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write the new tokens' keys and values (B, H, T, D) of a layer; return all of them.

        `length` grows once for all layers, in `LanguageModel.hidden_states`.
        """
        if layer == len(self._layers):
            shape = (*k.shape[:2], self.capacity, k.shape[3])
            self._layers.append((k.new_empty(shape), v.new_empty(shape)))
        end = self.length + k.shape[2]
        for buffer, new in zip(self._layers[layer], (k, v), strict=True):
            buffer[:, :, self.length : end] = new
        keys, values = self._layers[layer]
        return keys[:, :, :end], values[:, :, :end]

    def mask(self, n_new: int, device: torch.device) -> Tensor | None:
        """Which tokens each new one sees: (T, S), or (B, 1, T, S) with padding.

        None where a causal mask, or for a single new token no mask, says the same.
        """
        if self.padding is None and (n_new == 1 or self.length == 0):
            return None
        end = self.length + n_new
        seen = torch.ones(n_new, end, dtype=torch.bool, device=device).tril(self.length)
        if self.padding is None:
            return seen
        is_text = torch.arange(end, device=device) >= self.padding[:, None]  # (B, S)
        itself = torch.ones_like(seen).triu(self.length) & seen  # padding too, else it sees nothing
        return (seen & is_text[:, None] | itself)[:, None]

    def positions(self, n_new: int, device: torch.device) -> Tensor:
        """Of the new tokens: (T,), or (B, T) with padding."""
        positions = torch.arange(self.length, self.length + n_new, device=device)
        if self.padding is None:
            return positions
        return (positions - self.padding[:, None]).clamp(min=0)

    @property
    def n_text(self) -> int:
        """Tokens of the longest row, without padding."""
        return self.length - (0 if self.padding is None else int(self.padding.min()))

    def keep(self, rows: Sequence[int]) -> None:
        """Forget all rows but these."""
        self._layers = [(k[rows], v[rows]) for k, v in self._layers]
        self.padding = None if self.padding is None else self.padding[rows]

    def repeated(self, n_rows: int, n_more: int) -> KVCache:
        """A copy of the only row in `n_rows` rows, with room for `n_more` tokens."""
        copy = KVCache(self.length + n_more)
        for layer, (k, v) in enumerate(self._layers):
            shape = (n_rows, -1, -1, -1)
            copy.extend(layer, *(part[:, :, : self.length].expand(shape) for part in (k, v)))
        copy.length = self.length
        return copy
