"""The learned choice of an algorithm: its formula, its draws, how it is fitted, replayed and judged off-policy."""

from __future__ import annotations

import asyncio
import json
import math
import random
import re
from collections import Counter
from pathlib import Path

import msgspec
import pytest
import tiny_agent
from hypothesis import given, settings
from hypothesis import strategies as st
from test_selection import MIDDLING, changed, landscapes

from given import clerk
from histories import DECIDERS, World, play, run_request
from resia.agents.algorithms import describe
from resia.agents.experience import by_policy, by_rules, experience, fit, unit_gain, without
from resia.agents.offpolicy import Drawn, estimate
from resia.agents.policy import POLICY_RULE, PRIOR_TRIALS, choose, context_of, draw, propensities, scores
from resia.agents.selection import choose_algorithm
from resia.events import (
    ALGORITHMS,
    Arm,
    DecisionMade,
    Draft,
    LearnedPolicy,
    RunRequested,
    SelectionSettings,
    Source,
    decode_policy,
)
from resia.events.errors import UsageError
from resia.events.ids import SEED_BITS
from resia.replay.digest import digest
from resia.replay.fold import fold
from resia.replay.fork import before_decision, inherit
from resia.replay.verify import check
from resia.runtime.bus import connect
from resia.runtime.forking import prepare
from resia.runtime.policies import FITTED, LOGGED, RULES, judge, read_policy
from resia.runtime.reading import load
from resia.runtime.server import EmbeddedServer
from resia.runtime.store import Store

SETTINGS = SelectionSettings()
POLICY = LearnedPolicy(
    arms={"select-algorithm/1:7-reinforce-kl": {"grpo": Arm(6, 1.2), "reinforce_kl": Arm(2, 0.1)}},
    epsilon=0.3,
    exploration=0.5,
    unit_tokens=4000,
    sources=(Source("a", "d" * 64, 8),),
)
CONTEXT = {"built": ALGORITHMS, "ordinal": False, "objective": "mean", "failed": (), "rollouts_fresh": False}

names = st.sampled_from(ALGORITHMS)
arms = st.builds(Arm, st.integers(0, 500), st.floats(0, 100))
seeds = st.integers(0, 2**SEED_BITS - 1)
policies = st.builds(
    LearnedPolicy,
    st.dictionaries(st.sampled_from([f"select-algorithm/1:{r}" for r in ("6-grpo", "7-reinforce-kl")]),
                    st.dictionaries(names, arms)),
    st.floats(0.01, 1.0),
    st.floats(0, 1),
)  # fmt: skip


def pick(landscape=MIDDLING, policy=POLICY, seed=0, requested=None, **changes):
    return choose(landscape, SETTINGS, policy, **(CONTEXT | changes), requested=requested, seed=seed)


def likeliest(numbers):
    return max(numbers, key=numbers.get)


# -- the formula ---------------------------------------------------------------------------------------------------


def test_scores_are_the_published_formula():
    """Eight updates here, so prior and experience weigh the same; the best mean gain counts as 1."""
    found = scores(
        POLICY.arms["select-algorithm/1:7-reinforce-kl"], "reinforce_kl", ["grpo", "reinforce_kl", "dpo"], 0.5
    )
    w = 1 / (1 + 8 / PRIOR_TRIALS)
    assert w == 0.5
    assert found["grpo"] == pytest.approx((1 - w) * (1.0 + 0.5 * math.sqrt(math.log(8) / 6)))
    assert found["reinforce_kl"] == pytest.approx(w + (1 - w) * (0.05 / 0.2 + 0.5 * math.sqrt(math.log(8) / 2)))
    assert found["dpo"] == 0.0


def test_without_experience_the_rules_are_followed_but_for_epsilon():
    choice = pick(policy=LearnedPolicy(epsilon=0.3))
    ruled = choose_algorithm(MIDDLING, SETTINGS, **CONTEXT, requested=None)
    assert choice.scores == {name: float(name == ruled.algorithm) for name in ruled.scores}
    assert choice.propensities[ruled.algorithm] == pytest.approx(0.7 + 0.3 / len(ruled.scores))


