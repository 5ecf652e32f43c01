"""Reading a run from a program of one's own.

    async with open_run("demo", store=".resia/demo") as run:
        async for event in run.events(follow=True):
            print(event.sequence, event.envelope.type)

Reading never disturbs a run: every reader has a consumer of its own that the server forgets, and a credential that can
write nothing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import msgspec

from resia.events import ENDINGS, NAMES, Blobs, Fact, Logged, Skipped
from resia.events import subjects as names
from resia.events.errors import UsageError
from resia.replay.state import RunState

from .bus import Bus
from .protocol import logged
from .reading import read_log
from .store import Store, opened, require_whole

UNREADABLE = "unreadable"  # the type of a message that is no event


class Run:
    """A run that is there, open for reading. Made by `open_run`."""

    def __init__(self, bus: Bus, store: Store, name: str) -> None:
        self._bus, self._store, self.name = bus, store, name

    async def events(self, *, start: int = 1, follow: bool = False, types: Iterable[str] = ()) -> AsyncIterator[Logged]:
        """Events from number `start` (from 1) in the log's order, each once.

        Ends with the last one that is there or, with `follow`, with the one that ends the run. A `Fact` holds an event
        of the catalogue, a `Custom` one of a namespace, a `Skipped` a message that is none. With `types` only those
        wire types are given; a Skipped is of type 'unreadable'. UsageError for a number that the log does not
        reach, Tampered when an event is missing.
        """
        chosen = frozenset(types)
        last = await self._bus.last_sequence(self.name)
        going_on = follow and not await self._ended()
        if start < 1 or (not going_on and start > max(last, 1)):
            raise UsageError(f"run '{self.name}' has events 1 to {last}; there is no event {start}")
        # What ends a run that goes on comes after `last`: begin no later, or its end would be missed.
        after = min(start - 1, last)
        async with aclosing(self._bus.read(self.name, after, going_on)) as facts:
            async for fact in facts:
                kind = UNREADABLE if isinstance(fact, Skipped) else fact.envelope.type
                if fact.sequence >= start and (not chosen or kind in chosen):
                    yield fact
                if going_on and _ends(fact):
                    return

    async def state(self, at: int | None = None) -> RunState:
        """The run folded up to event `at` (None: the last); UsageError when there is no such event."""
        return (await read_log(self._bus, self.name)).at(at)

    @property
    def blobs(self) -> Blobs:
        """The bytes that events name: `run.blobs.get(event.trajectory)`; BlobError when missing or damaged."""
        return self._store.blobs()

    async def _ended(self) -> bool:
        """Whether an event that ends the run is there, wherever the reader begins."""
        service = f"$JS.API.STREAM.MSG.GET.{names.stream(self.name)}"
        for kind in (NAMES[cls] for cls in ENDINGS):
            asked = msgspec.json.encode({"last_by_subj": f"resia.{self.name}.feedback.{kind}.*"})
            found = msgspec.json.decode(await self._bus.request(service, asked), type=_Answer).message
            if found is not None and _ends(logged(self.name, found.seq, found.subject, found.data)):
                return True
        return False


class _Message(msgspec.Struct):
    seq: int
    subject: str
    data: bytes = b""  # base64 on the wire


class _Answer(msgspec.Struct):
    message: _Message | None = None


def _ends(fact: Logged) -> bool:
    return isinstance(fact, Fact) and isinstance(fact.event, ENDINGS)


@asynccontextmanager
async def open_run(
    name: str, store: Store | Path | str = Path(".resia"), nats: str | None = None
) -> AsyncIterator[Run]:
    """The run `name` of a store folder, or of the external server `nats` (nats://user:password@host:port).

    Uses the server that runs over the folder, or starts one for as long as the context lasts. UsageError when there
    is no such store, UnknownName when there is no such run, Tampered when its log lost what was seen of it.
    """
    there = store if isinstance(store, Store) else Store(Path(store), nats)
    async with opened(there) as bus:
        await require_whole(there, bus, name)
        yield Run(bus, there, name)
