"""A worker of another series refuses a run and harms nobody: the run goes on with the others. Clocks decide nothing."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time

import pytest
import structlog
from test_worker import LIMIT_S, Toy, counted, facts

from given import clerk, requested
from resia.events import Fact, RunFailed, Skipped
from resia.events.errors import ResiaError
from resia.runtime import skew
from resia.runtime.attending import serve_runs
from resia.runtime.bus import connect
from resia.runtime.cli_options import USAGE
from resia.runtime.resources import package_version
from resia.runtime.session import Session, Watch, launch
from resia.runtime.skew import VersionSkew, fits_series, series, warn_of_clock
from resia.runtime.store import Store
from resia.runtime.worker import Worker


@pytest.mark.parametrize(
    ("package", "found"),
    [("0.2.0", "0.2"), ("1.10.3rc1", "1.10"), ("2.0.dev1+g12", "2.0"), ("0", ""), ("mypackage 1.2", ""), ("", "")],
)
def test_series(package, found):
    assert series(package) == found


def first(package: str) -> Fact:
    from scripted import Tape

    tape = Tape("r")
    tape._clerk = tape._clerk._replace(package=package)
    return tape.add(requested())[0]


@pytest.mark.parametrize(("began", "here"), [("0.2.0", "0.2.9"), ("0", "0.2.0"), ("0.2.0", "alerts 9.1")])
def test_a_run_is_served_by_its_own_series(began, here):
    assert fits_series(first(began), "r", here)


def test_the_refusal_names_both_and_what_to_do():
    with pytest.raises(VersionSkew) as refused:
        fits_series(first("0.2.3"), "r", "0.3.0")
    assert str(refused.value).count("0.2") == 2
    assert "resia 0.2.3" in str(refused.value)
    assert "resia 0.3.0" in str(refused.value)
    assert "resia fork r@K" in str(refused.value)


def test_a_request_in_a_newer_schema_is_refused_and_junk_is_not():
    why = "run-requested version 9 is newer than this package's 2; upgrade resia"
    with pytest.raises(VersionSkew, match="version 9 is newer"):
        fits_series(Skipped(1, "", why), "r", "0.2.0")
    assert not fits_series(Skipped(1, "", "Object missing required field `id`"), "r", "0.2.0")


async def test_the_run_goes_on_with_the_others(bus, run, access):
    """A worker of 9.0 is there first and gets nothing; one of the run's series does all of it."""
    await bus.append(run, [clerk(run)._replace(package="0.2.0").genesis(requested())])
    old, new = Toy(), Toy()
    connections = [await connect(access.url, *access.login("feedback")) for _ in range(2)]
    ahead = clerk(run, "feedback", "ahead")._replace(package="9.0.0")
    with pytest.raises(ExceptionGroup) as refused:
        await asyncio.wait_for(Worker(connections[0], new.role(), ahead).serve(), LIMIT_S)
    assert refused.group_contains(VersionSkew)
    fitting = clerk(run, "feedback", "fits")._replace(package="0.2.7")
    await asyncio.wait_for(Worker(connections[1], old.role(), fitting).serve(), LIMIT_S)
    log = await facts(bus, run)
    assert isinstance(log[-1].event, RunFailed)
    assert not new.performed
    assert {fact.envelope.producer.worker for fact in log[1:]} == {"fits"}
    assert counted(log)["edit-failed"] == len(old.performed)
    for connection in connections:
        await connection.close()


async def test_a_worker_for_all_runs_serves_those_that_fit(empty):
    """It gives the other up with one line and is no worse for it."""
    for name, package in (("theirs", "9.0.0"), ("ours", "0.2.0")):
        await empty.create_run(name)
        await empty.append(name, [clerk(name)._replace(package=package).genesis(requested())])
    toy = Toy()
    with structlog.testing.capture_logs() as lines:
        serving = asyncio.create_task(
            serve_runs(empty, toy.role(), lambda name: clerk(name, "feedback")._replace(package="0.2.0"))
        )
        async with asyncio.timeout(LIMIT_S):
            async for fact in empty.read("ours", follow=True):
                if isinstance(fact, Fact) and isinstance(fact.event, RunFailed):
                    break
        serving.cancel()
        await asyncio.wait([serving])
    (given_up,) = [line for line in lines if line["event"] == "run given up"]
    assert given_up["run"] == "theirs"
    assert "begun by resia 9.0.0" in given_up["error"]
    assert len(await facts(empty, "theirs")) == 1


async def test_the_command_refuses_in_one_sentence(home):
    await home.bus.create_run("theirs")
    await home.bus.append("theirs", [clerk("theirs")._replace(package="9.0.0").genesis(requested())])
    command = [sys.executable, "-m", "resia.runtime.cli", "worker", "start", "meta", "--run", "theirs"]
    places = ["--store", str(home.folder)]
    done = await asyncio.to_thread(subprocess.run, [*command, *places], capture_output=True, text=True, timeout=60)
    assert done.returncode == USAGE, done.stderr
    (sentence,) = done.stderr.splitlines()
    assert f"begun by resia 9.0.0 and this is resia {package_version()}" in sentence
    assert len(await facts(home.bus, "theirs")) == 1


async def test_a_session_of_another_series_does_not_resume_a_run(tmp_path, home):
    await home.bus.create_run("theirs")
    await home.bus.append("theirs", [clerk("theirs")._replace(package="9.0.0").genesis(requested())])
    await home.bus.close()
    home.server.stop()
    with pytest.raises(ResiaError, match=f"begun by resia 9.0.0 and this is resia {package_version()}"):
        await launch(Session("theirs", None, Store(home.folder)), Watch())


async def test_a_clock_that_differs_is_said_once(bus):
    with structlog.testing.capture_logs() as lines:
        await warn_of_clock(bus, lambda: 1e9)
    (line,) = lines
    assert line["event"] == "clock differs from the server's"
    assert line["seconds"] < -1e8
    with structlog.testing.capture_logs() as lines:
        skew_s = await skew.clock_skew(bus, time.time)
        await warn_of_clock(bus, time.time)
    assert bool(lines) == (abs(skew_s) > skew.CLOCK_S)