def test_much_experience_outweighs_the_rules():
    learned = LearnedPolicy({"select-algorithm/1:7-reinforce-kl": {"grpo": Arm(400, 40), "reinforce_kl": Arm(400, 4)}})
    choice = pick(policy=learned)
    assert likeliest(choice.scores) == "grpo"
    assert "select-algorithm/1:7-reinforce-kl chooses reinforce_kl" in choice.reason


@settings(deadline=None)
@given(landscapes, policies, seeds, st.sets(names), st.sets(names), st.booleans(), st.booleans())
def test_propensities_are_probabilities_and_nothing_masked_is_drawn(land, policy, seed, built, failed, ordinal, fresh):
    given = {"built": built, "failed": failed, "ordinal": ordinal, "rollouts_fresh": fresh}
    choice = pick(land, policy, seed, **given)
    ruled = choose_algorithm(land, SETTINGS, **(CONTEXT | given), requested=None)
    assert choice.masks == ruled.masks
    assert choice == pick(land, policy, seed, **given)
    if ruled.algorithm is None:
        assert choice == ruled
        return
    assert choice.rule == POLICY_RULE
    assert choice.algorithm not in choice.masks
    assert choice.propensities.keys() == set(ALGORITHMS) - choice.masks.keys()
    assert math.fsum(choice.propensities.values()) == pytest.approx(1.0)
    assert min(choice.propensities.values()) >= policy.epsilon / len(choice.propensities) * (1 - 1e-9)
    assert all(math.isfinite(score) for score in choice.scores.values())


@given(landscapes, seeds, st.sampled_from((None, *ALGORITHMS)))
@settings(deadline=None)
def test_without_a_policy_or_with_an_algorithm_asked_for_the_rules_choose(land, seed, requested):
    ruled = choose_algorithm(land, SETTINGS, **CONTEXT, requested=requested)
    assert pick(land, None, seed, requested) == ruled
    if requested is not None:
        assert pick(land, POLICY, seed, requested) == ruled


def test_draws_come_as_often_as_their_propensity():
    chances = {"grpo": 0.6, "dpo": 0.1, "best_of_n": 0.3}
    rng = random.Random(0)
    counts = Counter(draw(chances, rng.getrandbits(SEED_BITS)) for _ in range(20_000))
    for name, p in chances.items():
        assert counts[name] / 20_000 == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / 20_000))
    assert draw(chances, 2**SEED_BITS - 1) == "dpo"  # the last in the paper's order
    assert draw({"grpo": 1.0, "dpo": 0.0}, 2**SEED_BITS - 1) == "grpo"


def test_equal_scores_go_to_the_rules_and_then_to_the_papers_order():
    even = dict.fromkeys(ALGORITHMS, 0.0)
    assert likeliest(propensities(even, "dpo", 0.1)) == "dpo"
    without_it = {name: 0.0 for name in ALGORITHMS if name not in ("dpo", "ppo_gae")}
    assert likeliest(propensities(without_it, "dpo", 0.1)) == "grpo"


# -- the file ------------------------------------------------------------------------------------------------------


def test_the_digest_is_of_the_canonical_bytes_and_stays():
    shuffled = {context: dict(reversed(held.items())) for context, held in reversed(POLICY.arms.items())}
    assert msgspec.structs.replace(POLICY, arms=shuffled).encoded() == POLICY.encoded()
    assert decode_policy(POLICY.encoded()) == POLICY
    assert POLICY.digest() == "b78e688e1c330b610bfb464bca657296eb9156a2de14b5edca7d0297f999bceb"


@given(policies)
def test_a_policy_is_read_as_it_was_written(policy):
    assert decode_policy(policy.encoded()) == policy


# -- runs that draw ------------------------------------------------------------------------------------------------


