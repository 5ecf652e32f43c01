"""Sampling a shard: a scripted model, the real sandbox, the real domain, and what is recorded of each answer."""

from __future__ import annotations

import math

import msgspec
import pytest
from scripted import GOOD, MANIFEST, CountingDomain, ScriptedEngine, Tape, confined, ports, small_domain

from given import clerk, requested
from resia.agents import episode, rollout
from resia.agents.ports import Completion
from resia.agents.proposing import first_harness
from resia.agents.sources import repairing_dispatch, tolerant_extraction
from resia.agents.taskwork import _shards
from resia.domains.base import Score
from resia.events import (
    Blob,
    Candidate,
    ControlFailed,
    ControlMeasured,
    ControlRequested,
    EvaluationRequested,
    Message,
    RolloutFailed,
    RolloutRecorded,
    RolloutsRequested,
    ShardSampled,
    Slot,
    decode_trajectory,
    encode,
)
from resia.events.codec import MAX_EVENT_BYTES
from resia.events.errors import BlobError, ModelError
from resia.events.ids import seed_for
from resia.runtime.blobs import DirectoryBlobs

DOMAIN = small_domain()
HARNESS = first_harness(DOMAIN.spec)
KIB = 1024
SEARCH = [Slot("search", item.id, 0, seed) for seed, item in enumerate(DOMAIN.items("search"), 100)]
PROMPTS = {item.prompt: item.id for item in DOMAIN.items("search")}


@pytest.fixture(scope="module")
def sandbox():
    yield from confined()


@pytest.fixture(scope="module")
def hasty():
    yield from confined(wall_s=0.3)


@pytest.fixture
def blobs(tmp_path):
    return DirectoryBlobs(tmp_path / "blobs")


class Bench:
    """One candidate in one log; `sample` performs a shard and appends what came of it."""

    def __init__(self, sandbox, blobs, harness=HARNESS, domain=None) -> None:
        self.domain = domain or CountingDomain(DOMAIN)
        self.sandbox, self.blobs, self.tape, self.live = sandbox, blobs, Tape(), []
        self.candidate = Candidate(blobs.put(harness.encoded()))
        self.tape.add(requested())

    def sample(self, engine, slots=SEARCH, candidate=None, purpose="candidate"):
        candidate = candidate or self.candidate
        (asked,) = self.tape.add(EvaluationRequested(purpose, 0, candidate, tuple(slots)))
        request = RolloutsRequested(asked.envelope.id, purpose, candidate, tuple(slots), 0, 1)
        (fact,) = self.tape.add(request, cause=asked.envelope.id)
        touched = ports(engine, self.sandbox, self.blobs, self.live)
        batches = list(rollout.sample_shard(self.tape.state, fact, self.domain, touched))
        assert len(batches) == 1  # whole or not at all
        self.tape.add(*batches[0], cause=fact.envelope.id)
        assert isinstance(batches[0][-1], ShardSampled)
        assert batches[0][-1].request == fact.envelope.id
        return batches[0]


def one(sandbox, blobs, text, slots=SEARCH[:1], cut=(), **components) -> RolloutRecorded:
    harness = msgspec.structs.replace(HARNESS, **components)
    recorded, _ = Bench(sandbox, blobs, harness).sample(ScriptedEngine(lambda *_: text, cut), slots)
    assert isinstance(recorded, RolloutRecorded)
    return recorded


def turns(blobs, recorded):
    return decode_trajectory(blobs.get(recorded.trajectory)).turns


# -- classes of failure ----------------------------------------------------------------------------------------------


def test_a_valid_answer_is_scored_by_the_domain(sandbox, blobs):
    found = one(sandbox, blobs, GOOD)
    score = DOMAIN.score(SEARCH[0].item, DOMAIN.spec.references[0].answer)
    assert (found.reward, found.success, found.failure) == (score.reward, score.success, None)
    assert found.answer == GOOD
    assert found.metrics == score.metrics
    (turn,) = turns(blobs, found)
    assert turn.calls[0].name == "denoise"
    assert turn.reward == found.reward == found.step_rewards[-1]


