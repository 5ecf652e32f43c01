"""Golden logs: what runs of earlier packages wrote, message by message, and what each depth of a replay says.

A log is `golden/NAME.jsonl.gz` beside `golden/NAME.json`, its `Expected`. They are only ever added: one that no longer
replays as it says is a defect of the package and never of the log. To add one, from the repository's root:

    resia run --run RUN --store STORE --set engine.model=taught ...     in a folder with a tiny model `taught`
    python tests/golden_logs.py record RUN STORE NAME "what it is of"

A relative model path keeps the machine's folders out of the log. A damaged log is made out of another, by changing the
bytes of one message (`tamper`), or also every later Merkle root so that it fits (`forge`):

    python tests/golden_logs.py tamper|forge SOURCE NAME EVENT OLD NEW "what it is of"
"""

from __future__ import annotations

import asyncio
import gzip
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from histories import DECIDERS, GoldenLine, decode_all
from resia.events import DecisionMade, Fact, RunCompleted, decode, encode, merkle
from resia.replay.verify import Report, check

GOLDEN = Path(__file__).parent / "golden"
Records = Sequence[tuple[str, bytes]]


Named = tuple[int, str]  # the event and the kind of a divergence; how it is worded may change


class Expected(msgspec.Struct, frozen=True):
    """What a log is of, the package that wrote it, the digest of its state, and all that each depth finds."""

    about: str
    package: str
    events: int
    digest: str
    state: tuple[Named, ...] = ()
    decisions: tuple[Named, ...] = ()


def names() -> list[str]:
    return sorted(path.name.removesuffix(".jsonl.gz") for path in GOLDEN.glob("*.jsonl.gz"))


def records_of(name: str) -> list[tuple[str, bytes]]:
    """Subject and bytes of each message, in order."""
    text = gzip.decompress((GOLDEN / f"{name}.jsonl.gz").read_bytes())
    lines = (msgspec.json.decode(line, type=GoldenLine) for line in text.splitlines())
    return [(line.subject, bytes(line.data)) for line in lines]


def facts_of(name: str) -> list[Fact]:
    return decode_all(records_of(name))


def expected(name: str) -> Expected:
    return msgspec.json.decode((GOLDEN / f"{name}.json").read_bytes(), type=Expected)


def add(name: str, records: Records, about: str) -> Expected:
    """Store a new golden log with what replay says of it now; FileExistsError where there is one of that name."""
    lines = [msgspec.json.encode(GoldenLine(subject, msgspec.Raw(data))) for subject, data in records]
    facts = decode_all(records)
    state, decisions = check(facts), check(facts, DECIDERS)
    package = facts[0].envelope.producer.package
    made = Expected(about, package, len(facts), state.digest, found(state), found(decisions))
    with (GOLDEN / f"{name}.jsonl.gz").open("xb") as sink:
        sink.write(gzip.compress(b"\n".join(lines) + b"\n", mtime=0))
    (GOLDEN / f"{name}.json").write_bytes(msgspec.json.format(msgspec.json.encode(made), indent=2) + b"\n")
    return made


def found(report: Report) -> tuple[Named, ...]:
    return tuple((problem.sequence, problem.kind) for problem in report.problems)


async def stored(run: str, store: Path) -> list[tuple[str, bytes]]:
    """The messages of a real run as its store holds them."""
    from resia.runtime.records import records
    from resia.runtime.store import Store, opened

    async with opened(Store(store)) as bus:
        return [(record.subject, record.data) async for record in records(bus, run)]


def tampered(records: Records, event: int, old: bytes, new: bytes) -> list[tuple[str, bytes]]:
    """The log with the first `old` of one message's bytes replaced."""
    subject, data = records[event - 1]
    assert old in data, f"event {event} holds no {old!r}"
    return [*records[: event - 1], (subject, data.replace(old, new, 1)), *records[event:]]


def forged(records: Records, event: int, old: bytes, new: bytes) -> list[tuple[str, bytes]]:
    """`tampered`, with every later Merkle root made to fit: only the rules can tell."""
    made: list[tuple[str, bytes]] = []
    for number, (subject, data) in enumerate(tampered(records, event, old, new), 1):
        fact = decode(number, subject, data)
        if number > event and isinstance(fact.event, DecisionMade | RunCompleted):
            span = range(fact.event.root_from + 1, fact.event.root_to + 1)
            root = merkle.root([merkle.leaf(n, *made[n - 1]) for n in span])
            data = encode(fact.envelope, msgspec.structs.replace(fact.event, merkle_root=root))
        made.append((subject, data))
    return made


def main(command: str, source: str, *rest: str) -> None:
    if command == "record":
        store, name, about = rest
        made = add(name, asyncio.run(stored(source, Path(store))), about)
    else:
        name, event, old, new, about = rest
        change = {"tamper": tampered, "forge": forged}[command]
        made = add(name, change(records_of(source), int(event), old.encode(), new.encode()), about)
    sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(made), indent=2) + b"\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
