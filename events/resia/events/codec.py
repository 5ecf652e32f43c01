"""Events to bytes and back: JSON, an envelope whose `payload` is decoded by (type, version), upcast when old."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import msgspec

from . import merkle
from .catalogue import EVENT_CLASSES, TYPES, WRITERS, Event, version_of
from .custom import is_custom, wire_type
from .envelope import Custom, Envelope, Fact
from .errors import UnreadableEvent
from .subjects import event_prefix, event_subject
from .upcasters import UPCASTERS

MAX_EVENT_BYTES = 1024 * 1024


class _Wire(Envelope, frozen=True, kw_only=True):
    payload: msgspec.Raw


class _Expected(NamedTuple):
    """What a message of the core says on the subjects of one prefix, and how it is decoded in one pass, its payload
    with its envelope."""

    decode: Callable[[bytes], Any]
    type: str
    version: int
    run: str
    role: str


def _whole_decoder(cls: type[Event]) -> msgspec.json.Decoder[Any]:
    wire = msgspec.defstruct(
        f"_Wire{cls.__name__}", [("payload", cls)], bases=(Envelope,), frozen=True, kw_only=True, gc=False
    )
    return msgspec.json.Decoder(wire)


_encoder = msgspec.json.Encoder(order="deterministic")
_wire_decoder = msgspec.json.Decoder(_Wire)
_payload_decoders: dict[str, msgspec.json.Decoder[Event]] = {
    name: msgspec.json.Decoder(cls) for name, cls in TYPES.items()
}
_whole_decoders = {name: _whole_decoder(cls) for name, cls in TYPES.items()}
_ENVELOPE_FIELDS = tuple(f.name for f in msgspec.structs.fields(Envelope))
_UNDECODABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def encode(envelope: Envelope, event: msgspec.Struct) -> bytes:
    """Wire bytes of one event; the envelope's type must be the event's."""
    kind, _ = wire_type(type(event))
    if kind != envelope.type:
        raise ValueError(f"envelope says {envelope.type}, event is {kind}")
    fields = {name: getattr(envelope, name) for name in _ENVELOPE_FIELDS}
    return _encoder.encode(_Wire(**fields, payload=msgspec.Raw(_encoder.encode(event))))


def decode(sequence: int, subject: str, data: bytes) -> Fact | Custom:
    """Fact number `sequence` from its stored bytes; raises UnreadableEvent naming what is wrong."""
    try:
        wire = _wire_decoder.decode(data)
        envelope = Envelope(**{name: getattr(wire, name) for name in _ENVELOPE_FIELDS})
        leaf = merkle.leaf(sequence, subject, data)
        decoder = _payload_decoders.get(wire.type)
        if decoder is not None:
            return Fact(sequence, leaf, envelope, decoder.decode(_current(sequence, wire)))
        if is_custom(wire.type):
            return Custom(sequence, leaf, envelope, msgspec.json.decode(wire.payload, type=dict[str, Any]))
        raise UnreadableEvent(sequence, f"unknown type '{_clip(wire.type)}'")
    except _UNDECODABLE as cause:
        raise UnreadableEvent(sequence, _clip(str(cause))) from cause


def _current(sequence: int, wire: _Wire) -> bytes | msgspec.Raw:
    """Payload of `wire` in the current version of its type."""
    current = version_of(wire.type)
    if wire.version == current:
        return wire.payload
    if wire.version > current:
        raise UnreadableEvent(
            sequence,
            f"{wire.type} version {wire.version} is newer than this package's {current}; upgrade resia",
        )
    payload: dict[str, Any] = msgspec.json.decode(wire.payload, type=dict)
    for version in range(wire.version, current):
        try:
            payload = UPCASTERS[wire.type, version](payload)
        except (KeyError, TypeError, ValueError, ArithmeticError) as cause:
            raise UnreadableEvent(sequence, f"{wire.type} version {version} does not upcast: {cause!r}") from cause
    return msgspec.json.encode(payload)


def read(sequence: int, subject: str, data: bytes) -> Fact | Custom:
    """`decode`, for messages that came over the bus: also refuses what its writer had no right to say.

    The subject is what the server let its writer use; the envelope must say the same, and the role own the type.
    """
    return _read_expected(sequence, subject, data) or _read_any(sequence, subject, data)


def _read_expected(sequence: int, subject: str, data: bytes) -> Fact | None:
    """The fact, where it is of the current version and everything about it fits its subject."""
    prefix, _, event_id = subject.rpartition(".")
    expected = _expected(prefix)
    if expected is None:
        return None
    try:
        wire = expected.decode(data)
    except _UNDECODABLE:
        return None  # `_read_any` says why
    if (
        wire.id != event_id
        or wire.type != expected.type
        or wire.version != expected.version
        or wire.run != expected.run
        or wire.producer.role != expected.role
    ):
        return None
    envelope = Envelope(
        event_id,
        expected.run,
        expected.type,
        wire.version,
        wire.cause,
        wire.basis,
        wire.producer,
        wire.recorded_at,
        wire.trace,
    )
    return Fact(sequence, merkle.leaf(sequence, subject, data), envelope, wire.payload)


@lru_cache(maxsize=256)
def _expected(prefix: str) -> _Expected | None:
    """None where no role may write a type of the core on these subjects."""
    tokens = prefix.split(".")
    if len(tokens) != 4 or event_prefix(*tokens[1:]) != prefix:
        return None
    _, run, role, kind = tokens
    if kind not in TYPES or TYPES[kind] not in WRITERS.get(role, ()):
        return None
    return _Expected(_whole_decoders[kind].decode, kind, version_of(kind), run, role)


def _read_any(sequence: int, subject: str, data: bytes) -> Fact | Custom:
    fact = decode(sequence, subject, data)
    envelope, role = fact.envelope, fact.envelope.producer.role
    if subject != event_subject(envelope.run, role, envelope.type, envelope.id):
        raise UnreadableEvent(sequence, f"its envelope does not belong on subject '{_clip(subject)}'")
    if isinstance(fact, Fact) and type(fact.event) not in WRITERS.get(role, ()):
        raise UnreadableEvent(sequence, f"role '{_clip(role)}' does not write {envelope.type}")
    return fact


def _clip(text: str, limit: int = 200) -> str:
    """At most `limit` printable characters: a hostile message must not fill a terminal."""
    return re.sub(r"[^\x20-\x7e]", "?", text[:limit])


assert set(TYPES.values()) == set(EVENT_CLASSES), "catalogue and union differ"
assert UPCASTERS.keys() == {(name, v) for name in TYPES for v in range(1, version_of(name))}, "a version has no way up"