@pytest.mark.parametrize(
    ("text", "failure"),
    [
        ("let me think", "parse"),
        ("", "parse"),
        ("I'm sorry, I cannot do that", "refusal"),
        ("knn=13", "tool_error"),
        ("knn=five t=3", "tool_error"),
        ("knn=5.0", "tool_error"),
        ("\x00\x1b[31m\u202e\U0001f4a9", "parse"),
    ],
)
def test_a_text_without_a_valid_answer_is_worth_0_and_has_its_class(sandbox, blobs, text, failure):
    found = one(sandbox, blobs, text)
    assert (found.failure, found.reward, found.success, found.answer) == (failure, 0.0, False, "")
    assert found.detail
    (turn,) = turns(blobs, found)
    assert (turn.failure, turn.text, turn.reward) == (failure, text, 0.0)


def test_a_text_that_was_cut_off_is_a_truncation_only_where_nothing_could_be_read(sandbox, blobs):
    assert one(sandbox, blobs, "well, knn", cut=["well, knn"]).failure == "truncation"
    assert one(sandbox, blobs, GOOD, cut=[GOOD]).failure is None


@pytest.mark.parametrize(
    ("extraction", "failure"),
    [
        ("def extract(text): raise KeyError(text)", "tool_error"),
        ("def extract(text: return", "tool_error"),
        ("x = 1", "tool_error"),
        ("def extract(text): return [text]", "parse"),
        ("def extract(text): return 'knn=5'", "parse"),
        ("def extract(text): return float('nan')", "tool_error"),
        ("def extract(text): return {'\\ud800': 1}", "tool_error"),
        ("def extract(text):\n    while True: pass", "timeout"),
        ("import os\ndef extract(text): os.kill(os.getpid(), 9)", "sandbox_violation"),
        ("def extract(text): return 'x' * 10**10", "sandbox_violation"),
    ],
)
def test_an_extraction_that_breaks_is_the_harness_fault_and_recorded(hasty, blobs, extraction, failure):
    found = one(hasty, blobs, GOOD, answer_extraction=extraction)
    assert (found.failure, found.reward, found.answer) == (failure, 0.0, "")


@pytest.mark.parametrize(
    ("dispatch", "failure"),
    [
        ("def dispatch(request, tools): return None", "tool_error"),
        ("def dispatch(request, tools): return [1]", "tool_error"),
        ("def dispatch(request, tools): return {'knn': 99}", "tool_error"),
        ("def dispatch(request, tools): return {'answer': 1.0}", "tool_error"),
        ("def dispatch(request, tools): return tools.score(item='search-00')", "tool_error"),
        ("def dispatch(request, tools):\n    while True: pass", "timeout"),
        ("def dispatch(request, tools): return open('/etc/passwd').read()", "sandbox_violation"),
    ],
)
def test_a_dispatch_that_gives_no_valid_answer_is_no_answer(hasty, blobs, dispatch, failure):
    """What it returns stands in for nothing: no default is scored in its place."""
    found = one(hasty, blobs, GOOD, tool_dispatch=dispatch)
    assert (found.failure, found.reward, found.answer) == (failure, 0.0, "")


# -- retries ---------------------------------------------------------------------------------------------------------


def retrying(attempts: int = 3):
    return msgspec.structs.replace(HARNESS.retry_policy, attempts=attempts)


def test_only_what_could_not_be_read_is_sampled_again_with_seeds_of_its_own(sandbox, blobs):
    bad = SEARCH[1].item
    second = seed_for(SEARCH[1].seed, "attempt", 1)

    def says(prompt: str, seed: int) -> str:
        return "hm" if PROMPTS[prompt] == bad and seed != second else GOOD

    engine = ScriptedEngine(says)
    bench = Bench(sandbox, blobs, msgspec.structs.replace(HARNESS, retry_policy=retrying()))
    *recorded, sampled = bench.sample(engine)
    assert [seeds for _, seeds, _ in engine.calls] == [tuple(s.seed for s in SEARCH), (second,)]
    assert [r.failure for r in recorded] == [None] * 3
    assert [len(turns(blobs, r)) for r in recorded] == [1, 2, 1]
    first, last = turns(blobs, recorded[1])
    assert (first.failure, first.reward, last.failure) == ("parse", 0.0, "")
    assert recorded[1].step_rewards == (recorded[1].reward,)  # a try is no step
    assert [turn.reward for turn in (first, last)] == [0.0, recorded[1].reward]
    assert recorded[1].completion_tokens == len(first.completion_ids) + len(last.completion_ids)
    assert sampled.completion_tokens == sum(r.completion_tokens for r in recorded)


