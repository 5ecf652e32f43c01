"""Every published rule fires in a whole run: a real server, the real workers, a real model, domains of a plug-in.

Each fixture domain has one landscape. The rule that it is made for is the one that the log names, the features say
why, `resia explain` tells it, and `resia replay --depth decisions` takes the same decision again.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import fixture_domains
import pytest
from whole_runs import Quick, play_all

from resia.domains.registry import load_domain
from resia.events import ALGORITHMS, AdapterTrained, DecisionMade, RolloutRecorded, RunCompleted, TrainingRequested
from resia.events.settings import OFF_POLICY
from resia.replay.digest import digest
from resia.replay.fold import fold
from resia.replay.state import RunState
from resia.runtime.cli import main
from resia.runtime.config import load_settings
from resia.runtime.reading import Log
from resia.runtime.roles import deciders
from resia.runtime.server import EmbeddedServer
from resia.runtime.session import DEFAULT_WORKERS, Session, Watch, launch
from resia.runtime.store import Store

SETTINGS = [
    "engine.threads=1",
    "loop.mode=W",
    "loop.patience_w=1",
    "gate.min_items=4",
    "sampling.shard_size=64",
    "training.rank=4",
    "training.rounds=1",
    "training.bon_top=8",
    "training.bon_steps=1",
    "training.bon_rounds=1",
    "training.dpo_steps=1",
    "training.dpo_rounds=1",
    "training.learning_rate=1e-6",
    "seed=3",
]


class Case(NamedTuple):
    """A run of a fixture domain, and its decisions in order: the lever's rule and the algorithm's."""

    domain: str
    settings: tuple[str, ...]
    decided: tuple[tuple[str, str], ...]


STOP = ("3-stop", "")
CASES = {
    "dense": Case(
        "dense_steps",
        ("domain_options.search_items=2", "sampling.group_size=4"),
        (("2-train-weights", "5-ppo-gae"), STOP),
    ),
    "ordinal": Case("ordinal", ("domain_options.search_items=10",), (("2-train-weights", "1-dpo"), STOP)),
    "sparse": Case(
        "sparse",
        ("domain_options.search_items=20", "sampling.group_size=20"),
        (("2-train-weights", "2-best-of-n"), STOP),
    ),
    "skewed": Case("skewed", (), (("2-train-weights", "3-entropic"), STOP)),
    "mid-binary": Case(
        "mid_binary",
        ("loop.mode=W+H", "loop.patience_h=1"),
        (("1-edit-harness", ""), ("2-train-weights", "6-grpo"), STOP),
    ),
    # An update that overshoots: whatever the search pays for, what was solved is lost, and on validation alone.
    "regression-prone": Case(
        "regression_prone",
        ("gate.retention=greedy", "domain_options.search_items=10", "loop.patience_w=4", "training.learning_rate=0.1"),
        (
            ("2-train-weights", "1-dpo"),
            ("2-train-weights", "3-entropic"),
            ("2-train-weights", "6-grpo"),
            ("2-train-weights", "4-reinforce-kl"),
            STOP,
        ),
    ),
    # Three passes of eight rollouts an item are left after the baseline, one after the first update, none after two.
    "costly": Case(
        "mid_binary",
        ("loop.patience_w=9", "loop.token_budget=20000"),
        (("2-train-weights", "7-reinforce-kl"), ("2-train-weights", "8-fallback"), ("0-budget", "")),
    ),
    "requested": Case("mid_binary", ("algorithm=entropic",), (("2-train-weights", "0-requested"), STOP)),
    "hopeless": Case("hopeless", (), (STOP,)),
}
RULE_OF = {
    "1-dpo": "dpo",
    "2-best-of-n": "best_of_n",
    "3-entropic": "entropic",
    "4-reinforce-kl": "reinforce_kl",
    "5-ppo-gae": "ppo_gae",
    "6-grpo": "grpo",
    "7-reinforce-kl": "reinforce_kl",
    "8-fallback": "grpo",
    "0-requested": "entropic",
}
# What docs/selection.md says of each rule, and what a rule that comes later can take for granted.
SPARSE = lambda x: x.p_pos < 0.05 and x.informative < 0.15 and x.successes >= 8  # noqa: E731
SKEWED = lambda x: (x.skew > 1 or x.tail > 3) and x.distinct_rewards >= 3  # noqa: E731
HOLDS = {
    "2-best-of-n": SPARSE,
    "3-entropic": lambda x: SKEWED(x) and not SPARSE(x),
    "4-reinforce-kl": lambda x: x.regression_risk > 0.3,
    "5-ppo-gae": lambda x: x.reward_density >= 0.3 and x.horizon >= 3 and x.regression_risk <= 0.3,
    "6-grpo": lambda x: x.informative >= 0.15 and x.afford >= 4 and not (x.reward_density >= 0.3 and x.horizon >= 3),
    "7-reinforce-kl": lambda x: x.informative < 0.15 or x.afford < 4,
    "8-fallback": lambda x: x.successes >= 8 and x.afford < 4,
}


class Played(NamedTuple):
    """The runs of all cases in one store whose server still runs."""

    store: Path
    model: Path
    plug_in: Path
    logs: dict[str, Log]

    def decisions(self, name: str) -> list[DecisionMade]:
        return [fact.event for fact in self.logs[name].facts if isinstance(fact.event, DecisionMade)]


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fixtures")
    plug_in = fixture_domains.install(folder / "site")
    model = fixture_domains.build_model(folder / "model")
    server = EmbeddedServer(folder / "store", durable=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(plug_in))
        try:
            runs = {name: settings_of(case, model) for name, case in CASES.items()}
            resources = Quick(Store(folder / "store").blobs(), None, unsafe_local=False)
            logs = asyncio.run(play_all(server.start(), resources, runs))
            yield Played(folder / "store", model, plug_in, logs)
        finally:
            server.stop()


def settings_of(case: Case, model: Path):
    return load_settings(None, [f"domain={case.domain}", f"engine.model={model}", *SETTINGS, *case.settings])


every_case = pytest.mark.parametrize("name", CASES)
every_training = pytest.mark.parametrize(
    ("name", "number", "rule"),
    [(name, n, rule) for name, case in CASES.items() for n, (_, rule) in enumerate(case.decided) if rule],
)


def test_every_rule_of_the_algorithm_and_every_rule_of_the_lever_is_in_some_log(played):
    rules = {rule for name in CASES for decision in played.decisions(name) for rule in decision.rule.split()}
    levers = ("0-budget", "1-edit-harness", "2-train-weights", "3-stop")
    assert rules == {f"select-lever/1:{name}" for name in levers} | {f"select-algorithm/1:{name}" for name in RULE_OF}


@every_case
def test_a_fixture_brings_its_rules_about(played, name):
    state, decided = played.logs[name].at(), CASES[name].decided
    assert isinstance(state.ending, RunCompleted), state.ending
    found = [tuple(f"{rule} ".split(" ")[:2]) for rule in (d.rule for d in played.decisions(name))]
    short = [(a.removeprefix("select-lever/1:"), b.removeprefix("select-algorithm/1:")) for a, b in found]
    assert tuple(short) == decided


@every_training
def test_the_features_in_the_log_explain_the_rule(played, name, number, rule):
    decision = played.decisions(name)[number]
    request = played.logs[name].at().request
    assert decision.algorithm == RULE_OF[rule]
    assert request.ordinal == (name in {"ordinal", "regression-prone"})
    assert (rule == "1-dpo") <= request.ordinal
    assert rule not in HOLDS or HOLDS[rule](decision.features)


def champions_rollouts(log: Log, decision: DecisionMade) -> dict[str, list[RolloutRecorded]]:
    """The rollouts that the decision is about, by item, straight from the log."""
    number = next(f.sequence for f in log.facts if f.event == decision)
    champion = fold(log.facts[: number - 1]).champion
    found = defaultdict(list)
    for fact in log.facts[: number - 1]:
        event = fact.event
        if not isinstance(event, RolloutRecorded) or event.evaluation != champion.evaluation:
            continue
        if event.split == "search" and not event.greedy:
            found[event.item].append(event)
    return found


@every_case
def test_the_features_are_those_of_the_rollouts_in_the_log(played, name):
    log = played.logs[name]
    for decision in played.decisions(name):
        x, groups = decision.features, champions_rollouts(log, decision)
        rollouts = [r for group in groups.values() for r in group]
        wins = sum(r.success for r in rollouts)
        assert (x.items, x.group_size, x.successes) == (len(groups), len(rollouts) // len(groups), wins)
        assert x.p_pos == pytest.approx(wins / len(rollouts))
        assert x.informative == pytest.approx(
            sum(len({r.reward for r in group}) > 1 for group in groups.values()) / len(groups)
        )
        assert x.reward_mean == pytest.approx(sum(r.reward for r in rollouts) / len(rollouts))
        paid = [sum(step != 0 for step in r.step_rewards) / len(r.step_rewards) for r in rollouts]
        assert x.reward_density == pytest.approx(sum(paid) / len(paid))
        assert x.horizon == (fixture_domains.STEPS if name == "dense" else 1)


def test_the_sparse_fixture_is_won_once_in_fifty_and_the_skewed_one_has_a_tail(played):
    sparse, skewed = played.decisions("sparse")[0].features, played.decisions("skewed")[0].features
    assert 0.01 <= sparse.p_pos <= 0.03
    assert skewed.skew > 1
    assert skewed.tail > 3
    assert played.logs["skewed"].at().request.objective == "max"


@every_training
def test_masks_are_of_what_the_log_shows_to_be_infeasible_and_of_nothing_else(played, name, number, rule):
    decision, before = played.decisions(name)[number], played.decisions(name)[:number]
    x, failed = decision.features, {d.algorithm for d in before if d.algorithm}
    unfit = {
        "best_of_n": x.successes < 8,
        "dpo": round(x.informative * x.items) * (x.group_size - 1) < 64,
        **dict.fromkeys(("grpo", "entropic", "reinforce_kl"), x.informative == 0),
    }
    requested = played.logs[name].at().request.settings.algorithm
    expected = {a for a in ALGORITHMS if unfit.get(a) or a in failed or requested not in (None, a)}
    assert decision.masks.keys() & set(ALGORITHMS) == expected
    assert all(decision.masks[a] == "failed on this champion, and the rollouts are the same" for a in failed)
    assert decision.scores.keys() == decision.propensities.keys() == set(ALGORITHMS) - expected
    assert decision.propensities == {a: float(a == decision.algorithm) for a in decision.scores}


def test_the_regression_prone_fixture_loses_what_it_had_solved_each_time(played):
    """Prior one in ten; each update that lost the champion's solved items counts one."""
    state = played.logs["regression-prone"].at()
    delta = state.request.settings.gate.retention_delta
    lows = [t.gate.retention_low for t in state.trials if t.lever == "train_weights"]
    assert len(lows) == 4
    assert all(low <= -delta for low in lows)
    risks = [d.features.regression_risk for d in played.decisions("regression-prone")]
    assert risks == pytest.approx([1 / 10, 2 / 11, 3 / 12, 4 / 13, 5 / 14])


