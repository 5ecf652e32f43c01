"""The proposer `llm` against a local endpoint: which replies are taken, which go back, and what is recorded."""

from __future__ import annotations

import json

import msgspec
import pytest
from chat_given import KEY, KEY_MARK, Endpoint, endpoint, failing, llm_settings, recorded, saying
from scripted import GOOD, ScriptedEngine, Tape, confined
from test_proposing import DOMAIN, GOLD, Bare, measured, sealed_marks

from given import requested
from histories import World, play, run_request
from resia.agents import llm, proposing
from resia.agents.operators import CATALOGUE
from resia.agents.ports import ProposerPorts
from resia.events import (
    COMPONENTS,
    HARNESS_MEDIA,
    DraftFailed,
    EditFailed,
    EditRequested,
    HarnessDrafted,
    HarnessEdited,
    RunCompleted,
    decode_harness,
)
from resia.events.errors import KeyRefused, ModelError
from resia.runtime.blobs import DirectoryBlobs
from resia.runtime.engines.openai_chat import OpenAiChat
from resia.runtime.sandbox import ProcessSandbox

FIRST = proposing.first_harness(DOMAIN.spec)


@pytest.fixture(scope="module")
def sandbox():
    yield from confined(cpu_s=1)


@pytest.fixture
def blobs(tmp_path):
    return DirectoryBlobs(tmp_path / "blobs")


class Desk:
    """A run on tape whose proposer asks an endpoint."""

    def __init__(self, blobs: DirectoryBlobs, sandbox: ProcessSandbox) -> None:
        self.tape, self.blobs, self.sandbox = Tape(), blobs, sandbox
        (self.first,) = self.tape.add(requested(proposer="llm"))

    def ports(self, there: Endpoint, **settings):
        settings = llm_settings(there.url, **settings)
        chat = OpenAiChat(settings, KEY, sleep=lambda seconds: None)
        return settings, ProposerPorts(lambda: chat, lambda: self.sandbox, self.blobs)

    def draft(self, there: Endpoint, domain=DOMAIN, **settings):
        ((event,),) = llm.draft(self.first, domain, *self.ports(there, **settings))
        self.tape.add(event, cause=self.first.envelope.id)
        return event

    def measure(self, says) -> str:
        """Of the plain harness that the recorded draft is."""
        parent = self.blobs.put(FIRST.encoded(), HARNESS_MEDIA)
        return measured(self.tape, self.blobs, self.sandbox, parent, ScriptedEngine(says))

    def edit(self, there: Endpoint, evaluation: str, iteration: int = 1, **settings):
        parent = self.blobs.put(FIRST.encoded(), HARNESS_MEDIA)
        (fact,) = self.tape.add(EditRequested(iteration, parent, ("llm",), evaluation, {}))
        ((event,),) = llm.edit(self.tape.state, fact, DOMAIN, *self.ports(there, **settings))
        self.tape.add(event, cause=fact.envelope.id)
        return event

    def exchange(self, event) -> llm.Exchange:
        return msgspec.json.decode(self.blobs.get(event.exchange), type=llm.Exchange)


@pytest.fixture
def desk(blobs, sandbox):
    return Desk(blobs, sandbox)


@pytest.fixture
def evaluation(desk):
    return desk.measure(lambda prompt, seed: GOOD.replace("knn=5", f"knn={seed + 3}"))


# -- the draft -------------------------------------------------------------------------------------------------------


def test_a_recorded_draft_is_generation_0(desk):
    with endpoint(recorded("draft")) as there:
        event = desk.draft(there)
    assert isinstance(event, HarnessDrafted)
    assert decode_harness(desk.blobs.get(event.harness)) == FIRST
    assert (event.proposer, event.components) == ("llm", FIRST.component_digests())
    assert event.rationale == "Start from the plain task and strict parsing."
    assert event.applicable[-1] == "llm"
    assert set(event.applicable[:-1]) <= set(CATALOGUE)
    assert (event.prompt_tokens, event.completion_tokens) == (1201, 101)
    assert desk.tape.state.ledger.tokens == 1302


def test_a_domain_without_references_can_be_drafted_for(desk):
    with endpoint(recorded("draft")) as there:
        event = desk.draft(there, Bare())
    assert isinstance(event, HarnessDrafted)
    assert event.applicable == ("llm",)


@pytest.mark.parametrize("status", [401, 402, 403])
def test_a_refused_key_is_no_fact_and_says_how_to_go_on(desk, status):
    words = rf"HTTP {status}: .*\(no \[key\]\); once that is mended, go on with: resia run --resume tape"
    with endpoint(failing(status, f"no {KEY_MARK}")) as there, pytest.raises(KeyRefused, match=words):
        desk.draft(there)
    assert len(there.heard) == 1


