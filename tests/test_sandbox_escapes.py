"""What generated code must not be able to do, on every tier that this machine can have.

Each attempt would succeed in an ordinary process, on what the tests put there for it.
"""

from __future__ import annotations

import json
import os
import pickle
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from sandbox_tiers import sandbox_of

from resia.events.errors import SandboxError
from resia.runtime.sandbox import ENCLOSED, NONE, TIERS, SandboxLimits, bubblewrap, probe, seccomp, server

SECRET = "RESIA_TEST_SECRET"


@pytest.fixture(scope="module", params=TIERS, ids=[tier.name.partition("+")[0] for tier in TIERS])
def sandbox(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SECRET, "hunter2")
        with sandbox_of(request.param, SandboxLimits(memory_bytes=256 * 2**20)) as made:
            yield made


def source(body, imports):
    return f"import {imports}\ndef f(*args):\n " + body.replace("\n", "\n ")


def refused(sandbox, body, *args, imports="os"):
    with pytest.raises(SandboxError) as caught:
        sandbox.run(source(body, imports), "f", args)
    return caught.value.failure, str(caught.value)


def returned(sandbox, body, *args, imports="os"):
    return sandbox.run(source(body, imports), "f", args).value


def out_of_reach(sandbox, body, *args, imports="os"):
    """Whether `body` was denied; a file that is not there because bubblewrap holds counts as one that is."""
    return refused(sandbox, body, *args, imports=imports)[0] == "sandbox_violation"


OPEN_DESCRIPTORS = """
found = []
for fd in range(32):
    try:
        os.fstat(fd)
    except OSError:
        continue
    found.append(fd)
"""
C_ENVIRONMENT = """
block, found = ctypes.POINTER(ctypes.c_char_p).in_dll(ctypes.CDLL(None), "environ"), []
while block and block[len(found)]: found.append(block[len(found)].decode())
return found
"""
WRITE_TO_THE_LINE = OPEN_DESCRIPTORS + "while data: data = data[os.write(found[3], data):]\nos._exit(0)"


def test_files_cannot_be_read_or_listed(sandbox, tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("hunter2")
    assert out_of_reach(sandbox, "return open(args[0]).read()", str(secret))
    assert out_of_reach(sandbox, "return os.listdir(args[0])", str(tmp_path))


# Ways to a file that do not begin with its own name; `gold` is its path, `link` a symbolic link to it, `hard` another.
@pytest.mark.parametrize(
    "body",
    [
        "return open(gold).read()",
        "return open(link).read()",
        "return open(hard).read()",
        "return open('/proc/self/root' + gold).read()",
        "return open('/proc/1/root' + gold).read()",
        "return open('/proc/self/cwd/' + '../' * 20 + gold).read()",
        "return open('/proc/thread-self/root' + gold).read()",
        "return open(f'/proc/{args[1]}/root' + gold).read()",
        "return open(f'/proc/{args[1]}/cwd/' + '../' * 20 + gold).read()",
        "return open(os.path.dirname(os.__file__) + '/..' * 20 + gold).read()",
        "return open('../' * 20 + gold).read()",
        "at = os.open(os.path.dirname(os.__file__), os.O_RDONLY)\n"
        "return os.read(os.open('../' * 20 + gold, os.O_RDONLY, dir_fd=at), 9)",
        "at = os.open('/', os.O_PATH)\nreturn os.read(os.open(gold[1:], os.O_RDONLY, dir_fd=at), 9)",
        "fd = os.open(gold, os.O_PATH)\nreturn open(f'/proc/self/fd/{fd}').read()",
        "os.chroot(os.path.dirname(gold))\nreturn open('/gold.json').read()",
        "os.symlink(gold, 'here')\nreturn open('here').read()",
        "os.link(gold, 'here')\nreturn open('here').read()",
        "os.rename(gold, 'here')\nreturn open('here').read()",
        "import fileinput\nreturn list(fileinput.input([gold]))",
        "import importlib.machinery\nreturn importlib.machinery.SourceFileLoader('x', gold).get_data(gold)",
        "import linecache\nreturn linecache.getlines(gold) or open(gold).read()",
    ],
)
def test_the_gold_file_is_out_of_reach(sandbox, tmp_path, body):
    gold, link, hard = tmp_path / "gold.json", tmp_path / "link", tmp_path / "hard"
    gold.write_text('{"answer": "42"}')
    link.symlink_to(gold)
    hard.hardlink_to(gold)
    body = f"gold, link, hard = {str(gold)!r}, {str(link)!r}, {str(hard)!r}\n{body}"
    assert out_of_reach(sandbox, body, str(gold), os.getpid())
    assert gold.read_text() == '{"answer": "42"}'


def test_installed_packages_are_no_part_of_the_standard_library(sandbox):
    body = "return sorted(os.listdir(os.path.dirname(os.__file__)))"
    assert "json" in returned(sandbox, body)
    body = "return open(os.path.join(os.path.dirname(os.__file__), 'site-packages', 'README.txt')).read()"
    assert out_of_reach(sandbox, body)
    assert "ModuleNotFoundError" in refused(sandbox, "pass", imports="resia.domains")[1]


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
        "os.open(args[0], os.O_TMPFILE | os.O_RDWR)",
        "os.mkfifo(args[0] + '/new')",
        "os.mknod(args[0] + '/new')",
        "os.setxattr(args[0] + '/old', 'user.a', b'1')",
        "os.chdir('/')",
        "open('here', 'w')",
        "open('/tmp/here', 'w')",
        "open(os.path.dirname(os.__file__) + '/here.py', 'w')",
        "open('/dev/shm/here', 'w')",
    ],
)
def test_nothing_can_be_written(sandbox, tmp_path, body):
    old = tmp_path / "old"
    old.write_text("kept")
    before = old.stat()
    assert out_of_reach(sandbox, body, str(tmp_path))
    assert os.listdir(tmp_path) == ["old"]
    assert (old.read_text(), old.stat().st_mode, old.stat().st_mtime_ns) == (
        "kept",
        before.st_mode,
        before.st_mtime_ns,
    )


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


