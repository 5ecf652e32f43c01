"""The chamber of programs, with real processes on every tier that this machine has."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from programs_given import TIERS, body, chamber_of

from resia.domains.programs import Program, ProgramLimits
from resia.events.errors import BoundaryError, SandboxError, UsageError
from resia.runtime.chamber.programs import ProgramChamber

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a chamber needs Linux")
X = np.arange(12.0).reshape(3, 4) + 1
SHORT = ProgramLimits(wall_s=30.0, cpu_s=1, memory_bytes=256 << 20)


@pytest.fixture(scope="module", params=TIERS, ids=[tier.name for tier in TIERS])
def chamber(request):
    yield from chamber_of(request.param)


def call(chamber, source, x=X, limits=SHORT, shape=None, seed=7):
    return chamber.run(Program(source, "denoise", {"X": x, "seed": seed}, shape or x.shape, seed, limits))


def refused(chamber, source, **more):
    with pytest.raises(SandboxError) as caught:
        call(chamber, source, **more)
    return caught.value.failure, f"{caught.value.limit} {caught.value}".strip()


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int64, np.uint8])
def test_arrays_and_values_go_in_and_an_array_comes_out(chamber, dtype):
    made = call(
        chamber,
        body(f"assert X.dtype == np.{dtype.__name__}\nreturn X * 2 + seed", "import numpy as np"),
        X.astype(dtype),
    )
    assert made.dtype == np.float64
    np.testing.assert_array_equal(made, X.astype(dtype) * 2.0 + 7)


def test_several_arrays_keep_their_places(chamber):
    arguments = {"a": np.ones((2, 3)), "word": "b", "b": np.full((5, 1000), 2.0), "n": 3}
    source = "def f(a, word, b, n):\n    return b * n + len(a) + len(word)\n"
    made = chamber.run(Program(source, "f", arguments, (5, 1000)))
    np.testing.assert_array_equal(made, np.full((5, 1000), 9.0))


def test_the_same_seed_draws_the_same_numbers(chamber):
    source = body("return X + np.random.rand(*X.shape) + random.random()", "import random\nimport numpy as np")
    first, again, other = (call(chamber, source, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_what_a_program_does_to_its_argument_stays_there(chamber):
    mine = X.copy()
    call(chamber, body("X[:] = 0\nreturn X"), mine)
    np.testing.assert_array_equal(mine, X)


def test_the_limit_of_cpu_time_is_told_by_its_own_signal():
    """A busy machine kills at a limit of 20 s a process for which it counts 18 s: SIGKILL alone would not say why."""
    code = (
        "import resource\nfrom resia.runtime.chamber import locks\nlocks.limit_use(locks.Budget(7, 1 << 30))\n"
        "print([resource.getrlimit(what) for what in (resource.RLIMIT_CPU, resource.RLIMIT_FSIZE)])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[(7, 8), (0, 0)]\n"


@pytest.mark.parametrize(
    ("source", "failure", "words"),
    [
        ("def denoise(:", "tool_error", "SyntaxError: invalid syntax"),
        ("import torch_of_its_own", "tool_error", "ModuleNotFoundError"),
        ("x = 1", "tool_error", "it defines no function denoise"),
        (body("raise KeyError('gene')"), "tool_error", "KeyError: 'gene' (line 3)"),
        (body("raise SystemExit"), "tool_error", "SystemExit"),
        (body("return denoise(X, seed)"), "tool_error", "RecursionError"),
        ("def denoise(X):\n return X", "tool_error", "TypeError: denoise() takes 1 positional argument"),
        (body("while True: pass"), "timeout", "cpu_limit used more than 1 s of CPU"),
        (
            body("return X.repeat(1 << 20).repeat(1 << 10)"),
            "sandbox_violation",
            "memory_limit MemoryError",
        ),
        (body("return [list(row) for row in X]"), "wrong", "it returned a list and not a numpy array"),
        (body("pass"), "wrong", "it returned nothing and not"),
        (body("return X[:2]"), "wrong", "it returned the shape (2, 4) and not (3, 4)"),
        (body("return X.astype(str)"), "wrong", "it returned an array of <U"),
        (body("return X + 0j"), "wrong", "it returned an array of complex128"),
        (body("return X.astype(object)"), "wrong", "it returned an array of object"),
    ],
)
def test_what_goes_wrong_is_named(chamber, source, failure, words):
    found, said = refused(chamber, source)
    assert found == failure
    assert said.startswith(words) or words in said
    np.testing.assert_array_equal(call(chamber, body("return X")), X)  # and the next one runs


def test_sleeping_is_counted_too(chamber):
    limits = ProgramLimits(wall_s=0.5, cpu_s=20, memory_bytes=256 << 20)
    found, said = refused(chamber, body("import time\ntime.sleep(100)"), limits=limits)
    assert (found, said) == ("timeout", "wall_limit took longer than 0.5 s")


HELD = """
def held(fd):
 try: os.fstat(fd)
 except OSError: return False
 return True
