"""What generated code must not be able to reach or to do, on every tier that this machine can have.

Each attempt would succeed in an ordinary process, on what the tests put there for it.
"""

from __future__ import annotations

import os
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest
from sandbox_tiers import OPEN_DESCRIPTORS, out_of_reach, refused, returned, sandbox_of

from resia.events.errors import SandboxError
from resia.runtime.sandbox import TIERS, SandboxLimits

SECRET = "RESIA_TEST_SECRET"
C_ENVIRONMENT = """
block, found = ctypes.POINTER(ctypes.c_char_p).in_dll(ctypes.CDLL(None), "environ"), []
while block and block[len(found)]: found.append(block[len(found)].decode())
return found
"""


@pytest.fixture(scope="module", params=TIERS, ids=[tier.name.partition("+")[0] for tier in TIERS])
def sandbox(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SECRET, "hunter2")
        with sandbox_of(request.param, SandboxLimits(memory_bytes=256 * 2**20)) as made:
            yield made


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
