"""The worker loop, written once: read, fold, decide, append, perform, acknowledge.

A process reads the run twice: an ordered reader folds every event into the state, and a durable that the role's
processes share hands out work. For event n it waits until the fold has reached n, decides or performs, appends, and
acknowledges only after the append is acknowledged. Roles plug in as data; nothing here knows what any event means.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple

import msgspec
import structlog

from resia.agents.ports import Line
from resia.events import (
    NAMES,
    Custom,
    DecisionMade,
    Draft,
    Envelope,
    Event,
    Fact,
    Logged,
    MessageQuarantined,
    Producer,
    Skipped,
    encode,
)
from resia.events import subjects as names
from resia.events.custom import wire_type
from resia.events.errors import BusError, FenceMoved, WorkerError
from resia.events.tracing import trace_in, trace_of, traceparent
from resia.replay.fold import evolve
from resia.replay.identity import decided, identity, is_outcome, performed
from resia.replay.seal import broken_by
from resia.replay.state import RunState

from .asking import AskingLine
from .bus import ACK_WAIT_S, AGAIN_S, Bus, Durable, Work
from .holding import Holding
from .lineage import origin_of
from .logs import lines_about
from .shift import Shift
from .skew import fits_series

DECIDE_TRIES = 8
CANCEL_AGAIN_S = 0.5
FOREIGN_LIMIT = 1000  # messages that are no events and wait to be recorded: the fold waits for them then
_log = structlog.get_logger()

Decide = Callable[[RunState, Fact], Sequence[Event]]
Perform = Callable[[RunState, Any, Line], Iterator[Sequence[msgspec.Struct]]]


class Role(NamedTuple):
    """What a kind of worker does: the events it decides on, the requests it performs, and how.

    `perform` yields batches of events, each appended as one before it goes on; the last one settles the request.
    It runs in a thread of its own, one at a time, and may ask another role over the line that it is given. It is given
    a Fact, or a Custom for a type of `also`, the wire types outside the core that are performed. `durable` names the
    consumer that the role's processes share. One role of a run `quarantines`: it records which messages are no events.
    """

    name: str
    decides: tuple[type[Event], ...]
    decide: Decide
    performs: tuple[type[Event], ...] = ()
    perform: Perform | None = None
    also: tuple[str, ...] = ()
    durable: str = ""
    quarantines: bool = False
    settles: bool = True  # False: others settle what it performs, and it is called for each whatever they did

    def types(self) -> list[str]:
        return [*dict.fromkeys(NAMES[cls] for cls in (*self.decides, *self.performs)), *self.also]

    def decides_on(self, fact: Fact | Custom) -> bool:
        return isinstance(fact, Fact) and type(fact.event) in self.decides

    def performs_on(self, fact: Fact | Custom) -> bool:
        return fact.envelope.type in self.also or (isinstance(fact, Fact) and type(fact.event) in self.performs)


class Follower:
    """The fold of one run, kept up to date by a reader."""

    def __init__(self, bus: Bus, run: str) -> None:
        self._bus, self._run = bus, run
        self._moved = asyncio.Condition()
        self.state = RunState()

    async def follow(
        self,
        on_fact: Callable[[RunState, Logged], None] | None = None,
        on_foreign: Callable[[RunState, Skipped], Awaitable[None]] | None = None,
    ) -> None:
        """Fold until the run has ended. `on_fact` sees each event with the state after it; `on_foreign` is waited for
        on each message that is none."""
        async for fact in self._bus.read(self._run, follow=True):
            before = self.state if fact.sequence > 1 else await origin_of(self._bus, fact)
            self.state = evolve(before, fact)
            if on_fact is not None:
                on_fact(self.state, fact)
            if on_foreign is not None and isinstance(fact, Skipped):
                await on_foreign(self.state, fact)
            async with self._moved:
                self._moved.notify_all()
            if self.state.ending is not None:
                return

    async def reached(self, sequence: int) -> RunState:
        """The state once event `sequence` is folded in; it may be further by then."""
        async with self._moved:
            await self._moved.wait_for(lambda: self.state.sequence >= sequence)
        return self.state

    async def until(self, holds: Callable[[RunState], bool], timeout_s: float | None = None) -> RunState | None:
        """The first state from now on for which `holds`; None where none came in time."""
        waiting = asyncio.ensure_future(self._held(holds))
        try:
            await asyncio.wait({waiting}, timeout=timeout_s)
            return waiting.result() if waiting.done() else None
        finally:
            await cancelled([waiting])

    async def _held(self, holds: Callable[[RunState], bool]) -> RunState:
        async with self._moved:
            await self._moved.wait_for(lambda: holds(self.state))
            return self.state


class Clerk(NamedTuple):
    """Makes drafts: who writes, and what its clock says."""

    run: str
    role: str
    worker: str
    package: str
    now: Callable[[], float]

    def drafts(
        self, fact: Fact | Custom, basis: int, events: Sequence[msgspec.Struct], handler: str, first: int = 0
    ) -> list[Draft]:
        """Drafts of `events` caused by `fact`; ordinals count from `first`."""
        drafts, trace = [], trace_in(fact.envelope.trace)
        for ordinal, event in enumerate(events, first):
            trace = trace_of(self.run, event, trace)
            drafts.append(self.draft(fact.envelope.id, basis, event, handler, ordinal, trace))
        return drafts

    def genesis(self, event: msgspec.Struct) -> Draft:
        """The first event of a run, which nothing caused."""
        return self.draft(None, 0, event, f"{self.role}.genesis", 0)

    def draft(
        self, cause: str | None, basis: int, event: msgspec.Struct, handler: str, ordinal: int, trace: str = ""
    ) -> Draft:
        """The `ordinal`-th event that `handler` writes for `cause`, under the id derived from them.

        `trace` is that of its iteration, where the event itself does not say which that is.
        """
        kind, version = wire_type(type(event))
        id_ = identity(self.run, cause, event, handler, ordinal)
        producer = Producer(self.role, self.worker, self.package)
        context = traceparent(trace or trace_of(self.run, event, ""), id_)
        envelope = Envelope(id_, self.run, kind, version, cause, basis, producer, self.now(), context)
        subject = names.event_subject(self.run, self.role, kind, id_)
        return Draft(id_, subject, encode(envelope, event), event, is_outcome(event, handler))


class Worker:
    """One process's share of a role in one run. `shift` is what the process's workers have in common."""

    def __init__(self, bus: Bus, role: Role, clerk: Clerk, shift: Shift | None = None) -> None:
        self._bus, self._role, self._clerk = bus, role, clerk
        self._shift = shift or Shift()
        self._follower = Follower(bus, clerk.run)
        self._log = _log.bind(role=clerk.role, worker=clerk.worker, run=clerk.run)
        self._foreign: asyncio.Queue[Skipped] = asyncio.Queue(FOREIGN_LIMIT)
        self._fits = False  # until the run's request was seen

    async def serve(self) -> None:
        """Work until the run has ended, or the shift. Raises what breaks; the process that runs this is restarted."""
        async with asyncio.TaskGroup() as group:
            ended, work = group.create_task(self._until_ended()), group.create_task(self._work())
            foreign = self._note_foreign if self._role.quarantines else None
            others = [
                group.create_task(self._follower.follow(self._check, foreign)),
                group.create_task(self._quarantine()),
            ]
            try:
                await asyncio.wait([ended, work], return_when=asyncio.FIRST_COMPLETED)
            finally:
                await cancelled([ended, work, *others])  # and not by the group, which asks them once

    def _check(self, _: RunState, fact: Logged) -> None:
        if not self._fits:
            self._fits = fits_series(fact, self._clerk.run, self._clerk.package)

    async def _note_foreign(self, state: RunState, skipped: Skipped) -> None:
        if state.ending is None:
            await self._foreign.put(skipped)

    async def _quarantine(self) -> None:
        """Record each message that is no event; whoever records it first, it stands there once."""
        while True:
            skipped = await self._foreign.get()
            try:
                await self._bus.append(self._clerk.run, [_quarantine_draft(self._clerk, skipped)])
            except BusError as cause:  # nothing waits for it, and the next process to read the log tries again
                self._log.warning("not quarantined", sequence=skipped.sequence, error=str(cause))

    async def _until_ended(self) -> None:
        sequence = 0
        while (state := await self._follower.reached(sequence)).ending is None:
            sequence = state.sequence + 1

    async def _work(self) -> None:
        role = self._role
        await self._follower.reached(1)  # nothing is asked for before it is known that this package may serve the run
        async with self._bus.durable(self._clerk.run, role.durable or role.name, role.types()) as durable:
            while self._follower.state.ending is None and not self._shift.is_over():
                work = await durable.take()
                if work is None:
                    continue
                if self._shift.is_over():
                    await work.give_back()
                elif not isinstance(work.fact, Skipped) and role.performs_on(work.fact):
                    await self._in_turn(durable, work)
                else:
                    await self._do(work)

    async def _in_turn(self, durable: Durable, first: Work) -> None:
        """Perform when it is this run's turn in the process. Until then another process may have the work."""
        work: Work | None = first
        if self._shift.busy:
            await first.give_back()
            work = None
        async with self._shift.turn():
            if self._shift.is_over():
                return
            work = work or await durable.take(AGAIN_S)
            if work is not None:
                await self._do(work)

    async def _do(self, work: Work) -> None:
        started = self._clerk.now()
        try:
            async with self._heartbeat(work):
                state = await self._follower.reached(work.fact.sequence)
                with lines_about(work.fact, state.iteration_at(work.fact.sequence)):
                    outcome = await self._handle(work.fact)
        except asyncio.CancelledError:
            await work.give_back()
            raise
        with lines_about(work.fact, state.iteration_at(work.fact.sequence)):
            await self._acknowledge(work)
            self._log.info("handled", outcome=outcome, ms=round((self._clerk.now() - started) * 1000))

    async def _acknowledge(self, work: Work) -> None:
        try:
            await work.ack()
        except BusError as cause:  # it is handed out again, and whoever takes it finds it done
            self._log.warning("not acknowledged", error=str(cause))

    async def _handle(self, fact: Logged) -> str:
        state = await self._follower.reached(fact.sequence)
        if isinstance(fact, Skipped):
            self._log.warning("skipped", why=fact.why)
            return "skipped"
        if state.ending is not None:
            return "run has ended"
        decided = await self._decide(fact) if isinstance(fact, Fact) and self._role.decides_on(fact) else 0
        performed = await self._perform(fact) if self._role.performs_on(fact) else 0
        return f"{fact.envelope.type}: {decided} decided, {performed} performed"

    async def _decide(self, fact: Fact) -> int:
        state, whole = self._follower.state, False
        for _ in range(DECIDE_TRIES):
            events = list(self._role.decide(state, fact)) if state.ending is None else []
            if not events:
                return 0
            if why := broken_by(events, state):
                raise WorkerError(f"role {self._role.name} would break the seal: {why}")
            fence = _fence(state, events)
            if fence is not None and not whole:
                state, whole = await self._whole(), True
                continue
            drafts = self._clerk.drafts(fact, state.sequence, events, decided(self._role.name, fact.envelope.type))
            try:
                appended = await self._bus.append(self._clerk.run, drafts, fence)
            except FenceMoved:
                state = await self._whole()
                continue
            await self._follower.reached(appended.sequence)
            return len(events)
        raise FenceMoved(self._follower.state.sequence)

    async def _whole(self) -> RunState:
        """The state at the log's end, where no batch is folded in part: a decision may be in it and the run's end not
        yet, which the same batch holds. Gives up on a log that grows faster than it can ask for its end."""
        for _ in range(DECIDE_TRIES):
            last = await self._bus.last_sequence(self._clerk.run)
            state = await self._follower.reached(last)
            if state.sequence == last:
                break
        return state

    async def _perform(self, fact: Fact | Custom) -> int:
        # An effect is dear and may have been recorded already, after a crash say: look at the log's very end first.
        state = await self._follower.reached(await self._bus.last_sequence(self._clerk.run))
        if (self._role.settles and fact.envelope.id in state.settled) or self._role.perform is None:
            return 0
        handler = performed(self._role.name, fact.envelope.type)

        async def ask(event: Event) -> None:
            await self._bus.append(self._clerk.run, self._clerk.drafts(fact, state.sequence, [event], handler))

        # Waiting for another role is no stall: that one may be the slow one, or not there yet.
        line = AskingLine(asyncio.get_running_loop(), self._follower, ask, self._shift.progressed)
        done, batches = 0, self._role.perform(state, fact, line)
        try:
            while (events := await self._shift.step(batches)) is not None:
                if events:
                    drafts = self._clerk.drafts(fact, state.sequence, events, handler, done)
                    await self._bus.append(self._clerk.run, drafts)
                done += len(events)
        finally:
            line.close()
        return done

    @asynccontextmanager
    async def _heartbeat(self, work: Work) -> AsyncIterator[None]:
        """Keep the server from handing the work to another while it is in hand, and tell who watches."""
        loop = asyncio.get_running_loop()
        since = loop.time()

        async def beat() -> None:
            while True:
                await asyncio.sleep(ACK_WAIT_S / 3)
                with suppress(BusError):  # a server that comes back must hear of it again
                    await work.in_progress()
                    if not self._role.durable:  # logins of own workers say nothing there
                        held_s = loop.time() - since
                        await self._tell(work.fact, held_s, min(held_s, self._shift.quiet_s))

        task = asyncio.create_task(beat())
        try:
            yield
        finally:
            await cancelled([task])

    async def _tell(self, fact: Logged, held_s: float, quiet_s: float) -> None:
        clerk, kind = self._clerk, "" if isinstance(fact, Skipped) else fact.envelope.type
        held = Holding(clerk.run, clerk.role, clerk.worker, fact.sequence, kind, round(held_s, 1), round(quiet_s, 1))
        await self._bus.publish_live(clerk.run, self._role.name, msgspec.to_builtins(held))


def _quarantine_draft(clerk: Clerk, skipped: Skipped) -> Draft:
    event = MessageQuarantined(skipped.sequence, skipped.leaf, skipped.why)
    return clerk.draft(None, skipped.sequence, event, f"{clerk.role}.quarantine", 0)


def _fence(state: RunState, events: Sequence[Event]) -> int | None:
    """Sequence of the last decision folded, where `events` decide something."""
    if not any(isinstance(event, DecisionMade) for event in events):
        return None
    return state.decisions[-1].sequence if state.decisions else 0


async def cancelled(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """Cancel until all are done: in Python 3.11 `wait_for` loses a cancellation that comes in the instant of a result,
    and the bus's client waits by it. Who is cancelled in here goes when they have ended."""
    told = False
    while waiting := [task for task in tasks if not task.done()]:
        for task in waiting:
            task.cancel()
        try:
            await asyncio.wait(waiting, timeout=CANCEL_AGAIN_S)
        except asyncio.CancelledError:
            told = True
    await asyncio.gather(*tasks, return_exceptions=True)  # how they ended is for who started them to know
    if told:
        raise asyncio.CancelledError