@every_training
def test_what_was_chosen_was_trained(played, name, number, rule):
    facts = played.logs[name].facts
    (asked,) = [f for f in facts if isinstance(f.event, TrainingRequested) and f.event.iteration == number + 1]
    (trained,) = [f.event for f in facts if isinstance(f.event, AdapterTrained) and f.event.iteration == number + 1]
    assert asked.event.algorithm == trained.algorithm == RULE_OF[rule]
    assert trained.steps == 1
    assert (asked.event.algorithm in OFF_POLICY) == (rule in {"1-dpo", "2-best-of-n"})


@every_case
def test_every_decision_is_taken_again_alike(played, name):
    log = played.logs[name]
    facts = {fact.envelope.id: fact for fact in log.facts}
    decide = deciders()["feedback"]
    for fact in log.facts:
        if isinstance(fact.event, DecisionMade):
            again = decide(log.at(fact.envelope.basis), facts[fact.envelope.cause])
            assert [event for event in again if isinstance(event, DecisionMade)] == [fact.event]


@every_case
def test_replay_by_the_command_line_finds_no_divergence(played, name, capsys):
    assert main(["replay", name, "--depth", "decisions", "--store", str(played.store), "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["divergences"] == []
    assert json.loads(line)["digest"] == digest(played.logs[name].at())


@every_case
def test_explain_tells_the_rule_the_masks_and_the_features(played, name, capsys):
    for number, decision in enumerate(played.decisions(name), 1):
        assert main(["explain", f"{name}@{number}", "--store", str(played.store)]) == 0
        told = capsys.readouterr().out
        for rule in decision.rule.split():
            assert rule in told
        assert decision.reason in " ".join(told.split())
        for masked, why in decision.masks.items():
            assert masked in told
            assert why in told


def test_a_whole_session_of_worker_processes_ends_in_the_same_state(played, tmp_path, monkeypatch):
    """The plug-in is imported by every process from its entry point."""
    here = Path(fixture_domains.__file__).parent
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(played.plug_in), str(here)]))
    session = Session("mid-binary", settings_of(CASES["mid-binary"], played.model), Store(tmp_path), DEFAULT_WORKERS)
    state: RunState = asyncio.run(launch(session, Watch()))
    assert digest(state) == digest(played.logs["mid-binary"].at())


def test_the_fixtures_are_found_by_name_like_any_plug_in(played):
    for name in fixture_domains.FIXTURES:
        domain = load_domain(name, {"search_items": 2})
        assert domain.spec.name == name
        assert len(domain.items("search")) == 2
        assert domain.digest != load_domain(name, {"search_items": 3}).digest
