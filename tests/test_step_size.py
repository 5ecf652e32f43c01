"""The step that a KL target chooses: never beyond the target, near it where it can be, the same bytes every time."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from trainer_given import SETTINGS, batch, finish, near_policy, random_rollouts, tiny_policy
from training_bench import Bench

from resia.events import ALGORITHMS, StepTrained, TrainingSettings
from resia.trainers import policy as policy_module
from resia.trainers.gradient import prepare
from resia.trainers.objectives import OBJECTIVES
from resia.trainers.packing import pad
from resia.trainers.rounds import train_round
from resia.trainers.step_size import LARGEST, NEAR, SMALLEST, TRIES, Move, largest_within

torch = pytest.importorskip("torch")
CRITICS = {"ppo_gae"}

# -- the search ------------------------------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(
    curvature=st.floats(1e-9, 1e9),
    power=st.floats(0.5, 4.0),
    target=st.floats(1e-6, 1.0),
    ripple=st.floats(0.0, 0.9),
    cliff=st.one_of(st.just(math.inf), st.floats(1e-4, 16.0)),
)
@example(curvature=1.0, power=2.0, target=1.0, ripple=0.0, cliff=math.inf)
def test_what_is_found_was_measured_and_is_within_the_target(curvature, power, target, ripple, cliff):
    """On curves that need be neither quadratic nor rising, and that are not finite beyond some scale."""
    asked = {}

    def kl_at(scale):
        rising = curvature * scale**power * (1 + ripple * math.sin(40 * scale))
        asked[scale] = rising if scale < cliff else math.nan
        return asked[scale]

    found = largest_within(kl_at, target)
    assert len(asked) <= TRIES
    assert all(SMALLEST <= scale <= LARGEST for scale in asked)
    good = [scale for scale, kl in asked.items() if kl <= target]
    if found is None:
        assert good == []
    else:
        assert found == Move(max(good), asked[max(good)])


@settings(max_examples=300, deadline=None)
@given(curvature=st.floats(1e-2, 1e4), target=st.floats(1e-4, 1e-1))
def test_a_quadratic_is_met_from_either_side(curvature, target):
    found = largest_within(lambda scale: curvature * scale**2, target)
    reach = math.sqrt(target / curvature)
    if reach <= SMALLEST:
        assert found is None or found.scale == SMALLEST
    elif reach >= LARGEST:
        assert found.scale == LARGEST
    else:
        assert math.sqrt(NEAR) * reach * 0.99 <= found.scale <= reach


def test_a_policy_that_does_not_move_takes_the_largest_step_and_one_that_leaps_takes_none():
    assert largest_within(lambda _: 0.0, 1e-3) == Move(LARGEST, 0.0)
    for beyond in (1.0, math.inf, math.nan):
        assert largest_within(lambda _, kl=beyond: kl, 1e-3) is None


# -- the measurement -------------------------------------------------------------------------------------------------


def distributions(policy, row) -> np.ndarray:
    """log softmax(logits / temperature) (T, V) at every completion token, by numpy from one whole forward pass."""
    ids = torch.tensor([row.prompt_ids + row.completion_ids])
    with torch.no_grad():
        logits_T_V = policy.model(ids).logits[0].double().numpy() / row.temperature
    logits_T_V = logits_T_V[len(row.prompt_ids) - 1 : -1]
    logits_T_V -= logits_T_V.max(axis=1, keepdims=True)
    return logits_T_V - np.log(np.exp(logits_T_V).sum(axis=1, keepdims=True))


def divergence(after: list[np.ndarray], before: list[np.ndarray]) -> float:
    """KL(pi after || pi before), mean over all tokens."""
    per_token = [(np.exp(new) * (new - old)).sum(axis=1) for new, old in zip(after, before, strict=True)]
    return float(np.concatenate(per_token).mean())


@pytest.mark.parametrize("chunk", [3, 256])
def test_the_kl_equals_its_formula_over_the_whole_vocabulary(monkeypatch, chunk):
    monkeypatch.setattr(policy_module, "KL_CHUNK", chunk)
    policy = tiny_policy(exact=True, hidden=32)
    rows = [row for sample in batch(random_rollouts(3)).samples for row in sample.turns]
    padded, before = pad(rows), [distributions(policy, row) for row in rows]
    states_N_H = policy.states(padded)
    assert policy.kl(padded, states_N_H) == 0.0
    with torch.no_grad():
        for weight in policy.weights.values():
            weight.add_(0.02)
    tokens = sum(len(row.completion_ids) for row in rows)
    expected = divergence([distributions(policy, row) for row in rows], before)
    assert expected > 1e-4
    assert policy.kl(padded, states_N_H) / tokens == pytest.approx(expected, rel=1e-9)


# -- the step --------------------------------------------------------------------------------------------------------


def one_step(algorithm: str, chosen: TrainingSettings, learning_rate: float):
    """(step, oracle's KL, adapter) of one step of a round."""
    policy = tiny_policy(values=algorithm in CRITICS)
    made = near_policy(policy, random_rollouts(9, groups=3), spread=0.02)
    chosen = replace(chosen, learning_rate=learning_rate)
    selection = prepare(policy, OBJECTIVES[algorithm], made, chosen).selection
    before = [distributions(policy, row) for row in selection.rows]
    (step,), result = finish(train_round(policy, made, algorithm, chosen, 1, None, lambda: 0.0))
    return step, divergence([distributions(policy, row) for row in selection.rows], before), result.adapter


@pytest.mark.parametrize("learning_rate", [1e-5, 1e-1])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_moves_by_the_target_and_not_beyond_it(algorithm, learning_rate):
    """Whether its own step is too small, or far too large; a float64 oracle measures what was logged."""
    target = 1e-3
    step, oracle, _ = one_step(algorithm, replace(SETTINGS, kl_target=target), learning_rate)
    assert step.step_kl == pytest.approx(oracle, rel=1e-3, abs=1e-8)
    assert step.step_kl <= target
    assert oracle <= target * (1 + 1e-3)
    assert step.scale == LARGEST or step.step_kl >= 0.5 * target
    assert step.learning_rate == learning_rate


def test_equal_rounds_choose_equal_steps_to_the_byte():
    runs = [one_step("grpo", replace(SETTINGS, kl_target=1e-3), 1e-2) for _ in range(2)]
    assert runs[0] == runs[1]


def test_a_smaller_target_takes_a_smaller_step():
    found = [one_step("grpo", replace(SETTINGS, kl_target=target), 1e-2)[0] for target in (1e-2, 1e-3, 1e-4)]
    assert found[0].scale > found[1].scale > found[2].scale
    assert found[0].step_kl > found[1].step_kl > found[2].step_kl


def test_micro_batches_change_the_measured_kl_by_rounding_alone():
    apart = [one_step("grpo", replace(SETTINGS, kl_target=1e-3, micro_tokens=n), 1e-2)[0] for n in (30, 10_000)]
    assert apart[0].step_kl == pytest.approx(apart[1].step_kl, rel=1e-2)


def test_a_value_head_takes_its_own_step():
    """It is no part of the policy, so the target does not slow it."""
    heads = []
    for target in (None, 1e-6):
        policy = tiny_policy(values=True)
        made = near_policy(policy, random_rollouts(9), spread=0.02)
        chosen = replace(SETTINGS, kl_target=target, learning_rate=1e-2)
        finish(train_round(policy, made, "ppo_gae", chosen, 1, None, lambda: 0.0))
        heads.append({name: policy.weights[name].tolist() for name in policy.weights if name.startswith("value_head")})
    assert heads[0] == heads[1]


def test_without_a_target_the_step_is_the_optimisers_own():
    step, oracle, adapter = one_step("grpo", SETTINGS, 1e-2)
    assert (step.scale, step.step_kl) == (1.0, None)
    assert oracle > 0
    assert adapter != one_step("grpo", replace(SETTINGS, kl_target=1e-4), 1e-2)[2]


def test_the_log_says_how_far_each_step_went(tmp_path):
    bench = Bench(tmp_path, settings=replace(SETTINGS, kl_target=1e-3))
    steps = [event for event in bench.round(adapter=bench.champion) if isinstance(event, StepTrained)]
    assert len(steps) == 2
    assert all(0 < step.step_kl <= 1e-3 and SMALLEST <= step.scale <= LARGEST for step in steps)
