"""Hypothesis strategies for events, built from the types themselves, so that a new field or event is covered at once.

`WIRE` draws what JSON can carry at all; `LINKED` draws ids, items and numbers from a few values, so that random facts
refer to each other as a run's do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec
from hypothesis import strategies as st
from msgspec import inspect as types

from resia.events import TYPES, Envelope, Event, Fact, Manifest, Producer, RunSettings, Skipped, TrainingSettings
from resia.events.catalogue import NAMES, version_of
from resia.events.ids import sha256


class Leaves(NamedTuple):
    """How the values at the bottom are drawn; integers and floats as (smallest, largest) where a type sets none.

    `plain` structs, which no fold looks into, take their defaults.
    """

    text: st.SearchStrategy[str]
    integers: tuple[int, int]
    floats: tuple[float, float]
    plain: Mapping[type, Any] = {}


WIRE = Leaves(st.text(max_size=8), (-(2**63), 2**64 - 1), (-1.7e308, 1.7e308))
LINKED = Leaves(
    st.sampled_from(["a", "b", "c", "d"]),
    (0, 12),
    (-1.0, 1.0),
    {
        RunSettings: RunSettings(),
        TrainingSettings: TrainingSettings(),
        Manifest: Manifest("m", "d" * 64, "float32", 1, "x86-64", "0"),
    },
)


def strategy(type_: types.Type, leaves: Leaves) -> st.SearchStrategy[Any]:
    """Values of a msgspec type."""
    match type_:
        case types.BoolType():
            return st.booleans()
        case types.IntType(ge=low, gt=above, le=high):
            start = low if low is not None else above + 1 if above is not None else leaves.integers[0]
            return st.integers(start, high if high is not None else max(leaves.integers[1], start))
        case types.FloatType():
            return _floats(type_, leaves)
        case types.StrType():
            return leaves.text
        case types.NoneType():
            return st.none()
        case types.LiteralType(values=values):
            return st.sampled_from(values)
        case types.UnionType(types=members):
            return st.one_of([strategy(member, leaves) for member in members])
        case types.VarTupleType(item_type=item):
            return st.lists(strategy(item, leaves), max_size=3).map(tuple)
        case types.DictType(key_type=key, value_type=value):
            return st.dictionaries(strategy(key, leaves), strategy(value, leaves), max_size=3)
        case types.StructType(cls=cls) if cls in leaves.plain:
            return st.just(leaves.plain[cls])
        case types.StructType(cls=cls, fields=fields):
            return st.builds(cls, **{field.name: strategy(field.type, leaves) for field in fields})
        case _:
            raise TypeError(f"no strategy for {type_}")


def _floats(type_: types.FloatType, leaves: Leaves) -> st.SearchStrategy[float]:
    low = type_.ge if type_.ge is not None else type_.gt if type_.gt is not None else leaves.floats[0]
    high = type_.le if type_.le is not None else type_.lt if type_.lt is not None else leaves.floats[1]
    open_ends = {"exclude_min": type_.gt is not None, "exclude_max": type_.lt is not None}
    return st.floats(low, high, allow_nan=False, allow_infinity=False, **open_ends)


def events(leaves: Leaves = LINKED) -> st.SearchStrategy[Event]:
    """Any event of the catalogue."""
    return st.one_of([strategy(types.type_info(cls), leaves) for cls in TYPES.values()])


def envelopes() -> st.SearchStrategy[Envelope]:
    """An envelope of nothing yet: `type` and `version` are those of the event that goes into it."""
    text = WIRE.text
    producer = st.builds(Producer, text, text, text)
    whole = st.integers(*WIRE.integers)
    return st.builds(
        Envelope, text, text, st.just(""), st.just(0), st.none() | text, whole, producer, st.floats(0, 1e10), text
    )


def enclosed(envelope: Envelope, event: Event) -> Envelope:
    """`envelope` around `event`."""
    kind = NAMES[type(event)]
    return msgspec.structs.replace(envelope, type=kind, version=version_of(kind))


def logs(max_size: int = 20) -> st.SearchStrategy[list[Fact | Skipped]]:
    """Numbered facts in any order at all, a skipped message here and there."""
    entries = st.tuples(st.none() | events(), LINKED.text, st.none() | LINKED.text)
    return st.lists(entries, max_size=max_size).map(
        lambda drawn: [_numbered(number, *entry) for number, entry in enumerate(drawn, 1)]
    )


def _numbered(sequence: int, event: Event | None, id_: str, cause: str | None) -> Fact | Skipped:
    leaf = sha256(b"%d" % sequence)
    if event is None:
        return Skipped(sequence, leaf, "not an event")
    envelope = Envelope(id_, "run", "", 0, cause, sequence - 1, Producer("task", "w", "0"), 1.0)
    return Fact(sequence, leaf, enclosed(envelope, event), event)


def replaced(fact: Fact, **changes: Any) -> Fact:
    """`fact` with another envelope."""
    return msgspec.structs.replace(fact, envelope=msgspec.structs.replace(fact.envelope, **changes))
