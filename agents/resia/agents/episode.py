"""The turns of a shard's rollouts: sample, extract, dispatch, try again, and go on with what the domain answers.

All rollouts of a shard go in step, each try of a step sampled as one batch. What failed how is decided here in one
place (`_failure`); what an answer is worth is not (see `rollout`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from resia.domains.base import Domain, Value, following, parsed, rendered
from resia.events import Failure, Harness, Message, RolloutsRequested, Slot, Split, ToolCall, Turn
from resia.events.errors import SandboxError
from resia.events.ids import seed_for

from .desk import DETAIL_CHARS, TEXT_LIMIT, Desk, Shard, questions, sample
from .perturbing import perturbed, restored
from .ports import NO_ROOM, REFUSED, Completion, Json
from .structured import answer_schema
from .voting import elected, voted_down

OBSERVATION_CHARS = 4_000
_REFUSALS = ("i cannot", "i can't", "i'm sorry", "i am sorry", "as an ai")


class Read(NamedTuple):
    """What became of one completion: the answer, or an observation that the model is to be told (`told`), or how it
    failed."""

    answer: dict[str, Value] | None
    failure: Failure | None
    detail: str
    request: str = ""
    calls: tuple[ToolCall, ...] = ()
    told: str | None = None


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

    @property
    def observations(self) -> int:
        """Turns that ended in an observation of dispatch's: neither an answer nor a failure."""
        return sum(not turn.failure for turn in self.turns) - len(self.answers)


def play(shard: Shard) -> list[Episode]:
    """Every slot's rollout to its end, in the order of the slots. Raises BoundaryError when engine or sandbox broke."""
    event, harness, domain, *_ = shard
    prompts = {item.id: item.prompt for split in _splits(event) for item in domain.items(split)}
    episodes = [Episode(slot, perturbed(chat(harness, prompts[slot.item]), domain, slot)) for slot in event.slots]
    # Every move of a rollout is an answer or an observation, of which there are only so many.
    for move in range(domain.spec.steps + harness.retry_policy.tool_turns):
        todo = [i for i, episode in enumerate(episodes) if not episode.over]
        for attempt in range(harness.retry_policy.attempts):
            if not todo:
                break
            asked, votes = [episodes[i] for i in todo], range(harness.retry_policy.votes)
            completions = [_complete(shard, asked, (move, attempt, vote)) for vote in votes]
            for i, cast in zip(todo, zip(*completions, strict=True), strict=True):
                episodes[i] = _taken(shard, episodes[i], cast, (move, attempt))
            todo = [i for i in todo if episodes[i].read.failure is not None and not episodes[i].over]
        episodes = [_going_on(episode, domain) for episode in episodes]
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


def _taken(shard: Shard, episode: Episode, cast: Sequence[Completion], at: tuple[int, int]) -> Episode:
    """The rollout after one more try, of one completion or of several that vote. Where the dialogue, or the harness's
    first prompt, has outgrown the model's context, it is cut off where it stands."""
    if cast[0].finish == NO_ROOM:  # they have one prompt, so all of them
        detail = f"{cast[0].prompt_tokens} tokens of dialogue leave the model no room for an answer"
        return episode._replace(read=Read(None, "truncation", detail), over=True)
    reads = [_read(shard, episode, completion, (*at, vote)) for vote, completion in enumerate(cast)]
    chosen = elected([_ballot(read, shard.domain) for read in reads])
    turns = [_turn(episode.messages, completion, read) for completion, read in zip(cast, reads, strict=True)]
    others = [voted_down(turn) for number, turn in enumerate(turns) if number != chosen]
    return episode._replace(turns=(*episode.turns, *others, turns[chosen]), read=reads[chosen])


def _ballot(read: Read, domain: Domain) -> str | None:
    """What a completion votes for: its answer as canonical text, or what dispatch found to tell the model."""
    return read.told if read.answer is None else rendered(domain, read.answer)


