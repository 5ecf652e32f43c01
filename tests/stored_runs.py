"""Whole runs in a real log, with their blobs: what exports and archives are made of."""

from __future__ import annotations

from typing import Any

import msgspec

import histories
from given import clerk, requested
from resia.events import Draft, Parent
from resia.events.merkle import root
from resia.events.subjects import event_subject
from resia.runtime.blobs import DirectoryBlobs
from resia.runtime.bus import Bus

WORLD = histories.World(noise=0.05)
JUNK = (b"", b"\n", b"no event", b'{"a":\n1}', b"\xff\xfe", b' {"b": 2} ', b'{"id":"\\u0041"}', b"[" * 2000)


async def keep(bus: Bus, run: str, history: histories.History, blobs: DirectoryBlobs | None = None) -> None:
    """Append `history` in one go, as its own workers would have, and its blobs before."""
    for data in history.blobs.values() if blobs is not None else ():
        blobs.put(data)
    drafts = [
        Draft(fact.envelope.id, subject, data, fact.event)
        for (subject, data), fact in zip(history.records, history.facts, strict=True)
    ]
    for at in range(0, len(drafts), 500):
        await bus.append(run, drafts[at : at + 500])


async def end(bus: Bus, run: str, history: histories.History) -> None:
    """What a session does when the run has ended."""
    await bus.set_status(run, history.state.status)
    await bus.seal(run)


def played(run: str, *, seed: int = 0, world: histories.World = WORLD, parent: Parent | None = None, **loop: Any):
    """A whole run in memory; with `parent` its first event says that it began there."""
    request = histories.run_request(seed=seed, **{"patience_h": 2, "max_iterations": 3, **loop})
    return histories.play(msgspec.structs.replace(request, parent=parent), world, run=run)


def forked_at(history: histories.History, run: str, sequence: int) -> Parent:
    return Parent(run, sequence, root([fact.leaf for fact in history.facts[:sequence]]), 1)


def custom_message(run: str, number: int, payload: dict[str, Any]) -> tuple[str, bytes]:
    """Subject and bytes of a fact of a foreign namespace."""
    id_ = f"{number:026x}"
    envelope = {
        "id": id_,
        "run": run,
        "type": "alerts_regression-found",
        "version": 1,
        "cause": None,
        "basis": 0,
        "producer": {"role": "alerts", "worker": "w", "package": "1"},
        "recorded_at": 1.0,
        "payload": payload,
    }
    return event_subject(run, "alerts", "alerts_regression-found", id_), msgspec.json.encode(envelope)


async def say(bus: Bus, subject: str, data: bytes) -> None:
    """Store one message as any client of the server may."""
    await bus.request(subject, data)


async def with_junk(bus: Bus, run: str, history: histories.History, blobs: DirectoryBlobs | None = None) -> None:
    """The run, and after it custom facts and messages that are no events."""
    await keep(bus, run, history, blobs)
    for number, data in enumerate(JUNK):
        await say(bus, f"resia.{run}.junk.any.{number}", data)
    for number in range(3):
        await say(bus, *custom_message(run, number, {"reward": 0.25, "split": "search", "n": number}))
    await end(bus, run, history)


def draft(run: str) -> Draft:
    """Any event that is in none of these runs."""
    return clerk(run).draft(None, 0, requested(seed=999), "test", 999)
