"""What a log's server can be asked about: is it durable, who may say what, who serves its runs, and what time it has.

Nothing is written: what logins may do is tried on a run that cannot exist. A log is called durable only where it is
seen that the server syncs before it answers; what cannot be seen is a warning. Asks `bus`; `doctor` and `cli_doctor`
list and print.
"""

from __future__ import annotations

import asyncio
import base64
import re
import time
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from resia.events.errors import BusError, ResiaError, UsageError
from resia.events.subjects import ROLES, stream

from .bus import Bus, reach
from .doctor import Check
from .doctor_logins import Trial, tried
from .permissions import Access
from .resources import package_version
from .server import CONFIG, grants_of, running_access
from .skew import CLOCK_S, clock_skew, series
from .store import Store

MONITOR_S = 5.0
MOST_RUNS = 50  # of the active ones are looked at
_SYNC = re.compile(r"^\s*sync_interval:\s*\"?([\w.]+)", re.MULTILINE)
_ALWAYS = "sync_interval: always"
# File systems whose bytes are gone when the machine restarts, and those on which a lock or a sync may mean less.
MEMORY = frozenset({"tmpfs", "ramfs", "rootfs"})
REMOTE = frozenset({"nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "glusterfs", "lustre"})
DURABLE_FIX = "set sync_interval: always in the server's jetstream block and start it again"


class Log(NamedTuple):
    """A log that is looked at: who asks, and what the streams of its active runs are like, by run."""

    bus: Bus
    streams: dict[str, dict[str, Any]]


async def look(store: Store, monitor: str | None) -> list[Check]:
    """Every finding about the log of `store`; `monitor` is the URL of an external server's monitoring port."""
    if store.nats is None:
        kept = [filesystem(store.folder)] if (store.folder / CONFIG).exists() else []
        access = running_access(store.folder) if store.folder.is_dir() else None
        if access is None:
            return [
                *([configured(store.folder)] if kept else []),
                *kept,
                Check("log", "ok", "no server runs: none asked"),
            ]
        return [configured(store.folder), *kept, *await _asked(store, access)]
    return [monitored(monitor), *await _asked(store, store.access() or Access(store.nats))]


async def _asked(store: Store, access: Access) -> list[Check]:
    try:
        async with _as(access, access.looker) as bus:
            log = Log(bus, await _streams(bus))
            holders = len(await bus.members()) if bus.is_clustered else 1
            found = [streams(log), copies(log, holders), await workers(log), await clock(bus)]
    except ResiaError as cause:
        return [Check("log", "fault", str(cause), "start the server, or name another with --nats")]
    return [*found, await logins(store, access)]


@asynccontextmanager
async def _as(access: Access, role: str) -> AsyncIterator[Bus]:
    bus = await reach(access, role)
    try:
        yield bus
    finally:
        await bus.close()


# -- durability ------------------------------------------------------------------------------------------------------


def configured(folder: Path) -> Check:
    """What the embedded server over `folder` was told; it was started with it."""
    found = _SYNC.search((folder / CONFIG).read_text())
    return _durable(found is not None and found[1] == "always", found[1] if found else "2m, its default")


def monitored(url: str | None) -> Check:
    """What an external server says of itself on its monitoring port, which alone tells."""
    if url is None:
        why = "not known to be durable: a server tells whether it syncs before it answers on its monitoring port only"
        return Check("durability", "warning", why, "name it with --monitor http://HOST:8222")
    if not url.startswith(("http://", "https://")):
        raise UsageError(f"--monitor takes a URL such as http://HOST:8222, not '{url[:80]}'")
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/varz", timeout=MONITOR_S) as answer:
            said = msgspec.json.decode(answer.read(), type=dict)
    except (OSError, urllib.error.URLError, msgspec.MsgspecError) as cause:
        return Check(
            "durability", "warning", f"not known to be durable: {url} does not tell ({cause})", "check --monitor"
        )
    config = (said.get("jetstream") or {}).get("config")
    if config is None:
        return Check("durability", "fault", f"the server at {url} keeps no log: JetStream is off", "turn jetstream on")
    return _durable(bool(config.get("sync_always")), f"{config.get('sync_interval', 0) / 1e9:g} s")


def _durable(always: bool, interval: str) -> Check:
    if always:
        return Check("durability", "ok", f"acknowledged means on disk ({_ALWAYS})")
    lost = f"the log is not durable: the server syncs every {interval}, and what it acknowledged since is lost on power"
    return Check("durability", "fault", f"{lost} failure", DURABLE_FIX)


def filesystem(folder: Path, mounts: str | None = None) -> Check:
    """What the store lies on, as Linux says it; `mounts` is the text of /proc/mounts."""
    kind = filesystem_of(folder, mounts)
    if kind in MEMORY:
        fix = "name a folder on a disk with --store"
        return Check("filesystem", "fault", f"the store is in memory ({kind}) and gone when the machine restarts", fix)
    if kind in REMOTE:
        fix = "keep the store on a local disk, or use a server of its own with --nats"
        return Check(
            "filesystem", "warning", f"the store is on a network file system ({kind}), which NATS warns of", fix
        )
    return Check("filesystem", "ok", f"the store is on {kind or 'a file system of unknown kind'}")


def filesystem_of(folder: Path, mounts: str | None = None) -> str:
    """Type of the file system that `folder` is on; empty where nothing tells."""
    source = Path("/proc/mounts")
    if mounts is None:
        mounts = source.read_text() if source.exists() else ""
    place, best, kind = str(folder.resolve()), "", ""
    for line in mounts.splitlines():
        point, held = line.split(" ")[1].replace("\\040", " "), line.split(" ")[2]
        inside = point == "/" or place == point or place.startswith(f"{point}/")
        if inside and len(point) >= len(best):  # the later of two on one point hides the earlier
            best, kind = point, held
    return kind


# -- streams ---------------------------------------------------------------------------------------------------------


async def _streams(bus: Bus) -> dict[str, dict[str, Any]]:
    """What the server says of the stream of each active run."""
    active = [entry for entry in await bus.runs() if entry.status == "active"][:MOST_RUNS]
    answers = [await bus.request(f"$JS.API.STREAM.INFO.{entry.stream}") for entry in active]
    return {e.run: msgspec.json.decode(answer, type=dict) for e, answer in zip(active, answers, strict=True)}


def streams(log: Log) -> Check:
    """Whether the active runs' streams are as `Bus.create_run` makes them."""
    wrong = {run: weak for run, said in log.streams.items() if (weak := weaknesses(said))}
    if wrong:
        run, weak = next(iter(wrong.items()))
        more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        fix = f"archive it, and begin again on a server that only resia configures: resia archive {run}"
        return Check("streams", "fault", f"the log of run '{run}' {' and '.join(weak)}{more}", fix)
    return Check("streams", "ok", f"{len(log.streams)} active, on file, neither deletable nor limited")


def weaknesses(said: dict[str, Any]) -> list[str]:
    """What in a stream's configuration lets events be lost."""
    config, state = said.get("config"), said.get("state", {})
    if config is None:
        return ["is not there"]
    gone = state.get("messages") and state["last_seq"] != state["messages"]
    return [
        text
        for wrong, text in (
            (config.get("storage") != "file", "is kept in memory"),
            (config.get("persist_mode", "default") not in ("", "default"), "is acknowledged before it is on disk"),
            (not config.get("deny_delete") or not config.get("deny_purge"), "lets its events be deleted"),
            (
                config.get("max_msgs", -1) > 0 or config.get("max_bytes", -1) > 0 or config.get("max_age", 0),
                "has a limit",
            ),
            (gone, "misses events"),
        )
        if wrong
    ]


def copies(log: Log, holders: int) -> Check:
    """On how many servers a log is; `holders` of them have the registry of runs, 0 before the first one."""
    least = min((said["config"]["num_replicas"] for said in log.streams.values() if "config" in said), default=holders)
    cluster = holders != 1 or any((said.get("cluster") or {}).get("name") for said in log.streams.values())
    if least == 0:
        return Check("replicas", "ok", "nobody has begun a run in this cluster yet")
    if cluster and least < 3:
        fix = "begin runs with three replicas"
        return Check("replicas", "warning", f"a log of this cluster is on {least} of its servers alone", fix)
    if least > 1:
        return Check("replicas", "ok", f"each log is on {least} servers")
    return Check("replicas", "ok", "one server holds the log: what protects it from a lost disk is resia archive")


# -- who serves, who may ---------------------------------------------------------------------------------------------


async def workers(log: Log) -> Check:
    """Which series of resia wrote in the active runs."""
    mixed, foreign = [], []
    for run in log.streams:
        found = await _series(log.bus, run)
        if len(found) > 1:
            said = " and ".join(f"{number} ({', '.join(sorted(roles))})" for number, roles in sorted(found.items()))
            mixed.append(f"run '{run}' holds events of resia {said}")
        elif found and series(package_version()) not in found:
            foreign.append(
                f"run '{run}' was begun by resia {next(iter(found))}, and {package_version()} is installed here"
            )
    if mixed:
        return Check("workers", "fault", "; ".join(mixed), "end the workers whose version is not the first event's")
    if foreign:
        return Check("workers", "warning", "; ".join(foreign), "serve it with that version until it has ended")
    return Check("workers", "ok", f"one series of resia in each of {len(log.streams)} active runs")


async def _series(bus: Bus, run: str) -> dict[str, set[str]]:
    """Roles by the series of the package that wrote their last event."""
    found: dict[str, set[str]] = defaultdict(set)
    asked = [(role, f"$JS.API.STREAM.MSG.GET.{stream(run)}") for role in ROLES]
    for role, subject in asked:
        query = msgspec.json.encode({"last_by_subj": f"resia.{run}.{role}.>"})
        said = msgspec.json.decode(await bus.request(subject, query), type=dict).get("message")
        if said is None:
            continue
        try:
            package = msgspec.json.decode(base64.b64decode(said["data"]), type=_Written).producer.package
        except (msgspec.MsgspecError, ValueError):
            continue  # no event: every reader skips it
        if series(package):
            found[series(package)].add(role)
    return found


class _Producer(msgspec.Struct):
    package: str


class _Written(msgspec.Struct):
    producer: _Producer


async def clock(bus: Bus) -> Check:
    """How far this machine's clock is from the server's. No rule reads either."""
    skew = await clock_skew(bus, time.time)
    if skew is None:
        return Check("clock", "ok", "not compared: a server tells its time once a run was begun there")
    said = f"{abs(skew):.3f} s {'ahead of' if skew > 0 else 'behind'} the server's"
    if abs(skew) > CLOCK_S:
        return Check(
            "clock", "warning", f"{said}: times in events and spans are off", "let both machines keep time by NTP"
        )
    return Check("clock", "ok", said)


async def logins(store: Store, access: Access) -> Check:
    """Whether each login that is known here may do its part and no more."""
    grants = grants_of(store.folder) if store.nats is None else []
    known: list[tuple[Access, str]] = [(access, login) for login in access.passwords if login != "admin"]
    known += [(Access(access.url, {g.login: g.password}), g.login) for g in grants]
    if store.nats is not None and not known:
        known = [(access, _user_in(access.url))]
    trials = await asyncio.gather(*(_try(a, login, {g.login: g.subjects for g in grants}) for a, login in known))
    unable = [f"{t.login} may not {t.unable[0]}" for t in trials if t.unable]
    bold = [f"{t.login or 'anybody'} may {t.bold[0]}" for t in trials if t.bold]
    names = ", ".join(login or "anybody" for _, login in known)
    if unable or bold:
        fix = "give each role a login of its own (docs/operations.md), or start the embedded server again"
        return Check("permissions", "fault", "; ".join([*bold, *unable]), fix)
    return Check("permissions", "ok", f"each may do its part and no more: {names}")


async def _try(access: Access, login: str, granted: dict[str, list[str]]) -> Trial:
    try:
        async with _as(access, login) as bus:
            return await tried(bus, login, granted.get(login, []))
    except BusError as cause:
        return Trial(login, (f"connect ({cause})",), ())


def _user_in(url: str) -> str:
    """The user in an address, empty where it names none."""
    head, mark, _ = url.partition("://")[2].rpartition("@")
    return head.partition(":")[0] if mark else ""
