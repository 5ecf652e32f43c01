"""What each algorithm must come to: bandits whose answer is known for each, and a tiny task that the untrained fails.

The task has two turns with a tool's word between them: each of two items asks for two tokens of its own, one a turn,
and each right token earns a half.
"""

from __future__ import annotations

import numpy as np
import pytest
from msgspec.structs import replace
from trainer_given import batch, finish, rollout, tiny_model, turn

from resia.events import ALGORITHMS, TrainingSettings
from resia.events.errors import NoSignal
from resia.events.settings import OFF_POLICY
from resia.trainers.gradient import prepare
from resia.trainers.objectives import OBJECTIVES
from resia.trainers.policy import Policy
from resia.trainers.rounds import train_round

torch = pytest.importorskip("torch")
TOOL, ASK, VOCABULARY = 2, 3, 8
TARGETS = {0: ((4,), (5,)), 1: ((6,), (4,))}  # by item, which is also the first token of its prompt
RIGHT = 0.5
SETTINGS = TrainingSettings(
    rank=8, lora_alpha=16, learning_rate=5e-3, bon_top=12, dpo_beta=0.5, dpo_pairs=200, kl_alpha=0.01
)
ROUNDS, PULLS = 14, 48  # fresh rollouts an item, every round
RECORDED, STEPS = 160, 16  # rollouts an item, recorded once, and the steps over them


def continued(policy: Policy, prompts: np.ndarray, count: int, rng) -> tuple[np.ndarray, np.ndarray]:
    """`count` tokens after each prompt of one length and their log-probabilities; the likeliest without `rng`."""
    ids, logprobs = prompts, []
    for _ in range(count):
        with torch.no_grad():
            logprobs_B_V = policy.model(torch.tensor(ids)).logits[:, -1].double().log_softmax(-1).numpy()
        noise = rng.gumbel(size=logprobs_B_V.shape) if rng else 0.0
        drawn = (logprobs_B_V + noise).argmax(1)
        logprobs.append(np.minimum(logprobs_B_V[np.arange(len(drawn)), drawn], 0.0))
        ids = np.column_stack([ids, drawn])
    return ids[:, prompts.shape[1] :], np.column_stack(logprobs)


def episodes(policy: Policy, item: int, count: int, rng) -> list:
    """Rollouts of an item: the second prompt holds the first answer and what the tool said to it."""
    prompts, made = np.tile([item, ASK], (count, 1)), [[] for _ in range(count)]
    for target in TARGETS[item]:
        answers, logprobs = continued(policy, prompts, len(target), rng)
        for b in range(count):
            reward = RIGHT * float((answers[b] == target).sum())
            made[b].append(turn(prompts[b].tolist(), answers[b].tolist(), logprobs[b].tolist(), reward))
        prompts = np.column_stack([prompts, answers, np.full(count, TOOL)])
    rewards = [sum(t.reward for t in turns) for turns in made]
    return [
        rollout(f"{item}-{b:03}", f"item{item}", reward, reward == 1.0, turns=turns)
        for b, (reward, turns) in enumerate(zip(rewards, made, strict=True))
    ]


def solved(policy: Policy) -> float:
    """Mean reward of the likeliest episode of every item."""
    return float(np.mean([episodes(policy, item, 1, None)[0].reward for item in TARGETS]))


def learn(policy: Policy, algorithm: str) -> None:
    """Off-policy from what was recorded once; the others from fresh rollouts, a step each round."""
    rng, optimizer = np.random.default_rng(0), None
    once = algorithm in OFF_POLICY
    for _ in range(1 if once else ROUNDS):
        made = batch([e for item in TARGETS for e in episodes(policy, item, RECORDED if once else PULLS, rng)])
        steps = STEPS if once else 1
        try:
            _, result = finish(train_round(policy, made, algorithm, SETTINGS, steps, optimizer, lambda: 0.0))
        except NoSignal:  # every rollout is right
            return
        optimizer = result.optimizer


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_task_of_two_turns_is_solved(algorithm):
    torch.set_num_threads(1)
    policy = Policy(tiny_model(VOCABULARY, hidden=64, layers=1), SETTINGS, "base")
    policy.set_adapter(None, 1, values="values" in OBJECTIVES[algorithm].needs)
    assert solved(policy) < 0.5
    learn(policy, algorithm)
    assert solved(policy) == 1.0
    assert np.mean([e.reward for item in TARGETS for e in episodes(policy, item, 100, np.random.default_rng(9))]) > 0.8


# -- bandits: what each algorithm is known to come to ------------------------------------------------------------------

PROMPT, ARMS = (1, 2, 3), 8
A, B, C = 4, 5, 6
BANDIT = TrainingSettings(rank=4, lora_alpha=8, learning_rate=2e-2, kl_alpha=0.0, dpo_beta=0.5, dpo_pairs=500)


def bandit(algorithm: str) -> Policy:
    torch.set_num_threads(1)
    policy = Policy(tiny_model(ARMS, hidden=64, layers=1), BANDIT, "base")
    policy.set_adapter(None, 1, values="values" in OBJECTIVES[algorithm].needs)
    return policy


def chances(policy: Policy) -> np.ndarray:
    """Probabilities of the arms, which are the first token after the prompt."""
    with torch.no_grad():
        return policy.model(torch.tensor([PROMPT])).logits[0, -1].double().softmax(0).numpy()


def pulled(name: str, group: str, arm: int, reward: float, probability: float):
    return rollout(name, group, reward, reward > 0, turns=[turn(PROMPT, [arm], [min(0.0, float(np.log(probability)))])])