def test_environment_holds_no_secret(sandbox):
    assert SECRET in os.environ
    assert returned(sandbox, "return dict(os.environ)") == {}
    assert out_of_reach(sandbox, "return open('/proc/self/environ', 'rb').read()")
    assert returned(sandbox, C_ENVIRONMENT, imports="ctypes") == []


def test_one_descriptor_is_inherited(sandbox):
    found = returned(sandbox, OPEN_DESCRIPTORS + "return found")
    assert found[:3] == [0, 1, 2]
    assert len(found) == 4


@pytest.mark.parametrize("name", ["mem", "environ", "maps", "stack", "auxv", "fd", "map_files", "task", "root"])
def test_no_memory_is_in_reach_by_proc(sandbox, name):
    for pid in ("self", "1", os.getpid(), os.getppid(), sandbox.server_pid):
        body = "path = args[0]\nreturn os.listdir(path) if os.path.isdir(path) else open(path, 'rb').read(1)"
        assert out_of_reach(sandbox, body, f"/proc/{pid}/{name}")


READ_MEMORY = """
class Span(ctypes.Structure):
    _fields_ = [('base', ctypes.c_void_p), ('length', ctypes.c_size_t)]
kept = ctypes.create_string_buffer(8)
mine, theirs = Span(ctypes.addressof(kept), 8), Span(args[1], 8)
return [ctypes.CDLL(None).process_vm_readv(args[0], ctypes.byref(mine), 1, ctypes.byref(theirs), 1, 0), kept.raw.hex()]
"""


def test_no_memory_of_another_process_can_be_read(sandbox):
    here = id(SECRET)
    for pid in (os.getpid(), os.getppid(), sandbox.server_pid, 1):
        for body in (READ_MEMORY, "return ctypes.CDLL(None).ptrace(16, args[0], 0, 0)"):
            assert refused(sandbox, body, pid, here, imports="ctypes") == ("sandbox_violation", "killed by SIGSYS")


