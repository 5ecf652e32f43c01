"""Tools of a domain: who may call them, what they are told, and the operators that put them to use."""

from __future__ import annotations

import msgspec
import pytest
from fixture_domains import MidBinary
from fixture_domains import Sizes as DigitSizes
from scripted import ScriptedEngine, Tape, confined, ports, small_domain
from tooled_domain import LABELS, Charges, Sizes

from given import requested
from resia.agents import rollout, tool_sources
from resia.agents.operators import CATALOGUE, SearchView, Seen, applicable, rank
from resia.agents.proposing import first_harness
from resia.agents.toolbox import ASK, tools_of
from resia.domains.base import Tooled, ToolSpec
from resia.domains.registry import _whole
from resia.events import (
    Candidate,
    EvaluationRequested,
    RolloutFailed,
    RolloutRecorded,
    RolloutsRequested,
    Slot,
    decode_trajectory,
)
from resia.events.errors import BoundaryError, SandboxError, UsageError
from resia.runtime.blobs import DirectoryBlobs

pytest.importorskip("sklearn", reason="the tools of this domain are scikit-learn's")
DOMAIN = Charges(Sizes())
HARNESS = first_harness(DOMAIN.spec)
VIEW = SearchView(("item",), (Seen("i", "item", "label=fraud", 1.0, "label=fraud"),))
GREEDY = [Slot("validation", item.id, 0, 1, greedy=True) for item in DOMAIN.items("validation")]


@pytest.fixture(scope="module")
def sandbox():
    yield from confined()


def edit(name, domain=DOMAIN, harness=HARNESS):
    return CATALOGUE[name].edit(harness, domain, VIEW)


def sampled(sandbox, tmp_path, harness, says, domain=DOMAIN, slots=GREEDY):
    blobs = DirectoryBlobs(tmp_path / "blobs")
    candidate, tape = Candidate(blobs.put(harness.encoded())), Tape()
    tape.add(requested())
    (asked,) = tape.add(EvaluationRequested("candidate", 0, candidate, tuple(slots)))
    (fact,) = tape.add(RolloutsRequested(asked.envelope.id, "candidate", candidate, tuple(slots), 0, 1))
    engine = ScriptedEngine(lambda *_: says)
    ((*events, _),) = rollout.sample_shard(tape.state, fact, domain, ports(engine, sandbox, blobs, []))
    return events, blobs


def right(events):
    assert all(isinstance(event, RolloutRecorded) for event in events)
    return sum(event.success for event in events)


# -- operators -------------------------------------------------------------------------------------------------------


def test_operators_with_tools_apply_only_where_the_domain_lists_them():
    with_tools = {"shortlist-labels", "classify-labels"}
    assert isinstance(DOMAIN, Tooled)
    assert with_tools <= set(applicable(HARNESS, DOMAIN))
    bare = small_domain()
    assert not with_tools & set(applicable(first_harness(bare.spec), bare))


def test_where_answers_are_wrong_the_classifier_is_tried_first():
    assert rank(applicable(HARNESS, DOMAIN), {"wrong": 9, "solved": 3})[:2] == ["demonstrate-best", "classify-labels"]
    assert rank(applicable(HARNESS, DOMAIN), {"tool_error": 9})[0] == "repair-arguments"


def test_the_classifiers_label_is_the_answer_and_every_call_is_recorded(sandbox, tmp_path):
    plain, _ = sampled(sandbox, tmp_path, HARNESS, "label=theft")
    assert right(plain) == len(GREEDY) // len(LABELS)
    events, blobs = sampled(sandbox, tmp_path, edit("classify-labels"), "label=theft")
    assert right(events) > len(GREEDY) * 0.8
    (turn,) = decode_trajectory(blobs.get(events[0].trajectory)).turns
    assert [(call.name, call.arguments) for call in turn.calls[:1]] == [("classify", "{}")]
    assert [call.name for call in turn.calls] == ["classify", "charge"]


def test_an_answer_off_the_shortlist_becomes_the_nearest_on_it(sandbox):
    source = tool_sources.shortlist_dispatch(DOMAIN.spec, DOMAIN.spec.tools[1])

    def answered(said, shortlist):
        tools = {"retrieve": lambda _: shortlist, "charge": lambda arguments: arguments}
        return sandbox.run(source, "dispatch", [said], tools).value

    assert answered({"label": "theft"}, ["fraud", "theft"]) == {"label": "theft"}
    assert answered({"label": "frauds"}, ["theft", "fraud"]) == {"label": "fraud"}
    assert answered({"label": "zzz", "why": 1}, ["theft", "fraud"]) == {"label": "theft"}
    assert answered({}, []) == {}


