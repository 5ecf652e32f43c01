"""Which lever to pull and which objective to train: two published, versioned, pure rules (docs/selection.md).

In: a `Landscape`, the thresholds of the run and a few counts. Out: a `Choice` and a `Lever`, each with the id of the
rule that fired, the reason in words with the numbers, and why everything else was masked. No state, no randomness:
the propensity of what is chosen is 1. Knows nothing of the log, of how an edit is made or how a policy is trained.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, NamedTuple

from resia.events import ALGORITHMS, Action, Algorithm, Landscape, LoopSettings, SelectionSettings
from resia.events.settings import OFF_POLICY

from .landscape import expected_informative

Objective = Literal["mean", "max"]

ALGORITHM_RULE = "select-algorithm/1"
LEVER_RULE = "select-lever/1"
FALLBACK: tuple[Algorithm, ...] = ("grpo", "best_of_n", "entropic", "ppo_gae", "dpo")
GRPO_FORECAST = 0.3  # share of informative groups that GRPO's group size is raised to reach
MAX_GROUP = 64  # group size beyond which more rollouts of one item are not worth their tokens
REINFORCE_GROUP = 2  # the smallest group with a leave-one-out baseline


class Choice(NamedTuple):
    """An algorithm, or None when nothing feasible is left.

    `masks` gives each infeasible algorithm's reason; `scores` is 1 for each other one whose rule matched and 0
    where it did not; `propensities` is the probability with which each of them was drawn; `group_size` is the
    rollouts an item that the rule asks for (None: as the run's settings say).
    """

    algorithm: Algorithm | None
    rule: str
    masks: dict[str, str]
    scores: dict[str, float]
    propensities: dict[str, float]
    reason: str
    group_size: int | None


class Lever(NamedTuple):
    """The one action of an iteration; `masks` gives the reason for each action that was not available."""

    action: Action
    rule: str
    reason: str
    masks: dict[str, str]


class _Match(NamedTuple):
    """A published rule as it stands on this landscape; `reason` is empty where it does not match."""

    rule: str
    algorithm: Algorithm
    reason: str


def choose_algorithm(
    landscape: Landscape,
    settings: SelectionSettings,
    *,
    built: Collection[Algorithm],
    ordinal: bool,
    objective: Objective,
    failed: Collection[Algorithm],
    rollouts_fresh: bool,
    requested: Algorithm | None,
) -> Choice:
    """Mask the infeasible, then take the first matching rule whose algorithm is not masked.

    `failed` are the algorithms that gave no accepted candidate on this champion; `rollouts_fresh` says that the
    rollouts to train on were sampled after that, by the present champion. `requested` leaves only that one.
    """
    masks = _masks(landscape, settings, built, failed, rollouts_fresh, requested)
    rules = _rules(landscape, settings, ordinal, objective)
    matched = {match.algorithm for match in rules if match.reason}
    feasible: list[str] = [name for name in ALGORITHMS if name not in masks]
    algorithm, rule, reason = _first(rules, masks, landscape, settings, requested)
    return Choice(
        algorithm=algorithm,
        rule=f"{ALGORITHM_RULE}:{rule}",
        masks=masks,
        scores={name: float(name in matched) for name in feasible},
        propensities={name: float(name == algorithm) for name in feasible},
        reason=reason,
        group_size=group_size(algorithm, landscape),
    )


def choose_lever(
    loop: LoopSettings,
    settings: SelectionSettings,
    *,
    failed_edits: int,
    failed_trainings: int,
    untried_edit: bool,
    format_failures: float,
    data_suffice: bool,
    choice: Choice,
    iterations_left: int,
    tokens_left: int,
    overdrawn: str = "",
) -> Lever:
    """Edit while patience lasts, then train while patience and data last, then stop; a spent budget stops first.

    Failures are counted since the champion last changed. `choice` is what `choose_algorithm` would train. `overdrawn`
    says why the money or the time is spent, empty where it is not.
    """
    spent = _spent(iterations_left, tokens_left) or overdrawn
    if spent:
        return Lever("stop", f"{LEVER_RULE}:0-budget", spent, {"edit_harness": spent, "train_weights": spent})
    doubled = format_failures >= settings.format_failures_doubles_patience
    patience = loop.patience_h * (2 if doubled else 1)
    masks: dict[str, str] = {}
    if no_edit := _no_edit(loop, patience, failed_edits, untried_edit):
        masks["edit_harness"] = no_edit
    if no_training := _no_training(loop, failed_trainings, data_suffice, choice):
        masks["train_weights"] = no_training
    if not no_edit:
        why = f"{failed_edits} failed edits of {patience} allowed, format failures {format_failures:.3g}"
        return Lever("edit_harness", f"{LEVER_RULE}:1-edit-harness", why, masks)
    if not no_training:
        why = f"{no_edit}; {failed_trainings} failed trainings of {loop.patience_w} allowed"
        return Lever("train_weights", f"{LEVER_RULE}:2-train-weights", why, masks)
    return Lever("stop", f"{LEVER_RULE}:3-stop", f"no edit: {no_edit}; no training: {no_training}", masks)


def data_suffice(landscape: Landscape, settings: SelectionSettings) -> bool:
    """Whether anything can be learned from: some group with unequal rewards, or enough successes to copy."""
    return landscape.informative > 0 or landscape.successes >= settings.min_successes


def _masks(
    landscape: Landscape,
    settings: SelectionSettings,
    built: Collection[Algorithm],
    failed: Collection[Algorithm],
    rollouts_fresh: bool,
    requested: Algorithm | None,
) -> dict[str, str]:
    """The first reason against each infeasible algorithm."""
    stale = "" if rollouts_fresh else _stale(landscape, settings)
    masks: dict[str, str] = {}
    for name in ALGORITHMS:
        reasons = (
            "" if name in built else "not built",
            "" if requested in (None, name) else f"the run asks for {requested}",
            "failed on this champion, and the rollouts are the same" if name in failed and not rollouts_fresh else "",
            stale if name not in OFF_POLICY else "",
            _unfit(name, landscape, settings),
        )
        if reason := next(filter(None, reasons), ""):
            masks[name] = reason
    return masks


def _stale(landscape: Landscape, settings: SelectionSettings) -> str:
    if landscape.ess < settings.min_ess:
        return f"needs fresh rollouts: ess {landscape.ess:.3g} < {settings.min_ess:g}"
    if landscape.kl_per_token > settings.max_kl_per_token:
        return f"needs fresh rollouts: KL a token {landscape.kl_per_token:.3g} > {settings.max_kl_per_token:g}"
    return ""


def _unfit(name: Algorithm, x: Landscape, settings: SelectionSettings) -> str:
    """Why the data cannot feed `name`; empty where it can."""
    smallest = {"grpo": settings.min_group, "entropic": settings.min_group, "reinforce_kl": REINFORCE_GROUP}.get(name)
    if smallest is not None and x.group_size < smallest:
        return f"needs {smallest} rollouts an item, has {x.group_size}"
    if smallest is not None and x.informative <= 0:
        return "every group is tied, so every advantage is 0"
    if name == "best_of_n" and x.successes < settings.min_successes:
        return f"needs {settings.min_successes} successes, has {x.successes}"
    if name == "dpo" and sure_pairs(x) < settings.min_pairs:
        return f"needs {settings.min_pairs} pairs, is sure of {sure_pairs(x)}"
    return ""


def sure_pairs(landscape: Landscape) -> int:
    """Preference pairs that are certain to exist: a group that is not tied has at least G - 1 unequal pairs."""
    return round(landscape.informative * landscape.items) * max(landscape.group_size - 1, 0)


def _first(
    rules: tuple[_Match, ...],
    masks: dict[str, str],
    landscape: Landscape,
    settings: SelectionSettings,
    requested: Algorithm | None,
) -> tuple[Algorithm | None, str, str]:
    """(algorithm, rule, reason) of the first rule that matches and is not masked."""
    if requested is not None and requested not in masks:
        return requested, "0-requested", "the run asks for it"
    for match in rules:
        if match.reason and match.algorithm not in masks:
            return match.algorithm, match.rule, match.reason
    if landscape.successes >= settings.min_successes:
        for name in FALLBACK:
            if name not in masks:
                why = f"REINFORCE+KL is masked ({masks['reinforce_kl']}); {landscape.successes} successes"
                return name, "8-fallback", why
    left = ", ".join(name for name in ALGORITHMS if name not in masks) or "none"
    why = f"feasible: {left}; successes {landscape.successes}, informative {landscape.informative:.3g}"
    return None, "9-none", f"no algorithm to train with ({why})"


def group_size(algorithm: Algorithm | None, landscape: Landscape) -> int | None:
    """Rollouts an item that the rule asks for."""
    if algorithm == "reinforce_kl":
        return REINFORCE_GROUP
    if algorithm != "grpo":
        return None
    measured = landscape.group_size
    if max(landscape.forecast, landscape.informative) >= GRPO_FORECAST:
        return measured
    size = measured * 2
    while size <= MAX_GROUP:
        if expected_informative(landscape.p_pos, landscape.clustering, size) >= GRPO_FORECAST:
            return size
        size *= 2
    # Out of reach: where outcomes cluster by item, more rollouts of the same items stay tied.
    return measured


def _rules(x: Landscape, s: SelectionSettings, ordinal: bool, objective: Objective) -> tuple[_Match, ...]:
    """The published rules in their order."""
    return (
        _Match("1-dpo", "dpo", "the reward is ordinal" if ordinal else ""),
        _Match("2-best-of-n", "best_of_n", _sparse(x, s)),
        _Match("3-entropic", "entropic", _upper_tail(x, s, objective)),
        _Match("4-reinforce-kl", "reinforce_kl", _risky(x, s)),
        _Match("5-ppo-gae", "ppo_gae", _dense(x, s)),
        _Match("6-grpo", "grpo", _contrast(x, s)),
        _Match("7-reinforce-kl", "reinforce_kl", "no other rule applies"),
    )


def _sparse(x: Landscape, s: SelectionSettings) -> str:
    matches = x.p_pos < s.sparse_p_pos and x.informative < s.sparse_informative and x.successes >= s.min_successes
    why = f"sparse: p_pos {x.p_pos:.3g} < {s.sparse_p_pos:g}, informative {x.informative:.3g} < "
    return f"{why}{s.sparse_informative:g}, {x.successes} successes" if matches else ""


def _upper_tail(x: Landscape, s: SelectionSettings, objective: Objective) -> str:
    if x.distinct_rewards < s.distinct_rewards:
        return ""
    signs = (
        f"skew {x.skew:.3g} > {s.skew:g}" if x.skew is not None and x.skew > s.skew else "",
        f"tail {x.tail:.3g} > {s.tail:g}" if x.tail is not None and x.tail > s.tail else "",
        "only the best rollout counts" if objective == "max" else "",
    )
    found = ", ".join(filter(None, signs))
    return f"{found}; {x.distinct_rewards:g} distinct rewards a group" if found else ""


def _risky(x: Landscape, s: SelectionSettings) -> str:
    matches = x.regression_risk > s.regression_risk
    return f"regression risk {x.regression_risk:.3g} > {s.regression_risk:g}" if matches else ""


def _dense(x: Landscape, s: SelectionSettings) -> str:
    matches = x.reward_density >= s.dense_reward and x.horizon >= s.long_horizon
    why = f"reward on {x.reward_density:.3g} of the steps >= {s.dense_reward:g}, {x.horizon:g} steps >= "
    return f"{why}{s.long_horizon}" if matches else ""


def _contrast(x: Landscape, s: SelectionSettings) -> str:
    matches = x.informative >= s.grpo_informative and x.afford >= s.grpo_afford
    why = f"informative {x.informative:.3g} >= {s.grpo_informative:g}, {x.afford:.3g} passes left >= "
    return f"{why}{s.grpo_afford:g}" if matches else ""


def _spent(iterations_left: int, tokens_left: int) -> str:
    if iterations_left <= 0:
        return "no iterations are left"
    return "no tokens are left" if tokens_left <= 0 else ""


def _no_edit(loop: LoopSettings, patience: int, failed: int, untried: bool) -> str:
    if loop.mode == "W":
        return "mode W freezes the harness"
    if failed >= patience:
        return f"{failed} failed edits reach the patience of {patience}"
    return "" if untried else "no untried edit is left"


def _no_training(loop: LoopSettings, failed: int, suffice: bool, choice: Choice) -> str:
    if loop.mode == "H":
        return "mode H freezes the weights"
    if failed >= loop.patience_w:
        return f"{failed} failed trainings reach the patience of {loop.patience_w}"
    if not suffice:
        return "no group has unequal rewards and the successes are too few"
    return "" if choice.algorithm is not None else choice.reason
