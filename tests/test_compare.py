"""Runs side by side: from where they parted, paired on the same validation items."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import pytest
from rich.console import Console

from histories import GOLDEN, History, World, golden_history, play, run_request
from resia.agents.taskwork import item_means
from resia.replay.fold import fold
from resia.replay.fork import before_decision, inherit
from resia.runtime.compare import Compared, compared, spans, table
from resia.runtime.lineage import Ancestry
from resia.runtime.reading import Log

ABLE = World(base=0.6, training=0.1, noise=0.02)


def log_of(run: str, history: History, ancestry: Ancestry = Ancestry()) -> Log:  # noqa: B008 - immutable
    return Log(run, history.facts, ancestry)


class Family:
    """Logs of a run and of forks from it, by name."""

    def __init__(self, run: str, history: History, world: World) -> None:
        self._world = world
        self.histories = {run: history}
        self.logs = {run: log_of(run, history)}

    def fork(self, name: str, parent: str, iteration: int, algorithm: str | None = None, **loop: Any) -> None:
        log, history = self.logs[parent], self.histories[parent]
        found = before_decision(log.facts, log.decision_event(iteration))
        origin = inherit(fold(log.facts[: found.sequence], log.origin))
        was = history.state.request
        settings = msgspec.structs.replace(
            was.settings, algorithm=algorithm, loop=msgspec.structs.replace(was.settings.loop, **loop)
        )
        request = msgspec.structs.replace(was, settings=settings, parent=found)
        child = play(request, self._world, run=name, origin=origin, blobs=history.blobs)
        self.histories[name] = child
        self.logs[name] = log_of(name, child, Ancestry(origin, (found, *log.ancestry.parents)))

    def compare(self, *names: str) -> list[Compared]:
        return [compared(span) for span in spans(self.logs, names)]


@pytest.fixture(scope="module")
def able() -> Family:
    """A run that edits, and what training with each algorithm would have done instead of its second edit."""
    family = Family("p", play(run_request(mode="H", patience_h=2), ABLE, run="p"), ABLE)
    for algorithm in ("grpo", "best_of_n"):
        family.fork(f"p-{algorithm}", "p", 2, algorithm, mode="W", max_iterations=2)
    return family


@pytest.fixture(scope="module")
def golden() -> Family:
    family = Family("g", golden_history("g"), GOLDEN)
    family.fork("f3", "g", 3)
    family.fork("f5", "g", 5)
    family.fork("f3-5", "f3", 5)
    return family


def test_counterfactuals_are_compared_from_their_common_moment(able):
    grpo, best = able.compare("p-grpo", "p-best_of_n")
    assert (grpo.since, best.since) == ("p@2", "p@2")
    assert [d.action for d in grpo.decisions] == ["train_weights", "stop"]
    assert (grpo.decisions[0].algorithm, best.decisions[0].algorithm) == ("grpo", "best_of_n")
    assert grpo.candidate == best.candidate == 2
    assert grpo.reference == best.reference
    assert grpo.items == 12
    assert grpo.ci_low <= grpo.effect <= grpo.ci_high
    assert grpo.effect == pytest.approx(grpo.validation - grpo.reference)


def test_the_interval_is_of_the_paired_differences(able):
    (found,) = able.compare("p-grpo")
    end = able.histories["p-grpo"].state
    reference = able.logs["p-grpo"].at(able.logs["p-grpo"].decision_event(2)).champion.evaluation
    candidate = next(e for e in end.evaluations.values() if e.request.iteration == 2)
    new, old = item_means(candidate, "validation"), item_means(end.evaluations[reference], "validation")
    changes = np.array([new[item] - old[item] for item in sorted(new)])
    margin = 1.96 * changes.std(ddof=1) / math.sqrt(len(changes))
    assert found.effect == pytest.approx(changes.mean())
    assert found.ci_low == pytest.approx(changes.mean() - margin, abs=margin)
    assert found.ci_high == pytest.approx(changes.mean() + margin, abs=margin)
    assert found.ci_high - found.ci_low == pytest.approx(2 * margin, rel=0.5)
    assert able.compare("p-grpo") == [found]


def test_the_parent_beside_its_forks_counts_from_where_they_parted(able):
    parent, child = able.compare("p", "p-grpo")
    assert parent.since == child.since == "p@2"
    assert parent.decisions[0].iteration == 2
    assert parent.decisions[0].action == "edit_harness"
    assert parent.reference == child.reference


def test_a_run_from_nothing_is_compared_with_its_baseline(able):
    (found,) = able.compare("p")
    baseline = able.histories["p"].state.baseline.evaluation
    assert found.since == "p@1"
    score = able.histories["p"].state.evaluations[baseline].completed.scores["validation"].mean
    assert found.reference == pytest.approx(score)


def test_unrelated_runs_are_each_compared_from_their_own_beginning(able, golden):
    logs = able.logs | golden.logs
    found = [compared(span) for span in spans(logs, ["p", "f3"])]
    assert [line.since for line in found] == ["p@1", "g@3"]


def test_a_fork_of_a_fork_counts_from_the_ancestors_decision(golden):
    for names in (("g", "f3", "f3-5"), ("f3-5", "g"), ("f3-5", "f5")):
        found = golden.compare(*names)
        assert {line.since for line in found} == {"g@3"}
        assert len({(line.effect, line.ci_low, line.tokens, line.gate, line.candidate) for line in found}) == 1
    (alone,) = golden.compare("f3-5")
    assert alone.since == "f3@5"


def test_tokens_leave_the_sealed_test_out(golden):
    parent, child = golden.compare("g", "f3")
    assert parent.tokens == child.tokens
    assert golden.histories["g"].state.ledger.tokens > golden.histories["f3"].state.ledger.tokens
    before = golden.logs["f3"].origin.ledger.tokens
    assert child.tokens == golden.histories["f3"].state.ledger.tokens - before


def test_a_failed_lever_has_no_candidate_and_says_why(golden):
    golden.fork("f5-only", "g", 5, max_iterations=5)
    (found,) = golden.compare("f5-only")
    assert (found.candidate, found.effect, found.gate, found.note) == (None, None, "failed", "not finite")


def test_a_masked_algorithm_is_a_line_that_says_so():
    weak = World(base=0.3, noise=0.15)
    family = Family("w", play(run_request(mode="H", patience_h=1), weak, run="w"), weak)
    family.fork("w-bon", "w", 1, "best_of_n", mode="W")
    (found,) = family.compare("w-bon")
    assert (found.candidate, found.gate, found.tokens) == (None, None, 0)
    assert found.note == "best_of_n is masked: needs 8 successes, has 0"
    assert [d.action for d in found.decisions] == ["stop"]


def test_a_run_that_has_not_decided_is_a_line_too(golden):
    begun = Log("begun", golden.logs["g"].facts[:3])
    (found,) = [compared(span) for span in spans({"begun": begun}, ["begun"])]
    assert (found.decisions, found.effect, found.tokens, found.status) == ((), None, 0, "running")
    assert found.note == "it has not decided yet"


def test_an_empty_log_is_a_line_too():
    (found,) = [compared(span) for span in spans({"none": Log("none", ())}, ["none"])]
    assert (found.status, found.note) == ("empty", "it has not decided yet")


def test_the_table_shows_every_run_and_interval(able):
    console = Console(width=100, record=True)
    console.print(table(able.compare("p", "p-grpo", "p-best_of_n")))
    text = console.export_text()
    for line in able.compare("p", "p-grpo", "p-best_of_n"):
        assert line.run in text
        assert f"{line.effect:+.3f} [{line.ci_low:+.3f}, {line.ci_high:+.3f}]" in text
    assert "train grpo" in text
