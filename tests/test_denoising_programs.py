"""Denoisers that are programs: run in the chamber, scored outside of it, and improved on by a whole run."""

from __future__ import annotations

import asyncio
import json

import msgspec
import numpy as np
import pytest
from programs_given import COMPONENTS, MAGIC, NONE, body, chamber_of
from scripted import ScriptedEngine, Tape, confined, ports
from whole_runs import Quick, play_all

from given import requested
from resia.agents import answers, llm_trial, rollout
from resia.agents.code_sources import block
from resia.agents.llm_reply import Invalid
from resia.agents.proposing import first_harness
from resia.agents.toolbox import Judges, tools_of
from resia.domains import trials
from resia.domains.admission import examine
from resia.domains.denoising.domain import Denoising, DenoisingOptions
from resia.domains.denoising.items import halves_of
from resia.domains.denoising.program_domain import ProgramDenoising
from resia.domains.programs import ProgramLimits, worth
from resia.domains.registry import _whole, load_domain
from resia.domains.trials import Plan, try_out
from resia.events import (
    Candidate,
    CandidateAccepted,
    EvaluationRequested,
    RolloutFailed,
    RolloutsRequested,
    RunCompleted,
    ShardSampled,
    Slot,
    decode_harness,
    decode_trajectory,
)
from resia.events.errors import BoundaryError, UsageError
from resia.runtime.blobs import DirectoryBlobs
from resia.runtime.config import load_settings
from resia.runtime.engines.tiny import build_tiny_model
from resia.runtime.server import EmbeddedServer
from resia.runtime.session import first_event
from resia.runtime.store import Store

SIZES = {"synthetic": True, "search_items": 4, "validation_items": 6, "test_items": 1}
DOMAIN = load_domain("denoising", {**SIZES, "form": "program"})
TYPED = load_domain("denoising", SIZES)
ITEMS = [item.id for item in DOMAIN.items("search")]
# The tail of MAGIC, followed by the mean of the logarithm that the test half will show: the third known exploit.
LOG_MEAN = """
import numpy as np

def corrected(answer, X):
    per = 1e4 / np.maximum(X.sum(1, keepdims=True) / 9, 1)
    mean = answer / answer.sum(1, keepdims=True) * 1e4
    nodes = np.exp(np.arange(-24.0, 4.2, 0.4))
    total = sum(-np.expm1(mean / per * np.expm1(-per * s)) * np.exp(-s) for s in nodes) * 0.4
    return np.expm1(total)
"""


@pytest.fixture(scope="module")
def chamber():
    yield from chamber_of(libraries=("scipy.linalg",))


@pytest.fixture(scope="module")
def sandbox():
    yield from confined()


def score(chamber, source, item=ITEMS[1]):
    return worth(DOMAIN, item, [DOMAIN.parse({"program": source})], lambda: chamber)


def after_magic(tail):
    return f"{MAGIC.replace('def denoise', 'def magic')}\n{LOG_MEAN}\ndef denoise(X, seed):\n    return {tail}\n"


# -- scores ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("item", ITEMS)
def test_magic_as_a_program_is_magic(chamber, item):
    ours = TYPED.score(item, TYPED.spec.references[0].answer)
    found = score(chamber, MAGIC, item)
    assert found.reward == pytest.approx(ours.reward, abs=2e-5)
    assert found.metrics["reference"] == ours.reward > 0.01


def test_no_denoising_scores_nothing_and_is_valid(chamber):
    found = score(chamber, NONE)
    assert (found.reward, found.success, found.failure) == (0.0, False, None)
    better = score(chamber, COMPONENTS)
    assert better.reward == better.metrics["audited"] > better.metrics["reference"]
    assert better.success


def test_all_zeros_pass_the_published_gate_and_fail_the_audit(chamber):
    found = score(chamber, body("return X * 0"), ITEMS[2])
    assert found.metrics["published"] > 0.1
    assert (found.reward, found.failure) == (0.0, "wrong")
    assert "all-zero cells" in found.detail


