"""Collecting blobs that nothing names any more.

Marks from every message of every stream, whatever it is, and deletes only where each of them can be read, every log is
whole, and no process may be about to name a blob that it has stored: a blob is written before the event that names it.
"""

from __future__ import annotations

import time
from contextlib import AsyncExitStack
from typing import NamedTuple

from resia.events import Logged, Skipped
from resia.events.errors import LogError, UsageError
from resia.replay.fork import parent_of
from resia.replay.verify import check

from .blobs import Found
from .bus import Bus
from .logins import address
from .marks import digests_in
from .protocol import IMPORTING, REMOVED
from .records import Progress, Tally, records
from .retention import check_archive
from .store import Store, apart, opened
from .streamcopy import streams

GRACE_H = 24.0
SHARED_GRACE_H = 1.0  # the least, where another's processes may be storing blobs now
_INTEGRITY = ("numbering", "root", "quarantine")
_NS = 1_000_000_000


class Collected(NamedTuple):
    """Blobs that nothing names: those deleted (or, on a dry run, to be) and their bytes; and what stays."""

    gone: tuple[Found, ...]
    size: int
    named: int
    young: int


async def collect(
    store: Store, servers: tuple[str, ...], grace_h: float, dry_run: bool, progress: Progress
) -> Collected:
    """Delete the blobs of `store` that no log names and that are older than `grace_h` hours.

    Logs are those of the store itself and of the external `servers`. UsageError, before anything is deleted, when a
    log cannot be read whole, when a run may still be going on, when a removed run's archive is not where it was put,
    or when a server that the folder was used with is not among those that are read.
    """
    _check_request(store, servers, grace_h)
    before = time.time() - grace_h * 3600
    async with AsyncExitStack() as stack:
        named: set[str] = set()
        if _has_log(store):
            # Whoever could name a blob would need to reach the log.
            own = await stack.enter_async_context(apart(store.folder))
            named |= await _named(own, Store(store.folder), before, progress)
        for nats in servers:  # what goes on there cannot be seen from here, however long ago it was heard of
            there = Store(store.folder, nats)
            named |= await _named(await stack.enter_async_context(opened(there)), there, 0.0, progress)
        blobs = store.blobs()
        unnamed = [item for item in blobs.stored() if item.digest is None or item.digest not in named]
        old = [item for item in unnamed if item.touched < before]
        gone = tuple(old if dry_run else blobs.sweep(old, before))
    return Collected(gone, sum(item.size for item in gone), len(named), len(unnamed) - len(old))


def _has_log(store: Store) -> bool:
    return (store.folder / "store").is_dir()


def _check_request(store: Store, servers: tuple[str, ...], grace_h: float) -> None:
    """Every log that may name a blob of the folder must be among those that are read."""
    if not _has_log(store) and not servers:
        raise UsageError(f"there is no log in {store.folder}, so nothing says which blobs are named: check --store")
    if servers and grace_h < SHARED_GRACE_H:
        raise UsageError(f"with --nats others may be storing blobs now: take --grace {SHARED_GRACE_H:g} or more")
    if unread := sorted(set(store.servers()) - {address(nats) for nats in servers}):
        raise UsageError(
            f"logs at {unread[0]} name blobs of {store.folder} too: give it with --nats as well, or take its line out"
            f" of {store.folder / 'servers'} when it is gone for good"
        )


async def _named(bus: Bus, store: Store, idle_since: float, progress: Progress) -> set[str]:
    """Digests that the server's logs name; a run that has not ended must be idle since `idle_since` (epoch s)."""
    there = await streams(bus)
    for entry in await bus.runs():
        if entry.status == REMOVED:
            if entry.archive is None:
                raise _refused(entry.run, "it was removed without an archive")
            check_archive(entry.run, entry.archive, "resia restore it from where it is now")
        elif entry.run not in there:
            raise _refused(entry.run, "its log is not on the server")
        elif entry.status == IMPORTING:
            raise _refused(entry.run, "its import or restore is not finished: ask for it again")
    named: set[str] = set()
    for number, run in enumerate(there, 1):
        named |= await _of_run(bus, store, run, idle_since, there)
        progress("logs read", number, len(there))
    return named


def _refused(run: str, why: str) -> UsageError:
    return UsageError(f"no blob is collected because of run '{run}': {why}")


async def _of_run(bus: Bus, store: Store, run: str, idle_since: float, there: list[str]) -> set[str]:
    """Digests that one log names; UsageError unless it is whole, readable and at rest."""
    named: set[str] = set()
    facts: list[Logged] = []
    found, last = Tally(run), 0.0
    try:
        await store.witness(run).check(bus, run)
        async for record in records(bus, run):
            found.take(record)
            facts.append(record.logged(run))
            _require_readable(run, facts[-1])
            named |= digests_in(record.data)
            last = record.time_ns / _NS
    except LogError as cause:
        raise _refused(run, str(cause)) from None
    for problem in check(facts).problems:
        if problem.kind in _INTEGRITY:
            raise _refused(run, f"event {problem.sequence}: {problem.why}")
    parent = parent_of(facts[0]) if facts else None
    if parent is not None and parent.run not in there:
        raise _refused(run, f"its history, run '{parent.run}', is not on the server")
    if found.status is None and (last >= idle_since or not facts):
        raise _refused(run, f"it has not ended: finish it with resia run --resume {run}")
    return named


def _require_readable(run: str, fact: Logged) -> None:
    if isinstance(fact, Skipped):
        why = f"event {fact.sequence} cannot be read ({fact.why}), so nobody knows which blobs it names"
        raise _refused(run, f"{why}: upgrade resia, or archive and remove the run")
