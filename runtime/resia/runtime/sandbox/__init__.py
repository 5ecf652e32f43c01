"""Runs generated Python where it reaches nothing but its arguments and its tools; one page: `docs/sandbox.md`.

This process                                          inside, on the bare standard library
    process.py     the Sandbox port: take, talk, judge      child.py    the fork server: one forked guest a run
    server.py      starts and addresses the fork server     guest.py    one run: compile, call, answer
    bubblewrap.py  namespaces around it, where there are    confine.py  every lock, turned in order
    launch.py      one child process and its keeper         landlock.py, seccomp.py, kernel.py
    dialogue.py    one run's conversation, with a deadline
    tier.py        what holds here, found by trying
    limits.py      what one run may use

`wire.py` is what both sides share. In: source, arguments as JSON, tools. Out: `Ran` or `SandboxError`. The inside
is a fresh interpreter, never a fork of this process, and imports nothing of this package but its own files.
"""

from __future__ import annotations

from resia.runtime.sandbox.limits import SandboxLimits
from resia.runtime.sandbox.process import Probe, ProcessSandbox, probe
from resia.runtime.sandbox.tier import CONFINED, ENCLOSED, NONE, TIERS, UNSAFE, Tier

__all__ = [
    "CONFINED",
    "ENCLOSED",
    "NONE",
    "TIERS",
    "UNSAFE",
    "Probe",
    "ProcessSandbox",
    "SandboxLimits",
    "Tier",
    "probe",
]
