"""The drafted sources in the real sandbox: good texts, and every text at all."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import GOOD, confined, requests, small_domain

from resia.agents import sources
from resia.agents.ports import Json
from resia.domains.base import Parameter, Reference, TaskSpec
from resia.events.errors import SandboxError

DOMAIN = small_domain()
SPEC = DOMAIN.spec
STRICT, TOLERANT = sources.strict_extraction(SPEC), sources.tolerant_extraction(SPEC)
PLAIN, REPAIRING = sources.strict_dispatch(SPEC), sources.repairing_dispatch(SPEC)
GOOD_REQUEST = {"knn": 5, "t": 3, "order": "rev", "log": 0, "scale": 1, "round": 0}
NAMES = [parameter.name for parameter in SPEC.parameters]
MANY = settings(max_examples=80, deadline=None)

values = st.one_of(
    st.sampled_from([str(c) for p in SPEC.parameters for c in p.choices]),
    st.sampled_from(["1.0", "nan", "-inf", "1e999", "1_0", "+3", "٣", "0x1", "rev.", "5,", "9" * 5000]),
    st.text(max_size=6),
)
pairs = st.tuples(st.sampled_from([*NAMES, "knn ", "KNN", "x"]), st.sampled_from("=:"), values).map("".join)
lines = st.lists(pairs, max_size=7).flatmap(
    lambda parts: st.sampled_from([" ", "\n", "\t ", ", ", "\u2003"]).map(lambda gap: gap.join(parts))
)
texts = st.one_of(st.text(), lines)


@pytest.fixture(scope="module")
def sandbox():
    yield from confined()


def extracted(sandbox, source: str, text: str) -> dict[str, Json] | None:
    return sandbox.run(source, "extract", [text]).value


def dispatched(sandbox, source: str, request: dict[str, Json]) -> dict[str, Json]:
    return sandbox.run(source, "dispatch", [request], {SPEC.tool: DOMAIN.parse}).value


def answer_of(sandbox, source: str, text: str) -> dict[str, Json] | None:
    """What the tool makes of a text, None when it refuses or nothing was read."""
    request = extracted(sandbox, source, text)
    try:
        return dispatched(sandbox, PLAIN, request) if request is not None else None
    except SandboxError as cause:
        return None if cause.failure == "tool_error" else {"failure": cause.failure}


@pytest.mark.parametrize("source", [STRICT, TOLERANT])
def test_a_plain_answer_is_read(sandbox, source):
    assert extracted(sandbox, source, GOOD) == GOOD_REQUEST


@pytest.mark.parametrize(
    "text",
    [
        f"Sure! {GOOD}.",
        GOOD.replace("=", ": "),
        GOOD.replace(" ", ", "),
        f"{GOOD} knn=9",
        f"a=b=c {GOOD}",
        f"as k=v=w:{GOOD}",
    ],
)
def test_prose_around_pairs_is_for_the_tolerant_one_only(sandbox, text):
    assert answer_of(sandbox, STRICT, text) is None
    assert answer_of(sandbox, TOLERANT, text) == GOOD_REQUEST


@pytest.mark.parametrize("text", ["", " ", "=", "knn=", "knn", "knn=5 knn=6", "what=5", "I cannot help with that."])
def test_what_is_no_list_of_pairs_is_refused_by_the_strict_one(sandbox, text):
    assert extracted(sandbox, STRICT, text) is None


@pytest.mark.parametrize("unit", ["a", "knn", "a ", "knn =", "knn = ", "=", "\n", "knn=5 "])
def test_long_texts_take_no_time_worth_a_limit(sandbox, unit):
    """Time that grew with the square of the length would end in SandboxError 'timeout'."""
    text = (unit * 100_000)[:100_000]
    found = extracted(sandbox, TOLERANT, text)
    assert found is None or set(found) == {"knn"}
    assert extracted(sandbox, STRICT, text) is None


@pytest.mark.parametrize("source", [STRICT, TOLERANT])
@MANY
@given(text=texts)
def test_any_text_gives_a_request_of_known_names_or_none(sandbox, source, text):
    found = extracted(sandbox, source, text)
    assert found is None or (found and set(found) <= set(NAMES))
    assert all(isinstance(value, int | float | str) for value in (found or {}).values())


@MANY
@given(text=texts)
def test_the_tolerant_one_reads_whatever_the_strict_one_reads_to_a_valid_answer(sandbox, text):
    answer = answer_of(sandbox, STRICT, text)
    assert answer is None or answer_of(sandbox, TOLERANT, text) == answer


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("why", requests())
def test_the_strict_dispatch_fails_as_the_tools_error_where_the_repairing_one_answers(sandbox, name, why):
    value = requests()[why]
    with pytest.raises(SandboxError) as refused:
        dispatched(sandbox, PLAIN, {**GOOD_REQUEST, name: value})
    assert refused.value.failure == "tool_error"
    repaired = dispatched(sandbox, REPAIRING, {**GOOD_REQUEST, name: value, "unknown": value})
    assert DOMAIN.parse(repaired) == repaired


@MANY
@given(answer=st.fixed_dictionaries({p.name: st.sampled_from(p.choices) for p in SPEC.parameters}))
def test_both_dispatches_pass_a_valid_request_on_unchanged(sandbox, answer):
    assert dispatched(sandbox, PLAIN, answer) == dispatched(sandbox, REPAIRING, answer) == answer


@MANY
@given(
    request=st.dictionaries(
        st.one_of(st.sampled_from(NAMES), st.text(max_size=5)),
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text()),
        max_size=7,
    )
)
def test_any_request_is_repaired_to_a_valid_one(sandbox, request):
    repaired = dispatched(sandbox, REPAIRING, request)
    assert DOMAIN.parse(repaired) == repaired


@pytest.mark.parametrize(("value", "nearest"), [(99, 12), (-3, 1), (5.4, 5), (5.0, 5), (10**400, 12), ("many", 5)])
def test_a_number_moves_to_the_nearest_choice_and_a_word_to_the_default(sandbox, value, nearest):
    assert dispatched(sandbox, REPAIRING, {"knn": value})["knn"] == nearest


def test_sources_are_written_for_any_spec(sandbox):
    """Quotes, braces and backslashes of a spec stay text."""
    odd = (Parameter("mode", ('"{x}"', "it's\\n"), "it's\\n", ""), Parameter("share", (0.5, 1.5), 0.5, ""))
    spec = TaskSpec("odd", "", "odd_tool", odd, (Reference("r", {}, ""),), (), "mean")
    tool = {"odd_tool": lambda arguments: arguments}
    repaired = sandbox.run(sources.repairing_dispatch(spec), "dispatch", [{"mode": '"{x}"', "share": 9}], tool).value
    assert repaired == {"mode": '"{x}"', "share": 1.5}
    assert sandbox.run(sources.strict_extraction(spec), "extract", ["share=1.5"]).value == {"share": 1.5}
