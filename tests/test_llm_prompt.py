"""What a model that proposes is shown: whole trajectories of every outcome class, in a budget, effects rounded."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from immutables import Map
from scripted import small_domain

from given import BLOB, CANDIDATE
from resia.agents.llm_prompt import TOKEN_BYTES, TooSmall, for_draft, for_edit, history, rounded, stratified
from resia.agents.proposing import first_harness
from resia.agents.taskwork import outcome_class
from resia.events import (
    Blob,
    Candidate,
    EvaluationRequested,
    GateReport,
    HarnessEdited,
    Message,
    RolloutRecorded,
    ToolCall,
    Trajectory,
    Turn,
)
from resia.replay.state import Evaluation, RunState, Trial

DOMAIN = small_domain()
PARENT = first_harness(DOMAIN.spec)
ITEMS = DOMAIN.items("search")


def rollout(number: int, reward: float = 0.0, failure=None, success=False, split="search", item="s0", answer=""):
    return RolloutRecorded(
        "e", "candidate", 0, split, item, number, number, False, reward, success, failure, "detail", {}, answer,
        (reward,), 1, 1, Blob(f"{number:064d}", 1),
    )  # fmt: skip


def state(*rollouts: RolloutRecorded, **more) -> RunState:
    found = Evaluation("e", EvaluationRequested("candidate", 0, CANDIDATE, ()), Map(enumerate_ids(rollouts)))
    return RunState(evaluations=Map({"e": found}), **more)


def enumerate_ids(rollouts):
    return {f"r{number}": one for number, one in enumerate(rollouts)}


def said(text: str, told: str = "the item", **more) -> Turn:
    return Turn((Message("system", "s"), Message("user", told)), (1,), (2,), (-0.1,), text, "stop", **more)


def plain(one: RolloutRecorded) -> Trajectory:
    return Trajectory(one.item, one.seed, 0.7, (said(f"answer {one.index}"),))


def page(of=plain, budget=16_000, *rollouts, **more) -> str:
    system, user = for_edit(state(*rollouts, **more), DOMAIN.spec, PARENT, "e", ITEMS, of, budget)
    assert len(system.content.encode()) + len(user.content.encode()) <= budget * TOKEN_BYTES
    return user.content


# -- which trajectories ------------------------------------------------------------------------------------------------


def test_every_class_is_shown_from_both_ends_before_any_is_shown_again():
    weak = [rollout(n, n / 10, answer=f"w{n}") for n in range(1, 6)]
    solved = [rollout(9, 0.9, success=True, answer="s")]
    parse = [rollout(20 + n, failure="parse") for n in range(2)]
    order = stratified([*weak, *solved, *parse])
    assert [(outcome_class(r), r.reward) for r in order] == [
        ("parse", 0.0),
        ("solved", 0.9),
        ("weak", 0.5),
        ("parse", 0.0),
        ("weak", 0.1),
        ("weak", 0.4),
        ("weak", 0.2),
        ("weak", 0.3),
    ]


def test_the_same_answer_to_the_same_item_is_shown_once():
    same = [rollout(n, 0.5, answer="a") for n in range(3)]
    other = rollout(4, 0.5, answer="a", item="s1")
    assert stratified([*same, other]) == [same[0], other]


rollouts = st.lists(
    st.builds(
        rollout,
        st.integers(0, 40),
        st.sampled_from([0.0, 0.25, 0.5]),
        st.sampled_from([None, "parse", "tool_error"]),
        st.booleans(),
        item=st.sampled_from(["s0", "s1"]),
        answer=st.sampled_from(["", "a", "b", "c"]),
    ),
    max_size=20,
    unique_by=lambda one: one.index,
)


@given(rollouts)
def test_every_distinct_rollout_comes_once_whatever_their_order(found):
    order = stratified(found)
    assert stratified(reversed(found)) == order
    keys = [(outcome_class(r), r.item, r.answer or r.trajectory.digest) for r in order]
    assert len(keys) == len(set(keys))
    assert {(outcome_class(r), r.item, r.answer or r.trajectory.digest) for r in found} == set(keys)


@given(rollouts, st.integers(500, 6000), st.integers(0, 4000))
def test_no_budget_is_exceeded_and_a_trajectory_is_whole_or_absent(found, budget, length):
    def of(one: RolloutRecorded) -> Trajectory:
        return Trajectory(one.item, 0, 0.7, (said(f"<{'é' * length}>"),))

    try:
        text = page(of, budget, *found)
    except TooSmall:
        return
    assert text.count("model: <") == text.count(f"<{'é' * length}>")


def test_items_of_other_splits_are_never_shown():
    text = page(plain, 16_000, rollout(1), rollout(2, split="validation"), rollout(3, split="test"))
    assert "answer 1" in text
    assert "answer 2" not in text
    assert "answer 3" not in text
    assert "its 1 rollouts" in text


def test_a_trajectory_tells_every_turn_what_was_extracted_and_what_the_tools_said():
    turns = (
        said("garbage", failure="parse"),
        said("knn=5", request='{"knn": 5}', calls=(ToolCall("denoise", '{"knn": 5}', '{"knn": 5}'),)),
        said("again", told="an observation"),
    )
    text = page(lambda one: Trajectory("s0", 0, 0.7, turns), 16_000, rollout(1, 0.25))
    for line in (
        "## s0: weak, reward 0.25",
        "user: the item\nmodel: garbage\nfailed: parse\nmodel: knn=5",
        'extracted: {"knn": 5}',
        'tool: denoise({"knn": 5}) -> {"knn": 5}',
        "user: an observation\nmodel: again",
    ):
        assert line in text
    assert "detail" not in text.partition("## s0")[2].partition("# Items")[0]


def test_a_draft_is_asked_for_with_the_task_and_no_harness():
    system, user = for_draft(DOMAIN.spec, ITEMS, 16_000)
    assert '"answer_extraction": "Python source"' in system.content
    assert "# Present harness" not in user.content
    assert ITEMS[0].prompt in user.content
    assert all(r.name in user.content for r in DOMAIN.spec.references)


# -- the history -------------------------------------------------------------------------------------------------------


def edit(iteration: int, rationale: str) -> HarnessEdited:
    made = Blob(f"{iteration:064d}", 1)
    return HarnessEdited("q", iteration, made, BLOB, "system_prompt", {}, "llm", rationale, ())


def trial(iteration: int, outcome="rejected", effect: float | None = 0.0, lever="edit_harness", detail="") -> Trial:
    gate = (
        None if effect is None else GateReport(1, 0.03, 12, 0.4, effect, -0.1, 0.2, "sign", None, "validation 0.4137")
    )
    return Trial(iteration, lever, "llm", Candidate(BLOB), outcome, gate, detail)


def test_the_history_tells_every_edit_with_its_effect_rounded_and_nothing_more_of_validation():
    edits = {f"{n}": edit(n, f"reason {n}") for n in (1, 3)}
    past = state(
        harnesses=Map(edits),
        trials=(
            trial(1, "accepted", 0.1234),
            trial(2, effect=0.5, lever="train_weights"),
            trial(3, effect=-0.0123),
            trial(4, "failed", None, detail="no valid reply"),
        ),
        fresh_from=1,
    )
    assert history(past) == [
        "- iteration 4, on the present harness. llm -> failed: no valid reply",
        "- iteration 3, on the present harness. system_prompt by llm: reason 3 -> rejected, effect +0.00",
        "- iteration 1, on an earlier one. system_prompt by llm: reason 1 -> accepted, effect +0.10",
    ]


@pytest.mark.parametrize(("effect", "told"), [(0.024, 0.0), (0.026, 0.05), (-0.026, -0.05), (0.0749, 0.05), (1.0, 1.0)])
def test_effects_are_rounded_to_a_twentieth(effect, told):
    assert rounded(effect) == pytest.approx(told)
    assert str(rounded(-0.001)) == "0.0"


def test_a_long_history_leaves_room_for_trajectories():
    many = state(rollout(1, 0.5), trials=tuple(trial(n, "failed", None, detail="x" * 400) for n in range(200)))
    _, user = for_edit(many, DOMAIN.spec, PARENT, "e", ITEMS, plain, 4000)
    assert "iteration 199," in user.content
    assert "iteration 1," not in user.content
    assert "answer 1" in user.content


def test_what_is_shown_is_text_of_the_harness_as_it_is():
    text = page(plain, 16_000, rollout(1))
    assert PARENT.answer_extraction in text
    assert msgspec.json.encode(PARENT.retry_policy).decode() in text
