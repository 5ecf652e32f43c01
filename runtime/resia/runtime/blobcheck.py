"""The bytes behind a log: every blob that an event names is there and is what its digest says.

A rollout's numbers also stand in its trajectory, so an event that was changed on its own is found here and named.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from resia.events import Blobs, Fact, Logged, RolloutRecorded, decode_trajectory
from resia.events.errors import BlobError
from resia.replay.verify import Problem, blobs_named


def blob_problems(facts: Iterable[Logged], blobs: Blobs) -> Iterator[Problem]:
    """Each blob that is missing or damaged, at the first event that names it, and each rollout that its own trajectory
    contradicts."""
    known: set[str] = set()
    for fact in facts:
        event = fact.event if isinstance(fact, Fact) else None
        for blob in blobs_named(event) if event is not None else ():
            if blob.digest in known:
                continue
            known.add(blob.digest)
            try:
                blobs.get(blob)
            except BlobError as cause:
                yield Problem(fact.sequence, "blob", str(cause))
        if isinstance(event, RolloutRecorded) and (why := _contradiction(event, blobs)):
            yield Problem(fact.sequence, "blob", why)


def _contradiction(event: RolloutRecorded, blobs: Blobs) -> str:
    """How a rollout and its trajectory differ; empty where they do not, and where there is none to be read."""
    from resia.agents.rollout import TRAJECTORY_MEDIA

    if event.trajectory.media != TRAJECTORY_MEDIA:
        return ""
    try:
        found = decode_trajectory(blobs.get(event.trajectory))
    except BlobError:
        return ""  # which has been named
    except msgspec.MsgspecError as cause:
        return f"its trajectory {event.trajectory.digest[:12]} cannot be read: {cause}"
    turns = found.turns
    pairs = {
        "item": (event.item, found.item),
        "seed": (event.seed, found.seed),
        "answer": (event.answer, found.answer),
        "reward": (event.reward, sum(turn.reward for turn in turns) if turns else None),
        "step_rewards": (event.step_rewards, tuple(turn.reward for turn in turns if not turn.outvoted)),
        "prompt_tokens": (event.prompt_tokens, sum(len(turn.prompt_ids) for turn in turns)),
        "completion_tokens": (event.completion_tokens, sum(len(turn.completion_ids) for turn in turns)),
    }
    for name, (said, stored) in pairs.items():
        if said != stored:
            return f"it says {name} {said!r:.80}, its trajectory {event.trajectory.digest[:12]} says {stored!r:.80}"
    return ""
