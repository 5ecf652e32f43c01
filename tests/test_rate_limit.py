"""Token buckets: no minute holds more than the limit, whatever is asked for and when."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from resia.runtime.engines.rate_limit import MINUTE_S, Bucket, RateLimit


class Time:
    """A clock that `sleep` moves on."""

    def __init__(self) -> None:
        self.now = 100.0

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds


def admitted(limit: int, asked: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """(when, units) for each (pause before, units) asked of one bucket, in order."""
    bucket, now, found = Bucket(limit, 0.0), 0.0, []
    for pause, units in asked:
        now += pause
        found.append((now + bucket.wait_s(units, now), units))
    return found


@given(
    st.integers(1, 500),
    st.lists(st.tuples(st.floats(0, 90), st.floats(0.1, 400)), min_size=1, max_size=40),
)
def test_no_minute_holds_more_than_the_limit_and_one_request(limit, asked):
    found = admitted(limit, asked)
    times = [when for when, _ in found]
    assert times == sorted(times)
    for start in times:
        inside = [units for when, units in found if start <= when < start + MINUTE_S - 1e-6]
        assert sum(inside) - max(inside) <= limit + 1e-6


@given(st.integers(2, 500), st.integers(1, 300))
def test_requests_that_come_at_once_are_no_more_than_the_limit_in_the_first_minute(limit, number):
    times = [when for when, _ in admitted(limit, [(0.0, 1.0)] * number)]
    assert sum(when <= MINUTE_S for when in times) <= limit
    assert sum(when <= MINUTE_S for when in times) >= min(number, limit) - 1  # and hardly fewer


def test_no_limit_never_waits():
    time = Time()
    limit = RateLimit(0, 0, time.sleep, lambda: time.now)
    for _ in range(1000):
        limit.take(10**6)
    assert time.now == 100.0


def test_what_was_not_used_is_given_back():
    time = Time()
    limit = RateLimit(0, 600, time.sleep, lambda: time.now)
    limit.take(100)
    limit.settle(100, 10)
    limit.take(90)
    assert time.now == 100.0
    limit.take(50)  # 50 of 500 a minute
    assert time.now == 106.0


def test_a_pause_that_the_endpoint_asked_for_holds_every_request():
    time = Time()
    limit = RateLimit(0, 0, time.sleep, lambda: time.now)
    limit.hold(7.0)
    limit.hold(3.0)
    limit.take(1)
    assert time.now == 107.0