def test_an_argument_that_cannot_be_used_is_asked_for_alone(sandbox):
    domain = small_domain()
    first = first_harness(domain.spec)
    mute = msgspec.structs.replace(first, retry_policy=msgspec.structs.replace(first.retry_policy, asks=5))
    assert edit("ask-one-by-one", domain, mute) == mute  # of six arguments
    source = edit("ask-one-by-one", domain, first).tool_dispatch
    said = {"knn": 5, "t": 99, "order": "std", "log": 0, "scale": 1}
    asked = []

    def ask(arguments):
        asked.append(arguments["prompt"])
        return "I would say 3, or 4." if "t alone" in arguments["prompt"] else "nothing"

    got = sandbox.run(source, "dispatch", [said], {ASK: ask, "denoise": lambda arguments: arguments}).value
    assert [prompt.split()[1] for prompt in asked] == ["t", "round"]
    assert got == {**said, "t": 3, "round": next(p.default for p in domain.spec.parameters if p.name == "round")}
    assert domain.parse(got) == got


# -- the contract ----------------------------------------------------------------------------------------------------


def test_a_tool_is_fitted_without_the_item_that_it_is_asked_about():
    """Else the search split would be solved by looking it up."""
    item = DOMAIN.items("search")[0]
    assert item.prompt not in DOMAIN.call("similar", item.id, {"k": 50})
    other = DOMAIN.items("search")[1]
    assert item.prompt in DOMAIN.call("similar", other.id, {"k": 50})
    texts = {i.prompt for i in DOMAIN.items("search")}
    assert set(DOMAIN.call("similar", DOMAIN.items("test")[0].id, {"k": 50})) == texts


def test_refused_arguments_are_the_agents_fault_and_a_broken_tool_is_not(sandbox, tmp_path):
    wrong = msgspec.structs.replace(HARNESS, tool_dispatch="def dispatch(request, tools): return tools.retrieve(k=0)")
    events, _ = sampled(sandbox, tmp_path, wrong, "label=theft", slots=GREEDY[:1])
    assert (events[0].failure, events[0].reward) == ("tool_error", 0.0)
    assert "k is 0: give a number above 0" in events[0].detail
    none = msgspec.structs.replace(HARNESS, tool_dispatch="def dispatch(request, tools): return tools.guess()")
    events, _ = sampled(sandbox, tmp_path, none, "label=theft", slots=GREEDY[:1])
    assert events[0].failure == "tool_error"
    events, _ = sampled(sandbox, tmp_path, edit("classify-labels"), "label=theft", Broken(Sizes()), GREEDY[:1])
    assert isinstance(events[0], RolloutFailed)
    assert events[0].error == f"tool 'classify' failed on item '{GREEDY[0].item}': ZeroDivisionError: no texts"


class Broken(Charges):
    def call(self, tool, item, arguments):
        raise ZeroDivisionError("no texts")


class Odd(Charges):
    def call(self, tool, item, arguments):
        return {"gold": object()}


def test_what_is_no_json_is_the_domains_fault():
    with pytest.raises(BoundaryError, match="tool 'classify' failed on item 'x'"):
        tools_of(Odd(Sizes()), "x")["classify"]({})


def test_a_refusal_passes_as_the_sandboxs_tool_error(sandbox):
    source = "def dispatch(request, tools): return tools.classify(text=7)"
    with pytest.raises(SandboxError, match="text is 7: give a text"):
        sandbox.run(source, "dispatch", [{}], tools_of(DOMAIN, GREEDY[0].item))


def listing(*tools):
    domain = Charges(Sizes())
    domain.spec = msgspec.structs.replace(domain.spec, tools=tools)
    return domain


@pytest.mark.parametrize(
    ("tools", "why"),
    [
        ((ToolSpec("charge", ""),), "lists a tool 'charge': give each a name of its own"),
        ((ToolSpec("two words", ""),), "lists a tool 'two words'"),
        ((ToolSpec("a", ""), ToolSpec("a", "")), "lists a tool 'a'"),
        ((ToolSpec("a", "", gives="label", parameter="gold"),), "gives values of 'gold', which no answer has"),
    ],
)
def test_a_domain_with_tools_that_cannot_be_called_is_refused(tools, why):
    with pytest.raises(UsageError, match=why):
        _whole("charges", listing(*tools))
    assert _whole("charges", DOMAIN) is DOMAIN


def test_a_domain_that_lists_tools_needs_call():
    bare = MidBinary(DigitSizes())
    bare.spec = msgspec.structs.replace(bare.spec, tools=(ToolSpec("a", ""),))
    with pytest.raises(UsageError, match="lists the tool a, so it needs call"):
        _whole("mid_binary", bare)