@pytest.mark.parametrize("answer", ["magic(X, seed)", "corrected(magic(X, seed), X)"], ids=["shrunk", "log-corrected"])
def test_a_factor_opens_the_published_gate_and_changes_nothing_under_the_audit(chamber, answer):
    plain, shrunk = (score(chamber, after_magic(tail), ITEMS[3]) for tail in (answer, f"{answer} * 1e-3"))
    assert plain.metrics["published"] == 0.0
    assert shrunk.metrics["published"] == pytest.approx(plain.metrics["mse_norm"], abs=2e-5)
    assert shrunk.metrics["published"] > 0.1
    assert (shrunk.reward, shrunk.failure) == (pytest.approx(plain.reward, abs=2e-5), plain.failure)


@pytest.mark.parametrize(
    ("source", "failure", "words"),
    [
        (body("np.random.seed(seed)\nreturn X * 0", "import numpy as np"), "wrong", "all-zero cells"),
        (body("return X[1:]"), "wrong", "it returned the shape"),
        (body("return X / 0", "import numpy as np\nnp.seterr(all='ignore')"), "wrong", "non-finite values"),
        (body("return X * 1e300"), "wrong", "non-finite values"),
        (body("return X - 1"), "wrong", "negative values"),
        (body("X[0] = 0\nreturn X"), "wrong", "all-zero cells: 1 of 48"),
        (body("return X * 0 + 1"), "wrong", "worse than no denoising"),
        ("def denoise(", "tool_error", "SyntaxError"),
        ("def smooth(X, seed):\n return X", "tool_error", "it defines no function denoise"),
        (body("return open('/etc/passwd')"), "sandbox_violation", "/etc/passwd"),
    ],
)
def test_a_program_that_goes_wrong_is_counted_as_what_it_is(chamber, source, failure, words):
    found = score(chamber, source)
    assert (found.reward, found.success, found.failure) == (0.0, False, failure)
    assert words in found.detail


def test_what_a_program_is_given_holds_nothing_that_is_held_out():
    for item in ITEMS:
        program = DOMAIN.program(item, {"program": NONE})
        halves = halves_of(DOMAIN._problems[item], DOMAIN._counts)
        assert set(program.arguments) == {"X", "seed"}
        np.testing.assert_array_equal(program.arguments["X"], halves.train)
        assert halves.test.any()
        assert 0 <= program.arguments["seed"] < 2**32
        assert program.limits == ProgramLimits()
        assert program == DOMAIN.program(item, {"program": NONE})._replace(arguments=program.arguments)


def test_the_forms_share_their_items_and_not_their_digest():
    assert DOMAIN.items("test") == TYPED.items("test")
    assert DOMAIN.digest != TYPED.digest
    assert type(TYPED) is Denoising
    with pytest.raises(BoundaryError, match="is a program"):
        DOMAIN.score(ITEMS[0], {"program": NONE})


def test_controls_are_fixed_because_programs_cannot_be_drawn():
    found = {control.name for control in DOMAIN.controls(100, 0)}
    assert found == {"all-zero", "shrunk", "gene-means", "undenoised", "magic-reference"}
    assert {c.mean for c in DOMAIN.controls(0, 0) if c.name == "all-zero"} == {0.0}


# -- trying a program out --------------------------------------------------------------------------------------------


def test_a_trial_says_whether_an_answer_is_valid_and_never_what_it_scores(chamber):
    attempt = tools_of(DOMAIN, ITEMS[1], Judges(lambda: chamber))["attempt"]
    valid = {"ok": True, "failure": "", "detail": "it ran, and its output is a valid answer"}
    assert [attempt({"program": p}) for p in (NONE, COMPONENTS, body("return X * 0 + 1"))] == [valid] * 3
    zeros = attempt({"program": body("return X * 0")})
    assert zeros == {"ok": False, "failure": "wrong", "detail": "all-zero cells: 48 of 48"}
    assert attempt({"program": "def denoise("})["failure"] == "tool_error"
    assert attempt({"program": ""}) == {
        "ok": False,
        "failure": "tool_error",
        "detail": "argument 'program' is '': give a text",
    }


def test_dispatch_can_try_a_program_and_hand_in_another(chamber, sandbox):
    source = f"""
FALLBACK = {NONE!r}

def dispatch(request, tools):
    if tools.attempt(**request)["ok"]:
        return tools.submit(**request)
    return tools.submit(program=FALLBACK)
"""
    tools = tools_of(DOMAIN, ITEMS[0], Judges(lambda: chamber))
    for program, handed in ((COMPONENTS, COMPONENTS), ("def denoise(", NONE)):
        assert sandbox.run(source, "dispatch", [{"program": program}], tools).value == {"program": handed}


