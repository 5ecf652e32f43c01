"""The role kernel-bench: KernelSubmitted -> KernelBenchmarked | KernelRejected. It has no rules: a submission is itself
the request, and the verdict is an outcome.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

from resia.domains.trimul.cases import FULL, SMALL, Suite, suite
from resia.domains.trimul.roofline import Device
from resia.events import INFRASTRUCTURE, Blobs, Event, Fact, KernelBenchmarked, KernelRejected, KernelSubmitted
from resia.events.errors import BlobError, BoundaryError, UsageError
from resia.events.ids import seed_for

from .judge import Judge, Verdict
from .ports import Chamber
from .timing import Budget


class BenchPorts(NamedTuple):
    """What judging needs. `lease` waits until the device is free and holds it: one kernel at a time on each."""

    chamber: Callable[[], Chamber]
    lease: Callable[[Device], AbstractContextManager[object]]
    blobs: Blobs
    live: Callable[[dict[str, Any]], None]
    budget: Budget = Budget()


def judge_submission(fact: Fact, root_seed: int, ports: BenchPorts) -> Iterator[list[Event]]:
    """Perform one KernelSubmitted. A chamber that breaks is recorded as `infrastructure`, never as the kernel's fault.

    Raises BlobError when the source cannot be read, and UsageError when this machine cannot judge at all: then the
    submission waits for one that can.
    """
    event = fact.event
    assert isinstance(event, KernelSubmitted)
    source = ports.blobs.get(event.source).decode(errors="replace")
    # Derived, so that whoever judges it again verifies it on the same inputs; a kernel is told neither run nor seed.
    seed = seed_for(root_seed, "kernel", event.source.digest, fact.envelope.id)
    try:
        verdict = _judged(source, event, seed, ports)
    except (BlobError, UsageError):
        raise
    except BoundaryError as cause:
        yield [KernelRejected(fact.envelope.id, "compile", INFRASTRUCTURE, str(cause))]
        return
    yield [outcome(fact.envelope.id, event, verdict)]


def _judged(source: str, event: KernelSubmitted, seed: int, ports: BenchPorts) -> Verdict:
    chamber = ports.chamber()
    with ports.lease(chamber.device):
        judge = Judge(
            chamber,
            cases_for(event.suite, chamber.device),
            ports.budget,
            lambda text: ports.live({"kind": "kernel", "text": text}),
        )
        return judge.bench(source, event.config, event.protocol, seed)


def cases_for(name: str, device: Device) -> Suite:
    """The suite called `name`; without a name the device's own: the published cases on a GPU, an eighth on a CPU."""
    if name:
        return suite(name)
    return FULL if device.kind == "cuda" else SMALL


def outcome(submission: str, event: KernelSubmitted, verdict: Verdict) -> Event:
    """The fact that a verdict is recorded as."""
    if verdict.failure:
        return KernelRejected(submission, verdict.stage, verdict.failure, verdict.detail)
    return KernelBenchmarked(
        submission,
        event.protocol,
        verdict.device,
        verdict.case_us,
        verdict.geomean_us,
        verdict.reward,
        verdict.floor_us,
        verdict.suite,
        verdict.tier,
    )
