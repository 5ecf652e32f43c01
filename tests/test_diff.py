"""Differences between candidates: harness text, retry policy, adapters and scores."""

from __future__ import annotations

import msgspec
import pytest

from histories import World, golden_history, play, run_request
from resia.events import Blob, EvaluationCompleted, Example, Harness, RetryPolicy, SystemPrompt
from resia.events.errors import UsageError
from resia.replay.diff import FieldChange, adapter_lineage, diff, harness_lineage
from resia.replay.fold import fold
from resia.replay.state import RunState

HISTORY = golden_history()
STATE = HISTORY.state
EDITED, TRAINED = 1, 3  # iterations of the golden history
TWICE = play(run_request(mode="W", max_iterations=2), World(base=0.1, training=0.4, noise=0.02))


def test_an_edit_shows_as_a_text_diff_of_its_component():
    found = diff(STATE, 0, EDITED, HISTORY.harness)
    (change,) = found.texts
    assert change.component == "system_prompt"
    assert change.lines == (
        "--- system_prompt (iteration 0)",
        "+++ system_prompt (iteration 1)",
        "@@ -1 +1,2 @@",
        " Answer.",
        "+demonstrate-best",
    )
    assert (found.policy, found.adapters_before, found.adapters_after) == ((), (), ())


def test_the_other_way_round_is_the_opposite():
    found = diff(STATE, EDITED, 0, HISTORY.harness)
    assert found.texts[0].lines[-1] == "-demonstrate-best"
    assert (found.before, found.after) == (EDITED, 0)


def test_a_candidate_does_not_differ_from_itself():
    found = diff(STATE, EDITED, EDITED, HISTORY.harness)
    assert (found.texts, found.policy) == ((), ())
    assert all(pair.before == pair.after for pair in found.scores)


def test_a_training_shows_as_lineage_and_not_as_text():
    found = diff(STATE, EDITED, TRAINED, HISTORY.harness)
    assert found.texts == ()
    assert found.adapters_before == ()
    assert [(s.algorithm, s.iteration, s.rounds, s.steps) for s in found.adapters_after] == [("grpo", TRAINED, 2, 2)]


def test_a_lineage_runs_from_the_oldest_to_the_newest():
    lineage = diff(TWICE.state, 0, 2, TWICE.harness).adapters_after
    assert [step.iteration for step in lineage] == [1, 2]
    assert lineage[-1].digest == TWICE.state.champion.candidate.adapter.digest


def test_scores_stand_side_by_side_and_the_test_only_for_who_took_it():
    found = diff(STATE, 0, TRAINED, HISTORY.harness)
    scores = {e.iteration: e.scores for e in HISTORY.of(EvaluationCompleted) if e.purpose == "candidate"}
    search, validation, test = found.scores
    assert (search.before, search.after) == (scores[0]["search"].mean, scores[TRAINED]["search"].mean)
    assert (validation.before, validation.after) == (scores[0]["validation"].mean, scores[TRAINED]["validation"].mean)
    assert (test.before, test.after) == (STATE.ending.baseline_test, STATE.ending.champion_test)
    assert diff(STATE, 0, EDITED, HISTORY.harness).scores[2].after is None


def test_the_champion_has_a_name():
    assert diff(STATE, "0", "champion", HISTORY.harness) == diff(STATE, 0, TRAINED, HISTORY.harness)


def changed(**parts):
    """The diff from the golden baseline's harness to one with other components."""
    base = HISTORY.harness(STATE.baseline.candidate.harness.digest)
    other = msgspec.structs.replace(base, **parts)
    by_digest = {STATE.baseline.candidate.harness.digest: base}
    return diff(STATE, 0, EDITED, lambda digest: by_digest.get(digest, other))


def test_the_retry_policy_differs_field_by_field():
    found = changed(retry_policy=RetryPolicy(temperature=0.5, max_new_tokens=32, attempts=3, stop=("\n",)))
    assert found.policy == (FieldChange("temperature", "1.0", "0.5"), FieldChange("attempts", "1", "3"))
    assert found.texts == ()


def test_demonstrations_and_sources_are_text():
    prompt = SystemPrompt("Answer.", (Example("what?", "a=1"),))
    found = changed(system_prompt=prompt, tool_dispatch="def dispatch(r, t):\n    return 1\n")
    assert [change.component for change in found.texts] == ["system_prompt", "tool_dispatch"]
    assert found.texts[0].lines[-2:] == ("+user: what?", "+assistant: a=1")
    assert found.texts[1].lines[-2:] == ("+def dispatch(r, t):", "+    return 1")


@pytest.mark.parametrize("ref", [2, 99, -1, "x", "", "Champion", "1.0", "٣"])
def test_a_candidate_that_was_never_measured_is_refused_with_those_that_were(ref):
    with pytest.raises(UsageError, match=r"was measured in this run: take one of 0, 1, 3, champion$"):
        diff(STATE, 0, ref, HISTORY.harness)


def test_a_run_without_a_champion_has_none_to_offer():
    with pytest.raises(UsageError, match="has measured none yet"):
        diff(RunState(), "champion", 0, HISTORY.harness)
    measuring = fold(HISTORY.facts[:5])
    with pytest.raises(UsageError, match=r"take one of 0$"):
        diff(measuring, "champion", 0, HISTORY.harness)


def test_lineages_end_even_where_a_log_runs_in_circles():
    blob = Blob("c" * 64, 1)
    edited = next(node for node in STATE.harnesses.values() if hasattr(node, "parent"))
    circle = msgspec.structs.replace(edited, harness=blob, parent=blob)
    state = RunState(harnesses=STATE.harnesses.set(blob.digest, circle))
    assert len(harness_lineage(state, blob)) == 1
    adapter = msgspec.structs.replace(next(iter(STATE.adapters.values())), adapter=blob, parent=blob)
    assert len(adapter_lineage(RunState(adapters=STATE.adapters.set(blob.digest, adapter)), blob)) == 1


def test_the_harness_that_is_handed_in_is_asked_for_by_digest():
    asked: list[str] = []

    def harness_of(digest: str) -> Harness:
        asked.append(digest)
        return HISTORY.harness(digest)

    diff(STATE, 0, EDITED, harness_of)
    assert asked == [STATE.baseline.candidate.harness.digest, STATE.champion.candidate.harness.digest]
