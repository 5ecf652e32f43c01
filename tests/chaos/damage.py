"""A store that is damaged under a run: torn and cut tails, flipped bits, a full disk."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from histories import DECIDERS
from resia.events import Logged
from resia.events.errors import BusError, LogError
from resia.replay.verify import check
from resia.runtime.witness import Witness, hold

from .cells import CAST, REQUEST, Cell, Reference, Void, ended
from .judge import Verdict, acknowledged, lost
from .stage import RUN, Stage
from .strikes import SERVER

TORN_RUNS, CUT_RUNS, FLIPS_A_RUN, FLIP_RUNS = 4, 4, 25, 2
DISK_BYTES = 32 << 20
ROOM_BYTES = 96 << 10  # what is left of the disk when the run begins: less than the run takes
JAMMED_S = 4.0  # nothing acknowledged for so long: the disk is full


def damaged(seed: int, short: bool) -> list[Cell]:
    """All of them; in the short form one of each kind."""
    rng = random.Random(seed)
    return [
        *(torn(f"torn-{n}", rng.randrange(10, 50), rng.randrange(1, 400)) for n in range(1 if short else TORN_RUNS)),
        *(cut(f"cut-{n}", rng.randrange(10, 50), rng.randrange(1, 4000)) for n in range(1 if short else CUT_RUNS)),
        *(
            flipped(f"flipped-{n}", seed + n, 5 if short else FLIPS_A_RUN, clean=bool(n % 2))
            for n in range(1 if short else FLIP_RUNS)
        ),
        disk_full("disk-full"),
    ]


def torn(name: str, batches: int, length: int) -> Cell:
    """Everything is killed and the last write is there in part: whole runs of it are nobody's, and the run goes on."""

    def play(folder: Path, reference: Reference) -> Verdict:
        with Stage(folder, CAST) as stage:
            stage.begin(REQUEST)
            _play_until(stage, batches)
            stage.kill_workers()
            stage.kill_server()
            block = _last_block(stage)
            with block.open("ab") as sink:
                sink.write(block.read_bytes()[:length])
            stage.revive_server()
            return ended(stage, stage.play(), reference.digest, len(CAST) + 1)

    return Cell(name, play)


def cut(name: str, batches: int, length: int) -> Cell:
    """The same with acknowledged bytes gone, which no log can know: the witness must say so, and which event."""

    def play(folder: Path, reference: Reference) -> Verdict:
        with Stage(folder, CAST) as stage:
            stage.begin(REQUEST)
            _play_until(stage, batches)
            stage.kill_workers()
            witness = _witness(stage)
            stage.kill_server()
            block = _last_block(stage)
            os.truncate(block, max(block.stat().st_size - length, 0))
            stage.revive_server()
            return Verdict(kills=len(CAST) + 1) + _named(stage, witness, acknowledged(folder))

    return Cell(name, play)


def flipped(name: str, seed: int, flips: int, clean: bool) -> Cell:
    """One bit of the stored block is flipped while the server is down, `flips` times over; each must be found."""

    def play(folder: Path, reference: Reference) -> Verdict:
        rng, found = random.Random(seed), Verdict()
        with Stage(folder, CAST) as stage:
            stage.begin(REQUEST)
            finished = stage.play()
            found += ended(stage, finished, reference.digest, 0)
            witness, before = _witness(stage), stage.log()
            _down(stage, clean)
            stream, sound = _stream(stage), folder / "sound"
            shutil.copytree(stream, sound)
            for _ in range(flips):
                _flip(_last_block(stage), rng)
                refused = _refused(stage)
                found += refused or _unnoticed(stage, witness, before)
                if refused is None:
                    _down(stage, clean=False)
                shutil.rmtree(stream)
                shutil.copytree(sound, stream)
            stage.revive_server()
        return found

    return Cell(name, play)


