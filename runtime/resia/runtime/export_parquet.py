"""A run as a Parquet table, one row an event: for analysis, and exact enough to be imported again.

`subject`, `data` and `leaf` are the message as stored; every other column is taken from it for queries. The header and
the footer of the JSON-lines form stand in the file's metadata under `resia`; page checksums guard every column.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import msgspec

from resia.events import Custom, Fact, Logged, Skipped
from resia.events.errors import UsageError

from .bus import Bus
from .export import FORMAT, VERSION, Footer, Header, Row, Totals, check_header, check_subject, shown, unusable
from .marks import Named
from .records import Progress, Record, lineage, records
from .resources import package_version

ROWS = 10_000  # a row group
KEY = b"resia"
# Scalars of the payloads that analysts ask for, each null where an event has none.
TEXTS = (
    "purpose",
    "split",
    "item",
    "failure",
    "answer",
    "evaluation",
    "algorithm",
    "action",
    "rule",
    "reason",
    "error",
)
INTEGERS = ("iteration", "round", "index", "seed", "step", "prompt_tokens", "completion_tokens")
NUMBERS = ("reward", "loss", "kl", "grad_norm", "champion_test", "baseline_test")
FLAGS = ("greedy", "success", "reused")
_PROMOTED: tuple[tuple[tuple[str, ...], tuple[type, ...]], ...] = (
    (TEXTS, (str,)),
    (INTEGERS, (int,)),
    (NUMBERS, (float, int)),
    (FLAGS, (bool,)),
)
_INT64 = 2**63


class _Meta(msgspec.Struct, frozen=True):
    header: Header
    footer: Footer


class _Wire(msgspec.Struct):
    payload: msgspec.Raw


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as parquet
    except ImportError:
        raise UsageError("Parquet needs pyarrow: pip install 'resia[local]', or take --to jsonl") from None
    return pa, parquet


def _schema(pa: Any) -> Any:
    text, integer, number = pa.string(), pa.int64(), pa.float64()
    fixed = {
        "run": text,
        "sequence": integer,
        "time": pa.timestamp("ns", tz="UTC"),
        **dict.fromkeys(("type", "role", "worker", "package", "id", "cause"), text),
        "basis": integer,
        "recorded_at": number,
        "unreadable": text,
        **dict.fromkeys(TEXTS, text),
        **dict.fromkeys(INTEGERS, integer),
        **dict.fromkeys(NUMBERS, number),
        **dict.fromkeys(FLAGS, pa.bool_()),
        "payload": text,
        "subject": text,
        "leaf": text,
        "data": pa.binary(),
    }
    return pa.schema(list(fixed.items()))


async def write_parquet(bus: Bus, run: str, path: Path, progress: Progress, named: Named | None = None) -> Footer:
    """Write `run` and its ancestors as they are now; `named` is told which blobs they name."""
    pa, parquet = _pyarrow()
    links, schema, totals = await lineage(bus, run), _schema(pa), Totals()
    header = Header(FORMAT, VERSION, run, package_version(), tuple(link.run for link in links[:-1]))
    rows: list[dict[str, Any]] = []
    with parquet.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True) as writer:

        def flush() -> None:
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
            rows.clear()

        for link in links:
            async for record in records(bus, link.run, link.events):
                check_subject(link.run, record)
                fact = record.logged(link.run)
                row = _columns(link.run, record, fact)
                totals.take(link.run, row["leaf"])
                rows.append(row)
                if named is not None:
                    named.take(record.data, fact)
                if len(rows) == ROWS:
                    flush()
                progress(f"export of '{link.run}'", record.sequence, link.events)
        flush()
        footer = totals.footer()
        writer.add_key_value_metadata({KEY: msgspec.json.encode(_Meta(header, footer))})
    return footer


def _columns(run: str, record: Record, fact: Logged) -> dict[str, Any]:
    """The event's row; columns that it has nothing for are absent."""
    row: dict[str, Any] = {
        "run": run,
        "sequence": record.sequence,
        "time": record.time_ns,
        "subject": record.subject,
        "leaf": fact.leaf,
        "data": record.data,
    }
    if isinstance(fact, Skipped):
        return row | {"unreadable": fact.why}
    envelope = fact.envelope
    row |= {key: getattr(envelope, key) for key in ("type", "id", "cause", "basis", "recorded_at")}
    row |= {key: getattr(envelope.producer, key) for key in ("role", "worker", "package")}
    row["payload"] = bytes(msgspec.json.decode(record.data, type=_Wire).payload).decode()
    return row | _promoted(fact)


def _promoted(fact: Fact | Custom) -> dict[str, Any]:
    """Scalars of the payload, in the event's current version; of a custom fact those that have the column's type."""
    found: dict[str, Any] = {}
    if isinstance(fact, Custom):
        scalars, columns = fact.payload.get, _columns_of(None)
    else:
        scalars, columns = partial(getattr, fact.event), _columns_of(type(fact.event))
    for name, types in columns:
        value = scalars(name)
        if type(value) in types and not (type(value) is int and abs(value) >= _INT64):
            found[name] = value
    return found


@cache
def _columns_of(cls: type[msgspec.Struct] | None) -> list[tuple[str, tuple[type, ...]]]:
    """Promoted columns, and their types, that a class of events has; any of them where there is no class."""
    named = [(name, types) for columns, types in _PROMOTED for name in columns]
    return named if cls is None else [(name, types) for name, types in named if name in cls.__struct_fields__]


def read_parquet(path: Path) -> Iterator[Header | Row | Footer]:
    """Header, rows and footer of a file; UsageError when it is damaged or none of ours."""
    pa, parquet = _pyarrow()
    try:
        with parquet.ParquetFile(path, page_checksum_verification=True) as source:
            meta = _meta(path, source.metadata.metadata or {})
            yield check_header(path, meta.header)
            for batch in source.iter_batches(ROWS, columns=["run", "sequence", "subject", "data", "leaf"]):
                yield from _rows(path, batch.to_pylist())
            _check_other_columns(source)
            yield meta.footer
    except (pa.ArrowException, OSError, ValueError, TypeError, LookupError, MemoryError, OverflowError) as cause:
        why = " ".join(str(cause).split())[:160]
        raise unusable(path, f"it is no whole Parquet file ({why})") from None


def _check_other_columns(source: Any) -> None:
    """Read what is not imported too: its checksums are checked on the way."""
    for _ in source.iter_batches(ROWS):
        continue


def _meta(path: Path, found: dict[bytes, bytes]) -> _Meta:
    try:
        return msgspec.json.decode(found.get(KEY, b""), type=_Meta)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise unusable(path, "its metadata are not those of an export") from None


def _rows(path: Path, found: list[dict[str, Any]]) -> Iterator[Row]:
    for row in found:
        if any(value is None for value in row.values()):
            raise unusable(path, f"the row after event {row['sequence']} lacks a column that every event has")
        record = Record(row["sequence"], row["subject"], row["data"])
        yield Row(f"the row of event {row['sequence']} of run '{shown(row['run'])}'", record, row["leaf"])
