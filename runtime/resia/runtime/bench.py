"""Measurements of the log on this machine: durable appends one by one and in batches, and the fold."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from resia.events import (
    Blob,
    Candidate,
    Draft,
    EvaluationRequested,
    Event,
    RolloutRecorded,
    RunRequested,
    RunSettings,
    decode,
)
from resia.replay.fold import fold

from .resources import package_version
from .store import Store, opened
from .worker import Clerk

RUN = "bench"
BATCH = 500
SINGLES_SHARE = 10  # single appends are an order slower: take a tenth of them


def rollouts(count: int, run: str = RUN) -> list[Draft]:
    """Drafts of `count` recorded rollouts of one evaluation, after the two events that a fold needs before them."""
    settings, blob = RunSettings(), Blob("a" * 64, 900)
    user, task = (Clerk(run, role, "bench", package_version(), time.time) for role in ("user", "task"))
    genesis = user.genesis(RunRequested(settings, settings.digest(), "", "", {}, ()))
    asked = task.draft(genesis.id, 1, EvaluationRequested("candidate", 0, Candidate(blob), ()), "bench", 0)
    events: list[Event] = [
        RolloutRecorded(
            evaluation=asked.id,
            purpose="candidate",
            round=0,
            split="search",
            item=f"item-{n % 50:03d}",
            index=n // 50,
            seed=n,
            greedy=False,
            reward=0.25,
            success=True,
            failure=None,
            detail="",
            metrics={"audited": 0.25, "published": 0.3},
            answer=f"knn=5 t=3 order=rev log=0 scale=1 round={n % 7}",
            step_rewards=(0.25,),
            prompt_tokens=300,
            completion_tokens=24,
            trajectory=blob,
        )
        for n in range(count)
    ]
    return [genesis, asked, *(task.draft(asked.id, 2, event, "bench", n) for n, event in enumerate(events, 1))]


async def log(events: int) -> dict[str, float]:
    """Rates a second of recorded rollouts: `append_single_per_s`, `append_batch_per_s` (500 a batch), `fold_per_s`
    (decode and evolve, in memory).

    On an embedded server with fsync before every acknowledgement, in a temporary folder below the present one.
    """
    drafts = rollouts(events)
    single, batched = drafts[: events // SINGLES_SHARE], drafts[events // SINGLES_SHARE :]
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        async with opened(Store(Path(folder))) as bus:
            await bus.create_run(RUN)
            started = time.perf_counter()
            for draft in single:
                await bus.append(RUN, [draft])
            single_s = time.perf_counter() - started
            started = time.perf_counter()
            for first in range(0, len(batched), BATCH):
                await bus.append(RUN, batched[first : first + BATCH])
            batch_s = time.perf_counter() - started
    started = time.perf_counter()
    fold(decode(n, draft.subject, draft.data) for n, draft in enumerate(drafts, 1))
    fold_s = time.perf_counter() - started
    return {
        "append_single_per_s": len(single) / single_s,
        "append_batch_per_s": len(batched) / batch_s,
        "fold_per_s": len(drafts) / fold_s,
    }
