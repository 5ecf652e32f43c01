"""How a program's process goes: numpy and scipy loaded, one order, the locks turned, one call, the output handed over.

The program shares this interpreter, so nothing here is a lock and nothing it says is believed: it may say that it
failed, and hand over any numbers. It cannot reach what is not here, and what would tell it the score never is.
Standard library, numpy and what the setup names, `locks`.
"""

from __future__ import annotations

import importlib
import json
import linecache
import mmap
import os
import random
import struct
import sys
from typing import Any

from resia.runtime.chamber import locks

FILENAME = "<program>"
MESSAGE_CHARS = 600
_HEADER = struct.Struct("!I")
_WARM = 64  # rows and columns: enough for the linear algebra to make its buffers before the fork


class Failed(Exception):
    """The program's failure, by name."""

    def __init__(self, failure: str, detail: str) -> None:
        super().__init__(detail)
        self.failure, self.detail = failure, detail[:MESSAGE_CHARS]


def preload(setup: dict[str, Any]) -> None:
    """Before the first fork. A library that is not installed is none that a program can import."""
    import numpy

    for name in setup["libraries"]:
        try:
            importlib.import_module(name)
        except ImportError:
            continue
    _one_thread()
    numpy.linalg.svd(numpy.ones((_WARM, _WARM)) @ numpy.eye(_WARM))


def _one_thread() -> None:
    """threadpoolctl, which scikit-learn asks for its threads, would read what libraries this process maps, which it may
    not; it has one thread and no more."""
    if (found := sys.modules.get("threadpoolctl")) is not None:
        found.ThreadpoolController._load_libraries = lambda _: None


def live(near: int, arena: int, setup: dict[str, Any]) -> None:
    """Lock this forked process by the limits of the first message, say so, and run the program of the second."""
    limits = _receive(near)
    locks.limit_use(locks.Budget(limits["cpu_s"], limits["memory_bytes"]))
    if setup["confined"]:
        locks.limit_calls()
    _send(near, {"ready": True})
    order = _receive(near)
    try:
        _run(arena, order)
    except Failed as failed:
        _send(near, {"failure": failed.failure, "detail": failed.detail})
    else:
        _send(near, {"done": True})


def _run(arena: int, order: dict[str, Any]) -> None:
    import numpy as np

    entry = _defined(order["source"], order["entry"])
    with mmap.mmap(arena, order["bytes"]) as memory:
        arrays = {
            name: np.frombuffer(memory, dtype, int(np.prod(shape)), offset).reshape(shape).copy()
            for name, (offset, dtype, shape) in order["arrays"].items()
        }
    random.seed(order["seed"])
    np.random.seed(order["seed"] % 2**32)
    arguments = [arrays[value] if kind == "array" else value for kind, value in order["arguments"]]
    output = _checked(_called(entry, arguments), tuple(order["shape"]))
    offset = order["output"]
    with mmap.mmap(arena, order["bytes"]) as memory:
        memory[offset : offset + output.nbytes] = output.tobytes()


def _defined(source: str, entry: str) -> Any:
    linecache.cache[FILENAME] = (len(source), None, source.splitlines(keepends=True), FILENAME)
    module = type(sys)("program")
    sys.modules["program"] = module
    try:
        exec(compile(source, FILENAME, "exec"), module.__dict__)
    except BaseException as error:  # noqa: BLE001 - SystemExit is one of the ways in which a program fails
        raise _failure(error) from None
    found = module.__dict__.get(entry)
    if not callable(found):
        raise Failed("tool_error", f"it defines no function {entry}")
    return found


def _called(entry: Any, arguments: list[Any]) -> Any:
    try:
        return entry(*arguments)
    except BaseException as error:  # noqa: BLE001 - as in `_defined`
        raise _failure(error) from None


def _failure(error: BaseException) -> Failed:
    """Out of memory, something that was denied, or any other way of raising."""
    if isinstance(error, MemoryError):
        return Failed("memory_limit", _said(error))
    # Whatever a program asks of the system, it asks in vain; a file that is not there is one that it may not see.
    return Failed("sandbox_violation" if isinstance(error, OSError) else "tool_error", _said(error))


def _said(error: BaseException) -> str:
    """Kind, message, and the last line of the program that had part in it."""
    trace, line = error.__traceback__, getattr(error, "lineno", None)
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == FILENAME:
            line = trace.tb_lineno
        trace = trace.tb_next
    return f"{type(error).__name__}: {error}" + (f" (line {line})" if line else "")


def _checked(made: Any, shape: tuple[int, ...]) -> Any:
    """The output as float64 of `shape`; what its numbers are worth is for others to say."""
    import numpy as np

    if not isinstance(made, np.ndarray):
        raise Failed("wrong", f"it returned {_kind(made)} and not a numpy array")
    if made.dtype.kind not in "biuf":
        raise Failed("wrong", f"it returned an array of {made.dtype} and not of numbers")
    if made.shape != shape:
        raise Failed("wrong", f"it returned the shape {made.shape} and not {shape}")
    try:
        return np.array(made, dtype=np.float64, order="C", subok=False)
    except MemoryError as error:
        raise Failed("memory_limit", _said(error)) from None


def _kind(made: Any) -> str:
    return "nothing" if made is None else f"a {type(made).__name__}"


def _send(near: int, message: dict[str, Any]) -> None:
    payload = json.dumps(message).encode()
    data = _HEADER.pack(len(payload)) + payload
    while data:
        data = data[os.write(near, data) :]


def _receive(near: int) -> dict[str, Any]:
    """The next message. EOFError where the other side is gone."""
    message: dict[str, Any] = json.loads(_exactly(near, _HEADER.unpack(_exactly(near, _HEADER.size))[0]))
    return message


def _exactly(near: int, size: int) -> bytes:
    parts = b""
    while len(parts) < size:
        part = os.read(near, size - len(parts))
        if not part:
            raise EOFError
        parts += part
    return parts
