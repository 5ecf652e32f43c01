"""The experiment memory: every edit that was tried is in it once, with what the log says of it."""

from __future__ import annotations

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from histories import OPERATORS, World, golden_history, play, run_request
from resia.events import EditFailed, EditRequested, EvaluationCompleted, Fact, HarnessEdited
from resia.replay.digest import digest
from resia.replay.fold import evolve, fold
from resia.replay.memory import Moved, TriedEdit, remembered, tried_edits
from resia.replay.state import Origin, RunState
from strategies import logs

GOLDEN = golden_history()
gains = st.fixed_dictionaries({name: st.sampled_from([0.0, 0.15, 0.3, -0.2]) for name in OPERATORS})
worlds = st.builds(
    lambda seed, operators, lost: (seed, World(operators=operators, edit_fails=lambda e: e.iteration in lost)),
    st.integers(0, 99),
    gains,
    st.sets(st.integers(1, 4), max_size=2),
)


def played(seed, world):
    return play(run_request(seed=seed, mode="H", max_iterations=6, patience_h=3), world)


@settings(max_examples=25, deadline=None)
@given(worlds)
def test_the_memory_is_the_log_of_edits(drawn):
    history = played(*drawn)
    edits = tried_edits(history.state)
    assert [e.iteration for e in edits] == [e.iteration for e in history.of(EditRequested)]
    made = {e.iteration: e for e in history.of(HarnessEdited)}
    trials = {t.iteration: t for t in history.state.trials}
    for edit in edits:
        trial = trials[edit.iteration]
        assert (edit.operator, edit.outcome) == (trial.name, trial.outcome)
        assert edit.parent == trial.parent.harness.digest
        if edit.iteration in made:
            source = made[edit.iteration]
            assert (edit.harness, edit.component) == (source.harness.digest, source.component)
            assert (edit.effect, edit.ci_low, edit.ci_high) == (
                trial.gate.effect,
                trial.gate.ci_low,
                trial.gate.ci_high,
            )
        else:
            assert (edit.outcome, edit.harness, edit.effect, edit.moved) == ("failed", "", None, {})
            assert edit.why == "no operator changes this harness"


@settings(max_examples=25, deadline=None)
@given(worlds)
def test_no_operator_is_tried_twice_on_one_parent_and_no_harness_is_measured_twice(drawn):
    edits = tried_edits(played(*drawn).state)
    pairs = [(edit.parent, name) for edit in edits for name in edit.operator.split("+")]
    assert len(set(pairs)) == len(pairs)
    measured = [edit.harness for edit in edits if edit.harness]
    assert len(set(measured)) == len(measured)


@settings(max_examples=25, deadline=None)
@given(worlds)
def test_classes_move_from_the_champion_of_that_moment(drawn):
    history = played(*drawn)
    champion, state, before = None, RunState(), {}
    for fact in history.facts:
        state = evolve(state, fact)
        if isinstance(fact.event, HarnessEdited):
            before[fact.event.iteration] = state.evaluations[champion.evaluation].completed.failures
        champion = state.champion
    after = {e.iteration: e.failures for e in history.of(EvaluationCompleted) if e.purpose == "candidate"}
    for edit in tried_edits(history.state):
        if edit.harness:
            old, new = before[edit.iteration], after[edit.iteration]
            kinds = old.keys() | new.keys()
            moved = {k: Moved(old.get(k, 0), new.get(k, 0)) for k in kinds if old.get(k, 0) != new.get(k, 0)}
            assert edit.moved == moved


@settings(max_examples=25, deadline=None)
@given(worlds, st.data())
def test_what_was_remembered_at_a_moment_is_the_beginning_of_what_is_remembered_later(drawn, data):
    history = played(*drawn)
    number = data.draw(st.integers(0, len(history.facts)))
    early, late = tried_edits(fold(history.facts[:number])), tried_edits(history.state)
    assert late[: len(early)] == early


@settings(max_examples=60, deadline=None)
@given(logs())
def test_it_is_total_on_any_log(facts):
    state = fold(facts)
    assert len(tried_edits(state)) >= sum(t.lever == "edit_harness" for t in state.trials)
    assert len(remembered(state)) == len(tried_edits(state))


def test_a_proposer_is_told_rounded_effects_and_no_p_values():
    exact, told = tried_edits(GOLDEN.state), remembered(GOLDEN.state)
    assert isinstance(told, tuple)
    numbers = (exact[0].effect, exact[0].ci_low, exact[0].ci_high)
    assert (told[0].effect, told[0].ci_low, told[0].ci_high) == tuple(round(number, 2) for number in numbers) != numbers
    assert exact[0].why.startswith("better: p = ")
    assert told[0].why == ""
    assert told[1].why == exact[1].why == "no operator changes this harness"
    assert msgspec.json.decode(msgspec.json.encode(told), type=tuple[TriedEdit, ...]) == told


# -- edits that were recognised --------------------------------------------------------------------------------------


def with_known(operator, digest_):
    """The golden run's log, its failed edit recognising that `operator` leads to `digest_`."""
    facts = []
    for fact in GOLDEN.facts:
        event = fact.event
        if isinstance(event, EditFailed):
            event = msgspec.structs.replace(event, known={operator: digest_})
        facts.append(Fact(fact.sequence, fact.leaf, fact.envelope, event))
    return fold(facts)


def test_a_recognised_edit_is_remembered_with_the_harness_that_it_leads_to():
    first = GOLDEN.of(HarnessEdited)[0]
    state = with_known("format-contract", first.parent.digest)
    known = next(edit for edit in tried_edits(state) if edit.outcome == "known")
    assert (known.operator, known.harness, known.parent) == (
        "format-contract",
        first.parent.digest,
        first.harness.digest,
    )
    assert state.origins[first.parent.digest] == (Origin(2, first.harness.digest, "format-contract", measured=False),)
    assert state.harnesses == GOLDEN.state.harnesses


def test_the_digest_of_a_state_holds_it_and_is_as_it_was_without():
    other = with_known("format-contract", GOLDEN.of(HarnessEdited)[0].parent.digest)
    assert digest(other) != digest(GOLDEN.state)
    kept = msgspec.structs.replace(GOLDEN.state, origins=RunState().origins)
    assert digest(kept) == digest(GOLDEN.state)  # what made a harness first is in the harness's own event
