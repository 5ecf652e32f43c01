"""What a rollout asks for while it runs: completions of the model, and the tools that its dispatch finds.

Every call of a tool is recorded, those refused too, and every token of a model that dispatch asks is counted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import NamedTuple

from resia.domains.base import Domain
from resia.events import Harness, Message, RolloutsRequested, Slot, ToolCall
from resia.events.errors import ModelError
from resia.events.ids import seed_for

from .benching import Bench
from .ports import NO_ROOM, AgentPorts, Completion, Json, Sampling, Tool
from .toolbox import ASK, VERDICT, Judges, tools_of

ENGINE_TRIES = 2
DETAIL_CHARS = 300
TEXT_LIMIT = 100_000


class Shard(NamedTuple):
    """What is sampled, and with what."""

    event: RolloutsRequested
    harness: Harness
    domain: Domain
    ports: AgentPorts
    hear: Callable[[int], None]  # is told of new tokens
    bench: Bench | None = None  # judges the answers of a domain that does not score them itself


def sample(
    shard: Shard, messages: Sequence[Sequence[Message]], seeds: Sequence[int], greedy: bool, schema: str = ""
) -> list[Completion]:
    """Completions by the harness's policy; an engine that fails is asked once more before the shard is given up."""
    event, harness, _, ports, hear, _ = shard
    policy = harness.retry_policy
    sampling = Sampling(0.0 if greedy else policy.temperature, policy.max_new_tokens, policy.stop, schema)
    adapter = ports.blobs.path(event.candidate.adapter) if event.candidate.adapter else None
    for left in reversed(range(ENGINE_TRIES)):
        try:
            return ports.engine().generate(messages, sampling, seeds, adapter, hear)
        except ModelError:
            if not left:
                raise
    raise AssertionError("the last try returns or raises")


def announcer(event: RolloutsRequested, ports: AgentPorts) -> Callable[[int], None]:
    """What publishes the tokens of a shard as they come, all turns and questions together."""
    total = 0

    def hear(tokens: int) -> None:
        nonlocal total
        total += tokens
        about = {"purpose": event.purpose, "shard": event.shard, "shards": event.shards, "round": event.round}
        ports.live({"kind": "tokens", "tokens": total, "rollouts": len(event.slots), **about})

    return hear


def asker(slot: Slot) -> str:
    """A rollout's name for whoever judges its answer."""
    return f"{slot.split}/{slot.item}/{slot.index}"


class Desk:
    """The tools that a dispatch finds, and what it did with them."""

    def __init__(self, shard: Shard, slot: Slot, asked: int, seed: int, left: int = 0) -> None:
        """`asked`: questions that the rollout has put to the model in earlier turns; `left`: how many of its turns may
        still end in an observation."""
        self._shard, self._slot, self._asked, self._seed, self._left = shard, slot, asked, seed, left
        self._calls: list[ToolCall] = []
        self._spent = (0, 0)  # tokens of the call under way, in and out

    def tools(self) -> dict[str, Tool]:
        """The domain's, bound to the item, and `ask` where the policy allows it."""
        own = {ASK: self._ask} if self._shard.harness.retry_policy.asks else {}
        shard, slot = self._shard, self._slot
        found = own | tools_of(shard.domain, slot.item, Judges(shard.ports.programs, shard.bench, asker(slot)))
        for spec in shard.domain.spec.tools:
            if spec.gives == VERDICT:
                found[spec.name] = self._judging(found[spec.name])
        return {name: self._recorded(name, tool) for name, tool in found.items()}

    def calls(self) -> tuple[ToolCall, ...]:
        """In order, those that were refused with why."""
        return tuple(self._calls)

    def _judging(self, tool: Tool) -> Tool:
        """A verdict with what dispatch has to know to go by it: whether the model can still be told of it."""
        return lambda arguments: {**tool(arguments), "turns_left": self._left}

    def _recorded(self, name: str, tool: Tool) -> Tool:
        def call(arguments: dict[str, Json]) -> Json:
            self._spent = 0, 0
            try:
                result = tool(arguments)
            except ValueError as refused:
                self._record(name, arguments, {"error": str(refused)[:DETAIL_CHARS]})
                raise
            self._record(name, arguments, result)
            return result

        return call

    def _record(self, name: str, arguments: dict[str, Json], result: Json) -> None:
        self._calls.append(ToolCall(name, json.dumps(arguments), json.dumps(result), *self._spent))

    def _ask(self, arguments: dict[str, Json]) -> Json:
        """The model's reply to a prompt of dispatch's own; the dialogue goes on as if it had not been asked."""
        prompt, limit = arguments.get("prompt"), self._shard.harness.retry_policy.asks
        if not isinstance(prompt, str) or set(arguments) != {"prompt"}:
            raise ValueError("ask takes prompt, a text, and nothing else")
        before = self._asked + questions(self._calls)
        if before >= limit:
            raise ValueError(f"ask was called {before + 1} times in a rollout and the policy allows {limit} (asks)")
        message = Message("user", prompt[:TEXT_LIMIT])
        (reply,) = sample(self._shard, [(message,)], [seed_for(self._seed, before)], self._slot.greedy)
        if reply.finish == NO_ROOM:
            raise ValueError(f"a prompt of {reply.prompt_tokens} tokens leaves the model no room for a reply")
        self._spent = reply.prompt_tokens, reply.completion_tokens
        return reply.text.encode(errors="replace").decode()


def questions(calls: Sequence[ToolCall]) -> int:
    """How many of `calls` asked the model."""
    return sum(call.name == ASK for call in calls)
