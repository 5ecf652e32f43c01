"""Skew between the parties of a run: of versions, which keeps a worker from serving it, and of clocks, which is said.

A run is served by the package series (major.minor) that it began with. Its rules are that series': another's would
decide otherwise, or skip events that it does not know, and the log would hold both. Whoever reads a log, whatever the
series, is not concerned. Programs of others' packages have their own numbers and are not judged.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from typing import Protocol

import msgspec
import structlog

from resia.events import Fact, Logged, RunRequested, Skipped
from resia.events.errors import BusError, UsageError

CLOCK_S = 1.0  # a difference that is worth a word: it decides nothing
ASK_S = 5.0
INFO = "$JS.API.STREAM.INFO.KV_resia-runs"
_SERIES = re.compile(r"(\d+\.\d+)(?:[.+-]\S*)?")
_REQUEST = "run-requested version "
_log = structlog.get_logger()


class VersionSkew(UsageError):
    """This package is of another series than the run; the sentence names both."""


class Asked(Protocol):
    """What is needed of a connection."""

    async def request(self, subject: str, data: bytes = b"", timeout: float = ASK_S) -> bytes:  # noqa: ASYNC109
        """The first answer."""
        ...


def series(package: str) -> str:
    """major.minor of a version number; empty for anything else, such as another package's name and number."""
    found = _SERIES.fullmatch(package)
    return found[1] if found else ""


def fits_series(fact: Logged, run: str, package: str) -> bool:
    """Whether `fact` is the run's request and `package` may serve it; False for any other fact.

    Raises VersionSkew where the request is another series', or in a newer schema than this package reads.
    """
    if isinstance(fact, Skipped) and fact.why.startswith(_REQUEST):
        raise VersionSkew(f"run '{run}' begins with what resia {package} cannot read: {fact.why}")
    if not isinstance(fact, Fact) or not isinstance(fact.event, RunRequested):
        return False
    began = fact.envelope.producer.package
    if series(began) and series(package) and series(began) != series(package):
        raise VersionSkew(
            f"run '{run}' was begun by resia {began} and this is resia {package}: serve it with {series(began)}, or"
            f" begin anew from its last decision with resia fork {run}@K"
        )
    return True


async def clock_skew(bus: Asked, now: Callable[[], float]) -> float | None:
    """Seconds by which the clock `now` is ahead of the server's, to half the time of an answer; None: it tells none."""
    before = now()
    answer = msgspec.json.decode(await bus.request(INFO, timeout=ASK_S), type=dict)
    said = answer.get("ts")
    return (before + now()) / 2 - datetime.fromisoformat(said).timestamp() if said else None


async def warn_of_clock(bus: Asked, now: Callable[[], float]) -> None:
    """One line in the log where this machine's clock and the server's differ. Nothing waits for a clock or obeys it."""
    try:
        skew = await clock_skew(bus, now)
    except BusError as cause:
        _log.warning("clock not compared", error=str(cause))
        return
    if skew is not None and abs(skew) > CLOCK_S:
        _log.warning("clock differs from the server's", seconds=round(skew, 3), fix="let this machine keep time by NTP")