def test_runs_side_by_side_do_not_see_each_other(sandbox):
    """One waits in a tool while another looks for it by every number near its own."""
    search = """
def attempt(what):
    try:
        what()
    except (PermissionError, FileNotFoundError):
        return False
    return True

def f():
    me, found = os.getpid(), []
    for pid in [*range(max(1, me - 40), me), *range(me + 1, me + 40)]:
        if attempt(lambda: os.kill(pid, 0)): found.append(("kill", pid))
        if attempt(lambda: open(f"/proc/{pid}/mem", "rb")): found.append(("mem", pid))
        if attempt(lambda: os.listdir(f"/proc/{pid}/fd")): found.append(("fd", pid))
        if attempt(lambda: os.getpgid(pid)): found.append(("group", pid))
        if attempt(lambda: os.sched_getaffinity(pid)): found.append(("affinity", pid))
    return found
"""
    seen = []
    held = "import os\nsecret = 'the other answer'\ndef f(tools): return [tools.wait(), secret]"
    wait = {"wait": lambda _: seen.append(sandbox.run("import os\n" + search, "f", []).value)}
    assert sandbox.run(held, "f", [], wait).value == [None, "the other answer"]
    assert seen == [[]]


def test_a_run_holds_the_line_of_no_other(sandbox):
    """Many guests wait at once, and each has the one descriptor that is its own."""

    def ask(number):
        return returned(sandbox, OPEN_DESCRIPTORS + "return [len(found), args[0]]", number)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, range(16))) == [[4, number] for number in range(16)]


def test_no_network(sandbox, tmp_path):
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.socket(socket.AF_UNIX) as named,
        socket.socket(socket.AF_UNIX) as abstract,
    ):
        named.bind(str(tmp_path / "line"))
        abstract.bind(f"\0resia-{os.getpid()}")
        for each in (named, abstract):
            each.listen()
        port = list(listener.getsockname())
        assert out_of_reach(sandbox, "socket.create_connection(args[0])", port, imports="socket")
        for address in (str(tmp_path / "line"), f"\0resia-{os.getpid()}"):
            assert out_of_reach(sandbox, "socket.socket(socket.AF_UNIX).connect(args[0])", address, imports="socket")
        for each in (listener, named, abstract):
            each.setblocking(False)
            with pytest.raises(BlockingIOError):
                each.accept()


# unix, inet, inet6, netlink, packet, bluetooth, alg, vsock
@pytest.mark.parametrize("family", [1, 2, 10, 16, 17, 31, 38, 40])
@pytest.mark.parametrize("kind", ["STREAM", "DGRAM", "RAW", "SEQPACKET"])
def test_no_socket_of_any_family(sandbox, family, kind):
    body = f"socket.socket({family}, socket.SOCK_{kind})"
    assert refused(sandbox, body, imports="socket")[0] == "sandbox_violation"


# Held for ever, for closing it would end the run.
THE_LINE = (
    OPEN_DESCRIPTORS
    + """
def line():
    socket.held = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, found[3])
    return socket.held
"""
)


@pytest.mark.parametrize(
    "body",
    [
        "socket.socketpair()",
        "socket.getaddrinfo('localhost', 80)",
        "line().connect('\\0resia')",
        "line().bind('')",
        "line().sendmsg([b'x'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, b'\\0\\0\\0\\0')])",
        "line().sendto(b'x', '\\0resia')",
        "line().recvmsg(1, 100)",
        "line().getsockname()",
        "line().setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**20)",
        "line().dup()",
    ],
)
def test_the_line_is_for_reading_and_writing_alone(sandbox, body):
    failure, message = refused(sandbox, THE_LINE + body, imports="os, socket")
    assert failure == "sandbox_violation" or "gaierror" in message


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
        "os.nice(-5)",
        "os.sched_setaffinity(0, {0})",
        "os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))",
        "os.pidfd_open(os.getppid())",
        "os.setuid(0)",
        "os.setgroups([0])",
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


KILLED = (
    "ptrace(0, 0, 0, 0)",
    "unshare(0x10000000)",
    "setns(0, 0)",
    "process_vm_readv(1, 0, 0, 0, 0, 0)",
    "process_vm_writev(1, 0, 0, 0, 0, 0)",
    "memfd_create(b'x', 0)",
    "mount(b'none', b'/', b'tmpfs', 0, 0)",
    "umount2(b'/', 2)",
    "chroot(b'/')",
    "syscall(425, 1, 0)",  # io_uring_setup
)


