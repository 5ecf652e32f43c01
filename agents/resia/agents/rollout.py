"""The Task-Agent at work: sample a shard with a harness, score every answer, record every step.

Effects only, through the ports. What an answer is worth is the domain's business, what failed how is decided here in
one place (`_failure`): a failure of the infrastructure is never scored.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import msgspec

from resia.domains.base import Domain, Score, Value
from resia.events import (
    ControlFailed,
    ControlMeasured,
    ControlRequested,
    Event,
    Fact,
    Failure,
    Harness,
    Message,
    RolloutFailed,
    RolloutRecorded,
    RolloutsRequested,
    ShardSampled,
    Slot,
    Split,
    ToolCall,
    Trajectory,
    Turn,
    decode_harness,
)
from resia.events.errors import BlobError, BoundaryError, ModelError, SandboxError, boundary
from resia.events.ids import seed_for
from resia.replay.state import RunState

from .ports import AgentPorts, Completion, Json, Sampling

TRAJECTORY_MEDIA = "application/vnd.resia.trajectory+msgpack"
ENGINE_TRIES = 2
DETAIL_CHARS = 300
TEXT_LIMIT = 100_000
_REFUSALS = ("i cannot", "i can't", "i'm sorry", "i am sorry", "as an ai")


class Read(NamedTuple):
    """What became of one completion: the answer (None: none), or how it failed."""

    answer: dict[str, Value] | None
    failure: Failure | None
    detail: str
    request: str = ""
    calls: tuple[ToolCall, ...] = ()


class Progress(NamedTuple):
    """A rollout under way: its turns so far and how the last one was read."""

    slot: Slot
    turns: tuple[Turn, ...]
    read: Read


def sample_shard(state: RunState, fact: Fact, domain: Domain, ports: AgentPorts) -> Iterator[list[Event]]:
    """Perform RolloutsRequested: one atomic batch with every rollout of the shard and ShardSampled last."""
    event = fact.event
    assert isinstance(event, RolloutsRequested)
    started = ports.clock()
    harness = decode_harness(ports.blobs.get(event.candidate.harness))
    try:
        done = _attempts(event, harness, domain, ports)
    except BlobError:
        raise  # the store failed, not the sampling: the worker comes back to this shard
    except BoundaryError as cause:  # the engine or the sandbox itself broke: nothing here is the agent's fault
        failed = [_failed(event, slot, str(cause)) for slot in event.slots]
        yield [*failed, _sampled(fact, [], len(failed), ports, started)]
        return
    memo = _Scores(state, domain)
    temperature = harness.retry_policy.temperature
    rollouts = [_recorded(event, progress, temperature, memo, ports) for progress in done]
    yield [*rollouts, _sampled(fact, rollouts, 0, ports, started)]


def measure_controls(fact: Fact, domain: Domain) -> Iterator[list[Event]]:
    """Perform ControlRequested."""
    event = fact.event
    assert isinstance(event, ControlRequested)
    try:
        with boundary(BoundaryError, "measure the controls"):
            scores = domain.controls(event.budget, event.seed)
    except BoundaryError as cause:
        yield [ControlFailed(fact.envelope.id, str(cause))]
        return
    yield [ControlMeasured(fact.envelope.id, scores)]


def _attempts(event: RolloutsRequested, harness: Harness, domain: Domain, ports: AgentPorts) -> list[Progress]:
    """Every slot's turns: the whole shard first, then again those whose answer could not be read."""
    prompts = {item.id: item.prompt for split in _splits(event) for item in domain.items(split)}
    done: dict[int, Progress] = {}
    todo = list(range(len(event.slots)))
    for attempt in range(harness.retry_policy.attempts):
        slots = [event.slots[i] for i in todo]
        messages = [chat(harness, prompts[slot.item]) for slot in slots]
        completions = _complete(event, harness, slots, messages, attempt, ports)
        for index, sent, completion in zip(todo, messages, completions, strict=True):
            before = done[index].turns if index in done else ()
            read = _read(completion, harness, domain, ports)
            turn = _turn(sent, completion, read)
            done[index] = Progress(event.slots[index], (*before, turn), read)
        todo = [i for i in todo if done[i].read.failure is not None]
        if not todo:
            break
    return [done[i] for i in range(len(event.slots))]