def _going_on(episode: Episode, domain: Domain) -> Episode:
    """The rollout after a move: its answer taken in, and told what came of it where another turn follows."""
    if episode.over:
        return episode
    told = episode.read.told
    if episode.read.answer is not None:
        answers = (*episode.answers, episode.read.answer)
        episode = episode._replace(answers=answers, answered=(*episode.answered, len(episode.turns) - 1))
        told = following(domain, episode.slot.item, answers) if len(answers) < domain.spec.steps else None
    if told is None:
        return episode._replace(over=True)
    return episode._replace(
        messages=(*episode.messages, Message("assistant", episode.turns[-1].text), Message("user", told))
    )


def _complete(shard: Shard, episodes: Sequence[Episode], at: tuple[int, int, int]) -> list[Completion]:
    """One batch of completions at (move, attempt, vote)."""
    seeds = [_seed(episode.slot.seed, *at) for episode in episodes]
    # A second try or vote samples even where the first was greedy: the same tokens again would say the same.
    greedy = episodes[0].slot.greedy and not any(at[1:])
    schema = answer_schema(shard.domain.spec) if shard.ports.structured else ""
    return sample(shard, [episode.messages for episode in episodes], seeds, greedy, schema)


def _seed(seed: int, move: int, attempt: int, vote: int) -> int:
    """The slot's own seed draws its first turn."""
    for name, number in (("step", move), ("attempt", attempt), ("vote", vote)):
        seed = seed_for(seed, name, number) if number else seed
    return seed


def _read(shard: Shard, episode: Episode, completion: Completion, at: tuple[int, int, int]) -> Read:
    """Extract and dispatch, both in the sandbox; the tool's own check decides whether the answer stands."""
    sandbox, harness = shard.ports.sandbox(), shard.harness
    text = completion.text[:TEXT_LIMIT].encode(errors="replace").decode()  # half a character is no JSON
    try:
        request = sandbox.run(harness.answer_extraction, "extract", [text]).value
        if request is None or not isinstance(request, dict):
            return Read(None, _failure(completion), f"nothing could be extracted from {text[:80]!r}")
    except SandboxError as cause:
        return Read(None, _sandbox_failure(cause), str(cause)[:DETAIL_CHARS])
    asked = json.dumps(request, sort_keys=True)[:DETAIL_CHARS]
    asked_before = questions([call for turn in episode.turns for call in turn.calls])
    seed = seed_for(_seed(episode.slot.seed, *at), "ask")
    left = harness.retry_policy.tool_turns - episode.observations
    desk = Desk(shard, episode.slot, asked_before, seed, left)
    try:
        ran = sandbox.run(harness.tool_dispatch, "dispatch", [request], desk.tools())
        told = _told(ran.value, episode, harness)
        answer = None if told is not None else restored(_answer(ran.value, shard.domain), shard.domain, episode.slot)
    except SandboxError as cause:
        return Read(None, _sandbox_failure(cause), str(cause)[:DETAIL_CHARS], asked, desk.calls())
    except ValueError as cause:
        return Read(None, "tool_error", str(cause)[:DETAIL_CHARS], asked, desk.calls())
    return Read(answer, None, "", asked, desk.calls(), told)


def _answer(value: Json, domain: Domain) -> dict[str, Value]:
    if not isinstance(value, dict):
        raise ValueError(f"dispatch returned {value!r:.80} and no answer")
    return parsed(domain, value)


def _told(value: Json, episode: Episode, harness: Harness) -> str | None:
    """What the model is told before it goes on, where dispatch gave an observation and no answer."""
    limit = harness.retry_policy.tool_turns
    if not isinstance(value, str) or not limit:
        return None
    if episode.observations >= limit:
        raise ValueError(f"dispatch gave an observation {limit + 1} times and the policy allows {limit} (tool_turns)")
    return value if len(value) <= OBSERVATION_CHARS else f"{value[:OBSERVATION_CHARS]} ..."


def _failure(completion: Completion) -> Failure:
    """The class of a completion from which nothing could be extracted."""
    lowered = completion.text.lower()
    if completion.finish == REFUSED or any(phrase in lowered for phrase in _REFUSALS):
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
        usage=msgspec.UNSET if completion.usage is None else completion.usage,
    )