def played(run, policy=POLICY, training=0.3, world=None, **request):
    asked = run_request(**({"mode": "W", "group_size": 8, "patience_w": 2, "max_iterations": 5} | request))
    return play(msgspec.structs.replace(asked, policy=policy), world or World(training=training), run=run)


HISTORIES = {f"r{seed}": played(f"r{seed}", seed=seed) for seed in range(6)}


def test_a_run_draws_from_its_policy_and_replays():
    drawn = Counter()
    for history in HISTORIES.values():
        assert check(history.facts, DECIDERS).problems == ()
        trained = [d for d in history.of(DecisionMade) if d.action == "train_weights"]
        assert trained != []
        for decision in trained:
            assert decision.rule.endswith(POLICY_RULE)
            assert 0 < decision.propensities[decision.algorithm] < 1
            assert POLICY.digest()[:12] in decision.reason
            drawn[decision.algorithm] += 1
    assert len(drawn) > 1


def test_replay_notices_another_policy():
    history = next(iter(HISTORIES.values()))
    genesis = history.facts[0]
    other = msgspec.structs.replace(genesis.event, policy=LearnedPolicy(epsilon=1.0))
    report = check([msgspec.structs.replace(genesis, event=other), *history.facts[1:]], DECIDERS)
    decided = [fact.sequence for fact in history.facts if isinstance(fact.event, DecisionMade)]
    assert any(p.kind == "nondeterminism" and p.sequence in decided for p in report.problems)


def test_a_log_without_a_policy_stays_readable():
    data = msgspec.to_builtins(run_request())
    del data["policy"]
    assert msgspec.convert(data, RunRequested) == run_request()


def test_two_runs_of_one_seed_draw_alike_whatever_their_names():
    again = played("another", seed=3)
    assert digest(again.state) == digest(HISTORIES["r3"].state)


# -- learning from logs --------------------------------------------------------------------------------------------


LEARNED = [experience(run, history.state) for run, history in HISTORIES.items()]
WHOLE = fit(LEARNED, epsilon=0.1, exploration=0.2)


def test_what_a_run_says():
    history = HISTORIES["r0"]
    found = experience("r0", history.state)
    trials = [t for t in history.state.trials if t.lever == "train_weights"]
    assert [u.algorithm for u in found.updates] == [t.name for t in trials]
    assert [u.gain for u in found.updates] == [t.gate.effect if t.outcome == "accepted" else 0.0 for t in trials]
    for update in found.updates:
        (training,) = (t for t in history.state.trainings.values() if t.request.iteration == update.iteration)
        trained = sum(r.tokens for r in training.rounds)
        assert update.tokens == trained + 30 * len(training.rollouts)  # 20 of a prompt and 10 of an answer
        assert not update.asked
        assert update.situation.ruled in update.situation.feasible


def test_a_fit_counts_every_update_under_the_rule_that_fired():
    runs, policy = LEARNED, WHOLE
    updates = [update for run in runs for update in run.updates]
    assert sum(arm.trials for held in policy.arms.values() for arm in held.values()) == len(updates)
    for context, held in policy.arms.items():
        for name, arm in held.items():
            mine = [u for u in updates if (u.situation.context, u.algorithm) == (context, name)]
            assert arm == Arm(len(mine), math.fsum(unit_gain(u, policy.unit_tokens) for u in mine))
    assert policy.unit_tokens == round(sum(u.tokens for u in updates) / len(updates))
    assert [source.run for source in policy.sources] == sorted(HISTORIES)


@given(st.permutations(LEARNED), st.lists(st.integers(0, 5), max_size=3))
@settings(max_examples=20, deadline=None)
def test_neither_the_order_of_runs_nor_one_given_twice_changes_a_fit(runs, twice):
    whole = [*runs, *(runs[n] for n in twice)]
    policy = fit(whole, epsilon=0.1, exploration=0.2)
    assert policy.digest() == WHOLE.digest()


def test_two_logs_under_one_name_are_refused():
    mine, other = LEARNED[:2]
    with pytest.raises(UsageError, match="run 'r0' was given twice with different logs"):
        fit([mine, other._replace(run="r0")], epsilon=0.1, exploration=0.2)


