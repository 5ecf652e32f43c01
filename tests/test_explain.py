"""Explanations: their numbers are the log's, and a wrong iteration is refused with the right ones."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings

from histories import OPERATORS, World, golden_history, play, run_request
from resia.events import AdapterTrained, DecisionMade, Landscape
from resia.events.errors import UsageError
from resia.replay.explain import explain, parse_run_ref
from resia.replay.fold import fold
from resia.replay.state import RunState
from resia.replay.wording import FEATURES, RULES
from strategies import logs

HISTORY = golden_history()
STATE = HISTORY.state
DECISIONS = HISTORY.of(DecisionMade)


def line(iteration, beginning):
    """The one line of an explanation that begins so."""
    (found,) = [text for text in explain(STATE, iteration).lines if text.startswith(beginning)]
    return found


@pytest.mark.parametrize("iteration", range(1, len(DECISIONS) + 1))
def test_every_decision_is_explained_by_its_own_inputs(iteration):
    decision = DECISIONS[iteration - 1]
    explanation = explain(STATE, iteration)
    assert explanation.action == decision.action
    assert HISTORY.facts[explanation.sequence - 1].event == decision
    assert f"Rule: {decision.rule}." in explanation.lines
    assert f"Reason: {decision.reason}." in explanation.lines
    for name, why in decision.masks.items():
        assert f"Masked: {name}, because: {why}." in explanation.lines
    edits, trainings = decision.failed_edits, decision.failed_trainings
    counters = f"{edits} failed edit{'s' * (edits != 1)}, {trainings} failed training{'s' * (trainings != 1)}"
    assert line(iteration, "Since the champion") == f"Since the champion last changed: {counters}."
    assert f"  p_pos {decision.features.p_pos:.4g}: {FEATURES['p_pos']}" in explanation.lines
    assert f"  skew undefined: {FEATURES['skew']}" in explanation.lines
    weighed = line(iteration, "Not masked")
    for name, score in decision.scores.items():
        assert f"{name} score {score:g}, probability {decision.propensities[name]:g}" in weighed
    assert weighed.startswith("Not masked: ") == (decision.action == "train_weights")


def test_every_published_rule_and_feature_has_words():
    """Those of docs/selection.md are all of them, and a decision tells those of its own rules."""
    doc = (Path(__file__).parent.parent / "docs" / "selection.md").read_text()
    for family, section in (("select-lever/1", "## Lever"), ("select-algorithm/1", "## Algorithm")):
        published = re.findall(r"^\| `(\d-[a-z0-9-]+)` \|", doc.split(section)[1].split("\n## ")[0], re.MULTILINE)
        assert {f"{family}:{rule}" for rule in published} == {rule for rule in RULES if rule.startswith(family)}
    assert set(FEATURES) == set(Landscape.__struct_fields__)
    words = [text for text in explain(STATE, 3).lines if text.startswith("That is: ")]
    assert words == [f"That is: {RULES[rule]}." for rule in DECISIONS[2].rule.split()]
    assert len(words) == 2


def test_what_came_of_one_iteration_came_before_the_next():
    for iteration in range(1, len(DECISIONS)):
        after = line(iteration, "What came of it").removeprefix("What came of it: ")
        assert line(iteration + 1, "Before it").removeprefix("Before it, ") == after


def test_a_verdict_is_told_with_the_numbers_of_its_gate():
    (trial,) = [t for t in STATE.trials if t.iteration == 1]
    text = line(1, "What came of it")
    assert text.startswith("What came of it: edit demonstrate-best was accepted: ")
    for number in (f"effect {trial.gate.effect:+.4f}", f"[{trial.gate.ci_low:+.4f}, {trial.gate.ci_high:+.4f}]"):
        assert number in text
    assert f"p {trial.gate.p_value:.3g} against alpha_1 {trial.gate.alpha:.3g}" in text
    assert f"on {trial.gate.items} validation items" in text


def test_the_first_decision_follows_the_baseline():
    assert line(1, "Before it") == "Before it, the draft was accepted: generation 0 is the baseline."


def test_each_lever_says_what_it_did():
    assert line(1, "Carried out") == "Carried out: demonstrate-best changed the system_prompt. why"
    adapter = HISTORY.of(AdapterTrained)[0].adapter.digest
    assert line(3, "Algorithm") == "Algorithm: grpo."
    assert line(3, "Carried out").startswith("Carried out: 2 rounds of grpo, 2 steps, ")
    assert line(3, "Carried out").endswith(f"adapter {adapter[:12]}.")
    assert line(len(DECISIONS), "Carried out") == "Carried out: the sealed test was opened."


def test_failures_are_told_with_what_failed():
    assert line(2, "What came of it").endswith(" failed: no operator changes this harness.")
    assert line(4, "Carried out").endswith("then it failed: not finite.")
    assert line(4, "What came of it").endswith("failed: not finite.")


def test_a_stop_ends_with_the_scores_of_the_sealed_test():
    scores = f"the champion has {STATE.ending.champion_test:.4f}, the baseline {STATE.ending.baseline_test:.4f}"
    assert line(len(DECISIONS), "What came of it") == f"What came of it: on the sealed test {scores}."


def test_a_decision_just_taken_says_that_the_rest_is_to_come():
    number = next(n for n, fact in enumerate(HISTORY.facts, 1) if isinstance(fact.event, DecisionMade))
    explanation = explain(HISTORY.facts[:number], 1)
    assert explanation.lines[-1] == "What came of it is not in the log yet."
    assert not any(text.startswith("Carried out") for text in explanation.lines)


def test_an_alarm_is_part_of_what_came_of_it():
    flat = World(operators=dict.fromkeys(OPERATORS, 0.0), overfit=0.3)
    alarmed = play(run_request(mode="H", max_iterations=1), flat)
    last = explain(alarmed.state, 1).lines[-1]
    assert last == f"Alarm of search-validation-gap: {alarmed.state.alarms[0].detail}."


def test_facts_and_their_state_are_explained_alike():
    assert explain(HISTORY.facts, 2) == explain(STATE, 2)
    assert explain(STATE, 2).text == "\n".join(explain(STATE, 2).lines)


@settings(max_examples=60, deadline=None)
@given(logs())
def test_any_decision_of_any_log_can_be_explained(log):
    state = fold(log)
    for iteration in {d.decision.iteration for d in state.decisions}:
        assert explain(state, iteration).iteration == iteration


@pytest.mark.parametrize("iteration", [0, -1, len(DECISIONS) + 1])
def test_an_iteration_that_is_not_there_is_refused_with_the_valid_range(iteration):
    with pytest.raises(UsageError, match=rf"iteration {iteration} is not .* from 1 to {len(DECISIONS)}$"):
        explain(STATE, iteration)


def test_a_run_that_decided_nothing_says_so():
    with pytest.raises(UsageError, match="has not decided anything yet"):
        explain(RunState(), 1)


@pytest.mark.parametrize(("text", "ref"), [("my-run", ("my-run", None)), ("r@1", ("r", 1)), ("r@120", ("r", 120))])
def test_a_reference_names_a_run_or_an_iteration_of_it(text, ref):
    assert parse_run_ref(text) == ref


@pytest.mark.parametrize("text", ["r@", "r@0", "r@-1", "r@x", "r@1.5", "r@1@2", "r@٣", "r@" + "9" * 5000])
def test_a_reference_to_no_iteration_is_refused_with_an_example(text):
    with pytest.raises(UsageError, match="write RUN@K with K from 1, such as 'r@1'"):
        parse_run_ref(text)


@pytest.mark.parametrize("text", ["", "@1", "a b", "a.b@2"])
def test_a_reference_to_no_run_is_refused(text):
    with pytest.raises(UsageError, match="run name"):
        parse_run_ref(text)
