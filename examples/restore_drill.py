"""A restore drill: archive a run, restore it into an empty store, and prove that it is the same run.

    python examples/restore_drill.py RUN --store .resia --out RUN.tar

It ends with 0 only where the restored log has the same digest, passes every check of `resia replay --verify`, and its
archive restores a second time without a difference. The archive is kept: it is the backup.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def resia(*args: str | Path) -> list[dict[str, object]]:
    """Run a command; what it says with --json. Ends the drill where it fails."""
    command = ["resia", *map(str, args)]
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "resia.runtime.cli", *command[1:], "--json"], capture_output=True, text=True, check=False
    )
    sys.stdout.write(f"{time.monotonic() - started:6.1f} s  {' '.join(command)}\n")
    if done.returncode != 0:
        sys.exit(f"the drill failed, exit code {done.returncode}: {done.stderr.strip()}")
    return [json.loads(line) for line in done.stdout.splitlines()]


def main() -> None:
    """Archive, restore, compare."""
    parser = argparse.ArgumentParser(description="Prove that a run's archive can be restored.")
    parser.add_argument("run")
    parser.add_argument("--store", type=Path, default=Path(".resia"))
    parser.add_argument("--out", type=Path, help="the archive, a new file; default: RUN.tar")
    asked = parser.parse_args()
    out = asked.out or Path(f"{asked.run}.tar")
    if out.exists():
        sys.exit(f"the drill failed: {out} is there already, and a backup is not written over: name another with --out")
    (there,) = resia("replay", asked.run, "--verify", "--store", asked.store)
    resia("archive", asked.run, "--store", asked.store, "--out", out)
    with tempfile.TemporaryDirectory() as folder:
        empty = Path(folder) / "store"
        resia("restore", out, "--store", empty)
        (here,) = resia("replay", asked.run, "--verify", "--store", empty)
        (again,) = resia("restore", out, "--store", empty)
    for field in ("events", "digest"):
        if there[field] != here[field]:
            sys.exit(f"the drill failed: {field} is {there[field]} and was restored as {here[field]}")
    if again["restored"]:
        sys.exit(f"the drill failed: a second restore wrote {again['restored']}")
    sys.stdout.write(f"the archive {out} holds run '{asked.run}': {here['events']} events, digest {here['digest']}\n")


if __name__ == "__main__":
    main()