def test_tries_are_bounded_and_a_greedy_rollout_samples_its_second(sandbox, blobs):
    bench = Bench(sandbox, blobs, msgspec.structs.replace(HARNESS, retry_policy=retrying()))
    engine = ScriptedEngine(lambda *_: "hm")
    recorded, _ = bench.sample(engine, SEARCH[:1])
    assert (len(engine.calls), len(turns(blobs, recorded)), recorded.step_rewards) == (3, 3, (0.0,))
    greedy = ScriptedEngine(lambda *_: "hm")
    slots = [Slot("validation", item.id, 0, 7, greedy=True) for item in DOMAIN.items("validation")]
    assert {r.failure for r in bench.sample(greedy, slots)[:-1]} == {"parse"}
    assert [sampling.temperature for sampling, _, _ in greedy.calls] == [0.0, 0.7, 0.7]


def test_sampling_is_the_harness_policy(sandbox, blobs):
    engine = ScriptedEngine(lambda *_: GOOD)
    recorded, _ = Bench(sandbox, blobs).sample(engine, SEARCH[:1])
    policy, (sampling, _, adapter) = HARNESS.retry_policy, engine.calls[0]
    assert (sampling.temperature, sampling.max_new_tokens) == (policy.temperature, policy.max_new_tokens)
    assert sampling.stop == policy.stop
    assert adapter is None
    assert decode_trajectory(blobs.get(recorded.trajectory)).temperature == policy.temperature


# -- scoring once ----------------------------------------------------------------------------------------------------


def test_an_answer_is_scored_once_an_item_in_the_shard_and_in_the_run(sandbox, blobs):
    bench = Bench(sandbox, blobs)
    slots = [Slot("search", s.item, index, s.seed + index) for s in SEARCH for index in range(4)]
    first = bench.sample(ScriptedEngine(lambda *_: GOOD), slots)[:-1]
    assert [r.reused for r in first] == [False, True, True, True] * 3
    assert bench.domain.scored == {(s.item, GOOD): 1 for s in SEARCH}
    again = bench.sample(ScriptedEngine(lambda *_: GOOD), slots)[:-1]
    assert all(r.reused for r in again)
    assert set(bench.domain.scored.values()) == {1}
    assert [(r.reward, r.success, r.detail, r.metrics) for r in again] == [
        (r.reward, r.success, r.detail, r.metrics) for r in first
    ]


def test_an_answer_that_differs_in_writing_alone_is_the_same(sandbox, blobs):
    bench = Bench(sandbox, blobs)
    written = {0: GOOD, 1: " ".join(reversed(GOOD.split())), 2: GOOD.removesuffix(" round=0")}
    slots = [Slot("search", SEARCH[0].item, index, index) for index in written]
    recorded = bench.sample(ScriptedEngine(lambda _, seed: written[seed]), slots)[:-1]
    assert {r.answer for r in recorded} == {GOOD}
    assert sum(bench.domain.scored.values()) == 1


def test_invalid_answers_are_never_scored(sandbox, blobs):
    bench = Bench(sandbox, blobs)
    bench.sample(ScriptedEngine(lambda *_: "knn=99"))
    assert not bench.domain.scored


# -- several steps ---------------------------------------------------------------------------------------------------


class Guessing:
    """Three answers a rollout at most; the agent is told of each how far along it is, and a 12 ends it.

    Implements `resia.domains.base.Stepwise` by the denoising tool's `knn`, which is worth as much as it says.
    """

    def __init__(self, earns=lambda answers: tuple(a["knn"] / 100 for a in answers)) -> None:
        self.spec = msgspec.structs.replace(DOMAIN.spec, steps=3)
        self.digest, self._earns = "g" * 64, earns
        self.scored: list[tuple[int, ...]] = []

    def __getattr__(self, name):
        return getattr(DOMAIN, name)

    def score(self, item, answer):
        raise AssertionError("a rollout of several answers is scored whole")

    def observe(self, item, answers):
        return None if answers[-1]["knn"] == 12 else f"told {len(answers)} of {item}"

    def score_steps(self, item, answers):
        self.scored.append(tuple(a["knn"] for a in answers))
        steps = self._earns(answers)
        return Score(sum(steps), False, None, "", {}, steps)


