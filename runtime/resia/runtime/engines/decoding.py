"""A batch in the middle of being decoded: prefill, one step, and dropping finished rows.

Rows share a prefix (see `shared_prefix`) and differ in their suffixes, which are padded on the left. Equal suffixes
are prefilled once. What is computed depends on the batch as a whole, so the same batch gives the same tokens.
Knows nothing of prompts as text, adapters or stopping.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache

from .shared_prefix import Prefix

PREFILL_TOKENS = 2048  # at most this many tokens go through the model at once, which bounds its memory


class Decoding:
    """Rows of one batch in flight. `rows` are their places in the original batch; `logits_B_V` predict what is next."""

    def __init__(
        self,
        model: Any,
        prefix: Prefix | None,
        suffixes: Sequence[list[int]],
        max_new_tokens: int,
        window: int | None = None,
    ) -> None:
        """Prefill `suffixes`, each of at least one token, after `prefix`. With a `window`, the tokens that a layer of
        sliding attention looks back, itself included, there is no prefix: the model's own attention runs."""
        self._model, self._window = model, window
        self._prefix = prefix
        prefix_length = prefix[0][0].shape[1] if prefix else 0
        unique = list(dict.fromkeys(map(tuple, suffixes)))
        place = {suffix: at for at, suffix in enumerate(unique)}
        gather_B = torch.tensor([place[tuple(suffix)] for suffix in suffixes])
        lengths_U = torch.tensor([len(suffix) for suffix in unique])
        S = int(lengths_U.max())
        padding_U = S - lengths_U
        tokens_U_S = torch.tensor([[0] * (S - len(suffix)) + list(suffix) for suffix in unique])
        positions_U_S = prefix_length + (torch.arange(S) - padding_U[:, None]).clamp(min=0)
        logits_U_V = self._prefill(tokens_U_S, positions_U_S, padding_U)
        self.rows = list(range(len(suffixes)))
        self.logits_B_V: torch.Tensor = logits_U_V[gather_B]
        self._positions_B = positions_U_S[:, -1][gather_B]
        self._bias = self._padding_bias(padding_U[gather_B], S + max_new_tokens) if padding_U.any() else None
        self._cache.batch_select_indices(gather_B)

    def _prefill(self, tokens: torch.Tensor, positions: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
        """Run the suffixes through the model a few rows at a time; sets the cache, returns the last logits."""
        U, S = tokens.shape
        causal = torch.arange(S) <= torch.arange(S)[:, None]
        size = max(1, PREFILL_TOKENS // S)
        parts: list[tuple[Any, torch.Tensor]] = []
        for rows in torch.arange(U).split(size):
            seen = causal & (torch.arange(S) >= padding[rows, None])[:, None, :]
            cache = DynamicCache()
            parts.append((cache, self._forward(tokens[rows], positions[rows], self._masks(seen[:, None]), cache)))
        self._cache = parts[0][0]
        for at, layer in enumerate(self._cache.layers if len(parts) > 1 else ()):
            layer.keys = torch.cat([part.layers[at].keys for part, _ in parts])
            layer.values = torch.cat([part.layers[at].values for part, _ in parts])
        return torch.cat([logits for _, logits in parts])

    def step(self, tokens_B: torch.Tensor) -> None:
        """Append one token to every row and predict the next."""
        self._positions_B = self._positions_B + 1
        seen = self._cache.get_seq_length() + 1
        bias = None if self._bias is None else self._bias[..., :seen]
        mask = bias if self._window is None else self._by_layer(bias, torch.arange(seen) > seen - 1 - self._window)
        self.logits_B_V = self._forward(tokens_B[:, None], self._positions_B[:, None], mask, self._cache)

    def keep(self, slots: list[int]) -> None:
        """Go on with the rows in `slots` of the present batch only; `logits_B_V` keeps its rows too."""
        index = torch.tensor(slots)
        self.rows = [self.rows[slot] for slot in slots]
        self._positions_B = self._positions_B[index]
        self._bias = None if self._bias is None else self._bias[index]
        self.logits_B_V = self.logits_B_V[index]
        self._cache.batch_select_indices(index)

    def _forward(self, tokens: torch.Tensor, positions: torch.Tensor, bias: Any, cache: Any) -> torch.Tensor:
        output = self._model(
            input_ids=tokens,
            position_ids=positions,
            attention_mask=bias,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
            **({"prefix": self._prefix} if self._window is None else {}),
        )
        logits: torch.Tensor = output.logits[:, -1]
        return logits

    def _masks(self, seen_B_1_S_S: torch.Tensor) -> Any:
        """What the queries of a prefill see, as the model takes it."""
        full = self._additive(seen_B_1_S_S)
        if self._window is None:
            return full
        at = torch.arange(seen_B_1_S_S.shape[-1])
        return self._by_layer(full, at > at[:, None] - self._window)

    def _by_layer(self, bias: torch.Tensor | None, near: torch.Tensor) -> dict[str, torch.Tensor | None]:
        """The mask of each kind of layer; `near`, (keys) or (queries, keys), are in the window."""
        if bool(near.all()):
            return {"full_attention": bias, "sliding_attention": bias}
        window = self._additive(near if near.dim() == 2 else near[None])[None, None]
        # The lower of the two, not their sum: two lowest numbers would make an infinite one.
        return {"full_attention": bias, "sliding_attention": window if bias is None else torch.minimum(bias, window)}

    def _padding_bias(self, padding_B: torch.Tensor, length: int) -> torch.Tensor:
        """(B, 1, 1, length), hiding each row's left padding."""
        return self._additive((torch.arange(length) >= padding_B[:, None])[:, None, None])

    def _additive(self, seen: torch.Tensor) -> torch.Tensor:
        # The lowest finite number, not -inf: the queries of padding may see nothing at all, and must not make NaN.
        hidden = torch.finfo(self._model.dtype).min
        return torch.zeros(seen.shape, dtype=self._model.dtype).masked_fill(~seen, hidden)
