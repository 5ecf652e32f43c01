"""The two protocols and the audit, on clocks that follow a script: what is believed, and what is not."""

from __future__ import annotations

import msgspec
import pytest
from kernels_given import DEVICE, SCRIPTED, SUITE, ScriptedChamber

from resia.domains.trimul.operator import Case
from resia.domains.trimul.roofline import floor_us
from resia.events.errors import SandboxError
from resia.kernels.judge import Judge, require_possible
from resia.kernels.timing import Budget, gpumode, strict

CASE = Case(4, 1, 8)


def test_strict_believes_two_clocks_that_agree():
    clocks = ScriptedChamber(inside_us=100.0, wall_us=105.0, batch_us=900.0)
    found = strict(clocks, CASE, DEVICE, 0, SCRIPTED)
    assert found.us == 100.0
    assert clocks.batches == [1, 1, 6, 1, 6]
    assert found.calls == 12


@pytest.mark.parametrize(("inside", "wall"), [(10.0, 100.0), (85.0, 100.0), (120.0, 100.0), (0.0, 100.0)])
def test_strict_quarantines_clocks_that_do_not(inside, wall):
    clocks = ScriptedChamber(inside, wall)
    with pytest.raises(SandboxError, match="by the clock inside") as caught:
        strict(clocks, CASE, DEVICE, 0, SCRIPTED)
    assert caught.value.failure == "quarantined"
    assert len(clocks.batches) == 1 + 2 * SCRIPTED.tries


def test_a_short_batch_made_slow_makes_no_call_look_short():
    """Every batch lasts as long as if 50 ms had nothing to do with its calls."""
    clocks = ScriptedChamber(inside_us=100.0, wall_us=100.0, batch_us=50_000.0)
    with pytest.raises(SandboxError, match="50000 us more of a batch of 6") as caught:
        strict(clocks, CASE, DEVICE, 0, SCRIPTED)
    assert caught.value.failure == "quarantined"


def test_a_batch_overflows_the_cache_and_lasts():
    roomy = Budget(pairs=1, batch_us=1_000.0, least_calls=4, most_calls=1_000)
    clocks = ScriptedChamber(100.0, 100.0)
    strict(clocks, CASE, DEVICE, 0, roomy)
    assert clocks.batches[-1] == 10  # 1 ms of calls of 100 us
    cached = msgspec.structs.replace(DEVICE, cache_bytes=20 * CASE.x_bytes)
    strict(clocks, CASE, cached, 0, roomy)
    assert clocks.batches[-1] == 21
    strict(clocks, CASE, cached, 0, msgspec.structs.replace(roomy, most_bytes=10 * CASE.x_bytes))
    assert clocks.batches[-1] == 5


def test_gpumode_times_no_call_that_has_to_compile():
    compiling = ScriptedChamber(100.0, 100.0)
    run = compiling.run

    def slow_at_first(made, watch=False):
        compiling._inside = 100.0 if compiling.batches else 3e7
        return run(made, watch)

    compiling.run = slow_at_first
    assert gpumode(compiling, CASE, 0).us == 100.0
    assert compiling.batches == [1] * 4


def test_gpumode_stops_when_the_mean_is_known_or_time_is_up():
    steady = ScriptedChamber(100.0, 100.0)
    assert gpumode(steady, CASE, 0).calls == 3
    assert set(steady.batches) == {1}
    slow = ScriptedChamber(6e6, 6e6)
    slow.run = varying(slow.run)
    assert gpumode(slow, CASE, 0).calls == 3  # over 10 s of the kernel's
    wavering = ScriptedChamber(100.0, 100.0)
    wavering.run = varying(wavering.run)
    assert gpumode(wavering, CASE, 0, Budget(most_repeats=7)).calls == 7


def varying(run):
    """Every second call takes twice as long."""
    calls = []

    def other(made, watch=False):
        calls.append(1)
        ran = run(made, watch)
        return ran._replace(inside_us=tuple(us * (1 + len(calls) % 2) for us in ran.inside_us))

    return other


def test_every_call_has_inputs_of_its_own():
    clocks, seen = ScriptedChamber(100.0, 100.0), []
    run = clocks.run
    clocks.run = lambda made, watch=False: seen.extend(call.x.tobytes() for call in made) or run(made, watch)
    strict(clocks, CASE, DEVICE, 0, SCRIPTED)
    gpumode(clocks, CASE, 0, SCRIPTED)
    assert len(set(seen)) == len(seen) == 19


def test_below_the_roofline_is_quarantined():
    fast = ScriptedChamber(1e-6, 1e-6, 0.0)
    verdict = Judge(fast, SUITE, SCRIPTED).bench("", {}, "strict", 0)
    assert (verdict.stage, verdict.failure) == ("audit", "quarantined")
    assert "cannot do it under" in verdict.detail
    with pytest.raises(SandboxError):
        require_possible((CASE,), {CASE.name: 1e-9}, DEVICE)


def test_near_the_roofline_it_is_timed_again_in_a_fresh_process():
    near = 1.2 * floor_us(SUITE.timed, DEVICE)
    steady = ScriptedChamber(near, near, 0.0)
    verdict = Judge(steady, SUITE, SCRIPTED).bench("", {}, "strict", 0)
    assert (verdict.failure, steady.loaded) == ("", 2)

    drifting = ScriptedChamber(near, near, 0.0)
    load = drifting.load

    def slower_next_time(source, config):
        drifting._inside, drifting._wall = near * (1 + drifting.loaded), near * (1 + drifting.loaded)
        return load(source, config)

    drifting.load = slower_next_time
    verdict = Judge(drifting, SUITE, SCRIPTED).bench("", {}, "strict", 0)
    assert (verdict.stage, verdict.failure, drifting.loaded) == ("audit", "quarantined", 2)

    far = ScriptedChamber(10 * near, 10 * near)
    assert Judge(far, SUITE, SCRIPTED).bench("", {}, "strict", 0).failure == ""
    assert far.loaded == 1


def test_a_seed_tells_what_is_verified_and_not_what_is_timed():
    def seen() -> tuple[list[bytes], list[bytes]]:
        clocks, verified, timed = ScriptedChamber(100.0, 100.0), list[bytes](), list[bytes]()
        run = clocks.run

        def noted(made, watch=False):
            (verified if watch else timed).extend(call.x.tobytes() for call in made)
            return run(made, watch)

        clocks.run = noted
        assert Judge(clocks, SUITE, SCRIPTED).bench("", {}, "gpumode", 0).failure == ""
        return verified, timed

    (verified, timed), again = seen(), seen()
    assert verified == again[0]
    assert not set(timed) & set(again[1])


def test_a_verdict_adds_up():
    verdict = Judge(ScriptedChamber(750.0, 750.0), SUITE, SCRIPTED).bench("", {}, "gpumode", 0)
    assert verdict.case_us == {case.name: 750.0 for case in SUITE.timed}
    assert (verdict.geomean_us, verdict.reward, verdict.protocol) == (750.0, 2.0, "gpumode")
    assert (verdict.verified, verdict.tier, verdict.suite) == (len(SUITE.tested), "scripted", "smoke")
