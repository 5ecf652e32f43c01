"""A sandbox of a given tier, or the reason why this machine cannot have it."""

from __future__ import annotations

import pytest

from resia.events.errors import UsageError
from resia.runtime.sandbox import TIERS, ProcessSandbox, SandboxLimits, Tier

every_tier = pytest.mark.parametrize("tier", TIERS, ids=[tier.name.partition("+")[0] for tier in TIERS])


def sandbox_of(tier: Tier, limits: SandboxLimits | None = None, warm: int = 2) -> ProcessSandbox:
    """Started; to be closed. Skips where the tier does not hold."""
    try:
        return ProcessSandbox(limits, tiers=[tier], warm=warm)
    except UsageError as error:
        pytest.skip(f"{tier.name}: {error}")
