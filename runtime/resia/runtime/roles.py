"""The roles as data for the worker loop: each layer's rules, and its effects bound to this process's resources."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from resia.agents.ports import Line
from resia.events import (
    ControlRequested,
    DriftRequested,
    EditRequested,
    Event,
    Fact,
    KernelSubmitted,
    RolloutsRequested,
    RoundRequested,
    RunRequested,
)
from resia.events.errors import UnknownName
from resia.replay.state import RunState

from .resources import Resources
from .worker import Role

LiveOf = Callable[[str], Callable[[dict[str, Any]], None]]
ROLE_NAMES = ("meta", "task", "feedback", "trainer", "kernel-bench")


def role(name: str, resources: Resources, live_of: LiveOf) -> Role:
    """The role called `name`, importing its layer only; `live_of(run)` publishes a run's progress."""
    makers: dict[str, Callable[[Resources, LiveOf], Role]] = {
        "meta": _meta,
        "task": _task,
        "feedback": _feedback,
        "trainer": _trainer,
        "kernel-bench": _kernel_bench,
    }
    if name not in makers:
        raise UnknownName("role", name, ROLE_NAMES)
    return makers[name](resources, live_of)


def deciders() -> dict[str, Callable[[RunState, Fact], Sequence[Event]]]:
    """Every role's rules, for replaying decisions."""
    from resia.agents import feedback, taskwork
    from resia.trainers import decider

    return {"task": taskwork.decide, "feedback": feedback.decide, "trainer": decider.decide}


def _request(state: RunState) -> RunRequested:
    assert state.request is not None  # nothing is performed before the run is requested
    return state.request


def _nothing(state: RunState, fact: Fact) -> list[Event]:
    """Meta and the kernel-bench have no rules: asking for a run asks for a draft, a kernel for its verdict."""
    del state, fact
    return []


def _meta(resources: Resources, live_of: LiveOf) -> Role:
    del live_of
    from resia.agents import proposing

    def perform(state: RunState, fact: Fact, _: Line) -> Iterator[Sequence[Event]]:
        request = _request(state)
        domain = resources.domain(request)
        if request.settings.proposer == "llm":
            from resia.agents import llm

            return llm.draft(fact, domain, request.settings.llm, resources.proposer_ports(request))
        return proposing.draft(fact, domain, resources.blobs)

    return Role("meta", (), _nothing, (RunRequested,), perform)


def _task(resources: Resources, live_of: LiveOf) -> Role:
    from resia.agents import rollout, taskwork

    def perform(state: RunState, fact: Fact, line: Line) -> Iterator[Sequence[Event]]:
        request = _request(state)
        domain = resources.domain(request)
        ports = resources.agent_ports(request, live_of(fact.envelope.run))._replace(line=line)
        if isinstance(fact.event, ControlRequested):
            return rollout.measure_controls(fact, domain, ports)
        return rollout.sample_shard(state, fact, domain, ports)

    return Role("task", taskwork.DECIDES, taskwork.decide, (RolloutsRequested, ControlRequested), perform)


def _feedback(resources: Resources, live_of: LiveOf) -> Role:
    del live_of
    from resia.agents import feedback, proposing

    def perform(state: RunState, fact: Fact, _: Line) -> Iterator[Sequence[Event]]:
        request = _request(state)
        domain = resources.domain(request)
        if request.settings.proposer == "llm":
            from resia.agents import llm

            return llm.edit(state, fact, domain, request.settings.llm, resources.proposer_ports(request))
        return proposing.edit(state, fact, domain, resources.blobs, resources.programs)

    return Role("feedback", feedback.DECIDES, feedback.decide, (EditRequested,), perform, quarantines=True)


def _trainer(resources: Resources, live_of: LiveOf) -> Role:
    import time

    from resia.trainers import decider, drift, performing

    def perform(state: RunState, fact: Fact, _: Line) -> Iterator[Sequence[Event]]:
        request = _request(state)
        ports = performing.TrainerPorts(
            policy=lambda training: resources.policy(request, training),
            manifest=lambda: resources.manifest(request),
            blobs=resources.blobs,
            clock=time.monotonic,
            live=live_of(fact.envelope.run),
        )
        if isinstance(fact.event, DriftRequested):
            return drift.measure(state, fact, ports)
        return performing.train(state, fact, ports)

    return Role("trainer", decider.DECIDES, decider.decide, (RoundRequested, DriftRequested), perform)


def _kernel_bench(resources: Resources, live_of: LiveOf) -> Role:
    from resia.kernels import bench

    def perform(state: RunState, fact: Fact, _: Line) -> Iterator[Sequence[Event]]:
        settings = _request(state).settings
        ports = bench.BenchPorts(
            chamber=lambda: resources.chamber(settings.engine.threads),
            lease=resources.lease,
            blobs=resources.blobs,
            live=live_of(fact.envelope.run),
        )
        return bench.judge_submission(fact, settings.seed, ports)

    return Role("kernel-bench", (), _nothing, (KernelSubmitted,), perform)
