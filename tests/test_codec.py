"""Events to bytes and back, old versions, and bytes that are no event."""

from __future__ import annotations

import random

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings

from histories import golden_history
from resia.events import TYPES, Envelope, Producer, RunFailed, StepTrained, decode, encode
from resia.events.catalogue import version_of
from resia.events.errors import UnreadableEvent
from strategies import WIRE, enclosed, envelopes, strategy

RECORDS = golden_history().records
ENVELOPE = Envelope("i" * 26, "run", "run-failed", 1, None, 0, Producer("user", "w", "0"), 1.0)


@pytest.mark.parametrize("name", TYPES)
def test_every_event_survives_the_wire(name):
    @settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
    @given(envelopes(), strategy(msgspec.inspect.type_info(TYPES[name]), WIRE))
    def survives(envelope, event):
        envelope = enclosed(envelope, event)
        data = encode(envelope, event)
        fact = decode(7, "subject", data)
        assert (fact.envelope, fact.event) == (envelope, event)
        assert encode(fact.envelope, fact.event) == data

    survives()


def wire(kind: str, version: int, payload: object) -> bytes:
    envelope = msgspec.structs.asdict(msgspec.structs.replace(ENVELOPE, type=kind, version=version))
    return msgspec.json.encode({**envelope, "payload": payload})


STEP_1 = {
    "training": "t",
    "round": 0,
    "step": 3,
    "loss": 0.5,
    "kl": 2.0,
    "grad_norm": 1.0,
    "learning_rate": 1e-4,
    "tokens": 8,
    "tokens_per_s": 5.0,
}


def test_version_1_of_step_trained_gave_kl_summed_over_tokens():
    fact = decode(1, "s", wire("step-trained", 1, STEP_1))
    assert fact.event == StepTrained("t", 0, 3, 0.5, 0.25, 1.0, 0.0, 1.0, 1e-4, 8, 5.0)
    assert fact.envelope.version == 1
    assert version_of("step-trained") == 2


@pytest.mark.parametrize(
    ("kind", "version", "payload", "why"),
    [
        ("step-trained", 3, STEP_1, "newer than this package's 2"),
        ("step-trained", 0, STEP_1, "Expected `int` >= 1 - at `$.version`"),
        ("step-trained", 10**400, STEP_1, "Expected `int` <= 2147483648"),
        ("step-trained", 1, {**STEP_1, "tokens": "many"}, "does not upcast"),
        ("step-trained", 1, {}, "does not upcast"),
        ("step-trained", 1, [], "Expected `object`"),
        ("step-trained", 2, STEP_1, "missing required field"),
        ("run-failed", 1, {"error": 3}, "Expected `str`"),
        ("run-failled", 1, {"error": "x"}, "unknown type 'run-failled'"),
        ("\x1b[31mred", 1, {}, "unknown type '?[31mred'"),
    ],
)
def test_what_cannot_be_read_is_named(kind, version, payload, why):
    with pytest.raises(UnreadableEvent) as caught:
        decode(9, "s", wire(kind, version, payload))
    assert caught.value.sequence == 9
    assert why in caught.value.why


def test_an_envelope_of_another_type_is_refused():
    with pytest.raises(ValueError, match="run-completed"):
        encode(msgspec.structs.replace(ENVELOPE, type="run-completed"), RunFailed("x"))


HOSTILE = (b"\x00", b"\xff\xfe", b"null", b"1e999", b"-", b'"', b"{", b"[" * 3000, b"9" * 400, b"\\ud800", b"true")


def mutated(data: bytes, rng: random.Random) -> bytes:
    """`data` with one to four places cut out, doubled or overwritten by noise or by what breaks parsers."""
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data) + 1)
        end = min(len(data), at + rng.randint(0, 12))
        noise, number = bytes([rng.randrange(256)]), b"%d" % rng.randrange(10**20)
        data = data[:at] + rng.choice([b"", data[at:end] * 2, rng.choice(HOSTILE), noise, number]) + data[end:]
    return data[: rng.randint(0, len(data))] if rng.random() < 0.1 else data


def read(data: bytes) -> str:
    """The type of the event in `data`, or why there is none."""
    try:
        return decode(1, "s", data).envelope.type
    except UnreadableEvent as error:
        return error.why


def test_mutated_bytes_are_an_event_or_are_unreadable():
    rng, total = random.Random(0), 3000
    sources = [data for _, data in RECORDS[::3]] + [wire("step-trained", 1, STEP_1)] * 20
    results = [read(mutated(rng.choice(sources), rng)) for _ in range(total)]
    assert all(result.isascii() and result.isprintable() for result in results)
    assert 0 < sum(result in TYPES for result in results) < total // 2


@pytest.mark.parametrize(
    ("field", "number", "result"),
    [
        ("kl", "9" * 400, "step-trained version 1 does not upcast: OverflowError"),
        ("kl", "1e308", "step-trained"),
        ("kl", "null", "step-trained version 1 does not upcast: TypeError"),
        ("tokens", "9" * 400, "step-trained version 1 does not upcast: OverflowError"),
        ("tokens", "1e308", "Expected `int`"),
        ("tokens", '"9"', "step-trained version 1 does not upcast: TypeError"),
    ],
)
def test_an_old_payload_with_an_odd_number_is_an_event_or_is_unreadable(field, number, result):
    data = wire("step-trained", 1, {**STEP_1, field: 77.5}).replace(b"77.5", number.encode())
    assert read(data).startswith(result)
