"""The part of the fold that turns verdicts and failures into champion, trials and canaries."""

from __future__ import annotations

import msgspec

from resia.events import CandidateAccepted, CandidateRejected, CandidateUndecided

from .state import Champion, Evaluation, Lever, Outcome, RunState, Trial

_replace = msgspec.structs.replace
_OUTCOMES: dict[type, Outcome] = {
    CandidateAccepted: "accepted",
    CandidateRejected: "rejected",
    CandidateUndecided: "undecided",
}


def apply_verdict(state: RunState, event: CandidateAccepted | CandidateRejected | CandidateUndecided) -> RunState:
    """The champion changes on acceptance only; every verdict but the baseline's is a trial."""
    found = state.evaluations.get(event.evaluation)
    if found is None:
        return state
    lever, name = tried(state, found)
    parent = state.champion.candidate if state.champion else None
    outcome = _OUTCOMES[type(event)]
    trial = Trial(found.request.iteration, lever, name, parent, outcome, event.gate)
    state = _replace(state, trials=(*state.trials, trial))
    if outcome != "accepted":
        return state
    limit = state.request.settings.gate.canaries if state.request else 0
    champion = Champion(found.request.candidate, event.evaluation, canaries(found, limit))
    return _replace(state, champion=champion, baseline=state.baseline or champion, fresh_from=len(state.trials))


def record_failed_trial(state: RunState, iteration: int, lever: Lever, name: str, error: str) -> RunState:
    """A lever that gave no candidate."""
    parent = state.champion.candidate if state.champion else None
    trial = Trial(iteration, lever, name, parent, "failed", None, error)
    return _replace(state, trials=(*state.trials, trial))


def tried(state: RunState, evaluation: Evaluation) -> tuple[Lever, str]:
    """Which lever made this evaluation's candidate, and its operator or algorithm."""
    candidate, champion = evaluation.request.candidate, state.champion
    if champion is None:
        return "draft", "draft"
    if candidate.harness.digest != champion.candidate.harness.digest:
        return "edit_harness", _operator(state, candidate.harness.digest, evaluation.request.iteration)
    adapter = state.adapters.get(candidate.adapter.digest) if candidate.adapter else None
    return "train_weights", adapter.algorithm if adapter else "?"


def _operator(state: RunState, harness: str, iteration: int) -> str:
    """The operator that made `harness` in `iteration`; other edits may have led to it before."""
    made = [o for o in state.origins.get(harness, ()) if o.measured]
    return next((o.operator for o in made if o.iteration == iteration), made[0].operator if made else "?")


def canaries(evaluation: Evaluation, limit: int) -> tuple[str, ...]:
    """Up to `limit` search items that the greedy rollout solves, by name."""
    held = evaluation.rollouts.values()
    return tuple(sorted({r.item for r in held if r.split == "search" and r.greedy and r.success})[:limit])
