"""Self-consistency: of several completions of one try, the answer that most of them give (arXiv:2203.11171).

Every completion is a turn of the rollout. Only the one that is elected goes on: it comes last, so that what follows and
what is earned belong to it, and the others are marked as outvoted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import msgspec

from resia.events import OUTVOTED, Turn


def elected(ballots: Sequence[str | None]) -> int:
    """Index of the first ballot of the commonest text; among equals the text that was given first. None is no vote:
    it is elected only where there is nothing else, and then the last, as of several tries."""
    counts = Counter(ballot for ballot in ballots if ballot is not None)
    if not counts:
        return len(ballots) - 1
    most = max(counts.values())
    return next(i for i, ballot in enumerate(ballots) if ballot is not None and counts[ballot] == most)


def voted_down(turn: Turn) -> Turn:
    """`turn` as another completion of its try was elected; how it had failed by itself stays readable."""
    return msgspec.structs.replace(turn, failure=f"{OUTVOTED} {turn.failure}".rstrip())
