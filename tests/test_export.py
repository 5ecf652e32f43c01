"""Runs as files: exact bytes out, the same run in again, and every change of a file noticed."""

from __future__ import annotations

import io
import itertools
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import msgspec
import pyarrow.parquet as parquet
import pytest
import stored_runs
from hypothesis import given, settings
from hypothesis import strategies as st

from resia.events.errors import UsageError
from resia.events.merkle import leaf
from resia.runtime.blobs import DirectoryBlobs
from resia.runtime.bus import Bus
from resia.runtime.export import Footer, encode_line, read_jsonl, time_text, write_jsonl
from resia.runtime.export_parquet import read_parquet, write_parquet
from resia.runtime.importing import survey
from resia.runtime.marks import Named
from resia.runtime.records import Record, records

EXAMPLE = Path(__file__).parent.parent / "examples" / "query_run.py"
FORMATS = ("jsonl", "parquet")


def quiet(what: str, done: int, total: int) -> None:
    assert 0 <= done <= total, what


async def exported(bus: Bus, run: str, path: Path, form: str, named: Named | None = None) -> Footer:
    if form == "parquet":
        return await write_parquet(bus, run, path, quiet, named)
    with path.open("wb") as sink:
        return await write_jsonl(bus, run, sink, quiet, named)


@pytest.fixture
async def junky(bus, run) -> str:
    """A run with custom facts and messages that are no events."""
    await stored_runs.with_junk(bus, run, stored_runs.played(run))
    return run


@pytest.mark.parametrize("form", FORMATS)
async def test_every_message_travels_byte_for_byte(bus, junky, tmp_path, form):
    path = tmp_path / f"run.{form}"
    footer = await exported(bus, junky, path, form)
    stored = [(r.sequence, r.subject, r.data) async for r in records(bus, junky)]
    read = read_parquet(path) if form == "parquet" else read_jsonl(path)
    header, *rows, last = list(read)
    assert [(row.record.sequence, row.record.subject, row.record.data) for row in rows] == stored
    assert [row.leaf for row in rows] == [leaf(*message) for message in stored]
    assert (header.run, header.parents, last) == (junky, (), footer)
    assert footer.events == len(stored) == footer.runs[0].events
    assert {data for _, _, data in stored} >= set(stored_runs.JUNK)


async def test_both_forms_add_up_to_the_same(bus, junky, tmp_path):
    found = [await exported(bus, junky, tmp_path / form, form) for form in FORMATS]
    assert found[0].runs == found[1].runs
    assert found[0].merkle_root == found[1].merkle_root
    surveys = [survey(tmp_path / form) for form in FORMATS]
    assert surveys[0].leaves == surveys[1].leaves


async def test_a_line_holds_the_servers_time_and_the_event_itself(bus, junky, tmp_path):
    await exported(bus, junky, tmp_path / "x", "jsonl")
    first = msgspec.json.decode((tmp_path / "x").read_bytes().split(b"\n")[1])
    stored = await anext(records(bus, junky, 1))
    assert first["time"] == time_text(stored.time_ns)
    assert first["event"] == msgspec.json.decode(stored.data)
    assert first["event"]["type"] == "run-requested"


async def test_a_forks_export_begins_with_its_ancestors(bus, run, tmp_path):
    grand = stored_runs.played(run)
    await stored_runs.keep(bus, run, grand)
    names = [run]
    above = grand
    for generation in ("b", "c"):
        name = f"{run}-{generation}"
        child = stored_runs.played(name, parent=stored_runs.forked_at(above, names[-1], 1))
        await bus.create_run(name)
        await stored_runs.keep(bus, name, child)
        names, above = [*names, name], child
    for form in FORMATS:
        footer = await exported(bus, names[-1], tmp_path / form, form)
        assert [section.run for section in footer.runs] == names
        assert survey(tmp_path / form).runs == tuple(names)


async def test_a_run_without_events_cannot_be_exported(bus, run, tmp_path):
    with pytest.raises(UsageError, match="has no event yet"):
        await exported(bus, run, tmp_path / "x", "jsonl")


async def test_a_message_of_another_runs_subject_is_refused(bus, run):
    from resia.runtime.export import check_subject

    with pytest.raises(UsageError, match="no import can write: take resia archive"):
        check_subject(run, Record(3, "resia.other.task.x.y", b""))


