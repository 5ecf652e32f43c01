"""The locks themselves: what bubblewrap leaves to see, what seccomp answers, and what is left where one is missing."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from sandbox_tiers import sandbox_of

from resia.runtime.sandbox import ENCLOSED, NONE, TIERS, bubblewrap, probe, seccomp, server

SECRET = "RESIA_TEST_SECRET"


LOOK_AROUND = """
import json, os, socket, sys
files = [os.path.join(at, name) for at, _, names in os.walk("/", followlinks=False) for name in names]
try:
    open("/tmp/here", "w").close()
    written = True
except OSError:
    written = False
print(json.dumps({
    "files": files, "roots": os.listdir("/"), "written": written, "pid": os.getpid(), "parent": os.getppid(),
    "host": socket.gethostname(), "network": [name for _, name in socket.if_nameindex()],
    "environment": dict(os.environ), "path": sys.path,
}))
"""


def test_bubblewrap_shows_an_interpreter_and_nothing_else():
    """Looked at without the other locks, by the interpreter that the fork server would be."""
    with sandbox_of(ENCLOSED):
        pass
    words = server.program(enclosed=True)
    words = [*words[: words.index("-c")], "-c", LOOK_AROUND]
    done = subprocess.run(words, env={SECRET: "hunter2"}, capture_output=True, text=True, timeout=60, check=True)
    seen = json.loads(done.stdout)
    standard = tuple(seen["path"])
    others = [name for name in seen["files"] if not name.startswith((*standard, bubblewrap.INSIDE))]
    # The interpreter, shared libraries, and what the loader and the C library keep beside them.
    known = (".so", "bin/python", "LC_CTYPE", "gconv-modules.cache")
    assert [name for name in others if not any(part in name for part in known)] == []
    assert not [name for name in seen["files"] if "/site-packages/" in name or "/dist-packages/" in name]
    assert not {"proc", "dev", "home", "var", "sys", "run"} & set(seen["roots"])
    assert (seen["written"], seen["pid"], seen["parent"], seen["host"]) == (False, 1, 0, "sandbox")
    assert seen["network"] == ["lo"]
    assert SECRET not in seen["environment"]


def verdict(program, number, machine, protection=0):
    """The filter's answer, by interpreting it: the accumulator, and jumps that skip forward."""
    audit = seccomp.ARCHITECTURES[machine].audit
    data, accumulator, at = {0: number, 4: audit, 32: protection}, 0, 0
    while True:
        code, if_true, if_false, operand = program[at]
        at += 1
        match code:
            case 0x20:
                accumulator = data[operand]
            case 0x15:
                at += if_true if accumulator == operand else if_false
            case 0x35:
                at += if_true if accumulator >= operand else if_false
            case 0x45:
                at += if_true if accumulator & operand else if_false
            case 0x06:
                return operand


@pytest.mark.parametrize(
    ("machine", "allowed", "killed", "denied", "mapped"),
    [
        ("x86_64", {0, 1, 9, 10, 231, 257}, {101, 272, 321, 425, 2**30, 2**30 + 1}, {41, 42, 56, 57, 59, 62, 435}, 9),
        ("aarch64", {63, 64, 222, 226, 94, 56}, {117, 97, 280, 425}, {198, 203, 220, 221, 129, 435}, 222),
    ],
)
def test_filter_by_machine(machine, allowed, killed, denied, mapped):
    program = seccomp.instructions(seccomp.ARCHITECTURES[machine])
    assert {verdict(program, number, machine) for number in allowed} == {seccomp.ALLOW}
    assert {verdict(program, number, machine) for number in killed} == {seccomp.KILL}
    assert {verdict(program, number, machine) for number in denied} == {seccomp.DENY}
    assert verdict(program, mapped, machine, protection=7) == seccomp.DENY
    assert verdict(program, mapped, machine, protection=3) == seccomp.ALLOW
    other = ({"x86_64", "aarch64"} - {machine}).pop()
    assert verdict(program, 1, other) == seccomp.KILL


WITHOUT_LANDLOCK = """
import os
from resia.events.errors import UsageError
from resia.runtime.sandbox import NONE, ProcessSandbox, kernel, probe, seccomp

kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
seccomp.install(seccomp.assemble([(0x20, 0, 0, 0), (0x15, 0, 1, 444), (0x06, 0, 0, 0x50026), (0x06, 0, 0, 0x7fff0000)]))
assert probe().tier is NONE
try:
    ProcessSandbox()
except UsageError as error:
    print(error)
with ProcessSandbox(unsafe_local=True) as sandbox:
    print(sandbox.tier)
    print(sandbox.run("import os\\ndef f(n): return [n, dict(os.environ), os.path.exists('/')]", "f", [7]).value)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="takes Landlock away with seccomp")
def test_without_landlock_it_refuses_unless_told():
    done = subprocess.run([sys.executable, "-c", WITHOUT_LANDLOCK], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    refusal, tier, value = done.stdout.splitlines()
    assert "landlock_create_ruleset: Function not implemented" in refusal
    assert refusal.endswith("--unsafe-local")
    assert tier == "unsafe-local: rlimits only"
    assert value == "[7, {}, True]"


def test_the_strongest_tier_that_holds_is_found():
    found = probe()
    if found.tier is NONE:
        pytest.skip(f"no tier holds here: {found.passed_over}")
    assert list(found.passed_over) == [tier.name for tier in TIERS[: TIERS.index(found.tier)]]
