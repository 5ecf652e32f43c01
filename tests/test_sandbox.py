"""What generated code may do in the sandbox, and how it is told apart from the sandbox's own trouble."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from sandbox_tiers import sandbox_of

from resia.events.errors import BoundaryError, SandboxError, UsageError
from resia.runtime.sandbox import CONFINED, ENCLOSED, TIERS, UNSAFE, ProcessSandbox, SandboxLimits, probe


@pytest.fixture(scope="module", params=TIERS, ids=[tier.name.partition("+")[0] for tier in TIERS])
def tier(request):
    return request.param


@pytest.fixture(scope="module")
def sandbox(tier):
    with sandbox_of(tier, SandboxLimits(tool_calls=3)) as made:
        yield made


@pytest.fixture(scope="module")
def hasty(tier):
    with sandbox_of(tier, SandboxLimits(wall_s=0.3)) as made:
        yield made


def refused(sandbox, source, *args, entry="f", tools=None):
    with pytest.raises(SandboxError) as caught:
        sandbox.run(source, entry, args, tools)
    return caught.value.failure, str(caught.value)


def test_values_cross_as_json(sandbox):
    ran = sandbox.run("def f(a, b): return {'sum': a + b, 'pair': (a, None, 'é', 1.5)}", "f", [1, 2])
    assert ran.value == {"sum": 3, "pair": [1, None, "é", 1.5]}
    assert ran.calls == ()


def test_tiers_are_named_for_the_log(sandbox, tier):
    assert sandbox.tier == tier.name
    assert [tier.name for tier in TIERS] == ["bwrap+landlock+seccomp+rlimits", "landlock+seccomp+rlimits"]


def test_standard_library_is_there_loaded_or_not(sandbox):
    source = """
import colorsys, dataclasses, json, math, re, statistics
from datetime import datetime

@dataclasses.dataclass
class Point:
    x: "int"

def f():
    return [Point(1).x, math.gcd(6, 4), statistics.mean([1, 3]), re.findall("a+", "baab"), json.dumps([1]),
            datetime.strptime("2024-02-29", "%Y-%m-%d").day, colorsys.rgb_to_hsv(0, 0, 0)]
"""
    assert sandbox.run(source, "f", []).value == [1, 2, 2, ["aa"], "[1]", 29, [0, 0, 0]]


def test_tools_are_called_with_keywords_and_recorded(sandbox):
    ran = sandbox.run(
        "def f(n, tools): return tools.double(x=n) + tools.double(x=tools.one())",
        "f",
        [4],
        {"double": lambda arguments: 2 * arguments["x"], "one": lambda _: 1},
    )
    assert ran.value == 10
    assert ran.calls == (("double", {"x": 4}, 8), ("one", {}, 1), ("double", {"x": 1}, 2))


def test_value_error_of_a_tool_reaches_the_code(sandbox):
    def picky(arguments):
        raise ValueError(f"no {arguments['word']} here")

    source = """
def f(tools):
    try:
        tools.picky(word="ham")
    except ValueError as error:
        return str(error)