"""
# Each returns what it got hold of; on a tier that holds it gets hold of nothing.
ESCAPES = {
    "reads a file": "return open(BAIT).read()",
    "lists a folder": "return os.listdir('/')",
    "writes a file": "open(BAIT + '.new', 'w')",
    "opens a socket": "socket.socket()",
    "connects": "socket.create_connection(ADDRESS)",
    "forks": "os.fork()",
    "runs a program": "os.execv('/bin/true', ['true'])",
    "signals its parent": "os.kill(os.getppid(), 9)",
    "reads its parent's memory": "open(f'/proc/{os.getppid()}/mem', 'rb')",
    "reads its own memory": "open('/proc/self/mem', 'rb')",
    "reads the scorer": "import resia.domains.denoising.metrics as m\nreturn open(m.__file__).read()",
    "shrinks what it shares": "for fd in filter(held, range(3, 64)): os.ftruncate(fd, 0)",
}


@pytest.mark.parametrize("name", ESCAPES)
def test_there_is_no_way_out(chamber, name, tmp_path):
    bait = tmp_path / "bait"
    bait.write_text("secret")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        known = f"import os, socket\n{HELD}\nBAIT, ADDRESS = {str(bait)!r}, {listener.getsockname()!r}"
        found, said = refused(chamber, body(ESCAPES[name], known))
    expected = "tool_error" if name == "reads the scorer" else "sandbox_violation"
    assert found == expected, said
    assert os.listdir(tmp_path) == ["bait"]


def test_a_thread_cannot_be_started(chamber):
    lines = "import threading\nthreading.Thread(target=print).start()"
    assert refused(chamber, body(lines)) == ("tool_error", "RuntimeError: can't start new thread (line 4)")


def test_no_secret_of_the_environment_is_inside(chamber, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    found, said = refused(chamber, body("raise ValueError(sorted(os.environ))", "import os"))
    assert found == "tool_error"
    assert "KEY" not in said
    assert "HOME" in said


def test_a_program_finds_its_own_socket_and_memory_and_spoils_nothing_but_its_own_answer(chamber):
    before = f"import mmap, os\n{HELD}"
    lines = "X[:] = sum(map(held, range(3, 256)))\nreturn X"
    assert set(call(chamber, body(lines, before)).ravel()) == {2.0}
    spoil = """
for fd in filter(held, range(3, 256)):
 try:
  with mmap.mmap(fd, 4096) as memory: memory[:] = bytes([255]) * 4096
 except (OSError, ValueError): pass
return X
"""
    np.testing.assert_array_equal(call(chamber, body(spoil, before)), X)
    np.testing.assert_array_equal(call(chamber, body("return X")), X)


def test_a_forged_end_hands_over_nothing(chamber):
    """The numbers are what lies in the memory, which the parent filled with NaN, whatever the program says."""
    forge = """
said = json.dumps({"done": True}).encode()
for fd in range(3, 64):
 try: os.write(fd, struct.pack("!I", len(said)) + said)
 except OSError: pass
os._exit(0)
"""
    made = call(chamber, body(forge, "import json, os, struct"))
    assert np.isnan(made).all()


def test_a_server_that_has_died_is_replaced(chamber):
    process = chamber._forks._server._process
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    np.testing.assert_array_equal(call(chamber, body("return X")), X)


def test_a_server_that_dies_meanwhile_is_no_fault_of_the_program(chamber):
    """A broken runner is infrastructure: nobody may take it for a failure of the answer."""
    server = chamber._forks._server
    server._control.shutdown(socket.SHUT_RDWR)
    with pytest.raises(BoundaryError) as caught:
        call(chamber, body("return X"))
    assert not isinstance(caught.value, SandboxError)
    server._process.wait()
    np.testing.assert_array_equal(call(chamber, body("return X")), X)


def test_without_any_locks_programs_are_refused_unless_that_is_wanted():
    with pytest.raises(UsageError, match=r"no chamber for programs .*--unsafe-local"):
        ProgramChamber(libraries=(), tiers=[])
    with ProgramChamber(unsafe_local=True, libraries=(), tiers=[]) as open_one:
        assert open_one.tier == "unsafe-local: rlimits only"
        np.testing.assert_array_equal(call(open_one, body("return X")), X)
    with pytest.raises(BoundaryError, match="closed"):
        call(open_one, body("return X"))


def test_the_tier_is_said(chamber):
    assert "landlock+seccomp" in chamber.tier
    assert Path("/proc").exists()
