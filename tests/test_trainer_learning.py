"""What a round reports and refuses, and that every algorithm learns what its rewards teach and nothing else."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from trainer_given import (
    CONTEXT,
    SETTINGS,
    batch,
    finish,
    gradient,
    near_policy,
    one_pass,
    random_rollouts,
    rollout,
    tiny_model,
    tiny_policy,
    turn,
)

from resia.events import ALGORITHMS, TrainingSettings
from resia.events.errors import NoSignal, TrainerError
from resia.trainers.gradient import effective_sample_size, k3
from resia.trainers.objectives import Selection
from resia.trainers.packing import Padded, pad
from resia.trainers.policy import Policy
from resia.trainers.rounds import Step, train_round

torch = pytest.importorskip("torch")
CRITICS = {"ppo_gae"}


@pytest.fixture(scope="module")
def exact() -> Policy:
    torch.set_num_threads(1)
    return tiny_policy(exact=True, hidden=32)


@pytest.fixture(scope="module")
def policy() -> Policy:
    return tiny_policy()


def whole(policy: Policy, selection: Selection) -> tuple[Padded, np.ndarray]:
    """Every row as one micro-batch, and the policy's log-probabilities of it."""
    padded = pad(selection.rows)
    with torch.no_grad():
        return padded, policy.logprobs(padded).double().numpy()


def test_the_statistics_equal_their_formulas(exact):
    made = near_policy(exact, random_rollouts(13))
    work, found = one_pass(exact, "grpo", made)
    selection = work.selection
    padded, logprobs_B_T = whole(exact, selection)
    log_ratio_N = (logprobs_B_T - padded.logprobs_B_T)[padded.mask_B_T]
    ratio_N = np.exp(log_ratio_N)
    assert found.kl == pytest.approx(np.mean(ratio_N - 1 - log_ratio_N), rel=1e-9)
    advantage_N = np.broadcast_to(selection.advantages_R[:, None], padded.mask_B_T.shape)[padded.mask_B_T]
    outside_N = ((ratio_N > 1.2) & (advantage_N > 0)) | ((ratio_N < 0.8) & (advantage_N < 0))
    assert found.clip_fraction == pytest.approx(outside_N.mean(), rel=1e-12)
    log_weights: dict[int, float] = {}
    for b, row in enumerate(selection.rows):
        own = (logprobs_B_T - padded.logprobs_B_T)[b][padded.mask_B_T[b]].sum()
        log_weights[row.sample] = log_weights.get(row.sample, 0.0) + own
    weights_S = np.exp(list(log_weights.values()))
    assert found.ess == pytest.approx(weights_S.sum() ** 2 / len(weights_S) / (weights_S**2).sum(), rel=1e-9)


@given(st.lists(st.floats(-600, 600), min_size=1, max_size=20))
def test_effective_sample_size_is_a_share_and_kl_is_not_negative(values):
    array = np.array(values)
    assert 1 / len(values) <= effective_sample_size(array) * (1 + 1e-12) <= 1 + 1e-9
    assert effective_sample_size(array + 50.0) == pytest.approx(effective_sample_size(array), rel=1e-9)
    assert effective_sample_size(np.full(len(values), values[0])) == pytest.approx(1.0)
    assert k3(array / 100) >= 0
    assert k3(np.zeros(3)) == 0


PROMPT, ARMS, TARGET = (1, 2, 3), 16, 5
BANDIT = TrainingSettings(rank=4, lora_alpha=8, learning_rate=1e-2, bon_top=16)


def arms(policy: Policy) -> np.ndarray:
    """Probabilities of the first token after the prompt."""
    with torch.no_grad():
        return policy.model(torch.tensor([PROMPT])).logits[0, -1].double().softmax(0).numpy()


