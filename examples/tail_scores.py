"""Print a line whenever a candidate is judged: python examples/tail_scores.py RUN [--store DIR | --nats URL]."""

import argparse
import asyncio
import sys
from pathlib import Path

from resia.events import CandidateAccepted, CandidateRejected, CandidateUndecided, Fact, RunCompleted, RunFailed
from resia.runtime.store import Store, opened


async def tail(store: Store, run: str) -> None:
    """Follow `run` to its end, by a consumer of its own that never disturbs the run."""
    async with opened(store) as bus:
        async for fact in bus.read(run, follow=True):
            match fact:
                case Fact(event=CandidateAccepted() | CandidateRejected() | CandidateUndecided() as verdict):
                    sys.stdout.write(f"{fact.sequence:6}  {fact.envelope.type}: {verdict.gate.reason}\n")
                case Fact(event=RunCompleted() | RunFailed()):
                    return


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("--store", type=Path, default=Path(".resia"))
    parser.add_argument("--nats")
    given = parser.parse_args()
    asyncio.run(tail(Store(given.store, given.nats), given.run))
