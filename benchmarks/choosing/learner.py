"""The six real objectives on a tabular softmax policy: rollouts, updates, and the features of the first pass.

`select`, `estimate`, `reweigh` and `loss` are those of `resia.trainers.objectives`, rounds and steps those of the
trainer's own plan; only the model is a table and the optimiser is plain gradient descent. Its step size is set for each
algorithm by a KL target: S steps of one update aim, each, at TRUST / S^2 nats a decision, so that S steps in one
direction go as far as one of TRUST. The first gradient fixes the size; later steps may go CAP times the target.
"""

# ruff: noqa: N815 - a field that holds an array carries its shape

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from benchmarks.choosing.worlds import Floats, Ints, World
from resia.agents.landscape import measure
from resia.events import Algorithm, Blob, Landscape, RolloutRecorded, TrainingSettings
from resia.events.errors import NoSignal
from resia.events.settings import OFF_POLICY
from resia.trainers.batch import Batch, Row, Sample
from resia.trainers.decider import plan
from resia.trainers.objectives import Objective, Selection, Tokens, objective_of

if TYPE_CHECKING:
    import torch

TRUST = 0.5  # nats a decision
CAP = 4.0
BISECTIONS = 50
LARGEST = 1e6  # step size from which the search for one comes down
VALUE_RATE = 0.5  # share of the way to the mean return that a step moves the value of a turn
PROMPT_TOKENS, ANSWER_TOKENS = 100, 50  # a turn
NO_BLOB = Blob("0" * 64, 0)


class Rollouts(NamedTuple):
    """N rollouts: item, actions of each turn and their log-probabilities."""

    item_N: Ints
    action_N_T: Ints
    logprob_N_T: Floats


def sample(world: World, theta_T_A: Floats, items: Ints, rng: np.random.Generator) -> Rollouts:
    """One rollout for each of `items`."""
    chances = world.probabilities(theta_T_A)[items]
    points = rng.random(chances.shape[:2])[..., None]
    actions = np.minimum((chances.cumsum(axis=2) < points).sum(axis=2), chances.shape[2] - 1)
    taken = np.take_along_axis(chances, actions[..., None], axis=2)[..., 0]
    return Rollouts(items, actions, np.log(taken))


def _of(table_I_T_A: Floats, rollouts: Rollouts) -> Floats:
    """(N, T): the table at each action."""
    turns = np.arange(rollouts.action_N_T.shape[1])
    found: Floats = table_I_T_A[rollouts.item_N[:, None], turns, rollouts.action_N_T]
    return found


def batch(world: World, rollouts: Rollouts) -> Batch:
    """What the trainer would build of these rollouts: a turn is one prompt token and one answer token."""
    rewards_N_T = _of(world.reward_I_T_A, rollouts)
    success_N = _of(world.utility_I_T_A, rollouts).sum(axis=1) >= world.success_at
    samples = []
    for n, item in enumerate(rollouts.item_N.tolist()):
        turns = tuple(
            Row(n, t, (item,), (int(action),), (float(logprob),), 1.0, float(reward))
            for t, (action, logprob, reward) in enumerate(
                zip(rollouts.action_N_T[n], rollouts.logprob_N_T[n], rewards_N_T[n], strict=True)
            )
        )
        reward = float(rewards_N_T[n].sum())
        samples.append(Sample(f"{n:05d}", f"{item:03d}", reward, bool(success_N[n]), None, turns))
    return Batch(tuple(samples))


def features(world: World, rollouts: Rollouts, seed: int) -> Landscape:
    """The real features of these rollouts, as the feedback role takes them."""
    rewards_N_T = _of(world.reward_I_T_A, rollouts)
    success_N = _of(world.utility_I_T_A, rollouts).sum(axis=1) >= world.success_at
    turns = rewards_N_T.shape[1]
    spent = PROMPT_TOKENS * turns, ANSWER_TOKENS * turns
    recorded = [
        RolloutRecorded(
            "e", "candidate", 0, "search", f"{item:03d}", n, n, False, float(steps.sum()), bool(success),
            None if success else "wrong", "", {}, "", tuple(steps.tolist()), *spent, NO_BLOB,
        )
        for n, (item, steps, success) in enumerate(zip(rollouts.item_N, rewards_N_T, success_N, strict=True))
    ]  # fmt: skip
    a_pass = world.search * 8 * sum(spent)
    settings = TrainingSettings()
    return measure(
        recorded,
        token_budget_left=round(world.passes * a_pass),
        update_tokens=settings.groups * settings.group_size * sum(spent),
        ess=1.0,
        kl_per_token=0.0,
        weight_trials=(world.retained, world.lost),
        seed=seed,
    )


def settings_for(world: World) -> TrainingSettings:
    """The defaults, with as many rounds as the budget pays for: the first learns from what is recorded."""
    settings = TrainingSettings()
    fresh = int(world.passes * world.search * 8 / (settings.groups * settings.group_size)) if world.passes > 4 else 0
    return TrainingSettings(rounds=min(settings.rounds, 1 + fresh))


