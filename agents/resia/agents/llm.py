"""The proposer `llm`: a model behind an endpoint drafts generation 0 and edits the champion's harness.

Effects only, through the ports. A reply that cannot be used goes back to the model with the reason, a few times; all
that was said is stored as one blob, which the outcome names. An endpoint that is out of order settles nothing: the
worker stops, and the run goes on when it answers again. Collaborators: `llm_prompt` (what it is shown), `llm_reply`
(what it may say), `llm_trial` (sources tried in the sandbox), `proposing` (the embedded proposer).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import msgspec

from resia.domains.base import Domain
from resia.events import (
    HARNESS_MEDIA,
    Blob,
    Blobs,
    DraftFailed,
    EditFailed,
    EditRequested,
    Event,
    Fact,
    Harness,
    HarnessDrafted,
    HarnessEdited,
    LlmSettings,
    Message,
    RolloutRecorded,
    RunRequested,
    Trajectory,
    decode_harness,
    decode_trajectory,
)
from resia.events.errors import EndpointRefused, KeyRefused, ModelError
from resia.replay.state import RunState

from .llm_prompt import TooSmall, for_draft, for_edit
from .llm_reply import Invalid, Proposal, read_draft, read_edit
from .llm_trial import try_out
from .operators import applicable
from .ports import ChatModel, ChatReply, ProposerPorts

NAME = "llm"
EXCHANGE_MEDIA = "application/vnd.resia.exchange+json"
ERROR_CHARS = 500
QUOTED_CHARS = 20_000  # of a refused reply, sent back to the model


class Said(msgspec.Struct, frozen=True):
    """One reply as it came, and why it was refused (empty: it was taken). `failures`: requests sent in vain before."""

    reply: str
    finish: str
    prompt_tokens: int
    completion_tokens: int
    refused: str = ""
    failures: tuple[str, ...] = ()


class Exchange(msgspec.Struct, frozen=True):
    """A whole dialogue: every message as it was sent, every reply as it came, and what ended it in vain."""

    model: str
    messages: tuple[Message, ...]
    said: tuple[Said, ...]
    error: str = ""


class _Outcome(NamedTuple):
    """What a dialogue came to: a proposal, or the error why there is none."""

    proposal: Proposal | None
    error: str
    exchange: Blob
    prompt_tokens: int
    completion_tokens: int


def draft(fact: Fact, domain: Domain, settings: LlmSettings, ports: ProposerPorts) -> Iterator[list[Event]]:
    """Perform RunRequested: generation 0 as a model drafts it. A fork has its parent's harnesses and needs none."""
    assert isinstance(fact.event, RunRequested)
    if fact.event.parent is not None:
        return

    def check(text: str) -> Proposal:
        proposal = read_draft(text)
        try_out(proposal.harness, domain, ports.sandbox())
        return proposal

    try:
        messages = for_draft(domain.spec, domain.items("search"), settings.prompt_tokens)
    except TooSmall as cause:
        yield [DraftFailed(str(cause))]
        return
    found = _converse(messages, check, settings, ports, fact.envelope.run)
    if found.proposal is None:
        yield [DraftFailed(found.error, found.exchange, found.prompt_tokens, found.completion_tokens)]
        return
    harness = found.proposal.harness
    yield [
        HarnessDrafted(
            ports.blobs.put(harness.encoded(), HARNESS_MEDIA),
            harness.component_digests(),
            NAME,
            found.proposal.rationale,
            _applicable(harness, domain),
            found.exchange,
            found.prompt_tokens,
            found.completion_tokens,
        )
    ]


def edit(
    state: RunState, fact: Fact, domain: Domain, settings: LlmSettings, ports: ProposerPorts
) -> Iterator[list[Event]]:
    """Perform EditRequested: one component of the parent as a model rewrites it."""
    event, request = fact.event, fact.envelope.id
    assert isinstance(event, EditRequested)
    parent = decode_harness(ports.blobs.get(event.parent))

    def trajectory_of(rollout: RolloutRecorded) -> Trajectory:
        return decode_trajectory(ports.blobs.get(rollout.trajectory))

    def check(text: str) -> Proposal:
        proposal = read_edit(text, parent)
        if proposal.harness.digest() in state.harnesses:
            raise Invalid("this harness was in the run before: propose another")
        try_out(proposal.harness, domain, ports.sandbox())
        return proposal

    items = domain.items("search")
    try:
        messages = for_edit(state, domain.spec, parent, event.evaluation, items, trajectory_of, settings.prompt_tokens)
    except TooSmall as cause:
        yield [EditFailed(request, event.iteration, event.operators, str(cause))]
        return
    found = _converse(messages, check, settings, ports, fact.envelope.run)
    yield [_edited(request, event, found, domain, ports)]


