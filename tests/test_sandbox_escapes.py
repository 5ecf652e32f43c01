"""What generated code must not be able to do. Each attempt would succeed in an ordinary process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from resia.events.errors import SandboxError, UsageError
from resia.runtime.sandbox import ProcessSandbox, SandboxLimits, probe, seccomp

SECRET = "RESIA_TEST_SECRET"


@pytest.fixture(scope="module")
def sandbox():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SECRET, "hunter2")
        try:
            made = ProcessSandbox(SandboxLimits(memory_bytes=256 * 2**20))
        except UsageError as error:
            pytest.skip(str(error))
        with made:
            yield made


def refused(sandbox, body, *args, imports="os"):
    source = f"import {imports}\ndef f(*args):\n " + body.replace("\n", "\n ")
    with pytest.raises(SandboxError) as caught:
        sandbox.run(source, "f", args)
    return caught.value.failure, str(caught.value)


def returned(sandbox, body, *args, imports="os"):
    return sandbox.run(f"import {imports}\ndef f(*args):\n " + body.replace("\n", "\n "), "f", args).value


OPEN_DESCRIPTORS = """
found = []
for fd in range(32):
    try:
        os.fstat(fd)
    except OSError:
        continue
    found.append(fd)
"""
WRITE_TO_THE_LINE = OPEN_DESCRIPTORS + "while data: data = data[os.write(found[3], data):]\nos._exit(0)"


def test_files_cannot_be_read_or_listed(sandbox, tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("hunter2")
    failure, message = refused(sandbox, "return open(args[0]).read()", str(secret))
    assert failure == "sandbox_violation"
    assert "PermissionError" in message
    assert refused(sandbox, "return os.listdir(args[0])", str(tmp_path))[0] == "sandbox_violation"


def test_installed_packages_are_no_part_of_the_standard_library(sandbox):
    body = "return sorted(os.listdir(os.path.dirname(os.__file__)))"
    assert "json" in returned(sandbox, body)
    body = "return open(os.path.join(os.path.dirname(os.__file__), 'site-packages', 'README.txt')).read()"
    assert refused(sandbox, body)[0] == "sandbox_violation"


@pytest.mark.parametrize(
    "body",
    [
        "open(args[0] + '/new', 'w')",
        "os.mkdir(args[0] + '/new')",
        "os.unlink(args[0] + '/old')",
        "os.truncate(args[0] + '/old', 0)",
        "os.chmod(args[0] + '/old', 0o777)",
        "os.utime(args[0] + '/old')",
        "os.rename(args[0] + '/old', args[0] + '/new')",
        "os.symlink('/', args[0] + '/new')",
        "os.chdir('/')",
        "open('here', 'w')",
    ],
)
def test_nothing_can_be_written(sandbox, tmp_path, body):
    old = tmp_path / "old"
    old.write_text("kept")
    before = old.stat()
    failure, message = refused(sandbox, body, str(tmp_path))
    assert failure == "sandbox_violation"
    assert "PermissionError" in message
    assert os.listdir(tmp_path) == ["old"]
    assert (old.read_text(), old.stat().st_mode, old.stat().st_mtime_ns) == (
        "kept",
        before.st_mode,
        before.st_mtime_ns,
    )


def test_environment_holds_no_secret(sandbox):
    assert SECRET in os.environ
    assert returned(sandbox, "return dict(os.environ)") == {}
    assert refused(sandbox, "return open('/proc/self/environ').read()")[0] == "sandbox_violation"


def test_one_descriptor_is_inherited(sandbox):
    found = returned(sandbox, OPEN_DESCRIPTORS + "return found")
    assert found[:3] == [0, 1, 2]
    assert len(found) == 4


@pytest.mark.parametrize("target", ["/proc/{}/mem", "/proc/{}/environ", "/proc/{}/maps", "/proc/self/mem"])
def test_no_memory_is_in_reach(sandbox, target):
    for pid in (os.getpid(), sandbox.server_pid):
        assert refused(sandbox, "open(args[0], 'rb').read(1)", target.format(pid))[0] == "sandbox_violation"


def test_no_network(sandbox):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = list(listener.getsockname())
        assert (
            refused(sandbox, "socket.create_connection(args[0])", address, imports="socket")[0] == "sandbox_violation"
        )
    for family in ("AF_INET", "AF_INET6", "AF_UNIX", "AF_NETLINK"):
        assert refused(sandbox, f"socket.socket(socket.{family})", imports="socket")[0] == "sandbox_violation"
    assert refused(sandbox, "socket.socketpair()", imports="socket")[0] == "sandbox_violation"


@pytest.mark.parametrize(
    "body",
    [
        "while True: os.fork()",
        "os.execv('/bin/sh', ['sh', '-c', 'true'])",
        "os.system('true') and os.fork()",
        "os.posix_spawn('/bin/sh', ['sh'], {})",
        "os.kill(os.getppid(), 9)",
        "os.kill(-1, 9)",
        "os.killpg(0, 9)",
        "os.setsid()",
        "os.setpgid(0, args[0])",
        "os.setpriority(os.PRIO_PROCESS, os.getppid(), 19)",
    ],
)
def test_no_other_process_can_be_made_or_touched(sandbox, body):
    server = sandbox.server_pid
    assert refused(sandbox, body, os.getpid())[0] == "sandbox_violation"
    assert returned(sandbox, "return 1") == 1
    assert sandbox.server_pid == server


def test_limits_cannot_be_raised(sandbox):
    body = "resource.setrlimit(resource.RLIMIT_CPU, (99, 99))"
    with pytest.raises(SandboxError) as caught:
        returned(sandbox, body, imports="resource")
    # Where `resource` is an extension module, it cannot even be loaded.
    assert caught.value.failure in {"sandbox_violation", "tool_error"}


def test_raw_system_calls_are_denied(sandbox):
    body = (
        "libc = ctypes.CDLL(None, use_errno=True)\nlibc.mmap.restype = ctypes.c_ssize_t\n"
        "calls = [lambda: libc.socket(2, 1, 0), lambda: libc.fork(), lambda: libc.kill(1, 0),\n"
        "         lambda: libc.prctl(4, 1, 0, 0, 0), lambda: libc.mmap(None, 4096, 7, 0x22, -1, 0)]\n"
        "return [[call(), ctypes.get_errno()] for call in calls]"
    )
    assert returned(sandbox, body, imports="ctypes") == [[-1, 1]] * 5


@pytest.mark.parametrize("call", ["ptrace(0, 0, 0, 0)", "unshare(0x10000000)", "process_vm_readv(1, 0, 0, 0, 0, 0)"])
def test_system_calls_that_no_honest_code_makes_kill(sandbox, call):
    failure, message = refused(sandbox, f"ctypes.CDLL(None).{call}", imports="ctypes")
    assert (failure, message) == ("sandbox_violation", "killed by SIGSYS")


def test_memory_is_limited(sandbox):
    failure, message = refused(sandbox, "kept = []\nwhile True: kept.append(bytearray(2**24))")
    assert (failure, message) == ("sandbox_violation", "needs more than 256 MiB of memory")
    assert refused(sandbox, "return len(b'x' * 2**30)")[0] == "sandbox_violation"


def test_a_huge_answer_is_not_taken(sandbox):
    failure, message = refused(sandbox, "return 'x' * 20_000_000")
    assert failure == "tool_error"
    assert "20000033 bytes of JSON, more than 1048576" in message
    assert refused(sandbox, "return 'x' * 100_000_000")[0] in {"tool_error", "sandbox_violation"}


def test_printing_goes_nowhere(sandbox, capfd):
    body = "for _ in range(100): print('x' * 1_000_000)\nprint('y', file=sys.stderr)\nreturn sys.stdin.read()"
    assert returned(sandbox, body, imports="sys") == ""
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "sent",
    [
        b"\xff\xff\xff\xff",
        b"\x00\x00\x00\x03\x80\x04N",
        b"\x00\x00\x00\x02{}",
        b'\x00\x00\x00\x10{"type":"ready"}',
        b"\x00\x0f\x00\x00" + b"[" * 0xF0000,
    ],
    ids=["too long", "pickle", "no type", "ready twice", "deep"],
)
def test_a_forged_message_is_the_code_s_own_failure(sandbox, sent):
    body = f"data = {sent[:32]!r} + b'[' * {max(0, len(sent) - 32)}\n" + WRITE_TO_THE_LINE
    failure, message = refused(sandbox, body)
    assert failure == "tool_error"
    assert message.startswith("sent ")


def test_a_forged_tool_call_reaches_only_the_tools(sandbox):
    body = "args[0]._names.append('secret')\nreturn args[0].secret()"
    with pytest.raises(SandboxError) as caught:
        sandbox.run(f"def f(*args):\n {body.replace(chr(10), chr(10) + ' ')}", "f", [], {"open": lambda _: 1})
    assert "no tool 'secret'" in str(caught.value)


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
assert probe() is NONE
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


def test_probe_tries_and_says_what_holds(sandbox):
    assert probe() == sandbox.details
