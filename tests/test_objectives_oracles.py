"""Every loss against its formula in float64, every gradient against finite differences, and what neither depends on."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from scipy.optimize import brentq
from trainer_given import SETTINGS, again, batch, gradient, near_policy, one_pass, random_rollouts, tiny_policy

from resia.events import ALGORITHMS, TrainingSettings
from resia.trainers.batch import Batch, Row, Sample
from resia.trainers.objectives.ratio import truncated
from resia.trainers.policy import Policy

torch = pytest.importorskip("torch")
# Constants away from their defaults and from 0 and 1, so that each has a part in the losses.
CHOSEN = replace(
    SETTINGS, kl_alpha=0.7, gamma=0.9, gae_lambda=0.8, value_coefficient=0.3, dpo_beta=0.5, dpo_margin=0.05, dpo_pairs=9
)
CLIPPED = {"ppo_gae", "grpo", "entropic", "reinforce_kl"}


@pytest.fixture(scope="module")
def policies() -> dict[str, Policy]:
    """In float64, by algorithm; PPO's with a value head."""
    torch.set_num_threads(1)
    plain, critic = tiny_policy(exact=True, hidden=32), tiny_policy(exact=True, hidden=32, values=True)
    return {name: critic if name == "ppo_gae" else plain for name in ALGORITHMS}


def stepwise(rollouts, seed: int = 0):
    """The rollouts with a reward on every turn."""
    rng = np.random.default_rng(seed)
    return [
        r._replace(
            trajectory=replace(r.trajectory, turns=tuple(replace(t, reward=rng.normal()) for t in r.trajectory.turns))
        )
        for r in rollouts
    ]


class Scored(NamedTuple):
    """A row with what plain forward passes say of it: each list as long as the completion, the value at its start."""

    row: Row
    logprobs: np.ndarray
    reference: np.ndarray
    value: float


def plain(policy: Policy, row: Row) -> np.ndarray:
    """log softmax(logits / temperature) of the completion, from one whole forward pass."""
    ids = torch.tensor([row.prompt_ids + row.completion_ids])
    with torch.no_grad():
        logits_T_V = policy.model(ids).logits[0].double() / row.temperature
    start = len(row.prompt_ids) - 1
    places = torch.arange(start, start + len(row.completion_ids))
    return logits_T_V.log_softmax(-1)[places, torch.tensor(row.completion_ids)].numpy()


def score(policy: Policy, made: Batch) -> dict[int, list[Scored]]:
    """Turns of every sample."""
    found = defaultdict(list)
    for sample in made.samples:
        for row in sample.turns:
            with policy.model.disable_adapter():
                reference = plain(policy, row)
            value = 0.0
            if policy.has_values:
                with torch.no_grad():
                    hidden = policy.model.base_model.model.model(torch.tensor([row.prompt_ids])).last_hidden_state[
                        0, -1
                    ]
                weight, bias = (policy.weights[f"value_head.{n}"].detach().numpy() for n in ("weight", "bias"))
                value = float(weight[0] @ hidden.numpy() + bias[0])
            found[row.sample].append(Scored(row, plain(policy, row), reference, value))
    return dict(found)


def clipped(ratio: float, advantage: float, chosen: TrainingSettings) -> float:
    bounded = min(max(ratio, 1 - chosen.clip_epsilon), 1 + chosen.clip_epsilon)
    return -min(min(ratio, chosen.max_ratio) * advantage, bounded * advantage)


def token_mean(scored, advantages: dict[int, list[float]], chosen: TrainingSettings) -> float:
    """Clipped ratio a token; advantages of each turn of each sample."""
    losses = [
        clipped(math.exp(new - old), advantage, chosen)
        for sample, of_turns in advantages.items()
        for turn, advantage in zip(scored[sample], of_turns, strict=True)
        for new, old in zip(turn.logprobs, turn.row.logprobs, strict=True)
    ]
    return sum(losses) / len(losses)


def peers(made: Batch, sample: Sample) -> list[float]:
    """Rewards of the sample's group, its own among them."""
    return [other.reward for other in made.samples if other.group == sample.group]


