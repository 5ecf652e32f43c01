"""A cache of folded states: the state after event N, kept in a file so that a long log need not be folded again.

Nothing depends on it: any file of it may be removed at any time. A snapshot names its run, its number, the leaf hash of
that event and the code that folded; one that is damaged, of another log or of other code is as good as none. It is
data and never code: MessagePack, decoded into the types of the state. Maps are written as dictionaries, since msgspec
knows no persistent map; the mirror types that this takes are made from the state's own.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import operator
import os
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import GenericAlias, UnionType
from typing import Any, NamedTuple, Union, cast, get_args, get_origin, get_type_hints

import msgspec
from immutables import Map

import resia.events.envelope
import resia.replay.state
from resia.events.subjects import check_run
from resia.replay.state import RunState

_MAGIC = b"resia-snapshot-1\n"
_DIGEST = hashlib.sha256
_LIBRARIES = " ".join(f"{name} {importlib.metadata.version(name)}" for name in ("msgspec", "immutables"))


class Snapshot(NamedTuple):
    """A state, and the leaf hash of the event that it ends with."""

    state: RunState
    leaf: str


class Snapshots(NamedTuple):
    """The cache in `folder`: at most one snapshot a run."""

    folder: Path

    def path(self, run: str) -> Path:
        return self.folder / f"{check_run(run)}.snapshot"

    def save(self, run: str, snapshot: Snapshot) -> bool:
        """Keep it in place of the run's last; False where that cannot be, and then nothing is changed."""
        try:
            body = msgspec.msgpack.encode(_Stored(run, fingerprint(), snapshot.leaf, _STATE.to(snapshot.state)))
            self._write(run, _MAGIC + _DIGEST(body).digest() + body)
        except (OSError, OverflowError, UnicodeEncodeError, msgspec.MsgspecError):
            return False  # no room, or an odd number or text that JSON carries and MessagePack does not
        return True

    def load(self, run: str) -> Snapshot | None:
        """The run's snapshot as this code wrote it, None for any other. The caller compares its leaf with the log's."""
        try:
            data = self.path(run).read_bytes()
            start = len(_MAGIC) + _DIGEST().digest_size
            body = memoryview(data)[start:]
            if data[:start] != _MAGIC + _DIGEST(body).digest():
                return None
            head = msgspec.msgpack.decode(body, type=_Head)
            if (head.run, head.fingerprint) != (run, fingerprint()):
                return None
            state = _decoder().decode(body).state
        except (OSError, RecursionError, UnicodeDecodeError, msgspec.MsgspecError):
            return None
        return Snapshot(_STATE.back(state), head.leaf)

    def drop(self, run: str) -> None:
        """Remove the run's snapshot, if there is one."""
        self.path(run).unlink(missing_ok=True)

    def _write(self, run: str, data: bytes) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=self.folder, prefix=f".{run}.")
        try:
            with os.fdopen(handle, "wb") as sink:
                sink.write(data)
            Path(name).replace(self.path(run))
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


class _Head(msgspec.Struct, frozen=True):
    run: str
    fingerprint: str
    leaf: str


class _Stored(_Head, frozen=True):
    state: Any


@cache
def _decoder() -> msgspec.msgpack.Decoder[Any]:
    stored = msgspec.defstruct("_StoredState", [("state", _STATE.stored)], bases=(_Head,), frozen=True)
    return msgspec.msgpack.Decoder(stored)


@cache
def fingerprint() -> str:
    """Hash of everything that decides what a fold gives: the source of `resia.events` and `resia.replay`, libraries."""
    found = _DIGEST(_LIBRARIES.encode())
    for module in (resia.events.envelope, resia.replay.state):
        for source in sorted(Path(str(module.__file__)).parent.glob("*.py")):
            found.update(f"\n{source.parent.name}/{source.name} ".encode() + _DIGEST(source.read_bytes()).digest())
    return found.hexdigest()


class _Form(NamedTuple):
    """How values of a type stand in a file: the type there, and the way there and back."""

    stored: Any
    to: Callable[[Any], Any]
    back: Callable[[Any], Any]


@cache
def _form(kind: Any) -> _Form | None:
    """The form of a type, None where its values stand as they are."""
    if get_origin(kind) is Map:
        return _map_form(*get_args(kind))
    if get_origin(kind) in (Union, UnionType):
        return _union_form(get_args(kind))
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return _struct_form(kind)
    return None


def _map_form(key: Any, value: Any) -> _Form:
    held = _form(value)
    if held is None:
        return _Form(GenericAlias(dict, (key, value)), dict, Map)
    to, back = held.to, held.back
    return _Form(
        GenericAlias(dict, (key, held.stored)),
        lambda map_: {k: to(v) for k, v in map_.items()},
        lambda plain: Map({k: back(v) for k, v in plain.items()}),
    )


def _union_form(members: tuple[Any, ...]) -> _Form | None:
    """Events of one union are told apart by the name of their class."""
    structs = [m for m in members if isinstance(m, type) and issubclass(m, msgspec.Struct)]
    if len(structs) < 2:
        return None
    boxes = {
        m: msgspec.defstruct(f"_Box{m.__name__}", [("held", m)], frozen=True, tag=m.__name__, array_like=True)
        for m in structs
    }
    others = [m for m in members if m not in boxes]
    return _Form(
        functools.reduce(operator.or_, [*boxes.values(), *others]),
        lambda value: boxes[type(value)](value) if type(value) in boxes else value,
        lambda stored: cast(Any, stored).held if isinstance(stored, tuple(boxes.values())) else stored,
    )


def _struct_form(kind: type[msgspec.Struct]) -> _Form | None:
    hints = get_type_hints(kind)
    names = kind.__struct_fields__
    forms = {name: form for name in names if (form := _form(hints[name])) is not None}
    if not forms:
        return None
    fields = [(name, forms[name].stored if name in forms else hints[name]) for name in names]
    mirror = msgspec.defstruct(f"_Stored{kind.__name__}", fields, frozen=True, array_like=True)

    def to(value: Any) -> Any:
        held = {name: getattr(value, name) for name in names}
        return mirror(**{name: forms[name].to(v) if name in forms else v for name, v in held.items()})

    def back(stored: Any) -> Any:
        held = {name: getattr(stored, name) for name in names}
        return kind(**{name: forms[name].back(v) if name in forms else v for name, v in held.items()})

    return _Form(mirror, to, back)


_STATE = cast(_Form, _form(RunState))
