"""The Task-Agent at work: sample a shard with a harness, score every rollout, record every step.

Effects only, through the ports. How a rollout goes is told in `episode`; what it is worth is the domain's business. A
failure of the infrastructure, the domain's own code included, is never scored.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from resia.domains.base import Domain, Score, controlled, rendered
from resia.domains.programs import Programmed, Runners, worth
from resia.events import (
    ControlFailed,
    ControlMeasured,
    ControlRequested,
    Event,
    Fact,
    RolloutFailed,
    RolloutRecorded,
    RolloutsRequested,
    ShardSampled,
    Slot,
    Trajectory,
    Turn,
    decode_harness,
)
from resia.events.errors import BlobError, BoundaryError, BusError, KeyRefused
from resia.replay.state import RunState

from .benching import Bench, bench_of
from .desk import DETAIL_CHARS, Shard, announcer, asker
from .episode import Episode, play
from .ports import PROGRAMS, AgentPorts

TRAJECTORY_MEDIA = "application/vnd.resia.trajectory+msgpack"


def sample_shard(state: RunState, fact: Fact, domain: Domain, ports: AgentPorts) -> Iterator[list[Event]]:
    """Perform RolloutsRequested: one atomic batch with every rollout of the shard and ShardSampled last."""
    event = fact.event
    assert isinstance(event, RolloutsRequested)
    started = ports.clock()
    harness = decode_harness(ports.blobs.get(event.candidate.harness))
    temperature = harness.retry_policy.temperature
    try:
        bench = bench_of(domain, ports.line, ports.blobs, event.retry)
        memo = _Scores(state, domain, bench, ports.programs)
        episodes = play(Shard(event, harness, domain, ports, announcer(event, ports), bench))
        rollouts = [_recorded(event, episode, temperature, memo, ports) for episode in episodes]
    except (BlobError, BusError):
        raise  # the store or the log failed, not the sampling: the worker comes back to this shard
    except KeyRefused as cause:  # every other shard would be lost to it too
        raise KeyRefused(f"{cause}; once that is mended, go on with: resia run --resume {fact.envelope.run}") from cause
    except BoundaryError as cause:  # the engine, the sandbox or the scorer broke: nothing here is the agent's fault
        failed = [_failed(event, slot, str(cause)) for slot in event.slots]
        yield [*failed, _sampled(fact, [], len(failed), domain, ports, started)]
        return
    yield [*rollouts, _sampled(fact, rollouts, 0, domain, ports, started)]


def measure_controls(fact: Fact, domain: Domain, ports: AgentPorts) -> Iterator[list[Event]]:
    """Perform ControlRequested."""
    event = fact.event
    assert isinstance(event, ControlRequested)
    try:
        bench = bench_of(domain, ports.line, ports.blobs)
        scores = bench.controls() if bench else controlled(domain, event.budget, event.seed)
    except (BlobError, BusError):
        raise
    except BoundaryError as cause:
        yield [ControlFailed(fact.envelope.id, str(cause))]
        return
    yield [ControlMeasured(fact.envelope.id, scores)]


class _Scores:
    """Scores the same answers on an item once: known from the log, from this shard, or asked of the domain."""

    def __init__(self, state: RunState, domain: Domain, bench: Bench | None, programs: Runners) -> None:
        self._state, self._domain, self._bench, self._programs = state, domain, bench, programs
        self._here: dict[tuple[str, str], Score] = {}

    def score(self, episode: Episode) -> tuple[Score, str, bool]:
        """(score, canonical answer, whether it had been scored before). A rollout that fails at any step is worth
        nothing."""
        item, answers = episode.slot.item, episode.answers
        if episode.read.failure is not None:
            return Score(0.0, False, episode.read.failure, episode.read.detail, {}), "", False
        text = "\n".join(rendered(self._domain, answer) for answer in answers)
        known = self._here.get((item, text)) or self._logged(item, text)
        score = known or self._asked(episode)
        self._here[item, text] = score
        return score, text, known is not None

    def _asked(self, episode: Episode) -> Score:
        item, answers = episode.slot.item, episode.answers
        if self._bench is not None:
            return self._bench.score(item, answers[0], asker(episode.slot))
        return worth(self._domain, item, answers, self._programs)

    def _logged(self, item: str, text: str) -> Score | None:
        rollout = self._state.scores.get((item, text))
        holders = (*self._state.evaluations.values(), *self._state.trainings.values())
        found = next((h.rollouts[rollout] for h in holders if rollout in h.rollouts), None) if rollout else None
        if found is None:
            return None
        earned = found.step_rewards if self._domain.spec.steps > 1 else ()
        return Score(found.reward, found.success, found.failure, found.detail, found.metrics, earned)


def _recorded(
    event: RolloutsRequested, episode: Episode, temperature: float, memo: _Scores, ports: AgentPorts
) -> RolloutRecorded:
    """The fact of one rollout, its trajectory stored first."""
    slot = episode.slot
    score, answer, reused = memo.score(episode)
    turns = _rewarded(episode, score)
    trajectory = Trajectory(slot.item, slot.seed, 0.0 if slot.greedy else temperature, turns, answer)
    return RolloutRecorded(
        evaluation=event.evaluation,
        purpose=event.purpose,
        round=event.round,
        split=slot.split,
        item=slot.item,
        index=slot.index,
        seed=slot.seed,
        greedy=slot.greedy,
        reward=score.reward,
        success=score.success,
        failure=score.failure,
        detail=score.detail[:DETAIL_CHARS],
        metrics=score.metrics,
        answer=answer,
        step_rewards=_steps(episode, score),
        prompt_tokens=sum(turn.prompt_tokens for turn in turns),
        completion_tokens=sum(turn.completion_tokens for turn in turns),
        trajectory=ports.blobs.put(trajectory.encoded(), TRAJECTORY_MEDIA),
        reused=reused,
        probe=slot.probe,
    )


def _steps(episode: Episode, score: Score) -> tuple[float, ...]:
    """What each step earned: one an answer, and one more for a step that failed."""
    if episode.read.failure is not None:
        return (0.0,) * (len(episode.answers) + 1)
    return score.steps or (*(0.0 for _ in episode.answers[1:]), score.reward)


def _rewarded(episode: Episode, score: Score) -> tuple[Turn, ...]:
    """The turns with what they earned: each step at the turn that answered it, or all of it at the last."""
    earned = dict(zip(episode.answered, score.steps, strict=True)) if score.steps else {}
    rest = {} if score.steps else {len(episode.turns) - 1: score.reward}
    return tuple(
        msgspec.structs.replace(turn, reward=(earned | rest).get(number, 0.0))
        for number, turn in enumerate(episode.turns)
    )


def _failed(event: RolloutsRequested, slot: Slot, error: str) -> RolloutFailed:
    return RolloutFailed(
        event.evaluation, event.purpose, event.round, slot.split, slot.item, slot.index, error[:DETAIL_CHARS]
    )


def _sampled(
    fact: Fact, rollouts: Sequence[RolloutRecorded], failed: int, domain: Domain, ports: AgentPorts, started: float
) -> ShardSampled:
    event = fact.event
    assert isinstance(event, RolloutsRequested)
    manifest = msgspec.structs.replace(ports.engine().manifest, sandbox_tier=_tier(domain, ports))
    return ShardSampled(
        fact.envelope.id,
        event.evaluation,
        event.purpose,
        event.shard,
        event.shards,
        event.round,
        len(rollouts),
        failed,
        sum(r.prompt_tokens for r in rollouts),
        sum(r.completion_tokens for r in rollouts),
        ports.clock() - started,
        manifest,
        event.retry,
    )


def _tier(domain: Domain, ports: AgentPorts) -> str:
    """How generated code is locked in: the harness's, and programs where answers are such."""
    own = ports.sandbox().tier
    return f"{own}{PROGRAMS}{ports.programs().tier}" if isinstance(domain, Programmed) else own
