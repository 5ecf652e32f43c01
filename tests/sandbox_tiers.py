"""A sandbox of a given tier, or the reason why this machine cannot have it, and what tests ask of one."""

from __future__ import annotations

import pytest

from resia.events.errors import SandboxError, UsageError
from resia.runtime.sandbox import UNSAFE, ProcessSandbox, SandboxLimits, Tier


def sandbox_of(tier: Tier, limits: SandboxLimits | None = None, warm: int = 2) -> ProcessSandbox:
    """Started; to be closed. Skips where the tier does not hold."""
    if tier == UNSAFE:
        return ProcessSandbox(limits, unsafe_local=True, tiers=(), warm=warm)
    try:
        return ProcessSandbox(limits, tiers=[tier], warm=warm)
    except UsageError as error:
        pytest.skip(f"{tier.name}: {error}")


def source(body, imports):
    return f"import {imports}\ndef f(*args):\n " + body.replace("\n", "\n ")


def refused(sandbox, body, *args, imports="os"):
    with pytest.raises(SandboxError) as caught:
        sandbox.run(source(body, imports), "f", args)
    return caught.value.failure, str(caught.value)


def returned(sandbox, body, *args, imports="os"):
    return sandbox.run(source(body, imports), "f", args).value


def out_of_reach(sandbox, body, *args, imports="os"):
    """Whether `body` was denied; a file that is not there because bubblewrap holds counts as one that is."""
    return refused(sandbox, body, *args, imports=imports)[0] == "sandbox_violation"


# The descriptors that are open, as `found`.
OPEN_DESCRIPTORS = """
found = []
for fd in range(32):
    try:
        os.fstat(fd)
    except OSError:
        continue
    found.append(fd)
"""