def test_an_account_without_credit_is_told_from_too_many_requests(desk):
    words = r"HTTP 429: the account has no credit \(no\); once that is mended"
    with endpoint(failing(429, code="insufficient_quota")) as there, pytest.raises(KeyRefused, match=words):
        desk.draft(there)
    assert len(there.heard) == 1


def test_a_model_that_is_not_there_fails_the_draft_by_name_and_once(desk):
    with endpoint(failing(404, "no {{KEY}}")) as there:
        event = desk.draft(there)
    assert isinstance(event, DraftFailed)
    assert "HTTP 404: there is no such model or path" in event.error
    assert desk.exchange(event).error == event.error
    assert len(there.heard) == 1


def test_a_draft_whose_source_fails_goes_back_and_is_mended(desk):
    broken = json.loads(json.loads(recorded("draft").body)["choices"][0]["message"]["content"])
    broken["answer_extraction"] = "def extract(text): return 1 / 0"
    with endpoint(saying(json.dumps(broken)), recorded("draft")) as there:
        event = desk.draft(there)
    assert isinstance(event, HarnessDrafted)
    assert "ZeroDivisionError" in there.heard[1]["messages"][-1]["content"]


def test_a_fork_needs_no_draft(desk):
    from resia.events import Parent

    first = msgspec.structs.replace(requested(proposer="llm"), parent=Parent("p", 3, "r" * 64, 1))
    (fact,) = Tape().add(first)
    with endpoint(recorded("draft")) as there:
        assert list(llm.draft(fact, DOMAIN, *desk.ports(there))) == []
    assert there.heard == []


# -- edits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("component", COMPONENTS)
def test_a_recorded_edit_of_each_component_is_taken(desk, evaluation, component):
    with endpoint(recorded(f"edit_{component}")) as there:
        event = desk.edit(there, evaluation)
    assert isinstance(event, HarnessEdited)
    assert (event.component, event.operator) == (component, "llm")
    before = FIRST.component_digests()
    assert [name for name in COMPONENTS if event.components[name] != before[name]] == [component]
    assert decode_harness(desk.blobs.get(event.harness)).component_digests() == event.components
    assert event.completion_tokens > 0


BAD = {
    "prose": "Invalid JSON",
    "wrong_schema": "retry_policy.value.temperature: Input should be less than or equal to 2",
    "cut_off": "it was cut off at 4096 tokens",
    "source_does_not_parse": "SyntaxError",
    "source_has_no_entry": "the source defines no function 'extract'",
    "source_loops": "(timeout)",
    "source_prints": "the source of extract fails on ''",  # by its size, or by its time on a busy machine
    "source_returns_a_list": "extract('') returned a list: it must return a dict, or None",
    "source_returns_no_answer": "returned a str: it must return what the tool returned",
}


@pytest.mark.parametrize("name", BAD)
def test_a_reply_that_cannot_be_used_goes_back_with_the_reason(desk, evaluation, name):
    with endpoint(recorded(name), recorded("edit_retry_policy")) as there:
        event = desk.edit(there, evaluation)
    assert isinstance(event, HarnessEdited)
    assert event.component == "retry_policy"
    *_, reply, told = there.heard[1]["messages"]
    said = json.loads(recorded(name).body)["choices"][0]["message"]["content"]
    assert (reply["role"], reply["content"], told["role"]) == ("assistant", said, "user")
    assert BAD[name] in told["content"]
    first, second = desk.exchange(event).said
    assert BAD[name] in first.refused
    assert (first.reply, second.refused) == (said, "")
    assert event.prompt_tokens == first.prompt_tokens + second.prompt_tokens
    assert event.completion_tokens == first.completion_tokens + second.completion_tokens


def test_an_edit_that_never_becomes_valid_fails_as_a_fact(desk, evaluation):
    with endpoint(recorded("prose")) as there:
        event = desk.edit(there, evaluation, tries=3)
    assert isinstance(event, EditFailed)
    assert (event.operators, event.error.partition(":")[0]) == (("llm",), "no valid reply in 3; the last")
    assert len(there.heard) == 3
    assert len(desk.exchange(event).said) == 3
    (trial,) = desk.tape.state.trials
    assert (trial.lever, trial.name, trial.outcome) == ("edit_harness", "llm", "failed")
    assert desk.tape.state.ledger.completion_tokens >= event.completion_tokens > 0


