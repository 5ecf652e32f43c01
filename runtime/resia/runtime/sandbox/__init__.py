"""Runs generated Python where it reaches nothing but its arguments and its tools; one page: `docs/sandbox.md`.

This process                                          inside, on the bare standard library
    process.py   the Sandbox port: spawn, talk, judge     child.py    the fork server: one forked guest a run
    server.py    starts and addresses the fork server     guest.py    one run: compile, call, answer
    dialogue.py  one run's conversation, with a deadline  confine.py  every lock, turned in order
    tier.py      what holds here, found by trying         landlock.py, seccomp.py, kernel.py
    limits.py    what one run may use

`wire.py` is what both sides share. In: source, arguments as JSON, tools. Out: `Ran` or `SandboxError`. The inside
is a fresh interpreter, never a fork of this process, and imports nothing of this package but its own files.
"""

from __future__ import annotations

from resia.runtime.sandbox.limits import SandboxLimits
from resia.runtime.sandbox.process import ProcessSandbox, probe
from resia.runtime.sandbox.tier import CONFINED, NONE, UNSAFE, Tier

__all__ = ["CONFINED", "NONE", "UNSAFE", "ProcessSandbox", "SandboxLimits", "Tier", "probe"]