# -- in the log ------------------------------------------------------------------------------------------------------


def sampled(sandbox, blobs, runner, texts):
    """One shard of one rollout a text, as the Task role performs it."""
    tape = Tape()
    tape.add(requested())
    candidate = Candidate(blobs.put(first_harness(DOMAIN.spec).encoded()))
    slots = tuple(Slot("search", ITEMS[0], n, n) for n in range(len(texts)))
    (asked,) = tape.add(EvaluationRequested("candidate", 0, candidate, slots))
    request = RolloutsRequested(asked.envelope.id, "candidate", candidate, slots, 0, 1)
    (fact,) = tape.add(request, cause=asked.envelope.id)
    touched = ports(ScriptedEngine(lambda _, seed: texts[seed]), sandbox, blobs, [])._replace(programs=lambda: runner)
    (batch,) = rollout.sample_shard(tape.state, fact, DOMAIN, touched)
    return batch


def test_a_rollout_keeps_the_program_and_its_score_and_the_tier_of_both(chamber, sandbox, tmp_path):
    blobs = DirectoryBlobs(tmp_path)
    texts = [block(COMPONENTS), block("def denoise("), "I cannot."]
    *rollouts, shard = sampled(sandbox, blobs, chamber, texts)
    assert [r.failure for r in rollouts] == [None, "tool_error", "refusal"]
    assert rollouts[0].reward == score(chamber, COMPONENTS, ITEMS[0]).reward
    assert rollouts[0].answer == DOMAIN.render({"program": COMPONENTS})
    assert COMPONENTS.strip() in decode_trajectory(blobs.get(rollouts[0].trajectory)).turns[0].text
    assert isinstance(shard, ShardSampled)
    assert shard.manifest.sandbox_tier == f"{sandbox.tier}; programs: {chamber.tier}"


class Broken:
    """A runner that is out of order."""

    tier = "broken"

    def run(self, program):
        raise BoundaryError("the chamber's fork server has died")


def test_a_broken_runner_is_never_scored(sandbox, tmp_path):
    *rollouts, shard = sampled(sandbox, DirectoryBlobs(tmp_path), Broken(), [block(COMPONENTS)])
    assert [type(r) for r in rollouts] == [RolloutFailed]
    assert "fork server has died" in rollouts[0].error
    assert shard.failed == 1


# -- whole runs ------------------------------------------------------------------------------------------------------


def model(prompt, seed):
    return block(COMPONENTS if seed % 3 == 0 else NONE)


class Author(ScriptedEngine):
    """Copies the last program that it was shown; without one, and not greedy, it now and then has an idea."""

    def generate(self, prompts, sampling, seeds, adapter, on_tokens=None):
        made = super().generate(prompts, sampling, seeds, adapter, on_tokens)
        told = [[m.content for m in prompt if m.role == "assistant"] for prompt in prompts]
        greedy = sampling.temperature == 0
        texts = [t[-1] if t else block(NONE) if greedy else c.text for t, c in zip(told, made, strict=True)]
        return [msgspec.structs.replace(c, text=text) for c, text in zip(made, texts, strict=True)]


class Writing(Quick):
    """With that model, and the tests' own chamber."""

    def __init__(self, *given, chamber):
        super().__init__(*given, unsafe_local=False)
        self._chamber, self._author = chamber, Author(model)

    def programs(self):
        return self._chamber

    def agent_ports(self, request, live):
        return super().agent_ports(request, live)._replace(engine=lambda: self._author)


RUNS = {
    "loop": ["loop.mode=H", "loop.max_iterations=1"],
    "best": ["loop.mode=best-of-n", "loop.token_budget=3000"],
}