def play(policy: Policy, algorithm: str, rounds: int, shuffled: bool) -> list[Step]:
    """Rounds of one step on 64 fresh pulls; the reward is 1 for the target token."""
    rng, optimizer, steps = np.random.default_rng(0), None, []
    for _ in range(rounds):
        probabilities = arms(policy)
        pulls = rng.choice(ARMS, 64, p=probabilities / probabilities.sum())
        rewards = (pulls == TARGET).astype(float)
        if shuffled:
            rng.shuffle(rewards)
        rollouts = [
            rollout(f"{i:02}", "bandit", rewards[i], rewards[i] > 0,
                    turns=[turn(PROMPT, [pull], [min(0.0, math.log(probabilities[pull]))])])
            for i, pull in enumerate(pulls.tolist())
        ]  # fmt: skip
        try:
            made, result = finish(train_round(policy, batch(rollouts), algorithm, BANDIT, 1, optimizer, lambda: 0.0))
        except NoSignal:  # every pull alike: nothing to learn this round
            continue
        optimizer, steps = result.optimizer, steps + made
    return steps


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_bandit_is_solved_and_only_by_its_rewards(algorithm):
    def fresh() -> Policy:
        policy = Policy(tiny_model(ARMS, hidden=64, layers=1), BANDIT, "base")
        policy.set_adapter(None, 1, values=algorithm in CRITICS)
        return policy

    player, control = fresh(), fresh()
    assert arms(player)[TARGET] < 0.2
    steps = play(player, algorithm, 16, shuffled=False)
    play(control, algorithm, 16, shuffled=True)
    assert arms(player)[TARGET] > 0.9
    assert arms(control)[TARGET] < 0.3
    assert steps[0].kl == pytest.approx(0, abs=1e-6)  # on-policy before the first update
    assert steps[0].ess == pytest.approx(1, abs=1e-6)


def test_a_round_reports_what_it_did(policy):
    rollouts = random_rollouts(31)
    rollouts += [rollout(f"same{i}", "same", 0.5, turns=[turn()]) for i in range(3)]
    made = near_policy(policy, rollouts)
    ticks = iter(range(0, 100, 2))
    before = policy.adapter_bytes()
    chosen = replace(SETTINGS, learning_rate=1e-3)
    steps, result = finish(train_round(policy, made, "grpo", chosen, 3, None, lambda: float(next(ticks))))
    tokens = sum(len(r.prompt_ids) + len(r.completion_ids) for s in made.samples for r in s.turns if s.group != "same")
    assert [step.step for step in steps] == [0, 1, 2]
    assert {(step.tokens, step.tokens_per_s, step.learning_rate) for step in steps} == {(tokens, tokens / 2, 1e-3)}
    assert (result.steps, result.used, result.dropped, result.tokens) == (3, 8, 3, 3 * tokens)
    assert result.reward_mean == pytest.approx(np.mean([r.reward for r in rollouts]))
    assert steps[2].loss < steps[0].loss
    assert result.adapter == policy.adapter_bytes() != before
    policy.set_adapter(before, 0)


def test_updates_are_clipped_to_the_norm_that_is_asked(policy):
    made, before = near_policy(policy, random_rollouts(32)), policy.adapter_bytes()
    (step,), _ = finish(train_round(policy, made, "grpo", replace(SETTINGS, max_grad_norm=1e-3), 1, None, lambda: 0.0))
    assert step.grad_norm > 1e-3
    assert np.linalg.norm(gradient(policy)) == pytest.approx(1e-3, rel=1e-3)
    policy.set_adapter(before, 0)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_loss_that_is_not_finite_stops_before_the_weights_change(algorithm):
    broken = tiny_policy(layers=1, values=algorithm in CRITICS)
    made = near_policy(broken, random_rollouts(33))
    with torch.no_grad():
        next(iter(broken.weights.values()))[0, 0] = float("nan")
    before = broken.adapter_bytes()
    with pytest.raises(TrainerError, match="step 0 has loss nan") as raised:
        finish(train_round(broken, made, algorithm, SETTINGS, 2, None, lambda: 0.0))
    assert raised.value.step == 0
    assert broken.adapter_bytes() == before


def test_log_probabilities_of_another_policy_do_not_pass_in_silence(policy):
    """With behaviour log-probabilities far too low every rewarded ratio is clipped and nothing would be learned."""
    good, bad = turn(completion=[4, 5], logprobs=[-50.0, -50.0]), turn(completion=[6, 7], logprobs=[-1e-6, -1e-6])
    made = batch([rollout("a", reward=1.0, turns=[good]), rollout("b", reward=0.0, turns=[bad])])
    before = policy.adapter_bytes()
    with pytest.raises(TrainerError, match="the first gradient is exactly zero"):
        finish(train_round(policy, made, "grpo", SETTINGS, 1, None, lambda: 0.0))
    assert policy.adapter_bytes() == before


def test_a_round_without_a_step_is_refused(policy):
    with pytest.raises(TrainerError, match="a round of 0 steps"):
        next(train_round(policy, batch(random_rollouts(1)), "grpo", SETTINGS, 0, None, lambda: 0.0))
    assert policy.context == CONTEXT