"""
    ran = sandbox.run(source, "f", [], {"picky": picky})
    assert ran.value == "no ham here"
    assert ran.calls == (("picky", {"word": "ham"}, {"error": "no ham here"}),)


def test_any_other_error_of_a_tool_passes_through_the_run(sandbox):
    def broken(arguments):
        raise BoundaryError("the model is away")

    with pytest.raises(BoundaryError, match="the model is away"):
        sandbox.run("def f(tools): return tools.broken()", "f", [], {"broken": broken})
    assert sandbox.run("def f(): return 1", "f", []).value == 1


def test_a_tool_may_use_the_sandbox_and_its_time_is_free(hasty):
    inner = {"stall": lambda _: refused(hasty, "def f():\n while True: pass")[0]}
    assert hasty.run("def f(tools): return tools.stall()", "f", [], inner).value == "timeout"


def test_tool_that_is_not_there(sandbox):
    failure, message = refused(sandbox, "def f(tools): return tools.rm(path='/')", tools={"ls": lambda _: []})
    assert failure == "tool_error"
    assert "no tool 'rm', only ls" in message


def test_tool_calls_are_limited(sandbox):
    failure, message = refused(sandbox, "def f(tools):\n while True: tools.a()", tools={"a": lambda _: 1})
    assert (failure, message) == ("tool_error", "call_limit: called tools more than 3 times")


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("def f(:", "SyntaxError"),
        ("def g(): return 1", "no function 'f'"),
        ("f = 3", "no function 'f'"),
        ("def f(): return {1, 2}", "returned no JSON: Object of type set"),
        ("def f(): return float('nan')", "returned no JSON"),
        ("def f():\n x = []\n x.append(x)\n return x", "returned no JSON"),
        ("def f():\n  return 1 // 0", "ZeroDivisionError: integer division or modulo by zero (line 2)"),
        ("def f(a): return a", "TypeError"),
        ("raise SystemExit(0)", "SystemExit"),
        ("import os\ndef f(): os._exit(0)", "ended without an answer (exit code 0)"),
        ("class E(Exception):\n def __str__(self): return 1 / 0\ndef f(): raise E", "(no message: ZeroDivisionError)"),
        ("import threading\ndef f(): threading.Thread(target=print).start()", "can't start new thread"),
    ],
)
def test_failures_of_the_code(sandbox, source, says):
    failure, message = refused(sandbox, source)
    assert failure == "tool_error"
    assert says in message


def test_messages_are_short_and_printable(sandbox):
    failure, message = refused(sandbox, "def f(): raise ValueError('\\x1b[2J\\n\\u202e' * 1000)")
    assert failure == "tool_error"
    assert len(message) == 300
    assert message.isprintable()


def test_nothing_leaks_from_run_to_run(sandbox):
    first = "import builtins, json\nkept = 1\nbuiltins.kept = 1\njson.kept = 1\ndef f(): return kept"
    assert sandbox.run(first, "f", []).value == 1
    second = (
        "import builtins, json\ndef f(): return [x for x in (globals(), vars(builtins), vars(json)) if 'kept' in x]"
    )
    assert sandbox.run(second, "f", []).value == []


def test_the_same_source_gives_the_same_value(sandbox, tier):
    source = "import random\ndef f(): return [random.random(), list({'a', 'b', 'c', 'd', 'e'})]"
    first = sandbox.run(source, "f", []).value
    with sandbox_of(tier) as other:
        assert other.run(source, "f", []).value == first == sandbox.run(source, "f", []).value


def test_threads_share_a_sandbox(sandbox):
    def ask(number):
        return sandbox.run(
            "def f(n, tools): return n + tools.same(n=n)", "f", [number], {"same": lambda a: a["n"]}
        ).value

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, range(24))) == [2 * number for number in range(24)]


def test_endless_loop_and_sleep_are_timeouts(hasty):
    assert refused(hasty, "def f():\n while True: pass") == ("timeout", "wall_limit: took longer than 0.3 s")
    assert refused(hasty, "import time\ndef f(): time.sleep(1000)") == ("timeout", "wall_limit: took longer than 0.3 s")
    assert hasty.run("def f(): return 1", "f", []).value == 1


@pytest.mark.parametrize("before", ["", "signal.signal(signal.SIGXCPU, signal.SIG_IGN)"])
def test_cpu_time_is_limited_even_if_its_signal_is_ignored(tier, before):
    with sandbox_of(tier, SandboxLimits(wall_s=60, cpu_s=1)) as short:
        source = f"import signal\ndef f():\n {before or 'pass'}\n while True: pass"
        assert refused(short, source) == ("timeout", "cpu_limit: used more than 1 s of CPU")


def family(pid):
    """`pid` and all that come from it, as descriptors that become readable when they have ended."""
    pids, found = [pid], []
    for one in pids:
        found.append(os.pidfd_open(one))
        with open(f"/proc/{one}/task/{one}/children") as children:
            pids += map(int, children.read().split())
    return found


def wait_for(descriptors):
    for fd in descriptors:
        try:
            assert select.select([fd], [], [], 20)[0]
        finally:
            os.close(fd)


def test_a_server_that_died_is_replaced(tier):
    with sandbox_of(tier) as mine:
        before = mine.server_pid
        ending = family(before)[:3]  # bwrap, the fork server, a guest
        os.kill(before, signal.SIGKILL)
        wait_for(ending)
        assert mine.run("def f(): return 1", "f", []).value == 1
        assert mine.server_pid != before


def test_a_server_that_dies_during_a_run_is_the_sandbox_s_fault(tier):
    with sandbox_of(tier) as mine:
        kill = {"kill": lambda _: os.kill(mine.server_pid, signal.SIGKILL)}
        with pytest.raises(BoundaryError, match="died during a run") as caught:
            mine.run("def f(tools):\n tools.kill()\n while True: pass", "f", [], kill)
        assert not isinstance(caught.value, SandboxError)
        assert mine.run("def f(): return 1", "f", []).value == 1


def test_closing_ends_the_server_and_further_runs(tier):
    with sandbox_of(tier) as mine:
        ending = family(mine.server_pid)
    wait_for(ending)
    mine.close()
    with pytest.raises(BoundaryError, match="closed"):
        mine.run("def f(): return 1", "f", [])


def test_the_server_ends_with_its_parent(sandbox, tier, tmp_path):
    program = (
        "import sys\nfrom resia.runtime.sandbox import ProcessSandbox, TIERS\n"
        f"print(ProcessSandbox(tiers=[TIERS[{TIERS.index(tier)}]]).server_pid, flush=True)\nsys.stdin.read()"
    )
    command, environment = [sys.executable, "-c", program], {"TMPDIR": str(tmp_path), "PATH": os.environ["PATH"]}
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        ending = family(int(parent.stdout.readline()))
        parent.kill()
    wait_for(ending)


def test_a_sandbox_outlives_the_thread_that_started_it(tier):
    with ThreadPoolExecutor(1) as pool:
        made = pool.submit(sandbox_of, tier).result()
    with made:
        before = made.server_pid
        assert made.run("def f(): return 1", "f", []).value == 1
        assert made.server_pid == before


def test_guests_wait_ahead_and_more_are_made_when_none_is_left(tier):
    with sandbox_of(tier, warm=2) as mine:
        inner = {"next": lambda arguments: nested(arguments["left"])}

        def nested(left):
            source = "def f(left, tools): return 1 + (tools.next(left=left - 1) if left else 0)"
            return mine.run(source, "f", [left], inner).value

        assert nested(6) == 7  # seven runs at once, of which two were ready
        assert mine.run("def f(): return 1", "f", []).value == 1


@pytest.mark.parametrize("tier", [*TIERS, UNSAFE], ids=lambda tier: tier.name.partition("+")[0])
@pytest.mark.parametrize(
    ("limit", "source", "failure"),
    [
        ("wall_limit", "import time\ndef f(tools): time.sleep(1000)", "timeout"),
        ("cpu_limit", "def f(tools):\n while True: pass", "timeout"),
        pytest.param(
            "memory_limit",
            "def f(tools): return len(b'x' * 2**30)",
            "sandbox_violation",
            marks=pytest.mark.skipif(sys.platform != "linux", reason="limits the address space"),
        ),
        ("output_limit", "def f(tools): return 'x' * 2_000_000", "tool_error"),
        ("output_limit", "def f(tools): return tools.a(x='x' * 2_000_000)", "tool_error"),
        ("call_limit", "def f(tools):\n while True: tools.a()", "tool_error"),
    ],
)
def test_every_limit_has_a_name(tier, limit, source, failure):
    wall_s = 2.5 if limit == "wall_limit" else 60.0
    with sandbox_of(tier, SandboxLimits(wall_s=wall_s, cpu_s=1)) as mine, pytest.raises(SandboxError) as caught:
        mine.run(source, "f", [], {"a": lambda _: 1})
    assert (caught.value.limit, caught.value.failure) == (limit, failure)
    assert str(caught.value).startswith(f"{limit}: ")


@pytest.mark.parametrize(
    ("body", "failure"),
    [
        ("open('/etc/passwd')", "sandbox_violation"),
        ("open('/no/such/file')", "sandbox_violation"),
        ("open('neither')", "sandbox_violation"),
        ("open('/etc/passwd/x')", "sandbox_violation"),
        ("open(os.path.dirname(os.__file__) + '/no-such-module.py')", "tool_error"),
        ("raise FileNotFoundError('no item of that name')", "tool_error"),
        ("raise FileNotFoundError(2, 'no item of that name')", "tool_error"),
    ],
)
def test_a_file_of_the_machine_is_a_violation_whether_it_is_there_or_not(sandbox, body, failure):
    assert refused(sandbox, f"import os\ndef f():\n {body}")[0] == failure


def test_a_failure_that_is_no_limit_names_none(sandbox):
    with pytest.raises(SandboxError) as caught:
        sandbox.run("def f(): return 1 // 0", "f", [])
    assert caught.value.limit == ""


def test_a_tier_that_does_not_hold_is_passed_over(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with sandbox_of(CONFINED):  # skips where there is none
        pass
    with ProcessSandbox(warm=1) as mine:
        assert mine.tier == CONFINED.name
        assert mine.passed_over == {ENCLOSED.name: "there is no program bwrap"}
    found = probe()
    assert (found.tier, found.passed_over) == (CONFINED, mine.passed_over)


REFUSES = """
import sys
sys.exit("bwrap: No permissions to create new namespace")
"""
ENCLOSES_NOTHING = """
import os, sys
words = sys.argv[sys.argv.index("--") + 1 :]
here = sys.argv[sys.argv.index("/inside") - 1]
os.execve(words[0], [here if word == "/inside" else word for word in words], {"PYTHONHASHSEED": "0"})
"""


@pytest.mark.parametrize(
    ("does", "says"),
    [
        (REFUSES, ["did not start: bwrap: No permissions to create new namespace"]),
        (ENCLOSES_NOTHING, ["a file of the machine", "a port of the machine", "processes of the machine"]),
    ],
    ids=["refuses", "encloses nothing"],
)
def test_a_bwrap_that_does_not_do_its_work_is_passed_over(monkeypatch, tmp_path, does, says):
    with sandbox_of(CONFINED):
        pass
    fake = tmp_path / "bwrap"
    fake.write_text(f"#!{sys.executable}{does}")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with ProcessSandbox(warm=1) as mine:
        assert mine.tier == CONFINED.name
        assert all(words in mine.passed_over[ENCLOSED.name] for words in says)


def test_limits_under_which_nothing_runs_are_refused():
    with pytest.raises(UsageError, match="memory_bytes is 1: give at least"):
        SandboxLimits(memory_bytes=1)
    with pytest.raises(UsageError, match="wall_s is 0"):
        SandboxLimits(wall_s=0)
