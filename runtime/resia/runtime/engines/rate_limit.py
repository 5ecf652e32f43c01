"""Requests and tokens a minute that one process asks of an endpoint: two token buckets, and pauses asked for.

What a clock says here only delays a request; it is in no event and decides nothing in the log.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

MINUTE_S = 60.0


class Bucket:
    """Admits at most `limit` units in any minute, in the order in which they are asked for; 0 is no limit.

    A sixth of the limit may go at once, at least one unit where the limit is of two or more; the rest fills in evenly,
    so that burst and filling together are the limit.
    """

    def __init__(self, limit: int, start_s: float) -> None:
        self._room = max(limit / 6, min(1.0, limit / 2))
        self._per_s = (limit - self._room) / MINUTE_S
        self._level, self._at, self._limit = self._room, start_s, limit

    def wait_s(self, units: float, now_s: float) -> float:
        """Take `units` and say how long to wait before they may be used: debts are paid by waiting."""
        if not self._limit:
            return 0.0
        self._level = min(self._room, self._level + (now_s - self._at) * self._per_s) - units
        self._at = now_s
        return max(-self._level / self._per_s, 0.0)

    def give_back(self, units: float) -> None:
        """What was taken and not used."""
        self._level = min(self._room, self._level + units)


class RateLimit:
    """Both buckets of an endpoint, for the threads of one process."""

    def __init__(
        self,
        requests_per_minute: int,
        tokens_per_minute: int,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sleep, self._clock, self._lock = sleep, clock, threading.Lock()
        self._requests, self._tokens = Bucket(requests_per_minute, clock()), Bucket(tokens_per_minute, clock())
        self._held_until_s = clock()

    def take(self, tokens: int) -> None:
        """Wait until a request of so many tokens, in and out, may be sent."""
        with self._lock:
            now = self._clock()
            wait = max(self._requests.wait_s(1, now), self._tokens.wait_s(tokens, now), self._held_until_s - now)
        if wait > 0:
            self._sleep(wait)

    def settle(self, taken: int, used: int) -> None:
        """A request that took room for `taken` tokens has used `used`."""
        with self._lock:
            self._tokens.give_back(taken - used)

    def hold(self, seconds: float) -> None:
        """Send nothing for so long: the endpoint asked for it, and means every request."""
        with self._lock:
            self._held_until_s = max(self._held_until_s, self._clock() + seconds)
