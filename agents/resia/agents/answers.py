"""One answer for every item, found on the search split without learning: the effect behind the baselines.

`random-search` draws valid answers of the domain's tool, `best-of-n` takes those that the harness was sampled to give.
Each is scored on every search item while the scorings last; the best mean wins, the earlier one a tie. The harness that
comes of it reads that answer out of any text, so it is measured, judged and replayed like any other. Knows nothing of
validation or test items.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from itertools import islice

import msgspec

from resia.domains import form
from resia.domains.base import Answer, Domain, Value, following, parsed
from resia.domains.programs import Runners, no_programs, worth
from resia.events import (
    HARNESS_MEDIA,
    Blob,
    Blobs,
    EditFailed,
    EditRequested,
    Event,
    HarnessEdited,
    RolloutRecorded,
    Trajectory,
    decode_harness,
    decode_trajectory,
)
from resia.events.errors import BoundaryError, boundary
from resia.events.ids import seed_for
from resia.replay.state import RunState

from . import sources
from .baselines import OPERATORS
from .operators import applicable

DRAWS_AN_ANSWER = 8  # of a space in which the tool refuses some combinations
SEARCHES = frozenset(OPERATORS.values())


def edit(
    state: RunState, request: str, event: EditRequested, domain: Domain, blobs: Blobs, programs: Runners = no_programs
) -> Event:
    """Perform a baseline's EditRequested, whose id is `request`."""
    (operator,) = event.operators
    items = [item.id for item in domain.items("search")]
    most = max(event.scorings // len(items), 1)
    try:
        with boundary(BoundaryError, f"{operator} of an answer"):
            answers = list(_answers(state, event, domain, blobs, most))
            worths = [_mean(domain, items, answer, programs) for answer in answers] if len(answers) > 1 else [math.nan]
    except BoundaryError as cause:
        return EditFailed(request, event.iteration, event.operators, str(cause))
    if not answers:
        return EditFailed(request, event.iteration, event.operators, _nothing(operator, domain))
    best = max(range(len(answers)), key=lambda n: worths[n])
    parent = decode_harness(blobs.get(event.parent))
    harness = msgspec.structs.replace(parent, answer_extraction=sources.fixed_extraction(answers[best]))
    one = len(answers) == 1
    tried = "1 answer" if one else f"{len(answers)} answers"
    found = "scored on no item" if one else f"mean reward {worths[best]:.4f} on the search items"
    return HarnessEdited(
        request,
        event.iteration,
        blobs.put(harness.encoded(), HARNESS_MEDIA),
        event.parent,
        "answer_extraction",
        harness.component_digests(),
        operator,
        f"The best of {tried}, {found}, for every item: {domain.render(answers[best])}",
        applicable(harness, domain),
    )


def _answers(
    state: RunState, event: EditRequested, domain: Domain, blobs: Blobs, most: int
) -> Iterator[dict[str, Value]]:
    if event.operators == (OPERATORS["random"],):
        seed = state.request.settings.seed if state.request else 0
        return drawn(domain, most, seed_for(seed, "random-search"))
    return _given(state, event, domain, blobs, most)


def drawn(domain: Domain, most: int, seed: int) -> Iterator[dict[str, Value]]:
    """Up to `most` different valid answers, uniformly over the tool's choices; none where an argument is free."""
    combinations = form.drawn(domain.spec.parameters, most * DRAWS_AN_ANSWER, seed)
    valid = (answer for said in combinations if (answer := _accepted(domain, said)) is not None)
    return islice(valid, most)


def _accepted(domain: Domain, request: Mapping[str, object]) -> dict[str, Value] | None:
    """The answer that the tool makes of a request; None where it refuses it."""
    try:
        return parsed(domain, request)
    except ValueError:
        return None


def _given(
    state: RunState, event: EditRequested, domain: Domain, blobs: Blobs, most: int
) -> Iterator[dict[str, Value]]:
    """Up to `most` different answers of the sampled search rollouts, those with the best mean reward first."""
    rewards: dict[str, list[float]] = {}
    shown: dict[str, Blob] = {}
    for rollout in _rollouts(state, event.evaluation):
        if rollout.answer and rollout.failure is None:
            rewards.setdefault(rollout.answer, []).append(rollout.reward)
            shown.setdefault(rollout.answer, rollout.trajectory)
    order = sorted(rewards, key=lambda text: (-sum(sorted(rewards[text])) / len(rewards[text]), text))
    found: dict[str, dict[str, Value]] = {}
    for text in order:
        for answer in _said(domain, decode_trajectory(blobs.get(shown[text])), text):
            found.setdefault(domain.render(answer), answer)
        if len(found) >= most:
            break
    return islice(found.values(), most)


def _said(domain: Domain, trajectory: Trajectory, text: str) -> list[dict[str, Value]]:
    """The answers of a rollout, whose canonical texts are the lines of `text`. A dispatch may have called the answer's
    tool in vain, tried others, and asked the model: their results are no answers."""
    results = [
        json.loads(call.result) for turn in trajectory.turns for call in turn.calls if call.name == domain.spec.tool
    ]
    answers = [_accepted(domain, result) for result in results if set(result) != {"error"}]
    return [answer for answer in answers if answer is not None and domain.render(answer) in text.splitlines()]


def _rollouts(state: RunState, evaluation: str) -> list[RolloutRecorded]:
    """Sampled search rollouts of `evaluation` and of what was sampled beside it, in no order that time made."""
    held = (e for e in state.evaluations.values() if e.id == evaluation or e.request.purpose == "sampling")
    rollouts = [r for e in held for r in e.rollouts.values() if r.split == "search" and not r.greedy]
    return sorted(rollouts, key=lambda r: (r.item, r.index))


def _mean(domain: Domain, items: list[str], answer: Answer, programs: Runners) -> float:
    return sum(_worth(domain, item, answer, programs) for item in items) / len(items)


def _worth(domain: Domain, item: str, answer: Answer, programs: Runners) -> float:
    """The reward of giving `answer` at every step."""
    answers: list[Mapping[str, Value]] = [answer]
    while len(answers) < domain.spec.steps and following(domain, item, answers) is not None:
        answers.append(answer)
    return worth(domain, item, answers, programs).reward


def _nothing(operator: str, domain: Domain) -> str:
    if operator == OPERATORS["best-of-n"]:
        return "no sampled rollout of the search items gave a valid answer"
    free = [p.name for p in domain.spec.parameters if not p.choices]
    why = f"its argument {free[0]} has no list of choices" if free else "it refused every combination"
    return f"no answer of the tool {domain.spec.tool} can be drawn: {why}"
