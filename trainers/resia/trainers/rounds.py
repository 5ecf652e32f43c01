"""One training round: a few optimiser steps on one batch, a record after each, then the new adapter.

`train_round` is a generator so that the caller can append each step as a fact when it happens. Every step goes over
the whole selection, so a round that was interrupted goes on from weights and moments alone. Collaborators: objectives,
gradient, policy, optimizer, step_size. The clock is handed in; nothing is sampled or stored here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from resia.events.errors import TrainerError
from resia.events.settings import Algorithm, TrainingSettings

from .batch import Batch, Row
from .gradient import Gradient, Work, backward, prepare
from .objectives import Objective, objective_of
from .optimizer import adamw, encode_optimizer, load_optimizer
from .policy import Policy
from .step_size import Move, take_step


class Saved(NamedTuple):
    """All that the steps after `step` (from 0) depend on beside the round's own beginning: the two files."""

    step: int
    adapter: bytes
    optimizer: bytes


class Step(NamedTuple):
    """One optimiser step, measured before its update. `kl` is the k3 estimate a completion token of KL(mu || pi), mu
    the behaviour policy; `ess` that of the rollouts' importance weights; `grad_norm` before clipping; `tokens` are
    prompt and completion tokens as recorded, shared prefixes counted for every row. `scale` and `step_kl` are those of
    `step_size.Move`; `saved` is there every `checkpoint_every` steps, and not after the last."""

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
    saved: Saved | None = None


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
    resume: Saved | None = None,
) -> Generator[Step, None, RoundResult]:
    """Take `steps` steps from the policy's current weights and from `optimizer` (None: fresh AdamW).

    The policy has a value head exactly where the objective needs one. `clock` is monotonic seconds; `reference` is the
    adapter file of the reference policy, None for the base. With `resume` the round goes on after that step; the
    policy still has the weights that the round began with, from which values and reference are taken once more.
    Raises NoSignal when the batch holds nothing to learn from, TrainerError when the round cannot begin (step -1) or a
    loss, gradient or statistic is not finite or the first gradient is zero; the step at fault leaves the weights as
    they were. Earlier steps of the round stay in `policy`, whose caller sets an adapter before it is used again.
    """
    objective = _checked(policy, batch, algorithm, steps)
    with _torch_errors(-1):
        work = prepare(policy, objective, batch, settings, reference)
    selection = work.selection
    tokens = sum(len(row.prompt_ids) + len(row.completion_ids) for row in selection.rows)
    first, engine = _engine(policy, settings, optimizer, resume)
    for step in range(first, steps):
        started = clock()
        gradient, grad_norm, move = _step(policy, objective, work, settings, engine, step)
        yield Step(
            step=step,
            **gradient._asdict(),
            grad_norm=grad_norm,
            learning_rate=settings.learning_rate,
            tokens=tokens,
            tokens_per_s=tokens / max(clock() - started, 1e-9),
            scale=move.scale,
            step_kl=move.kl,
            saved=_saved(policy, engine, step) if _is_due(settings, step, steps) else None,
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


def _checked(policy: Policy, batch: Batch, algorithm: Algorithm, steps: int) -> Objective:
    """The objective, where policy and batch fit it and each other."""
    if steps < 1:
        raise TrainerError(f"a round of {steps} steps trains nothing: ask for at least 1")
    objective = objective_of(algorithm)
    if ("values" in objective.needs) != policy.has_values:
        raise TrainerError(
            f"{algorithm} on a policy with{'' if policy.has_values else 'out'} a value head: set its adapter"
        )
    for sample in batch.samples:
        for row in sample.turns:
            _require_tokens(policy.vocabulary, sample.id, row)
    return objective


def _require_tokens(vocabulary: int, rollout: str, row: Row) -> None:
    """A token that the model does not have would end the process on a GPU."""
    for token in (*row.prompt_ids, *row.completion_ids):
        if not 0 <= token < vocabulary:
            raise TrainerError(
                f"turn {row.turn} of rollout {rollout} has token {token}, but this model's vocabulary has {vocabulary}:"
                " the rollouts are of another model"
            )


def _engine(
    policy: Policy, settings: TrainingSettings, optimizer: bytes | None, resume: Saved | None
) -> tuple[int, Any]:
    """The step to take first, and the optimiser before it; the policy gets the weights before it."""
    engine = adamw(policy.weights, settings)
    if resume is not None:
        policy.restore(resume.adapter)
        optimizer = resume.optimizer
    if optimizer is not None:
        load_optimizer(engine, policy.weights, optimizer)
    return (resume.step + 1 if resume else 0), engine


def _is_due(settings: TrainingSettings, step: int, steps: int) -> bool:
    """The last step needs no checkpoint, as the round's own adapter and optimiser follow it."""
    every = settings.checkpoint_every
    return every > 0 and (step + 1) % every == 0 and step + 1 < steps


def _saved(policy: Policy, engine: Any, step: int) -> Saved:
    return Saved(step, policy.adapter_bytes(), encode_optimizer(engine, policy.weights))


@contextmanager
def _torch_errors(step: int) -> Iterator[None]:
    """What torch says of shapes, memory or devices, as the failure of a step (-1: before the first)."""
    try:
        yield
    except (RuntimeError, MemoryError) as cause:
        what = f"step {step}" if step >= 0 else "the round's first pass"
        said = " ".join(str(cause).split())  # torch may say it on many lines
        raise TrainerError(f"{what} failed: {type(cause).__name__}: {said}", step) from cause


def _step(
    policy: Policy, objective: Objective, work: Work, settings: TrainingSettings, engine: Any, step: int
) -> tuple[Gradient, float, Move]:
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
    with _torch_errors(step):
        return gradient, norm, take_step(policy, work, settings, engine, step)