def says_in_turn(*texts):
    """Each text is the answer to the item's prompt, to what is told first, and so on."""
    return lambda prompt, _: texts[int(prompt.split()[1]) if prompt.startswith("told") else 0]


def guess(sandbox, blobs, says, domain=None, slots=SEARCH[:1], **policy):
    changed = msgspec.structs.replace(HARNESS.retry_policy, **policy)
    bench = Bench(sandbox, blobs, msgspec.structs.replace(HARNESS, retry_policy=changed), domain or Guessing())
    engine = ScriptedEngine(says)
    return bench.sample(engine, slots), engine


def test_each_answer_is_given_in_the_light_of_what_was_told_of_those_before(sandbox, blobs):
    (found, _), engine = guess(sandbox, blobs, says_in_turn("knn=3", "knn=5", "knn=8"))
    first, second, third = turns(blobs, found)
    item = SEARCH[0].item
    assert second.messages == (*first.messages, Message("assistant", "knn=3"), Message("user", f"told 1 of {item}"))
    assert third.messages == (*second.messages, Message("assistant", "knn=5"), Message("user", f"told 2 of {item}"))
    assert found.step_rewards == (0.03, 0.05, 0.08)
    assert found.reward == pytest.approx(0.16)
    assert [line.split()[0] for line in found.answer.splitlines()] == ["knn=3", "knn=5", "knn=8"]
    seed = SEARCH[0].seed
    assert [seeds for _, seeds, _ in engine.calls] == [
        (seed,),
        (seed_for(seed, "step", 1),),
        (seed_for(seed, "step", 2),),
    ]


def test_a_rollout_ends_where_nothing_more_is_told_and_the_others_go_on(sandbox, blobs):
    def says(prompt, seed):
        return "knn=12" if seed == SEARCH[0].seed else "knn=3"

    recorded, engine = guess(sandbox, blobs, says, slots=SEARCH)
    assert [len(r.step_rewards) for r in recorded[:-1]] == [1, 3, 3]
    assert [len(seeds) for _, seeds, _ in engine.calls] == [3, 2, 2]


def test_a_step_that_was_tried_again_earns_at_the_turn_that_answered(sandbox, blobs):
    item, seed = SEARCH[0].item, SEARCH[0].seed
    again = seed_for(seed_for(seed, "step", 1), "attempt", 1)

    def says(prompt, drawn):
        return "hm" if prompt == f"told 1 of {item}" and drawn != again else "knn=4"

    domain = Guessing()
    (found, _), _ = guess(sandbox, blobs, says, domain, attempts=2)
    assert [turn.failure for turn in turns(blobs, found)] == ["", "parse", "", ""]
    assert found.step_rewards == (0.04, 0.04, 0.04)
    assert [turn.reward for turn in turns(blobs, found)] == [0.04, 0.0, 0.04, 0.04]
    assert turns(blobs, found)[1].messages == turns(blobs, found)[2].messages  # what was not understood is not told
    assert domain.scored == [(4, 4, 4)]


def test_a_rollout_that_fails_at_any_step_is_worth_nothing(sandbox, blobs):
    domain = Guessing()
    (found, _), _ = guess(sandbox, blobs, says_in_turn("knn=3", "hm"), domain)
    assert (found.failure, found.reward, found.answer, found.step_rewards) == ("parse", 0.0, "", (0.0, 0.0))
    assert domain.scored == []


def test_a_dialogue_that_outgrows_the_context_is_cut_off_where_it_stands(sandbox, blobs):
    class Narrow(ScriptedEngine):
        def generate(self, prompts, *rest):
            found = super().generate(prompts, *rest)
            none = Completion((1,) * 900, (), (), "", "context")
            return [none if len(prompt) > most else c for prompt, c in zip(prompts, found, strict=True)]

    bench, most = Bench(sandbox, blobs, domain=Guessing()), 2
    found, _ = bench.sample(Narrow(says_in_turn("knn=3", "knn=5", "knn=8")), SEARCH[:1])
    assert (found.failure, found.reward, len(turns(blobs, found))) == ("truncation", 0.0, 1)
    assert found.detail == "900 tokens of dialogue leave the model no room for an answer"
    most = 1
    first, _ = bench.sample(Narrow(lambda *_: GOOD), SEARCH[:1])
    assert (first.failure, first.step_rewards, turns(blobs, first)) == ("truncation", (0.0,), ())
    assert (first.prompt_tokens, first.detail) == (0, found.detail)


