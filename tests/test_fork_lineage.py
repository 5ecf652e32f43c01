"""Forks in real logs: what they inherit, whether their ancestors are what they were, who took which decision."""

from __future__ import annotations

import asyncio
import itertools
from contextlib import aclosing

import msgspec
import pytest

from given import clerk
from histories import GOLDEN, History, golden_history, play
from resia.events import Draft, Parent
from resia.events.errors import Tampered, UsageError
from resia.replay.digest import digest
from resia.replay.fold import fold
from resia.replay.fork import before_decision, inherit, owner_of
from resia.replay.state import RunState
from resia.runtime.bus import Bus
from resia.runtime.lineage import ancestry, origin
from resia.runtime.protocol import REMOVED
from resia.runtime.reading import Log, read_log
from resia.runtime.worker import Follower, cancelled

_numbers = itertools.count()


@pytest.fixture(scope="module")
def golden() -> History:
    return golden_history()


async def append(bus: Bus, history: History, run: str) -> None:
    await bus.create_run(run)
    numbered = zip(history.facts, history.records, strict=True)
    await bus.append(run, [Draft(fact.envelope.id, *record, fact.event) for fact, record in numbered])


class Family:
    """A run, its fork at decision 3 and that one's fork at decision 5, in memory and on the bus."""

    def __init__(self) -> None:
        number = next(_numbers)
        self.names = tuple(f"{name}-{number}" for name in ("root", "child", "grandchild"))
        root = golden_history(self.names[0])
        self.members = [root]
        self.origins = [RunState()]
        for name, iteration in zip(self.names[1:], (3, 5), strict=True):
            self._fork(name, iteration)

    def _fork(self, name: str, iteration: int) -> None:
        parent, before = self.members[-1], self.origins[-1]
        number = next(at.sequence for at in parent.state.decisions if at.decision.iteration == iteration)
        found = before_decision(parent.facts, number)
        self.origins.append(inherit(fold(parent.facts[: found.sequence], before)))
        request = msgspec.structs.replace(parent.state.request, parent=found)
        self.members.append(play(request, GOLDEN, run=name, origin=self.origins[-1], blobs=parent.blobs))


@pytest.fixture
async def family(bus: Bus) -> Family:
    made = Family()
    for name, history in zip(made.names, made.members, strict=True):
        await append(bus, history, name)
    return made


async def genesis(bus: Bus, run: str, history: History, parent: Parent) -> None:
    """Begin `run` with a first event that names this parent."""
    await bus.create_run(run)
    await bus.append(run, [clerk(run).genesis(msgspec.structs.replace(history.state.request, parent=parent))])


async def test_a_fork_begins_with_the_state_of_its_parent(bus, family):
    for name, expected, history in zip(family.names, family.origins, family.members, strict=True):
        assert await origin(bus, name) == expected
        log = await read_log(bus, name)
        assert log.origin == expected
        assert digest(log.at()) == digest(history.state)
        assert log.ancestry.changed == ()


async def test_the_follower_of_a_worker_begins_there_too(bus, family):
    follower = Follower(bus, family.names[2])
    await follower.follow()
    assert digest(follower.state) == digest(family.members[2].state)


async def test_a_follower_that_waits_before_the_first_event_inherits_all_the_same(bus, family):
    """A worker sees a run in the registry before its first event is there."""
    run = f"late-{next(_numbers)}"
    await bus.create_run(run)
    follower = Follower(bus, run)
    task = asyncio.create_task(follower.follow())
    async with aclosing(bus.read(run, follow=True)) as seen:  # a reader of the same kind has attached by its first fact
        await bus.append(run, [clerk(run).genesis(family.members[1].facts[0].event)])
        await anext(seen)
    state = await asyncio.wait_for(follower.reached(1), 20)
    await cancelled([task])
    assert state.iteration == 2
    assert state.evaluations == family.origins[1].evaluations


async def test_a_log_folds_to_any_event_from_what_it_inherits(bus, family):
    log = await read_log(bus, family.names[1])
    assert log.at(0) == family.origins[1]
    assert digest(log.at(len(log.facts))) == digest(log.at())
    with pytest.raises(UsageError, match="there is no event -1"):
        log.at(-1)
    with pytest.raises(UsageError, match=f"there is no event {len(log.facts) + 1}"):
        log.at(len(log.facts) + 1)
    with pytest.raises(UsageError, match="there is no event 0"):
        (await read_log(bus, family.names[0])).at(0)


async def test_each_decision_is_its_own_runs_or_an_ancestors(bus, family):
    root, child, grandchild = family.names
    log = await read_log(bus, grandchild)
    assert [owner_of(log.lineage, k) for k in range(1, 7)] == [root, root, child, child, grandchild, grandchild]
    assert log.facts[log.decision_event(5) - 1].event.iteration == 5
    with pytest.raises(UsageError, match=f"from run '{root}': write {root}@2"):
        log.decision_event(2)
    with pytest.raises(UsageError, match=f"from run '{child}': write {child}@3"):
        log.decision_event(3)
    with pytest.raises(UsageError, match=r"there is no iteration 9: take one from 1 to 6"):
        log.decision_event(9)


async def test_a_changed_parent_is_named_and_nothing_builds_on_it(bus, family, golden):
    root, run = family.names[0], f"changed-{next(_numbers)}"
    await genesis(bus, run, golden, Parent(root, 40, "0" * 64, 1))
    log = await read_log(bus, run)
    (why,) = log.ancestry.changed
    assert why.startswith(f"events 1 to 40 of run '{root}' are not those that its fork began with: their root is ")
    with pytest.raises(Tampered, match=f"of run '{root}' are not those"):
        await origin(bus, run)


async def test_a_changed_grandparent_is_named_too(bus, family, golden):
    parent, run = f"changed-{next(_numbers)}", f"below-{next(_numbers)}"
    await genesis(bus, parent, golden, Parent(family.names[0], 40, "0" * 64, 1))
    (first,) = (await read_log(bus, parent)).facts
    await genesis(bus, run, golden, Parent(parent, 1, first.leaf, 1))
    (why,) = (await ancestry(bus, run)).changed
    assert f"of run '{family.names[0]}'" in why


async def test_a_parent_that_lost_its_end_is_named(bus, family, golden):
    root, run = family.names[0], f"short-{next(_numbers)}"
    await genesis(bus, run, golden, Parent(root, 10**6, "0" * 64, 1))
    (why,) = (await ancestry(bus, run)).changed
    assert why == (
        f"run '{root}' has {len(family.members[0].facts)} events left of the 1000000 that its fork began with"
    )


async def test_a_parent_that_is_not_here_is_named(bus, golden):
    run = f"orphan-{next(_numbers)}"
    await genesis(bus, run, golden, Parent("nowhere", 1, "0" * 64, 1))
    with pytest.raises(UsageError, match=f"the log of 'nowhere', which '{run}' is a fork of, is not here: restore"):
        await read_log(bus, run)


async def test_a_parent_that_was_removed_is_named(bus, family):
    root, child, _ = family.names
    await bus.set_status(root, REMOVED)
    with pytest.raises(UsageError, match=f"run '{root}' was removed"):
        await read_log(bus, child)


def test_a_log_without_ancestors_begins_with_nothing(golden):
    log = Log("golden", golden.facts)
    assert log.origin == RunState()
    assert owner_of(log.lineage, 3) == "golden"
