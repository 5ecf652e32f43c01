"""What judging on a GPU needs, as far as a machine without one can tell."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from kernels_given import DEVICE

from resia.domains.trimul.operator import Case, draw, reference
from resia.domains.trimul.roofline import Device, gpu
from resia.kernels import guest
from resia.kernels.checking import HOST, maths_for
from resia.runtime.chamber import tiers
from resia.runtime.chamber.process import gpu_environment

pytest.importorskip("torch", reason="torch is not installed")
CASES = (Case(36, 2, 16), Case(9, 1, 16, "cauchy", masked=True))


@pytest.fixture(scope="module")
def maths():
    from resia.kernels.torch_maths import TorchMaths

    return TorchMaths("cpu")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_torch_compares_as_the_processor_does(maths, case):
    inputs, rng = draw(case, 5), np.random.default_rng(5)
    output = reference(inputs).astype(np.float32)
    every, some = np.arange(case.n), np.array([1, 4, 8])
    assert maths.agreement(inputs, output, every, every).worst < 1e-4
    output += (0.03 * rng.random(output.shape)).astype(np.float32)
    output[0, 1, 4, 0], output[0, 4, 8, 1] = np.nan, np.inf
    for rows, columns in ((every, every), (some, every), (every, some)):
        here, there = (m.agreement(inputs, output, rows, columns) for m in (HOST, maths))
        assert (here.elements, here.outside) == (there.elements, there.outside)
        assert here.worst == there.worst == np.inf
        assert 0 < here.outside < here.elements
    output[~np.isfinite(output)] = 0.0
    here, there = (m.agreement(inputs, output, some, some) for m in (HOST, maths))
    assert there.worst == pytest.approx(here.worst, rel=1e-9)


def test_torch_draws_by_the_same_laws(maths):
    case = Case(48, 2, 64, "cauchy", masked=True)
    ours, theirs = (m.draw(case, 3).arrays() for m in (maths, HOST))
    assert {name: (a.shape, a.dtype) for name, a in ours.items()} == {n: (a.shape, a.dtype) for n, a in theirs.items()}
    assert set(np.unique(ours["mask"])) == {0.0, 1.0}
    quarters = [np.quantile(x, (0.25, 0.75)) for x in (ours["x"], theirs["x"])]
    assert quarters[0] == pytest.approx(quarters[1], abs=0.05)  # -2 and 2
    spreads = {name: float(np.std(a)) for name, a in ours.items() if name not in ("x", "mask")}
    assert spreads == pytest.approx({name: float(np.std(theirs[name])) for name in spreads}, rel=0.3)
    assert np.isfinite(ours["x"]).all()
    normal = [maths.draw(Case(48, 1, 8), seed).x for seed in (1, 1, 2**63 - 1)]
    assert np.array_equal(normal[0], normal[1])
    assert not np.array_equal(normal[0], normal[2])
    assert float(np.std(normal[0])) == pytest.approx(1.0, abs=0.03)


def test_a_processor_is_judged_by_the_processor():
    assert maths_for(DEVICE) is HOST
    assert type(maths_for(Device("X", "cuda", 1.0, 1.0, 1))).__name__ == "TorchMaths"


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="no bubblewrap")
def test_the_tier_of_a_gpu_holds(tmp_path):
    (tier,) = tiers.candidates("cuda", ())
    secret = tmp_path / "secret"
    secret.write_text("secret")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        known = f"SECRET, ADDRESS = {str(secret)!r}, {listener.getsockname()!r}\n"

        def ended(command: tuple[str, ...]) -> str:
            """What a guest that begins so says at its end."""
            tried = [*command, sys.executable, "-P", "-s", "-B", "-c", known + tiers.OPEN_ON_GPU + tiers.ATTEMPTS]
            return subprocess.run(tried, capture_output=True, text=True).stderr

        assert ended(tier.command) == ""
        assert "AssertionError: read a file, write a file, open a socket" in ended(())
    # Triton asks it where the driver is.
    found = subprocess.run([*tier.command, "/sbin/ldconfig", "-p"], env={}, capture_output=True, text=True)
    assert "libc.so" in found.stdout, found.stderr


def test_a_guest_sees_the_gpu_whose_lease_is_held():
    own = {"CUDA_VISIBLE_DEVICES": "3", "LD_LIBRARY_PATH": "/usr/local/nvidia/lib64", "TOKEN": "secret", "PATH": "/x"}
    told = gpu_environment(own)
    assert (told["CUDA_VISIBLE_DEVICES"], told["LD_LIBRARY_PATH"]) == ("3", "/usr/local/nvidia/lib64")
    assert "TOKEN" not in told
    assert "/usr/bin" in told["PATH"].split(":")


class ScriptedCuda:
    """A device of its own clock: a call puts 100 us of work on it, and every other operation takes the host some."""

    def __init__(self) -> None:
        self.now, self.busy_until = 0.0, 0.0
        cuda = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                cuda.now += 5.0
                self.at: float | None = None

            def record(self) -> None:
                cuda.now += 1.0 if self.at is not None else 20.0
                self.at = max(cuda.now, cuda.busy_until)

            def elapsed_time(self, end: Event) -> float:
                assert self.at is not None
                assert end.at is not None
                cuda.now += 3.0
                return (end.at - self.at) / 1000

        self.Event = Event

    def synchronize(self) -> None:
        self.now = max(self.now + 4.0, self.busy_until)

    def call(self) -> float:
        self.now += 2.0
        self.busy_until = max(self.now, self.busy_until) + 100.0
        return self.now


def test_a_driver_is_asked_for_memory_before_the_clocks_run():
    """As torch does it: what is given back is kept, and only what is not there is asked for."""
    held, kept, asked = [0], [0], list[str]()

    class Block:
        def __init__(self, when: str) -> None:
            if kept[0] == 0:
                asked.append(when)
            kept[0], held[0] = max(kept[0] - 1, 0), held[0] + 1

        def __del__(self) -> None:
            kept[0], held[0] = kept[0] + 1, held[0] - 1

    guest._make_room(SimpleNamespace(empty_like=lambda x: Block("before")), None, 16)
    assert (held[0], kept[0]) == (0, 16 + guest.SPARE)
    outputs = [Block("while the clocks run") for _ in range(16)]
    assert len(outputs) == 16
    assert set(asked) == {"before"}


def test_both_clocks_see_the_same_of_a_short_call_on_a_gpu():
    cuda = ScriptedCuda()
    timer = guest._cuda_timer(SimpleNamespace(cuda=cuda), cuda.call)

    def wall(count: int) -> tuple[float, float]:
        """Of a batch: microseconds by the clock inside and by the judge's."""
        timed = timer(count)
        started = cuda.now
        outputs, ns = timed([cuda.call] * count)
        assert len(outputs) == len(ns) == count
        return sum(ns) / 1000, cuda.now - started

    (short, short_wall), (long, long_wall) = wall(1), wall(21)
    inside, outside = (long - short) / 20, (long_wall - short_wall) / 20
    assert inside >= 100.0
    assert abs(inside - outside) / outside < 0.05


def test_of_two_words_on_a_cache_the_larger_counts():
    assert gpu("NVIDIA H200", 0.0, 0.0, 60 << 20).cache_bytes == 60 << 20
    assert gpu("NVIDIA H200", 0.0, 0.0, 0).cache_bytes == 50 << 20