def test_the_same_harness_again_is_refused(desk, evaluation):
    with endpoint(recorded("edit_retry_policy")) as there:
        assert isinstance(desk.edit(there, evaluation), HarnessEdited)
        event = desk.edit(there, evaluation, iteration=2, tries=2)
    assert isinstance(event, EditFailed)
    assert "this harness was in the run before" in event.error


def test_an_exchange_holds_every_word_and_every_failure_and_no_key(desk, evaluation):
    with endpoint(failing(500, "with {{KEY}}"), recorded("edit_system_prompt")) as there:
        event = desk.edit(there, evaluation)
    found = desk.exchange(event)
    assert [{"role": m.role, "content": m.content} for m in found.messages] == there.heard[1]["messages"]
    (said,) = found.said
    assert said.failures == ("HTTP 500: with [key]",)
    assert "with [key]" in event.rationale
    assert not [path for path in desk.blobs.path(event.exchange).parents[1].rglob("*") if holds_key(path)]


def holds_key(path) -> bool:
    return path.is_file() and KEY.encode() in path.read_bytes()


@pytest.mark.parametrize("status", [400, 404])
def test_a_permanent_refusal_is_a_failed_edit(desk, evaluation, status):
    with endpoint(failing(status)) as there:
        event = desk.edit(there, evaluation)
    assert isinstance(event, EditFailed)
    assert f"HTTP {status}" in event.error
    assert len(there.heard) == 1


def test_an_outage_is_no_fact_and_says_how_to_go_on(desk, evaluation):
    before = len(desk.tape.facts)
    with endpoint(failing(503, "down")) as there, pytest.raises(ModelError, match="resia run --resume tape"):
        desk.edit(there, evaluation, retries=2)
    assert len(there.heard) == 3
    assert len(desk.tape.facts) == before + 1  # the request alone


# -- what it is shown --------------------------------------------------------------------------------------------------


def shown(there: Endpoint, number: int = 0) -> str:
    return "\n".join(message["content"] for message in there.heard[number]["messages"])


def test_it_sees_search_trajectories_the_harness_and_the_task_and_nothing_sealed(desk, evaluation):
    with endpoint(recorded("edit_retry_policy")) as there:
        desk.edit(there, evaluation)
    text = shown(there)
    assert "MARK-search-" in text
    assert not [mark for mark in (GOLD, *sealed_marks()) if mark in text]
    assert FIRST.tool_dispatch in text
    assert DOMAIN.spec.instruction.strip() in text
    assert all(f"- {p.name}: one of" in text for p in DOMAIN.spec.parameters)
    assert "model: knn=" in text


def test_a_draft_shows_the_search_items_alone(desk):
    with endpoint(recorded("draft")) as there:
        desk.draft(there)
    text = shown(there)
    assert "MARK-search-" in text
    assert not [mark for mark in (GOLD, *sealed_marks()) if mark in text]


def test_past_edits_are_told_with_their_rationale_and_end(desk, evaluation):
    with endpoint(recorded("prose")) as there:
        desk.edit(there, evaluation, tries=1)
    with endpoint(recorded("edit_retry_policy")) as there:
        desk.edit(there, evaluation, iteration=2)
    assert "iteration 1, on the present harness. llm -> failed: no valid reply in 1" in shown(there)


def test_a_budget_that_does_not_hold_the_task_is_named_and_nobody_is_asked(desk, evaluation):
    with endpoint(recorded("draft")) as there:
        drafted, edited = desk.draft(there, prompt_tokens=500), desk.edit(there, evaluation, prompt_tokens=500)
    assert (type(drafted), type(edited)) == (DraftFailed, EditFailed)
    for event in (drafted, edited):
        assert "llm.prompt_tokens is 500, which does not hold the task and the harness: raise it" in event.error
        assert event.exchange is None
    assert there.heard == []


# -- the rules ---------------------------------------------------------------------------------------------------------


def played(patience: int, **world):
    request = run_request(mode="H", patience_h=patience, max_iterations=9)
    settings = msgspec.structs.replace(request.settings, proposer="llm")
    return play(msgspec.structs.replace(request, settings=settings), World(operators={"llm": 0.0}, **world))


def test_a_model_is_asked_until_patience_is_spent():
    history = played(3)
    assert history.actions == ["edit_harness"] * 3 + ["stop"]
    assert [event.operators for event in history.of(EditRequested)] == [("llm",)] * 3
    assert {trial.name for trial in history.state.trials if trial.lever == "edit_harness"} == {"llm"}


def test_failed_edits_spend_patience_and_the_run_goes_on():
    history = played(2, edit_fails=lambda _: True)
    assert history.actions == ["edit_harness"] * 2 + ["stop"]
    assert history.outcomes[-2:] == ["failed", "failed"]
    assert isinstance(history.state.ending, RunCompleted)
