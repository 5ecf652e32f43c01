"""Budgets that a run may have beside its iterations and tokens: money, by its own prices, and seconds.

Pure. Money is a function of the ledger. Seconds are not counted here: whoever follows the run records that they are
spent, and rules stop by that fact.
"""

from __future__ import annotations

from resia.events import RunSettings
from resia.replay.ledger import money
from resia.replay.state import RunState


def overdrawn(state: RunState, settings: RunSettings) -> str:
    """Why the money or the seconds are spent; empty while they are not, or where there is no such budget."""
    budget = settings.loop.money_budget
    if budget is not None and (paid := money(state.ledger, settings)) >= budget:
        return f"no money is left: {paid:.6g} of {budget:g} {settings.price.currency}"
    if found := state.overdrawn.get("seconds"):
        return f"no time is left of {found.limit:g} seconds"  # how long it took is a clock's word, and not said here
    return ""


def tokens_left(state: RunState, settings: RunSettings) -> int:
    """Of the token budget; below 0 by what the last step overran it."""
    return settings.loop.token_budget - state.ledger.tokens
