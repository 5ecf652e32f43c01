"""The reference runs: rows of docs/results.md, each made again from the run's own log.

    python -m benchmarks.reference [LOG.jsonl.gz ...]     check the logs, decide every decision again, print their rows
    python -m benchmarks.reference --write docs/results.md     put the rows of all logs between the page's marks

A log is what `resia export` wrote, gzipped, in `benchmarks/logs/`. Nothing is sampled, scored or trained here.
"""

from __future__ import annotations

import argparse
import gzip
import re
import sys
import tempfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from resia.events import RunSettings
from resia.events.errors import UsageError
from resia.replay.report import Summary, summary
from resia.replay.verify import check
from resia.runtime.export import Row
from resia.runtime.importing import rows_of, survey
from resia.runtime.roles import deciders

LOGS = Path(__file__).parent / "logs"
MARK = re.compile(r"(<!-- runs: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
HEAD = ("run", "from", "to", "what earned it", "best fixed control", "random search", "tokens", "log")
SEARCH = "random-search"


class Reference(msgspec.Struct, frozen=True):
    """A run in one row. Scores are mean rewards on the sealed test, in [0, 1]; controls are of the same items.

    `digest` is of the state that the log folds to. `accepted`: edits and updates that the gate let through, in order.
    """

    run: str
    domain: str
    mode: str
    model: str
    seed: int
    items: int
    first: float
    champion: float
    accepted: tuple[str, ...]
    control: tuple[str, float]
    random_search: float | None
    tokens: int
    events: int
    digest: str
    path: str


def reference(path: Path) -> Reference:
    """The row of one log. Raises UsageError where the file is not as exported, or replays otherwise than it ran."""
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / path.name.removesuffix(".gz")
        plain.write_bytes(_unpacked(path))
        runs = survey(plain).runs
        logged = [part.record.logged(runs[-1]) for part in rows_of(plain) if isinstance(part, Row)]
    if len(runs) > 1:
        raise UsageError(f"{path} holds {len(runs)} runs: a reference log is of a run that was not forked")
    report = check(logged, deciders())
    if (first := report.first) is not None:
        raise UsageError(f"{path} does not replay: event {first.sequence}, {first.kind}: {first.why}")
    state = report.state
    if state.request is None:
        raise UsageError(f"{path} holds no run")
    accepted = tuple(trial.name for trial in state.trials if trial.outcome == "accepted" and trial.iteration)
    return _row(path, summary(state), state.request.settings, runs[-1], accepted, report.digest)


def _unpacked(path: Path) -> bytes:
    try:
        return gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as cause:
        raise UsageError(f"{path} cannot be read as a gzipped log: {cause}") from None


def _row(
    path: Path, found: Summary, settings: RunSettings, run: str, accepted: tuple[str, ...], digest: str
) -> Reference:
    if found.champion_test is None or found.baseline_test is None:
        raise UsageError(f"{path} is of a run that has not opened its test")
    tested = [control for control in found.controls if control.split == "test"]
    fixed = [(control.name, control.mean) for control in tested if control.name != SEARCH]
    return Reference(
        run=run,
        domain=settings.domain,
        mode=settings.loop.mode,
        model=settings.engine.model,
        seed=settings.seed,
        items=max((control.items for control in tested), default=0),
        first=found.baseline_test,
        champion=found.champion_test,
        accepted=accepted,
        control=max(fixed, key=lambda named: named[1], default=("none", 0.0)),
        random_search=next((control.mean for control in tested if control.name == SEARCH), None),
        tokens=found.tokens,
        events=found.events,
        digest=digest,
        path=path.name,
    )


def table(rows: Iterable[Reference]) -> str:
    """As a Markdown table."""
    lines = [HEAD, ("---",) * len(HEAD), *map(_cells, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cells(row: Reference) -> tuple[str, ...]:
    name, control = row.control
    return (
        f"`{row.run}`: {row.mode}, seed {row.seed}, {row.items} items",
        f"{row.first:.3f}",
        f"**{row.champion:.3f}**",
        ", ".join(row.accepted) or "nothing was accepted",
        f"{name} {control:.3f}",
        "-" if row.random_search is None else f"{row.random_search:.3f}",
        f"{row.tokens:,}",
        f"[{row.events} events](../benchmarks/logs/{row.path}), `{row.digest[:12]}`",
    )


def written(page: str, rows: Sequence[Reference]) -> str:
    """`page` with the rows of each domain between its marks."""

    def fill(found: re.Match[str]) -> str:
        return f"{found[1]}{table(row for row in rows if row.domain == found[2])}\n{found[3]}"

    return MARK.sub(fill, page)


def main(argv: Sequence[str] | None = None) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(prog="benchmarks.reference", description="Rows of docs/results.md.")
    parser.add_argument("logs", nargs="*", type=Path, help="exports of runs, gzipped (default: all of the repository)")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the rows between the marks of this page")
    parser.add_argument("--json", action="store_true", help="print one JSON object a run")
    chosen = parser.parse_args(argv)
    try:
        rows = [reference(path) for path in chosen.logs or sorted(LOGS.glob("*.jsonl.gz"))]
    except UsageError as cause:
        print(f"resia: {cause}", file=sys.stderr)
        return 2
    if chosen.write is not None:
        chosen.write.write_text(written(chosen.write.read_text(), rows))
    print("\n".join(msgspec.json.encode(row).decode() for row in rows) if chosen.json else table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
