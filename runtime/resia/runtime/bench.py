"""Measurements of the log on this machine: durable appends one by one and in batches, and the fold."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from resia.events import RunRequested, RunSettings, StepTrained, decode
from resia.replay.fold import fold

from .resources import package_version
from .store import Store, opened
from .worker import Clerk

BATCH = 500
SINGLES_SHARE = 10  # single appends are an order slower: take a tenth of them


async def log(events: int) -> dict[str, float]:
    """Rates a second: `append_single_per_s`, `append_batch_per_s` (500 a batch), `fold_per_s` (decode and evolve).

    On an embedded server with fsync before every acknowledgement, in a temporary folder.
    """
    settings = RunSettings()
    genesis = RunRequested(settings, settings.digest(), "", "", {}, ())
    step = StepTrained("t" * 26, 0, 0, 0.5, 0.01, 1.0, 0.0, 1.0, 3e-4, 4096, 900.0)
    with tempfile.TemporaryDirectory() as folder:
        async with opened(Store(Path(folder))) as bus:
            await bus.create_run("bench")
            clerk = Clerk("bench", "user", "bench", package_version(), time.time)
            await bus.append("bench", [clerk.genesis(genesis)])
            drafts = [clerk.draft("bench", 1, step, "bench", n) for n in range(events)]
            single, batched = drafts[: events // SINGLES_SHARE], drafts[events // SINGLES_SHARE :]
            started = time.perf_counter()
            for draft in single:
                await bus.append("bench", [draft])
            single_s = time.perf_counter() - started
            started = time.perf_counter()
            for first in range(0, len(batched), BATCH):
                await bus.append("bench", batched[first : first + BATCH])
            batch_s = time.perf_counter() - started
    started = time.perf_counter()
    fold(decode(n, draft.subject, draft.data) for n, draft in enumerate(drafts, 1))
    fold_s = time.perf_counter() - started
    return {
        "append_single_per_s": len(single) / single_s,
        "append_batch_per_s": len(batched) / batch_s,
        "fold_per_s": events / fold_s,
    }
