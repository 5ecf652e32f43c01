"""What surrounds every fact on the wire and in memory.

A frozen value cannot be part of a cycle, so what every event allocates is left out of the garbage collector's rounds:
`gc=False`. On a log of many events these rounds would cost as much as the decoding.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from .catalogue import Event


class Producer(msgspec.Struct, frozen=True, gc=False):
    """Who wrote it: role, worker name and package version. The worker's name decides nothing."""

    role: str
    worker: str
    package: str


class Envelope(msgspec.Struct, frozen=True, gc=False):
    """Everything about a fact but the fact.

    `cause` is the id of the event that led here (None for the first), `basis` the number of the last event folded
    when it was decided, `recorded_at` seconds since the epoch as the producer's clock said, `trace` a W3C
    traceparent or empty.
    """

    id: str
    run: str
    type: str
    version: Annotated[int, msgspec.Meta(ge=1, le=2**31)]
    cause: str | None
    basis: int
    producer: Producer
    recorded_at: float
    trace: str = ""


class Fact(msgspec.Struct, frozen=True, gc=False):
    """An event as it stands in the log: its number from 1, its leaf hash for Merkle roots, envelope and payload."""

    sequence: int
    leaf: str
    envelope: Envelope
    event: Event


class Skipped(msgspec.Struct, frozen=True):
    """A message that no event of this catalogue could be read from: it keeps its number and leaf."""

    sequence: int
    leaf: str
    why: str


class Custom(msgspec.Struct, frozen=True):
    """A fact of a registered namespace outside the core: counted and hashed, and no rule of the core reads it."""

    sequence: int
    leaf: str
    envelope: Envelope
    payload: dict[str, Any]


Logged = Fact | Custom | Skipped


class Draft(msgspec.Struct, frozen=True):
    """An event ready to append: subject, id and encoded bytes. Of an outcome only one may stand under its id."""

    id: str
    subject: str
    data: bytes
    event: msgspec.Struct
    outcome: bool = False
