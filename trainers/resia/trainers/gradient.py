"""What every step of a round goes over, and the gradient of one pass over it.

Micro-batches by token budget whose gradients add up to that of one batch. `prepare` does, once a round, what needs the
model before the first step: reference log-probabilities and values. Collaborators: objectives choose and weigh,
packing pads, policy scores; `rounds` steps. Knows nothing of optimisers, files or rounds.
"""

# ruff: noqa: N815 - a field that holds an array carries its shape

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from resia.events.settings import TrainingSettings

from .batch import Batch, Floats, Row
from .objectives import Objective, Selection, Tokens
from .packing import Padded, pack
from .policy import Policy, Scores

if TYPE_CHECKING:
    import torch


class MicroBatch(NamedTuple):
    """`rows` are indices into the selection; `reference_B_T` is 0 where the objective needs none."""

    rows: tuple[int, ...]
    padded: Padded
    reference_B_T: Floats


class Work(NamedTuple):
    """A round's selection, weighed as at its beginning, in micro-batches."""

    selection: Selection
    micro_batches: tuple[MicroBatch, ...]


class Gradient(NamedTuple):
    """Of one pass over a selection: the gradients themselves are left on the policy's weights. `kl` is the k3 estimate
    a completion token of KL(mu || pi), mu the behaviour policy; `ess` that of the rollouts' importance weights, before
    they are cut off."""

    loss: float
    kl: float
    clip_fraction: float
    ess: float


class _Scored(NamedTuple):
    """Of the whole selection without gradient: log-probabilities a micro-batch, values (R,) where there is a head."""

    logprobs: list[Floats]
    values_R: Floats


class _Part(NamedTuple):
    """Of one micro-batch: its share of the loss, clipped tokens, and log pi / mu of each row's tokens. `whole` is the
    step's loss where the pass itself weighed the rows."""

    loss: float
    clipped: int
    log_ratios: list[Floats]
    whole: float | None = None


def prepare(
    policy: Policy, objective: Objective, batch: Batch, settings: TrainingSettings, reference: bytes | None = None
) -> Work:
    """Choose, pack and weigh what the round learns from. `reference` is the adapter file of the reference policy, None
    for the base. Raises NoSignal when the batch holds nothing to learn from."""
    selection = objective.select(batch, settings)
    micro_batches = tuple(
        MicroBatch(rows, padded := policy.pad([selection.rows[i] for i in rows]), np.zeros_like(padded.logprobs_B_T))
        for rows in pack(selection.rows, settings.micro_tokens)
    )
    if "reference" in objective.asks(settings):
        with policy.standing_in(reference):
            scored = _score(policy, micro_batches)
        micro_batches = tuple(
            micro._replace(reference_B_T=logprobs_B_T)
            for micro, logprobs_B_T in zip(micro_batches, scored.logprobs, strict=True)
        )
    if "values" in objective.needs:
        selection = objective.estimate(selection, _score(policy, micro_batches).values_R, settings)
    return Work(selection, micro_batches)


def backward(policy: Policy, objective: Objective, work: Work, settings: TrainingSettings) -> Gradient:
    """Add the gradient of the whole selection's loss to the policy's weights, one micro-batch at a time."""
    selection, whole_loss = work.selection, None
    joined = "log_ratios" in objective.needs
    within = joined and len(work.micro_batches) == 1  # all the rows are in one pass, which needs none before it
    if joined and not within:
        selection, whole_loss = objective.reweigh(selection, _log_ratios(policy, work), settings)
    parts = policy.world.each(
        work.micro_batches,
        lambda micro: _pass(policy, objective, micro, selection, settings, reweigh=within),
        policy.weights.values(),
    )
    summed, clipped, log_ratios = 0.0, 0, list[Floats]()
    for part in parts:  # and not by `sum`, whose last bits depend on Python's version
        summed += part.loss
        clipped += part.clipped
        log_ratios += part.log_ratios
        whole_loss = part.whole if within else whole_loss
    rows = [selection.rows[i] for micro in work.micro_batches for i in micro.rows]
    log_ratio_N = np.concatenate(log_ratios)
    log_weights_S = np.array(list(_by_sample(rows, log_ratios).values()))
    loss = summed if whole_loss is None else whole_loss
    return Gradient(loss, k3(log_ratio_N), clipped / len(log_ratio_N), effective_sample_size(log_weights_S))