def test_a_run_that_has_not_ended_is_refused():
    with pytest.raises(UsageError, match="run 'r0' has not ended"):
        experience("r0", fold(HISTORIES["r0"].facts[:-1]))


def test_a_fork_counts_only_what_it_decided_itself():
    history = HISTORIES["r0"]
    number = next(f.sequence for f in history.facts if isinstance(f.event, DecisionMade) and f.event.iteration == 2)
    parent = before_decision(history.facts, number)
    origin = inherit(fold(history.facts[: parent.sequence]))
    child = msgspec.structs.replace(history.state.request, parent=parent)
    forked = play(child, World(training=0.3), run="fork", origin=origin, blobs=history.blobs)
    assert {u.iteration for u in experience("fork", forked.state).updates} == {2, 3, 4}
    assert 1 in {u.iteration for u in experience("r0", history.state).updates}


def test_leaving_a_run_out_keeps_the_unit_of_cost():
    runs, policy = LEARNED, WHOLE
    apart = without(runs, "r0", policy)
    assert apart.unit_tokens == policy.unit_tokens
    assert [source.run for source in apart.sources] == sorted(HISTORIES)[1:]
    rest = [u for run in runs if run.run != "r0" for u in run.updates]
    total = sum(arm.gain for held in apart.arms.values() for arm in held.values())
    assert total == pytest.approx(sum(unit_gain(u, policy.unit_tokens) for u in rest))


def test_contexts_do_not_depend_on_what_a_run_has_masked():
    land = changed(informative=0.5)
    assert context_of(land, SETTINGS, ordinal=False, objective="mean") == "select-algorithm/1:6-grpo"
    update = LEARNED[0].updates[0]
    masked = update.situation._replace(masked=frozenset(ALGORITHMS[1:]))
    assert masked.context == update.situation.context
    assert set(by_rules(masked)) == set(by_policy(POLICY, masked)) == {ALGORITHMS[0]}


# -- off-policy ----------------------------------------------------------------------------------------------------

WORTH = {"grpo": 0.2, "dpo": 0.5, "best_of_n": 0.35}
LOGGING = {"grpo": 0.7, "dpo": 0.1, "best_of_n": 0.2}
TARGET = {"grpo": 0.1, "dpo": 0.6, "best_of_n": 0.3}
TRUTH = sum(TARGET[name] * worth for name, worth in WORTH.items())


def logged(rng, n, logging=LOGGING, target=TARGET):
    """n decisions of a bandit whose arms pay 0 or 1."""
    actions = rng.choices(list(logging), list(logging.values()), k=n)
    return [Drawn(a, float(rng.random() < WORTH[a]), logging, target) for a in actions]


def test_the_estimates_are_right_on_average_and_their_errors_have_the_right_size():
    rng = random.Random(1)
    found = [estimate(logged(rng, 200)) for _ in range(400)]
    for name in ("ips", "snips"):
        values = [getattr(one, name) for one in found]
        mean = sum(values) / len(values)
        spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
        assert mean == pytest.approx(TRUTH, abs=4 * spread / math.sqrt(len(values)) + (0.005 if name == "snips" else 0))
        stated = sum(getattr(one, f"{name}_se") for one in found) / len(found)
        assert stated == pytest.approx(spread, rel=0.15)
    assert sum(one.snips_se for one in found) < sum(one.ips_se for one in found)


def test_a_target_that_is_the_logging_policy_gives_the_plain_mean():
    drawn = logged(random.Random(2), 50, target=LOGGING)
    found = estimate(drawn)
    assert found.ips == found.snips == pytest.approx(sum(d.reward for d in drawn) / 50)
    assert (found.ess, found.support) == (pytest.approx(50), pytest.approx(1))


