"""The drafted sources for names of a long list, in the real sandbox."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import confined, small_domain

from resia.agents import sources
from resia.agents.label_sources import label_parameter
from resia.domains.registry import load_domain

DOMAINS = {name: load_domain("lawbench", {"synthetic": True, "protocol": name}) for name in ("single", "set-exact")}
SETS = DOMAINS["set-exact"].spec
# 25 names and more, without a separator: what makes a list a long one.
MANY = tuple(f"罪名{chr(0x5000 + n)}" for n in range(25))


@pytest.fixture(scope="module")
def sandbox():
    yield from confined()


def extract(sandbox, text, spec=SETS):
    return sandbox.run(sources.tolerant_extraction(spec), "extract", [text]).value


def repair(sandbox, request, spec=SETS, domain=DOMAINS["set-exact"]):
    tools = {spec.tool: domain.parse}
    return sandbox.run(sources.repairing_dispatch(spec), "dispatch", [request], tools).value


def test_only_a_list_of_names_is_handled_so():
    assert label_parameter(SETS).name == "charge"
    assert label_parameter(small_domain().spec) is None
    assert label_parameter(DOMAINS["single"].spec) is None  # twelve made-up names are words like any other


@pytest.mark.parametrize(
    ("text", "charge"),
    [
        ("盗窃", "盗窃"),
        (" charge=盗窃;诈骗 ", "盗窃;诈骗"),
        ("charge = 盗窃", "盗窃"),
        ("The charge=盗窃", "The charge=盗窃"),
        ("I cannot say", "I cannot say"),
    ],
)
def test_the_strict_one_hands_the_whole_text_to_the_tool(sandbox, text, charge):
    assert sandbox.run(sources.strict_extraction(SETS), "extract", [text]).value == {"charge": charge}


@pytest.mark.parametrize("text", ["", " ", "charge=", "charge= "])
def test_the_strict_one_reads_nothing_in_nothing(sandbox, text):
    assert sandbox.run(sources.strict_extraction(SETS), "extract", [text]).value is None


@pytest.mark.parametrize(
    ("text", "charge"),
    [
        ("charge=盗窃", "盗窃"),
        ("charge: 走私、贩卖、运输、制造毒品", "走私、贩卖、运输、制造毒品"),
        ("The answer is charge = 盗窃;诈骗<eoa>.", "盗窃;诈骗"),
        ("charge：合同诈骗罪\nbecause 盗窃", "合同诈骗罪"),
        ("被告人构成合同诈骗罪和盗窃罪", "合同诈骗;盗窃"),
        ("走私、贩卖、运输、制造毒品, not 走私", "走私、贩卖、运输、制造毒品;走私"),
        ("charge=\n盗窃", "盗窃"),
    ],
)
def test_names_are_found_whatever_stands_around_them(sandbox, text, charge):
    assert extract(sandbox, text) == {"charge": charge}


@pytest.mark.parametrize("text", ["", "theft", "charge=", "偷窃"])
def test_a_text_without_a_name_is_not_read(sandbox, text):
    assert extract(sandbox, text) is None


@pytest.mark.parametrize(
    ("said", "taken"),
    [
        ("盗窃", "盗窃"),
        ("盗窃罪;诈骗罪", "盗窃;诈骗"),
        ("合同诈骗行为", "合同诈骗"),
        ("非法持有毒瓶", "非法持有毒品"),
        ("theft", "盗窃"),
        ("", "盗窃"),
        (5, "盗窃"),
    ],
)
def test_a_name_that_is_off_becomes_the_one_most_like_it(sandbox, said, taken):
    expected = DOMAINS["set-exact"].parse({"charge": taken})
    assert repair(sandbox, {"charge": said}) == expected


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=20))
def test_any_text_is_repaired_to_a_valid_answer(sandbox, said):
    answer = repair(sandbox, {"charge": said})
    assert DOMAINS["set-exact"].parse(answer) == answer


def test_one_label_of_a_long_list_has_no_separator(sandbox):
    import msgspec

    (parameter,) = DOMAINS["single"].spec.parameters
    parameter = msgspec.structs.replace(parameter, choices=MANY, default=MANY[0])
    spec = msgspec.structs.replace(DOMAINS["single"].spec, parameters=(parameter,))
    assert extract(sandbox, f"either {MANY[3]} or {MANY[4]}", spec) == {"charge": MANY[3]}
    tools = {spec.tool: lambda arguments: arguments}
    repaired = sandbox.run(sources.repairing_dispatch(spec), "dispatch", [{"charge": f"{MANY[7]}罪"}], tools).value
    assert repaired == {"charge": MANY[7]}
