"""`resia task check`: a domain's admission tests, one of them in a second process.

As a module of its own process it tries the domain out backwards and prints the record: a scorer that draws unseeded
numbers, keeps state or follows the order of a set does not come out the same there.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from functools import lru_cache
from pathlib import Path

import msgspec

from resia.domains.admission import examine, repeated
from resia.domains.base import Domain
from resia.domains.contract import Finding
from resia.domains.files import recorded_name
from resia.domains.programs import ProgramRunner, Runners
from resia.domains.trials import Plan, record, try_out
from resia.events import RunSettings
from resia.events.errors import BoundaryError, boundary

from .config import load_settings
from .resources import domain_for
from .views import Shown

_WORDS = {True: "passed", False: "failed", None: "unknown"}
_OPTIONS = "domain_options."


class Asked(msgspec.Struct, frozen=True):
    """What the second process is asked."""

    settings: RunSettings
    cache: str | None
    plan: Plan
    unsafe_local: bool = False


def check(name: str, options: list[str], cache: Path | None, plan: Plan, unsafe_local: bool = False) -> Shown:
    """Load and examine a domain; `unsafe_local` runs answers that are programs even where nothing locks them in.
    UsageError or UnknownName where it cannot be loaded, BoundaryError where its own code fails at that."""
    settings = load_settings(None, [f"{_OPTIONS}{option.removeprefix(_OPTIONS)}" for option in options])
    settings = msgspec.structs.replace(settings, domain=recorded_name(name))
    with redirect_stdout(sys.stderr):  # whatever a domain's own code prints is no line of ours
        with boundary(BoundaryError, f"building domain '{name}'"):
            domain = domain_for(settings, cache)
        with _programs(unsafe_local) as programs:
            findings, tried = examine(domain, plan, programs)
    if tried:
        asked = Asked(settings, None if cache is None else str(cache), plan, unsafe_local)
        findings.append(_elsewhere(asked, tried))
    return _shown(domain, findings)


@contextmanager
def _programs(unsafe_local: bool) -> Iterator[Runners]:
    """What runs answers that are programs, started when the first is there."""
    with ExitStack() as started:

        @lru_cache(maxsize=1)
        def runner() -> ProgramRunner:
            from .chamber.programs import ProgramChamber

            return started.enter_context(ProgramChamber(unsafe_local=unsafe_local))

        yield runner


def _elsewhere(asked: Asked, tried: list[str]) -> Finding:
    """The finding of a second process, whose hashes of text are its own."""
    command = [sys.executable, "-P", "-m", "resia.runtime.admitting"]
    done = subprocess.run(command, input=msgspec.json.encode(asked), capture_output=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.decode(errors="replace").strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        return Finding("repeats", False, f"another process could not try it out: {last}")
    return repeated(tried, msgspec.json.decode(done.stdout.splitlines()[-1], type=list[str]))


def _shown(domain: Domain, findings: list[Finding]) -> Shown:
    failed = [finding.check for finding in findings if finding.passed is False]
    name = domain.spec.name
    verdict = f"refused: {', '.join(failed)}" if failed else "admitted"
    width = max(len(finding.check) for finding in findings)
    parts = [f"{_WORDS[f.passed]:<8}{f.check:<{width}}  {f.detail}" for f in findings]
    lines = [msgspec.to_builtins(finding) for finding in findings]
    lines.append({"domain": name, "digest": domain.digest, "admitted": not failed, "failed": failed})
    return Shown(tuple(lines), (*parts, f"{name} ({domain.digest[:12]}) is {verdict}"), 1 if failed else 0)


def main() -> None:
    """The second process: a request on standard input, the record as the last line of standard output."""
    asked = msgspec.json.decode(sys.stdin.buffer.read(), type=Asked)
    domain = domain_for(asked.settings, None if asked.cache is None else Path(asked.cache))
    with _programs(asked.unsafe_local) as programs:
        tried = record(domain, try_out(domain, asked.plan, backwards=True, programs=programs))
    sys.stdout.write(f"\n{msgspec.json.encode(tried).decode()}\n")  # the domain's code may have printed half a line


if __name__ == "__main__":
    main()