def _pass(
    policy: Policy,
    objective: Objective,
    micro: MicroBatch,
    selection: Selection,
    settings: TrainingSettings,
    *,
    reweigh: bool,
) -> _Part:
    """Add the gradient of one micro-batch to the policy's weights; with `reweigh` it is the only one, and the weights
    of its rows come from its own log-probabilities."""
    scores, whole = policy.score(micro.padded), None
    if reweigh:
        apart = _by_row(_array(scores.logprobs_B_T) - micro.reference_B_T, micro)
        rows = [selection.rows[i] for i in micro.rows]
        selection, whole = objective.reweigh(selection, _by_sample(rows, apart), settings)
    tokens = _tokens(scores, micro, selection)
    part = objective.loss(tokens, settings)
    scaled = part.total / selection.normalizer
    if part.values is not None:
        scaled = scaled + part.values / len(selection.rows)
    scaled.backward()
    log_ratios = _by_row(_array(tokens.logprobs_B_T) - micro.padded.logprobs_B_T, micro)
    return _Part(float(scaled.detach()), int(part.clipped_B_T.sum()), log_ratios, whole)


def _tokens(scores: Scores, micro: MicroBatch, selection: Selection) -> Tokens:
    """The micro-batch as a loss sees it; plain arrays in the precision of its log-probabilities."""
    import torch

    padded, rows, logprobs_B_T = micro.padded, list(micro.rows), scores.logprobs_B_T

    def like(array: Any) -> torch.Tensor:
        return torch.as_tensor(array, dtype=logprobs_B_T.dtype, device=logprobs_B_T.device)

    return Tokens(
        logprobs_B_T=logprobs_B_T,
        old_logprobs_B_T=like(padded.logprobs_B_T),
        reference_B_T=like(micro.reference_B_T),
        advantages_B_T=like(np.where(padded.mask_B_T, selection.advantages_R[rows][:, None], 0.0)),
        mask_B_T=like(padded.mask_B_T).bool(),
        values_B=scores.values_B,
        returns_B=like(selection.returns_R[rows]) if len(selection.returns_R) else None,
    )


def _score(policy: Policy, micro_batches: Sequence[MicroBatch]) -> _Scored:
    import torch

    def score(micro: MicroBatch) -> tuple[Floats, list[float]]:
        scores = policy.score(micro.padded)
        return _array(scores.logprobs_B_T), [] if scores.values_B is None else scores.values_B.tolist()

    with torch.no_grad():
        scored = policy.world.each(micro_batches, score)
    values: dict[int, float] = {}
    for micro, (_, values_B) in zip(micro_batches, scored, strict=True):
        values.update(zip(micro.rows, values_B, strict=False))  # empty without a head
    return _Scored([logprobs_B_T for logprobs_B_T, _ in scored], np.array([values[row] for row in sorted(values)]))


def _log_ratios(policy: Policy, work: Work) -> dict[int, float]:
    """log pi / pi_ref of every sample, over all its completion tokens."""
    rows: list[Row] = []
    apart: list[Floats] = []
    for micro, logprobs_B_T in zip(work.micro_batches, _score(policy, work.micro_batches).logprobs, strict=True):
        apart += _by_row(logprobs_B_T - micro.reference_B_T, micro)
        rows += [work.selection.rows[i] for i in micro.rows]
    return _by_sample(rows, apart)


def _array(tensor: torch.Tensor) -> Floats:
    found: Floats = tensor.detach().double().cpu().numpy()
    return found


def _by_row(values_B_T: Floats, micro: MicroBatch) -> list[Floats]:
    """The values of each row's completion tokens."""
    return [values_T[mask_T] for values_T, mask_T in zip(values_B_T, micro.padded.mask_B_T, strict=True)]


def _by_sample(rows: Sequence[Row], values: Sequence[Floats]) -> dict[int, float]:
    """Sums over all tokens of all turns of each sample, in the order of samples."""
    sums: dict[int, float] = {}
    for row, values_T in zip(rows, values, strict=True):
        sums[row.sample] = sums.get(row.sample, 0.0) + float(values_T.sum())
    return dict(sorted(sums.items()))


def k3(log_ratio_N: Floats) -> float:
    """Mean of rho - 1 - log rho with rho = pi/mu on tokens drawn from mu: unbiased for KL(mu || pi), never negative
    (Schulman, "Approximating KL divergence", 2020)."""
    with np.errstate(over="ignore"):  # whoever reads it refuses infinity
        return float(np.mean(np.expm1(log_ratio_N) - log_ratio_N))


def effective_sample_size(log_weights_S: Floats) -> float:
    """(sum w)^2 / (n sum w^2) in (0, 1] for w = exp(log_weights_S), the rollouts' importance weights."""
    weights_S = np.exp(log_weights_S - log_weights_S.max())
    return float(weights_S.sum() ** 2 / (len(weights_S) * (weights_S**2).sum()))