def grpo_loss(made: Batch, scored, chosen: TrainingSettings) -> float:
    advantages, lengths = {}, {}
    for i, sample in enumerate(made.samples):
        rewards = np.array(peers(made, sample))
        advantage = sample.reward - rewards.mean()
        if not chosen.dr_grpo:
            variance = ((rewards - rewards.mean()) ** 2).sum() / (len(rewards) - 1)
            advantage /= math.sqrt(variance) + chosen.advantage_epsilon
        advantages[i] = [advantage] * len(sample.turns)
        lengths[i] = sum(len(row.completion_ids) for row in sample.turns)
    mean = token_mean(scored, advantages, chosen)
    return mean * sum(lengths.values()) / (len(lengths) * max(lengths.values())) if chosen.dr_grpo else mean


def entropic_loss(made: Batch, scored, chosen: TrainingSettings) -> float:
    advantages = {}
    for i, sample in enumerate(made.samples):
        rewards = peers(made, sample)

        def excess(beta: float, rewards=rewards) -> float:
            tilted = [math.exp(beta * r) for r in rewards]
            shares = [t / sum(tilted) for t in tilted]
            return sum(s * math.log(s * len(rewards)) for s in shares) - math.log(2)

        beta = brentq(excess, 0, 300, xtol=1e-13)
        others = list(rewards)
        others.remove(sample.reward)
        weight = math.exp(beta * sample.reward) / np.mean([math.exp(beta * r) for r in others])
        advantages[i] = [min(weight - 1, 5.0)] * len(sample.turns)
    return token_mean(scored, advantages, chosen)


def reinforce_loss(made: Batch, scored, chosen: TrainingSettings) -> float:
    total = 0.0
    for i, sample in enumerate(made.samples):
        others = peers(made, sample)
        others.remove(sample.reward)
        for turn in scored[i]:
            log_ratio = turn.logprobs - np.array(turn.row.logprobs)
            total += clipped(math.exp(log_ratio.sum()), sample.reward - np.mean(others), chosen)
            apart = turn.reference - turn.logprobs
            total += chosen.kl_alpha * (np.exp(log_ratio) * (np.exp(apart) - 1 - apart)).sum()
    return total / len(made.samples)


def ppo_loss(made: Batch, scored, chosen: TrainingSettings) -> float:
    """At the first step: the values are those from which advantages and returns were made."""
    advantages, errors = {}, []
    for i in range(len(made.samples)):
        turns = scored[i]
        rewards = [turn.row.reward for turn in turns]
        values = [*(turn.value for turn in turns), 0.0]
        deltas = [r + chosen.gamma * values[t + 1] - values[t] for t, r in enumerate(rewards)]
        decay = chosen.gamma * chosen.gae_lambda
        advantages[i] = [sum(decay ** (k - t) * deltas[k] for k in range(t, len(turns))) for t in range(len(turns))]
        errors += advantages[i]  # V - (A + V)
    return token_mean(scored, advantages, chosen) + chosen.value_coefficient * np.mean(np.square(errors)) / 2


def dpo_loss(made: Batch, scored, chosen: TrainingSettings) -> float:
    """Over the pairs that are asked for, the widest of each group first."""
    by_group = defaultdict(list)
    for a, b in itertools.permutations(range(len(made.samples)), 2):
        high, low = made.samples[a], made.samples[b]
        if high.group == low.group and high.reward - low.reward > chosen.dpo_margin:
            by_group[high.group].append((low.reward - high.reward, a, b))
    ranked = [sorted(found) for found in by_group.values()]
    taken = [pairs[n] for n in range(99) for pairs in ranked if n < len(pairs)][: chosen.dpo_pairs]
    assert len(taken) == chosen.dpo_pairs
    apart = {i: sum((t.logprobs - t.reference).sum() for t in turns) for i, turns in scored.items()}
    return float(
        np.mean([-math.log(1 / (1 + math.exp(-chosen.dpo_beta * (apart[a] - apart[b])))) for _, a, b in taken])
    )


