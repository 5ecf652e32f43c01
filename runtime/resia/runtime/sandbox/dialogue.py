"""One run's conversation with its guest, against a deadline; every word of the guest's is taken for hostile.

Collaborators: `guest.py` at the other end, the caller's tools. A guest's message is read up to its limit, parsed as
strict JSON into one of four types, and anything else is the failure of the code that runs there. Knows nothing of
processes: when the guest is gone it raises Gone, and `process.py` finds out why.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

from resia.agents.ports import Json, Ran, Tool
from resia.events.errors import SandboxError
from resia.runtime.sandbox import wire
from resia.runtime.sandbox.limits import Limit, SandboxLimits

_LONGEST_MESSAGE = 300
_FORK_S = 30.0


class Gone(Exception):
    """The guest ended, or closed its socket; `ready` says whether it had been locked down by then."""

    def __init__(self, ready: bool) -> None:
        super().__init__("the guest is gone")
        self.ready = ready


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The guest is locked down; nothing generated has run."""


class Called(msgspec.Struct, frozen=True, tag="called"):
    """The code calls a tool and waits."""

    tool: str
    arguments: dict[str, Any]


class Returned(msgspec.Struct, frozen=True, tag="returned"):
    """The entry returned `value`."""

    value: Any


class Raised(msgspec.Struct, frozen=True, tag="raised"):
    """The code failed. `limit` when what it returned, or a tool's arguments, took more than a message may."""

    failure: Literal["tool_error", "sandbox_violation"]
    message: str
    limit: Literal["", "output_limit"] = ""


_Word = Ready | Called | Returned | Raised
_words: msgspec.json.Decoder[_Word] = msgspec.json.Decoder(_Word)


# The class of failure that a run which reached a limit is recorded as.
_CLASSES: dict[Limit, str] = {
    "wall_limit": "timeout",
    "cpu_limit": "timeout",
    "memory_limit": "sandbox_violation",
    "output_limit": "tool_error",
    "call_limit": "tool_error",
}


def reached(limit: Limit, message: str) -> SandboxError:
    """The SandboxError of a run that reached `limit`; its message begins with the limit's name."""
    return SandboxError(_CLASSES[limit], f"{limit}: {message}", limit)


def failed(failure: str, message: str, limit: str = "") -> SandboxError:
    """A SandboxError whose message is fit for a log: printable and short."""
    printable = "".join(letter if letter.isprintable() else " " for letter in message[: 2 * _LONGEST_MESSAGE])
    return SandboxError(failure, printable[:_LONGEST_MESSAGE], limit)


class Dialogue:
    """A conversation over `near`. `hold` may be called once."""

    def __init__(self, near: socket.socket, limits: SandboxLimits, tools: Mapping[str, Tool] | None) -> None:
        self._near = near
        self._limits = limits
        self._tools = tools
        self._calls: list[tuple[str, dict[str, Json], Json]] = []
        self._ready = False
        self._deadline = time.monotonic() + _FORK_S

    def hold(self, source: str, entry: str, args: Sequence[Json]) -> Ran:
        """Ask, serve the tools, and return what the code returned. Raises SandboxError, Gone, or a tool's error."""
        names = None if self._tools is None else sorted(self._tools)
        request = msgspec.json.encode({"source": source, "entry": entry, "args": list(args), "tools": names})
        if len(request) > self._limits.message_bytes:
            raise failed("tool_error", f"a request of {len(request)} bytes, more than {self._limits.message_bytes}")
        self._send(request)
        while True:
            match self._receive():
                case Ready() if not self._ready:
                    self._ready = True
                    self._deadline = time.monotonic() + self._limits.wall_s
                case Called(tool, arguments):
                    self._serve(tool, arguments)
                case Returned(value):
                    return Ran(value, tuple(self._calls))
                case Raised(failure, message, limit):
                    raise failed(failure, f"{limit}: {message}" if limit else message, limit)
                case Ready():
                    raise failed("tool_error", "sent what no sandbox sends")

    def _serve(self, name: str, arguments: dict[str, Json]) -> None:
        if len(self._calls) >= self._limits.tool_calls:
            raise reached("call_limit", f"called tools more than {self._limits.tool_calls} times")
        started = time.monotonic()
        reply = self._reply(name, arguments)
        # The code pays for its own time alone.
        self._deadline += time.monotonic() - started
        self._calls.append((name, arguments, reply.get("value", reply)))
        self._send(msgspec.json.encode(reply))

    def _reply(self, name: str, arguments: dict[str, Json]) -> dict[str, Json]:
        tool = (self._tools or {}).get(name)
        if tool is None:
            return {"error": f"there is no tool '{name}'"}
        try:
            reply = {"value": tool(arguments)}
        except ValueError as error:
            return {"error": failed("tool_error", str(error)).args[0]}
        size = len(msgspec.json.encode(reply))
        if size > self._limits.message_bytes:
            return {"error": f"the result of {name} takes {size} bytes, more than {self._limits.message_bytes}"}
        return reply

    def _patience(self) -> float:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left

    def _read(self, size: int) -> bytes:
        self._near.settimeout(self._patience())
        return self._near.recv(size)

    def _receive(self) -> _Word:
        try:
            return _words.decode(wire.unframe(self._read, self._limits.message_bytes))
        except TimeoutError:
            raise self._late() from None
        except (EOFError, ConnectionError):
            raise Gone(self._ready) from None
        except wire.TooLarge as error:
            raise reached("output_limit", f"sent {error}") from None
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise failed("tool_error", f"sent no JSON: {error}") from None

    def _send(self, payload: bytes) -> None:
        try:
            self._near.settimeout(self._patience())
            self._near.sendall(wire.frame(payload))
        except TimeoutError:
            raise self._late() from None
        except ConnectionError:
            raise Gone(self._ready) from None

    def _late(self) -> SandboxError:
        return reached("wall_limit", f"took longer than {self._limits.wall_s} s")
