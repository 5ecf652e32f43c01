"""The inside of the chamber: define a kernel file, call it, time each call. The standard library and torch.

The kernel shares this interpreter, so nothing here is a lock and nothing it says is believed by itself: it can forge
its times, and the other side holds its own clock against them; it cannot forge an output, because the other side made
the inputs and reads the memory. Every function that times or checks is taken into a local variable before the kernel is
defined, where patching a module does not reach it.
"""

from __future__ import annotations

import errno
import json
import linecache
import math
import mmap
import os
import struct
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

FILENAME = "<kernel>"
HEADER = struct.Struct("!I")
GO = b"G"
MESSAGE_CHARS = 600
SPARE = 8  # outputs' worth of memory for what a kernel keeps between its steps
BUSY_SIDE, BUSY_PRODUCTS = 4096, 100  # of 16-bit matrices of 32 MB: some 20 ms of a large GPU, and more than its cache


class Failed(Exception):
    """The kernel's failure, by name."""

    def __init__(self, failure: str, detail: str) -> None:
        super().__init__(detail)
        # Half of a surrogate pair is no character that a message can hold.
        self.failure, self.detail = failure, detail[:MESSAGE_CHARS].encode(errors="replace").decode()


Call = Callable[[], Any]
Timed = Callable[[list[Call]], tuple[list[Any], list[float]]]


class Tools(NamedTuple):
    """What is taken before the kernel is there. `timer(n)` makes what n timed calls need, before the judge's clock
    runs; what it gives makes them one after the other: their results, and nanoseconds of each, device included."""

    torch: Any
    tensor: type
    float32: Any
    device: str
    timer: Callable[[int], Timed]
    threads: Callable[[], int]


def tools(device: str, tasks: int) -> Tools:
    """`tasks`: a descriptor of this process's folder of threads, or -1 where there is none."""
    import torch

    timer = _cuda_timer(torch, _busy(torch)) if device == "cuda" else _cpu_timer()
    listdir = os.listdir
    return Tools(torch, torch.Tensor, torch.float32, device, timer, lambda: len(listdir(tasks)) if tasks >= 0 else 0)


def _cpu_timer() -> Callable[[int], Timed]:
    clock = time.perf_counter_ns

    def timed(calls: list[Call]) -> tuple[list[Any], list[float]]:
        outputs, ns = list[Any](), list[float]()
        for call in calls:
            started = clock()
            made = call()
            ns.append(clock() - started)
            outputs.append(made)
        return outputs, ns

    return lambda _: timed


def _busy(torch: Any) -> Call:
    """Work for a GPU that has waited for the judge: its clock comes up, and none of the inputs stays in its cache."""
    multiply, values = torch.mm, torch.ones((BUSY_SIDE, BUSY_SIDE), dtype=torch.float16, device="cuda")
    product = torch.empty_like(values)

    def busy() -> None:
        for _ in range(BUSY_PRODUCTS):
            multiply(values, values, out=product)

    return busy


def _cuda_timer(torch: Any, busy: Call) -> Callable[[int], Timed]:
    """Events round each call; the second is recorded when every stream of the device is done. Between the second of one
    call and the first of the next there is nothing else, because the judge's clock sees that too and a call may be
    short: events are made before, and read when all calls are done."""
    event, synchronize = torch.cuda.Event, torch.cuda.synchronize
    record, between = event.record, event.elapsed_time

    def timer(count: int) -> Timed:
        pairs = [(event(enable_timing=True), event(enable_timing=True)) for _ in range(count)]
        for start, stop in pairs:  # the driver makes an event when it is recorded first
            record(start)
            record(stop)
        busy()
        synchronize()

        def timed(calls: list[Call]) -> tuple[list[Any], list[float]]:
            outputs = list[Any]()
            for call, (start, stop) in zip(calls, pairs, strict=True):
                record(start)
                outputs.append(call())
                synchronize()
                record(stop)
            synchronize()
            return outputs, [between(start, stop) * 1e6 for start, stop in pairs]

        return timed

    return timer


