"""What a search without learning decides at the same budget: modes `random` and `best-of-n` (docs/budgets.md).

Both measure generation 0 like any run and end with one answer for every item, chosen on the search split and judged as
a candidate on items that it never saw. `best-of-n` first samples generation 0 until its tokens would no longer pay for
that judging; `random` draws valid answers, as many scorings as the same tokens would have bought rollouts. Pure; how an
answer is found is in `answers`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import msgspec

from resia.events import (
    Action,
    CandidateAccepted,
    CandidateRejected,
    CandidateUndecided,
    DecisionMade,
    EditRequested,
    EvaluationRequested,
    Event,
    RunRequested,
    Slot,
    TestUnsealed,
)
from resia.events.ids import seed_for
from resia.replay.ledger import Ledger, money
from resia.replay.state import Champion, Evaluation, RunState

from .budgets import overdrawn, tokens_left
from .ending import root_since_last

RULE = "baseline/1"
OPERATORS = {"random": "random-search", "best-of-n": "best-of-n"}
MOST_ROLLOUTS = 480  # asked for at once, so that they fit an event and their shards a batch
MOST_AN_ITEM = 64
Verdict = CandidateAccepted | CandidateRejected | CandidateUndecided


class Next(NamedTuple):
    """What to do: sample `each` more rollouts of every search item, or search with so many `scorings`, or stop."""

    action: Action
    rule: str
    reason: str
    each: int = 0
    scorings: int = 0


def decision(state: RunState, request: RunRequested, champion: Champion) -> list[Event]:
    """The one decision, and the request that carries it out."""
    step = choose(state, request, champion)
    decided = DecisionMade(
        iteration=state.iteration + 1,
        action=step.action,
        reason=step.reason,
        rule=f"{RULE}:{step.rule}",
        algorithm=None,
        features=None,
        masks={},
        scores={},
        propensities={},
        failed_edits=sum(t.lever == "edit_harness" and t.outcome != "accepted" for t in state.trials),
        failed_trainings=0,
        merkle_root=root_since_last(state),
        root_from=state.root_to,
        root_to=state.sequence,
    )
    return [decided, *_carry_out(state, request, champion, step)]


def choose(state: RunState, request: RunRequested, champion: Champion) -> Next:
    """Sample while the tokens pay for it, then search, then stop."""
    settings, mode = request.settings, request.settings.loop.mode
    if edits := [t for t in state.trials if t.lever == "edit_harness"]:
        judged = edits[-1].detail or "the answer that the search split chose has been judged"
        return Next("stop", "3-stop", judged)
    left = tokens_left(state, settings)
    if spent := "no tokens are left" if left <= 0 else overdrawn(state, settings):
        return Next("stop", "0-budget", spent)
    paid = _rollouts_paid(state, request, state.evaluations[champion.evaluation])
    own = len(_sampled(state, champion))
    if mode == "random":
        why = f"{paid + own} scorings in place of as many rollouts, by {left} tokens left"
        return Next("edit_harness", "2-search", why, scorings=paid + own)
    items = len(request.items["search"])
    each = min(paid // items, MOST_AN_ITEM, max(MOST_ROLLOUTS // items, 1))
    if each < 1 or _lost(state):
        why = f"{own} rollouts of the search items are in, and {left} tokens left pay for judging one answer"
        return Next("edit_harness", "2-search", why, scorings=own)
    why = f"{left} tokens left pay for {paid} more rollouts and for judging one answer"
    return Next("sample", "1-sample", f"{why}: {each} of each search item now", each=each)


def returned(verdict: Verdict, found: Evaluation) -> Verdict:
    """The gate's report with the acceptance that such a run gives whatever it finds: only the search split chooses."""
    if not found.completed or "validation" not in found.completed.scores:
        return verdict  # nothing was scored
    reason = f"what the search split chose is returned whatever the gate finds: {verdict.gate.reason}"
    gate = msgspec.structs.replace(verdict.gate, reason=reason)
    return CandidateAccepted(verdict.evaluation, verdict.champion_evaluation, gate)


def _rollouts_paid(state: RunState, request: RunRequested, found: Evaluation) -> int:
    """Rollouts at the mean cost of generation 0's that what is left pays for, beside the judging of one answer, which
    costs what generation 0's own measurement did."""
    settings, rollouts = request.settings, found.rollouts.values()
    prompts, completions = sum(r.prompt_tokens for r in rollouts), sum(r.completion_tokens for r in rollouts)
    cost = Ledger(prompt_tokens=prompts, completion_tokens=completions)
    paid = (tokens_left(state, settings) - cost.tokens) * len(rollouts) // max(cost.tokens, 1)
    budget, price = settings.loop.money_budget, money(cost, settings)
    if budget is not None and price > 0:
        paid = min(paid, math.floor((budget - money(state.ledger, settings) - price) * len(rollouts) / price))
    return max(paid, 0)


def _sampled(state: RunState, champion: Champion) -> list[str]:
    """Ids of the champion's sampled search rollouts, those of its own measurement among them."""
    held = (e for e in state.evaluations.values() if e.id == champion.evaluation or e.request.purpose == "sampling")
    return [id_ for e in held for id_, r in e.rollouts.items() if r.split == "search" and not r.greedy]


def _lost(state: RunState) -> bool:
    """Whether infrastructure lost everything that was sampled last: asking again could go on for ever."""
    asked = [state.evaluations[id_] for id_ in state.evaluation_order]
    sampled = [e for e in asked if e.request.purpose == "sampling"]
    return bool(sampled) and not sampled[-1].rollouts


def _carry_out(state: RunState, request: RunRequested, champion: Champion, step: Next) -> list[Event]:
    assert state.baseline is not None  # a champion was crowned
    if step.action == "sample":
        return [_more(state, request, champion, step.each)]
    if step.action == "edit_harness":
        found = state.evaluations[champion.evaluation].completed
        harness, operator = champion.candidate.harness, OPERATORS[request.settings.loop.mode]
        failures = found.failures if found else {}
        return [
            EditRequested(
                state.iteration + 1, harness, (operator,), champion.evaluation, failures, scorings=step.scorings
            )
        ]
    return [] if request.parent is not None else [TestUnsealed(champion.candidate, state.baseline.candidate)]


def _more(state: RunState, request: RunRequested, champion: Champion, each: int) -> EvaluationRequested:
    """`each` more rollouts of every search item, under indices and seeds of their own."""
    asked = [e.request for e in state.evaluations.values() if e.request.purpose == "sampling"]
    items, settings = request.items["search"], request.settings
    first = settings.sampling.group_size + 1 + sum(len(r.slots) for r in asked) // len(items)
    slots = tuple(
        Slot("search", item, index, seed_for(settings.seed, "rollout", item, index))
        for item in items
        for index in range(first, first + each)
    )
    return EvaluationRequested("sampling", state.iteration + 1, champion.candidate, slots)
