"""Effects of the harness lever: Meta's draft of generation 0 and the edits of the `operators` proposer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from resia.domains.base import Domain, TaskSpec
from resia.domains.programs import Runners, no_programs
from resia.events import (
    HARNESS_MEDIA,
    Blobs,
    DraftFailed,
    EditFailed,
    EditRequested,
    Event,
    Fact,
    Harness,
    HarnessDrafted,
    HarnessEdited,
    RetryPolicy,
    RolloutRecorded,
    RunRequested,
    SystemPrompt,
    decode_harness,
    decode_trajectory,
)
from resia.replay.state import RunState

from . import answers, sources
from .code_sources import block, code_parameter, written
from .operators import CATALOGUE, SearchView, Seen, applicable
from .structured import asking_for_json

# No tokenizer needs more than a token a byte: room for the longest known answer, and a little more.
SPARE_TOKENS = 8
MAX_NEW_TOKENS = 4096  # the most a retry policy may allow
# Turns in which a program may be mended, once dispatch asks for a verdict: an edit changes one component, so the bound
# must be there before the dispatch that uses it.
MENDING_TURNS = 2


def first_harness(spec: TaskSpec) -> Harness:
    """Generation 0: the task as the spec words it, the reference implementations, and the plainest code that works."""
    code = code_parameter(spec)
    lines = [
        block(str(r.answer[code.name])) if code else " ".join(f"{name}={value}" for name, value in r.answer.items())
        for r in spec.references
    ]
    known = "\n".join(
        f"{r.name} ({r.doc}):\n{line}" if code else f"{r.name}: {line} ({r.doc})"
        for r, line in zip(spec.references, lines, strict=True)
    )
    return Harness(
        SystemPrompt(f"{spec.instruction.strip()}\nKnown implementations:\n{known}"),
        sources.strict_dispatch(spec),
        RetryPolicy(
            max_new_tokens=min(max(len(line.encode()) for line in lines) + SPARE_TOKENS, MAX_NEW_TOKENS),
            stop=() if code else RetryPolicy().stop,
            tool_turns=MENDING_TURNS if code and any(tool.gives == "verdict" for tool in spec.tools) else 0,
        ),
        sources.strict_extraction(spec),
    )


def draft(fact: Fact, domain: Domain, blobs: Blobs) -> Iterator[list[Event]]:
    """Perform RunRequested: store generation 0 and say so. A fork has its parent's harnesses and needs no draft."""
    assert isinstance(fact.event, RunRequested)
    if fact.event.parent is not None:
        return
    if not domain.spec.references:
        yield [DraftFailed(f"domain '{domain.spec.name}' names no reference implementation to start from")]
        return
    harness = first_harness(domain.spec)
    if fact.event.settings.engine.kind == "openai" and fact.event.settings.endpoint.answer == "json":
        harness = asking_for_json(harness, domain.spec)
    blob = blobs.put(harness.encoded(), HARNESS_MEDIA)
    rationale = "The task spec's own words, its reference implementations, and strict parsing."
    yield [HarnessDrafted(blob, harness.component_digests(), "operators", rationale, applicable(harness, domain))]


def edit(
    state: RunState, fact: Fact, domain: Domain, blobs: Blobs, programs: Runners = no_programs
) -> Iterator[list[Event]]:
    """Perform EditRequested: the first ranked operator that makes a harness which this run has not measured yet, or a
    baseline's search, which runs answers that are programs by `programs`."""
    event = fact.event
    assert isinstance(event, EditRequested)
    if not answers.SEARCHES.isdisjoint(event.operators):
        yield [answers.edit(state, fact.envelope.id, event, domain, blobs, programs)]
        return
    yield [_edited(state, fact.envelope.id, event, domain, blobs)]


def _edited(state: RunState, request: str, event: EditRequested, domain: Domain, blobs: Blobs) -> Event:
    parent = decode_harness(blobs.get(event.parent))
    view = search_view(state, event.evaluation, domain, blobs)
    measured, known = measured_harnesses(state), dict[str, str]()
    for name in event.operators:
        operator = CATALOGUE[name]
        harness = operator.edit(parent, domain, view)
        if harness == parent:
            continue
        if harness.digest() in measured:
            known[name] = harness.digest()
            continue
        return HarnessEdited(
            request,
            event.iteration,
            blobs.put(harness.encoded(), HARNESS_MEDIA),
            event.parent,
            operator.component,
            harness.component_digests(),
            name,
            operator.rationale,
            applicable(harness, domain),
            known,
        )
    return EditFailed(request, event.iteration, event.operators, _why_none(known), known)


def measured_harnesses(state: RunState) -> frozenset[str]:
    """Digests of the harnesses that were measured, in this run or one that it was forked from, with the champion's
    adapter: to measure one of them again would tell nothing new."""
    adapter = state.champion.candidate.adapter if state.champion else None
    done = (e.request for e in state.evaluations.values() if e.completed and "validation" in e.completed.scores)
    return frozenset(r.candidate.harness.digest for r in done if r.candidate.adapter == adapter)


def _why_none(known: Mapping[str, str]) -> str:
    if not known:
        return "no operator changes this harness"
    made = ", ".join(f"{name} ({digest[:12]})" for name, digest in known.items())
    return f"every harness that is left to make was measured before: {made}"


def search_view(state: RunState, evaluation: str, domain: Domain, blobs: Blobs) -> SearchView:
    """What a proposer may see: prompts, answers and rewards of search rollouts; nothing of other splits, no gold."""
    prompts = {item.id: item.prompt for item in domain.items("search")}
    rollouts = state.evaluations[evaluation].rollouts
    seen = [_seen(r, prompts[r.item], domain, blobs) for _, r in sorted(rollouts.items()) if r.split == "search"]
    return SearchView(tuple(prompts.values()), tuple(seen))


def _seen(rollout: RolloutRecorded, prompt: str, domain: Domain, blobs: Blobs) -> Seen:
    trajectory = decode_trajectory(blobs.get(rollout.trajectory))
    text = trajectory.turns[-1].text if trajectory.turns else ""
    return Seen(rollout.item, prompt, rollout.answer, rollout.reward, text, written(domain.spec, trajectory))
