"""A round that a killed trainer began goes on from its last checkpoint and ends in the same bytes, whoever ends it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace
from trainer_given import SETTINGS
from training_bench import Bench

from given import FAILED, clerk, drafts_of, writer
from histories import MANIFEST
from resia.events import ALGORITHMS, Fact, RoundRequested, RoundTrained, StepTrained
from resia.replay.identity import identity, performed
from resia.runtime.worker import Role, Worker
from resia.trainers.checkpoint import begun
from resia.trainers.performing import train

torch = pytest.importorskip("torch")
STEPS, KILLED_AFTER = 6, 4  # steps 0 to 3 are in the log, checkpoints after 1 and 3
EVERY_2 = replace(SETTINGS, checkpoint_every=2, learning_rate=1e-3)


def undisturbed(bench: Bench) -> list:
    return bench.round(adapter=bench.champion, steps=STEPS)


def interrupted(bench: Bench, after: int = KILLED_AFTER) -> Fact:
    """The round asked for, with `after` of its steps in the log; the attempt is given up."""
    fact = bench.ask(adapter=bench.champion, steps=STEPS)
    attempt = bench.perform(fact)
    for _ in range(after):
        bench.tape.add(*next(attempt))
    attempt.close()
    bench.ticks = 0
    return fact


def resumed(bench: Bench, fact: Fact) -> list:
    return [event for events in bench.perform(fact) for event in events]


def adapters(events) -> list[str]:
    return [event.adapter.digest for event in events if isinstance(event, RoundTrained)]


@pytest.mark.parametrize(
    ("algorithm", "kl_target"), [*((name, None) for name in ALGORITHMS), ("grpo", 1e-3), ("ppo_gae", 1e-3)]
)
def test_a_resumed_round_gives_the_events_of_an_undisturbed_one(tmp_path, algorithm, kl_target):
    """And computes what comes after the checkpoint alone: two of six steps."""
    chosen = replace(EVERY_2, kl_target=kl_target)
    whole = undisturbed(Bench(tmp_path / "whole", algorithm, chosen))
    bench = Bench(tmp_path / "killed", algorithm, chosen)
    fact = interrupted(bench)
    bench.policy.set_adapter(None, 99)  # another process has another policy in hand
    events = resumed(bench, fact)
    assert bench.ticks == 2 * (STEPS - KILLED_AFTER)
    assert adapters(events) == adapters(whole) != []
    assert events == whole


@pytest.mark.parametrize(("every", "taken"), [(0, []), (1, [0, 1, 2, 3, 4]), (2, [1, 3]), (5, [4]), (6, []), (9, [])])
def test_a_checkpoint_is_taken_every_so_many_steps_and_not_after_the_last(tmp_path, every, taken):
    bench = Bench(tmp_path, settings=replace(SETTINGS, checkpoint_every=every))
    *steps, _ = undisturbed(bench)
    assert [step.step for step in steps if step.checkpoint is not None] == taken
    assert {step.checkpoint.manifest for step in steps if step.checkpoint} <= {MANIFEST}


def test_checkpoints_change_no_byte_and_short_rounds_have_none(tmp_path):
    plain = undisturbed(Bench(tmp_path / "a", settings=replace(EVERY_2, checkpoint_every=0)))
    assert adapters(plain) == adapters(undisturbed(Bench(tmp_path / "b", settings=EVERY_2)))
    assert not any(e.checkpoint for e in Bench(tmp_path / "c").round(steps=5) if isinstance(e, StepTrained))


def test_steps_after_the_last_checkpoint_are_taken_again(tmp_path):
    whole = undisturbed(Bench(tmp_path / "whole", settings=EVERY_2))
    bench = Bench(tmp_path / "killed", settings=EVERY_2)
    events = resumed(bench, interrupted(bench, after=STEPS - 1))
    assert bench.ticks == 2 * 2
    assert adapters(events) == adapters(whole)
    assert [e.step for e in events[:-1]] == list(range(STEPS))


def test_before_the_first_checkpoint_the_round_begins_anew(tmp_path):
    bench = Bench(tmp_path, settings=EVERY_2)
    events = resumed(bench, interrupted(bench, after=1))
    assert bench.ticks == 2 * STEPS
    assert adapters(events) == adapters(undisturbed(Bench(tmp_path / "whole", settings=EVERY_2)))


@pytest.mark.parametrize(("lost", "taken"), [([3], 4), ([1], 2), ([3, 1], 6)])
def test_a_lost_checkpoint_costs_steps_and_nothing_else(tmp_path, lost, taken):
    bench = Bench(tmp_path / "killed", settings=EVERY_2)
    fact = interrupted(bench)
    (training,) = bench.tape.state.trainings.values()
    for number in lost:
        bench.blobs.place(training.steps[number].checkpoint.optimizer.digest).unlink()
    events = resumed(bench, fact)
    assert bench.ticks == 2 * taken
    assert adapters(events) == adapters(undisturbed(Bench(tmp_path / "whole", settings=EVERY_2)))


@pytest.mark.parametrize("field", ["threads", "instruction_set", "dtype", "package", "model_digest"])
def test_a_checkpoint_of_another_machine_is_passed_over(tmp_path, field):
    """Else the adapter would be half of one machine and half of another, and no machine could make it again."""
    bench = Bench(tmp_path, settings=EVERY_2)
    fact = interrupted(bench)
    bench.manifest = replace(MANIFEST, **{field: 7 if field == "threads" else "other"})
    resumed(bench, fact)
    assert bench.ticks == 2 * STEPS


def test_a_gap_in_the_steps_ends_what_can_be_gone_on_from(tmp_path):
    bench = Bench(tmp_path, settings=EVERY_2)
    interrupted(bench)
    (training,) = bench.tape.state.trainings.values()
    found = begun(training, 0, MANIFEST, bench.blobs)
    assert (found.steps, found.saved.step) == (training.steps[:4], 3)
    holed = replace(training, steps=training.steps[:2] + training.steps[3:])
    assert begun(holed, 0, MANIFEST, bench.blobs).steps == training.steps[:2]
    assert begun(training, 1, MANIFEST, bench.blobs) == ((), None)


CHILD = """
import os, signal, sys
from pathlib import Path
import msgspec, torch
torch.set_num_threads(1)
import test_checkpoints as t
folder = Path(sys.argv[1])
bench = t.Bench(folder / "blobs", settings=t.EVERY_2)
attempt = bench.perform(bench.ask(adapter=bench.champion, steps=t.STEPS))
with open(folder / "log", "wb", buffering=0) as log:
    for _ in range(t.KILLED_AFTER):
        log.write(msgspec.json.encode(next(attempt)[0]) + b"\\n")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_another_process_ends_what_a_killed_one_began(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path)], env=environment, capture_output=True, timeout=120, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-2000:]
    torch.set_num_threads(1)
    whole = undisturbed(Bench(tmp_path / "whole", settings=EVERY_2))
    bench = Bench(tmp_path / "blobs", settings=EVERY_2)
    fact = bench.ask(adapter=bench.champion, steps=STEPS)
    lines = (tmp_path / "log").read_bytes().splitlines()
    bench.tape.add(*(msgspec.json.decode(line, type=StepTrained) for line in lines))
    events = resumed(bench, fact)
    assert bench.ticks == 2 * (STEPS - KILLED_AFTER)
    assert adapters(events) == adapters(whole)


