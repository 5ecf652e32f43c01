"""Every error resia raises on purpose, typed by the boundary it crossed.

ResiaError
├── UsageError            a person's input: named thing, value and fix; exit code 2
│   └── UnknownName       a name that is not in a closed list; carries the nearest valid ones
├── BoundaryError         an outside party failed; an attempt that ends here is recorded as a fact
│   ├── ModelError        an engine or endpoint
│   │   └── EndpointRefused  it would answer the same again: a name, a request that it does not take
│   │       └── KeyRefused   the key or the account, which a person mends while the run waits
│   ├── SandboxError      generated source; carries the failure class it is recorded as
│   ├── TrainerError      an optimisation step
│   │   └── NoSignal      a sound batch that holds nothing to learn from
│   ├── BusError          the event log
│   │   └── FenceMoved    another decider was first: fold on and decide again
│   ├── BlobError         a blob that is missing or does not match its digest
│   ├── WorkerError       a worker of a user's own that failed or broke its contract
│   └── AssetError        a download or a corrupt asset
└── LogError              the log breaks an invariant; nothing is written after it
    ├── UnreadableEvent   a message that is not an event of this catalogue
    └── Tampered          the numbering has a gap
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class ResiaError(Exception):
    """Base of every error raised on purpose."""


class UsageError(ResiaError):
    """A person's input cannot be used; the message is one sentence with the fix."""


class UnknownName(UsageError):
    """`value` is not one of `valid`; the sentence offers the nearest of them."""

    def __init__(self, thing: str, value: str, valid: Iterable[str]) -> None:
        names = sorted(valid)
        near = difflib.get_close_matches(value, names, n=3, cutoff=0.4) or names[:5]
        offer = f"did you mean {' or '.join(near)}?" if near else "there is none yet."
        super().__init__(f"unknown {thing} '{value}': {offer}")


class BoundaryError(ResiaError):
    """An outside party failed."""


class ModelError(BoundaryError): ...


class EndpointRefused(ModelError):
    """The endpoint answered, and asking again would change nothing."""


class KeyRefused(EndpointRefused):
    """The endpoint does not take the key, or not for this: nothing that the run did, so nothing is settled by it."""


class SandboxError(BoundaryError):
    """Generated source failed. `failure` is the failure class it is recorded as; `limit` names one that it reached."""

    def __init__(self, failure: str, message: str, limit: str = "") -> None:
        super().__init__(message)
        self.failure = failure
        self.limit = limit


class TrainerError(BoundaryError):
    """A step could not be taken; `step` counts from 0, -1 before the first."""

    def __init__(self, message: str, step: int = -1) -> None:
        super().__init__(message)
        self.step = step


class NoSignal(TrainerError):
    """The batch is sound and holds nothing to learn from, such as equal rewards throughout."""


class BusError(BoundaryError): ...


class FenceMoved(BusError):
    """The fence subject's last sequence is `actual`, not what the decider had folded."""

    def __init__(self, actual: int) -> None:
        super().__init__(f"another decision came first (last fenced event is {actual})")
        self.actual = actual


class BlobError(BoundaryError): ...


class WorkerError(BoundaryError):
    """A worker of a user's own failed or broke its contract; it ends, and what it had in hand waits for a fixed one."""


class AssetError(BoundaryError): ...


class LogError(ResiaError):
    """The log breaks an invariant."""


class UnreadableEvent(LogError):
    """Message `sequence` is not an event of this catalogue."""

    def __init__(self, sequence: int, why: str) -> None:
        super().__init__(f"event {sequence} cannot be read: {why}")
        self.sequence = sequence
        self.why = why


class Tampered(LogError):
    """Event `sequence` does not fit the log's hashes or numbering."""

    def __init__(self, sequence: int, why: str) -> None:
        super().__init__(f"event {sequence} does not fit the log: {why}")
        self.sequence = sequence


@contextmanager
def boundary(error: type[BoundaryError], what: str) -> Iterator[None]:
    """Turn whatever an outside party raises into `error`, with `what` naming the attempt.

    Errors of our own pass unchanged, so boundaries nest.
    """
    try:
        yield
    except ResiaError:
        raise
    except Exception as cause:
        raise error(f"{what}: {type(cause).__name__}: {cause}") from cause
