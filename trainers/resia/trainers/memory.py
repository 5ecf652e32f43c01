"""How much memory a LoRA update takes, by arithmetic from a model's config.json: no model is loaded, no torch needed.

Counts are exact for the architectures that `shape_of` knows (checked against the models themselves on the meta device
and against PEFT); bytes are those of the tensors, without what an allocator or a driver adds.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal, NamedTuple

from resia.events.errors import UsageError

Dtype = Literal["float32", "bfloat16", "mxfp4"]
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
DENSE = ("gate_proj", "up_proj", "down_proj")
# PEFT reaches the experts' matrices, which are 3-D parameters and no layers, by `target_parameters` alone.
EXPERTS = ("experts.gate_up_proj", "experts.down_proj")
FLOAT32 = 4
# MXFP4 (OCP Microscaling Formats 1.0): 4 bits a value and one 8-bit scale for every 32 values.
MXFP4 = 0.5 + 1 / 32


class Shape(NamedTuple):
    """A decoder-only transformer. `experts` is 0 for a dense one; `window` tokens are what a sliding layer looks back,
    `sliding` the number of such layers; `biases` on the attention's projections; `sinks` one a head."""

    layers: int
    hidden: int
    intermediate: int
    vocabulary: int
    heads: int
    kv_heads: int
    head_dim: int
    tied: bool = False
    biases: bool = False
    experts: int = 0
    active: int = 0
    window: int = 0
    sliding: int = 0

    @property
    def linear(self) -> dict[str, tuple[int, int]]:
        """(in, out) of each matrix of a layer that LoRA can adapt, by name."""
        heads, kv_heads = self.heads * self.head_dim, self.kv_heads * self.head_dim
        found = {
            "q_proj": (self.hidden, heads),
            "k_proj": (self.hidden, kv_heads),
            "v_proj": (self.hidden, kv_heads),
            "o_proj": (heads, self.hidden),
        }
        if self.experts:
            found["experts.gate_up_proj"] = (self.hidden, 2 * self.intermediate)
            found["experts.down_proj"] = (self.intermediate, self.hidden)
        else:
            found["gate_proj"] = found["up_proj"] = (self.hidden, self.intermediate)
            found["down_proj"] = (self.intermediate, self.hidden)
        return found


def shape_of(config: Mapping[str, Any]) -> Shape:
    """The shape that a config.json of model_type llama or gpt_oss names; raises UsageError for another, and
    where a size is missing."""
    kind = config.get("model_type")
    if kind not in ("llama", "gpt_oss"):
        raise UsageError(f"memory is not known for model_type '{kind}': only for llama and gpt_oss")
    try:
        return _shape(config, moe=kind == "gpt_oss")
    except KeyError as cause:
        raise UsageError(f"the model's config has no {cause}, so its memory is not known") from None


