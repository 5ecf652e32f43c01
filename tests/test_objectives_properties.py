"""What no objective may depend on: a constant on the rewards, the names and order of groups and rollouts, padding, and
how a batch is cut. Each on the loss and its whole gradient in float64, over random batches.

Gradients against finite differences, and losses against their formulas, are in `test_objectives_oracles`.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from trainer_given import SETTINGS, gradient, near_policy, one_pass, random_rollouts, tiny_policy

from resia.events import ALGORITHMS
from resia.trainers.batch import Batch, Sample
from resia.trainers.objectives import OBJECTIVES, Tokens
from resia.trainers.packing import pad
from resia.trainers.policy import Policy

torch = pytest.importorskip("torch")
CHOSEN = replace(SETTINGS, kl_alpha=0.7, gamma=0.9, gae_lambda=0.8, dpo_pairs=30, bon_top=3)
NAMES = "abcdefgh"
BIAS = "value_head.bias"

every_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS)
few = settings(max_examples=5, deadline=None)
numbers = st.integers(0, 10_000)
randoms = st.randoms(use_true_random=False)


@pytest.fixture(scope="module")
def policies() -> dict[str, Policy]:
    """In float64, by algorithm; PPO's with a value head."""
    torch.set_num_threads(1)
    plain, critic = (tiny_policy(exact=True, hidden=16, layers=1, values=values) for values in (False, True))
    return {name: critic if name == "ppo_gae" else plain for name in ALGORITHMS}


def some(policy: Policy, seed: int, groups: int = 3, size: int = 3) -> Batch:
    """Rollouts of one or two turns with a reward on each turn and another on the whole."""
    rng = np.random.default_rng(seed)
    made = near_policy(policy, random_rollouts(seed, groups=groups, size=size), seed=seed)
    paid = [
        s._replace(turns=tuple(r._replace(reward=float(rng.normal())) for r in s.turns), success=n % 2 == 0)
        for n, s in enumerate(made.samples)
    ]
    return Batch(tuple(paid))


def numbered(samples: list[Sample]) -> Batch:
    """The samples in this order, their rows told so."""
    told = [s._replace(turns=tuple(r._replace(sample=n) for r in s.turns)) for n, s in enumerate(samples)]
    return Batch(tuple(told))


def outcome(policy: Policy, algorithm: str, made: Batch, **changes) -> tuple[float, np.ndarray]:
    _, found = one_pass(policy, algorithm, made, replace(CHOSEN, **changes))
    return found.loss, gradient(policy)


