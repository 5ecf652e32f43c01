"""What a run would ask for, beside what runs did ask for."""

from __future__ import annotations

from collections import Counter

import msgspec
import pytest

from histories import WORLD, World, play, run_request
from resia.domains.registry import load_domain
from resia.events import (
    EngineSettings,
    EvaluationRequested,
    Price,
    PriceSettings,
    RolloutRecorded,
    RolloutsRequested,
    RoundTrained,
    RunSettings,
    SamplingSettings,
    TrainingSettings,
)
from resia.runtime.estimate import Estimate, estimate
from resia.runtime.needs import Size, evaluation, first_size, sealed_test, training, widest_size
from resia.runtime.past import Past, measured

DOMAIN = load_domain("denoising", {"synthetic": True, "search_items": 3, "test_items": 2})
ITEMS = {"search": 3, "validation": 12, "test": 2}
SIZE = Size(20, 10)


def settings(**changes) -> RunSettings:
    chosen = {
        "sampling": SamplingSettings(group_size=4),
        "training": TrainingSettings(rounds=2, groups=2, group_size=4),
    }
    return RunSettings(**{**chosen, **changes})


def loop(base: RunSettings, **changes) -> RunSettings:
    return msgspec.structs.replace(base, loop=msgspec.structs.replace(base.loop, **changes))


def part(found: Estimate, name: str):
    return next(part for part in found.parts if part.name == name)


# -- rollouts are those that the rules ask for ---------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["grpo", "best_of_n", "reinforce_kl"])
@pytest.mark.parametrize("seed", [0, 1])
def test_rollouts_are_exactly_what_a_run_asks_for(algorithm, seed):
    request = run_request(mode="W", patience_w=1, max_iterations=1, seed=seed)
    chosen = msgspec.structs.replace(request.settings, algorithm=algorithm)
    history = play(msgspec.structs.replace(request, settings=chosen), World(base=0.5, noise=0.4))
    made = [e for e in history.of(EvaluationRequested) if e.purpose == "candidate"]
    assert {len(e.slots) for e in made} == {evaluation(chosen, ITEMS, SIZE).rollouts}
    fresh = sum(len(r.slots) for r in history.of(RolloutsRequested) if r.purpose == "training")
    assert fresh == training(chosen, algorithm, ITEMS, SIZE, most=False).rollouts
    tested = [len(e.slots) for e in history.of(EvaluationRequested) if e.purpose in ("test", "baseline")]
    assert sum(tested) <= sealed_test(ITEMS, SIZE).rollouts == 4


def test_passes_of_a_training_are_counted_round_by_round():
    chosen = settings(training=TrainingSettings(rounds=3, steps_per_round=2, groups=2, group_size=8))
    found = training(chosen, "ppo_gae", ITEMS, SIZE, most=False)
    assert found.rollouts == 2 * 16  # rounds 1 and 2
    assert found.training == 30 * (12 * 2 + 16 * 2 * 2)  # round 0 learns from the 12 of the evaluation
    raised = training(chosen, "grpo", ITEMS, SIZE, most=True)
    assert raised.rollouts == 2 * 2 * 64
    cloned = training(chosen, "best_of_n", ITEMS, SIZE, most=False)
    assert (cloned.rollouts, cloned.training) == (0, 30 * 12 * chosen.training.bon_steps)


@pytest.mark.parametrize("mode", ["H", "W", "W+H", "random", "best-of-n"])
@pytest.mark.parametrize("budget", [1, 3_000, 12_000])
def test_no_run_takes_more_than_the_most(mode, budget):
    operators = {**WORLD.operators, "random-search": 0.1, "best-of-n": 0.1}
    request = run_request(mode=mode, token_budget=budget, max_iterations=4)
    state = play(request, World(base=0.5, operators=operators)).state
    found = estimate(request.settings, DOMAIN, Past())
    assert state.ledger.tokens <= found.run.tokens_most
    if found.run.rollouts_most is not None:
        assert state.ledger.rollouts <= found.run.rollouts_most


# -- sizes -----------------------------------------------------------------------------------------------------------