def _edited(request: str, event: EditRequested, found: _Outcome, domain: Domain, ports: ProposerPorts) -> Event:
    if found.proposal is None:
        return EditFailed(
            request,
            event.iteration,
            event.operators,
            found.error,
            exchange=found.exchange,
            prompt_tokens=found.prompt_tokens,
            completion_tokens=found.completion_tokens,
        )
    harness, component = found.proposal.harness, found.proposal.component
    assert component is not None  # an edit names one
    return HarnessEdited(
        request,
        event.iteration,
        ports.blobs.put(harness.encoded(), HARNESS_MEDIA),
        event.parent,
        component,
        harness.component_digests(),
        NAME,
        found.proposal.rationale,
        _applicable(harness, domain),
        exchange=found.exchange,
        prompt_tokens=found.prompt_tokens,
        completion_tokens=found.completion_tokens,
    )


def _applicable(harness: Harness, domain: Domain) -> tuple[str, ...]:
    """What a fork of the run may go on with: the operators where they have a reference to learn from, and the model."""
    return (*(applicable(harness, domain) if domain.spec.references else ()), NAME)


class _Dialogue:
    """Messages sent and replies had so far."""

    def __init__(self, first: Sequence[Message], settings: LlmSettings) -> None:
        self._settings, self._messages, self._said = settings, list(first), list[Said]()

    def ask(self, chat: ChatModel, check: Callable[[str], Proposal]) -> Proposal | Invalid:
        """The next reply as a proposal, or why it is none, which the model is told."""
        reply = chat.complete(self._messages)
        try:
            if reply.finish == "length":
                raise Invalid(f"it was cut off at {self._settings.max_tokens} tokens: be shorter")
            found = check(reply.text)
        except Invalid as cause:
            self._note(reply, str(cause))
            told = f"That reply cannot be used: {cause}. Send the whole JSON object again, mended."
            self._messages += [Message("assistant", reply.text[:QUOTED_CHARS] or "(nothing)"), Message("user", told)]
            return cause
        self._note(reply, "")
        return found

    def _note(self, reply: ChatReply, refused: str) -> None:
        tokens = reply.prompt_tokens, reply.completion_tokens
        self._said.append(Said(reply.text, reply.finish, *tokens, refused, reply.failures))

    def end(self, proposal: Proposal | None, error: str, blobs: Blobs) -> _Outcome:
        """All of it stored, and what it came to."""
        exchange = Exchange(self._settings.model, tuple(self._messages), tuple(self._said), error)
        blob = blobs.put(msgspec.json.encode(exchange), EXCHANGE_MEDIA)
        spent = sum(s.prompt_tokens for s in self._said), sum(s.completion_tokens for s in self._said)
        return _Outcome(proposal, error[:ERROR_CHARS], blob, *spent)


def _converse(
    first: Sequence[Message],
    check: Callable[[str], Proposal],
    settings: LlmSettings,
    ports: ProposerPorts,
    run: str,
) -> _Outcome:
    """Ask until a reply is valid, at most `settings.tries` times. Raises ModelError when the endpoint is out of
    order or refuses the key: nothing is settled then, and the patience of the lever is not spent."""
    dialogue, why = _Dialogue(first, settings), ""
    try:
        for _ in range(settings.tries):
            found = dialogue.ask(ports.chat(), check)
            if isinstance(found, Proposal):
                return dialogue.end(found, "", ports.blobs)
            why = str(found)
    except KeyRefused as cause:
        raise KeyRefused(f"{cause}; once that is mended, go on with: resia run --resume {run}") from cause
    except EndpointRefused as cause:
        return dialogue.end(None, str(cause), ports.blobs)
    except ModelError as cause:
        raise ModelError(f"{cause}; when it answers again, go on with: resia run --resume {run}") from cause
    return dialogue.end(None, f"no valid reply in {settings.tries}; the last: {why}", ports.blobs)
