"""Where the processes of a run serve their metrics, and the file that Prometheus finds them by (`file_sd_configs`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from resia.events.errors import UsageError

TARGETS = "targets.json"


def addresses(first: str | None, names: Sequence[str]) -> dict[str, str]:
    """[HOST:]PORT by process: `first` and the ports after it; 0 for each where it is 0. Nothing where it is None."""
    if first is None:
        return {}
    host, mark, number = first.rpartition(":")
    if not number.isdigit() or int(number) + len(names) > 2**16:
        raise UsageError(
            f"--metrics takes PORT or HOST:PORT such as 9464, with room for {len(names)} ports, not '{first[:80]}'"
        )
    port = int(number)
    return {name: f"{host}{mark}{port + at if port else 0}" for at, name in enumerate(names)}


def write_targets(folder: Path, places: Mapping[str, str]) -> None:
    """Write or, where nothing is served or only on free ports, remove the file in `folder`."""
    path = folder / TARGETS
    if all(place.rpartition(":")[2] == "0" for place in places.values()):
        path.unlink(missing_ok=True)
        return
    groups = [
        {"targets": [place if ":" in place else f"127.0.0.1:{place}"], "labels": {"worker": name}}
        for name, place in places.items()
    ]
    folder.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{TARGETS}")
    partial.write_bytes(msgspec.json.format(msgspec.json.encode(groups)))
    partial.replace(path)
