"""A run that has not ended, on a server of its own, for workers of a user's own: laid down, watched, ended."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import histories
from given import clerk
from resia.events import Custom, Draft, Fact, Logged, RunCompleted, RunFailed
from resia.replay.fold import fold
from resia.replay.state import RunState
from resia.runtime.bus import Bus

LIMIT_S = 60
RUN = "watched"


def unfinished(run: str = RUN) -> tuple[histories.History, int]:
    """A played run and how many of its events come before its end."""
    played = histories.play(histories.run_request(patience_h=4, max_iterations=6), run=run)
    return played, next(n for n, fact in enumerate(played.facts) if isinstance(fact.event, RunCompleted))


async def lay(bus: Bus, run: str = RUN) -> tuple[tuple[Fact, ...], RunState]:
    """Create the run and append everything but its end; the facts and the state after them."""
    played, count = unfinished(run)
    await bus.create_run(run)
    for (subject, data), fact in zip(played.records[:count], played.facts[:count], strict=True):
        await bus.append(run, [Draft(fact.envelope.id, subject, data, fact.event)])
    return played.facts[:count], fold(played.facts[:count])


async def end(bus: Bus, run: str = RUN) -> None:
    """Append an ending, at which every worker of the run ends."""
    async for first in bus.read(run):
        await bus.append(run, clerk(run, "feedback").drafts(first, 1, [RunFailed("enough was seen")], "end"))
        return


async def customs(bus: Bus, count: int, run: str = RUN) -> list[Custom]:
    """The first `count` custom facts of the run, waited for."""
    found: list[Custom] = []

    async def collect() -> None:
        async for fact in bus.read(run, follow=True):
            if isinstance(fact, Custom):
                found.append(fact)
            if len(found) == count:
                return

    await asyncio.wait_for(collect(), LIMIT_S)
    return found


async def log_of(bus: Bus, run: str = RUN) -> list[Logged]:
    return [fact async for fact in bus.read(run)]


def resia(*args: object, python: Path | str = sys.executable) -> list[str]:
    """The command line of the environment that `python` belongs to."""
    return [str(Path(python).parent / "resia"), *map(str, args)]


def started(command: Sequence[str], **options: object) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, **options
    )


def ran(command: Sequence[str]) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command that ends soon."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
    return done.returncode, done.stdout, done.stderr


async def finished(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit code, standard output and standard error."""
    try:
        out, err = await asyncio.wait_for(asyncio.to_thread(process.communicate), LIMIT_S)
    except TimeoutError:
        process.kill()
        raise
    return process.returncode, out, err
