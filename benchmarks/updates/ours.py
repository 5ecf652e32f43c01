"""This project's side: what the trainer does between two step facts, and the log-probabilities of the given batch."""

from __future__ import annotations

import time
from pathlib import Path
from typing import cast

import msgspec
import numpy as np

from benchmarks.updates import given
from resia.events.settings import Algorithm
from resia.trainers.objectives import objective_of
from resia.trainers.packing import pad
from resia.trainers.policy import Policy
from resia.trainers.rounds import train_round

AWAY = 0.1  # standard deviation of a token's log-ratio to the base


def run(task: given.Task, sampled: list[given.Sampled], meter: given.Meter) -> None:
    """Rounds of one step on the same batch, reference pass and fresh optimiser included."""
    settings, algorithm = given.settings(), cast(Algorithm, task.algorithm)
    policy = _policy(task.model)
    policy.set_adapter(None, 0, values="values" in objective_of(algorithm).needs)
    made = given.batch(sampled)
    meter.loaded()
    for _ in range(1 + task.updates):
        meter.begin()
        step = next(train_round(policy, made, algorithm, settings, 1, None, time.perf_counter))
        meter.end()
        meter.loss(step.loss)


def record(model: str, sampled: list[given.Sampled], path: Path) -> None:
    """Write the batch with log-probabilities of a policy a little away from the base model, so that no loss is 0 by
    symmetry."""
    import torch

    policy, made, rng = _policy(model), [], np.random.default_rng(0)
    policy.set_adapter(None, 0)
    rows = given.rows_of(given.batch(sampled))
    with torch.no_grad():
        for one, row in zip(sampled, rows, strict=True):
            own = policy.logprobs(pad([row]))[0].double().numpy()
            away = np.minimum(own + rng.normal(0.0, AWAY, len(own)), 0.0)
            made.append(msgspec.structs.replace(one, logprobs=tuple(away.tolist())))
    path.write_bytes(msgspec.json.encode(made))


def _policy(model: str) -> Policy:
    return Policy(given.load_model(model), given.settings(), "base")