def test_the_same_answers_are_scored_once_and_keep_what_each_step_earned(sandbox, blobs):
    bench = Bench(sandbox, blobs, domain=Guessing())
    says = says_in_turn("knn=3", "knn=5", "knn=8")
    first, second = (bench.sample(ScriptedEngine(says), SEARCH[:1])[0] for _ in range(2))
    assert (first.reused, second.reused) == (False, True)
    assert first.step_rewards == second.step_rewards
    assert bench.domain.scored == [(3, 5, 8)]


class Breaking(Guessing):
    """A domain whose `member` breaks."""

    def __init__(self, member):
        super().__init__()
        setattr(self, member, self._break)

    def _break(self, *_):
        raise ZeroDivisionError("no cells")


ITEM = f"item '{SEARCH[0].item}'"


@pytest.mark.parametrize(
    ("domain", "why"),
    [
        (Breaking("score_steps"), f"scoring {ITEM} failed: ZeroDivisionError: no cells"),
        (Breaking("observe"), f"observing {ITEM} failed: ZeroDivisionError: no cells"),
        (Breaking("render"), "rendering an answer failed: ZeroDivisionError: no cells"),
        (Breaking("parse"), "reading a request of the agent's failed: ZeroDivisionError: no cells"),
        (Guessing(lambda _: (0.5,)), f"{ITEM} got 1 step rewards for 3 answers"),
        (Guessing(lambda _: (0.5, math.nan, 0.5)), f"{ITEM} was given reward nan: the scorer must give finite numbers"),
        (Guessing(lambda _: (math.inf, 0.5, -math.inf)), f"{ITEM} was given reward nan: the scorer must give finite"),
    ],
)
def test_a_domain_that_breaks_is_infrastructure_and_no_wrong_answer(sandbox, blobs, domain, why):
    (lost, _), _ = guess(sandbox, blobs, says_in_turn("knn=3", "knn=5", "knn=8"), domain)
    assert type(lost) is RolloutFailed
    assert lost.error.startswith(why)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_metric_that_no_event_can_hold_is_named(sandbox, blobs, number):
    class Odd(CountingDomain):
        def score(self, item, answer):
            return msgspec.structs.replace(super().score(item, answer), metrics={"cells": number})

    lost, _ = Bench(sandbox, blobs, domain=Odd(DOMAIN)).sample(ScriptedEngine(lambda *_: GOOD), SEARCH[:1])
    assert lost.error == f"{ITEM} was given cells {number}: the scorer must give finite numbers"


# -- tools in several turns ------------------------------------------------------------------------------------------

LOOK = """
def dispatch(request, tools):
    if request.get("t") == 1:
        return "t=1 is a look: knn=%d would do" % request["knn"]
    return tools.denoise(**request)
"""
ASK = """
def dispatch(request, tools):
    for n in range(request["knn"]):
        text = tools.ask(prompt="which t, %d?" % n)
    return tools.denoise(knn=1, t=int(text))
"""


def dispatching(sandbox, blobs, source, says, slots=SEARCH[:1], broken=0, **policy):
    changed = msgspec.structs.replace(HARNESS.retry_policy, **policy)
    harness = msgspec.structs.replace(HARNESS, tool_dispatch=source, retry_policy=changed)
    engine = ScriptedEngine(says, broken=broken)
    return Bench(sandbox, blobs, harness).sample(engine, slots), engine


def test_an_observation_is_told_to_the_model_which_then_answers(sandbox, blobs):
    def says(prompt, _):
        return "knn=7 t=3" if "is a look" in prompt else "knn=5 t=1"

    (found, _), engine = dispatching(sandbox, blobs, LOOK, says, tool_turns=1)
    look, answer = turns(blobs, found)
    assert found.failure is None
    assert found.answer.startswith("knn=7 t=3")
    told = Message("user", "t=1 is a look: knn=5 would do")
    assert answer.messages == (*look.messages, Message("assistant", "knn=5 t=1"), told)
    assert found.step_rewards == (found.reward,)  # an observation is no step
    assert [turn.reward for turn in (look, answer)] == [0.0, found.reward]
    assert found.prompt_tokens == len(look.prompt_ids) + len(answer.prompt_ids)
    assert [seeds for _, seeds, _ in engine.calls] == [(SEARCH[0].seed,), (seed_for(SEARCH[0].seed, "step", 1),)]


