"""What generated code may do in the sandbox, and how it is told apart from the sandbox's own trouble."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from resia.events.errors import BoundaryError, SandboxError, UsageError
from resia.runtime.sandbox import CONFINED, ProcessSandbox, SandboxLimits


@pytest.fixture(scope="module")
def sandbox():
    try:
        made = ProcessSandbox(SandboxLimits(tool_calls=3))
    except UsageError as error:
        pytest.skip(str(error))
    with made:
        yield made


@pytest.fixture(scope="module")
def hasty():
    try:
        made = ProcessSandbox(SandboxLimits(wall_s=0.3))
    except UsageError as error:
        pytest.skip(str(error))
    with made:
        yield made


def refused(sandbox, source, *args, entry="f", tools=None):
    with pytest.raises(SandboxError) as caught:
        sandbox.run(source, entry, args, tools)
    return caught.value.failure, str(caught.value)


def test_values_cross_as_json(sandbox):
    ran = sandbox.run("def f(a, b): return {'sum': a + b, 'pair': (a, None, 'é', 1.5)}", "f", [1, 2])
    assert ran.value == {"sum": 3, "pair": [1, None, "é", 1.5]}
    assert ran.calls == ()
    assert sandbox.tier == CONFINED.name == "landlock+seccomp+rlimits"


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
    assert (failure, message) == ("tool_error", "called tools more than 3 times")


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


def test_the_same_source_gives_the_same_value(sandbox):
    source = "import random\ndef f(): return [random.random(), list({'a', 'b', 'c', 'd', 'e'})]"
    first = sandbox.run(source, "f", []).value
    with ProcessSandbox() as other:
        assert other.run(source, "f", []).value == first == sandbox.run(source, "f", []).value


def test_threads_share_a_sandbox(sandbox):
    def ask(number):
        return sandbox.run(
            "def f(n, tools): return n + tools.same(n=n)", "f", [number], {"same": lambda a: a["n"]}
        ).value

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, range(24))) == [2 * number for number in range(24)]


def test_endless_loop_and_sleep_are_timeouts(hasty):
    assert refused(hasty, "def f():\n while True: pass") == ("timeout", "took longer than 0.3 s")
    assert refused(hasty, "import time\ndef f(): time.sleep(1000)") == ("timeout", "took longer than 0.3 s")
    assert hasty.run("def f(): return 1", "f", []).value == 1


@pytest.mark.parametrize("before", ["", "signal.signal(signal.SIGXCPU, signal.SIG_IGN)"])
def test_cpu_time_is_limited_even_if_its_signal_is_ignored(sandbox, before):
    with ProcessSandbox(SandboxLimits(wall_s=60, cpu_s=1)) as short:
        source = f"import signal\ndef f():\n {before or 'pass'}\n while True: pass"
        assert refused(short, source) == ("timeout", "used more than 1 s of CPU")


def test_a_server_that_died_is_replaced(sandbox):
    with ProcessSandbox() as mine:
        before = mine.server_pid
        os.kill(before, signal.SIGKILL)
        assert mine.run("def f(): return 1", "f", []).value == 1
        assert mine.server_pid != before


def test_a_server_that_dies_during_a_run_is_the_sandbox_s_fault(sandbox):
    with ProcessSandbox() as mine:
        kill = {"kill": lambda _: os.kill(mine.server_pid, signal.SIGKILL)}
        with pytest.raises(BoundaryError, match="died during a run") as caught:
            mine.run("def f(tools):\n tools.kill()\n while True: pass", "f", [], kill)
        assert not isinstance(caught.value, SandboxError)
        assert mine.run("def f(): return 1", "f", []).value == 1


def test_closing_ends_the_server_and_further_runs(sandbox):
    with ProcessSandbox() as mine:
        pid = mine.server_pid
    mine.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with pytest.raises(BoundaryError, match="closed"):
        mine.run("def f(): return 1", "f", [])


def test_the_server_ends_with_its_parent(sandbox, tmp_path):
    program = (
        "import sys\nfrom resia.runtime.sandbox import ProcessSandbox\n"
        "print(ProcessSandbox().server_pid, flush=True)\nsys.stdin.read()"
    )
    command, environment = [sys.executable, "-c", program], {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        server = os.pidfd_open(int(parent.stdout.readline()))
        parent.kill()
    try:
        assert select.select([server], [], [], 20)[0]
    finally:
        os.close(server)


def test_limits_under_which_nothing_runs_are_refused():
    with pytest.raises(UsageError, match="memory_bytes is 1: give at least"):
        SandboxLimits(memory_bytes=1)
    with pytest.raises(UsageError, match="wall_s is 0"):
        SandboxLimits(wall_s=0)