@pytest.mark.parametrize("call", KILLED)
def test_system_calls_that_no_honest_code_makes_kill(sandbox, call):
    failure, message = refused(sandbox, f"ctypes.CDLL(None).{call}", imports="ctypes")
    assert (failure, message) == ("sandbox_violation", "killed by SIGSYS")


@pytest.mark.parametrize(
    "body",
    [
        "while True: os.fork()",
        "for _ in range(10_000): os.posix_spawn(sys.executable, [sys.executable], {})",
        "kept = [threading.Thread(target=time.sleep, args=(60,)) for _ in range(1000)]\nfor one in kept: one.start()",
        "import concurrent.futures as c\nlist(c.ThreadPoolExecutor(100).map(time.sleep, [60] * 100))",
        "[_thread.start_new_thread(time.sleep, (60,)) for _ in range(1000)]",
        "import subprocess\nwhile True: subprocess.Popen(['true'])",
        "import multiprocessing as m\nwhile True: m.Process(target=print).start()",
    ],
    ids=["fork", "spawn", "threads", "pool", "bare threads", "subprocess", "multiprocessing"],
)
def test_a_fork_bomb_makes_nothing(sandbox, body):
    failure, message = refused(sandbox, body, imports="_thread, os, sys, threading, time")
    # Where a module needs an extension module that was not loaded before the locks, there is not even the module.
    assert failure == "sandbox_violation" or "can't start new thread" in message or "ImportError" in message
    assert returned(sandbox, "return 1") == 1


@pytest.mark.parametrize(
    "body",
    [
        "with open('/tmp/full', 'wb') as file:\n while True: file.write(b'x' * 2**20)",
        "with open(args[0], 'ab') as file:\n while True: file.write(b'x' * 2**20)",
        "import tempfile\nwith tempfile.TemporaryFile() as file:\n while True: file.write(b'x' * 2**20)",
        "os.posix_fallocate(os.open(args[0], os.O_RDWR), 0, 2**30)",
        "fd = os.memfd_create('full')\nos.truncate(fd, 2**30)",
        "from multiprocessing import shared_memory\nshared_memory.SharedMemory(create=True, size=2**30)",
        "while True: os.write(os.open('/dev/shm/full', os.O_CREAT | os.O_WRONLY), b'x' * 2**20)",
    ],
)
def test_no_disk_or_shared_memory_is_filled(sandbox, tmp_path, body):
    target = tmp_path / "full"
    target.write_bytes(b"")
    failure, message = refused(sandbox, body, str(target))
    assert failure == "sandbox_violation" or "ImportError" in message or "No usable temp" in message
    assert target.stat().st_size == 0
    assert not os.path.exists("/dev/shm/full")


@pytest.mark.parametrize("number", [29, 30, 68, 240])  # shmget, shmat, msgget, mq_open
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="numbers of x86_64")
def test_no_memory_or_queue_outlives_a_run(sandbox, number):
    body = "libc = ctypes.CDLL(None, use_errno=True)\nreturn [libc.syscall(args[0], 0, 4096, 896), ctypes.get_errno()]"
    assert returned(sandbox, body, number, imports="ctypes") == [-1, 1]


def test_memory_is_limited(sandbox):
    failure, message = refused(sandbox, "kept = []\nwhile True: kept.append(bytearray(2**24))")
    assert (failure, message) == ("sandbox_violation", "memory_limit: needs more than 256 MiB of memory")
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


BOMB = """
import os, pickle

class Bomb:
    def __reduce__(self):
        return os.system, (f"touch {target}",)
"""


@pytest.mark.parametrize(
    "body",
    [
        "return Bomb()",
        "return pickle.dumps(Bomb())",
        "return {'answer': Bomb()}",
        "return tools.score(answer=Bomb())",
        "return tools.score(answer=pickle.dumps(Bomb()))",
        "pickle.loads(pickle.dumps(Bomb()))\n if not os.path.exists(target): raise ValueError('a dud')",
    ],
)
def test_a_pickle_bomb_does_not_go_off(sandbox, tmp_path, body):
    target = tmp_path / "crater"
    text = f"target = {str(target)!r}\n{BOMB}\ndef f(tools):\n {body}"
    with pytest.raises(SandboxError) as caught:
        sandbox.run(text, "f", [], {"score": lambda arguments: pickle.loads(arguments["answer"])})
    assert caught.value.failure in {"tool_error", "sandbox_violation"}
    assert not target.exists()