def test_what_could_not_be_drawn_is_said():
    found = estimate([Drawn("grpo", 1.0, {"grpo": 1.0, "dpo": 0.0}, {"grpo": 0.25, "dpo": 0.75})] * 4)
    assert (found.ips, found.snips, found.support) == (0.25, 1.0, 0.25)
    nothing = estimate([Drawn("grpo", 1.0, {"grpo": 1.0}, {"dpo": 1.0})] * 2)
    assert (nothing.ips, nothing.snips, nothing.support, nothing.ess) == (0.0, None, 0.0, 0.0)
    assert estimate([]).ips is None
    assert estimate(logged(random.Random(3), 1)).ips_se is None
    with pytest.raises(ValueError, match="dpo was done with logged probability 0"):
        estimate([Drawn("dpo", 1.0, {"grpo": 1.0, "dpo": 0.0}, {"dpo": 1.0})])


def test_logs_are_judged_with_each_run_left_out():
    runs, policy = {one.run: one for one in LEARNED}, WHOLE
    found = judge(runs, policy)
    updates = [u for run in runs.values() for u in run.updates]
    gains = [unit_gain(u, policy.unit_tokens) for u in updates]
    assert found[LOGGED].ips == pytest.approx(sum(gains) / len(gains))
    assert found[RULES].support == found[FITTED].support == pytest.approx(1)
    ruled = [
        g / u.propensities[u.algorithm] for g, u in zip(gains, updates, strict=True) if u.algorithm == u.situation.ruled
    ]
    assert found[RULES].ips == pytest.approx(sum(ruled) / len(gains))
    asked = {"r0": runs["r0"]._replace(updates=tuple(u._replace(asked=True) for u in runs["r0"].updates))}
    assert judge(asked, policy)[RULES].decisions == 0


# -- the command line ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store whose server runs, with two finished runs and one that has only begun."""
    folder = tmp_path_factory.mktemp("policies") / "store"
    server = EmbeddedServer(folder)
    access = server.start()
    asyncio.run(_fill(access))
    yield folder
    server.stop()


async def _fill(access) -> None:
    bus = await connect(access.url, *access.login("admin"))
    await bus.create_registry()
    await bus.create_run("begun")
    await bus.append("begun", [clerk("begun").genesis(run_request())])
    for run in ("r0", "r1"):
        history = HISTORIES[run]
        await bus.create_run(run)
        numbered = zip(history.facts, history.records, strict=True)
        await bus.append(run, [Draft(fact.envelope.id, *record, fact.event) for fact, record in numbered])
        await bus.seal(run)
        await bus.set_status(run, "completed")
    await bus.close()


def test_fit_writes_the_policy_of_the_runs_and_says_what_it_would_have_gained(say, store):
    code, out, err = say("policy", "fit", "r1", "r0", "--out", "p.json", "--store", store, "--json")
    assert (code, err) == (0, "")
    line = json.loads(out)
    expected = fit(LEARNED[:2], epsilon=0.1, exploration=0.2)
    assert read_policy(Path("p.json")) == expected
    assert line["policy"] == expected.digest()
    assert line["estimates"].keys() == {RULES, FITTED, LOGGED}
    code, out, _ = say("policy", "fit", "r0", "r1", "--out", "q.json", "--store", store)
    assert code == 0
    assert Path("q.json").read_bytes() == Path("p.json").read_bytes()
    assert "by IPS" in out
    assert expected.digest()[:12] in out


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["r0", "begun"], "run 'begun' has not ended"),
        (["r0", "r9"], "unknown run 'r9'"),
        (["r0", "--epsilon", "0"], "--epsilon is 0: give a share above 0"),
        (["r0", "--exploration", "2"], "--exploration is 2"),
        (["r0", "--out", "."], "exists already"),
    ],
)
def test_what_cannot_be_fitted_is_one_sentence_and_no_file(say, store, args, words):
    given = [] if "--out" in args else ["--out", "p.json"]
    code, out, err = say("policy", "fit", *args, *given, "--store", store)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert words in err
    assert not Path("p.json").exists()


