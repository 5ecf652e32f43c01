"""One training round: a few optimiser steps on one batch, a record after each, then the new adapter.

`train_round` is a generator so that the caller can append each step as a fact when it happens. Every step goes over
the whole selection in micro-batches whose gradients add up to that of one batch. Collaborators: objectives, packing,
policy, optimizer. The clock is handed in; nothing is sampled or stored here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from resia.events.errors import TrainerError
from resia.events.settings import Algorithm, TrainingSettings

from .batch import Batch, Floats
from .objectives import Objective, Selection, objective_of
from .optimizer import adamw, encode_optimizer, load_optimizer
from .packing import Padded, pack, pad
from .policy import Policy

if TYPE_CHECKING:
    import torch


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
    """`used` samples carried gradient, `dropped` did not; `reward_mean` is over both; `tokens` over all steps."""

    adapter: bytes
    optimizer: bytes
    steps: int
    used: int
    dropped: int
    reward_mean: float
    tokens: int


class Gradient(NamedTuple):
    """Of one pass over a selection: the gradients themselves are left on the policy's weights."""

    loss: float
    kl: float
    clip_fraction: float
    ess: float


def train_round(
    policy: Policy,
    batch: Batch,
    algorithm: Algorithm,
    settings: TrainingSettings,
    steps: int,
    optimizer: bytes | None,
    clock: Callable[[], float],
) -> Generator[Step, None, RoundResult]:
    """Take `steps` steps from the policy's current weights and from `optimizer` (None: fresh AdamW).

    `clock` is monotonic seconds. Raises TrainerError when the batch holds nothing to learn from (step -1), or when a
    loss, gradient or statistic is not finite or the first gradient is zero; the step at fault leaves the weights as
    they were. Earlier steps of the round stay in `policy`, whose caller sets an adapter before it is used again.
    """
    if steps < 1:
        raise TrainerError(f"a round of {steps} steps trains nothing: ask for at least 1")
    objective = objective_of(algorithm)
    selection = objective.select(batch, settings)
    micro_batches = micro_batches_of(selection, settings.micro_tokens)
    tokens = sum(len(row.prompt_ids) + len(row.completion_ids) for row in selection.rows)
    engine = adamw(policy.weights, settings)
    if optimizer is not None:
        load_optimizer(engine, policy.weights, optimizer)
    for step in range(steps):
        started = clock()
        gradient, grad_norm = _step(policy, objective, selection, micro_batches, settings, engine, step)
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
    )


def micro_batches_of(selection: Selection, micro_tokens: int) -> list[tuple[tuple[int, ...], Padded]]:
    """Each micro-batch's row indices into the selection, and its arrays."""
    return [
        (rows, pad([selection.rows[i] for i in rows], selection.advantages_R[list(rows)]))
        for rows in pack(selection.rows, micro_tokens)
    ]


def _step(
    policy: Policy,
    objective: Objective,
    selection: Selection,
    micro_batches: list[tuple[tuple[int, ...], Padded]],
    settings: TrainingSettings,
    engine: Any,
    step: int,
) -> tuple[Gradient, float]:
    import torch

    engine.zero_grad(set_to_none=True)
    try:
        gradient = backward(policy, objective, selection, micro_batches, settings)
        norm = float(torch.nn.utils.clip_grad_norm_(policy.weights.values(), settings.max_grad_norm))
    except (RuntimeError, MemoryError) as cause:
        raise TrainerError(f"step {step} failed: {type(cause).__name__}: {cause}", step) from cause
    for name, value in (*gradient._asdict().items(), ("grad_norm", norm)):
        if not math.isfinite(value):
            raise TrainerError(f"step {step} has {name} {value}, so its update was not made", step)
    if step == 0 and norm == 0.0:
        raise TrainerError(
            "the first gradient is exactly zero: check that the recorded log-probabilities are of this policy", step
        )
    engine.step()
    return gradient, norm


def backward(
    policy: Policy,
    objective: Objective,
    selection: Selection,
    micro_batches: list[tuple[tuple[int, ...], Padded]],
    settings: TrainingSettings,
) -> Gradient:
    """Add the gradient of the whole selection's loss to the policy's weights, one micro-batch at a time."""
    import torch

    loss, clipped, log_ratios = 0.0, 0, []
    samples: list[int] = []
    for rows, padded in micro_batches:
        logprobs_B_T = policy.logprobs(padded)

        def like(array: Any, logprobs: torch.Tensor = logprobs_B_T) -> torch.Tensor:
            return torch.as_tensor(array, dtype=logprobs.dtype, device=logprobs.device)

        old_B_T, mask_B_T = like(padded.logprobs_B_T), like(padded.mask_B_T).bool()
        part = objective.loss(logprobs_B_T, old_B_T, like(padded.advantages_B_T), mask_B_T, settings)
        scaled = part.total / selection.normalizer
        scaled.backward()
        loss += float(scaled.detach())
        clipped += int(part.clipped_B_T.sum())
        log_ratio_B_T = (logprobs_B_T.detach() - old_B_T).double().cpu().numpy()
        log_ratios += [log_ratio_B_T[b][padded.mask_B_T[b]] for b in range(len(rows))]
        samples += [selection.rows[i].sample for i in rows]
    log_ratio_N = np.concatenate(log_ratios)
    sums_S = np.zeros(max(samples) + 1)
    np.add.at(sums_S, samples, [float(row.sum()) for row in log_ratios])
    return Gradient(
        loss, k3(log_ratio_N), clipped / len(log_ratio_N), effective_sample_size(sums_S[np.unique(samples)])
    )


def k3(log_ratio_N: Floats) -> float:
    """Mean of rho - 1 - log rho with rho = pi/mu on tokens drawn from mu: unbiased for KL(mu || pi), never negative
    (Schulman, "Approximating KL divergence", 2020)."""
    return float(np.mean(np.expm1(log_ratio_N) - log_ratio_N))


def effective_sample_size(log_weights_S: Floats) -> float:
    """(sum w)^2 / (n sum w^2) in (0, 1] for w = exp(log_weights_S), the rollouts' importance weights."""
    weights_S = np.exp(log_weights_S - log_weights_S.max())
    return float(weights_S.sum() ** 2 / (len(weights_S) * (weights_S**2).sum()))
