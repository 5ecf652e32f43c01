"""What a person watches: a played run drawn in a terminal and as plain lines, and texts that look like markup."""

from __future__ import annotations

import io

import msgspec
import pytest
from rich.console import Console
from scripted import Tape

from histories import World, play, run_request
from resia.events import DecisionMade, EvaluationCompleted, RolloutFailed, Skipped, StepTrained, TrainingFailed
from resia.replay.fold import evolve, fold
from resia.replay.report import rows, summary
from resia.replay.state import RunState
from resia.runtime.console import View, controls_table, table
from resia.runtime.supervisor import Died

HISTORY = play(run_request(patience_h=1, max_iterations=4), World(training=0.3))
HOSTILE = "[/red] [bold]x[/] [link=http://x]y \\[z] {0} %s"


def view(terminal: bool, width: int = 120) -> tuple[View, io.StringIO]:
    sink = io.StringIO()
    console = Console(file=sink, force_terminal=terminal, width=width, height=40, color_system=None)
    return View("scripted", console), sink


def drawn(shown: View) -> str:
    """The live view as it stands."""
    with shown.console.capture() as capture:
        shown.console.print(shown._render())
    return capture.get()


def feed(shown: View, facts=HISTORY.facts, state: RunState | None = None) -> RunState:
    state = state or RunState()
    for fact in facts:
        state = evolve(state, fact)
        shown.watch().fact(state, fact)
    return state


def upto(kind: type, last: bool = False):
    numbers = [n for n, fact in enumerate(HISTORY.facts) if isinstance(fact.event, kind)]
    return HISTORY.facts[: numbers[-1 if last else 0] + 1]


def test_why_rollouts_were_lost_is_said_once():
    shown, sink = view(terminal=False)
    why = ("model m at http://x answered HTTP 401: the key is not taken", HOSTILE)
    lost = [RolloutFailed("e", "candidate", 0, "search", "s0", n, error) for n in range(3) for error in why]
    tape = Tape()
    feed(shown, tape.add(run_request(), *lost))
    assert sink.getvalue().count(f"rollouts are lost to infrastructure: {why[0]}\n") == 1
    assert sink.getvalue().count(HOSTILE) == 1


def test_plain_lines_tell_every_measurement_and_decision():
    shown, sink = view(terminal=False)
    with shown.showing():
        feed(shown)
    text = sink.getvalue()
    assert text.count("measured candidate") == sum(e.purpose == "candidate" for e in HISTORY.of(EvaluationCompleted))
    for decision in HISTORY.of(DecisionMade):
        assert f"decided {decision.action}" in text
        assert decision.reason in text
    assert "trained round 1 of " in text
    assert "measured test" in text
    assert "\x1b" not in text


def test_a_terminal_shows_the_table_the_decision_and_the_notes():
    shown, sink = view(terminal=True)
    with shown.showing():
        state = feed(shown, upto(DecisionMade))
        live = drawn(shown)
    assert "iteration 1" in live
    assert "valid" in live
    assert "gate" in live
    last = state.decisions[-1].decision
    assert f"{last.action}: {last.reason}" in live
    assert "measured candidate of iteration 0" in live
    assert "measured" not in sink.getvalue()[: sink.getvalue().find("resia")]  # notes are drawn and not printed


def test_the_bars_of_sampling_and_of_a_training_round():
    shown, _ = view(terminal=True)
    facts = upto(StepTrained)
    state = feed(shown, facts)
    step = facts[-1].event
    shown.live({"kind": "round", "training": step.training, "round": 0, "algorithm": "grpo", "steps": 1})
    about = {"purpose": "training", "shard": 1, "shards": 3, "round": 1}
    shown.live({"kind": "tokens", "tokens": 1234, "rollouts": 8, **about})
    live = drawn(shown)
    assert "sampling training  shard 2 of 3  1234 tokens" in live
    assert f"training grpo  round 1  loss {step.loss:+.4f}  kl {step.kl:.4f}  gradient {step.grad_norm:.2f}" in live
    feed(shown, HISTORY.facts[len(facts) :], state)
    assert "loss" not in drawn(shown)
    assert " shard " not in drawn(shown)


def test_a_view_of_nothing_yet_and_progress_of_an_unknown_kind():
    shown, _ = view(terminal=True)
    shown.live({"kind": "of a later version"})
    shown.live({})
    assert "resia scripted" in drawn(shown)


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("width", [20, 80, 250])
def test_every_moment_of_a_run_can_be_drawn_at_any_width(terminal, width):
    shown, _ = view(terminal, width)
    state = RunState()
    for fact in HISTORY.facts:
        state = feed(shown, [fact], state)
        if not isinstance(fact.event, StepTrained | DecisionMade | EvaluationCompleted | TrainingFailed):
            continue
        assert drawn(shown)


@pytest.mark.parametrize("terminal", [True, False])
def test_brackets_in_a_text_are_text(terminal):
    """Errors and reasons hold paths, lists and types in brackets; none is markup, and none may end the view."""
    shown, sink = view(terminal)
    state = fold(HISTORY.facts)
    failed = TrainingFailed("t", 1, "grpo", 0, -1, HOSTILE)
    decision = msgspec.structs.replace(HISTORY.of(DecisionMade)[0], reason=HOSTILE)
    with shown.showing():
        for event in (failed, decision):
            shown.fact(state, msgspec.structs.replace(HISTORY.facts[-1], event=event))
        shown.fact(state, Skipped(7, "0" * 64, HOSTILE))
        shown.note(HOSTILE)
        live = drawn(shown)
    assert HOSTILE in (live if terminal else sink.getvalue())


def test_names_in_the_tables_are_text():
    lines = [msgspec.structs.replace(row, name=HOSTILE) for row in rows(HISTORY.state)]
    found = summary(HISTORY.state)
    scores = tuple(msgspec.structs.replace(score, name=HOSTILE) for score in found.controls)
    _, sink = view(terminal=False, width=400)
    console = Console(file=sink, width=400)
    console.print(table(lines, 400))
    console.print(controls_table(msgspec.structs.replace(found, controls=scores)))
    assert sink.getvalue().count(HOSTILE) == len(lines) + 1


def test_the_tables_hold_a_row_a_candidate_and_the_sealed_scores():
    sink = io.StringIO()
    console = Console(file=sink, width=200)
    console.print(table(rows(HISTORY.state), 200))
    assert len(sink.getvalue().strip().splitlines()) == 1 + len(rows(HISTORY.state))
    console.print(controls_table(summary(HISTORY.state)))
    text = sink.getvalue()
    assert "control: random-search" in text
    assert f"{summary(HISTORY.state).champion_test:.3f}" in text


def test_a_worker_that_died_is_named_with_how():
    shown, sink = view(terminal=False)
    shown.died(Died("trainer-1", -9, 42))
    shown.died(Died("task-1", 1, 43))
    text = sink.getvalue()
    assert "trainer-1 (process 42) was killed by signal 9; starting it again" in text
    assert "task-1 (process 43) ended with code 1" in text