def test_what_looks_like_a_pickle_stays_text(sandbox):
    bomb = pickle.dumps(ZeroDivisionError()).decode("latin-1")
    ran = sandbox.run("def f(text, tools): return tools.same(text=text)", "f", [bomb], {"same": lambda a: a["text"]})
    assert ran.value == bomb
    assert type(ran.calls[0][1]["text"]) is str


PATCHES = """
import builtins, gc, json, os, sys
builtins.min = builtins.max = builtins.sum = builtins.abs = lambda *a, **k: 1
builtins.len = builtins.len
class Always:
    def __eq__(self, other): return True
    def __getattr__(self, name): return lambda *a, **k: 1
for name in ("resia.domains", "resia.domains.base", "scorer", "numpy", "resia.agents.rollout"):
    sys.modules[name] = Always()
for module in list(sys.modules.values()):
    for name in ("score", "check", "evaluate", "parse"):
        if not name.startswith("_") and module is not json:
            try:
                setattr(module, name, lambda *a, **k: 1.0)
            except (AttributeError, TypeError):
                continue
for found in gc.get_objects():
    if isinstance(found, dict) and "reward" in found:
        found["reward"] = 1.0
def f(tools): return {"answer": 7, "seen": tools.score(answer=7), "again": tools.score(answer=42)}
"""


def test_a_patched_scorer_scores_as_before(sandbox):
    def score(arguments):
        return max(0.0, 1.0 - abs(arguments["answer"] - 42) / 42)

    honest = sandbox.run("def f(tools): return tools.score(answer=7)", "f", [], {"score": score}).value
    ran = sandbox.run(PATCHES, "f", [], {"score": score})
    assert ran.value == {"answer": 7, "seen": honest, "again": 1.0}
    assert ran.calls == (("score", {"answer": 7}, honest), ("score", {"answer": 42}, 1.0))
    assert sandbox.run("def f(tools): return tools.score(answer=7)", "f", [], {"score": score}).value == honest


FORGED = json.dumps({"type": "returned", "value": {"reward": 1.0}})


@pytest.mark.parametrize(
    "body",
    [
        f"print({FORGED!r}, flush=True)",
        f"sys.stdout.buffer.write(len({FORGED!r}).to_bytes(4) + {FORGED!r}.encode())\nsys.stdout.flush()",
        f"sys.__stdout__.write({FORGED!r})\nsys.__stderr__.write({FORGED!r})",
        f"for fd in (0, 1, 2): os.write(fd, len({FORGED!r}).to_bytes(4) + {FORGED!r}.encode())",
    ],
)
def test_an_answer_forged_on_standard_output_is_none(sandbox, capfd, body):
    assert returned(sandbox, f"{body}\nreturn 'mine'", imports="os, sys") == "mine"
    assert capfd.readouterr() == ("", "")


def test_a_forged_answer_is_the_code_s_own_and_ends_its_run(sandbox):
    frame = len(FORGED).to_bytes(4, "big") + FORGED.encode()
    body = f"data = {frame!r} * 3\n" + OPEN_DESCRIPTORS + "os.write(found[3], data)\nreturn 'mine'"
    assert returned(sandbox, body) == {"reward": 1.0}
    assert returned(sandbox, "return 'the next'") == "the next"


@pytest.mark.parametrize("failure", ["infrastructure", "wrong", "BoundaryError", ""])
def test_a_failure_that_is_not_the_code_s_cannot_be_claimed(sandbox, failure):
    said = json.dumps({"type": "raised", "failure": failure, "message": "the engine is away"}).encode()
    body = f"data = {len(said).to_bytes(4, 'big') + said!r}\n" + WRITE_TO_THE_LINE
    assert refused(sandbox, body)[0] == "tool_error"


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
    assert message.removeprefix("output_limit: ").startswith("sent ")


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
