"""What a login may do, found by trying on a run that cannot exist: its name is none that a run may have.

A server answers what is allowed, be it with "there is no such stream" or "nobody listens there"; what is not allowed it
drops, and the asker waits. So what must be allowed is waited for long, and what must not be, shortly and all at once.
"""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from resia.events.errors import BusError
from resia.events.subjects import ROLES

from .bus import Bus

NO_RUN = "~doctor"
ALLOWED_S, REFUSED_S = 5.0, 1.0
_STREAM = f"RUN-{NO_RUN}"
DANGEROUS = {
    f"$JS.API.STREAM.DELETE.{_STREAM}": "delete a run's log",
    f"$JS.API.STREAM.PURGE.{_STREAM}": "empty a run's log",
    f"$JS.API.STREAM.UPDATE.{_STREAM}": "change a run's log",
    f"$JS.API.STREAM.MSG.DELETE.{_STREAM}": "delete an event",
    f"$JS.API.DIRECT.GET.{_STREAM}": "have stored bytes sent to any subject",
}


class Trial(NamedTuple):
    """What `login` may not do and must (`unable`), and may and must not (`bold`), in words."""

    login: str
    unable: tuple[str, ...]
    bold: tuple[str, ...]


async def tried(bus: Bus, login: str, subjects: list[str]) -> Trial:
    """Try the connection of `login`; `subjects` are what a granted login may publish."""
    must, must_not = expected(login, subjects)
    able = await asyncio.gather(*(_allowed(bus, subject, ALLOWED_S) for subject in must))
    bold = await asyncio.gather(*(_allowed(bus, subject, REFUSED_S) for subject in must_not))
    return Trial(
        login,
        tuple(text for text, yes in zip(must.values(), able, strict=True) if not yes),
        tuple(text for text, yes in zip(must_not.values(), bold, strict=True) if yes),
    )


def expected(login: str, subjects: list[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Subjects that `login` must be able to publish to, and that it must not, each with what it means."""
    must = {f"$JS.API.STREAM.INFO.{_STREAM}": "look at a run's log"}
    own = {f"resia.{NO_RUN}.{login}.doctor.probe": f"write as {login}"} if login in ROLES else {}
    own |= {_probe(subject): f"write {subject}" for subject in subjects}
    if login in ROLES and login != "user":
        must |= {f"$JS.API.CONSUMER.CREATE.{_STREAM}.{login}": f"share the work of {login}"}
    others = {f"resia.{NO_RUN}.{role}.doctor.probe": f"write as {role}" for role in ROLES if role != login}
    return must | own, others | DANGEROUS


def _probe(pattern: str) -> str:
    """A subject that the pattern of a grant, `resia.*.ROLE.TYPE.*`, lets through."""
    _, _, role, kind, _ = pattern.split(".")
    return f"resia.{NO_RUN}.{role}.{kind}.probe"


async def _allowed(bus: Bus, subject: str, patience_s: float) -> bool:
    try:
        await bus.request(subject, b"{}", timeout=patience_s)
    except BusError as cause:
        return not isinstance(cause.__cause__, TimeoutError)  # else: nobody listens there
    return True