def cloning_loss(made: Batch, scored, chosen: TrainingSettings) -> float:
    wins = sorted((-s.reward, i) for i, s in enumerate(made.samples) if s.success)[: chosen.bon_top]
    return -float(np.mean(np.concatenate([turn.logprobs for _, i in wins for turn in scored[i]])))


ORACLES = {
    "grpo": grpo_loss,
    "entropic": entropic_loss,
    "reinforce_kl": reinforce_loss,
    "ppo_gae": ppo_loss,
    "dpo": dpo_loss,
    "best_of_n": cloning_loss,
}


@pytest.mark.parametrize("algorithm", [*ALGORITHMS, "dr_grpo"])
def test_the_loss_equals_its_formula(policies, algorithm):
    chosen = replace(CHOSEN, dr_grpo=algorithm == "dr_grpo")
    algorithm = algorithm.removeprefix("dr_")
    policy = policies[algorithm]
    made = near_policy(policy, stepwise(random_rollouts(11)))
    _, found = one_pass(policy, algorithm, made, chosen)
    assert found.loss == pytest.approx(ORACLES[algorithm](made, score(policy, made), chosen), abs=1e-10)
    assert (0 < found.clip_fraction < 1) == (algorithm in CLIPPED)


@pytest.mark.parametrize("algorithm", sorted(CLIPPED))
def test_ratios_are_cut_off_where_the_clip_has_no_bound(policies, algorithm):
    """Tokens that the policy finds e^80 times likelier than the behaviour policy did."""
    policy, chosen = policies[algorithm], replace(CHOSEN, max_ratio=1.5, kl_alpha=0.0)
    near = near_policy(policy, stepwise(random_rollouts(12)))
    made = Batch(tuple(
        s._replace(turns=tuple(r._replace(logprobs=tuple(p - 80 * (n % 3 == 0) for p in r.logprobs)) for r in s.turns))
        for n, s in enumerate(near.samples)
    ))  # fmt: skip
    work, found = one_pass(policy, algorithm, made, chosen)
    cut = sum(m.padded.mask_B_T[b].sum() for m in work.micro_batches for b, r in enumerate(m.rows)
              if work.selection.rows[r].sample % 3 == 0)  # fmt: skip
    assert found.clip_fraction >= cut / sum(m.padded.mask_B_T.sum() for m in work.micro_batches)
    assert found.loss <= 1.5 * max(np.abs(work.selection.advantages_R)) * 3 + 1
    assert np.isfinite(gradient(policy)).all()
    assert (again(policy, algorithm, work, replace(chosen, max_ratio=1e30)).loss > 1e20) or algorithm == "entropic"
    assert found.ess == pytest.approx(1 / len(made.samples), rel=0.5)  # what the cut hides, the ESS shows


def test_a_ratio_that_is_cut_off_has_no_gradient_and_does_not_overflow():
    log_ratio = torch.tensor([-1e4, 0.0, 1.0, 1e4], requires_grad=True)
    ratio = truncated(log_ratio, SETTINGS)
    ratio.sum().backward()
    np.testing.assert_allclose(ratio.tolist(), [0.0, 1.0, math.e, 10.0], rtol=1e-6)
    np.testing.assert_allclose(log_ratio.grad.tolist(), [0.0, 1.0, math.e, 0.0], rtol=1e-6)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_gradients_equal_finite_differences(policies, algorithm):
    policy = policies[algorithm]
    made = near_policy(policy, stepwise(random_rollouts(14)))
    work, _ = one_pass(policy, algorithm, made, CHOSEN)
    names = sorted(policy.weights)
    gradients = {name: policy.weights[name].grad.clone() for name in names}
    generator, h = torch.Generator().manual_seed(0), 1e-6

    def difference(directions) -> float:
        losses = []
        for sign in (1, -2, 1):  # forward, backward, and home again
            with torch.no_grad():
                for name, direction in directions.items():
                    policy.weights[name].add_(direction, alpha=sign * h)
            losses.append(again(policy, algorithm, work, CHOSEN).loss)
        return (losses[0] - losses[1]) / (2 * h)

    for chosen in (names, names[5:6], names[10:11], names[-2:]):
        directions = {n: torch.randn(gradients[n].shape, generator=generator, dtype=torch.float64) for n in chosen}
        expected = sum(float((gradients[n] * d).sum()) for n, d in directions.items())
        assert abs(expected) > 1e-5
        assert difference(directions) == pytest.approx(expected, rel=1e-5)


