"""DPO: of two rollouts of one item the better is made likelier, as measured from a reference policy.

Pairs are made within a group: any two rollouts whose rewards differ by more than `dpo_margin`. Over `dpo_pairs` of
them the widest pair of every group is kept, then the second widest of every group, and so on. With m = beta (log
pi/pi_ref (better) - log pi/pi_ref (worse)), sums over all completion tokens of all turns, the loss is the mean over
pairs of -log sigmoid(m). A pair's rollouts may lie in different micro-batches, and a rollout in many pairs, so a step
goes over the selection twice (once where one micro-batch holds it all): first for m, then each rollout once with the
weight that the derivative gives it,
d loss / d log pi = -/+ beta sigmoid(-m) / pairs (equation 7 of the source), which is the same gradient.
pi_ref is the base model, or the champion with `ref`. Source: Rafailov et al., arXiv:2305.18290.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from resia.events.errors import NoSignal
from resia.events.settings import TrainingSettings
from resia.trainers.batch import Batch

from .base import Loss, Need, Objective, Selection, Tokens, select_samples
from .groups import EQUAL_REWARDS_STD, Group, contrasts

Pair = tuple[int, int]


def group_pairs(group: Group, margin: float) -> list[Pair]:
    """(better, worse) sample indices of a group, the widest difference of rewards first."""
    found = [
        (float(high - low), better, worse)
        for better, high in zip(group.members, group.rewards_G, strict=True)
        for worse, low in zip(group.members, group.rewards_G, strict=True)
        if high - low > max(margin, EQUAL_REWARDS_STD)
    ]
    return [(better, worse) for _, better, worse in sorted(found, key=lambda pair: (-pair[0], *pair[1:]))]


def choose_pairs(batch: Batch, settings: TrainingSettings) -> tuple[Pair, ...]:
    """At most `dpo_pairs` pairs, taken from the groups in turn. Raises NoSignal when there is none."""
    by_group = [group_pairs(group, settings.dpo_margin) for group in contrasts(batch, "DPO")]
    if not any(by_group):
        raise NoSignal(
            f"no two rollouts of an item differ in reward by more than the margin of {settings.dpo_margin:g}, "
            "so DPO has no pair to learn from"
        )
    turns = [pairs[n] for n in range(max(map(len, by_group))) for pairs in by_group if n < len(pairs)]
    return tuple(turns[: settings.dpo_pairs])


class Dpo(Objective):
    """The objective; see the module for its formula."""

    needs = frozenset[Need]({"reference", "log_ratios"})

    def select(self, batch: Batch, settings: TrainingSettings) -> Selection:
        pairs = choose_pairs(batch, settings)
        chosen = {index for pair in pairs for index in pair}
        rows, advantages_R = select_samples(batch, dict.fromkeys(chosen, 0.0))
        dropped = len(batch.samples) - len(chosen)
        return Selection(rows, advantages_R, float(len(pairs)), len(chosen), dropped, pairs=pairs)

    def reweigh(
        self, selection: Selection, log_ratios: Mapping[int, float], settings: TrainingSettings
    ) -> tuple[Selection, float | None]:
        beta = settings.dpo_beta
        margins_P = beta * np.array([log_ratios[b] - log_ratios[w] for b, w in selection.pairs])
        with np.errstate(invalid="ignore"):  # whoever reads the loss refuses what is no number
            losses_P = np.logaddexp(0.0, -margins_P)  # -log sigmoid(m)
            pulls_P = beta * np.exp(-np.logaddexp(0.0, margins_P))  # beta sigmoid(-m)
        weights: dict[int, float] = dict.fromkeys(log_ratios, 0.0)
        for (better, worse), pull in zip(selection.pairs, pulls_P.tolist(), strict=True):
            weights[better] += pull
            weights[worse] -= pull
        advantages_R = np.array([weights[row.sample] for row in selection.rows])
        return selection._replace(advantages_R=advantages_R), float(losses_P.mean())

    def loss(self, tokens: Tokens, settings: TrainingSettings) -> Loss:  # noqa: ARG002 - beta is in the weights
        losses_B_T = -(tokens.advantages_B_T * tokens.logprobs_B_T)
        return Loss(losses_B_T.masked_fill(~tokens.mask_B_T, 0.0).sum(), tokens.mask_B_T & ~tokens.mask_B_T)
