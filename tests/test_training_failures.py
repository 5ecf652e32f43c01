"""Given what nothing can be learned from, when a round is performed, then TrainingFailed says why and at which step,
no adapter is stored, and the champion is untouched."""

from __future__ import annotations

import pytest
from msgspec.structs import replace
from trainer_given import CONTEXT, SETTINGS, VOCABULARY, random_rollouts, rollout, tiny_policy, turn
from training_bench import Bench

from resia.events import ALGORITHMS, Blob, RoundTrained, StepTrained, TrainingFailed
from resia.events.errors import BlobError
from resia.trainers.adapter import without_value_head

torch = pytest.importorskip("torch")
CONTRASTS = sorted(set(ALGORITHMS) - {"best_of_n", "ppo_gae"})


def failed(bench: Bench, events, error: str, step: int = -1) -> None:
    """The last of `events` is the failure, and there is nothing in the store that was not there before."""
    *steps, last = events
    assert isinstance(last, TrainingFailed), last
    assert (last.training, last.algorithm, last.step) == (bench.training.envelope.id, bench.algorithm, step)
    assert error in last.error
    assert "\n" not in last.error
    assert [type(s) for s in steps] == [StepTrained] * max(step, 0)
    assert {found.digest for found in bench.blobs.stored()} == bench.stored
    assert bench.blobs.get(bench.champion) == bench.before


def given(folder, algorithm="grpo", settings=SETTINGS, rollouts=None) -> Bench:
    bench = Bench(folder, algorithm, settings, rollouts=rollouts)
    bench.stored = {found.digest for found in bench.blobs.stored()}
    bench.before = bench.blobs.get(bench.champion)
    return bench


def performed(bench: Bench, change=lambda state: state, adapter=None):
    fact = bench.ask(adapter=adapter or bench.champion)
    return [event for events in bench.perform(fact, change) for event in events]


