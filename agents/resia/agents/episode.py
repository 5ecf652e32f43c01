"""The turns of a shard's rollouts: sample, extract, dispatch, try again, and go on with what the domain answers.

All rollouts of a shard go in step, each try of a step sampled as one batch. What failed how is decided here in one
place (`_failure`); what an answer is worth is not (see `rollout`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import NamedTuple

from resia.domains.base import Domain, Value, following
from resia.events import Failure, Harness, Message, RolloutsRequested, Slot, Split, ToolCall, Turn
from resia.events.errors import ModelError, SandboxError
from resia.events.ids import seed_for

from .perturbing import perturbed, restored
from .ports import NO_ROOM, AgentPorts, Completion, Json, Sampling

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


class Episode(NamedTuple):
    """A rollout under way: what the model sees next, the turns so far, and how the last one was read.

    `answers` has an answer a step; `answered` the turn that gave it. `over`: there is no next turn.
    """

    slot: Slot
    messages: tuple[Message, ...]
    turns: tuple[Turn, ...] = ()
    read: Read = Read(None, None, "")
    answers: tuple[dict[str, Value], ...] = ()
    answered: tuple[int, ...] = ()
    over: bool = False


def play(event: RolloutsRequested, harness: Harness, domain: Domain, ports: AgentPorts) -> list[Episode]:
    """Every slot's rollout to its end, in the order of the slots. Raises BoundaryError when engine or sandbox broke."""
    prompts = {item.id: item.prompt for split in _splits(event) for item in domain.items(split)}
    episodes = [Episode(slot, perturbed(chat(harness, prompts[slot.item]), domain, slot)) for slot in event.slots]
    for step in range(domain.spec.steps):
        todo = [i for i, episode in enumerate(episodes) if not episode.over]
        for attempt in range(harness.retry_policy.attempts):
            if not todo:
                break
            completions = _complete(event, harness, [episodes[i] for i in todo], (step, attempt), ports)
            for i, completion in zip(todo, completions, strict=True):
                episodes[i] = _taken(episodes[i], completion, harness, domain, ports)
            todo = [i for i in todo if episodes[i].read.failure is not None and not episodes[i].over]
        episodes = [_going_on(episode, step, domain) for episode in episodes]
    return episodes


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


def _taken(episode: Episode, completion: Completion, harness: Harness, domain: Domain, ports: AgentPorts) -> Episode:
    """The rollout after one more try. A dialogue that has outgrown the model's context is cut off where it stands."""
    if completion.finish == NO_ROOM:
        detail = f"{len(completion.prompt_ids)} tokens of dialogue leave the model no room for an answer"
        if not episode.turns:  # the item's own prompt: no rollout of this harness can be had
            raise ModelError(detail)
        return episode._replace(read=Read(None, "truncation", detail), over=True)
    read = _read(completion, harness, domain, ports)
    if read.answer is not None:
        read = read._replace(answer=restored(read.answer, domain, episode.slot))
    turn = _turn(episode.messages, completion, read)
    return episode._replace(turns=(*episode.turns, turn), read=read)


def _going_on(episode: Episode, step: int, domain: Domain) -> Episode:
    """The rollout after a step: its answer taken in, and told what came of it where another step follows."""
    if episode.over:
        return episode
    if episode.read.answer is None:
        return episode._replace(over=True)
    answers = (*episode.answers, episode.read.answer)
    told = following(domain, episode.slot.item, answers) if step + 1 < domain.spec.steps else None
    said = (Message("assistant", episode.turns[-1].text), Message("user", told or ""))
    return episode._replace(
        answers=answers,
        answered=(*episode.answered, len(episode.turns) - 1),
        messages=episode.messages + said,
        over=told is None,
    )


def _complete(
    event: RolloutsRequested,
    harness: Harness,
    episodes: Sequence[Episode],
    at: tuple[int, int],
    ports: AgentPorts,
) -> list[Completion]:
    """One batch of completions at (step, attempt); an engine that fails is asked once more before the shard is given
    up."""
    step, attempt = at
    policy = harness.retry_policy
    # A second try samples even where the first was greedy: the same tokens again would fail again.
    temperature = 0.0 if episodes[0].slot.greedy and not attempt else policy.temperature
    sampling = Sampling(temperature, policy.max_new_tokens, policy.stop)
    seeds = [_seed(episode.slot.seed, step, attempt) for episode in episodes]
    adapter = ports.blobs.path(event.candidate.adapter) if event.candidate.adapter else None
    messages = [episode.messages for episode in episodes]
    for left in reversed(range(ENGINE_TRIES)):
        try:
            return ports.engine().generate(messages, sampling, seeds, adapter, _announce(event, ports))
        except ModelError:
            if not left:
                raise
    raise AssertionError("the last try returns or raises")


def _seed(seed: int, step: int, attempt: int) -> int:
    """The slot's own seed draws its first turn."""
    own = seed_for(seed, "step", step) if step else seed
    return seed_for(own, "attempt", attempt) if attempt else own


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