def disk_full(name: str) -> Cell:
    """The disk fills up under a run; once there is room again the run goes on from what was acknowledged."""

    def play(folder: Path, reference: Reference) -> Verdict:
        disk = folder / "disk"
        disk.mkdir()
        made = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "none", str(disk)], check=False, capture_output=True
        )
        if made.returncode:
            return Verdict(notes=(f"skipped: no small disk can be mounted here: {made.stderr.decode().strip()}",))
        try:
            with Stage(folder, CAST, store=disk / "store") as stage:
                return _fill_and_free(stage, disk, reference)
        finally:
            subprocess.run(["umount", "-l", str(disk)], check=True)

    return Cell(name, play)


def _fill_and_free(stage: Stage, disk: Path, reference: Reference) -> Verdict:
    stage.begin(REQUEST)
    ballast = disk / "ballast"
    with ballast.open("wb") as sink:
        os.posix_fallocate(sink.fileno(), 0, shutil.disk_usage(disk).free - ROOM_BYTES)
    if stage.play(_Jam(stage.folder)) and len(acknowledged(stage.folder)) >= len(reference.boundaries):
        raise Void("the disk did not fill up")
    told = acknowledged(stage.folder)
    stage.kill_workers()
    ballast.unlink()
    stage.kill_server()
    stage.revive_server()
    missing = lost(stage.log(), told)
    full = Verdict(notes=(f"full after {len(told)} of {len(reference.boundaries)} batches",))
    found = full + ended(stage, stage.play(), reference.digest, len(CAST) + 1)
    return found + Verdict(lost=len(missing), notes=tuple(f"lost when the disk was full: {why}" for why in missing))


class _Jam:
    """True once nothing has been acknowledged for a while."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._size, self._since = folder, 0, time.monotonic()

    def __call__(self) -> bool:
        size = sum(path.stat().st_size for path in self._folder.glob("*.acknowledged"))
        if size != self._size:
            self._size, self._since = size, time.monotonic()
        return time.monotonic() - self._since > JAMMED_S


def _play_until(stage: Stage, batches: int) -> None:
    if not stage.play(lambda: len(acknowledged(stage.folder)) >= batches):
        raise Void(f"the run did not come to {batches} batches")


def _witness(stage: Stage) -> Witness:
    """What a session that watched all along has seen."""
    witness = Witness(stage.folder, RUN)
    witness.saw(stage.log()[-1])
    witness.close()
    return witness


def _named(stage: Stage, witness: Witness, told: Sequence[object]) -> Verdict:
    """Nothing, when the loss of acknowledged events is named; a loss that nobody speaks of counts."""
    try:
        stage.ask(lambda bus: witness.check(bus, RUN))
        missing = lost(stage.log(), told)
    except (BusError, LogError) as cause:
        return Verdict(notes=(f"named: {cause}",))
    return Verdict(lost=len(missing), notes=tuple(f"silently lost: {why}" for why in missing))


def _refused(stage: Stage) -> Verdict | None:
    """What is said when the server does not come up over these files; None when it does."""
    try:
        stage.revive_server()
    except BusError as cause:
        return Verdict(notes=(f"named: {cause}",))
    return None


def _unnoticed(stage: Stage, witness: Witness, before: Sequence[Logged]) -> Verdict:
    try:
        log = stage.log()
        hold(witness.seen(), len(log), log[len(before) - 1 :])
    except (BusError, LogError) as cause:
        return Verdict(notes=(f"named: {cause}",))
    problems = check(log, DECIDERS).problems
    if problems:
        return Verdict(notes=(f"named: event {problems[0].sequence} ({problems[0].kind}): {problems[0].why}",))
    silent = list(log) != list(before)
    return Verdict(lost=int(silent), notes=("the log changed and nothing says so" if silent else "it changed nothing",))


def _flip(block: Path, rng: random.Random) -> None:
    data = bytearray(block.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    block.write_bytes(data)


def _down(stage: Stage, clean: bool) -> None:
    if not clean:
        stage.kill_server()
        return
    pid = stage.pid(SERVER)
    assert pid is not None
    os.kill(pid, signal.SIGTERM)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def _stream(stage: Stage) -> Path:
    return next(stage.store.glob(f"store/jetstream/*/streams/RUN-{RUN}"))


def _last_block(stage: Stage) -> Path:
    return max(_stream(stage).glob("msgs/*.blk"), key=lambda path: int(path.stem))
