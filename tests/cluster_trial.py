"""`make cluster`: a small real run on three nodes, with one process a role, and the same run on a single server.

Both train the taught tiny model and must end in the same state. The last line on standard output says so as JSON.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from pathlib import Path

import msgspec
import tiny_agent

from given import SETTINGS
from resia.events.errors import ResiaError
from resia.replay.digest import digest
from resia.runtime.bus import reach
from resia.runtime.cluster.credentials import ALL, make
from resia.runtime.cluster.nodes import Nodes
from resia.runtime.config import load_settings
from resia.runtime.logs import configure_command_logs
from resia.runtime.permissions import Access
from resia.runtime.protocol import Member
from resia.runtime.reading import load
from resia.runtime.replaying import verify_log
from resia.runtime.session import Session, Watch, launch
from resia.runtime.store import Store

FOLDER = Path(".cluster")


def main() -> int:
    """0 when both runs ended alike and every check of the cluster's log held; 1 otherwise, or when it broke."""
    configure_command_logs()
    run = f"trial-{int(time.time())}"
    if make(FOLDER):
        _say(f"secrets are in {FOLDER}, which compose.yaml reads too")
    nodes = Nodes(FOLDER)
    try:
        access = nodes.start()
        _say(f"three nodes at {access.url}, from {nodes.config.resolve()}")
        with tempfile.TemporaryDirectory() as place:
            return asyncio.run(_compared(run, Path(place), access))
    except ResiaError as cause:
        _say(f"resia: {cause}")
        return 1
    finally:
        nodes.stop()


async def _compared(run: str, place: Path, access: Access) -> int:
    model = tiny_agent.unpack(place / "model")
    settings = load_settings(None, [*SETTINGS, f"engine.model={model}"])
    found = {}
    for name, nats in (("three nodes", str(FOLDER / "logins" / f"{ALL}.json")), ("one server", None)):
        store, started = Store(place / name.replace(" ", "-"), nats), time.monotonic()
        state = await launch(Session(run, settings, store), Watch())
        log = await load(store, run)
        problems = verify_log(log, store).problems
        seconds = time.monotonic() - started
        _say(
            f"{name}: {len(log.facts)} events in {seconds:.1f} s, digest {digest(state)[:16]}, problems {len(problems)}"
        )
        found[name] = (digest(log.at()), len(problems), round(seconds, 1))
    members = await _members(access, run)
    whole = [member.name for member in members if member.current]
    equal = found["three nodes"][0] == found["one server"][0]
    good = equal and not found["three nodes"][1] and len(whole) == 3
    result = {
        "run": run,
        "digest_equal": equal,
        "whole_copies": len(whole),
        "cluster_s": found["three nodes"][2],
        "single_s": found["one server"][2],
    }
    print(msgspec.json.encode(result).decode(), flush=True)  # noqa: T201
    return 0 if good else 1


async def _members(access: Access, run: str) -> list[Member]:
    bus = await reach(access, "admin")
    try:
        return await bus.members(run)
    finally:
        await bus.close()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