async def test_the_table_has_what_analysts_ask_for(bus, junky, tmp_path):
    await exported(bus, junky, tmp_path / "x", "parquet")
    table = parquet.read_table(tmp_path / "x").to_pylist()
    facts = stored_runs.played(junky).facts
    assert [row["sequence"] for row in table] == list(range(1, len(table) + 1))
    rewards = [f.event.reward for f in facts if f.envelope.type == "rollout-recorded"]
    assert [r["reward"] for r in table if r["type"] == "rollout-recorded"] == rewards
    verdicts = [row for row in table if row["type"] == "decision-made"]
    assert {row["action"] for row in verdicts} <= {"edit_harness", "train_weights", "stop"}
    assert verdicts[0]["role"] == "feedback"
    assert msgspec.json.decode(verdicts[0]["payload"])["action"] == verdicts[0]["action"]
    junk = [row for row in table if row["unreadable"]]
    assert len(junk) == len(stored_runs.JUNK)
    assert all(row["type"] is None and row["payload"] is None for row in junk)
    custom = [row for row in table if row["type"] == "alerts_regression-found"]
    assert [(row["split"], row["reward"]) for row in custom] == [("search", 0.25)] * 3
    assert all(row["time"].tzinfo is not None for row in table)


async def test_blobs_are_named_by_facts_and_by_text_that_looks_like_a_digest(bus, run, tmp_path):
    blobs = DirectoryBlobs(tmp_path / "blobs")
    history = stored_runs.played(run)
    await stored_runs.keep(bus, run, history, blobs)
    seen = blobs.put(b"named by a custom fact")
    await stored_runs.say(bus, *stored_runs.custom_message(run, 1, {"of": {"blob": f"sha256:{seen.digest}"}}))
    named = Named()
    await exported(bus, run, tmp_path / "x", "jsonl", named)
    assert set(named.sizes(blobs)) == {*history.blobs, seen.digest}


# -- lines and changes of them --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scratch(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("scratch")


@settings(max_examples=300, deadline=None)
@given(
    data=st.one_of(
        st.binary(max_size=60),
        st.text(max_size=40).map(str.encode),
        st.recursive(st.none() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)).map(
            msgspec.json.encode
        ),
    ),
    token=st.text(st.characters(codec="ascii", exclude_categories=["C", "Z"], exclude_characters=".*>"), min_size=1),
)
def test_any_bytes_come_back_from_their_line(scratch, data, token):
    record = Record(1, f"resia.r.{token}", data, 123_456_789)
    path = scratch / "x"
    head = b'{"format":"resia-export","version":1,"run":"r","package":"0","parents":[]}\n'
    line = encode_line(record, record.leaf)
    assert line.count(b"\n") == 1
    path.write_bytes(head + line)
    parts = read_jsonl(path)
    next(parts)
    row = next(parts)
    assert (row.record.subject, row.record.data, row.leaf) == (record.subject, data, record.leaf)
    with pytest.raises(UsageError, match=r"ends after line 2 \(event 1\) without its footer"):
        next(parts)


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> dict[str, bytes]:
    """A small export of each form, made without a server."""
    import pyarrow as pa

    from resia.runtime import export, export_parquet

    history = stored_runs.played("sound", max_iterations=1)
    rows = [Record(n, subject, data, n) for n, (subject, data) in enumerate(history.records, 1)]
    totals = export.Totals()
    for row in rows:
        totals.take("sound", row.leaf)
    header = export.Header(export.FORMAT, export.VERSION, "sound", "0")
    lines = b"".join([msgspec.json.encode(header) + b"\n", *(encode_line(row, row.leaf) for row in rows)])
    footer = totals.footer(export.hashlib.sha256(lines).hexdigest())
    out = io.BytesIO()
    schema = export_parquet._schema(pa)
    with parquet.ParquetWriter(out, schema, write_page_checksum=True) as writer:
        writer.write_table(
            pa.Table.from_pylist(
                [export_parquet._columns("sound", row, row.logged("sound")) for row in rows], schema=schema
            )
        )
        meta = export_parquet._Meta(header, totals.footer())
        writer.add_key_value_metadata({export_parquet.KEY: msgspec.json.encode(meta)})
    return {"jsonl": lines + msgspec.json.encode(footer) + b"\n", "parquet": out.getvalue()}


def changed(data: bytes, how: str, a: float, b: float, more: bytes) -> bytes:
    """`data` cut, flipped, repeated, reordered or spliced at `a` and `b`, shares of its length."""
    lines = data.split(b"\n")
    at, to = sorted(int(x * (len(data) - 1)) for x in (a, b))
    line, other = (int(x * (len(lines) - 1)) for x in (a, b))
    match how:
        case "cut":
            return data[:at]
        case "flip":
            return data[:at] + bytes([data[at] ^ 1 << len(more) % 8]) + data[at + 1 :]
        case "splice":
            return data[:at] + more + data[at:]
        case "gap":
            return data[:at] + data[to:]
        case "swap":
            lines[line], lines[other] = lines[other], lines[line]
        case "drop":
            del lines[line]
        case "repeat":
            lines.insert(line, lines[line])
        case "append":
            return data + more
    return b"\n".join(lines)


