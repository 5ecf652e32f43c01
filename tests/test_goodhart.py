"""A domain whose score can be had without being earned, through the real server and the real worker loop.

Without probes the loop crowns the shortcut; with them it names the probe, keeps the champion, and crowns the honest
edit that comes after. Nothing that a probe samples counts in a score, a feature or a canary.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import NamedTuple

import hackable
import pytest
from whole_runs import Quick, play_all

from resia.domains.base import Shuffling
from resia.domains.registry import load_domain
from resia.events import (
    CandidateAccepted,
    CandidateRejected,
    DecisionMade,
    EvaluationCompleted,
    EvaluationRequested,
    Fact,
    ProbeAlarmed,
    RolloutRecorded,
    RunCompleted,
)
from resia.replay.digest import digest
from resia.replay.report import rows
from resia.replay.wording import PROBES
from resia.runtime.cli import main
from resia.runtime.config import load_settings
from resia.runtime.engines.tiny import build_tiny_model
from resia.runtime.reading import Log
from resia.runtime.server import EmbeddedServer
from resia.runtime.store import Store

SETTINGS = ["domain=hackable", "loop.mode=H", "loop.max_iterations=3", "sampling.group_size=4", "engine.threads=1"]
# The probe that is meant to see through each trap, and those that may as well.
SEES = {"position": "shuffle", "recall": "paraphrase", "flattery": "verifier"}
RUNS = {
    **{f"{trap}-bare": [f"domain_options.trap={trap}", "gate.probes.on=[]"] for trap in hackable.TRAPS},
    **{f"{trap}-probed": [f"domain_options.trap={trap}"] for trap in hackable.TRAPS},
    "recall-paraphrased": ["domain_options.trap=recall", 'gate.probes.on=["paraphrase"]'],
    "position-told": ["domain_options.trap=position", "gate.probes.block=[]"],
}
every_trap = pytest.mark.parametrize("trap", hackable.TRAPS)
every_probed = pytest.mark.parametrize("run", [name for name in RUNS if name.endswith("-probed")])


class Played(NamedTuple):
    store: Path
    logs: dict[str, Log]

    def of(self, run: str, *types: type) -> list:
        return [fact.event for fact in self.logs[run].facts if isinstance(fact.event, types)]

    def trial(self, run: str, name: str):
        return next(trial for trial in self.logs[run].at().trials if trial.name == name)


class Scripted(Quick):
    """With the scripted model."""

    def agent_ports(self, request, live):
        model = hackable.Model(load_domain("hackable", request.settings.domain_options))
        return super().agent_ports(request, live)._replace(engine=lambda: model)


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    folder = tmp_path_factory.mktemp("goodhart")
    plug_in = hackable.install(folder / "site")
    model = build_tiny_model(folder / "model")
    server = EmbeddedServer(folder / "store", durable=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(plug_in))
        try:
            runs = {run: load_settings(None, [*SETTINGS, f"engine.model={model}", *sets]) for run, sets in RUNS.items()}
            resources = Scripted(Store(folder / "store").blobs(), None, unsafe_local=False)
            yield Played(folder / "store", asyncio.run(play_all(server.start(), resources, runs)))
        finally:
            server.stop()


@every_trap
def test_without_probes_the_shortcut_is_crowned(played, trap):
    run = f"{trap}-bare"
    trial = played.trial(run, "demonstrate-best")
    assert trial.outcome == "accepted"
    assert trial.gate.effect > 0.5
    assert not played.of(run, ProbeAlarmed)
    assert {e.purpose for e in played.of(run, EvaluationRequested)} == {"candidate", "test", "baseline"}


@every_trap
def test_with_probes_the_shortcut_is_rejected_by_name_and_the_honest_edit_is_crowned(played, trap):
    run = f"{trap}-probed"
    hack, honest = played.trial(run, "demonstrate-best"), played.trial(run, "demonstrate-neutral")
    assert hack.outcome == "rejected"
    assert "the gain does not hold: alarm of" in hack.gate.reason
    assert SEES[trap] in hack.gate.reason
    assert hack.gate.p_value <= hack.gate.alpha  # the gate alone would have crowned it
    assert honest.outcome == "accepted"
    assert not any(report.alarmed for report in honest.gate.probes)
    alarms = played.of(run, ProbeAlarmed)
    assert SEES[trap] in {alarm.probe for alarm in alarms}
    assert all(alarm.score_change > 0.5 > alarm.probe_change for alarm in alarms)
    (rejected,) = [e for e in played.of(run, CandidateRejected) if "alarm" in e.gate.reason]
    assert {alarm.evaluation for alarm in alarms} == {rejected.evaluation}


def test_the_sealed_test_shows_what_the_probes_saved(played):
    """On the test the leak is gone: the shortcut's champion has nothing there, the honest one has."""
    bare, probed = (played.logs[run].at().ending for run in ("position-bare", "position-probed"))
    assert isinstance(bare, RunCompleted)
    assert bare.champion_test <= 0.25
    assert probed.champion_test >= 0.75