def _shape(config: Mapping[str, Any], *, moe: bool) -> Shape:
    heads = config["num_attention_heads"]
    return Shape(
        layers=config["num_hidden_layers"],
        hidden=config["hidden_size"],
        intermediate=config["intermediate_size"],
        vocabulary=config["vocab_size"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        tied=bool(config.get("tie_word_embeddings", False)),
        biases=moe,
        experts=config.get("num_local_experts", 0) if moe else 0,
        active=config.get("num_experts_per_tok", 0) if moe else 0,
        window=config.get("sliding_window") or 0 if moe else 0,
        sliding=list(config.get("layer_types") or ()).count("sliding_attention") if moe else 0,
    )


class Parameters(NamedTuple):
    """Of a whole model. `expert_weights` are the experts' matrices, all that MXFP4 packs; `rest` is everything else:
    attention, norms, router, experts' biases, embeddings and head."""

    expert_weights: int
    rest: int

    @property
    def total(self) -> int:
        return self.expert_weights + self.rest


def parameters(shape: Shape) -> Parameters:
    """Parameter counts."""
    sizes = shape.linear
    attention = sum(sizes[name][0] * sizes[name][1] for name in ATTENTION) + 2 * shape.hidden
    if shape.biases:
        attention += sum(sizes[name][1] for name in ATTENTION)
    experts = 0
    if shape.experts:
        attention += shape.heads  # sinks
        matrices = [sizes[name] for name in EXPERTS]
        experts = shape.experts * sum(i * o for i, o in matrices)
        other = shape.experts * (sum(o for _, o in matrices) + shape.hidden + 1)  # biases and router
    else:
        other = sum(sizes[name][0] * sizes[name][1] for name in DENSE)
    embeddings = shape.vocabulary * shape.hidden * (1 if shape.tied else 2)
    return Parameters(shape.layers * experts, shape.layers * (attention + other) + embeddings + shape.hidden)


def active_parameters(shape: Shape) -> int:
    """Parameters that one token goes through: of the experts those that the router chooses."""
    counted = parameters(shape)
    if not shape.experts:
        return counted.total
    idle = shape.layers * (shape.experts - shape.active) * sum(o for _, o in (shape.linear[n] for n in EXPERTS))
    return counted.rest - idle + counted.expert_weights // shape.experts * shape.active


def adapter_parameters(shape: Shape, rank: int, targets: Collection[str]) -> int:
    """LoRA's A (rank x in) and B (out x rank) for every target of every layer, once for each expert. Raises UsageError
    for a target that the model does not have."""
    each = 0
    for name in targets:
        if name not in shape.linear:
            raise UsageError(f"there is no {name} to adapt: this model has {', '.join(shape.linear)}")
        into, out = shape.linear[name]
        each += rank * (into + out) * (shape.experts if name in EXPERTS else 1)
    return shape.layers * each


def weight_bytes(shape: Shape, dtype: Dtype) -> int:
    """The frozen base: under mxfp4 the experts' matrices packed and everything else in bfloat16."""
    counted = parameters(shape)
    if dtype == "mxfp4":
        return int(counted.expert_weights * MXFP4) + 2 * counted.rest
    return counted.total * (FLOAT32 if dtype == "float32" else 2)


def layer_bytes(shape: Shape) -> int:
    """One decoder layer in bfloat16, which a rank holds whole while it uses it."""
    outside = shape.vocabulary * shape.hidden * (1 if shape.tied else 2) + shape.hidden
    return 2 * (parameters(shape).total - outside) // shape.layers


def spread_bytes(shape: Shape, ranks: int) -> int:
    """What each of `ranks` holds of a bfloat16 base whose layers are spread evenly and whose embeddings are not."""
    layers = shape.layers * layer_bytes(shape)
    return weight_bytes(shape, "bfloat16") - layers + -(-layers // ranks)


def cache_bytes(shape: Shape, tokens: int, width: int = 2) -> int:
    """Keys and values of one sequence of `tokens`, `width` bytes each, as transformers keeps them: in a sliding layer
    those that the next token still sees."""
    a_layer = 2 * shape.kv_heads * shape.head_dim * width
    seen = min(tokens, max(shape.window - 1, 0))
    return a_layer * ((shape.layers - shape.sliding) * tokens + shape.sliding * seen)


def activation_bytes(shape: Shape, tokens: int, rank: int, *, checkpointed: bool) -> int:
    """What autograd keeps of one sequence of `tokens` in the layers of a bfloat16 mixture of experts with a float32
    adapter on its attention; with `checkpointed` the input of every layer and all of the one that is computed again.

    Not derived but counted: the coefficients are those of transformers' own attention (whose scores grow with the
    square of `tokens`) and experts, found with torch's saved-tensor hooks on small models, where the formula holds
    within 2%. Fused kernels keep less. Raises UsageError for a dense model.
    """
    if not shape.experts:
        raise UsageError("activations are counted for mixtures of experts only")
    expert = 12 * shape.intermediate + 2 * shape.hidden + 36
    linear = 20 * shape.hidden + shape.active * expert + 10.625 * shape.heads * shape.head_dim + 16 * rank
    layer = tokens * (linear + 2 * shape.heads * tokens)
    if checkpointed:
        return int(layer) + shape.layers * tokens * shape.hidden * 2
    return int(shape.layers * layer)


class Memory(NamedTuple):
    """Bytes on one device that holds the whole model. `trained` is the float32 adapter with its gradient and AdamW's
    two moments; `activations` are of the layers, without the output layer's logits."""

    weights: int
    trained: int
    activations: int

    @property
    def total(self) -> int:
        return sum(self)


def memory_of(
    shape: Shape, rank: int, targets: Collection[str], tokens: int, dtype: Dtype = "bfloat16", *, checkpointed: bool
) -> Memory:
    """An update on micro-batches of one sequence of `tokens`."""
    trained = 4 * FLOAT32 * adapter_parameters(shape, rank, targets)
    activations = activation_bytes(shape, tokens, rank, checkpointed=checkpointed)
    return Memory(weight_bytes(shape, dtype), trained, activations)


def rank_bytes(shape: Shape, rank: int, targets: Collection[str], tokens: int, ranks: int) -> int:
    """What each of `ranks` needs for micro-batches of one sequence of `tokens`, activations kept: of several its share
    of the base, the layer in use and the next one, the whole adapter with gradient and moments."""
    whole = memory_of(shape, rank, targets, tokens, checkpointed=False)
    if ranks == 1:
        return whole.total
    return whole.total - whole.weights + spread_bytes(shape, ranks) + 2 * layer_bytes(shape)


def layer_copy_bytes(shape: Shape, width: int = 2) -> int:
    """The experts' matrices of one layer as plain numbers: what PEFT makes anew in every pass where it adapts them."""
    return shape.experts * width * sum(i * o for i, o in (shape.linear[name] for name in EXPERTS))
