"""One training round: a few optimiser steps on one batch, a record after each, then the new adapter.

`train_round` is a generator so that the caller can append each step as a fact when it happens. Every step goes over
the whole selection. Collaborators: objectives, gradient, policy, optimizer. The clock is handed in; nothing is sampled
or stored here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from resia.events.errors import TrainerError
from resia.events.settings import Algorithm, TrainingSettings

from .batch import Batch
from .gradient import Gradient, Work, backward, prepare
from .objectives import Objective, objective_of
from .optimizer import adamw, encode_optimizer, load_optimizer
from .policy import Policy


class Step(NamedTuple):
    """One optimiser step, measured before its update. `kl` is the k3 estimate a completion token of KL(mu || pi), mu
    the behaviour policy; `ess` that of the rollouts' importance weights; `grad_norm` before clipping; `tokens` are
    prompt and completion tokens as recorded, shared prefixes counted for every row."""

    step: int
    loss: float
    kl: float
    grad_norm: float
    clip_fraction: float
    ess: float
    learning_rate: float
    tokens: int
    tokens_per_s: float


class RoundResult(NamedTuple):
    """`used` samples carried gradient, `dropped` did not; `reward_mean` is over both; `tokens` over all steps; `capped`
    samples had their advantage cut off."""

    adapter: bytes
    optimizer: bytes
    steps: int
    used: int
    dropped: int
    reward_mean: float
    tokens: int
    capped: int


def train_round(
    policy: Policy,
    batch: Batch,
    algorithm: Algorithm,
    settings: TrainingSettings,
    steps: int,
    optimizer: bytes | None,
    clock: Callable[[], float],
    reference: bytes | None = None,
) -> Generator[Step, None, RoundResult]:
    """Take `steps` steps from the policy's current weights and from `optimizer` (None: fresh AdamW).

    The policy has a value head exactly where the objective needs one. `clock` is monotonic seconds; `reference` is the
    adapter file of the reference policy, None for the base. Raises NoSignal when the batch holds nothing to learn from,
    TrainerError when the round cannot begin (step -1) or a loss, gradient or statistic is not finite or the first
    gradient is zero; the step at fault leaves the weights as they were. Earlier steps of the round stay in `policy`,
    whose caller sets an adapter before it is used again.
    """
    if steps < 1:
        raise TrainerError(f"a round of {steps} steps trains nothing: ask for at least 1")
    objective = objective_of(algorithm)
    if ("values" in objective.needs) != policy.has_values:
        raise TrainerError(
            f"{algorithm} on a policy with{'' if policy.has_values else 'out'} a value head: set its adapter"
        )
    with _torch_errors(-1):
        work = prepare(policy, objective, batch, settings, reference)
    selection = work.selection
    tokens = sum(len(row.prompt_ids) + len(row.completion_ids) for row in selection.rows)
    engine = adamw(policy.weights, settings)
    if optimizer is not None:
        load_optimizer(engine, policy.weights, optimizer)
    for step in range(steps):
        started = clock()
        gradient, grad_norm = _step(policy, objective, work, settings, engine, step)
        yield Step(
            step=step,
            **gradient._asdict(),
            grad_norm=grad_norm,
            learning_rate=settings.learning_rate,
            tokens=tokens,
            tokens_per_s=tokens / max(clock() - started, 1e-9),
        )
    return RoundResult(
        adapter=policy.adapter_bytes(),
        optimizer=encode_optimizer(engine, policy.weights),
        steps=steps,
        used=selection.used,
        dropped=selection.dropped,
        reward_mean=float(batch.rewards().mean()),
        tokens=tokens * steps,
        capped=selection.capped,
    )


@contextmanager
def _torch_errors(step: int) -> Iterator[None]:
    """What torch says of shapes, memory or devices, as the failure of a step (-1: before the first)."""
    try:
        yield
    except (RuntimeError, MemoryError) as cause:
        what = f"step {step}" if step >= 0 else "the round's first pass"
        raise TrainerError(f"{what} failed: {type(cause).__name__}: {cause}", step) from cause


def _step(
    policy: Policy, objective: Objective, work: Work, settings: TrainingSettings, engine: Any, step: int
) -> tuple[Gradient, float]:
    import torch

    engine.zero_grad(set_to_none=True)
    with _torch_errors(step):
        gradient = backward(policy, objective, work, settings)
        norm = float(torch.nn.utils.clip_grad_norm_(policy.weights.values(), settings.max_grad_norm))
    for name, value in (*gradient._asdict().items(), ("grad_norm", norm)):
        if not math.isfinite(value):
            raise TrainerError(f"step {step} has {name} {value}, so its update was not made", step)
    if step == 0 and norm == 0.0:
        raise TrainerError(
            "the first gradient is exactly zero: check that the recorded log-probabilities are of this policy", step
        )
    engine.step()
    return gradient, norm
