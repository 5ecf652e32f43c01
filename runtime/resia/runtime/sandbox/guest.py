"""One run, in its own process: read a request, define the source, call its entry, answer.

The generated code shares this interpreter, so nothing here is a lock: it can forge its own answer and its own tool
calls, and no more than those, because the other side believes nothing but JSON. Collaborators: `wire`, `confine`.
"""

from __future__ import annotations

import errno
import json
import os
import random
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from resia.runtime.sandbox import wire
from resia.runtime.sandbox.confine import Locks, confine_guest
from resia.runtime.sandbox.landlock import NOT_STANDARD
from resia.runtime.sandbox.wire import Setup

_DENIED = (errno.EPERM, errno.EACCES, errno.EFBIG, errno.EROFS)
_ABSENT = (errno.ENOENT, errno.ENOTDIR)
_STANDARD = tuple(sys.path)
_LONGEST_MESSAGE = 1000
# A run of our own before the guest waits: the pages that every run writes to are copied now, and not during the run.
_REHEARSAL = json.dumps(
    {"source": "def f(text):\n    return {'answer': text.split()[-1]}\n", "entry": "f", "args": ["a b"], "tools": None}
)


class Tools:
    """What the generated code sees as `tools`: `tools.NAME(**kwargs)` asks the other side and waits."""

    def __init__(self, names: list[str], ask: Callable[[str, dict[str, Any]], Any]) -> None:
        self._names = names
        self._ask = ask

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name not in self._names:
            raise AttributeError(f"there is no tool '{name}', only {', '.join(self._names) or 'none'}")
        return lambda **kwargs: self._ask(name, kwargs)


class Line:
    """The inherited socket, at descriptor `fd`."""

    def __init__(self, fd: int, limit: int) -> None:
        self._fd = fd
        self._limit = limit

    def encode(self, message: dict[str, Any]) -> bytes:
        """`message` as JSON. TypeError or ValueError where it is none, or more than a message may be."""
        payload = json.dumps(message, allow_nan=False).encode()
        if len(payload) > self._limit:
            raise wire.TooLarge(f"{len(payload)} bytes of JSON, more than {self._limit}")
        return payload

    def send(self, payload: bytes) -> None:
        rest = memoryview(wire.frame(payload))
        while rest:
            rest = rest[os.write(self._fd, rest) :]

    def receive(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(wire.unframe(lambda size: os.read(self._fd, size), self._limit))
        return message

    def ask(self, tool: str, arguments: dict[str, Any]) -> Any:
        """The result of `tool`; the ValueError it raised, with its message."""
        self.send(self.encode({"type": "called", "tool": tool, "arguments": arguments}))
        reply = self.receive()
        if "error" in reply:
            raise ValueError(reply["error"])
        return reply["value"]


def live(fd: int, setup: Setup, locks: Locks | None, server: int) -> None:
    """The whole life of a guest: lock, rehearse, say so, then run what is asked. Returns when it has answered."""
    confine_guest(setup, locks, server)
    line = Line(fd, setup.message_bytes)
    _outcome(line, json.loads(_REHEARSAL), setup.confined)
    line.send(line.encode({"type": "ready"}))
    line.send(_outcome(line, line.receive(), setup.confined))


def _outcome(line: Line, request: dict[str, Any], confined: bool) -> bytes:
    try:
        value = _called(line, request)
        return _answer(line, value)
    except MemoryError:
        # Describing it might need memory.
        os._exit(wire.EXIT_MEMORY)
    except BaseException as error:  # noqa: BLE001 - generated code may raise anything; this is its boundary
        failure = "sandbox_violation" if isinstance(error, OSError) and _is_violation(error, confined) else "tool_error"
        limit = "output_limit" if isinstance(error, wire.TooLarge) else ""
        return line.encode({"type": "raised", "failure": failure, "message": _described(error), "limit": limit})


def _is_violation(error: OSError, confined: bool) -> bool:
    """Whether a lock said no, or the code reached for a file of the machine's.

    Where there are namespaces such a file is not there, elsewhere it may not be opened; to a confined run both are one,
    so that neither the tier nor what is on the machine decides how its failure is recorded.
    """
    if error.errno in _DENIED:
        return True
    if not confined or error.errno not in _ABSENT or not isinstance(error.filename, str | bytes):
        return False
    path = os.path.normpath(os.fsdecode(error.filename))
    return not path.startswith(_STANDARD) or any(name in path.split(os.sep) for name in NOT_STANDARD)


def _called(line: Line, request: dict[str, Any]) -> Any:
    # The same source and arguments are to give the same value when a run is replayed.
    random.seed(0)
    module = ModuleType("generated")
    # Classes look their own module up, dataclasses for one.
    sys.modules[module.__name__] = module
    exec(compile(request["source"], wire.FILENAME, "exec", dont_inherit=True), module.__dict__)
    entry = module.__dict__.get(request["entry"])
    if not callable(entry):
        raise NameError(f"the source defines no function '{request['entry']}'")
    tools = request["tools"]
    return entry(*request["args"]) if tools is None else entry(*request["args"], Tools(tools, line.ask))


def _answer(line: Line, value: Any) -> bytes:
    try:
        return line.encode({"type": "returned", "value": value})
    except wire.TooLarge as error:
        raise wire.TooLarge(f"returned {error}") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(f"returned no JSON: {error}") from None


def _described(error: BaseException) -> str:
    """Type, message and the last line of the generated source that the error passed."""
    line = None
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == wire.FILENAME:
            line = trace.tb_lineno
        trace = trace.tb_next
    try:
        message = str(error)
    except Exception as unprintable:  # noqa: BLE001 - `__str__` is generated code too
        message = f"(no message: {type(unprintable).__name__})"
    where = "" if line is None else f" (line {line})"
    return f"{type(error).__name__}: {message[:_LONGEST_MESSAGE]}{where}"