@pytest.mark.parametrize("reward", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_reward_that_is_not_finite(tmp_path, algorithm, reward):
    bench = given(tmp_path, algorithm)
    events = performed(bench, lambda state: bench.with_rollout(state, reward=reward))
    failed(bench, events, f"has reward {reward}: rewards must be finite")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_rewards_that_are_all_the_same(tmp_path, algorithm):
    tied = [r._replace(reward=0.0, success=False) for r in random_rollouts(4)]
    said = {"best_of_n": "none of the 8 rollouts is a success", "ppo_gae": "have one reward, so PPO has no gradient"}
    bench = given(tmp_path, algorithm, rollouts=tied)
    failed(bench, performed(bench), said.get(algorithm, "rewards are constant in each of the 2 groups"))


@pytest.mark.parametrize("algorithm", CONTRASTS)
def test_one_rollout_a_group(tmp_path, algorithm):
    alone = [rollout(f"r{n}", f"item{n}", float(n), n > 1) for n in range(4)]
    bench = given(tmp_path, algorithm, rollouts=alone)
    failed(bench, performed(bench), "every one of the 4 groups has a single rollout")


def test_a_group_that_was_lost_leaves_the_others_to_learn_from(tmp_path):
    bench = given(tmp_path)
    held = bench.tape.state.evaluations[bench.evaluation].rollouts
    bench.rollouts = tuple(id_ for id_ in bench.rollouts if held[id_].item == "item1")
    *_, last = performed(bench)
    assert isinstance(last, RoundTrained)
    assert (last.used, last.dropped) == (4, 0)


def test_no_rollout_at_all(tmp_path):
    bench = given(tmp_path)
    bench.rollouts = ()
    failed(bench, performed(bench), "the batch is empty: training needs at least one rollout")


def test_a_rollout_that_was_never_recorded(tmp_path):
    bench = given(tmp_path)
    bench.rollouts = (*bench.rollouts, "f" * 26)
    failed(bench, performed(bench), f"asks for rollout {'f' * 26}, which was recorded neither for this training nor")


def test_a_trajectory_that_is_none(tmp_path):
    bench = given(tmp_path)
    junk = bench.blobs.put(b"no trajectory")
    bench.stored.add(junk.digest)
    events = performed(bench, lambda state: bench.with_rollout(state, trajectory=junk))
    failed(bench, events, "the trajectory of rollout item")


def test_a_trajectory_that_is_missing_is_the_stores_failure_and_no_verdict(tmp_path):
    bench = given(tmp_path)
    with pytest.raises(BlobError, match="is missing from"):
        performed(bench, lambda state: bench.with_rollout(state, trajectory=Blob("0" * 64, 5)))


def test_a_completion_over_the_context(tmp_path):
    long = rollout("long", "item0", 1.0, turns=[turn(completion=(4,) * CONTEXT)])
    bench = given(tmp_path, rollouts=[*random_rollouts(3), long])
    said = f"is {CONTEXT + 3} tokens long, over the model's context of {CONTEXT}"
    failed(bench, performed(bench), said)


@pytest.mark.parametrize("token", [VOCABULARY, -1])
@pytest.mark.parametrize("place", ["prompt", "completion"])
def test_a_token_of_another_vocabulary(tmp_path, token, place):
    odd = rollout("odd", "item0", 1.0, turns=[turn(**{place: (1, token)})])
    bench = given(tmp_path, rollouts=[*random_rollouts(3), odd])
    failed(bench, performed(bench), f"has token {token}, but this model's vocabulary has {VOCABULARY}")


@pytest.mark.parametrize(
    ("changes", "base", "said"),
    [
        ({}, "another", "the adapter has base_digest another, but this policy has base"),
        ({"rank": 2}, "base", "the adapter has rank 2, but this policy has 4"),
        ({"lora_alpha": 16}, "base", "the adapter has lora_alpha 16, but this policy has 8"),
    ],
)
def test_an_adapter_of_another_base_or_rank(tmp_path, changes, base, said):
    other = tiny_policy(settings=replace(SETTINGS, **changes), layers=1)
    other.info = replace(other.info, base_digest=base)
    bench = given(tmp_path)
    adapter = bench.blobs.put(other.adapter_bytes())
    bench.stored.add(adapter.digest)
    failed(bench, performed(bench, adapter=adapter), said)


def test_a_file_that_is_no_adapter(tmp_path):
    bench = given(tmp_path)
    adapter = bench.blobs.put(b"no adapter at all")
    bench.stored.add(adapter.digest)
    failed(bench, performed(bench, adapter=adapter), "the adapter cannot be read")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_loss_that_is_not_finite(tmp_path, algorithm):
    bench = given(tmp_path, algorithm)
    weight = next(iter(bench.policy.weights.values()))
    with torch.no_grad():
        weight[0, 0] = float("nan")
    adapter = bench.blobs.put(bench.policy.adapter_bytes())
    bench.stored.add(adapter.digest)
    failed(bench, performed(bench, adapter=adapter), "step 0 has loss nan, so its update was not made", step=0)
    assert without_value_head(bench.policy.adapter_bytes()) == bench.blobs.get(adapter)


@pytest.mark.parametrize("kl_target", [None, 1e-3])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_stops_before_the_adapter_is_touched(tmp_path, bad, kl_target):
    """One weight's gradient breaks in the second step: the first stands in the log, and the second changes nothing."""
    bench = given(tmp_path, settings=replace(SETTINGS, kl_target=kl_target))
    name = min(bench.policy.weights)
    healthy, seen = [True], []

    def broken(gradient):
        return gradient if healthy[0] else gradient * bad

    handle = bench.policy.weights[name].register_hook(broken)
    for events in bench.perform(bench.ask(adapter=bench.champion)):
        seen += events
        healthy[0] = False
        if isinstance(events[-1], StepTrained):
            after_first = bench.policy.adapter_bytes()
    handle.remove()
    failed(bench, seen, "step 1 has grad_norm ", step=1)
    assert bench.policy.adapter_bytes() == after_first != bench.before


def test_a_learning_rate_beyond_all_floats(tmp_path):
    bench = given(tmp_path, settings=replace(SETTINGS, learning_rate=1e39))
    failed(bench, performed(bench), "step 0 failed: RuntimeError: value cannot be converted", step=0)


def test_a_step_that_no_scale_keeps_to_its_kl_target(tmp_path):
    bench = given(tmp_path, settings=replace(SETTINGS, kl_target=1e-30, learning_rate=1.0))
    failed(bench, performed(bench), "step 0 moves the policy by more than training.kl_target 1e-30 a token", step=0)
    assert bench.policy.adapter_bytes() == bench.before


def test_a_failed_training_leaves_the_policy_fit_for_the_next(tmp_path):
    """What one training broke is no part of the next: the round is the one of a policy that was never broken."""
    bench, whole = given(tmp_path / "a"), Bench(tmp_path / "b")
    wrong = bench.ask(adapter=bench.champion)
    with torch.no_grad():
        next(iter(bench.policy.weights.values())).fill_(float("nan"))
    adapter = bench.blobs.put(bench.policy.adapter_bytes())
    assert isinstance(performed(bench, adapter=adapter)[-1], TrainingFailed)
    again = [event for events in bench.perform(wrong) for event in events]
    assert again[-1].adapter == whole.round(adapter=whole.champion)[-1].adapter
