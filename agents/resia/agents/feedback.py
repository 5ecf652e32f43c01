"""The Feedback-Agent's rules: a verdict on each candidate by the gate, then exactly one decision.

Pure: features, gate and choice are functions in `landscape`, `gate` and `selection`; this module gathers their inputs
from the folded state and turns their results into facts. Edits are made in `proposing`.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from resia.events import (
    BASELINES,
    CandidateAccepted,
    CandidateRejected,
    CandidateUndecided,
    ControlFailed,
    ControlMeasured,
    DecisionMade,
    DraftFailed,
    EditFailed,
    EditRequested,
    EvaluationCompleted,
    Event,
    Fact,
    GateReport,
    HarnessDrafted,
    HarnessEdited,
    Landscape,
    ProbeAlarmed,
    RunFailed,
    RunRequested,
    Split,
    TestUnsealed,
    TrainingFailed,
    TrainingRequested,
    TrainingSettings,
)
from resia.events.ids import seed_for
from resia.replay.diff import candidate_evaluations
from resia.replay.state import Champion, Evaluation, RunState
from resia.replay.verdicts import apply_verdict

from . import baselines, policy, selection
from .budgets import overdrawn, tokens_left
from .ending import root_since_last, with_test, without_test
from .gate import gap_probe, judge
from .landscape import measure
from .operators import rank
from .taskwork import item_means

DECIDES = (
    RunRequested,
    EvaluationCompleted,
    DecisionMade,
    DraftFailed,
    EditFailed,
    TrainingFailed,
    ControlMeasured,
    ControlFailed,
)
NO_TEST = 0
Verdict = CandidateAccepted | CandidateRejected | CandidateUndecided
_VERDICTS: dict[str, type[Verdict]] = {
    "accept": CandidateAccepted,
    "reject": CandidateRejected,
    "undecided": CandidateUndecided,
}


def decide(state: RunState, fact: Fact) -> list[Event]:
    """Verdict and decision after a candidate's evaluation; the next decision after a failed lever; the end.

    A fork takes its first decision on its own first event, because the evaluation or failure behind it is its parent's.
    """
    request = state.request
    if request is None or state.ending is not None:
        return []
    event = fact.event
    match event:
        case RunRequested():
            return [] if event.parent is None else _take_anew(state, request)
        case EvaluationCompleted(purpose="candidate"):
            if event.iteration < state.iteration:
                return []  # this candidate has had its verdict
            return _after_candidate(state, request, event)
        case EditFailed() | TrainingFailed() | EvaluationCompleted(purpose="sampling"):
            return [] if event.iteration < state.iteration else _decision(state, request)
        case DecisionMade(action="stop"):
            return [] if request.parent is None else [without_test(state, event)]
        case EvaluationCompleted() | ControlMeasured() | ControlFailed():
            return with_test(state)
        case DraftFailed():
            return [RunFailed(f"no harness could be drafted: {event.error}")]
        case _:
            return []


def _take_anew(state: RunState, request: RunRequested) -> list[Event]:
    """The decision that was open where a fork begins: on the last candidate, or after a lever that gave none."""
    if state.decisions and state.decisions[-1].sequence > 0:
        return []  # the fork has decided already
    if any(trial.iteration == state.iteration for trial in state.trials):
        return _decision(state, request)
    for found in candidate_evaluations(state):
        if found.completed is not None and found.request.iteration == state.iteration:
            return _after_candidate(state, request, found.completed)
    return [RunFailed("its parent had nothing to decide where this fork begins")]


def _after_candidate(state: RunState, request: RunRequested, event: EvaluationCompleted) -> list[Event]:
    found = state.evaluations[event.request]
    champion = state.champion
    if champion is None:
        return _crown_baseline(state, request, found)
    before = state.evaluations[champion.evaluation]
    verdict = _judge(state, request, champion, before, found)
    if request.settings.loop.mode in BASELINES:
        verdict = baselines.returned(verdict, found)
    alarm = _gap(request, before, found)
    after = apply_verdict(state, verdict)
    return [verdict, *([alarm] if alarm else []), *_decision(after, request)]


def _crown_baseline(state: RunState, request: RunRequested, found: Evaluation) -> list[Event]:
    """Generation 0 has nothing to be compared with; without any score there is nothing to improve on."""
    if not item_means(found, "validation") or not item_means(found, "search", greedy=False):
        failed = len(found.failed)
        return [RunFailed(f"generation 0 could not be measured: all rollouts of a split failed ({failed} in all)")]
    items = len(item_means(found, "validation"))
    report = GateReport(NO_TEST, 0.0, items, 1.0, 0.0, 0.0, 0.0, "none", None, "generation 0 is the baseline")
    verdict = CandidateAccepted(found.id, None, report)
    return [verdict, *_decision(apply_verdict(state, verdict), request)]


def _judge(
    state: RunState, request: RunRequested, champion: Champion, before: Evaluation, found: Evaluation
) -> Verdict:
    test, old, new = state.gates + 1, item_means(before, "validation"), item_means(found, "validation")
    shared = sorted(old.keys() & new.keys())  # an item lost to infrastructure on either side is no evidence
    result = judge(
        {item: new[item] for item in shared},
        {item: old[item] for item in shared},
        binary=request.binary,
        test=test,
        settings=request.settings.gate,
        solved=_solved(champion, before, found),
        seed=seed_for(request.settings.seed, "gate", test),
    )
    return _VERDICTS[result.outcome](found.id, champion.evaluation, result.report)


def _solved(champion: Champion, before: Evaluation, found: Evaluation) -> dict[str, tuple[float, float]]:
    """Greedy reward before and after on the canaries and on the validation items that the champion solved."""
    solved = {r.item for r in before.rollouts.values() if r.split == "validation" and r.success}
    old = item_means(before, "search") | item_means(before, "validation")
    new = item_means(found, "search") | item_means(found, "validation")
    names = sorted(solved | set(champion.canaries))
    return {item: (old[item], new[item]) for item in names if item in old and item in new}


def _gap(request: RunRequested, before: Evaluation, found: Evaluation) -> ProbeAlarmed | None:
    """The search-validation gap on items that both sides answered greedily; sampled scores would not compare."""
    changes: list[float] = []
    splits: tuple[Split, ...] = ("search", "validation")
    for split in splits:
        old, new = item_means(before, split), item_means(found, split)
        shared = old.keys() & new.keys()
        if not shared:
            return None
        changes.append(sum(sorted(new[item] - old[item] for item in shared)) / len(shared))
    return gap_probe(changes[0], changes[1], request.settings.gate, evaluation=found.id)


def _decision(state: RunState, request: RunRequested) -> list[Event]:
    """The one decision, with every input it was taken on, and the request that carries it out."""
    if state.champion is None:
        return [RunFailed("there is no champion to improve")]
    if request.settings.loop.mode in BASELINES:
        return baselines.decision(state, request, state.champion)
    settings, found = request.settings, state.evaluations[state.champion.evaluation]
    features = _features(state, request, found)
    trials = state.current_trials
    tried_algorithms = {t.name for t in trials if t.lever == "train_weights"}
    choice = policy.choose(
        features,
        settings.selection,
        request.policy,
        built=request.algorithms,
        ordinal=request.ordinal,
        objective=request.objective,
        failed=[a for a in request.algorithms if a in tried_algorithms],
        rollouts_fresh=False,  # they are the champion's evaluation, which a failed update has already used
        requested=settings.algorithm,
        seed=seed_for(settings.seed, "policy", state.iteration),
    )
    edits = _untried(state, found)
    failed_edits = sum(t.lever == "edit_harness" for t in trials if t.outcome != "accepted")
    failed_trainings = sum(t.lever == "train_weights" for t in trials if t.outcome != "accepted")
    lever = selection.choose_lever(
        settings.loop,
        settings.selection,
        failed_edits=failed_edits,
        failed_trainings=failed_trainings,
        untried_edit=bool(edits),
        format_failures=features.format_failures,
        data_suffice=selection.data_suffice(features, settings.selection),
        choice=choice,
        iterations_left=settings.loop.max_iterations - state.iteration,
        tokens_left=tokens_left(state, settings),
        overdrawn=overdrawn(state, settings),
    )
    trains = lever.action == "train_weights"
    decision = DecisionMade(
        iteration=state.iteration + 1,
        action=lever.action,
        reason=f"{lever.reason}; {choice.reason}" if trains else lever.reason,
        rule=f"{lever.rule} {choice.rule}" if trains else lever.rule,
        algorithm=choice.algorithm if trains else None,
        features=features,
        masks=lever.masks | choice.masks,
        scores=choice.scores,
        propensities=choice.propensities,
        failed_edits=failed_edits,
        failed_trainings=failed_trainings,
        merkle_root=root_since_last(state),
        root_from=state.root_to,
        root_to=state.sequence,
    )
    group_size = max(settings.training.group_size, choice.group_size or 0)
    training = msgspec.structs.replace(settings.training, group_size=group_size)
    if decision.action == "stop" and request.parent is not None:
        return [decision]  # the right to open the sealed test stays with the first run of the lineage
    return [decision, _carry_out(state, training, request.settings.seed, decision, edits, found)]


def _carry_out(
    state: RunState,
    training: TrainingSettings,
    seed: int,
    decision: DecisionMade,
    edits: Sequence[str],
    found: Evaluation,
) -> Event:
    champion, baseline = state.champion, state.baseline
    assert champion is not None  # `_decision` has checked
    assert baseline is not None
    failures = found.completed.failures if found.completed else {}
    if decision.action == "edit_harness":
        return EditRequested(decision.iteration, champion.candidate.harness, tuple(edits), found.id, failures)
    if decision.action == "train_weights" and decision.algorithm is not None:
        return TrainingRequested(
            decision.iteration,
            decision.algorithm,
            training,
            champion.candidate.harness,
            champion.candidate.adapter,
            found.id,
            seed_for(seed, "train", decision.iteration),
        )
    return TestUnsealed(champion.candidate, baseline.candidate)


def _features(state: RunState, request: RunRequested, found: Evaluation) -> Landscape:
    """Features of the champion's search rollouts, which are on-policy for it: ess 1, no divergence."""
    rollouts = [r for r in found.rollouts.values() if r.split == "search" and not r.greedy]
    training = request.settings.training
    mean_tokens = sum(r.prompt_tokens + r.completion_tokens for r in rollouts) / max(len(rollouts), 1)
    gates = [t.gate for t in state.trials if t.lever == "train_weights" and t.gate]
    lows = [gate.retention_low for gate in gates if gate.retention_low is not None]
    lost = sum(low <= -request.settings.gate.retention_delta for low in lows)
    return measure(
        rollouts,
        token_budget_left=max(tokens_left(state, request.settings), 0),
        update_tokens=max(round(mean_tokens * training.groups * training.group_size), 1),
        ess=1.0,
        kl_per_token=0.0,
        weight_trials=(len(lows) - lost, lost),
        seed=seed_for(request.settings.seed, "landscape", state.iteration),
    )


def _untried(state: RunState, found: Evaluation) -> list[str]:
    """Operators that would change the champion's harness and were not tried on it, best first."""
    if state.champion is None or found.completed is None:
        return []
    node = state.harnesses.get(state.champion.candidate.harness.digest)
    if not isinstance(node, HarnessDrafted | HarnessEdited):
        return []
    harness = state.champion.candidate.harness.digest
    tried = {
        name
        for t in state.trials
        if t.lever == "edit_harness" and t.parent and t.parent.harness.digest == harness
        for name in t.name.split("+")
    }
    return rank([name for name in node.applicable if name not in tried], found.completed.failures)