@pytest.fixture(scope="module")
def played(tmp_path_factory, chamber):
    folder = tmp_path_factory.mktemp("programs")
    options = [f"domain_options.{name}={json.dumps(value)}" for name, value in {**SIZES, "form": "program"}.items()]
    base = [
        "domain=denoising",
        *options,
        "gate.min_items=6",
        "sampling.group_size=4",
        f"engine.model={build_tiny_model(folder / 'm')}",
    ]
    server = EmbeddedServer(folder / "store", durable=False)
    try:
        runs = {name: load_settings(None, [*base, *sets]) for name, sets in RUNS.items()}
        resources = Writing(Store(folder / "store").blobs(), None, chamber=chamber)
        yield asyncio.run(play_all(server.start(), resources, runs)), resources.blobs
    finally:
        server.stop()


def test_a_run_improves_from_no_denoising_to_a_better_program(played, chamber):
    logs, _ = played
    state = logs["loop"].at()
    (accepted,) = [f.event for f in logs["loop"].facts if isinstance(f.event, CandidateAccepted)][1:]
    assert accepted.gate.effect > 0.05
    assert isinstance(state.ending, RunCompleted)
    assert state.ending.baseline_test == 0.0
    (item,) = DOMAIN.items("test")
    assert state.ending.champion_test == score(chamber, COMPONENTS, item.id).reward > 0.05
    assert not [f for f in logs["loop"].facts if isinstance(f.event, RolloutFailed)]


def test_best_of_n_runs_the_programs_that_were_sampled(played):
    logs, blobs = played
    edited = next(f.event for f in logs["best"].facts if hasattr(f.event, "operator"))
    assert edited.operator == "best-of-n"
    assert COMPONENTS.splitlines()[0] in decode_harness(blobs.get(edited.harness)).answer_extraction
    assert logs["best"].at().ending.champion_test > 0.05


def test_programs_cannot_be_drawn_and_a_run_says_so_before_it_begins(tmp_path):
    options = [f"domain_options.{name}={json.dumps(value)}" for name, value in {**SIZES, "form": "program"}.items()]
    model = build_tiny_model(tmp_path / "m")
    settings = load_settings(None, ["domain=denoising", "loop.mode=random", f"engine.model={model}", *options])
    with pytest.raises(UsageError, match="the argument 'program' of domain 'denoising' has none: take mode best-of-n"):
        first_event(settings, None)
    assert not list(answers.drawn(DOMAIN, 5, 0))


def test_the_form_is_admitted(chamber):
    findings, record = examine(DOMAIN, Plan(items=1, answers=0), lambda: chamber)
    assert not [finding for finding in findings if finding.passed is False]
    assert {f.check for f in findings if f.passed} >= {
        "form",
        "refusals",
        "content",
        "scores",
        "separation",
        "headroom",
    }
    again = try_out(DOMAIN, Plan(items=1, answers=0), backwards=True, programs=lambda: chamber)
    assert trials.record(DOMAIN, again) == record


def test_the_first_harness_shows_the_references_and_says_what_may_be_imported():
    text = first_harness(DOMAIN.spec).system_prompt.text
    assert "denoise(X, seed)" in text
    assert "numpy, scipy and scikit-learn" in text
    assert block(MAGIC) in text
    assert f"{ProgramLimits().cpu_s} seconds" in text


def test_a_proposed_dispatch_that_tries_programs_out_is_taken_and_one_that_fails_is_not(sandbox):
    """A proposal is tried without an item, so a trial of a program says there what it says of a valid one."""
    harness = first_harness(DOMAIN.spec)
    good = (
        "def dispatch(request, tools):\n    assert tools.attempt(**request)['ok']\n    return tools.submit(**request)\n"
    )
    llm_trial.try_out(msgspec.structs.replace(harness, tool_dispatch=good), DOMAIN, sandbox)
    bad = good.replace("['ok']", "['score']")
    with pytest.raises(Invalid, match="KeyError"):
        llm_trial.try_out(msgspec.structs.replace(harness, tool_dispatch=bad), DOMAIN, sandbox)


class TwoSteps(ProgramDenoising):
    """A program and then another."""

    @property
    def spec(self):
        return msgspec.structs.replace(super().spec, steps=2)

    def observe(self, item, answers):
        return "Again."

    def score_steps(self, item, answers):
        raise AssertionError("never loaded")


def test_programs_have_one_step():
    with pytest.raises(UsageError, match="domain 'two' takes programs, so its rollouts have one answer"):
        _whole("two", TwoSteps(DenoisingOptions(synthetic=True)))