def _splits(event: RolloutsRequested) -> list[Split]:
    return sorted({slot.split for slot in event.slots})


def chat(harness: Harness, prompt: str) -> tuple[Message, ...]:
    """The messages a model sees: system prompt, demonstrations as turns, then the item's own prompt."""
    shown = [
        message
        for example in harness.system_prompt.examples
        for message in (Message("user", example.user), Message("assistant", example.assistant))
    ]
    return (Message("system", harness.system_prompt.text), *shown, Message("user", prompt))


def _complete(
    event: RolloutsRequested,
    harness: Harness,
    slots: Sequence[Slot],
    messages: Sequence[Sequence[Message]],
    attempt: int,
    ports: AgentPorts,
) -> list[Completion]:
    """One batch of completions; an engine that fails is asked once more before the shard is given up."""
    policy = harness.retry_policy
    # A second try samples even where the first was greedy: the same tokens again would fail again.
    temperature = 0.0 if slots[0].greedy and not attempt else policy.temperature
    sampling = Sampling(temperature, policy.max_new_tokens, policy.stop)
    seeds = [seed_for(slot.seed, "attempt", attempt) if attempt else slot.seed for slot in slots]
    adapter = ports.blobs.path(event.candidate.adapter) if event.candidate.adapter else None
    for left in reversed(range(ENGINE_TRIES)):
        try:
            return ports.engine().generate(messages, sampling, seeds, adapter, _announce(event, ports))
        except ModelError:
            if not left:
                raise
    raise AssertionError("the last try returns or raises")


def _announce(event: RolloutsRequested, ports: AgentPorts) -> Callable[[int], None]:
    total = 0

    def hear(tokens: int) -> None:
        nonlocal total
        total += tokens
        about = {"purpose": event.purpose, "shard": event.shard, "shards": event.shards, "round": event.round}
        ports.live({"kind": "tokens", "tokens": total, "rollouts": len(event.slots), **about})

    return hear


def _read(completion: Completion, harness: Harness, domain: Domain, ports: AgentPorts) -> Read:
    """Extract and dispatch, both in the sandbox; the tool's own check decides whether the answer stands."""
    sandbox = ports.sandbox()
    text = completion.text[:TEXT_LIMIT].encode(errors="replace").decode()  # half a character is no JSON
    try:
        request = sandbox.run(harness.answer_extraction, "extract", [text]).value
        if request is None or not isinstance(request, dict):
            return Read(None, _failure(completion), f"nothing could be extracted from {text[:80]!r}")
    except SandboxError as cause:
        return Read(None, _sandbox_failure(cause), str(cause)[:DETAIL_CHARS])
    asked = json.dumps(request, sort_keys=True)[:DETAIL_CHARS]

    def tool(arguments: dict[str, Json]) -> Json:
        return domain.parse(arguments)

    try:
        ran = sandbox.run(harness.tool_dispatch, "dispatch", [request], {domain.spec.tool: tool})
        if not isinstance(ran.value, dict):
            return Read(None, "tool_error", f"dispatch returned {ran.value!r:.80} and no answer", asked)
        answer = domain.parse(ran.value)
    except SandboxError as cause:
        return Read(None, _sandbox_failure(cause), str(cause)[:DETAIL_CHARS], asked)
    except ValueError as cause:
        return Read(None, "tool_error", str(cause)[:DETAIL_CHARS], asked)
    calls = tuple(ToolCall(name, json.dumps(args), json.dumps(result)) for name, args, result in ran.calls)
    return Read(answer, None, "", asked, calls)


def _failure(completion: Completion) -> Failure:
    """The class of a completion from which nothing could be extracted."""
    lowered = completion.text.lower()
    if any(phrase in lowered for phrase in _REFUSALS):
        return "refusal"
    return "truncation" if completion.finish == "length" else "parse"


