"""The chaos matrix in its short form: real processes, a real server, kills at seeded boundaries, one of each damage.

The whole is `make chaos`. It runs in a process of its own, which forks its workers before anything starts a thread.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from chaos.actors import Acknowledged
from chaos.judge import duplicated, lost
from chaos.matrix import APART, KILLS_A_RUN, dealt, placed
from chaos.strikes import SELF, SERVER, Boundary

from histories import ROLES, golden_history
from resia.events import Fact

TESTS = Path(__file__).parent


@pytest.mark.timeout(280)
def test_nothing_is_lost_or_done_twice_and_every_run_ends_alike():
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    command = [sys.executable, "-m", "chaos", "--short"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=270, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.pop("kills") >= 30, done.stderr[-4000:]
    assert found == {"divergent": 0, "lost": 0, "duplicated": 0, "stuck": 0}


@pytest.fixture(scope="module")
def log() -> tuple[Fact, ...]:
    return golden_history().facts


@pytest.fixture(scope="module")
def boundaries(log) -> list[Boundary]:
    return [Boundary(f.envelope.producer.role, (f.envelope.id,), f.sequence) for f in log[1:]]


def test_the_matrix_kills_every_role_and_the_server_before_and_after_every_boundary(log, boundaries):
    points = placed(boundaries, log)
    for at, boundary in enumerate(boundaries):
        others = {f"{role}-1" for role in ROLES if role != boundary.role}
        for moment in ("before", "after"):
            here = [p.point for p in points if p.at == at and p.point.moment == moment]
            assert {p.target for p in here} == {SELF, SERVER, *others}
            assert {p.event for p in here} == {boundary.ids[0]}


def test_kills_that_share_a_run_are_apart_and_none_is_left_out(log, boundaries):
    points = placed(boundaries, log)
    at = {p.point.number: p.at for p in points}
    runs = dealt(points, seed=1)
    assert sorted(point.number for run in runs for point in run) == sorted(at)
    for run in runs:
        places = sorted(at[point.number] for point in run)
        assert len(places) <= KILLS_A_RUN
        assert all(later - earlier >= APART for earlier, later in itertools.pairwise(places))


def test_the_judge_misses_no_loss_and_no_duplicate(log):
    told = [Acknowledged(f.envelope.producer.role, f.sequence, (f.envelope.id,)) for f in log]
    assert lost(log, told) == []
    assert len(lost(log[:-3], told)) == 3
    assert duplicated(log) == []
    assert {text.split()[0] for text in duplicated([*log, log[20]])} == {"2"}
    assert duplicated([*log, log[20]])