def test_sizes_without_a_past_are_said_to_be_guesses():
    found = estimate(settings(), DOMAIN, Past())
    assert "guessed from bytes" in found.sizes
    assert found.speed == "time is not known: no past run of this model is in the store"
    assert found.run.seconds is None
    assert found.levers.startswith("expected: 3 edits and 2 trainings, as if nothing were accepted")


def test_the_most_bounds_every_harness_of_the_catalogue():
    first, widest = first_size(DOMAIN, most=True), widest_size(DOMAIN)
    guess = first_size(DOMAIN, most=False)
    assert guess.prompt * 3 < first.prompt < widest.prompt
    assert widest.completion >= 3 * 256  # three tries of the longest answers


def test_a_frozen_harness_is_not_counted_as_widened():
    found = part(estimate(loop(settings(), mode="W"), DOMAIN, Past()), "each evaluation")
    assert found.tokens_most == round(27 * first_size(DOMAIN, most=True).tokens)


# -- what past runs measured -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def past() -> Past:
    history = play(run_request(mode="W", patience_w=1), World(base=0.5, noise=0.4))
    return measured(history.facts, history.state.request.settings)


def test_sizes_speed_and_levers_are_those_of_the_log(past):
    history = play(run_request(mode="W", patience_w=1), World(base=0.5, noise=0.4))
    rollouts = history.of(RolloutRecorded)
    assert past.size == (20, 10)
    assert past.rollouts == len(rollouts)
    shards = Counter(r.shard for r in history.of(RolloutsRequested))
    assert past.sampling_speed == pytest.approx(30 * len(rollouts) / (0.25 * sum(shards.values())))
    assert past.training_speed == pytest.approx(99.0)
    assert (past.levers.edits, past.levers.trainings) == (0, len(history.of(RoundTrained)) / 2)


def test_time_follows_from_measured_speed(past):
    found = estimate(loop(settings(), mode="W"), DOMAIN, past)
    one = part(found, "each evaluation")
    assert one.tokens == 27 * 30
    assert one.seconds == pytest.approx(one.tokens / past.sampling_speed, abs=0.06)
    trained = part(found, "training by grpo")
    expected = (trained.tokens - trained.training_tokens) / past.sampling_speed + trained.training_tokens / 99.0
    assert trained.seconds == pytest.approx(expected, abs=0.06)


def test_another_models_runs_say_nothing(past):
    other = play(run_request(mode="H"), WORLD)
    was = other.state.request.settings
    fresh = msgspec.structs.replace(was, engine=msgspec.structs.replace(was.engine, model="other"))
    found = measured(other.facts, fresh)
    assert (found.rollouts, found.sampling_speed, found.training_speed) == (0, None, None)
    assert found.levers is not None  # how often a mode pulls its levers is not the model's
    threads = msgspec.structs.replace(was, engine=msgspec.structs.replace(was.engine, threads=1))
    assert measured(other.facts, threads).sampling_speed is None
    assert measured([], was) == Past()


def test_money_follows_the_prices():
    price = PriceSettings("EUR", {"smollm2-135m-instruct": Price(1.0, 4.0, 2.0)})
    history = play(run_request(mode="W", patience_w=1), World(base=0.5, noise=0.4))
    past = measured(history.facts, history.state.request.settings)
    found = estimate(loop(settings(price=price), mode="W"), DOMAIN, past)
    assert part(found, "each evaluation").money == pytest.approx(27 * (20 + 40) / 1e6)
    assert found.run.money_most > found.run.money > 0
    capped = estimate(loop(settings(price=price), mode="W", money_budget=1e-6), DOMAIN, past)
    assert capped.run.money_most < found.run.money_most


def test_thought_is_in_every_size_and_in_the_most():
    for most in (True, False):
        assert first_size(DOMAIN, most, 50).completion == first_size(DOMAIN, most).completion + 50
    assert widest_size(DOMAIN, 50).completion >= widest_size(DOMAIN).completion + 50
    made = (settings(), settings(engine=EngineSettings(thinking_tokens=50)))
    plain, thought = (estimate(one, DOMAIN, Past()).run for one in made)
    assert thought.tokens_most > plain.tokens_most