def serve(control: int, arena: int, found: Tools) -> None:
    """Answer orders from descriptor `control` until it ends; arrays lie in the memory behind `arena`."""
    kernel, config = None, {}
    while (order := receive(control)) is not None:
        try:
            if order["do"] == "load":
                kernel, config = _define(order["source"]), order["config"]
                send(control, {"done": True})
            else:
                _batch(control, arena, order, kernel, config, found)
        except Failed as failed:
            send(control, {"failure": failed.failure, "detail": failed.detail})
        except (MemoryError, OSError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
            send(control, {"failure": "memory", "detail": "what it keeps between calls leaves no memory for the next"})


def send(control: int, message: dict[str, Any]) -> None:
    payload = json.dumps(message).encode()
    data = HEADER.pack(len(payload)) + payload
    while data:
        data = data[os.write(control, data) :]


def receive(control: int) -> dict[str, Any] | None:
    """The next message; None when there is none any more."""
    head = _exactly(control, HEADER.size)
    if head is None:
        return None
    body = _exactly(control, HEADER.unpack(head)[0])
    return None if body is None else json.loads(body)


def _exactly(control: int, size: int) -> bytes | None:
    parts = b""
    while len(parts) < size:
        part = os.read(control, size - len(parts))
        if not part:
            return None
        parts += part
    return parts


def _define(source: str) -> Callable[..., Any]:
    # A decorator that compiles looks its function's text up here, as there is no file.
    linecache.cache[FILENAME] = (len(source), None, source.splitlines(keepends=True), FILENAME)
    module = type(sys)("kernel_file")
    sys.modules["kernel_file"] = module
    try:
        exec(compile(source, FILENAME, "exec"), module.__dict__)
    except MemoryError:
        raise Failed("memory", "out of memory while it was defined") from None
    except BaseException as error:  # noqa: BLE001 - SystemExit is one of the ways in which a file fails
        raise Failed("compile", _said(error)) from None
    kernel = module.__dict__.get("custom_kernel")
    if not callable(kernel):
        raise Failed("compile", "it defines no function custom_kernel(x, mask, weights, config)")
    made: Callable[..., Any] = kernel
    return made


def _said(error: BaseException) -> str:
    """Kind, message, and the last line of the kernel file that had part in it."""
    trace, line = error.__traceback__, getattr(error, "lineno", None)
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == FILENAME:
            line = trace.tb_lineno
        trace = trace.tb_next
    return f"{type(error).__name__}: {error}" + (f" (line {line})" if line else "")


def _batch(control: int, arena: int, order: dict[str, Any], kernel: Any, config: Any, found: Tools) -> None:
    """Lay out, wait for the signal, call, say at once that it is done, and only then hand over what is not yet."""
    torch = found.torch
    with mmap.mmap(arena, order["bytes"]) as memory:
        laid = [_laid_out(call, memory, found) for call in order["calls"]]
        calls = [_bound(kernel, names, config, views["out"], found) for names, views in laid]
        if found.device != "cpu" and not order["watch"]:
            _make_room(torch, laid[0][0]["x"], len(calls))
        timed, threads, caught = found.timer(len(calls)), found.threads(), list[str]()
        send(control, {"ready": True})
        if os.read(control, 1) != GO:
            return
        if order["watch"]:
            sys.settrace(_watcher(caught))
        try:
            outputs, ns = _called(calls, timed, torch.no_grad)
        finally:
            sys.settrace(None)
        send(control, {"done": True})
        _check_threads(threads, found)
        if caught:
            raise Failed("swallowed", f"it caught an exception of its own instead of failing: {caught[0]}")
        _check_new(outputs, laid)
        for output, (names, views) in zip(outputs, laid, strict=True):
            _hand_over(output, names, views, found)
        send(control, {"ns": ns})
        # Views must go before the memory does.
        del laid, calls, outputs, output, names, views


def _laid_out(call: dict[str, Any], memory: mmap.mmap, found: Tools) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tensors for the kernel, and the views of the arena that they are or are copies of."""
    views = {
        name: found.torch.frombuffer(memory, dtype=found.float32, count=math.prod(shape), offset=offset).view(shape)
        for name, (offset, shape) in call.items()
    }
    given = {name: view for name, view in views.items() if name != "out"}
    return given if found.device == "cpu" else {name: view.to(found.device) for name, view in given.items()}, views


def _make_room(torch: Any, x: Any, calls: int) -> None:
    """Have torch ask the driver now for what the calls will need: outputs are kept until all are done, so a batch
    longer than any before would ask for each of its own while the clocks run. torch keeps what is given back here."""
    taken = [torch.empty_like(x) for _ in range(calls + SPARE)]
    del taken


def _bound(kernel: Any, names: dict[str, Any], config: dict[str, Any], out: Any, found: Tools) -> Call:
    """One call. On a processor its output is where the judge reads it before the call has ended for either clock, so
    that no work is put off beyond; on a GPU the copy would take longer than the call."""
    weights = {name: tensor for name, tensor in names.items() if name not in ("x", "mask")}

    def call() -> Any:
        made = kernel(names["x"], names["mask"], dict(weights), dict(config))
        _check(made, out, found)
        if found.device == "cpu":
            out.copy_(made)
        return made

    return call


def _called(calls: list[Call], timed: Timed, no_grad: Any) -> tuple[list[Any], list[float]]:
    try:
        with no_grad():
            return timed(calls)
    except Failed:
        raise
    except BaseException as error:  # noqa: BLE001 - SystemExit is one of the ways in which a kernel fails
        raise Failed("memory" if _out_of_memory(error) else "raised", _said(error)) from None


def _out_of_memory(error: BaseException) -> bool:
    """Python's own error, the system's, or torch's, which has no kind of its own on a processor."""
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in ("allocate", "out of memory"))


