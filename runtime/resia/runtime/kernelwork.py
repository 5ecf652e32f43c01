"""One kernel file, judged on this machine: what the commands of `resia kernel` do."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, cast

from resia.domains.base import FileScore
from resia.domains.trimul.cases import Suite
from resia.domains.trimul.cases import suite as named_suite
from resia.domains.trimul.operator import Case, Law
from resia.events import KernelProtocol
from resia.events.errors import UnknownName, UsageError
from resia.kernels.bench import cases_for
from resia.kernels.judge import Judge, Verdict
from resia.kernels.ports import Limits

from .chamber.devices import find
from .chamber.lease import lease
from .chamber.process import ProcessChamber

PROTOCOLS: tuple[KernelProtocol, ...] = ("strict", "gpumode")  # the default first
_CASE = re.compile(r"(\d+)/(\d+)/(\d+)(-normal|-cauchy)?(-masked)?")
_MOST = 1 << 20  # bytes of a kernel file
_MOST_X = 4 << 30  # bytes of x in a case; the largest published one has 3.2e9
_INTEGERS = range(-(2**63), 2**63)
Say = Callable[[str], None]


class Work(NamedTuple):
    """What a person asked for; `config` as NAME=VALUE, `cases` as N/B/C with -cauchy and -masked."""

    file: Path
    config: list[str]
    suite: str | None
    cases: list[str]
    device: str
    threads: int
    seed: int
    unsafe_local: bool


def verified(work: Work, say: Say) -> Verdict:
    """Raises UsageError for what cannot be used."""
    source, config = _source(work.file), _config(work.config)
    with _judge(work, say) as judge:
        return judge.verify(source, config, work.seed)


def benched(work: Work, protocol: str, say: Say) -> Verdict:
    """Raises UsageError for what cannot be used."""
    if protocol not in PROTOCOLS:
        raise UnknownName("protocol", protocol, PROTOCOLS)
    source, config = _source(work.file), _config(work.config)
    with _judge(work, say) as judge:
        return judge.bench(source, config, protocol, work.seed)


def filed(file: Path, protocol: str, suite: str, threads: int, unsafe_local: bool) -> FileScore:
    """A kernel file as `resia score` shows one: the verdict over the cases of a suite, each of them one problem."""
    work = Work(file, [], suite or None, [], "auto", threads, 0, unsafe_local)
    verdict = benched(work, protocol, lambda _: None)
    timed = named_suite(verdict.suite).timed
    answered = 0 if verdict.failure else len(timed)
    scores = {"reward_1500": verdict.reward}
    if not verdict.failure:
        scores |= {"geomean_us": verdict.geomean_us, "floor_us": verdict.floor_us}
    invalid = {verdict.failure: len(timed)} if verdict.failure else {}
    share = answered / len(timed)
    return FileScore(protocol, verdict.suite, len(timed), answered, share, scores, invalid, device=verdict.device)


def lines(verdict: Verdict) -> Iterator[str]:
    """A verdict for a person."""
    yield f"device   {verdict.device}"
    yield f"locked   {verdict.tier}"
    if verdict.failure:
        yield f"rejected {verdict.failure} ({verdict.stage}): {verdict.detail}"
        return
    yield f"right    on {verdict.verified} cases"
    for name, us in verdict.case_us.items():
        yield f"  {name:28} {us:>14,.1f} us"
    if verdict.case_us:
        yield f"mean     {verdict.geomean_us:,.1f} us (geometric; {verdict.protocol}, {verdict.suite} cases)"
        yield f"floor    {verdict.floor_us:,.1f} us"
        yield f"reward   {verdict.reward:.4f} (1500 / us)"


@contextmanager
def _judge(work: Work, say: Say) -> Iterator[Judge]:
    device = find(work.device, work.threads)
    suite = _suite(work, cases_for(work.suite or "", device))

    def busy() -> None:
        say(f"waiting: another kernel is on {device.name}")

    with ProcessChamber(Limits(threads=work.threads), device, work.unsafe_local) as chamber, lease(device, busy=busy):
        if chamber.tier.startswith("unsafe"):
            say("this file runs without a sandbox: it may do whatever you may")
        yield Judge(chamber, suite, say=say)


def _suite(work: Work, named: Suite) -> Suite:
    """The named suite, or the cases asked for, both tested and timed."""
    chosen = tuple(parse_case(text) for text in work.cases)
    return Suite("chosen", chosen, chosen) if chosen else named


def parse_case(text: str) -> Case:
    """`32/1/128-cauchy-masked`; UsageError names what is off."""
    found = _CASE.fullmatch(text)
    sizes = [int(part) for part in found.groups()[:3]] if found else []
    if found is None or min(sizes) < 1:
        raise UsageError(
            f"--case takes N/B/C with -cauchy and -masked where meant, such as 32/1/128-masked, not '{text}'"
        )
    n, batch, channels = sizes
    case = Case(n, batch, channels, cast(Law, (found[4] or "-normal")[1:]), bool(found[5]))
    if case.x_bytes > _MOST_X:
        raise UsageError(
            f"--case {text} has an x of {case.x_bytes / 1e9:,.1f} GB: at most {_MOST_X / 1e9:.1f} (1024/1/768: 3.2)"
        )
    return case


def _source(file: Path) -> str:
    try:
        with file.open("rb") as source:
            data = source.read(_MOST + 1)  # a device has no size
        if len(data) > _MOST:
            raise UsageError(f"kernel file {file} has more than {_MOST} bytes: give at most so many")
        return data.decode("utf-8")
    except OSError as cause:
        raise UsageError(f"kernel file {file} cannot be read: {cause.strerror}") from cause
    except UnicodeDecodeError as cause:
        raise UsageError(f"kernel file {file} is no text in UTF-8 (byte {cause.start}): save it as such") from cause


def _config(given: list[str]) -> dict[str, int | float | str]:
    chosen: dict[str, int | float | str] = {}
    for text in given:
        name, mark, value = text.partition("=")
        if not name or not mark:
            raise UsageError(f"--config takes NAME=VALUE, such as block_m=64, not '{text}'")
        chosen[name] = _value(value)
    return chosen


def _value(text: str) -> int | float | str:
    """A number where it is one that JSON has; an integer in 64 bits."""
    for kind in (int, float):
        try:
            number = kind(text)
        except ValueError:
            continue
        if number in _INTEGERS if isinstance(number, int) else math.isfinite(number):
            return number
    return text
