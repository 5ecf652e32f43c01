"""Events and drafts that tests start from."""

from __future__ import annotations

from resia.events import Blob, Candidate, Draft, Event, RunFailed, RunRequested, RunSettings, StepTrained, TestUnsealed
from resia.events.catalogue import WRITERS
from resia.runtime.worker import Clerk


def clerk(run: str, role: str = "user", worker: str = "w1") -> Clerk:
    return Clerk(run, role, worker, "0", lambda: 1.0)


def requested(**settings: object) -> RunRequested:
    chosen = RunSettings(**settings)
    items = {
        "search": ("s0", "s1"),
        "validation": tuple(f"v{n}" for n in range(12)),
        "test": ("t0", "t1"),
    }
    return RunRequested(chosen, chosen.digest(), "d" * 64, "m" * 64, items, ("grpo", "best_of_n"))


def step(number: int, training: str = "t") -> StepTrained:
    return StepTrained(training, 0, number, 0.5, 0.0, 1.0, 0.0, 1.0, 1e-4, 10, 5.0)


def writer(event: Event) -> str:
    """A role that may write `event`."""
    return next(role for role, kinds in WRITERS.items() if type(event) in kinds)


def drafts_of(run: str, events: list[Event], first: int = 0) -> list[Draft]:
    """Drafts with distinct ids by ordinal, all caused by nothing, each by a role that may write it."""
    return [
        clerk(run, writer(event)).draft(None, 0, event, "test", ordinal) for ordinal, event in enumerate(events, first)
    ]


BLOB = Blob("a" * 64, 3)
CANDIDATE = Candidate(BLOB)
UNSEALED = TestUnsealed(CANDIDATE, CANDIDATE)
FAILED = RunFailed("x")


# Of a whole run with one training in it, of the taught model of tiny_agent.py: ten seconds on one core.
SETTINGS = [
    "domain_options.synthetic=true",
    "domain_options.search_items=3",
    "domain_options.test_items=2",
    "engine.threads=1",
    "loop.mode=W",
    "loop.patience_w=1",
    "sampling.group_size=8",
    "sampling.shard_size=8",
    "training.rank=8",
    "training.rounds=2",
    "training.groups=2",
    "training.group_size=8",
    "seed=3",
]