@pytest.mark.parametrize("limit", [0, 1, 3])
def test_only_so_many_turns_may_end_in_an_observation(sandbox, blobs, limit):
    (found, _), engine = dispatching(sandbox, blobs, LOOK, lambda *_: "knn=5 t=1", tool_turns=limit)
    assert (found.failure, found.reward) == ("tool_error", 0.0)
    assert len(engine.calls) == limit + 1
    assert ("tool_turns" if limit else "and no answer") in found.detail


def test_a_long_observation_is_cut(sandbox, blobs):
    endless = "def dispatch(request, tools): return 'x' * 500_000"
    (found, _), _ = dispatching(sandbox, blobs, endless, lambda *_: GOOD, tool_turns=1)
    assert len(turns(blobs, found)[1].messages[-1].content) < 5000


def test_dispatch_asks_the_model_and_every_question_is_recorded_and_paid_for(sandbox, blobs):
    def says(prompt, seed):
        return "3" if prompt.startswith("which t") else "knn=2"

    (found, _), engine = dispatching(sandbox, blobs, ASK, says, asks=2)
    (turn,) = turns(blobs, found)
    assert found.failure is None
    assert found.answer.startswith("knn=1 t=3")
    assert [(c.name, c.arguments, c.result) for c in turn.calls[:2]] == [
        ("ask", f'{{"prompt": "which t, {n}?"}}', '"3"') for n in range(2)
    ]
    assert turn.calls[2].name == "denoise"
    assert found.prompt_tokens == 3 * 3  # the engine's prompts have three tokens each
    assert found.completion_tokens == len("knn=2") + 2 * len("3")
    assert len({seeds for _, seeds, _ in engine.calls}) == 3


@pytest.mark.parametrize(
    ("source", "why"),
    [
        (ASK, "ask was called 3 times in a rollout and the policy allows 2"),
        ("def dispatch(request, tools): return tools.ask(request)", "positional"),
        ("def dispatch(request, tools): return tools.ask(prompt=1)", "ask takes prompt, a text"),
    ],
)
def test_a_question_too_many_or_without_a_prompt_is_the_harness_fault(sandbox, blobs, source, why):
    (found, _), _ = dispatching(sandbox, blobs, source, lambda *_: "knn=3", asks=2)
    assert (found.failure, found.reward) == ("tool_error", 0.0)
    assert why in found.detail


def test_without_asks_there_is_nothing_to_ask(sandbox, blobs):
    (found, _), engine = dispatching(sandbox, blobs, ASK, lambda *_: "knn=1", asks=0)
    assert (found.failure, len(engine.calls)) == ("tool_error", 1)


def test_a_model_that_is_gone_when_it_is_asked_is_no_wrong_answer(sandbox, blobs):
    class Mute(ScriptedEngine):
        def generate(self, prompts, *rest):
            if prompts[0][-1].content.startswith("which t"):
                raise ModelError("the model is gone")
            return super().generate(prompts, *rest)

    harness = msgspec.structs.replace(
        HARNESS, tool_dispatch=ASK, retry_policy=msgspec.structs.replace(HARNESS.retry_policy, asks=2)
    )
    lost, _ = Bench(sandbox, blobs, harness).sample(Mute(lambda *_: "knn=1"), SEARCH[:1])
    assert (type(lost), lost.error) == (RolloutFailed, "the model is gone")


# -- infrastructure --------------------------------------------------------------------------------------------------


def test_an_engine_that_fails_once_is_asked_again(sandbox, blobs):
    *recorded, sampled = Bench(sandbox, blobs).sample(ScriptedEngine(lambda *_: GOOD, broken=1))
    assert (sampled.rollouts, sampled.failed) == (3, 0)
    assert all(isinstance(r, RolloutRecorded) for r in recorded)


