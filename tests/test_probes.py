"""Probes: the rule against scipy and by its properties, the perturbed prompts, and what deciders do with both."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from fixture_domains import MidBinary, Sizes
from hypothesis import given, settings
from hypothesis import strategies as st

from histories import DECIDERS, World, play, run_request
from resia.agents import feedback
from resia.agents.episode import chat
from resia.agents.gate import sign_flip
from resia.agents.perturbing import (
    INTRODUCTION,
    OPENING,
    PHRASES,
    offered,
    paraphrased,
    perturbed,
    reworded,
    with_choices_turned,
)
from resia.agents.probes import Sides, alarm_of, probe
from resia.agents.proposing import first_harness
from resia.domains.registry import load_domain
from resia.events import (
    CandidateAccepted,
    CandidateRejected,
    EvaluationCompleted,
    EvaluationRequested,
    Message,
    ProbeAlarmed,
    ProbeSettings,
    RolloutsRequested,
    RunRequested,
    Slot,
)
from resia.replay.digest import digest
from resia.replay.fold import fold
from resia.replay.verify import check

RULE = ProbeSettings()
ALPHA = 0.05


def made(score, probed, rule=RULE, seed=1):
    """A probe of changes by item, from a champion at 0 in both."""
    names = [f"v{n:02}" for n in range(len(score))]
    zero = dict.fromkeys(names, 0.0)
    sides = (Sides(zero, dict(zip(names, map(float, values), strict=True))) for values in (score, probed))
    return probe("shuffle", *sides, rule, alpha=ALPHA, seed=seed)


# -- the rule --------------------------------------------------------------------------------------------------------


def test_a_gain_that_is_not_there_under_the_probe_is_an_alarm():
    assert made([1] * 8 + [0] * 4, [0] * 12).alarmed
    assert made([1] * 8 + [0] * 4, [-1] * 2 + [0] * 10).alarmed


def test_a_gain_that_holds_is_none_and_one_that_holds_by_half_neither():
    assert not made([1] * 8 + [0] * 4, [1] * 8 + [0] * 4).alarmed
    assert not made([1] * 8 + [0] * 4, [1] * 4 + [0] * 8).alarmed
    assert not made([0.4] * 12, [0.2] * 12).alarmed
    assert made([0.4] * 12, [0.19] * 12).alarmed


def test_without_a_rise_of_the_score_there_is_no_alarm():
    assert not made([0] * 12, [-1] * 12).alarmed
    assert not made([-0.1] * 12, [-1] * 12).alarmed


def test_few_items_alarm_nothing():
    assert not made([1] * 4, [-1] * 4).alarmed  # 1/16 at best
    assert made([1] * 5, [-1] * 5).alarmed
    nothing = made([], [])
    assert (nothing.items, nothing.p_value, nothing.alarmed) == (0, 1.0, False)


def test_bound_and_share_can_be_set():
    changes = [0.4] * 12, [0.15] * 12
    assert made(*changes).alarmed
    assert not made(*changes, ProbeSettings(bound=0.05)).alarmed
    assert not made(*changes, ProbeSettings(keeps=0.3)).alarmed
    assert not made([1] * 12, [0] * 12, ProbeSettings(keeps=0.0)).alarmed  # then only a fall counts
    assert made([1] * 12, [-1] * 6 + [0] * 6, ProbeSettings(keeps=0.0)).alarmed


steps = st.sampled_from((-1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0))
few_pairs = st.lists(st.tuples(steps, steps), min_size=2, max_size=9)
pairs = st.lists(st.tuples(steps, steps), min_size=1, max_size=14)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.tuples(steps, steps), min_size=2, max_size=9),
    st.sampled_from((0.0, 0.5, 1.0)),
    st.sampled_from((0.0, 0.125)),
)
def test_the_p_value_is_that_of_scipys_permutation_test(changes, keeps, bound):
    stats = pytest.importorskip("scipy.stats")
    score, probed = (np.array(side) for side in zip(*changes, strict=True))
    found = made(score, probed, ProbeSettings(keeps=keeps, bound=bound))
    short = keeps * score - probed - bound
    exact = stats.permutation_test(
        (short,), np.mean, permutation_type="samples", alternative="greater", n_resamples=np.inf
    )
    assert found.p_value == pytest.approx(exact.pvalue)
    assert found.p_value == sign_flip(short, 1)[0]


@settings(deadline=None, max_examples=150)
@given(pairs, st.sampled_from((0.0, 0.5, 1.0)), st.sampled_from((0.0, 0.125)))
def test_whatever_alarms_rose_and_kept_too_little(changes, keeps, bound):
    score, probed = zip(*changes, strict=True)
    found = made(score, probed, ProbeSettings(keeps=keeps, bound=bound))
    alarm = alarm_of(found, ProbeSettings(keeps=keeps, bound=bound), alpha=ALPHA, evaluation="e")
    assert (alarm is not None) == found.alarmed
    assert 0.0 < found.p_value <= 1.0
    if alarm is not None:
        assert alarm.score_change > 0
        assert alarm.probe_change < keeps * alarm.score_change - bound
        assert len(changes) >= 5
        assert f"{found.items} items" in alarm.detail


@settings(deadline=None, max_examples=60)
@given(pairs, st.randoms(use_true_random=False))
def test_more_loss_under_the_probe_never_silences_it_and_order_changes_nothing(changes, random):
    score, probed = zip(*changes, strict=True)
    worse = [value - 0.25 for value in probed]
    assert made(score, worse).p_value <= made(score, probed).p_value
    shuffled = list(changes)
    random.shuffle(shuffled)
    assert made(*zip(*shuffled, strict=True)) == made(score, probed)


def test_a_gain_that_holds_by_exactly_the_share_alarms_as_seldom_as_it_may():
    """1000 probes of 10 items of noise around the boundary; three standard errors of room."""
    rng = np.random.default_rng(5)
    alarmed = 0
    for _ in range(1000):
        score = 0.4 + rng.normal(0, 0.2, 10)
        alarmed += made(score, 0.5 * score + rng.normal(0, 0.2, 10)).alarmed
    assert alarmed / 1000 <= ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / 1000)


# -- prompts said differently ----------------------------------------------------------------------------------------

TEXT = """Answer with one line and nothing else: pick=<a|b>
Rules:
- first
- second, in `Answer with` form
* third
1. look
2. leap
```
- Answer with
- code
```
Do not guess."""


def test_a_paraphrase_by_hand():
    other = TEXT.replace("Answer with one line and nothing else", "Give a single line and nothing besides it")
    other = other.replace("Do not", "Don't")
    rules = ["- first", "- second, in `Answer with` form", "* third"]
    assert reworded(TEXT) == other.replace("\n".join(rules), "\n".join(reversed(rules)))


def test_a_paraphrase_leaves_answers_and_the_number_of_turns_alone():
    said = (
        Message("system", "Answer with a digit."),
        Message("user", "one"),
        Message("assistant", "pick=1"),
        Message("user", "two"),
    )
    other = paraphrased(said)
    assert [m.role for m in other] == [m.role for m in said]
    assert other[2] == said[2]
    assert other[0].content == f"{OPENING}\nRespond with a digit."
    assert other[3].content == f"{INTRODUCTION}\ntwo"


words = st.text(st.sampled_from("abc XYZ=|<>0123`\n-*.,:"), max_size=80)
prose = st.lists(st.one_of(words, st.sampled_from([old for old, _ in PHRASES])), max_size=6).map(" ".join)


@settings(deadline=None)
@given(prose)
def test_a_paraphrase_keeps_every_line_but_for_the_published_phrases(text):
    """With the published phrases taken out on both sides, the same lines are left."""

    def bare(line):
        for phrase in sorted((p for pair in PHRASES for p in pair), key=len, reverse=True):
            line = line.replace(phrase, "#")
        return line

    assert reworded(text) == reworded(text)
    assert sorted(map(bare, reworded(text).split("\n"))) == sorted(map(bare, text.split("\n")))


def test_no_phrase_is_put_in_that_would_be_replaced_again():
    for old, new in PHRASES:
        assert reworded(old) == new
        assert reworded(new) == new


@pytest.mark.parametrize("seed", range(12))
def test_choices_are_listed_from_another_one_on(seed):
    spec = load_domain("denoising", {"synthetic": True}).spec
    turned = with_choices_turned(spec.instruction, spec, seed)
    assert "order (std, rev)" in turned
    assert "log (1, 0)" in turned
    assert "knn (1 to 12)" in turned  # a range has no order
    assert sorted(turned) == sorted(spec.instruction)
    contract = with_choices_turned("knn=<1|2|3|4|5|6|7|8|9|10|11|12> order=<rev|std>", spec, seed)
    first = 1 + seed % 11
    assert contract.startswith(f"knn=<{first + 1}|" if first < 11 else "knn=<12|")
    assert contract.endswith("order=<std|rev>")


def test_what_a_domain_offers():
    assert offered(load_domain("denoising", {"synthetic": True})) == ("paraphrase", "shuffle")
    assert offered(MidBinary(Sizes())) == ("paraphrase",)


def test_the_perturbed_chat_of_a_whole_harness_differs_and_an_unperturbed_one_does_not():
    domain = load_domain("denoising", {"synthetic": True})
    item = domain.items("validation")[0]
    own = chat(first_harness(domain.spec), item.prompt)
    for name in ("paraphrase", "shuffle"):
        other = perturbed(own, domain, Slot("validation", item.id, 0, 7, True, name))
        assert other != own
        assert item.prompt in other[-1].content
    assert perturbed(own, domain, Slot("validation", item.id, 0, 7, True)) == own


# -- deciders --------------------------------------------------------------------------------------------------------

BOTH = ("paraphrase", "shuffle")
GAINS = {"demonstrate-neutral": 0.0, "demonstrate-best": 0.3, "format-contract": 0.2}


def probed_run(holds, **more):
    world = World(operators=GAINS, holds=holds, noise=0.05, base=0.3)
    return play(run_request(mode="H", max_iterations=4, perturbations=BOTH), world, **more)


def test_where_gains_hold_the_run_is_as_without_probes_but_for_their_cost():
    with_probes, without = (
        probed_run(1.0),
        play(run_request(mode="H", max_iterations=4), World(operators=GAINS, noise=0.05, base=0.3)),
    )
    assert with_probes.outcomes == without.outcomes
    assert "accepted" in with_probes.outcomes[1:]
    assert not with_probes.of(ProbeAlarmed)
    accepted = [e for e in with_probes.of(CandidateAccepted) if e.gate.test]
    assert all([r.probe for r in e.gate.probes] == list(BOTH) for e in accepted)
    asked = [e for e in with_probes.of(EvaluationRequested) if e.purpose == "probe"]
    assert len(asked) == 1 + len(accepted)  # the baseline once, and each that would be crowned
    cost = len(asked) * 2 * 12
    assert with_probes.state.ledger.rollouts == without.state.ledger.rollouts + cost


def test_where_gains_do_not_hold_nobody_is_crowned():
    history = probed_run(0.0)
    assert history.state.champion == history.state.baseline
    rejected = [e for e in history.of(CandidateRejected) if e.gate.probes]
    assert rejected
    assert all(e.gate.reason.endswith("the gain does not hold: alarm of paraphrase, shuffle") for e in rejected)
    assert {a.evaluation for a in history.of(ProbeAlarmed)} == {e.evaluation for e in rejected}


@pytest.mark.parametrize("holds", [0.0, 1.0])
@pytest.mark.parametrize("order", range(4))
def test_interleaving_and_work_handed_out_twice_change_nothing(holds, order):
    plain, other = probed_run(holds), probed_run(holds, order=order, twice=True)
    assert digest(other.state) == digest(plain.state)
    ids = [fact.envelope.id for fact in other.facts]
    assert len(set(ids)) == len(ids)
    assert check(other.facts, DECIDERS).problems == ()


def places(history, kind):
    """Where events of `kind` about a probe stand in the log."""
    return [n for n, f in enumerate(history.facts) if isinstance(f.event, kind) and f.event.purpose == "probe"]


def test_what_asked_for_probes_never_gives_the_verdict():
    """Handed out again after the probes are in, it would write other events under the same ids."""
    history = probed_run(1.0)
    first = history.facts[places(history, EvaluationRequested)[0]]
    cause = next(f for f in history.facts if f.envelope.id == first.envelope.cause)
    closed = places(history, EvaluationCompleted)[:2]
    state = fold(history.facts[: closed[1] + 1])
    assert feedback.decide(state, cause) == []
    before, after = (feedback.decide(state, history.facts[n]) for n in closed)
    assert before == after
    assert isinstance(after[0], CandidateAccepted)


def test_probes_that_infrastructure_lost_say_nothing():
    world = World(
        operators=GAINS, holds=0.0, noise=0.05, base=0.3, slot_fails=lambda event, slot: slot.probe is not None
    )
    history = play(run_request(mode="H", max_iterations=2, perturbations=BOTH), world)
    accepted = [e for e in history.of(CandidateAccepted) if e.gate.test]
    assert accepted
    assert all(r.items == 0 and not r.alarmed for e in accepted for r in e.gate.probes)


def test_a_fork_asks_for_the_probes_that_its_parent_had_not():
    """At its own first event, and once, also when that event is handed out again."""
    from resia.events import Parent
    from resia.replay.fork import before_decision, inherit

    parent = play(run_request(mode="H", max_iterations=2), World(operators=GAINS, noise=0.05, base=0.3))
    number = next(f.sequence for f in parent.facts if f.envelope.type == "decision-made" and f.event.iteration == 2)
    begin: Parent = before_decision(parent.facts, number)
    request = run_request(mode="H", max_iterations=2, perturbations=BOTH)
    asked = RunRequested(
        **{name: getattr(request, name) for name in request.__struct_fields__ if name != "parent"}, parent=begin
    )
    world = World(operators=GAINS, holds=0.0, noise=0.05, base=0.3)
    child = play(
        asked, world, run="child", origin=inherit(fold(parent.facts[: begin.sequence])), blobs=parent.blobs, twice=True
    )
    probes = [e for e in child.of(EvaluationRequested) if e.purpose == "probe"]
    assert len(probes) == 2
    assert child.facts[1].event == probes[0]
    assert parent.outcomes[1] == "accepted"
    assert child.outcomes[1] == "rejected"
    assert child.state.champion == child.state.baseline


def test_a_log_from_before_probes_has_none():
    """Its first event offers nothing, whatever the defaults of today's settings."""
    history = play(run_request(mode="H", max_iterations=4), World(operators=GAINS, holds=0.0, noise=0.05, base=0.3))
    assert history.state.request.settings.gate.probes.on
    assert {e.purpose for e in history.of(RolloutsRequested)} <= {"candidate", "test", "baseline"}
    assert all(e.gate.probes == () for e in history.of(CandidateAccepted, CandidateRejected))


def test_the_worked_example_of_the_docs():
    text = (Path(__file__).parent.parent / "docs" / "gate.md").read_text()
    found = made([1] * 13 + [0] * 3, [0] * 13 + [-1] * 3)
    assert found.alarmed
    assert f"p = 2^-16 = {found.p_value:.3g}" in text
    honest = made([1] * 12 + [0] * 4, [1] * 12 + [0] * 4)
    assert honest.p_value > 0.99
