"""The Feedback-Agent's rules: a verdict on each candidate by the gate, then exactly one decision.

Pure: the verdict is in `judging`, features and choice are functions in `landscape` and `selection`; this module gathers
their inputs from the folded state and turns their results into facts. Edits are made in `proposing`.
"""

from __future__ import annotations

import msgspec

from resia.events import (
    BASELINES,
    CandidateAccepted,
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
    RunFailed,
    RunRequested,
    TestUnsealed,
    TrainingFailed,
    TrainingRequested,
    TrainingSettings,
)
from resia.events.ids import seed_for
from resia.replay.diff import candidate_evaluations
from resia.replay.state import Evaluation, RunState
from resia.replay.verdicts import apply_verdict

from . import baselines, policy, selection
from .budgets import overdrawn, tokens_left
from .ending import root_since_last, with_test, without_test
from .judging import conclude
from .landscape import measure
from .operators import Ranking, ranking
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
            return [] if event.parent is None else _take_anew(state, request, fact)
        case EvaluationCompleted(purpose="candidate" | "probe"):
            if event.iteration < state.iteration:
                return []  # this candidate has had its verdict
            return _after_measurement(state, request, fact)
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


def _take_anew(state: RunState, request: RunRequested, fact: Fact) -> list[Event]:
    """The decision that was open where a fork begins: on the last candidate, or after a lever that gave none."""
    if state.decisions and state.decisions[-1].sequence > 0:
        return []  # the fork has decided already
    if any(trial.iteration == state.iteration for trial in state.trials):
        return _decision(state, request)
    if _measured(state) is not None:
        return _after_measurement(state, request, fact)
    return [RunFailed("its parent had nothing to decide where this fork begins")]


def _after_measurement(state: RunState, request: RunRequested, fact: Fact) -> list[Event]:
    """The verdict on this iteration's candidate and the decision, or the probes that the verdict waits for."""
    found = _measured(state)
    if found is None:
        return []
    champion = state.champion
    if champion is None:
        return _crown_baseline(state, request, found)
    concluded = conclude(state, request, champion, found, fact)
    if concluded.verdict is None:
        return list(concluded.asked)
    verdict = concluded.verdict
    if request.settings.loop.mode in BASELINES:
        verdict = baselines.returned(verdict, found)
    after = apply_verdict(state, verdict)
    return [verdict, *concluded.alarms, *_decision(after, request)]


def _measured(state: RunState) -> Evaluation | None:
    """This iteration's candidate, once all of it is in."""
    found = (e for e in candidate_evaluations(state) if e.completed and e.request.iteration == state.iteration)
    return next(found, None)


def _crown_baseline(state: RunState, request: RunRequested, found: Evaluation) -> list[Event]:
    """Generation 0 has nothing to be compared with; without any score there is nothing to improve on."""
    if not item_means(found, "validation") or not item_means(found, "search", greedy=False):
        failed = len(found.losses)
        return [RunFailed(f"generation 0 could not be measured: all rollouts of a split failed ({failed} in all)")]
    items = len(item_means(found, "validation"))
    report = GateReport(NO_TEST, 0.0, items, 1.0, 0.0, 0.0, 0.0, "none", None, "generation 0 is the baseline")
    verdict = CandidateAccepted(found.id, None, report)
    return [verdict, *_decision(apply_verdict(state, verdict), request)]


def _decision(state: RunState, request: RunRequested) -> list[Event]:
    """The one decision, with every input it was taken on, and the request that carries it out."""
    if state.champion is None:
        return [RunFailed("there is no champion to improve")]
    if request.settings.loop.mode in BASELINES:
        return baselines.decision(state, request, state.champion)
    settings, found = request.settings, state.evaluations[state.champion.evaluation]
    features, trials = _features(state, request, found), state.current_trials
    choice, edits = _algorithm(state, request, features), _edits(state, request, found)
    failed_edits = sum(t.lever == "edit_harness" for t in trials if t.outcome != "accepted")
    failed_trainings = sum(t.lever == "train_weights" for t in trials if t.outcome != "accepted")
    lever = selection.choose_lever(
        settings.loop,
        settings.selection,
        failed_edits=failed_edits,
        failed_trainings=failed_trainings,
        untried_edit=bool(edits.names),
        format_failures=features.format_failures,
        data_suffice=selection.data_suffice(features, settings.selection),
        choice=choice,
        iterations_left=settings.loop.max_iterations - state.iteration,
        tokens_left=tokens_left(state, settings),
        overdrawn=overdrawn(state, settings),
    )
    trains = lever.action == "train_weights"
    rule, why = (choice.rule, choice.reason) if trains else (edits.rule, edits.reason)
    says_more = bool(rule) and lever.action != "stop"
    decision = DecisionMade(
        iteration=state.iteration + 1,
        action=lever.action,
        reason=f"{lever.reason}; {why}" if says_more else lever.reason,
        rule=f"{lever.rule} {rule}" if says_more else lever.rule,
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


def _algorithm(state: RunState, request: RunRequested, features: Landscape) -> selection.Choice:
    tried = {t.name for t in state.current_trials if t.lever == "train_weights"}
    return policy.choose(
        features,
        request.settings.selection,
        request.policy,
        built=request.algorithms,
        ordinal=request.ordinal,
        objective=request.objective,
        failed=[a for a in request.algorithms if a in tried],
        rollouts_fresh=False,  # they are the champion's evaluation, which a failed update has already used
        requested=request.settings.algorithm,
        seed=seed_for(request.settings.seed, "policy", state.iteration),
    )


def _carry_out(
    state: RunState,
    training: TrainingSettings,
    seed: int,
    decision: DecisionMade,
    edits: Ranking,
    found: Evaluation,
) -> Event:
    champion, baseline = state.champion, state.baseline
    assert champion is not None  # `_decision` has checked
    assert baseline is not None
    failures = found.completed.failures if found.completed else {}
    if decision.action == "edit_harness":
        harness = champion.candidate.harness
        return EditRequested(decision.iteration, harness, edits.names, found.id, failures, edits.scores)
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


def _edits(state: RunState, request: RunRequested, found: Evaluation) -> Ranking:
    """What may be tried next, best first. A model always may: what it has tried, it is told."""
    if request.settings.proposer == "llm":
        return Ranking(("llm",), {}, "", "")
    return ranking(_untried(state, found), found.completed.failures if found.completed else {}, request.policy)


def _untried(state: RunState, found: Evaluation) -> list[str]:
    """Operators that would change the champion's harness and were not tried on it."""
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
    # What was recognised as measured before is not asked for a second time either.
    tried |= {o.operator for origins in state.origins.values() for o in origins if o.parent == harness}
    return [name for name in node.applicable if name not in tried]