def _watcher(caught: list[str]) -> Callable[..., Any]:
    """Notes exceptions that come up in the kernel file; one that it does not catch ends the call anyway."""

    def watch(frame: Any, event: str, argument: Any) -> Any:
        if frame.f_code.co_filename != FILENAME:
            return None
        if event == "exception" and not issubclass(argument[0], StopIteration | GeneratorExit):
            caught.append(f"{argument[0].__name__}: {argument[1]} (line {frame.f_lineno})")
        return watch

    return watch


def _check_threads(before: int, found: Tools) -> None:
    if found.device == "cpu" and found.threads() > before:
        raise Failed("thread", "a thread of its own was running when the call had returned")


def _check(output: Any, view: Any, found: Tools) -> None:
    kind: Any = type(output)
    if kind is not found.tensor:  # a subclass may put its work off
        raise Failed("type", f"it returned a {kind.__name__}, not a plain torch.Tensor")
    if output.layout != found.torch.strided or output.device.type != found.device:
        raise Failed("type", f"it returned a {output.layout} tensor on {output.device}, not a dense one where x is")
    if output.dtype != found.float32:
        raise Failed("dtype", f"it returned {output.dtype}, not torch.float32")
    if tuple(output.shape) != tuple(view.shape):
        raise Failed("shape", f"it returned the shape {tuple(output.shape)}, not {tuple(view.shape)}")


def _check_new(outputs: list[Any], laid: list[tuple[dict[str, Any], dict[str, Any]]]) -> None:
    """Outputs are overwritten, and on a GPU read when all calls are done: none may be an input, or another's memory."""
    seen = {tensor.untyped_storage().data_ptr(): name for names, _ in laid for name, tensor in names.items()}
    for output in outputs:
        place = output.untyped_storage().data_ptr()
        if place in seen:
            raise Failed("mutated", f"it returned memory of {seen[place]}, where new memory is asked for at each call")
        seen[place] = "an output before"


def _hand_over(output: Any, names: dict[str, Any], views: dict[str, Any], found: Tools) -> None:
    """Copy out what is on a GPU, and leave NaN where the output was, so that memory given back holds no answer."""
    with found.torch.no_grad():
        if found.device != "cpu":
            views["out"].copy_(output)
        if output.is_contiguous():
            output.fill_(math.nan)
        if found.device != "cpu":
            for name, tensor in names.items():
                views[name].copy_(tensor)