CHANGES = {
    "how": st.sampled_from(["cut", "flip", "splice", "gap", "swap", "drop", "repeat", "append"]),
    "a": st.floats(0, 1),
    "b": st.floats(0, 1),
    "more": st.binary(min_size=1, max_size=9),
}


@settings(max_examples=400, deadline=None)
@given(**CHANGES)
def test_no_change_of_a_jsonl_file_goes_unnoticed(sound, scratch, how, a, b, more):
    data = changed(sound["jsonl"], how, a, b, more)
    path = scratch / "x.jsonl"
    path.write_bytes(data)
    if data == sound["jsonl"]:
        assert survey(path).runs == ("sound",)
        return
    with pytest.raises(UsageError) as refused:
        survey(path)
    assert "\n" not in str(refused.value)
    assert str(path) in str(refused.value)


@settings(max_examples=150, deadline=None)
@given(**CHANGES)
def test_no_change_of_a_table_brings_in_another_event(sound, scratch, how, a, b, more):
    """Parquet's own footer has fields that say nothing of the events; every byte that does is checked."""
    path = scratch / "x.parquet"
    path.write_bytes(sound["parquet"])
    whole = survey(path)
    path.write_bytes(changed(sound["parquet"], how, a, b, more))
    with suppress(UsageError):
        found = survey(path)
        assert (found.runs, found.leaves) == (whole.runs, whole.leaves)


def test_the_changed_line_is_named(sound, tmp_path):
    path = tmp_path / "x"
    lines = sound["jsonl"].splitlines(keepends=True)
    for number in (2, 3, len(lines) - 1):
        changed = lines[number - 1].replace(b'"recorded_at":', b'"recorded_at":9', 1)
        assert changed != lines[number - 1]
        path.write_bytes(b"".join([*lines[: number - 1], changed, *lines[number:]]))
        with pytest.raises(UsageError, match=rf"line {number} \(event {number - 1}\) does not match its hash"):
            survey(path)
    path.write_bytes(b"".join(lines[:10])[:-5])
    with pytest.raises(UsageError, match="line 10 is no event of an export: it was changed or cut off"):
        survey(path)


def test_a_later_version_says_upgrade(sound, tmp_path):
    (tmp_path / "x").write_bytes(sound["jsonl"].replace(b'"version":1', b'"version":7', 1))
    with pytest.raises(UsageError, match="has version 7 and this package reads up to 1: upgrade resia"):
        survey(tmp_path / "x")


@pytest.mark.parametrize("data", [b"", b"\n", b"{}", b"[]", b"PAR1", b"PAR1" + bytes(40) + b"PAR1", b"\x00" * 99, b"x"])
def test_what_is_no_export_is_refused_in_a_sentence(tmp_path, data):
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(UsageError, match="cannot be imported"):
        survey(tmp_path / "x")


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(UsageError, match=f"{path} cannot be read"):
            survey(path)


# -- the example ----------------------------------------------------------------------------------------------------


def example(path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(EXAMPLE), str(path)], capture_output=True, text=True, timeout=60)


async def test_the_query_example_answers_from_an_export(bus, junky, tmp_path):
    await exported(bus, junky, tmp_path / "run.parquet", "parquet")
    done = example(tmp_path / "run.parquet")
    assert done.stderr == ""
    facts = stored_runs.played(junky).facts
    rollouts = [f.event for f in facts if f.envelope.type == "rollout-recorded"]
    expected = {}
    for (purpose, split), group in itertools.groupby(
        sorted(rollouts, key=lambda r: (r.purpose, r.split)), lambda r: (r.purpose, r.split)
    ):
        found = list(group)
        expected[purpose, split] = (len(found), sum(r.reward for r in found) / len(found))
    lines = [line.split() for line in done.stdout.splitlines()]
    table = {(line[1], line[2]): (int(line[3]), float(line[4])) for line in lines if line[0] == "rollouts"}
    assert set(table) == set(expected)
    for key, (count, mean) in expected.items():
        assert table[key] == (count, pytest.approx(mean, abs=5e-4))
    assert [line[2] for line in lines if line[0] == "decision"] == [
        f.event.action for f in facts if f.envelope.type == "decision-made"
    ]
