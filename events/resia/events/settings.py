"""What a run is asked to do: every threshold and budget that any rule reads, in one frozen value.

It travels whole in the run's first event, so a rule never reads a file, an environment variable or a default
of a later version. Field ranges are enforced on decoding. Each layer reads its own part.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from .ids import sha256

Split = Literal["search", "validation", "test"]
Mode = Literal["H", "W", "W+H", "random", "best-of-n"]
Proposer = Literal["operators", "llm"]
Algorithm = Literal["ppo_gae", "grpo", "entropic", "reinforce_kl", "best_of_n", "dpo"]
ALGORITHMS: tuple[Algorithm, ...] = ("ppo_gae", "grpo", "entropic", "reinforce_kl", "best_of_n", "dpo")
# These learn from recorded rollouts alone; the others need rollouts of the policy that they change.
OFF_POLICY: frozenset[Algorithm] = frozenset({"best_of_n", "dpo"})
# A Goodhart probe of a candidate; the first two sample again, the others read what is there (docs/gate.md).
Perturbation = Literal["paraphrase", "shuffle"]
Probe = Literal["paraphrase", "shuffle", "verifier", "search-validation-gap"]
PERTURBATIONS: tuple[Perturbation, ...] = ("paraphrase", "shuffle")
MODES: tuple[Mode, ...] = ("H", "W", "W+H", "random", "best-of-n")
# What a search without learning reaches at the same budget of tokens (docs/budgets.md).
BASELINES: frozenset[Mode] = frozenset({"random", "best-of-n"})

Count = Annotated[int, Meta(ge=0)]
Positive = Annotated[int, Meta(ge=1)]
Share = Annotated[float, Meta(ge=0.0, le=1.0)]
Rate = Annotated[float, Meta(gt=0.0)]
NotNegative = Annotated[float, Meta(ge=0.0)]


class LoopSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When to edit, train or stop (algorithms.md 4). No rule reads a clock: that the seconds are spent is a fact first.

    Seconds are those in which a session follows the run; money is tokens at the run's own prices. None: no such limit.
    """

    mode: Mode = "W+H"
    max_iterations: Positive = 12
    patience_h: Positive = 3
    patience_w: Positive = 2
    token_budget: Positive = 5_000_000
    seconds_budget: Rate | None = None
    money_budget: Rate | None = None


class SamplingSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a candidate is measured: G rollouts a search item, one greedy rollout a validation or test item.

    `retries`: how often a slot of an evaluation that infrastructure lost is asked for again.
    """

    group_size: Annotated[int, Meta(ge=2, le=256)] = 8
    shard_size: Annotated[int, Meta(ge=1, le=500)] = 32
    retries: Annotated[int, Meta(ge=0, le=8)] = 1


class ProbeSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Goodhart probes (docs/gate.md): which are `on`, and an alarm of which keeps a candidate from being crowned.

    A probe alarms when it `keeps` less than this share of the score's gain, by more than `bound` of a reward and beyond
    chance. A log from before probes has no run that offers any, so nothing in it changes by these defaults.
    """

    on: tuple[Probe, ...] = ("paraphrase", "shuffle", "verifier", "search-validation-gap")
    block: tuple[Probe, ...] = ("paraphrase", "shuffle", "verifier")
    keeps: Share = 0.5
    bound: Share = 0.0


class GateSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The paired test that a candidate must pass (algorithms.md 6).

    `retention`: which rollouts say whether the solved stays solved. "greedy", rule gate/1 and what a log without the
    field means: the greedy ones of canaries and solved validation items. "sampled", rule gate/2 and that of every new
    run: the sampled ones of the canaries, which had no part in choosing them.
    """

    alpha: Annotated[float, Meta(gt=0.0, lt=1.0)] = 0.05
    min_items: Positive = 12
    canaries: Positive = 8
    retention_delta: Share = 0.1
    retention: Literal["greedy", "sampled"] = "greedy"
    gap_alarm: Share = 0.1
    probes: ProbeSettings = ProbeSettings()


class SelectionSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Thresholds of the published choice of a lever and an algorithm (algorithms.md 4 and 5)."""

    format_failures_doubles_patience: Share = 0.3
    min_successes: Positive = 8
    min_group: Positive = 4
    min_pairs: Positive = 64
    min_ess: Share = 0.5
    max_kl_per_token: Rate = 0.01
    sparse_p_pos: Share = 0.05
    sparse_informative: Share = 0.15
    skew: float = 1.0
    tail: float = 3.0
    distinct_rewards: Positive = 3
    regression_risk: Share = 0.3
    dense_reward: Share = 0.3
    long_horizon: Positive = 3
    grpo_informative: Share = 0.15
    grpo_afford: Rate = 4.0


class TrainingSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One weight update: rank, rounds, steps a round, step size and the constants of the objectives."""

    rank: Positive = 32
    lora_alpha: Positive = 64
    rounds: Positive = 8
    steps_per_round: Positive = 1
    learning_rate: Rate = 3e-4
    kl_target: Rate | None = None  # each step is scaled to move the policy so far, in nats a completion token
    checkpoint_every: Count = 5  # steps of a round between two checkpoints; 0: none. The last step needs none
    groups: Positive = 2
    group_size: Annotated[int, Meta(ge=2, le=256)] = 16
    max_grad_norm: Rate = 1.0
    clip_epsilon: Rate = 0.2
    max_ratio: Annotated[float, Meta(gt=1.0)] = 10.0  # importance ratios are cut off here
    advantage_epsilon: Rate = 1e-4
    bon_top: Positive = 16
    bon_steps: Positive = 20
    bon_rounds: Positive = 4  # the steps are cut into as many rounds, so a crash costs one round
    micro_tokens: Positive = 1536  # a pass; 500 took 0.7 GB at the peak, of a 135M model in float32
    dr_grpo: bool = False
    ref: Literal["base", "champion"] = "base"  # the policy that DPO and REINFORCE+KL measure from
    kl_alpha: NotNegative = 0.05
    gamma: Share = 1.0
    gae_lambda: Share = 0.95
    value_coefficient: NotNegative = 0.1
    entropic_kl: Rate = math.log(2.0)
    entropic_beta_max: Rate = 1e6
    entropic_clip: Rate = 5.0
    dpo_beta: Rate = 0.1
    dpo_margin: NotNegative = 0.0  # a pair's rewards differ by more
    dpo_pairs: Positive = 64
    dpo_steps: Positive = 8
    dpo_rounds: Positive = 4


class EngineSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which model answers, and what its tokens depend on beside the seed.

    Of a model that thinks before it answers: `thinking_tokens` are its new tokens beside the harness's own limit, and
    `effort` is how hard it is told to think, empty for its own default. Kind vllm: the servers at `urls`, replicas of
    one model, answer instead of this process, and what they say is compared with the trainer's own log-probabilities.
    The bounds on the mean difference, one a precision, are in nats a token (docs/engines.md).
    """

    kind: Literal["transformers", "openai", "vllm"] = "transformers"
    model: str = "smollm2-135m-instruct"
    dtype: Literal["float32", "bfloat16"] = "float32"
    threads: Positive = 2
    thinking_tokens: Annotated[int, Meta(ge=0, le=100_000)] = 0
    effort: Literal["", "low", "medium", "high"] = ""
    urls: tuple[str, ...] = ()
    drift_bound: Rate = 0.001
    drift_bound_bfloat16: Rate = 0.1

    @property
    def drift_limit(self) -> float:
        """The bound of this precision."""
        return self.drift_bound if self.dtype == "float32" else self.drift_bound_bfloat16


class LlmSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The endpoint that the proposer `llm` asks for drafts and edits.

    `key_env` names the environment variable that holds the key, empty for none; the key itself stands nowhere.
    `prompt_tokens` bounds what the model is shown, `max_tokens` a reply, under the name `token_field` that the endpoint
    knows. `tries` replies are asked for until one is valid; a request that fails is sent again `retries` times.
    `profile` names where the fields came from that no person gave.
    """

    profile: str = ""
    base_url: str = ""
    model: str = ""
    key_env: str = ""
    temperature: Annotated[float, Meta(ge=0.0, le=2.0)] = 0.7
    max_tokens: Positive = 4096
    token_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    prompt_tokens: Annotated[int, Meta(ge=500)] = 16_000
    tries: Annotated[int, Meta(ge=1, le=10)] = 3
    timeout_s: Rate = 120.0
    retries: Annotated[int, Meta(ge=0, le=20)] = 4


class EndpointSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The endpoint that rollouts are sampled from with `engine.kind` openai; `engine.model` is its name of the model.

    `profile` names where the fields came from that no person gave (docs/endpoints.md); all of them stand here, so the
    log needs no file. `key_env` and `token_field` are as in LlmSettings; the key goes into the header `key_header`.
    `seed_field`, `stops` (how many stop strings it takes) and `blank_stops` (of white space alone), `temperature` and
    `max_temperature`, `logprobs` ("ids": with token ids, as vLLM gives them) and `response_format` say what it knows:
    what it does not is not sent. `answer` "json" asks for the answer as an object. `concurrency` requests go at once;
    the limits are of one process, 0 for none. `extra` goes into each request as it is.
    """

    profile: str = ""
    base_url: str = ""
    key_env: str = ""
    key_header: Literal["authorization", "api-key"] = "authorization"
    token_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    seed_field: Literal["seed", "random_seed", "none"] = "seed"
    stops: Count = 4
    blank_stops: bool = True
    temperature: bool = True
    max_temperature: Annotated[float, Meta(gt=0.0, le=2.0)] = 2.0
    logprobs: Literal["none", "values", "ids"] = "none"
    response_format: Literal["none", "json_object", "json_schema"] = "none"
    answer: Literal["text", "json"] = "text"
    concurrency: Annotated[int, Meta(ge=1, le=256)] = 8
    requests_per_minute: Count = 0
    tokens_per_minute: Count = 0
    timeout_s: Rate = 120.0
    retries: Annotated[int, Meta(ge=0, le=20)] = 4
    extra: dict[str, str | int | float | bool] = {}


class Price(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a million tokens of one model cost."""

    prompt: NotNegative = 0.0
    completion: NotNegative = 0.0
    training: NotNegative = 0.0


class PriceSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Prices by the name of a model, as `engine.model` or a proposer names it; one that is not here costs nothing."""

    currency: str = "USD"
    models: dict[str, Price] = {}


class RunSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole request. `digest()` identifies it."""

    domain: str = "denoising"
    domain_options: dict[str, str | int | float | bool] = {}
    seed: Count = 0
    proposer: Proposer = "operators"
    algorithm: Algorithm | None = None  # None: the rules choose; a name restricts the feasible set to it
    loop: LoopSettings = LoopSettings()
    sampling: SamplingSettings = SamplingSettings()
    gate: GateSettings = GateSettings()
    selection: SelectionSettings = SelectionSettings()
    training: TrainingSettings = TrainingSettings()
    engine: EngineSettings = EngineSettings()
    llm: LlmSettings = LlmSettings()
    endpoint: EndpointSettings = EndpointSettings()
    price: PriceSettings = PriceSettings()

    def digest(self) -> str:
        """SHA-256 over the canonical JSON of every field, defaults included."""
        return sha256(msgspec.json.encode(self, order="deterministic"))