def test_an_engine_that_is_gone_fails_every_slot_and_scores_none(sandbox, blobs):
    bench = Bench(sandbox, blobs)
    *lost, sampled = bench.sample(ScriptedEngine(lambda *_: GOOD, broken=99))
    assert [(type(r), r.item, r.index, r.error) for r in lost] == [
        (RolloutFailed, s.item, s.index, "the model is gone") for s in SEARCH
    ]
    assert (sampled.rollouts, sampled.failed, sampled.completion_tokens) == (0, 3, 0)
    (found,) = bench.tape.state.evaluations.values()
    assert (len(found.rollouts), len(found.failed)) == (0, 3)


def test_a_broken_sandbox_is_infrastructure(blobs):
    for sandbox in confined():
        sandbox.close()
        *lost, _ = Bench(sandbox, blobs).sample(ScriptedEngine(lambda *_: GOOD))
        assert {(type(r), r.error) for r in lost} == {(RolloutFailed, "the sandbox is closed")}


@pytest.mark.parametrize("lost", ["adapter", "harness"])
def test_a_lost_blob_stops_the_worker_and_fails_no_slot(sandbox, blobs, lost):
    """The store failed, not the sampling: the worker comes back to the shard once the blob is back."""
    bench, gone = Bench(sandbox, blobs), Blob("e" * 64, 3)
    candidate = msgspec.structs.replace(bench.candidate, **{lost: gone})
    with pytest.raises(BlobError, match="is missing"):
        bench.sample(ScriptedEngine(lambda *_: GOOD), candidate=candidate)


def test_the_adapter_reaches_the_engine_as_a_verified_file(sandbox, blobs):
    bench, engine = Bench(sandbox, blobs), ScriptedEngine(lambda *_: GOOD)
    adapter = blobs.put(b"weights")
    bench.sample(engine, candidate=Candidate(bench.candidate.harness, adapter))
    assert engine.calls[0][2].read_bytes() == b"weights"


# -- what is recorded ------------------------------------------------------------------------------------------------


class FullBlobs(DirectoryBlobs):
    """A store that fills up when the trajectories come."""

    def put(self, data, media="application/octet-stream"):
        if media == rollout.TRAJECTORY_MEDIA:
            raise BlobError("the disk is full")
        return super().put(data, media)


def test_no_rollout_is_recorded_whose_trajectory_could_not_be_stored(sandbox, tmp_path):
    with pytest.raises(BlobError, match="the disk is full"):
        Bench(sandbox, FullBlobs(tmp_path)).sample(ScriptedEngine(lambda *_: GOOD))


def test_the_trajectory_holds_all_that_was_said(sandbox, blobs):
    found = one(sandbox, blobs, GOOD)
    stored = decode_trajectory(blobs.get(found.trajectory))
    (turn,) = stored.turns
    assert (stored.item, stored.seed, stored.answer) == (found.item, found.seed, GOOD)
    prompt = next(prompt for prompt, item in PROMPTS.items() if item == found.item)
    assert turn.messages == episode.chat(HARNESS, prompt)
    assert turn.completion_ids == tuple(GOOD.encode()[:64])
    assert len(turn.logprobs) == len(turn.completion_ids) == found.completion_tokens
    assert found.prompt_tokens == len(turn.prompt_ids)
    assert found.trajectory.digest == stored.digest()


def test_the_manifest_names_the_model_and_the_sandbox(sandbox, blobs):
    sampled = Bench(sandbox, blobs).sample(ScriptedEngine(lambda *_: GOOD))[-1]
    assert sampled.manifest == msgspec.structs.replace(MANIFEST, sandbox_tier=sandbox.tier)


def test_progress_counts_tokens_and_nothing_depends_on_it(sandbox, blobs):
    bench = Bench(sandbox, blobs)
    bench.sample(ScriptedEngine(lambda *_: GOOD))
    assert [said["tokens"] for said in bench.live] == [len(GOOD), 2 * len(GOOD), 3 * len(GOOD)]
    assert {(said["kind"], said["shard"], said["shards"]) for said in bench.live} == {("tokens", 0, 1)}


