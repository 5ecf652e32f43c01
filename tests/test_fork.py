"""Forks in memory: the real rules, from the moment before each decision of a parent."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from histories import DECIDERS, GOLDEN, WORLD, History, World, golden_history, play, run_request
from resia.agents import feedback
from resia.events import (
    DecisionMade,
    HarnessDrafted,
    Parent,
    RolloutRecorded,
    RunCompleted,
    RunFailed,
    RunRequested,
    TestUnsealed,
)
from resia.events.merkle import root
from resia.replay.digest import view
from resia.replay.explain import explain
from resia.replay.fold import fold
from resia.replay.fork import Segment, before_decision, inherit, lineage, owner_of, parent_of, parted_at
from resia.replay.report import rows, summary
from resia.replay.state import RunState
from resia.replay.verify import check

# What the sealed test leaves in a state; the rest of a fork without changes is its parent's.
OF_THE_TEST = {"evaluations", "unsealed", "controls", "controls_asked", "ending", "ledger"}


@pytest.fixture(scope="module")
def parent() -> History:
    """Both levers, failures of both, accepted candidates, and the stop."""
    return golden_history()


def moment(parent: History, iteration: int, before: RunState | None = None) -> tuple[Parent, RunState]:
    """Where a fork at `iteration` begins; `before` is what the parent itself inherited."""
    number = next(at.sequence for at in parent.state.decisions if at.decision.iteration == iteration)
    found = before_decision(parent.facts, number)
    return found, inherit(fold(parent.facts[: found.sequence], before))


def fork(
    parent: History, iteration: int, world: World = WORLD, before: RunState | None = None, **given: Any
) -> History:
    """Play the fork; `loop`, `training` and `algorithm` change settings, anything else goes to `play`."""
    found, origin = moment(parent, iteration, before)
    settings = parent.state.request.settings
    settings = msgspec.structs.replace(
        settings,
        algorithm=given.pop("algorithm", settings.algorithm),
        loop=msgspec.structs.replace(settings.loop, **given.pop("loop", {})),
    )
    request = msgspec.structs.replace(
        parent.state.request, settings=settings, settings_digest=settings.digest(), parent=found
    )
    run = given.pop("run", f"fork-{iteration}")
    return play(request, world, run=run, origin=origin, blobs=parent.blobs, **given)


def differences(a: RunState, b: RunState) -> set[str]:
    one, other = view(a), view(b)
    return {name for name in one if one[name] != other[name]}


def opened(history: History) -> list[Any]:
    """What only the opening of the sealed test writes."""
    sampled = [r for r in history.of(RolloutRecorded) if r.split == "test"]
    return [*history.of(TestUnsealed), *sampled]


@pytest.mark.parametrize("iteration", range(1, 7))
def test_a_fork_without_changes_ends_as_its_parent(parent, iteration):
    child = fork(parent, iteration, GOLDEN)
    assert differences(child.state, parent.state) <= OF_THE_TEST
    untested = [e for e in parent.state.evaluations.values() if e.request.purpose == "candidate"]
    assert len(child.state.evaluations) == len(untested)
    assert child.state.champion.candidate == parent.state.champion.candidate


@pytest.mark.parametrize("iteration", [1, 3, 6])
@pytest.mark.parametrize("order", range(4))
def test_whatever_the_order_of_the_work_and_when_it_is_handed_out_twice(parent, iteration, order):
    child = fork(parent, iteration, GOLDEN, order=order, twice=True)
    assert differences(child.state, parent.state) <= OF_THE_TEST
    assert check(child.facts, DECIDERS, moment(parent, iteration)[1]).problems == ()


@pytest.mark.parametrize("iteration", range(1, 7))
def test_every_decision_of_a_fork_can_be_taken_again(parent, iteration):
    child = fork(parent, iteration, GOLDEN)
    assert check(child.facts, DECIDERS, moment(parent, iteration)[1]).problems == ()
    assert check(child.facts, DECIDERS).problems != ()  # and not without what it inherits


@pytest.mark.parametrize("iteration", [1, 4, 6])
def test_a_fork_drafts_nothing_and_leaves_the_test_sealed(parent, iteration):
    child = fork(parent, iteration, GOLDEN)
    assert child.of(HarnessDrafted) == []
    assert opened(child) == []
    ending = child.state.ending
    assert isinstance(ending, RunCompleted)
    assert (ending.champion_test, ending.baseline_test) == (None, None)
    assert ending.reason.endswith("a fork leaves the sealed test closed")


def test_the_parent_opens_the_test_that_its_forks_do_not(parent):
    assert opened(parent) != []


def test_a_fork_numbers_its_own_events_from_1_under_ids_of_its_own(parent):
    child = fork(parent, 3, GOLDEN)
    assert [fact.sequence for fact in child.facts] == list(range(1, len(child.facts) + 1))
    assert not {f.envelope.id for f in child.facts} & {f.envelope.id for f in parent.facts}
    assert child.facts[0].event.parent == moment(parent, 3)[0]


def test_the_root_of_its_last_event_covers_everything_since_its_last_decision(parent):
    child = fork(parent, 5, GOLDEN)
    ending, stop = child.facts[-1], child.state.decisions[-1]
    assert isinstance(ending.event, RunCompleted)
    assert (ending.event.root_from, ending.event.root_to) == (stop.decision.root_to, stop.sequence)


def test_the_ledger_and_the_gates_go_on_from_the_parents(parent):
    origin = moment(parent, 3)[1]
    child = fork(parent, 3, GOLDEN)
    assert child.state.ledger.tokens > origin.ledger.tokens > 0
    assert child.state.gates > origin.gates > 0


def test_a_spent_budget_of_the_parent_stops_a_fork_at_once(parent):
    child = fork(parent, 4, GOLDEN, loop={"token_budget": 1})
    assert child.actions == ["stop"]
    assert child.state.decisions[-1].decision.rule.endswith(":0-budget")


def test_another_mode_takes_another_lever(parent):
    assert [parent.actions[0], parent.actions[2]] == ["edit_harness", "train_weights"]
    assert fork(parent, 1, GOLDEN, loop={"mode": "W"}).actions[0] == "train_weights"
    edited = fork(parent, 3, GOLDEN, loop={"mode": "H"})
    assert "train_weights" not in edited.actions
    assert edited.of(DecisionMade)[0].masks["train_weights"] == "mode H freezes the weights"


@pytest.mark.parametrize("algorithm", ["grpo", "best_of_n", "reinforce_kl"])
def test_the_first_decision_of_a_counterfactual_trains_with_its_algorithm(algorithm):
    able = World(base=0.6)
    edits = play(run_request(mode="H", patience_h=1), able)
    child = fork(edits, 1, able, algorithm=algorithm, loop={"mode": "W", "max_iterations": 1})
    first, last = child.of(DecisionMade)
    assert (first.iteration, first.action, first.algorithm) == (1, "train_weights", algorithm)
    assert (last.action, last.reason) == ("stop", "no iterations are left")
    assert isinstance(child.state.ending, RunCompleted)


def test_an_algorithm_that_cannot_be_trained_is_a_result():
    weak = World(base=0.3, noise=0.15)  # nothing succeeds, so nothing can be cloned
    child = fork(play(run_request(mode="H", patience_h=1), weak), 1, weak, algorithm="best_of_n", loop={"mode": "W"})
    decision = child.state.decisions[-1].decision
    assert decision.action == "stop"
    assert decision.masks["best_of_n"] == "needs 8 successes, has 0"
    assert isinstance(child.state.ending, RunCompleted)


def test_more_patience_goes_on_from_the_parents_stop(parent):
    child = fork(parent, 6, loop={"patience_w": 5, "max_iterations": 7})
    assert parent.actions[-1] == "stop"
    assert child.actions[0] == "train_weights"


@pytest.mark.parametrize(("first", "second"), [(2, 2), (2, 4), (4, 6), (6, 6)])
def test_a_fork_of_a_fork_ends_as_the_first_run(parent, first, second):
    _, origin = moment(parent, first)
    child = fork(parent, first, GOLDEN)
    grandchild = fork(child, second, GOLDEN, before=origin, run="grandchild")
    assert differences(grandchild.state, child.state) == set()
    assert parent_of(grandchild.facts[0]).run == f"fork-{first}"
    _, twice = moment(child, second, origin)
    assert check(grandchild.facts, DECIDERS, twice).problems == ()


def test_inherited_decisions_fence_nothing_and_later_ones_do(parent):
    child = fork(parent, 4, GOLDEN)
    assert [at.sequence for at in child.state.decisions[:3]] == [0, 0, 0]
    assert all(at.sequence > 0 for at in child.state.decisions[3:])


def test_the_first_event_handed_out_again_decides_nothing(parent):
    child = fork(parent, 3, GOLDEN)
    _, origin = moment(parent, 3)
    decided = next(n for n, fact in enumerate(child.facts, 1) if isinstance(fact.event, DecisionMade))
    assert feedback.decide(fold(child.facts[:1], origin), child.facts[0]) != []
    assert feedback.decide(fold(child.facts[:decided], origin), child.facts[0]) == []


def test_a_first_event_that_begins_where_nothing_was_open_ends_the_run(parent):
    evaluated = next(fact.sequence for fact in parent.facts if fact.envelope.type == "evaluation-requested")
    facts = parent.facts[:evaluated]
    found = Parent("golden", evaluated, root([fact.leaf for fact in facts]), 1)
    request = msgspec.structs.replace(parent.state.request, parent=found)
    child = play(request, run="odd", origin=inherit(fold(facts)), blobs=parent.blobs)
    assert [type(fact.event) for fact in child.facts] == [RunRequested, RunFailed]


def test_the_moment_before_a_decision_is_its_basis(parent):
    for at in parent.state.decisions:
        found = before_decision(parent.facts, at.sequence)
        basis = parent.facts[at.sequence - 1].envelope.basis
        assert (found.run, found.sequence, found.iteration) == ("golden", basis, at.decision.iteration)
        assert found.merkle_root == root([fact.leaf for fact in parent.facts[:basis]])
    with pytest.raises(ValueError, match="event 1 is no decision"):
        before_decision(parent.facts, 1)


def test_a_run_from_nothing_has_no_parent(parent):
    assert parent_of(parent.facts[0]) is None
    assert parent_of(parent.facts[1]) is None


def test_a_fork_is_explained_and_reported_with_what_it_inherits(parent):
    child = fork(parent, 3, GOLDEN)
    assert (
        explain(child.state, 1).lines[0] == "Iteration 1 decided to edit the harness (before the fork from golden@3)."
    )
    assert explain(child.state, 1).lines[1:] == explain(parent.state, 1).lines[1:]
    assert explain(child.state, 3).lines[0].endswith(f"(event {child.state.decisions[2].sequence}).")
    assert explain(child.state, 6).lines[-1] == "What came of it: the run ended with the sealed test closed."
    assert rows(child.state) == rows(parent.state)
    assert (summary(child.state).parent, summary(parent.state).parent) == ("golden@3", None)
    assert summary(child.state).champion_test is None


def line(run: str, *parents: tuple[str, int]) -> tuple[Segment, ...]:
    """`parents` nearest first, with the iteration at which each was left."""
    return lineage(run, [Parent(name, 1, "", first) for name, first in parents])


def test_a_lineage_says_who_took_which_decision():
    found = line("c", ("b", 5), ("a", 3))
    assert [owner_of(found, k) for k in (0, 1, 2, 3, 4, 5, 9)] == ["a", "a", "a", "b", "b", "c", "c"]


@pytest.mark.parametrize(
    ("lineages", "expected"),
    [
        ([line("a")], None),
        ([line("a"), line("b")], None),
        ([line("a"), line("b", ("a", 3))], 3),
        ([line("b", ("a", 3)), line("c", ("a", 3))], 3),
        ([line("b", ("a", 3)), line("c", ("a", 5))], 3),
        ([line("b", ("a", 3)), line("c", ("b", 3), ("a", 3))], 3),
        ([line("b", ("a", 3)), line("c", ("b", 6), ("a", 3))], 6),
        ([line("b", ("a", 3)), line("c", ("z", 3))], None),
        ([line("a"), line("b", ("a", 1)), line("c", ("b", 4), ("a", 1))], 1),
    ],
)
def test_runs_of_one_lineage_part_at_the_first_decision_that_is_not_all_of_theirs(lineages, expected):
    assert parted_at(lineages) == expected
    assert parted_at(lineages[::-1]) == expected
