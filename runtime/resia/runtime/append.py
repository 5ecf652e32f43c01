"""One append: headers that expect nothing there, batches, retries, and what a refusal means. Imports no client."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Sequence
from typing import Any, Protocol

from resia.events import Draft
from resia.events import subjects as names
from resia.events.errors import BusError, FenceMoved

from .protocol import Appended, error_of, headers, last_number

BATCH_LIMIT = 1000
APPEND_TRIES = 5
APPEND_FOR_S = 45.0  # a cluster elects a leader in 4 to 9 s, and may have to do so again
_WAIT_S, _LONGEST_WAIT_S = 0.1, 0.5
_FLUSH_EVERY = 64  # members between which the loop may run, so that the first are sent while the last are encoded
_WRONG_LAST_SEQUENCE = 10071
# What a cluster says while nobody leads, or while the same event is on its way through it: neither is a refusal.
_NOT_LEADER, _OFFLINE, _IN_FLIGHT, _BATCH_FORGOTTEN = 10009, 10118, 10164, 10176
_PASSING_STATUS = frozenset({429, 503})


class Unanswered(Exception):
    """An attempt got no answer: whether it was stored is open, and it is safe to make again."""


class Line(Protocol):
    """What an append needs of a connection. Each raises Unanswered when the server does not answer."""

    async def ask(self, subject: str, data: bytes, fields: dict[str, str]) -> dict[str, Any]:
        """Publish with headers `fields` and await the log's answer."""
        ...

    async def send(self, subject: str, data: bytes, fields: dict[str, str]) -> None:
        """Publish with headers `fields` and await nothing."""
        ...

    async def find(self, run: str, subject: str) -> int | None:
        """Sequence of the last event on `subject` of `run`, None when there is none."""
        ...

    async def is_torn(self, run: str) -> bool:
        """Whether the log of `run` ends amid a batch, so that a part of it can be seen and the rest not yet."""
        ...


async def append(line: Line, run: str, drafts: Sequence[Draft], fence: int | None) -> Appended:
    """Append `drafts` as `Bus.append` promises."""
    if not 0 < len(drafts) <= BATCH_LIMIT:
        raise BusError(f"a batch has 1 to {BATCH_LIMIT} events, not {len(drafts)}")
    deadline, wait = time.monotonic() + APPEND_FOR_S, _WAIT_S
    while True:
        try:
            return await _once(line, run, drafts, fence)
        except Unanswered as cause:
            if time.monotonic() > deadline:
                raise BusError(
                    f"append to run '{run}': no answer for {APPEND_FOR_S:.0f} s ({cause}): bring the server back, or"
                    " most nodes of its cluster, and go on"
                ) from cause
            await asyncio.sleep(wait)
            wait = min(2 * wait, _LONGEST_WAIT_S)


def passing(refusal: dict[str, Any]) -> bool:
    """Whether a refusal says only that the server cannot tell yet: it may be asked the same again."""
    code = refusal.get("err_code")
    return refusal.get("code") in _PASSING_STATUS or code in (_NOT_LEADER, _OFFLINE, _IN_FLIGHT, _BATCH_FORGOTTEN)


async def _once(line: Line, run: str, drafts: Sequence[Draft], fence: int | None) -> Appended:
    *members, last = drafts
    first, batch = (fence, _guard(run, drafts)), None
    if members:
        batch = secrets.token_hex(12)  # names this attempt on the wire only; no event carries it
        # The first member is acknowledged, so a server without batches is noticed at once.
        refusal = error_of(await line.ask(members[0].subject, members[0].data, headers(run, batch, 1, *first)))
        if refusal:
            return await _refused(line, run, drafts, fence, refusal)
        await _send(line, run, batch, members[1:])
        fields = {**headers(run, batch, len(drafts)), "Nats-Batch-Commit": "1"}
    else:
        fields = headers(run, None, 1, *first)
    answer = await line.ask(last.subject, last.data, fields)
    refusal = error_of(answer)
    if refusal:
        return await _refused(line, run, drafts, fence, refusal)
    return Appended(int(answer["seq"]), False)


async def _send(line: Line, run: str, batch: str, members: Sequence[Draft]) -> None:
    """The members between the first and the last."""
    for number, draft in enumerate(members, 2):
        await line.send(draft.subject, draft.data, headers(run, batch, number))
        if number % _FLUSH_EVERY == 0:
            await asyncio.sleep(0)


async def _refused(
    line: Line, run: str, drafts: Sequence[Draft], fence: int | None, refusal: dict[str, Any]
) -> Appended:
    """Sort a refusal: committed before, fence moved, or an error."""
    code, text = refusal.get("err_code"), str(refusal.get("description", refusal))
    # A batch is whole or absent, so its first member speaks for it, or the outcome that it ends with.
    present = await line.find(run, _guard(run, drafts) or drafts[0].subject)
    if present is not None:
        return await _there(line, run, drafts, present)
    if passing(refusal):
        raise Unanswered(text)
    if code == _WRONG_LAST_SEQUENCE:
        if fence is not None:
            raise FenceMoved(last_number(text))
        raise BusError(f"append to run '{run}': part of a batch is there and part is not: {text}")
    if "sealed" in text.lower():
        raise BusError(f"run '{run}' is sealed: it takes no more events")
    raise BusError(f"append to run '{run}': {text}")


async def _there(line: Line, run: str, drafts: Sequence[Draft], present: int) -> Appended:
    """What was committed before. A server whose disk is full shows part of a batch that it refused, and completes it
    when it is started again: until then nobody may take it for done."""
    if len(drafts) == 1:
        return Appended(present, True)
    if await line.is_torn(run):
        raise Unanswered("the log ends amid a batch: is its disk full?")
    return Appended(await line.find(run, drafts[-1].subject) or present, True)


def _guard(run: str, drafts: Sequence[Draft]) -> str | None:
    """The filter on which nothing may exist yet, where it is not the first draft's own subject."""
    return names.of_id(run, drafts[-1].id) if drafts[-1].outcome else None