@pytest.mark.parametrize("unit", ["word ", "x", "knn=5 ", "I cannot ", "\x00", "\U0001f4a9"])
def test_ten_megabytes_of_answer_make_a_small_event(sandbox, blobs, unit):
    text = unit * (10_000_000 // len(unit.encode()))
    bench = Bench(sandbox, blobs)
    bench.sample(ScriptedEngine(lambda *_: text), SEARCH[:1])
    assert max(len(draft.data) for draft in bench.tape.drafts) < 64 * KIB
    assert len(turns(blobs, bench.tape.facts[-2].event)[0].text) == len(text)


def test_a_harness_that_returns_megabytes_makes_a_small_event(sandbox, blobs):
    wide = "def extract(text): return {'knn': 'x' * 500_000}"
    deep = "def dispatch(request, tools):\n    raise ValueError('x' * 500_000)"
    for changes in ({"answer_extraction": wide}, {"tool_dispatch": deep}):
        found = one(sandbox, blobs, GOOD, **changes)
        assert found.failure == "tool_error"
        assert len(msgspec.json.encode(found)) < 8 * KIB


def test_the_same_shard_gives_the_same_facts(sandbox, blobs):
    first, second = (Bench(sandbox, blobs).sample(ScriptedEngine(lambda *_: GOOD)) for _ in range(2))
    assert first == second


# -- sizes -----------------------------------------------------------------------------------------------------------


def bytes_of(event) -> int:
    draft = clerk("r" * 64, "task", "w" * 40).draft("c" * 26, 99_999, event, "task.evaluation-requested", 0)
    assert encode(msgspec.structs.replace(Tape().add(event)[0].envelope), event)
    return len(draft.data)


def widest(count: int, greedy: bool = False) -> tuple[Slot, ...]:
    return tuple(Slot("validation", f"validation-{n % 999:03d}", n // 999, 2**63 - 1, greedy) for n in range(count))


def test_the_largest_shard_fits_one_message():
    candidate = Candidate(Blob("a" * 64, 10**9), Blob("b" * 64, 10**9))
    request = RolloutsRequested("e" * 26, "candidate", candidate, widest(500), 9999, 9999, 99)
    assert bytes_of(request) < MAX_EVENT_BYTES / 10


def test_an_evaluation_of_five_thousand_slots_fits_one_message():
    candidate = Candidate(Blob("a" * 64, 10**9), Blob("b" * 64, 10**9))
    event = EvaluationRequested("candidate", 0, candidate, widest(5000))
    assert bytes_of(event) < MAX_EVENT_BYTES
    shards = _shards("e" * 26, event, 500)
    assert [len(s.slots) for s in shards] == [500] * 10
    assert max(map(bytes_of, shards)) < MAX_EVENT_BYTES


# -- controls --------------------------------------------------------------------------------------------------------


def test_controls_are_measured_with_the_budget_they_were_given():
    (fact,) = Tape().add(ControlRequested(5, 3))
    ((measured,),) = rollout.measure_controls(fact, DOMAIN, ports(None, None, None, []))
    assert isinstance(measured, ControlMeasured)
    assert measured.scores == DOMAIN.controls(5, 3)
    assert measured.request == fact.envelope.id


def test_controls_that_break_are_a_fact_too():
    class Broken(CountingDomain):
        def controls(self, budget, seed):
            raise MemoryError("too many cells")

    (fact,) = Tape().add(ControlRequested(5, 3))
    ((failed,),) = rollout.measure_controls(fact, Broken(DOMAIN), ports(None, None, None, []))
    assert isinstance(failed, ControlFailed)
    assert "too many cells" in failed.error


# -- edits of the code components at work -----------------------------------------------------------------------------


def test_the_repairing_and_tolerant_sources_save_what_the_strict_ones_refuse(sandbox, blobs):
    text = "I would take knn: 50, order: rev."
    assert one(sandbox, blobs, text).failure == "parse"
    saved = one(
        sandbox,
        blobs,
        text,
        answer_extraction=tolerant_extraction(DOMAIN.spec),
        tool_dispatch=repairing_dispatch(DOMAIN.spec),
    )
    assert saved.failure is None
    assert saved.answer.startswith("knn=12 ")


def test_controls_that_are_not_finite_are_a_failure_too():
    class Odd(CountingDomain):
        def controls(self, budget, seed):
            return (msgspec.structs.replace(self._domain.controls(budget, seed)[0], mean=math.nan),)

    (fact,) = Tape().add(ControlRequested(5, 3))
    ((failed,),) = rollout.measure_controls(fact, Odd(DOMAIN), ports(None, None, None, []))
    assert isinstance(failed, ControlFailed)
    assert failed.error == "control all-zero on search was given mean nan: the scorer must give finite numbers"
