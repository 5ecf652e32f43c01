"""Seven small worlds, one a kind of reward landscape: tables of rewards and a softmax policy whose gain is exact.

A policy answers turn t of item i with action a by softmax(base[i, t] + theta[t]); only theta, which the items share, is
learned, so what is learned on search items carries to validation items. Rewards are tables, so the expected utility of
a policy is a sum and not a sample. Knows nothing of the rules that choose an algorithm, nor of the algorithms.
"""

# ruff: noqa: N815 - a field that holds an array carries its shape

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

VALIDATION = 48  # items that a gain is measured on
BEST_OF = 8  # answers of which the best counts where the objective is max
DELTA = 0.1  # loss on what the base solved from which the gate rejects


class World(NamedTuple):
    """One drawn world: I items (the search items first), T turns, A actions.

    `reward_I_T_A` is what the log shows of an action, `utility_I_T_A` what it is worth; they differ only where rewards
    just rank. An answer is a success from `success_at` of utility on, summed over turns. `passes` are the passes of
    eight rollouts an item that the budget leaves; `lost` and `retained` count past weight candidates.
    """

    search: int
    base_I_T_A: Floats
    reward_I_T_A: Floats
    utility_I_T_A: Floats
    success_at: float
    objective: Literal["mean", "max"] = "mean"
    ordinal: bool = False
    passes: float = 20.0
    lost: int = 0
    retained: int = 0

    def probabilities(self, theta_T_A: Floats) -> Floats:
        """(I, T, A)."""
        return np.asarray(np.exp(_log_softmax(self.base_I_T_A + theta_T_A)))

    def divergence(self, new_T_A: Floats, old_T_A: Floats) -> float:
        """Mean KL(new || old) in nats a decision, over all search items and turns."""
        base = self.base_I_T_A[: self.search]
        new, old = _log_softmax(base + new_T_A), _log_softmax(base + old_T_A)
        return float((np.exp(new) * (new - old)).sum(axis=2).mean())

    def gain(self, theta_T_A: Floats) -> float:
        """Change of expected utility on the validation items, 0 where the gate would not let the update through: no
        gain, or a loss of more than DELTA, on average, on the items whose likeliest answer was a success."""
        both = self.probabilities(theta_T_A), self.probabilities(np.zeros_like(theta_T_A))
        new, old = (chances[self.search :] for chances in both)
        utility = self.utility_I_T_A[self.search :]
        gain = float((self._worth(new, utility) - self._worth(old, utility)).mean())
        greedy = np.take_along_axis(utility, old.argmax(axis=2)[..., None], axis=2).sum(axis=(1, 2))
        solved = greedy >= self.success_at
        kept = ((new - old) * utility).sum(axis=(1, 2))[solved]
        lost = len(kept) > 0 and float(kept.mean()) <= -DELTA
        return 0.0 if lost else max(gain, 0.0)

    def _worth(self, chances: Floats, utility: Floats) -> Floats:
        """Expected utility an item: of one answer, or of the best of BEST_OF where the objective is max."""
        if self.objective == "mean":
            return np.asarray((chances * utility).sum(axis=(1, 2)))
        order = utility[:, 0].argsort(axis=1)
        levels, shares = (np.take_along_axis(table[:, 0], order, axis=1) for table in (utility, chances))
        below = np.cumsum(shares, axis=1) ** BEST_OF
        return np.asarray((levels * np.diff(below, axis=1, prepend=0.0)).sum(axis=1))


def _log_softmax(logits_I_T_A: Floats) -> Floats:
    moved = logits_I_T_A - logits_I_T_A.max(axis=2, keepdims=True)
    return np.asarray(moved - np.log(np.exp(moved).sum(axis=2, keepdims=True)))


Draw = Callable[[np.random.Generator], World]


def _tables(rng: np.random.Generator, search: int, turns: int, actions: int, spread: float) -> tuple[Floats, Floats]:
    """Base logits with deviation `spread` between items, and an order of the actions that the items share, 0 the best;
    both (I, T, A)."""
    shape = (search + VALIDATION, turns, actions)
    order_T_A = np.array([rng.permutation(actions) for _ in range(turns)], dtype=np.float64)
    return rng.normal(0.0, spread, shape), np.broadcast_to(order_T_A, shape).copy()


def _binary(rng: np.random.Generator, search: int, actions: int, chance: float, spread: float) -> World:
    """One right action of `actions`, which the base takes with probability `chance` at the middle item."""
    base, order = _tables(rng, search, 1, actions, spread)
    right = (order == 0).astype(np.float64)
    base += right * np.log(chance / (1 - chance) * (actions - 1))
    return World(search, base, right, right, 1.0)


def dense(rng: np.random.Generator) -> World:
    """Six turns of four actions worth 0, 1/18, 2/18 or 3/18 each, rewarded at once."""
    base, order = _tables(rng, 32, 6, 4, 1.0)
    worth = (3 - order) / 18
    return World(32, base, worth, worth, 0.6)


def sparse(rng: np.random.Generator) -> World:
    """One success in a hundred."""
    return _binary(rng, 128, 100, 0.01, 0.3)


def middle(rng: np.random.Generator) -> World:
    """Success at two answers of five, and items that differ."""
    return _binary(rng, 32, 8, 0.4, 1.0)


def skewed(rng: np.random.Generator) -> World:
    """Log-normal rewards of 32 actions, the better the rarer; the best of eight answers counts."""
    base, order = _tables(rng, 32, 1, 32, 0.5)
    height = 2.0 - 4.0 * order / 31  # standard normal heights from 2 for the best down to -2
    worth = np.exp(1.2 * (height - 2.0))
    return World(32, base - 0.5 * height, worth, worth, 0.5, objective="max")


def regressing(rng: np.random.Generator) -> World:
    """Two fifths of the items are solved by one action; the others need another, which takes from the first."""
    base, order = _tables(rng, 32, 1, 8, 0.5)
    old = np.asarray(rng.random(len(base)) < 0.4)
    right = np.where(old[:, None, None], order == 1, order == 0).astype(np.float64)
    odds_I = np.array([np.log(0.25 / 0.75 * 7), np.log(0.9 / 0.1 * 7)])[old.astype(np.int64)]
    return World(32, base + right * odds_I[:, None, None], right, right, 1.0, lost=6, retained=1)


def ordinal(rng: np.random.Generator) -> World:
    """Eight ranked actions whose recorded reward is a power of their worth, of another exponent an item."""
    base, order = _tables(rng, 32, 1, 8, 0.7)
    worth = (7 - order) / 7
    powers = np.exp(rng.uniform(np.log(0.2), np.log(8.0), len(base)))
    return World(32, base, worth ** powers[:, None, None], worth, 0.7, ordinal=True)


def costly(rng: np.random.Generator) -> World:
    """As `middle` at three answers of ten, but the budget has two passes left."""
    return _binary(rng, 32, 8, 0.3, 1.0)._replace(passes=2.0)


WORLDS: dict[str, Draw] = {
    "dense-6-step": dense,
    "sparse-binary-1%": sparse,
    "mid-binary": middle,
    "right-skewed-max": skewed,
    "regression-prone": regressing,
    "ordinal": ordinal,
    "costly": costly,
}