class Interrupted(Exception):
    pass


def role(bench: Bench, durable: str, dies_after: int | None = None) -> Role:
    """The trainer's `perform` on the bench's policy; where it dies, nothing is settled."""

    def perform(state, fact, _) -> Iterator[list]:
        for number, events in enumerate(train(state, fact, bench.ports())):
            if number == dies_after:
                raise Interrupted
            yield events

    return Role("trainer", (), lambda _state, _fact: [], (RoundRequested,), perform, durable=durable)


async def settled(bus, run: str) -> list[Fact]:
    """The log once the round has its outcome, which ends the run."""
    facts = []
    async for fact in bus.read(run, follow=True):
        facts.append(fact)
        if isinstance(fact.event, RoundTrained):
            await bus.append(run, drafts_of(run, [FAILED]))
            return facts
    raise AssertionError("the run has no end")


async def test_on_a_real_log_each_step_stands_once_under_its_id(bus, run, tmp_path):
    """The first worker dies after four steps were appended; the second is told of them and appends the last two."""
    bench = Bench(tmp_path, settings=EVERY_2, run=run)
    bench.ask(adapter=bench.champion, steps=STEPS)
    for number, fact in enumerate(bench.tape.facts):
        await bus.append(run, [clerk(run, writer(fact.event)).draft(None, 0, fact.event, "tape", number)])
    with pytest.raises(ExceptionGroup) as raised:
        await Worker(bus, role(bench, "first", KILLED_AFTER), clerk(run, "trainer", "w1")).serve()
    assert raised.value.subgroup(Interrupted)
    bench.ticks = 0
    async with asyncio.timeout(30):
        serving = asyncio.create_task(Worker(bus, role(bench, "second"), clerk(run, "trainer", "w2")).serve())
        facts = await settled(bus, run)
        await serving
    steps, round_ = [fact for fact in facts if isinstance(fact.event, StepTrained)], facts[-1]
    assert [step.event.step for step in steps] == list(range(STEPS))
    handler = performed("trainer", "round-requested")
    cause = round_.envelope.cause
    assert [s.envelope.id for s in steps] == [identity(run, cause, s.event, handler, s.event.step) for s in steps]
    assert [s.envelope.producer.worker for s in steps] == ["w1"] * KILLED_AFTER + ["w2"] * (STEPS - KILLED_AFTER)
    assert bench.ticks == 2 * (STEPS - KILLED_AFTER)
    assert adapters([round_.event]) == adapters(undisturbed(Bench(tmp_path / "whole", settings=EVERY_2)))
