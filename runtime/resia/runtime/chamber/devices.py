"""The device that kernels are judged on: the GPU that torch finds, or this machine's processor. Imports torch late."""

from __future__ import annotations

from pathlib import Path

from resia.domains.trimul import roofline
from resia.domains.trimul.roofline import Device
from resia.events.errors import UnknownName, UsageError

KINDS = ("auto", "cpu", "cuda")
_DRIVER = Path("/dev/nvidiactl")
# 16-bit FLOP a cycle of a multiprocessor's tensor cores, by compute capability; of one that is newer, the largest.
_TENSOR_FLOP = {(7, 0): 1024, (7, 5): 1024, (8, 0): 2048, (8, 6): 1024, (8, 9): 1024, (9, 0): 4096}
_NEWER = 8192


def find(kind: str, threads: int) -> Device:
    """`auto` takes a GPU where there is one. Raises UnknownName, and UsageError for a GPU that is not there."""
    if kind not in KINDS:
        raise UnknownName("device", kind, KINDS)
    if kind == "cpu" or (kind == "auto" and not _DRIVER.exists()):
        return roofline.cpu(threads)
    import torch

    if torch.cuda.is_available():
        return _gpu(torch.cuda.get_device_properties(0))
    if kind == "auto":
        return roofline.cpu(threads)
    raise UsageError("device is cuda and torch finds no GPU here: leave --device out, or run on a machine with one")


def _gpu(found: object) -> Device:
    """Rates from the driver's numbers where the model is not known: clocks in kHz, the bus in bits."""

    def number(name: str, otherwise: float) -> float:
        return float(getattr(found, name, otherwise))

    capability = (int(number("major", 9)), int(number("minor", 0)))
    tensor = _TENSOR_FLOP.get(capability, _NEWER)
    flops = number("multi_processor_count", 1) * number("clock_rate", 3e6) * 1e3 * tensor
    bytes_ = 2 * number("memory_clock_rate", 1e7) * 1e3 * number("memory_bus_width", 8192) / 8
    cache = int(number("L2_cache_size", 128 << 20))
    return roofline.gpu(str(getattr(found, "name", "GPU")), flops, bytes_, cache, _unit(found))


def _unit(found: object) -> str:
    """The driver's id of one GPU, the same whatever number a process knows it by; its place on the bus where the driver
    tells no id."""
    place = [getattr(found, name, None) for name in ("pci_domain_id", "pci_bus_id", "pci_device_id")]
    told = getattr(found, "uuid", None) or (None if None in place else ":".join(map(str, place)))
    return "" if told is None else str(told)
