"""The base's hidden states at the tokens of a micro-batch: shared prefixes run once, activations made again.

A layout is one sequence of segments, so the model is called once and only attention has to know: it is registered with
transformers under a name of its own, and calls without a layout go to `sdpa` as they are. Between the forward and the
backward pass only the input of every decoder layer is kept, and the layer is computed again with the same
operations, hence the same bits. Models whose attention is not plain causal (sliding windows, sinks) run padded, with
the shared prefix in a cache. Collaborators: layout arranges, policy asks. Knows nothing of adapters or losses.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.modeling_layers import GradientCheckpointingLayer

from resia.events.errors import TrainerError

from .layout import Segment, arrange
from .packing import Padded

ATTENTION = "resia_segments"


class Segments:
    """A layout on its way to attention. `masks` are lower-right causal, (length, past + length), True where seen;
    `seen` says that attention got it."""

    def __init__(self, segments: tuple[Segment, ...], device: torch.device) -> None:
        self.segments = segments
        self.masks = [_causal(one, device) for one in segments]
        self.seen = False


class Trunk:
    """Runs `model`, a transformers causal language model, which it prepares in place."""

    def __init__(self, model: Any) -> None:
        self._body = model.base_model
        self.shares = _is_plain(model)
        if self.shares:
            AttentionInterface.register(ATTENTION, attend)
            AttentionMaskInterface.register(ATTENTION, sdpa_mask)
            model.set_attn_implementation(ATTENTION)
            for layer in self._body.modules():
                if isinstance(layer, GradientCheckpointingLayer):
                    layer.forward = partial(_made_again, layer.forward)

    def hidden(self, padded: Padded, device: torch.device) -> torch.Tensor:
        """Last hidden states of every suffix, (B, S, H), with gradient where the adapter has one; anything at pads.
        Raises TrainerError when the model does not hand the layout to its attention."""
        return self._shared(padded, device) if self.shares else self._cached(padded, device)

    def _shared(self, padded: Padded, device: torch.device) -> torch.Tensor:
        layout = arrange(padded)
        segments = Segments(layout.segments, device)
        hidden_1_N_H = self._body(
            input_ids=torch.as_tensor(layout.ids_N, device=device)[None],
            position_ids=torch.as_tensor(layout.positions_N, device=device)[None],
            attention_mask=torch.ones((1, 1, 1, 1), dtype=torch.bool, device=device),  # ours are in the segments
            use_cache=False,
            segments=segments,
        ).last_hidden_state
        if not segments.seen:
            raise TrainerError(f"{type(self._body).__name__} does not pass its arguments to attention: not supported")
        hidden_B_S_H: torch.Tensor = hidden_1_N_H[0][torch.as_tensor(layout.place_B_S, device=device)]
        return hidden_B_S_H

    def _cached(self, padded: Padded, device: torch.device) -> torch.Tensor:
        """The shared prefix once, its cache repeated for the rows and connected to the graph."""
        ids_B_S, cache = torch.as_tensor(padded.inputs_B_S, device=device), None
        if len(padded.prefix_P):
            prefix_1_P = torch.as_tensor(padded.prefix_P, device=device)[None]
            cache = self._body(input_ids=prefix_1_P, use_cache=True).past_key_values
            cache.batch_repeat_interleave(len(ids_B_S))
        output = self._body(input_ids=ids_B_S, past_key_values=cache, use_cache=cache is not None)
        hidden_B_S_H: torch.Tensor = output.last_hidden_state
        return hidden_B_S_H


def _is_plain(model: Any) -> bool:
    """Whether every layer is full causal attention computed by `sdpa` with the layers' arguments handed on."""
    config = model.config
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    return (
        getattr(model, "_supports_attention_backend", False)
        and config._attn_implementation in ("sdpa", ATTENTION)
        and kinds == {"full_attention"}
        and not getattr(config, "sliding_window", None)
    )


def _made_again(forward: Callable[..., Any], hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    """A decoder layer whose inner activations are not kept; with a cache, which it would fill twice, as it is."""
    if not torch.is_grad_enabled() or kwargs.get("past_key_values") is not None:
        return forward(hidden, *args, **kwargs)
    return checkpoint(partial(forward, **kwargs), hidden, *args, use_reentrant=False, preserve_rng_state=False)


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    segments: Segments | None = None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention (1, N, heads, head size) of queries (1, heads, N, head size) segment by segment; `sdpa`'s without
    `segments`."""
    if segments is None:
        found: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
        return found
    segments.seen = True
    sizes = [one.rows * one.length for one in segments.segments]
    parts = zip(*(tensor[0].split(sizes, dim=1) for tensor in (query, key, value)), strict=True)
    pasts: list[tuple[torch.Tensor, torch.Tensor] | None] = []  # keys and values (1, heads, past + length, head size)
    out: list[torch.Tensor] = []
    for one, mask, part in zip(segments.segments, segments.masks, parts, strict=True):
        queries, keys, values = (_rows(tensor, one.rows) for tensor in part)
        if one.parent >= 0:
            past = pasts[one.parent]
            assert past is not None  # a parent has one row
            keys, values = (
                torch.cat([before.expand(one.rows, -1, -1, -1), own], dim=2)
                for before, own in zip(past, (keys, values), strict=True)
            )
        pasts.append((keys, values) if one.rows == 1 else None)
        # With a mask only the CPU's fast kernel takes fewer heads of keys than of queries.
        grouped = mask is None or queries.device.type == "cpu"
        if not grouped:
            keys, values = (repeat_kv(tensor, len(queries[0]) // len(keys[0])) for tensor in (keys, values))
        attended = scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=grouped
        )
        out.append(attended.transpose(1, 2).flatten(0, 1))
    return torch.cat(out)[None], None


def _rows(part: torch.Tensor, rows: int) -> torch.Tensor:
    """(heads, rows x length, size) as (rows, heads, length, size)."""
    return part.unflatten(1, (rows, -1)).transpose(0, 1)


def _causal(one: Segment, device: torch.device) -> torch.Tensor | None:
    if not one.past:
        return None
    seen = torch.ones((one.length, one.past + one.length), dtype=torch.bool, device=device)
    return seen.tril(one.past)