def test_a_policy_that_cannot_be_pinned(say, tmp_path):
    path = tmp_path / "p.json"
    assert "there is no policy file" in say("run", "--policy", path)[2]
    path.write_text('{"epsilon": 0}')
    assert "holds no policy" in say("run", "--policy", path)[2]
    sources = tuple(Source(f"run-{n}", "d" * 64, 1) for n in range(400))
    path.write_bytes(msgspec.structs.replace(POLICY, sources=sources).encoded())
    assert "fit it from fewer runs" in say("run", "--policy", path)[2]
    path.write_bytes(POLICY.encoded())
    assert "leaves a policy nothing to choose" in say("run", "--policy", path, "--algorithm", "grpo")[2]
    assert "mode H freezes the weights: leave --policy out" in say("run", "--policy", path, "--mode", "H")[2]
    code, _, err = say("run", "--policy", path, "--resume", "r0")
    assert code == 2
    assert "--policy" in err


def test_algorithms_are_listed_with_masks_rules_and_source(say):
    code, out, err = say("algorithms", "--json")
    assert (code, err) == (0, "")
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["algorithm"] for line in lines] == list(ALGORITHMS)
    assert all(line["masks"] and line["rules"] and "arXiv" in line["source"] for line in lines)
    code, out, _ = say("algorithms")
    assert code == 0
    assert all(f"{name}: " in out for name in ALGORITHMS)


def test_the_words_for_masks_and_rules_are_those_of_the_rules():
    """Every published rule stands under its algorithm, and a threshold that is changed changes the words."""
    listed = {rule.partition(":")[2]: one.algorithm for one in describe() for rule in one.rules}
    page = (Path(__file__).parent.parent / "docs" / "selection.md").read_text(encoding="utf-8")
    published = set(re.findall(r"^\| `(\d-[\w-]+)` \|", page.partition("select-algorithm/1")[2], re.MULTILINE))
    assert published == {*listed, "9-none"}
    for land, rule in ((changed(informative=0.5), "6-grpo"), (MIDDLING, "7-reinforce-kl")):
        choice = choose_algorithm(land, SETTINGS, **CONTEXT, requested=None)
        assert choice.rule.endswith(rule)
        assert listed[rule] == choice.algorithm
    raised = {d.algorithm: d for d in describe(SelectionSettings(min_pairs=99, min_group=7))}
    assert any("99 pairs" in mask for mask in raised["dpo"].masks)
    assert any("7 rollouts" in mask for mask in raised["grpo"].masks)


def test_a_run_is_begun_with_its_policy_and_replays(say, tmp_path):
    """Real processes: what is drawn is in the log, and the log alone decides it again."""
    model, path, store = tiny_agent.unpack(tmp_path / "taught"), tmp_path / "p.json", tmp_path / "store"
    path.write_bytes(LearnedPolicy(epsilon=1.0).encoded())
    small = ["synthetic=true", "search_items=3", "test_items=2"]
    chosen = [*(f"domain_options.{option}" for option in small), f"engine.model={model}", "engine.threads=1"]
    chosen += ["loop.max_iterations=1", "sampling.group_size=6", "training.rank=4", "training.rounds=1", "seed=3"]
    sets = [part for text in chosen for part in ("--set", text)]
    code, _, err = say("run", "--run", "drawn", "--mode", "W", "--policy", path, *sets, "--store", store)
    assert code == 3, err  # its one iteration is spent
    found = asyncio.run(load(Store(store), "drawn"))
    assert found.facts[0].event.policy == LearnedPolicy(epsilon=1.0)
    decision = next(fact.event for fact in found.facts if isinstance(fact.event, DecisionMade))
    assert decision.rule.endswith(POLICY_RULE)
    assert set(decision.propensities.values()) == {1 / len(decision.propensities)}
    assert say("replay", "drawn", "--verify", "--store", store)[0] == 0
    child = asyncio.run(prepare(Store(store), "drawn@1", ["loop.max_iterations=2"], None, None))
    assert child.request.policy == LearnedPolicy(epsilon=1.0)
