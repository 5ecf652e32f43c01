"""What a model may reply: the forms that are taken, and a reason that it can act on for every one that is not."""

from __future__ import annotations

import json

import msgspec
import pytest
from chat_given import recorded
from hypothesis import given
from hypothesis import strategies as st
from scripted import small_domain

from resia.agents.llm_reply import MAX_TEXT, Invalid, read_draft, read_edit
from resia.agents.proposing import first_harness
from resia.events import COMPONENTS, Harness, RetryPolicy, SystemPrompt, decode_harness

PARENT = first_harness(small_domain().spec)
POLICY = {"temperature": 0.6, "max_new_tokens": 48, "attempts": 2, "stop": ["\n"]}


def text_of(name: str) -> str:
    return json.loads(recorded(name).body)["choices"][0]["message"]["content"]


def edit(component: str, value: object, **more: object) -> str:
    return json.dumps({"component": component, "rationale": "Because.", "value": value, **more})


def refused(text: str) -> str:
    with pytest.raises(Invalid) as cause:
        read_edit(text, PARENT)
    return str(cause.value)


@pytest.mark.parametrize("component", COMPONENTS)
def test_a_recorded_edit_changes_its_component_alone(component):
    found = read_edit(text_of(f"edit_{component}"), PARENT)
    assert found.component == component
    digests, before = found.harness.component_digests(), PARENT.component_digests()
    assert [name for name in COMPONENTS if digests[name] != before[name]] == [component]
    assert decode_harness(found.harness.encoded()) == found.harness


def test_a_recorded_draft_is_a_whole_harness():
    found = read_draft(text_of("draft"))
    assert (found.harness, found.component) == (PARENT, None)
    assert found.rationale == "Start from the plain task and strict parsing."


@pytest.mark.parametrize(
    "around",
    [
        "{}",
        "```json\n{}\n```",
        "```\n{}\n```",
        "<think>\nMaybe {{x}}?\n</think>\n```json\n{}\n```\nDone.",
        "Sure: {} That is all.",
    ],
)
def test_a_reply_may_stand_in_a_fence_or_between_words(around):
    text = around.replace("{}", edit("retry_policy", POLICY))
    assert read_edit(text, PARENT).harness.retry_policy == RetryPolicy(0.6, 48, 2)


def test_limits_of_several_turns_can_be_set():
    found = read_edit(edit("retry_policy", {**POLICY, "tool_turns": 3, "asks": 2}), PARENT)
    assert (found.harness.retry_policy.tool_turns, found.harness.retry_policy.asks) == (3, 2)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (text_of("prose"), "Invalid JSON"),
        ("", "Invalid JSON"),
        ("[]", "should be an object"),
        (text_of("cut_off"), "Invalid JSON"),
        (text_of("wrong_schema"), "retry_policy.value.temperature: Input should be less than or equal to 2"),
        (text_of("wrong_schema"), "retry_policy.value.top_p: Extra inputs are not permitted"),
        (edit("weights", "x"), "expected tags"),
        (json.dumps({"component": "retry_policy", "value": POLICY}), "rationale: Field required"),
        (edit("retry_policy", POLICY, more=1), "more: Extra inputs"),
        (edit("retry_policy", {**POLICY, "max_new_tokens": 4097}), "max_new_tokens: Input should be less than"),
        (edit("retry_policy", {**POLICY, "attempts": "2"}), "attempts: Input should be a valid integer"),
        (edit("retry_policy", {**POLICY, "temperature": 0}), "temperature: Input should be greater than 0"),
        (edit("retry_policy", {**POLICY, "stop": [""]}), "stop.0: String should have at least 1"),
        (edit("tool_dispatch", {"source": "x"}), "value: Input should be a valid string"),
        (edit("tool_dispatch", ""), "at least 1 character"),
        (edit("tool_dispatch", "x" * (MAX_TEXT + 1)), f"at most {MAX_TEXT}"),
        (edit("system_prompt", {"text": "x", "examples": [{"user": "u"}]}), "examples.0.assistant: Field required"),
        (edit("system_prompt", {"text": "x", "examples": [{"user": "u", "assistant": "a"}] * 17}), "at most 16"),
        (edit("tool_dispatch", PARENT.tool_dispatch), "is the present one, so nothing would change"),
        (edit("retry_policy", msgspec.to_builtins(PARENT.retry_policy)), "nothing would change"),
    ],
)
def test_what_is_off_is_said(text, reason):
    assert reason in refused(text)


def test_half_a_character_is_refused_and_not_stored():
    assert refused(edit("tool_dispatch", "x = '\ud800'"))


def test_only_the_first_faults_are_named_and_none_repeats_what_was_sent():
    said = refused(edit("system_prompt", {"text": "x", "examples": [{"secret": "s" * 500}] * 9}))
    assert "and 24 more" in said
    assert "sss" not in said
    assert len(said) < 400


@given(st.text())
def test_no_text_breaks_the_reading(text):
    for read in (read_draft, lambda given: read_edit(given, PARENT)):
        with pytest.raises(Invalid):
            read(text)


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)
policies = st.builds(
    RetryPolicy,
    st.floats(0.01, 2.0),
    st.integers(1, 4096),
    st.integers(1, 8),
    st.lists(texts, max_size=3).map(tuple),
    st.integers(0, 16),
    st.integers(0, 32),
)


@given(st.builds(Harness, st.builds(SystemPrompt, texts), texts, policies, texts))
def test_any_harness_can_be_drafted(harness):
    said = {"rationale": "r", **msgspec.to_builtins(harness)}
    assert read_draft(json.dumps(said)).harness == harness
