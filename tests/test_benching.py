"""Answers that a kernel-bench judges: what they are worth, whose failure is whose, and what the model is told."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
import pytest
from scripted import ScriptedEngine, Tape, confined, ports

from given import requested
from resia.agents import llm_prompt, llm_trial, rollout
from resia.agents.benching import TRIES
from resia.agents.code_sources import block
from resia.agents.llm_reply import Invalid
from resia.agents.operators import CATALOGUE, SearchView, applicable, rank
from resia.agents.proposing import MENDING_TURNS, first_harness
from resia.domains.benched import Benched
from resia.domains.registry import load_domain
from resia.domains.trimul import benched, cases, kernel_form
from resia.domains.trimul.benched import FAILURES
from resia.events import (
    Candidate,
    ControlFailed,
    ControlMeasured,
    ControlRequested,
    Event,
    KernelBenchmarked,
    KernelRejected,
    KernelSubmitted,
    RolloutFailed,
    RolloutRecorded,
    RolloutsRequested,
    Slot,
    decode_trajectory,
)
from resia.events.errors import BoundaryError, UnknownName, UsageError
from resia.kernels.ports import FAILURES as BENCH_FAILURES
from resia.replay.state import RunState
from resia.runtime.blobs import DirectoryBlobs

SMALL = {"search_items": 2, "validation_items": 2, "test_items": 1, "suite": "smoke", "protocol": "gpumode"}
DOMAIN = load_domain("trimul", {"form": "source", **SMALL})
PLAIN = kernel_form.PLAIN_SOURCE
FAST = PLAIN.replace("del config", "del config  # twice as fast")
BROKEN = "def custom_kernel(x, mask, weights, config)\n    return x\n"
VIEW = SearchView(("item",), ())


class ScriptedBench:
    """A bench in memory that keeps to the log: `says(source, attempt)` is a time in us, or a failure by name."""

    def __init__(self, blobs: DirectoryBlobs, says: Callable[[str, int], float | str], device: str = "cpu") -> None:
        self._blobs, self._says, self._device = blobs, says, device
        self.tape, self.judged = Tape(), list[tuple[str, str, int]]()
        self.tape.add(requested())

    def ask(self, event: Event, answered: Callable[[RunState], object]) -> object:
        assert isinstance(event, KernelSubmitted)
        if answered(self.tape.state) is None:
            self._judge(event)
        return answered(self.tape.state)

    def _judge(self, event: KernelSubmitted) -> None:
        source = self._blobs.get(event.source).decode()
        self.judged.append((source, event.suite, event.attempt))
        (fact,) = self.tape.add(event)
        said = self._says(source, event.attempt)
        submission = fact.envelope.id
        if isinstance(said, str):
            self.tape.add(KernelRejected(submission, "verify", said, "line 3 says no"))
        else:
            device = self._device if source == PLAIN else "cpu"
            self.tape.add(
                KernelBenchmarked(
                    submission, event.protocol, device, {"a": said}, said, 1500 / said, 1.0, event.suite, "scripted"
                )
            )


def honest(source: str, attempt: int) -> float | str:
    if source == BROKEN:
        return "compile"
    return 50.0 if source == FAST else 100.0


@pytest.fixture(scope="module")
def sandbox():
    yield from confined()


@pytest.fixture
def blobs(tmp_path):
    return DirectoryBlobs(tmp_path / "blobs")


def sampled(sandbox, blobs, bench, says, harness=None, slots: Sequence[Slot] = (), retry: int = 0):
    """The outcome of one shard of rollouts in which the model `says` what it says."""
    harness = harness or first_harness(DOMAIN.spec)
    slots = slots or (Slot("search", "search-00", 0, 1),)
    candidate = Candidate(blobs.put(harness.encoded()))
    tape = Tape()
    tape.add(requested())
    (fact,) = tape.add(RolloutsRequested("e", "candidate", candidate, tuple(slots), 0, 1, retry=retry))
    engine = ScriptedEngine(says)
    chosen = ports(engine, sandbox, blobs, [])._replace(line=bench)
    (events,) = rollout.sample_shard(tape.state, fact, DOMAIN, chosen)
    return events


def test_the_source_form_is_judged_by_a_bench_and_nothing_else_is():
    assert isinstance(DOMAIN, Benched)
    assert not isinstance(load_domain("trimul", {}), Benched)
    with pytest.raises(BoundaryError, match="scored by a kernel-bench"):
        DOMAIN.score("search-00", {"source": PLAIN})


@pytest.mark.parametrize(("source", "us", "reward"), [(PLAIN, 100.0, 0.5), (FAST, 50.0, 2 / 3)])
def test_a_kernel_is_worth_its_time_beside_the_plain_one(sandbox, blobs, source, us, reward):
    bench = ScriptedBench(blobs, honest)
    (recorded, _) = sampled(sandbox, blobs, bench, lambda *_: block(source))
    assert recorded.reward == pytest.approx(reward, abs=1e-6)
    assert (recorded.failure, recorded.success) == (None, source == FAST)
    assert (recorded.metrics["us"], recorded.metrics["plain_us"]) == (us, 100.0)
    assert recorded.metrics["reward_1500"] == pytest.approx(1500 / us)
    assert bench.judged == [(s, "smoke/search/00", 0) for s in dict.fromkeys([source, PLAIN])]


def test_the_same_kernel_on_the_same_cases_is_judged_once(sandbox, blobs):
    bench = ScriptedBench(blobs, honest)
    slots = [Slot("search", "search-00", n, n) for n in range(3)] + [Slot("search", "search-01", 0, 0)]
    (*recorded, _) = sampled(sandbox, blobs, bench, lambda *_: block(FAST), slots=slots)
    assert [event.reward for event in recorded] == [recorded[0].reward] * 4
    again = sampled(sandbox, blobs, bench, lambda *_: block(FAST), slots=slots)
    assert [event.reward for event in again[:-1]] == [recorded[0].reward] * 4
    assert len(bench.judged) == 4  # FAST and PLAIN on two items


def test_every_way_in_which_a_bench_rejects_a_kernel_has_a_class():
    assert set(FAILURES) == set(BENCH_FAILURES)
    for name, counted in FAILURES.items():
        score = benched.rejected(KernelRejected("s", "verify", name, "why"))
        assert (score.reward, score.failure, score.detail) == (0.0, counted, f"{name} (verify): why")
    with pytest.raises(BoundaryError, match="'new'"):
        benched.rejected(KernelRejected("s", "verify", "new", "why"))


@pytest.mark.parametrize("failure", ["compile", "memory", "quarantined"])
def test_a_rejected_kernel_is_scored_nothing_by_its_class(sandbox, blobs, failure):
    bench = ScriptedBench(blobs, lambda *_: failure)
    (recorded, _) = sampled(sandbox, blobs, bench, lambda *_: block(FAST))
    assert isinstance(recorded, RolloutRecorded)
    assert (recorded.reward, recorded.failure) == (0.0, FAILURES[failure])
    assert recorded.detail == f"{failure} (verify): line 3 says no"
    assert len(bench.judged) == 1  # nobody asks how fast the plain one is


def test_a_bench_that_breaks_is_asked_again_and_never_scored(sandbox, blobs):
    for fails, kind in ((TRIES - 1, RolloutRecorded), (TRIES, RolloutFailed)):
        bench = ScriptedBench(
            blobs, lambda source, n, fails=fails: "infrastructure" if source == FAST and n < fails else 100.0
        )
        (event, _) = sampled(sandbox, blobs, bench, lambda *_: block(FAST))
        assert isinstance(event, kind)
        assert [n for source, _, n in bench.judged if source == FAST] == list(range(TRIES))
    assert "infrastructure: line 3 says no" in event.error
    (event, _) = sampled(sandbox, blobs, bench, lambda *_: block(FAST), retry=1)  # the loop asks for the slot again
    assert event.reward == 0.5
    assert [n for source, _, n in bench.judged if source == FAST] == list(range(TRIES + 1))


def test_a_plain_kernel_that_is_rejected_or_timed_elsewhere_is_no_word_on_the_answer(sandbox, blobs):
    rejecting = ScriptedBench(blobs, lambda source, _: "quarantined" if source == PLAIN else 50.0)
    (event, _) = sampled(sandbox, blobs, rejecting, lambda *_: block(FAST))
    assert isinstance(event, RolloutFailed)
    assert "no verdict on a kernel that is known to be right in 3 attempts, at last quarantined" in event.error
    elsewhere = ScriptedBench(blobs, honest, device="another")
    (event, _) = sampled(sandbox, blobs, elsewhere, lambda *_: block(FAST))
    assert isinstance(event, RolloutFailed)
    assert "timed on cpu, the plain one on another" in event.error


def test_without_a_line_nothing_is_scored(sandbox, blobs):
    (event, _) = sampled(sandbox, blobs, None, lambda *_: block(FAST))
    assert isinstance(event, RolloutFailed)
    assert "need a kernel-bench" in event.error


# -- verdicts for dispatch -------------------------------------------------------------------------------------------


def test_generation_0_has_turns_to_mend_a_program_in_and_an_operator_that_uses_them():
    harness = first_harness(DOMAIN.spec)
    assert harness.retry_policy.tool_turns == MENDING_TURNS
    assert PLAIN.strip() in harness.system_prompt.text
    assert "attempt-first" in applicable(harness, DOMAIN)
    assert rank(applicable(harness, DOMAIN), {"tool_error": 9, "weak": 1})[0] == "attempt-first"
    edited = CATALOGUE["attempt-first"].edit(harness, DOMAIN, VIEW)
    before, after = harness.component_digests(), edited.component_digests()
    assert [name for name in before if before[name] != after[name]] == ["tool_dispatch"]
    policy = msgspec.structs.replace(harness.retry_policy, tool_turns=0)
    without = msgspec.structs.replace(harness, retry_policy=policy)
    assert "attempt-first" not in applicable(without, DOMAIN)  # it would change nothing that happens
    assert "attempt-first" not in applicable(first_harness(load_domain("trimul", {}).spec), load_domain("trimul", {}))


def mending() -> object:
    return CATALOGUE["attempt-first"].edit(first_harness(DOMAIN.spec), DOMAIN, VIEW)


def test_the_model_is_told_what_does_not_compile_and_goes_on(sandbox, blobs):
    bench = ScriptedBench(blobs, honest)
    said = lambda prompt, _: block(FAST if "compile (verify): line 3 says no" in prompt else BROKEN)  # noqa: E731
    (recorded, _) = sampled(sandbox, blobs, bench, said, mending())
    assert recorded.reward == pytest.approx(2 / 3, abs=1e-6)
    turns = decode_trajectory(blobs.get(recorded.trajectory)).turns
    assert [[call.name for call in turn.calls] for turn in turns] == [["attempt"], ["attempt", "submit"]]
    verdict = msgspec.json.decode(turns[0].calls[0].result)
    assert (verdict["ok"], verdict["failure"], verdict["turns_left"]) == (False, "tool_error", MENDING_TURNS)


def test_a_program_that_is_never_mended_is_counted_as_what_it_is(sandbox, blobs):
    bench = ScriptedBench(blobs, honest)
    (recorded, _) = sampled(sandbox, blobs, bench, lambda *_: block(BROKEN), mending())
    assert (recorded.reward, recorded.failure) == (0.0, "tool_error")
    assert recorded.detail.startswith("compile")
    assert len(decode_trajectory(blobs.get(recorded.trajectory)).turns) == MENDING_TURNS + 1
    assert len(bench.judged) == 1


# -- controls --------------------------------------------------------------------------------------------------------


def controls(blobs, bench) -> Event:
    (fact,) = Tape().add(ControlRequested(5, 3))
    ((event,),) = rollout.measure_controls(fact, DOMAIN, ports(None, None, blobs, [])._replace(line=bench))
    return event


def test_references_are_measured_through_the_bench(blobs):
    measured = controls(blobs, ScriptedBench(blobs, honest))
    assert isinstance(measured, ControlMeasured)
    assert [(c.name, c.split, c.mean, c.items) for c in measured.scores] == [
        ("plain", split, 0.5, items) for split, items in (("search", 2), ("validation", 2), ("test", 1))
    ]
    failed = controls(blobs, ScriptedBench(blobs, lambda *_: "infrastructure"))
    assert isinstance(failed, ControlFailed)


# -- the domain's forms ----------------------------------------------------------------------------------------------


def test_no_shape_of_the_search_is_in_validation_or_test():
    for size in cases.SIZES:
        shapes = {
            split: {
                case.n
                for n in range(96)
                for case in (*cases.item_suite(size, split, n).timed, *cases.item_suite(size, split, n).tested)
            }
            for split in cases.RESIDUES
        }
        assert not shapes["search"] & shapes["validation"]
        assert not shapes["search"] & shapes["test"]
        assert not shapes["validation"] & shapes["test"]
    found = cases.suite("small/validation/07")
    assert found == cases.item_suite("small", "validation", 7)
    for name in ("small/valid/07", "tiny/search/00", "small/search/", "smoke/search/00/"):
        with pytest.raises(UnknownName, match="suite of cases"):
            cases.suite(name)


TEMPLATE = PLAIN + '\nCHOICES = {"rows": [8, 16], "mode": ["a", "b"]}\n'


def test_a_template_s_choices_are_the_arguments_of_the_tool(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(TEMPLATE)
    domain = load_domain("trimul", {"template": str(file), **SMALL})
    assert [(p.name, p.choices, p.default) for p in domain.spec.parameters] == [
        ("rows", (8, 16), 8),
        ("mode", ("a", "b"), "a"),
    ]
    submission = domain.submission("search-00", {"rows": 16})
    assert (submission.source, submission.config) == (TEMPLATE, {"rows": 16, "mode": "a"})
    assert domain.yardstick("search-00").suite == submission.suite == "smoke/search/00"
    before = domain.digest
    file.write_text(TEMPLATE.replace("8, 16", "8, 32"))
    assert load_domain("trimul", {"template": str(file), **SMALL}).digest != before
    bundled = load_domain("trimul", {"judge": "bench", **SMALL})
    assert {p.name for p in bundled.spec.parameters} >= {"fuse", "gemm"}


def test_the_triton_kernel_is_a_template_and_its_choices_are_its_own_names():
    from pathlib import Path

    import resia.kernels.bench

    file = Path(resia.kernels.bench.__file__).with_name("triton_fused.py")
    parameters = kernel_form.template(file).parameters
    source = file.read_text()
    table = source[source.index('    "": {') : source.index('    "A100"')]
    assert all(f'"{p.name}": {p.default}' in table for p in parameters)
    assert len(parameters) == table.count(": ") - 1


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"form": "source", "judge": "here"}, "a kernel's source is judged by the bench alone"),
        ({"template": "gone.py"}, "template gone.py cannot be read"),
        ({"template": "odd.py", "judge": "here"}, "template odd.py is judged by the bench alone"),
        ({"template": "odd.py", "form": "source"}, "form source takes no template"),
        ({"template": "text.py"}, "template text.py is no Python source"),
        ({"template": "none.py"}, "template none.py has no CHOICES"),
        ({"template": "call.py"}, "CHOICES of template call.py is no literal"),
        ({"template": "list.py"}, "CHOICES of template list.py names no argument"),
        ({"template": "empty.py"}, "CHOICES of template empty.py gives 'a' []"),
        ({"template": "name.py"}, "CHOICES of template name.py names an argument 'a b'"),
        ({"template": "deep.py"}, "template deep.py is no Python source (MemoryError)"),
        ({"template": "key.py"}, "CHOICES of template key.py is no literal"),
        ({"template": "huge.py"}, "CHOICES of template huge.py gives 'a' [inf]"),
        ({"template": "wide.py"}, f"CHOICES of template wide.py gives 'a' [{2**64}]"),
    ],
)
def test_options_that_do_not_go_together_are_said_in_one_sentence(options, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    texts = {"odd": "CHOICES = {'a': [1]}", "text": "def (", "none": "x = 1", "call": "CHOICES = dict(a=[1])"}
    texts |= {"list": "CHOICES = [1]", "empty": "CHOICES = {'a': []}", "name": "CHOICES = {'a b': [1]}"}
    texts |= {"deep": "CHOICES = " + "-" * 100_000 + "1", "key": "CHOICES = {[]: [1]}"}
    texts |= {"huge": "CHOICES = {'a': [1e999]}", "wide": f"CHOICES = {{'a': [{2**64}]}}"}
    for name, text in texts.items():
        (tmp_path / f"{name}.py").write_text(text)
    with pytest.raises(UsageError) as caught:
        load_domain("trimul", options)
    assert sentence in str(caught.value)


def test_the_form_that_is_timed_here_is_what_it_was():
    from resia.events.ids import sha256

    old = b'{"search_items":6,"validation_items":12,"test_items":12,"smallest":8,"data_seed":0}'
    assert load_domain("trimul", {}).digest == sha256(b"trimul 1" + old)


def test_a_proposer_is_told_of_the_verdict_and_may_use_it(sandbox):
    told = llm_prompt.for_draft(DOMAIN.spec, DOMAIN.items("search"), 20_000)[1].content
    assert 'tools.attempt, of the same arguments, gives {"ok": bool' in told
    llm_trial.try_out(mending(), DOMAIN, sandbox)
    refused = msgspec.structs.replace(
        mending(), tool_dispatch="def dispatch(request, tools):\n    tools.attempt(x=1)\n"
    )
    with pytest.raises(Invalid, match="argument 'x' is unknown"):
        llm_trial.try_out(refused, DOMAIN, sandbox)
