"""What the Feedback-Agent concludes: a verdict on the candidate, alarms, then exactly one DecisionMade."""

from __future__ import annotations

from typing import Literal

import msgspec

from .settings import Algorithm, Probe

Action = Literal["edit_harness", "train_weights", "sample", "stop"]


class ProbeReport(msgspec.Struct, frozen=True):
    """One probe of a candidate: mean change of the score and of the probe's own score over `items` validation items.

    `p_value` is of the hypothesis that the probe keeps the asked share of the gain; `alarmed`: the gain does not hold.
    """

    probe: Probe
    items: int
    score_change: float
    probe_change: float
    p_value: float
    alarmed: bool


class GateReport(msgspec.Struct, frozen=True):
    """The paired test behind a verdict. Effects are candidate minus champion on validation items.

    `test` is k of the run's alpha spending (0: the baseline, nothing to compare with), `alpha` that test's level,
    interval by BCa at 1 - 2 alpha, `retention_low` the lower bound of the reward change on what the champion solved
    (None when it solved nothing). `rule` is the published rule and its version. `probes` are those that were made, but
    for the gap, which is no paired test.
    """

    test: int
    alpha: float
    items: int
    p_value: float
    effect: float
    ci_low: float
    ci_high: float
    method: str
    retention_low: float | None
    reason: str
    rule: str = "gate/1"
    probes: tuple[ProbeReport, ...] = ()


class CandidateAccepted(msgspec.Struct, frozen=True):
    evaluation: str
    champion_evaluation: str | None
    gate: GateReport


class CandidateRejected(msgspec.Struct, frozen=True):
    evaluation: str
    champion_evaluation: str | None
    gate: GateReport


class CandidateUndecided(msgspec.Struct, frozen=True):
    evaluation: str
    champion_evaluation: str | None
    gate: GateReport


class ProbeAlarmed(msgspec.Struct, frozen=True):
    """A Goodhart probe did not follow the score: `score_change` is up, `probe_change` is not or by far less."""

    evaluation: str
    probe: str
    score_change: float
    probe_change: float
    detail: str


class Landscape(msgspec.Struct, frozen=True):
    """Features of the reward landscape (algorithms.md 3) over N items x G rollouts; None: undefined here."""

    items: int
    group_size: int
    reward_mean: float
    reward_density: float
    horizon: float
    p_pos: float
    successes: int
    informative: float
    forecast: float
    distinct_rewards: float  # median number of distinct rewards in a group
    clustering: float | None
    skew: float | None
    tail: float | None
    rollout_cost: float
    afford: float
    regression_risk: float
    format_failures: float
    headroom: float
    ess: float
    kl_per_token: float


class DecisionMade(msgspec.Struct, frozen=True):
    """The one decision of iteration `iteration` (from 1), with every input of the rule that took it.

    `rule` names the published rule and its version; `masks` gives for each masked action or algorithm the reason;
    `merkle_root` is over the events in (root_from, root_to].
    """

    iteration: int
    action: Action
    reason: str
    rule: str
    algorithm: Algorithm | None
    features: Landscape | None
    masks: dict[str, str]
    scores: dict[str, float]
    propensities: dict[str, float]
    failed_edits: int
    failed_trainings: int
    merkle_root: str
    root_from: int
    root_to: int
