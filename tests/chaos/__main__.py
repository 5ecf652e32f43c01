"""`python -m chaos`: every disturbance of a run, judged. The last line on standard output is the verdict as JSON."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from resia.replay.digest import digest
from resia.replay.fold import fold
from resia.runtime.lifeline import die_with_parent
from resia.runtime.logs import configure_command_logs

from . import cluster, scenarios
from .actors import quicken
from .cells import CAST, REQUEST, Cell, Reference, Void, as_fact, boundaries, struck_cell
from .fleet import Network
from .judge import COUNTS, Verdict
from .matrix import dealt, placed
from .stage import Stage

SHORT_SHARE = 0.05
TRIES = 3
MISSED_SHARE = 0.03


def main(arguments: Sequence[str] | None = None) -> int:
    """0: nothing divergent, lost, duplicated or stuck. 1: something was. 3: the harness itself failed."""
    given = _parser().parse_args(arguments)
    configure_command_logs()
    if not given.cluster:  # whose stalls are the product's own
        quicken()
    base = Path(tempfile.mkdtemp(prefix="resia-chaos-"))
    started = time.monotonic()
    try:
        reference = undisturbed(base / "undisturbed")
        found, broken = _play_all(_cells(reference, given), reference, base, given.jobs)
    finally:
        if not given.keep:
            shutil.rmtree(base, ignore_errors=True)
    for note in found.notes:
        _say(note)
    if found.missed > MISSED_SHARE * found.kills:
        _say(f"{found.missed} kills of the matrix were not made: the harness no longer fits the loop")
        broken += 1
    seconds = time.monotonic() - started
    _say(f"{seconds:.0f} s{f', kept in {base}' if given.keep else ''}")
    last: dict[str, float] = {name: int(getattr(found, name)) for name in COUNTS}
    if given.cluster:
        last["stall_s"] = max((stall.seconds for stall in found.stalls), default=0.0)
        for stall in found.stalls:
            _say(f"{stall.seconds:6.2f} s  {stall.what}")
    if given.record is not None:
        text = msgspec.json.format(msgspec.json.encode(recorded(found, last, seconds)), indent=2)
        given.record.write_bytes(text + b"\n")
    print(msgspec.json.encode(last).decode(), flush=True)  # noqa: T201
    return 1 if found.faults else 3 if broken else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("chaos", description=__doc__)
    parser.add_argument("--cluster", action="store_true", help="the log on three nodes, and faults of nodes instead")
    parser.add_argument("--record", type=Path, help="write the stalls of a cluster here, as JSON")
    parser.add_argument("--short", action="store_true", help="a seeded part of the matrix, and one of each scenario")
    parser.add_argument("--share", type=float, default=None, help="part of the matrix's kills, 0 to 1")
    parser.add_argument("--seed", type=int, default=0, help="how kills share runs, and where the random ones are")
    parser.add_argument("--jobs", type=int, default=2 * (os.cpu_count() or 1), help="runs at once")
    parser.add_argument("--only", default="", help="cells whose name contains this")
    parser.add_argument("--keep", action="store_true", help="keep logs and stores of every run")
    return parser


def undisturbed(folder: Path) -> Reference:
    """The run that all others are compared with; its appends are the boundaries."""
    started = time.monotonic()
    with Stage(folder, CAST) as stage:
        stage.begin(REQUEST)
        if not stage.play():
            raise SystemExit("the undisturbed run does not end")
        log = stage.log()
    facts = tuple(as_fact(found) for found in log)
    reference = Reference(digest(fold(log)), boundaries(folder), facts, time.monotonic() - started)
    _say(f"undisturbed: {len(facts)} events in {len(reference.boundaries)} batches, {reference.seconds:.1f} s")
    return reference


def recorded(found: Verdict, last: dict[str, float], seconds: float) -> dict[str, Any]:
    """The stalls as benchmarks/results keeps them."""
    from benchmarks.machine import describe

    return {
        "benchmark": "cluster",
        "method": "three nodes as processes of one machine, TLS, fsync before every acknowledgement; the longest time"
        " without an acknowledgement after each fault, while five workers go on",
        **last,
        "stalls": [msgspec.to_builtins(stall) for stall in found.stalls],
        "seconds": round(seconds, 1),
        "machine": describe(),
    }


def _cells(reference: Reference, given: argparse.Namespace) -> list[Cell]:
    if given.cluster:
        return [cell for cell in _cluster_cells(reference) if given.only in cell.name]
    share = given.share if given.share is not None else SHORT_SHARE if given.short else 1.0
    runs = dealt(placed(reference.boundaries, reference.log), given.seed, share)
    cells = [struck_cell(f"matrix-{n:02d}", points) for n, points in enumerate(runs)]
    cells += scenarios.every(reference, given.seed, given.short)
    chosen = [cell for cell in cells if given.only in cell.name]
    _say(f"{len(chosen)} runs, {sum(map(len, runs))} kills at boundaries, {given.jobs} at once")
    return chosen


def _cluster_cells(reference: Reference) -> list[Cell]:
    """Those that can be played here."""
    cells = cluster.every(reference)
    try:
        with Network():
            return cells
    except OSError as cause:
        _say(f"skipped: a node cut off, since this machine lets no network namespace be made ({cause})")
        return [cell for cell in cells if not cell.name.startswith("cut")]


def _play_all(cells: Sequence[Cell], reference: Reference, base: Path, jobs: int) -> tuple[Verdict, int]:
    """Each cell in a process of its own; the sum of their verdicts, and how many cells failed as such."""
    waiting, running, total, broken = list(cells), {}, Verdict(), 0
    while waiting or running:
        while waiting and len(running) < jobs:
            cell = waiting.pop(0)
            running[_forked(cell, reference, base / cell.name)] = cell
        pid, status = os.wait()
        cell = running.pop(pid)
        answer = base / cell.name / "verdict.json"
        if status or not answer.exists():
            broken += 1
            error = base / cell.name / "error.log"
            _say(f"{cell.name}: the harness failed: {error.read_text() if error.exists() else f'status {status}'}")
            continue
        found = msgspec.json.decode(answer.read_bytes(), type=Verdict)
        total += msgspec.structs.replace(found, notes=tuple(f"{cell.name}: {note}" for note in found.notes))
        left = len(waiting) + len(running)
        _say(f"{cell.name}: {found.kills} kills, {found.faults} faults, {left} runs to go")
    return total, broken


def _forked(cell: Cell, reference: Reference, folder: Path) -> int:
    folder.mkdir(parents=True)
    pid = os.fork()
    if pid:
        return pid
    die_with_parent()
    code = 1
    try:
        found = _played(cell, folder, reference)
        (folder / "verdict.json").write_bytes(msgspec.json.encode(found))
        code = 0
    except BaseException:  # noqa: BLE001 - this process ends here, and its parent says what happened
        (folder / "error.log").write_text(traceback.format_exc())
    finally:
        os._exit(code)


def _played(cell: Cell, folder: Path, reference: Reference) -> Verdict:
    """The cell's verdict. What it is about may not come to pass on a busy machine: it is then played again."""
    for number in range(1, TRIES):
        place = folder / f"try-{number}"
        place.mkdir()
        try:
            return cell.play(place, reference)
        except Void as cause:
            _say(f"{cell.name}: again, since {cause}")
    last = folder / f"try-{TRIES}"
    last.mkdir()
    return cell.play(last, reference)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
