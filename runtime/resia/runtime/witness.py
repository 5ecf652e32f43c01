"""How far a run's log was seen, kept outside of the log: a tail that is cut off leaves nothing in the log to miss.

One file a run holds the number and the leaf of the last event that whoever watches the run has folded. It is written
without a sync: it survives the death of any process, and a power failure may leave it behind, never ahead of, the log.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from resia.events import Logged
from resia.events.errors import Tampered
from resia.events.ids import sha256

from .bus import Bus

FOLDER = "witnesses"


class Seen(NamedTuple):
    """The last event that was seen: its number from 1, and its leaf."""

    sequence: int
    leaf: str


class Witness:
    """What was seen of one run of the store at `folder`, whose log is on the server at `nats`, None for its own."""

    def __init__(self, folder: Path, run: str, nats: str | None = None) -> None:
        self._path = folder / FOLDER / (run if nats is None else f"{run}@{sha256(nats.encode())[:16]}")
        self._handle: int | None = None

    def saw(self, fact: Logged) -> None:
        """Remember `fact` as the last one."""
        if self._handle is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._handle = os.open(self._path, os.O_WRONLY | os.O_CREAT, 0o644)
        line = f"{fact.sequence:016d} {fact.leaf}\n"  # always of one length, in one write: never torn
        os.pwrite(self._handle, line.encode(), 0)

    def settle(self, fact: Logged) -> None:
        """Remember `fact` as the last one, and that nobody goes on watching."""
        self.saw(fact)
        self.close()

    def seen(self) -> Seen | None:
        """What was remembered; None when nothing was, or the file is not whole."""
        fields = self._path.read_text(errors="replace").split() if self._path.exists() else []
        return Seen(int(fields[0]), fields[1]) if len(fields) == 2 and fields[0].isdigit() else None

    def forget(self) -> None:
        """Nothing was seen: a new run begins under this name."""
        self.close()
        self._path.unlink(missing_ok=True)

    def close(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    async def check(self, bus: Bus, run: str) -> None:
        """Raise Tampered when the log no longer holds the event that was seen last."""
        seen = self.seen()
        if seen is not None:
            last = await bus.last_sequence(run)
            hold(seen, last, [fact async for fact in bus.read(run, after=seen.sequence - 1)])


def hold(seen: Seen | None, last: int, since: Sequence[Logged]) -> None:
    """Raise Tampered unless the log holds the event that was seen, where one was.

    `last` is the number of the log's last event, `since` its events from `seen.sequence` on, read after `seen` was.
    """
    if seen is None:
        return
    if not since:
        lost = f"it is gone: the log ends at event {last} and was seen to reach event {seen.sequence}"
        raise Tampered(last + 1, lost)
    if since[0].leaf != seen.leaf:
        raise Tampered(seen.sequence, "another event stands there than was seen: the log was cut and written on")