def pull(policy: Policy, algorithm: str, pays, rounds: int, count: int, settings: TrainingSettings, optimizer=None):
    """Rounds of one step on `count` fresh pulls of one group; the optimiser as it was left."""
    rng = np.random.default_rng(rounds)
    for _ in range(rounds):
        found = chances(policy)
        arms = rng.choice(ARMS, count, p=found / found.sum())
        made = [
            pulled(f"{i:03}", "x", arm, reward, found[arm])
            for i, (arm, reward) in enumerate(zip(arms.tolist(), pays(arms, rng).tolist(), strict=True))
        ]
        try:
            _, result = finish(train_round(policy, batch(made), algorithm, settings, 1, optimizer, lambda: 0.0))
        except NoSignal:  # every pull earned the same
            continue
        optimizer = result.optimizer
    return optimizer


@pytest.mark.parametrize(("algorithm", "best"), [("grpo", A), ("reinforce_kl", A), ("ppo_gae", A), ("entropic", B)])
def test_all_but_the_entropic_go_for_the_best_mean_and_it_for_the_best_best(algorithm, best):
    """A earns 0.5 each time; B earns 1 in three pulls of ten and nothing in the others."""

    def pays(arms, rng):
        return np.where(arms == A, 0.5, np.where(arms == B, rng.random(len(arms)) < 0.3, 0.0))

    policy = bandit(algorithm)
    assert chances(policy)[best] < 0.3
    pull(policy, algorithm, pays, 16, 128, BANDIT)
    assert chances(policy)[best] > 0.9


def test_reinforce_with_a_penalty_comes_to_the_tilted_reference():
    """The maximum of E r - alpha KL(pi || pi_ref) is pi_ref exp(r / alpha), over its sum."""
    policy, worth, alpha = bandit("reinforce_kl"), np.array([0.0, 0, 0, 0, 1.0, 0.5, 0.8, 0]), 0.5
    tilted = chances(policy) * np.exp(worth / alpha)
    chosen, optimizer = replace(BANDIT, kl_alpha=alpha), None
    assert np.abs(chances(policy) - tilted / tilted.sum()).max() > 0.15
    for rate in (2e-2, 5e-3, 1e-3):
        chosen = replace(chosen, learning_rate=rate)
        optimizer = pull(policy, "reinforce_kl", lambda arms, _: worth[arms], 20, 256, chosen, optimizer)
    np.testing.assert_allclose(chances(policy), tilted / tilted.sum(), atol=0.03)


def test_best_of_n_comes_to_how_often_each_success_was_recorded():
    """The minimum of the cross-entropy; the failures leave no trace."""
    policy, counts = bandit("best_of_n"), {A: 30, B: 15, C: 5}
    wins = [pulled(f"win-{arm}-{n}", "x", arm, 1.0, 0.1) for arm, count in counts.items() for n in range(count)]
    losses = [pulled(f"loss-{n}", "x", 7, 0.0, 0.1) for n in range(50)]
    chosen, optimizer = replace(BANDIT, bon_top=100), None
    for rate in (2e-2, 3e-3):
        made = batch([*wins, *losses])
        _, result = finish(
            train_round(policy, made, "best_of_n", replace(chosen, learning_rate=rate), 40, optimizer, lambda: 0.0)
        )
        optimizer = result.optimizer
    expected = [counts.get(arm, 0) / 50 for arm in range(ARMS)]
    np.testing.assert_allclose(chances(policy), expected, atol=0.02)


def test_dpo_comes_to_the_log_odds_of_the_preferences():
    """A is preferred to B in three pairs of four: beta (log pi/pi_ref (A) - log pi/pi_ref (B)) = log 3."""
    policy, optimizer = bandit("dpo"), None
    made = []
    for n in range(40):
        made += [pulled(f"{n:02}-a", f"g{n}", A, float(n % 4 > 0), 0.1), pulled(f"{n:02}-b", f"g{n}", B, 0.5, 0.1)]
    before = chances(policy)
    for rate in (2e-2, 3e-3):
        chosen = replace(BANDIT, learning_rate=rate)
        _, result = finish(train_round(policy, batch(made), "dpo", chosen, 40, optimizer, lambda: 0.0))
        optimizer = result.optimizer
    moved = np.log(chances(policy)) - np.log(before)
    assert BANDIT.dpo_beta * (moved[A] - moved[B]) == pytest.approx(np.log(3), abs=0.05)


# -- values ------------------------------------------------------------------------------------------------------------


def test_the_value_head_learns_what_a_turn_is_worth():
    """The mean of what follows, by item and turn, from rollouts of one policy."""
    policy = Policy(tiny_model(VOCABULARY, hidden=64, layers=1), SETTINGS, "base")
    policy.set_adapter(None, 1, values=True)
    made = batch([e for item in TARGETS for e in episodes(policy, item, 64, np.random.default_rng(1))])
    chosen = replace(SETTINGS, gae_lambda=1.0, value_coefficient=1e3, max_grad_norm=1e6)
    _, result = finish(train_round(policy, made, "ppo_gae", chosen, 60, None, lambda: 0.0))
    slower = replace(chosen, learning_rate=5e-4)
    finish(train_round(policy, made, "ppo_gae", slower, 30, result.optimizer, lambda: 0.0))
    found, expected = {}, {}
    work = prepare(policy, OBJECTIVES["ppo_gae"], made, chosen)
    for row, value in zip(work.selection.rows, work.selection.returns_R - work.selection.advantages_R, strict=True):
        key = made.samples[row.sample].group, row.turn
        found.setdefault(key, []).append(value)
        expected.setdefault(key, []).append(sum(r.reward for r in made.samples[row.sample].turns[row.turn :]))
    for key in found:
        assert np.mean(found[key]) == pytest.approx(np.mean(expected[key]), abs=0.03)
    assert np.std([np.mean(v) for v in expected.values()]) > 0.03
