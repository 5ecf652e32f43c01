"""The weight lever: TrainingRequested -> (RoundRequested -> StepTrained*, RoundTrained, fresh rollouts)* ->
AdapterTrained | TrainingFailed."""

from __future__ import annotations

import msgspec

from .blob import Blob
from .evaluation import Manifest
from .settings import Algorithm, TrainingSettings


class TrainingRequested(msgspec.Struct, frozen=True):
    """Train from the champion's adapter (None: fresh) with the champion's harness frozen.

    Round 0 learns from the search rollouts of `evaluation`, the champion's; later rounds from fresh ones.
    """

    iteration: int
    algorithm: Algorithm
    settings: TrainingSettings
    harness: Blob
    adapter: Blob | None
    evaluation: str
    seed: int


class RoundRequested(msgspec.Struct, frozen=True):
    """One round of updates on `rollouts` (event ids, sorted), from the adapter and optimiser of the round before."""

    training: str
    algorithm: Algorithm
    round: int
    steps: int
    rollouts: tuple[str, ...]
    adapter: Blob | None
    optimizer: Blob | None
    seed: int


class Checkpoint(msgspec.Struct, frozen=True):
    """Where a round can be gone on with after a step: the adapter (float32 at least), the optimiser's moments and
    counts, and what both depend on. A round has no other state: nothing in it is random and every step goes over the
    whole batch in one order."""

    adapter: Blob
    optimizer: Blob
    manifest: Manifest


class StepTrained(msgspec.Struct, frozen=True):
    """One optimiser step. `kl` is per token to the behaviour policy (k3), `ess` of the importance weights in (0, 1].

    `scale` multiplies the optimiser's own step. `step_kl` is KL(pi after || pi before) of this step, in nats a
    completion token, None where training.kl_target is. `checkpoint` is None where the round takes none here.
    """

    training: str
    round: int
    step: int
    loss: float
    kl: float
    grad_norm: float
    clip_fraction: float
    ess: float
    learning_rate: float
    tokens: int
    tokens_per_s: float
    scale: float = 1.0
    step_kl: float | None = None
    checkpoint: Checkpoint | None = None


class RoundTrained(msgspec.Struct, frozen=True):
    """Outcome of a RoundRequested. `used` of the rollouts carried gradient; `reward_mean` is over all of them.

    `capped` counts the samples whose advantage was cut off. `steps` 0: a later round's rollouts held nothing to learn
    from, and the adapter is the round's own start.
    """

    request: str
    training: str
    algorithm: Algorithm
    round: int
    adapter: Blob
    optimizer: Blob | None
    steps: int
    used: int
    dropped: int
    reward_mean: float
    tokens: int
    manifest: Manifest
    capped: int = 0


class AdapterTrained(msgspec.Struct, frozen=True):
    """The update is done: `adapter` descends from `parent` (None: the base), `rank` of the LoRA matrices."""

    training: str
    iteration: int
    algorithm: Algorithm
    adapter: Blob
    parent: Blob | None
    rank: int
    rounds: int
    steps: int
    tokens: int
    base_digest: str


class TrainingFailed(msgspec.Struct, frozen=True):
    """The champion is untouched. `step` counts from 0 within the round, -1 before the first."""

    training: str
    iteration: int
    algorithm: Algorithm
    round: int
    step: int
    error: str