_SANDBOX_FAILURES: dict[str, Failure] = {
    "tool_error": "tool_error",
    "timeout": "timeout",
    "sandbox_violation": "sandbox_violation",
}


def _sandbox_failure(cause: SandboxError) -> Failure:
    return _SANDBOX_FAILURES[cause.failure]


def _turn(messages: Sequence[Message], completion: Completion, read: Read) -> Turn:
    return Turn(
        tuple(messages),
        completion.prompt_ids,
        completion.token_ids,
        completion.logprobs,
        completion.text,
        completion.finish,
        read.request,
        read.calls,
        read.failure or "",
    )


class _Scores:
    """Scores each answer on an item once: known from the log, from this shard, or asked of the domain."""

    def __init__(self, state: RunState, domain: Domain) -> None:
        self._state, self._domain = state, domain
        self._here: dict[tuple[str, str], Score] = {}

    def score(self, slot: Slot, read: Read) -> tuple[Score, str, bool]:
        """(score, canonical answer, whether it had been scored before)."""
        if read.answer is None:
            return Score(0.0, False, read.failure, read.detail, {}), "", False
        answer = self._domain.render(read.answer)
        known = self._here.get((slot.item, answer)) or self._logged(slot.item, answer)
        score = known or self._domain.score(slot.item, read.answer)
        self._here[slot.item, answer] = score
        return score, answer, known is not None

    def _logged(self, item: str, answer: str) -> Score | None:
        rollout = self._state.scores.get((item, answer))
        holders = (*self._state.evaluations.values(), *self._state.trainings.values())
        found = next((h.rollouts[rollout] for h in holders if rollout in h.rollouts), None) if rollout else None
        return Score(found.reward, found.success, found.failure, found.detail, found.metrics) if found else None


def _recorded(
    event: RolloutsRequested, progress: Progress, temperature: float, memo: _Scores, ports: AgentPorts
) -> RolloutRecorded:
    """The fact of one rollout, its trajectory stored first."""
    slot = progress.slot
    score, answer, reused = memo.score(slot, progress.read)
    last = msgspec.structs.replace(progress.turns[-1], reward=score.reward)
    turns = (*progress.turns[:-1], last)
    trajectory = Trajectory(slot.item, slot.seed, 0.0 if slot.greedy else temperature, turns, answer)
    return RolloutRecorded(
        evaluation=event.evaluation,
        purpose=event.purpose,
        round=event.round,
        split=slot.split,
        item=slot.item,
        index=slot.index,
        seed=slot.seed,
        greedy=slot.greedy,
        reward=score.reward,
        success=score.success,
        failure=score.failure,
        detail=score.detail[:DETAIL_CHARS],
        metrics=score.metrics,
        answer=answer,
        step_rewards=tuple(turn.reward for turn in turns),
        prompt_tokens=sum(len(turn.prompt_ids) for turn in turns),
        completion_tokens=sum(len(turn.completion_ids) for turn in turns),
        trajectory=ports.blobs.put(trajectory.encoded(), TRAJECTORY_MEDIA),
        reused=reused,
    )


def _failed(event: RolloutsRequested, slot: Slot, error: str) -> RolloutFailed:
    return RolloutFailed(
        event.evaluation, event.purpose, event.round, slot.split, slot.item, slot.index, error[:DETAIL_CHARS]
    )


def _sampled(
    fact: Fact, rollouts: Sequence[RolloutRecorded], failed: int, ports: AgentPorts, started: float
) -> ShardSampled:
    event = fact.event
    assert isinstance(event, RolloutsRequested)
    manifest = msgspec.structs.replace(ports.engine().manifest, sandbox_tier=ports.sandbox().tier)
    return ShardSampled(
        fact.envelope.id,
        event.evaluation,
        event.purpose,
        event.shard,
        event.shards,
        event.round,
        len(rollouts),
        failed,
        sum(r.prompt_tokens for r in rollouts),
        sum(r.completion_tokens for r in rollouts),
        ports.clock() - started,
        manifest,
    )
