"""A model that says what a test tells it to, and the log, ports and domain around it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from given import clerk
from resia.agents.ports import AgentPorts, Completion, Sampling
from resia.domains.base import Answer, Domain, Score
from resia.domains.registry import load_domain
from resia.events import Draft, Event, Fact, Manifest, Message, decode
from resia.events.errors import ModelError, UsageError
from resia.replay.fold import fold
from resia.replay.state import RunState
from resia.runtime.blobs import DirectoryBlobs
from resia.runtime.sandbox import ProcessSandbox, SandboxLimits

MANIFEST = Manifest("scripted", "m" * 64, "float32", 1, "x86-64", "0")
GOOD = "knn=5 t=3 order=rev log=0 scale=1 round=0"
Says = Callable[[str, int], str]


class ScriptedEngine:
    """Implements ports.Engine: `says(item prompt, seed)` is the text; a token is a byte of it.

    Texts in `cut` end by length. The first `broken` calls raise ModelError.
    """

    def __init__(self, says: Says, cut: Sequence[str] = (), broken: int = 0) -> None:
        self._says, self._cut, self._broken = says, cut, broken
        self.calls: list[tuple[Sampling, tuple[int, ...], Path | None]] = []
        self.messages: list[Message] = []

    @property
    def manifest(self) -> Manifest:
        return MANIFEST

    def generate(
        self,
        prompts: Sequence[Sequence[Message]],
        sampling: Sampling,
        seeds: Sequence[int],
        adapter: Path | None,
        on_tokens: Callable[[int], None] | None = None,
    ) -> list[Completion]:
        self.calls.append((sampling, tuple(seeds), adapter))
        self.messages += [message for prompt in prompts for message in prompt]
        if len(self.calls) <= self._broken:
            raise ModelError("the model is gone")
        return [self._one(prompt, seed, on_tokens) for prompt, seed in zip(prompts, seeds, strict=True)]

    def _one(self, prompt: Sequence[Message], seed: int, on_tokens: Callable[[int], None] | None) -> Completion:
        text = self._says(prompt[-1].content, seed)
        tokens = tuple(text.encode()[:64])
        if on_tokens is not None:
            on_tokens(len(tokens))
        return Completion((1, 2, 3), tokens, (-0.5,) * len(tokens), text, "length" if text in self._cut else "stop")


class CountingDomain:
    """Any domain, with the scores that were asked of it counted by (item, answer)."""

    def __init__(self, domain: Domain) -> None:
        self._domain = domain
        self.scored: Counter[tuple[str, str]] = Counter()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._domain, name)

    def score(self, item: str, answer: Answer) -> Score:
        self.scored[item, self._domain.render(answer)] += 1
        return self._domain.score(item, answer)


def small_domain() -> Domain:
    return load_domain("denoising", {"synthetic": True, "search_items": 3, "validation_items": 3, "test_items": 2})


def confined(**limits: Any) -> Iterator[ProcessSandbox]:
    """The real sandbox for a fixture to yield from; the test is skipped where there is none."""
    try:
        made = ProcessSandbox(SandboxLimits(**limits))
    except UsageError as cause:
        pytest.skip(str(cause))
    with made:
        yield made


def ports(engine: ScriptedEngine, sandbox: ProcessSandbox, blobs: DirectoryBlobs, live: list[Any]) -> AgentPorts:
    ticks = iter(range(10_000))
    return AgentPorts(lambda: engine, lambda: sandbox, blobs, lambda: float(next(ticks)), live.append)


class Tape:
    """A log in memory: `add` appends events as facts, `state` folds them."""

    def __init__(self, run: str = "tape") -> None:
        self._clerk = clerk(run)
        self.facts: list[Fact] = []
        self.drafts: list[Draft] = []

    def add(self, *events: Event, cause: str | None = None) -> list[Fact]:
        added = []
        for event in events:
            draft = self._clerk.draft(cause, 0, event, "tape", len(self.facts))
            self.drafts.append(draft)
            self.facts.append(decode(len(self.facts) + 1, draft.subject, draft.data))
            added.append(self.facts[-1])
        return added

    @property
    def state(self) -> RunState:
        return fold(self.facts)


def requests() -> Mapping[str, Any]:
    """Arguments as hostile JSON may hold them, by a name that says why."""
    return {
        "float for int": 5.0,
        "huge": 10**400,
        "list": [1],
        "null": None,
        "bool": True,
        "text": "x" * 50,
        "dict": {},
    }