def alike(one: tuple[float, np.ndarray], other: tuple[float, np.ndarray]) -> None:
    assert np.abs(one[1]).max() > 1e-6
    np.testing.assert_allclose(other[0], one[0], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(other[1], one[1], rtol=1e-7, atol=1e-9)


# -- advantage shift ---------------------------------------------------------------------------------------------------


@few
@pytest.mark.parametrize("algorithm", ["grpo", "entropic", "reinforce_kl", "dpo"])
@given(seed=numbers, constants=st.lists(st.floats(-5, 5), min_size=3, max_size=3))
def test_a_constant_added_to_the_rewards_of_a_group_changes_nothing(policies, algorithm, seed, constants):
    """What compares rollouts of a group; each group has a constant of its own."""
    policy = policies[algorithm]
    made = some(policy, seed)
    by_group = dict(zip(made.groups(), constants, strict=True))
    shifted = Batch(tuple(s._replace(reward=s.reward + by_group[s.group]) for s in made.samples))
    alike(outcome(policy, algorithm, made), outcome(policy, algorithm, shifted))


@few
@given(seed=numbers, constant=st.floats(-5, 5))
def test_a_constant_added_to_every_reward_changes_no_choice_of_the_best(policies, seed, constant):
    policy = policies["best_of_n"]
    made = some(policy, seed)
    shifted = Batch(tuple(s._replace(reward=s.reward + constant) for s in made.samples))
    alike(outcome(policy, "best_of_n", made), outcome(policy, "best_of_n", shifted))


@few
@given(seed=numbers, constant=st.floats(-5, 5), gamma=st.floats(0, 1), decay=st.floats(0, 1))
def test_ppo_knows_rewards_from_its_value_head_alone(policies, seed, constant, gamma, decay):
    """With every value higher by c, and rewards so that every return is too: r + c (1 - gamma), c at the end."""
    policy = policies["ppo_gae"]
    made = some(policy, seed)
    constants = {"gamma": gamma, "gae_lambda": decay}
    one = outcome(policy, "ppo_gae", made, **constants)
    earned = [
        s._replace(
            turns=tuple(
                r._replace(reward=r.reward + constant * (1 if r.turn == len(s.turns) - 1 else 1 - gamma))
                for r in s.turns
            )
        )
        for s in made.samples
    ]
    with torch.no_grad():
        policy.weights[BIAS].add_(constant)
    try:
        alike(one, outcome(policy, "ppo_gae", Batch(tuple(earned)), **constants))
    finally:
        with torch.no_grad():
            policy.weights[BIAS].sub_(constant)


# -- groups, order -----------------------------------------------------------------------------------------------------


@few
@every_algorithm
@given(seed=numbers, random=randoms)
def test_groups_may_change_names_and_places(policies, algorithm, seed, random):
    """Groups as wholes: those inside keep their order."""
    policy = policies[algorithm]
    made = some(policy, seed)
    names = dict(zip(made.groups(), random.sample(NAMES, 3), strict=True))
    places = sorted(names.values())
    renamed = [s._replace(group=names[s.group]) for s in made.samples]
    moved = numbered(sorted(renamed, key=lambda s: places.index(s.group)))
    alike(outcome(policy, algorithm, made), outcome(policy, algorithm, moved))


@few
@every_algorithm
@given(seed=numbers, random=randoms)
def test_rollouts_may_come_in_any_order(policies, algorithm, seed, random):
    policy = policies[algorithm]
    made = some(policy, seed)
    shuffled = list(made.samples)
    random.shuffle(shuffled)
    alike(outcome(policy, algorithm, made), outcome(policy, algorithm, numbered(shuffled)))


# -- micro-batches, padding --------------------------------------------------------------------------------------------


@few
@every_algorithm
@given(seed=numbers, budget=st.integers(1, 400))
def test_the_size_of_a_micro_batch_changes_nothing(policies, algorithm, seed, budget):
    policy = policies[algorithm]
    made = some(policy, seed)
    whole = outcome(policy, algorithm, made, micro_tokens=100_000)
    alike(whole, outcome(policy, algorithm, made, micro_tokens=budget))


@few
@given(seed=numbers, longer=st.integers(1, 20), prefix=st.booleans())
def test_a_longer_neighbour_changes_no_log_probability_and_no_value(policies, seed, longer, prefix):
    """The neighbour's length is what the others are padded to; the prefix they share may be used or not."""
    policy = policies["ppo_gae"]
    rows = [row for sample in some(policy, seed, groups=1).samples for row in sample.turns]
    first = max(rows, key=lambda row: len(row.completion_ids))
    long = first._replace(
        completion_ids=first.completion_ids + (7,) * longer, logprobs=first.logprobs + (-1.0,) * longer
    )
    together = pad([*rows, long]) if prefix else pad([*rows, long], prefix=0)
    with torch.no_grad():
        found = policy.score(together)
        for b, row in enumerate(rows):
            alone, length = policy.score(pad([row])), len(row.completion_ids)
            np.testing.assert_allclose(found.logprobs_B_T[b, :length], alone.logprobs_B_T[0], atol=1e-10)
            np.testing.assert_allclose(found.values_B[b], alone.values_B[0], atol=1e-10)
            assert not found.logprobs_B_T[b, length:].any()


shapes = st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(0, 4))


@settings(max_examples=40, deadline=None)
@every_algorithm
@given(shape=shapes, seed=numbers)
def test_what_stands_in_the_padding_has_no_part_in_a_loss(algorithm, shape, seed):
    """Columns of anything finite: the same loss, the same tokens clipped, and no gradient there."""
    rows, length, extra = shape
    rng = np.random.default_rng(seed)
    mask = np.arange(length + extra) < rng.integers(1, length + 1, rows)[:, None]
    names = ("logprobs_B_T", "old_logprobs_B_T", "reference_B_T")
    drawn = {name: rng.normal(-2, 0.3, mask.shape) for name in names}
    advantages_B_T = np.where(mask, rng.normal(size=(rows, 1)), 0.0)  # of a row, 0 in the padding: `gradient._tokens`
    heads = {"values_B": rng.normal(size=rows), "returns_B": rng.normal(size=rows)}

    def found(filler: float):
        filled = {name: np.where(mask, values, filler) for name, values in drawn.items()}
        given_ = {**filled, "advantages_B_T": advantages_B_T, **heads}
        tensors = {name: torch.tensor(values) for name, values in given_.items()}
        tensors["logprobs_B_T"].requires_grad_()
        loss = OBJECTIVES[algorithm].loss(Tokens(mask_B_T=torch.tensor(mask), **tensors), CHOSEN)
        loss.total.backward()
        return float(loss.total.detach()), tensors["logprobs_B_T"].grad.numpy(), loss.clipped_B_T.numpy()

    one, other = found(0.0), found(float(rng.normal() * 20))
    assume(np.abs(one[1]).max() > 0)
    assert other[0] == pytest.approx(one[0], rel=1e-12, abs=1e-12)
    np.testing.assert_allclose(other[1], one[1], rtol=1e-12, atol=1e-12)
    assert not one[1][~mask].any()
    assert not other[2][~mask].any()
    np.testing.assert_array_equal(one[2], other[2])