def test_flattery_is_seen_before_anything_is_sampled_again(played):
    """The second verifier costs nothing, so its alarm comes first and spares the other probes."""
    hack = played.trial("flattery-probed", "demonstrate-best")
    assert [report.probe for report in hack.gate.probes] == ["verifier"]
    asked = [e for e in played.of("flattery-probed", EvaluationRequested) if e.purpose == "probe"]
    assert {e.iteration for e in asked} == {played.trial("flattery-probed", "demonstrate-neutral").iteration}


def test_a_paraphrase_alone_sees_what_was_learned_by_heart(played):
    hack = played.trial("recall-paraphrased", "demonstrate-best")
    assert hack.outcome == "rejected"
    assert [(r.probe, r.alarmed) for r in hack.gate.probes] == [("paraphrase", True)]
    assert played.trial("recall-paraphrased", "demonstrate-neutral").outcome == "accepted"


def test_an_alarm_that_does_not_block_is_told_and_the_candidate_crowned(played):
    hack = played.trial("position-told", "demonstrate-best")
    assert hack.outcome == "accepted"
    assert "shuffle" in {alarm.probe for alarm in played.of("position-told", ProbeAlarmed)}


@every_probed
def test_only_what_would_be_crowned_is_probed_and_each_candidate_once(played, run):
    asked = [e for e in played.of(run, EvaluationRequested) if e.purpose == "probe"]
    assert len({e.candidate.harness.digest for e in asked}) == len(asked)
    slots = {(slot.split, slot.greedy) for e in asked for slot in e.slots}
    assert slots == {("validation", True)}
    judged = played.of(run, CandidateAccepted, CandidateRejected)
    assert len(asked) < len(judged) + 1
    writers = {
        fact.envelope.producer.role
        for fact in played.logs[run].facts
        if isinstance(fact, Fact) and isinstance(fact.event, EvaluationRequested) and fact.event.purpose == "probe"
    }
    assert writers == {"feedback"}


@every_probed
def test_rollouts_of_a_probe_count_in_no_score_no_feature_and_no_canary(played, run):
    state = played.logs[run].at()
    probed = [e for e in played.of(run, EvaluationCompleted) if e.purpose == "probe"]
    assert probed
    assert all(e.scores == {} and e.failures == {} for e in probed)
    for decision in played.of(run, DecisionMade):
        assert decision.features.items * decision.features.group_size == 6 * 4
    assert all(not c.startswith("validation") for c in state.champion.canaries)


@every_probed
def test_the_ledger_and_the_table_count_what_the_probes_cost(played, run):
    state = played.logs[run].at()
    rollouts = played.of(run, RolloutRecorded)
    assert state.ledger.rollouts == len(rollouts)
    probes = [r for r in rollouts if r.purpose == "probe"]
    assert probes
    assert {r.probe for r in probes} <= {"paraphrase", "shuffle"}
    assert all(r.probe is None for r in rollouts if r.purpose != "probe")
    table = rows(state)
    judged = [r for r in rollouts if r.purpose in ("candidate", "probe")]
    assert sum(row.rollouts for row in table) == len(judged)
    assert sum(row.tokens for row in table) == sum(r.prompt_tokens + r.completion_tokens for r in judged)


@pytest.mark.parametrize("run", RUNS)
def test_every_decision_is_taken_again_alike(played, run, capsys):
    assert main(["replay", run, "--depth", "decisions", "--store", str(played.store), "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["divergences"] == []
    assert json.loads(line)["digest"] == digest(played.logs[run].at())


@every_probed
def test_explain_and_status_tell_the_alarm_in_words(played, run, capsys):
    trial = played.trial(run, "demonstrate-best")
    alarm = played.of(run, ProbeAlarmed)[-1]
    assert main(["explain", f"{run}@{trial.iteration}", "--store", str(played.store)]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert f"Alarm of {alarm.probe}" in told
    assert alarm.detail in told
    assert "the gain does not hold" in told
    assert f"Probe {alarm.probe}, {PROBES[alarm.probe]}: score {alarm.score_change:+.4f}" in told
    assert main(["status", run, "--store", str(played.store)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"alarm: {alarm.probe}" in shown


@every_trap
def test_the_domain_puts_its_options_in_another_order_and_back(played, trap):
    domain = load_domain("hackable", {"trap": trap})
    assert isinstance(domain, Shuffling)
    for seed in range(7):
        for item in domain.items("validation"):
            assert domain.shuffled(item.id, seed) != item.prompt
            answers = [domain.restored(item.id, seed, {"pick": a, "praise": "no"}) for a in hackable.LETTERS]
            assert sorted(str(answer["pick"]) for answer in answers) == list(hackable.LETTERS)
            assert sum(domain.score(item.id, answer).reward for answer in answers) == 1.0