@settings(max_examples=6, deadline=None)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@given(
    seed=st.integers(0, 10_000),
    constant=st.floats(-5, 5),
    random=st.randoms(use_true_random=False),
    budget=st.integers(1, 200),
)
def test_what_a_gradient_does_not_depend_on(policies, algorithm, seed, constant, random, budget):
    """The names and order of groups and rollouts, the micro-batches and so the padding; and, where rewards are compared
    within a group, a constant added to those of one."""
    policy = policies[algorithm]
    constant *= algorithm not in {"ppo_gae", "best_of_n"}
    made = near_policy(policy, stepwise(random_rollouts(seed, groups=2, size=3), seed), seed=seed)
    samples = [
        s._replace(group={"item0": "z", "item1": "a"}[s.group], reward=s.reward + constant * (s.group == "item0"))
        for s in made.samples
    ]
    random.shuffle(samples)
    other = Batch(tuple(s._replace(turns=tuple(r._replace(sample=i) for r in s.turns)) for i, s in enumerate(samples)))
    one = one_pass(policy, algorithm, made)[1], gradient(policy)
    two = one_pass(policy, algorithm, other, replace(SETTINGS, micro_tokens=budget))[1], gradient(policy)
    np.testing.assert_allclose(two[0], one[0], atol=1e-8)
    np.testing.assert_allclose(two[1], one[1], atol=1e-8)


@pytest.mark.parametrize("algorithm", ["dpo", "reinforce_kl"])
def test_the_reference_may_be_another_adapter(policies, algorithm):
    """That of the champion's adapter stands in for a while and leaves no trace; where the policy is its own reference
    DPO's loss is ln 2 and the KL penalty nothing."""
    policy = policies[algorithm]
    own = policy.adapter_bytes()
    made = near_policy(policy, random_rollouts(15))
    other = tiny_policy(seed=2, exact=True, hidden=32).adapter_bytes()
    losses = {}
    for name, reference in (("base", None), ("own", own), ("other", other)):
        losses[name] = one_pass(policy, algorithm, made, CHOSEN, reference)[1].loss
        assert policy.adapter_bytes() == own
        assert all(weight.requires_grad for weight in policy.weights.values())
    assert len(set(losses.values())) == 3
    bare = one_pass(policy, algorithm, made, replace(CHOSEN, kl_alpha=0.0))[1].loss
    assert losses["own"] == pytest.approx(math.log(2) if algorithm == "dpo" else bare, abs=1e-12)
    policy.set_adapter(other, 0)
    expected = {s: [t.logprobs for t in turns] for s, turns in score(policy, made).items()}
    policy.set_adapter(own, 0)
    work, _ = one_pass(policy, algorithm, made, CHOSEN, other)
    for micro in work.micro_batches:
        for b, r in enumerate(micro.rows):
            row = work.selection.rows[r]
            np.testing.assert_allclose(
                micro.reference_B_T[b][micro.padded.mask_B_T[b]], expected[row.sample][row.turn], atol=1e-10
            )


def test_values_are_read_before_the_first_token_of_a_turn(policies):
    policy = policies["ppo_gae"]
    made = batch(random_rollouts(16))
    work, _ = one_pass(policy, "ppo_gae", made, CHOSEN)
    scored = score(policy, made)
    expected = [scored[row.sample][row.turn].value for row in work.selection.rows]
    assert np.std(expected) > 0.01
    np.testing.assert_allclose(work.selection.returns_R - work.selection.advantages_R, expected, atol=1e-10)