def train(
    world: World, algorithm: Algorithm, recorded: Batch, rng: np.random.Generator, trust: float = TRUST
) -> Floats:
    """theta (T, A) after one update by `algorithm` that begins with the `recorded` rollouts and may go `trust` nats a
    decision; zeros where its data hold nothing to learn from."""
    settings, objective = settings_for(world), objective_of(algorithm)
    schedule = plan(algorithm, settings)
    learner = _Learner(world, objective, settings, trust / schedule.total**2)
    for number in range(schedule.rounds):
        fresh = number > 0 and algorithm not in OFF_POLICY
        given = batch(world, _fresh(world, learner.theta_T_A, settings, number, rng)) if fresh else recorded
        try:
            learner.round(given, schedule.steps(number))
        except NoSignal:
            continue
    return learner.theta_T_A


def _fresh(
    world: World, theta_T_A: Floats, settings: TrainingSettings, number: int, rng: np.random.Generator
) -> Rollouts:
    """A training round's rollouts, of the items whose turn it is."""
    chosen = [(number * settings.groups + n) % world.search for n in range(settings.groups)]
    return sample(world, theta_T_A, np.repeat(chosen, settings.group_size), rng)


class _Learner:
    """theta and the values of the turns, moved by the gradient of a real objective."""

    def __init__(self, world: World, objective: Objective, settings: TrainingSettings, target: float) -> None:
        self._world, self._objective, self._settings, self._target = world, objective, settings, target
        self.theta_T_A = np.zeros(world.base_I_T_A.shape[1:])
        self._value_T = np.zeros(len(self.theta_T_A))
        self._size: float | None = None

    def round(self, given: Batch, steps: int) -> None:
        selection = self._objective.select(given, self._settings)
        rows = selection.rows
        if "values" in self._objective.needs:
            values_R = self._value_T[[row.turn for row in rows]]
            selection = self._objective.estimate(selection, values_R, self._settings)
        for _ in range(steps):
            self._move(self._gradient(selection))
            self._learn_values(selection)

    def _gradient(self, selection: Selection) -> Floats:
        import torch

        theta = torch.tensor(self.theta_T_A, requires_grad=True)
        rows = selection.rows
        item, turn, action = (
            torch.tensor(column)
            for column in zip(*((r.prompt_ids[0], r.turn, r.completion_ids[0]) for r in rows), strict=True)
        )
        base = torch.as_tensor(self._world.base_I_T_A)[item, turn]
        logprobs_B, reference_B = (
            torch.log_softmax(logits, dim=1).gather(1, action[:, None])[:, 0] for logits in (base + theta[turn], base)
        )
        if "log_ratios" in self._objective.needs:
            apart = (logprobs_B - reference_B).detach().numpy()
            ratios: dict[int, float] = {}
            for row, value in zip(rows, apart.tolist(), strict=True):
                ratios[row.sample] = ratios.get(row.sample, 0.0) + value
            selection, _ = self._objective.reweigh(selection, ratios, self._settings)
        loss = self._objective.loss(self._tokens(selection, logprobs_B, reference_B), self._settings)
        (loss.total / selection.normalizer).backward()
        assert theta.grad is not None
        found: Floats = theta.grad.numpy()
        return found

    def _tokens(self, selection: Selection, logprobs_B: torch.Tensor, reference_B: torch.Tensor) -> Tokens:
        """Every turn is one completion token. A rollout's turns are rows of their own, as in the trainer."""
        import torch

        def column(values: Any) -> torch.Tensor:
            return torch.as_tensor(np.asarray(values, dtype=np.float64))[:, None]

        old = [row.logprobs[0] for row in selection.rows]
        valued = len(selection.returns_R) > 0
        return Tokens(
            logprobs_B[:, None],
            column(old),
            reference_B[:, None].detach(),
            column(selection.advantages_R),
            torch.ones((len(old), 1), dtype=torch.bool),
            torch.zeros(len(old), dtype=torch.float64) if valued else None,
            column(selection.returns_R)[:, 0] if valued else None,
        )

    def _move(self, gradient_T_A: Floats) -> None:
        if not np.abs(gradient_T_A).max() > 0:
            return
        if self._size is None:
            self._size = self._largest(gradient_T_A, self._target, LARGEST)
        size = self._largest(gradient_T_A, CAP * self._target, self._size)
        self.theta_T_A = self.theta_T_A - size * gradient_T_A

    def _largest(self, gradient_T_A: Floats, target: float, highest: float) -> float:
        """The step size up to `highest` whose KL is `target`, by bisection."""

        def kl_at(size: float) -> float:
            return self._world.divergence(self.theta_T_A - size * gradient_T_A, self.theta_T_A)

        if kl_at(highest) <= target:
            return highest
        low, high = 0.0, highest
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            low, high = (middle, high) if kl_at(middle) <= target else (low, middle)
        return low

    def _learn_values(self, selection: Selection) -> None:
        if len(selection.returns_R):
            turns = np.array([row.turn for row in selection.rows])
            for t in range(len(self._value_T)):
                self._value_T[t] += VALUE_RATE * (selection.returns_R[turns == t].mean() - self._value_T[t])
