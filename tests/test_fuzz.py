"""Ten thousand messages that are nearly events: each is refused with a clear sentence, recorded and skipped.

Mutations of a golden run's messages, drawn by Hypothesis. A mutation that still is an event which its writer may write
is not counted. The same messages are then sent to a live run, between its own, by somebody with the admin credential.
"""

from __future__ import annotations

import asyncio
import itertools
import string
from collections.abc import Callable
from typing import Any

import msgspec
import nats
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from given import clerk, requested
from histories import golden_history
from resia.events import Fact, MessageQuarantined, RunFailed, Skipped, read
from resia.events.errors import UnreadableEvent
from resia.replay.digest import digest
from resia.replay.fold import fold
from resia.runtime.worker import Role, Worker

MESSAGES = 10_000
A_DRAW = 25
SENTENCE = frozenset(string.printable) - frozenset("\t\n\r\x0b\x0c")
HISTORY = golden_history()
# One message of each type that the run has.
SAMPLES = list({fact.envelope.type: HISTORY.records[fact.sequence - 1] for fact in HISTORY.facts}.values())

Message = tuple[str, bytes]
Tree = dict[str, Any]

JUNK = st.sampled_from(
    [None, True, -1, 2**63, 10**400, 1.5, "", "x" * 300, "\x1b[31m", "é\u202e", [], [[]], {}, {"a": {"b": []}}]
)


def deep(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


@st.composite
def bytes_changed(draw: st.DrawFn, message: Message) -> Message:
    """Flipped, cut, inserted, doubled: the bytes are no longer what was written."""
    subject, data = message
    at = draw(st.integers(0, len(data) - 1))
    change: Callable[[], bytes] = draw(
        st.sampled_from(
            [
                lambda: data[:at],
                lambda: data[at:],
                lambda: data + data[:at],
                lambda: data[:at] + bytes([data[at] ^ (1 << draw(st.integers(0, 7)))]) + data[at + 1 :],
                lambda: data[:at] + draw(st.binary(min_size=1, max_size=9)) + data[at:],
            ]
        )
    )
    return subject, change()


@st.composite
def fields_changed(draw: st.DrawFn, message: Message) -> Message:
    """A field of the envelope or the payload is gone, new, or of another kind."""
    subject, data = message
    tree: Tree = msgspec.json.decode(data)
    inside: Tree = draw(st.sampled_from([tree, tree["payload"] or tree, tree["producer"]]))
    name = draw(st.sampled_from(sorted(inside)))
    change = draw(st.sampled_from(["drop", "junk", "deep", "rename", "swap"]))
    if change == "drop":
        del inside[name]
    elif change == "rename":
        inside[name[::-1]] = inside.pop(name)
    elif change == "swap":
        other = draw(st.sampled_from(sorted(inside)))
        inside[name], inside[other] = inside[other], inside[name]
    else:
        inside[name] = deep(draw(st.integers(2, 600))) if change == "deep" else draw(JUNK)
    return subject, _json(tree)


def _json(tree: Tree) -> bytes:
    import json  # msgspec's writer refuses integers over 64 bits

    return json.dumps(tree).encode("utf-8", "surrogatepass")


@st.composite
def forged(draw: st.DrawFn, message: Message) -> Message:
    """Sound bytes in the wrong place: another role's, type's, run's or id's subject; a version of the future."""
    subject, data = message
    tree: Tree = msgspec.json.decode(data)
    tokens = subject.split(".")
    part = draw(st.integers(1, 4))
    tokens[part] = draw(st.sampled_from(["trainer", "user", "meta", "stranger", "run-failed", "decision-made", "x1"]))
    version = draw(st.sampled_from([0, -1, tree["version"] + 1, tree["version"]]))
    return ".".join(tokens), _json({**tree, "version": version})


def mutated(message: Message) -> st.SearchStrategy[Message]:
    return st.one_of(bytes_changed(message), fields_changed(message), forged(message))


def refusal(message: Message) -> str | None:
    """What the reader says; None when the mutation is an event all the same."""
    try:
        read(7, *message)
    except UnreadableEvent as cause:
        return str(cause)
    return None


@pytest.fixture(scope="module")
def refused() -> list[Message]:
    """Mutations, every one of which was refused with one sentence that says which message and why."""
    found: list[Message] = []

    @settings(
        max_examples=MESSAGES * 2 // A_DRAW,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(st.sampled_from(SAMPLES).flatmap(mutated), min_size=A_DRAW, max_size=A_DRAW))
    def refuse(messages: list[Message]) -> None:
        for message in messages:
            said = refusal(message)
            if said is None:
                continue
            assert said.startswith("event 7 cannot be read: ")
            assert 0 < len(said.removeprefix("event 7 cannot be read: ")) <= 400
            assert set(said) <= SENTENCE
            found.append(message)

    refuse()
    return found


def test_ten_thousand_mutations_are_refused_with_a_clear_sentence(refused):
    assert len(refused) >= MESSAGES
    assert len(set(refused)) > MESSAGES / 4


def test_between_a_runs_own_events_they_change_no_state(refused):
    own = iter(HISTORY.facts)
    mixed: list[Fact | Skipped] = []
    for number, message in enumerate(refused, 1):
        mixed.append(Skipped(len(mixed) + 1, f"leaf {number}", refusal(message) or ""))
        if (fact := next(own, None)) is not None:
            mixed.append(msgspec.structs.replace(fact, sequence=len(mixed) + 1))
    mixed += [msgspec.structs.replace(fact, sequence=len(mixed) + 1) for fact in own]
    state = fold(mixed)
    assert digest(state) == digest(HISTORY.state)
    assert len(state.skipped) == len(refused)


async def test_a_live_run_records_each_and_its_workers_live(refused, access, bus, run):
    """Sent on subjects of this run and with an id of their own, for a stream takes one message a subject."""
    sent: dict[str, bytes] = {}
    for number, (subject, data) in enumerate(refused[:MESSAGES]):
        tokens = subject.split(".")
        sent[".".join([tokens[0], run, *tokens[2:4], f"{number}-{tokens[4]}"])] = data
    client = await nats.connect(access.url, user="admin", password=access.passwords["admin"])
    await bus.append(run, [clerk(run).genesis(requested())])
    stream = client.jetstream()
    todo = iter(sent.items())
    while chunk := list(itertools.islice(todo, 200)):
        await asyncio.gather(*(stream.publish(subject, data) for subject, data in chunk))
    assert (await stream.stream_info(f"RUN-{run}")).state.messages == len(sent) + 1
    seen: set[int] = set()
    worker = Worker(bus, Role("feedback", (), lambda state, fact: [], quarantines=True), clerk(run, "feedback"))
    serving = asyncio.create_task(worker.serve())
    async for fact in bus.read(run, follow=True):
        if isinstance(fact, Fact) and isinstance(fact.event, MessageQuarantined):
            seen.add(fact.event.sequence)
        if len(seen) == len(sent):
            break
        assert not serving.done()
    await bus.append(run, [clerk(run, "feedback").draft(None, 1, RunFailed("enough"), "test", 0)])
    await asyncio.wait_for(serving, 60)
    log = [fact async for fact in bus.read(run)]
    skipped = [fact for fact in log if isinstance(fact, Skipped)]
    quarantined = [f.event for f in log if isinstance(f, Fact) and isinstance(f.event, MessageQuarantined)]
    assert len(skipped) == len(sent)
    assert {(q.sequence, q.leaf) for q in quarantined} == {(s.sequence, s.leaf) for s in skipped}
    assert len(quarantined) == len(skipped)
    await client.close()
