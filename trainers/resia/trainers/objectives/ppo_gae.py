"""PPO with generalised advantage estimation over turns and a value head on the trunk.

A step is a turn: its state is the prompt, its action the completion, its reward what the turn earned. V_t is the value
head's estimate at the last prompt token of turn t, delta_t = r_t + gamma V_{t+1} - V_t with V = 0 after the last turn,
A_t = sum_l (gamma lambda)^l delta_{t+l}, and the return is A_t + V_t. Advantages and returns are taken once a round,
before its first step. Every completion token of a turn has the turn's advantage; what a tool said stands in the next
prompt, so it has neither loss nor value. A rollout whose turns record no reward earns its own on the last turn.
The loss is the clipped ratio, mean over completion tokens, plus `value_coefficient` times the mean over turns of
(V_t - return)^2 / 2. Sources: Schulman et al., arXiv:1506.02438 and arXiv:1707.06347; turns as steps: Li et al.,
arXiv:2512.17008.
"""

from __future__ import annotations

import numpy as np

from resia.events.errors import NoSignal
from resia.events.settings import TrainingSettings
from resia.trainers.batch import Batch, Floats, Row, Sample

from .base import Loss, Need, Objective, Selection, Tokens, token_mean
from .groups import EQUAL_REWARDS_STD
from .ratio import clipped_tokens


def with_reward(sample: Sample) -> Sample:
    """The sample with its reward on the last turn where no turn has one."""
    if any(row.reward for row in sample.turns):
        return sample
    return sample._replace(turns=(*sample.turns[:-1], sample.turns[-1]._replace(reward=sample.reward)))


def gae(rows: tuple[Row, ...], values_R: Floats, gamma: float, decay: float) -> Floats:
    """Advantages (R,) of turns, those of a sample in order and together; `decay` is lambda."""
    advantages_R = np.zeros(len(rows))
    for r in reversed(range(len(rows))):
        last = r + 1 == len(rows) or rows[r + 1].sample != rows[r].sample
        following, carried = (0.0, 0.0) if last else (values_R[r + 1], advantages_R[r + 1])
        advantages_R[r] = rows[r].reward + gamma * following - values_R[r] + gamma * decay * carried
    return advantages_R


class PpoGae(Objective):
    """The objective; see the module for its formula."""

    needs = frozenset[Need]({"values"})

    def select(self, batch: Batch, settings: TrainingSettings) -> Selection:  # noqa: ARG002 - constants come later
        samples = tuple(map(with_reward, batch.samples))
        steps = [row.reward for sample in samples for row in sample.turns]
        whole = [sum(row.reward for row in sample.turns) for sample in samples]
        if np.std(steps) <= EQUAL_REWARDS_STD and np.std(whole) <= EQUAL_REWARDS_STD:
            raise NoSignal(
                f"all {len(steps)} turns of {len(samples)} rollouts have one reward, so PPO has no gradient to follow"
            )
        return token_mean(Batch(samples), dict.fromkeys(range(len(samples)), 0.0))

    def estimate(self, selection: Selection, values_R: Floats, settings: TrainingSettings) -> Selection:
        advantages_R = gae(selection.rows, values_R, settings.gamma, settings.gae_lambda)
        return selection._replace(advantages_R=advantages_R, returns_R=advantages_R + values_R)

    def loss(self, tokens: Tokens, settings: TrainingSettings) -> Loss:
        assert tokens.values_B is not None  # this objective needs values
        errors_B = tokens.values_B - tokens.returns_B
        return clipped_tokens(tokens, settings)._replace(values=settings.value_coefficient * (errors_B**2).sum() / 2)
