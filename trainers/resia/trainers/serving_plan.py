"""What serving and updating a large model takes on a number of cards: memory by count, time by its lower bound.

Serving is meant as vLLM does it: the base packed, every matrix cut over the cards (tensor parallelism), sliding layers
keeping their window alone. Times are rooflines, the least that memory and arithmetic allow at their published peaks; no
software reaches them. Pure arithmetic over `memory`; nothing here was measured on such cards.
"""

from __future__ import annotations

from typing import NamedTuple

from .memory import (
    ATTENTION,
    MXFP4,
    Shape,
    adapter_parameters,
    cache_bytes,
    layer_bytes,
    parameters,
    rank_bytes,
    weight_bytes,
)

USED = 0.9  # of a card's memory, vLLM's own default
FITS = 0.95  # of a card's memory, for a pass of the trainer: the rest is the allocator's
SET_ASIDE = 4_000_000_000  # a card: activations of a batch, CUDA graphs, the context; an assumption
FORWARD, BACKWARD = 2, 2  # operations a parameter and token; a frozen base has no gradient of its own weights


class Card(NamedTuple):
    """Published peaks of one card: bytes, bytes a second, dense bfloat16 operations a second, and bytes a second that
    it sends to the others."""

    name: str
    memory: int
    bandwidth: float
    operations: float
    link: float


# NVIDIA's data sheets, SXM: without sparsity; NVLink's 900 GB/s are of both directions together.
H100 = Card("H100", 80_000_000_000, 3.35e12, 989e12, 450e9)
H200 = Card("H200", 141_000_000_000, 4.8e12, 989e12, 450e9)


class Served(NamedTuple):
    """On each card: `weights`, `adapters` and what is `left` for keys and values, in bytes; `sequences` of the asked
    length that fit at once, 0 where the base does not."""

    weights: int
    adapters: int
    left: int
    sequences: int


def served(shape: Shape, card: Card, cards: int, tokens: int, adapters: int = 2, rank: int = 32) -> Served:
    """`adapters` LoRA slots of bfloat16 are whole on every card."""
    weights = -(-weight_bytes(shape, "mxfp4") // cards)
    slots = adapters * 2 * adapter_parameters(shape, rank, ATTENTION)
    left = max(int(card.memory * USED) - SET_ASIDE - weights - slots, 0)
    return Served(weights, slots, left, left * cards // cache_bytes(shape, tokens))


def experts_read(shape: Shape, batch: int) -> float:
    """Experts of a layer that `batch` tokens meet, each choosing `active` of them evenly: E (1 - (1 - a/E)^batch)."""
    return shape.experts * (1 - (1 - shape.active / shape.experts) ** batch)


def decode_seconds(shape: Shape, card: Card, cards: int, batch: int, tokens: int) -> float:
    """The least time of one token for each of `batch` sequences of `tokens`: everything that is read once, or every
    operation, whichever takes longer."""
    counted = parameters(shape)
    packed = counted.expert_weights * MXFP4 * experts_read(shape, batch) / shape.experts
    embeddings = 2 * shape.vocabulary * shape.hidden  # of the input a row a token is read
    read = packed + 2 * counted.rest - embeddings + batch * cache_bytes(shape, tokens)
    return max(read / (cards * card.bandwidth), batch * FORWARD * active(shape) / (cards * card.operations))


def active(shape: Shape) -> int:
    """Parameters that a token is multiplied with: its experts, and the rest without embeddings that are looked up."""
    counted = parameters(shape)
    return counted.expert_weights * shape.active // shape.experts + counted.rest - shape.vocabulary * shape.hidden


class Update(NamedTuple):
    """Least seconds of one pass over a batch, forward and backward: `computing`, and `gathering` layers from the other
    cards; they may overlap."""

    computing: float
    gathering: float


def update_seconds(shape: Shape, card: Card, cards: int, rows: int, tokens: int) -> Update:
    """One optimiser step over `rows` sequences of `tokens`, dealt out one at a time, layers spread over the cards and
    gathered twice a sequence."""
    turns = -(-rows // cards)
    computing = turns * tokens * (FORWARD + BACKWARD) * active(shape) / card.operations
    gathered = 2 * shape.layers * layer_bytes(shape) * (cards - 1) / cards
    return Update(computing, turns * gathered / card.link)


def longest(shape: Shape, card: Card, cards: int, rank: int = 32, step: int = 256) -> int:
    """The longest sequence, in multiples of `step` tokens, with which a training pass fits onto the cards; 0: none."""
    tokens = 0
    while rank_bytes(shape, rank, ATTENTION, tokens + step, cards) <= card.memory * FITS:
        tokens += step
    return tokens
