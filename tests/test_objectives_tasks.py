"""A tiny task of two turns with a tool's word between them, which the untrained policy fails and each algorithm solves.

Each of two items asks for two tokens of its own, one a turn. Each right token earns a half.
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
