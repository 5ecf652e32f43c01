"""Learned policies as files: fitted from runs in a store, judged on the decisions that were logged, pinned in a run.

What a policy is and how it is fitted is pure and in agents; this module reads logs and files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from resia.agents.experience import Experience, Situation, by_policy, by_rules, experience, fit, unit_gain, without
from resia.agents.offpolicy import Drawn, Estimate, estimate
from resia.events import BASELINES, LearnedPolicy, RunRequested, RunSettings, decode_policy
from resia.events.errors import UsageError

from .reading import present_state
from .session import first_event
from .store import Store, opened
from .views import Shown

MAX_BYTES = 32 * 1024  # as much as an event holds of any one thing: about 280 runs to learn from
RULES, FITTED, LOGGED = "rules", "learned", "logged"
NOT_COVERED = "only {:.0%} of what it may do could have been drawn: the estimate says nothing of the rest"
Target = Callable[[Situation], Mapping[str, float]]


class Judged(NamedTuple):
    """A fitted policy, and by name what each choice is estimated to gain a decision: gated gain a unit of cost."""

    policy: LearnedPolicy
    estimates: Mapping[str, Estimate]


async def fitted(store: Store, runs: Sequence[str], epsilon: float, exploration: float) -> Judged:
    """Fit from finished `runs`. UsageError for one that has not ended, UnknownName for one that is not there."""
    async with opened(store) as bus:
        found = [experience(run, await present_state(store, bus, run)) for run in runs]
    policy = _fits(fit(found, epsilon=epsilon, exploration=exploration))
    return Judged(policy, judge({one.run: one for one in found}, policy))


def _fits(policy: LearnedPolicy) -> LearnedPolicy:
    """`policy`, where the first event of a run can hold it."""
    if len(policy.encoded()) > MAX_BYTES:
        raise UsageError(
            f"a policy of {len(policy.sources)} runs takes {len(policy.encoded())} bytes and a run's first event holds"
            f" {MAX_BYTES}: fit it from fewer runs"
        )
    return policy


def judge(runs: Mapping[str, Experience], policy: LearnedPolicy) -> dict[str, Estimate]:
    """Off-policy estimates on what was chosen, not asked for: of the rules, of what was logged itself, and of the
    policy, which for each run is fitted again without that run."""
    apart = {run: without(runs.values(), run, policy) for run in runs}
    drawn: dict[str, list[Drawn]] = {RULES: [], FITTED: [], LOGGED: []}
    for run, held in sorted(runs.items()):
        for update in held.updates:
            if update.asked or not update.propensities.get(update.algorithm):
                continue
            gain, logged = unit_gain(update, policy.unit_tokens), update.propensities
            rules, learned = by_rules(update.situation), by_policy(apart[run], update.situation)
            drawn[RULES].append(Drawn(update.algorithm, gain, logged, rules))
            drawn[FITTED].append(Drawn(update.algorithm, gain, logged, learned))
            drawn[LOGGED].append(Drawn(update.algorithm, gain, logged, logged))
    return {name: estimate(held) for name, held in drawn.items()}


def shown(judged: Judged, out: Path) -> Shown:
    """The policy's table and the estimates."""
    policy = judged.policy
    arms = [
        f"{context}  {name}: {_counted(arm.trials, 'update')}, mean gain {arm.gain / max(arm.trials, 1):.4f}"
        for context, held in sorted(policy.arms.items())
        for name, arm in sorted(held.items())
    ]
    updates, edits = sum(s.updates for s in policy.sources), sum(s.edits for s in policy.sources)
    line = {
        "policy": policy.digest(),
        "out": str(out),
        "updates": updates,
        "edits": edits,
        "unit_tokens": policy.unit_tokens,
        "arms": msgspec.to_builtins(policy.arms),
        "operators": msgspec.to_builtins(policy.operators),
        "operator_scale": policy.operator_scale,
        "estimates": {name: msgspec.to_builtins(found) for name, found in judged.estimates.items()},
    }
    seen = f"{_counted(updates, 'update')} and {_counted(edits, 'edit')} of {_counted(len(policy.sources), 'run')}"
    head = f"policy {policy.digest()[:12]} from {seen} is in {out}"
    gains = [_estimate(name, found) for name, found in judged.estimates.items() if found.decisions]
    none = [] if gains else ["no decision with a choice is in these runs, so nothing can be estimated"]
    return Shown((line,), (head, *arms, *_edit_lines(policy), *gains, *none))


def _edit_lines(policy: LearnedPolicy) -> list[str]:
    return [
        f"{kind}  {name}: {_counted(arm.tries, 'edit')}, {arm.accepted} accepted, mean effect"
        f" {arm.effect / max(arm.tries, 1):+.4f}"
        for kind, held in sorted(policy.operators.items())
        for name, arm in sorted(held.items())
    ]


def _counted(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _estimate(name: str, found: Estimate) -> str:
    text = f"{name:8} {_number(found.ips, found.ips_se)} by IPS, {_number(found.snips, found.snips_se)} self-normalised"
    text += f", {_counted(found.decisions, 'decision')}, ess {found.ess:.1f}"
    covered = found.support if found.support is not None else 1.0
    return text if covered > 1 - 1e-9 else f"{text}; {NOT_COVERED.format(covered)}"


def _number(value: float | None, error: float | None) -> str:
    if value is None:
        return "undefined"
    return f"{value:.4f}" if error is None else f"{value:.4f} +- {error:.4f}"


def read_policy(path: Path) -> LearnedPolicy:
    """The policy in the file `path`; UsageError for what is none."""
    try:
        return decode_policy(path.read_bytes())
    except FileNotFoundError:
        raise UsageError(f"there is no policy file {path}: make one with resia policy fit") from None
    except (OSError, msgspec.DecodeError) as cause:
        raise UsageError(f"{path} holds no policy ({cause}): make one with resia policy fit") from None


def pinned(settings: RunSettings, path: Path, cache: Path | None) -> RunRequested:
    """The first event of a run that draws its algorithms and ranks its operators by the policy in `path`."""
    policy = _fits(read_policy(path))
    ranks = bool(policy.operators) and settings.loop.mode != "W"
    if settings.algorithm is not None and not ranks:
        raise UsageError(f"algorithm {settings.algorithm} leaves a policy nothing to choose: leave one of them out")
    if settings.loop.mode in BASELINES:
        raise UsageError(f"mode {settings.loop.mode} trains nothing: leave --policy out, or take mode W or W+H")
    if settings.loop.mode == "H" and not ranks:
        raise UsageError(
            "mode H freezes the weights: leave --policy out, fit it from runs with edits, or take mode W or W+H"
        )
    return msgspec.structs.replace(first_event(settings, cache), policy=policy)
