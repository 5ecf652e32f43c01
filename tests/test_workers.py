"""`resia worker`: what there is to start, what is refused before anything is attached, and logins for programs."""

from __future__ import annotations

import asyncio
import json
import os
import re
import select
import signal
import sys
import textwrap
from pathlib import Path

import nats
import own_workers
import pytest

from given import clerk, requested
from resia.events.errors import UnknownName, UsageError
from resia.events.ids import event_id
from resia.runtime import workers
from resia.runtime.bus import connect
from resia.runtime.cli import main
from resia.runtime.grants import admit
from resia.runtime.permissions import inbox
from resia.runtime.plugin_find import find, is_file, listed
from resia.runtime.roles import ROLE_NAMES
from resia.runtime.server import GRANTS, grants_of

GOOD = """
import msgspec
from resia.events import Namespace
from resia.runtime.plugin import worker

alerts = Namespace("filealerts")

@alerts.event("seen")
class Seen(msgspec.Struct, frozen=True):
    number: int

@worker(role="filealerts", consumes=["evaluation-completed"], emits=[Seen])
def watch(fact, run):
    yield Seen(fact.sequence)
"""
SECOND = """
@worker(role="filealerts", consumes=["decision-made"], emits=[])
def silent(fact, run):
    return None
"""
GREEDY = GOOD.replace("emits=[Seen]", "emits=[]")


@pytest.fixture
def file(tmp_path):
    def write(text: str, name: str = "mine.py") -> str:
        path = tmp_path / name
        path.write_text(textwrap.dedent(text))
        return str(path)

    yield write
    for name in [name for name in sys.modules if name.startswith("resia_worker_")]:
        del sys.modules[name]


@pytest.fixture
def say(capsys):
    def run(*args: object) -> tuple[int, str, str]:
        code = main([str(arg) for arg in args])
        out, err = capsys.readouterr()
        return code, out, err

    return run


# -- finding ---------------------------------------------------------------------------------------------------------


def test_roles_are_listed_with_what_they_do():
    lines = {line.name: line for line in workers.listed()}
    assert tuple(lines)[: len(ROLE_NAMES)] == ROLE_NAMES
    assert lines["meta"].consumes == ("run-requested",)
    assert "training-requested" in lines["trainer"].consumes
    assert "decision-made" in lines["feedback"].emits
    assert not [line for line in lines.values() if line.error]


def test_a_role_whose_packages_are_missing_is_listed_with_what_to_install(monkeypatch):
    def thin(*_: object) -> None:
        raise ModuleNotFoundError("No module named 'numpy'")

    monkeypatch.setattr(workers, "role", thin)
    assert {line.error for line in workers.listed()} == {"No module named 'numpy': pip install 'resia[local]'"}


def test_a_file_is_told_from_a_name():
    assert [is_file(t) for t in ("a.py", "x/a.py:f", "task", "a.pyx", "my-worker")] == [True, True, False, False, False]


def test_a_worker_is_found_in_a_file(file):
    found = find(file(GOOD))
    assert (found.declared.name, found.declared.role, found.source) == ("watch", "filealerts", "mine.py")
    assert find(file(GOOD + SECOND) + ":silent").declared.consumes == ("decision-made",)


@pytest.mark.parametrize(
    ("text", "target", "sentence"),
    [
        ("x = 1", "", "mine.py declares no worker: put @worker(...) on a function of it"),
        ("from resia.runtime.plugin import worker\ndef f(): pass", ":f", "declares no worker"),
        (GOOD + SECOND, "", "mine.py declares 2 workers: name one, such as "),
        (GOOD, ":wach", "did you mean watch?"),
        ("def (", "", "mine.py cannot be loaded: invalid syntax (line 1)"),
        ("raise SystemExit('hello')", "", "mine.py cannot be loaded: SystemExit: hello (line 1)"),
        ("\n\n1 / 0", "", "mine.py cannot be loaded: ZeroDivisionError: division by zero (line 3)"),
        (
            "import no_such_module",
            "",
            "ModuleNotFoundError: No module named 'no_such_module' (line 1)",
        ),
        (GOOD.replace('"evaluation-completed"', '"evaluation-complete"'), "", "did you mean evaluation-completed"),
        (GOOD.replace('role="filealerts"', 'role="feed.back"'), "", "role 'feed.back' cannot be used"),
        (GOOD.replace("emits=[Seen]", "emits=[int]"), "", "unknown event class 'int'"),
    ],
)
def test_a_file_that_holds_no_worker_is_refused_in_one_sentence(file, say, text, target, sentence):
    code, out, err = say("worker", "start", file(text) + target, "--store", "none")
    assert (code, out) == (2, "")
    assert err.startswith("resia: ")
    assert err.count("\n") == 1
    assert sentence in err


def test_a_file_that_is_not_there(say):
    assert say("worker", "start", "nowhere.py")[2] == (
        "resia: there is no file nowhere.py: check the name, or give a worker's name (resia worker list)\n"
    )


def package(tmp_path, name: str, points: str) -> None:
    info = tmp_path / f"{name}-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(f"[resia.workers]\n{points}\n")


def test_workers_of_packages_are_listed_and_those_that_break_say_why(tmp_path, monkeypatch, say):
    (tmp_path / "packaged_workers.py").write_text(GOOD)
    points = "watcher = packaged_workers:watch\ngone = packaged_workers:none\nplain = packaged_workers:Seen"
    package(tmp_path, "some_package", points)
    monkeypatch.syspath_prepend(str(tmp_path))
    lines = {line.name: line for line in listed()}
    assert (lines["watcher"].role, lines["watcher"].consumes) == ("filealerts", ("evaluation-completed",))
    assert (lines["watcher"].emits, lines["watcher"].source) == (("filealerts_seen",), "some_package 1.2")
    assert "worker 'gone' of some_package 1.2 cannot be loaded: AttributeError" in lines["gone"].error
    assert "is no worker: declare the function with @worker" in lines["plain"].error
    code, out, _ = say("worker", "list", "--json")
    assert code == 0
    assert [json.loads(line)["name"] for line in out.splitlines()] == [*ROLE_NAMES, "gone", "plain", "watcher"]
    code, out, _ = say("worker", "list")
    assert code == 0
    assert "watcher" in out
    with pytest.raises(UnknownName, match="unknown role or worker 'wacher': did you mean watcher"):
        find("wacher", ("task",))
    package(tmp_path, "rival_package", "watcher = packaged_workers:Seen")
    with pytest.raises(UsageError, match=r"rival_package 1.2 and some_package 1.2 both have a worker 'watcher'"):
        find("watcher")
    sys.modules.pop("packaged_workers")


# -- starting --------------------------------------------------------------------------------------------------------


def test_a_worker_needs_a_server(file, say, tmp_path):
    said = say("worker", "start", file(GOOD), "--store", tmp_path / "none")
    assert said[0] == 2
    assert "no server runs over" in said[2]


async def started(home, file, text: str, *options: object):
    command = own_workers.resia("worker", "start", file(text), "--store", home.folder, *options)
    return own_workers.started(command)


async def test_an_undeclared_event_ends_the_process_and_a_fixed_one_takes_up(home, file):
    facts, _ = await own_workers.lay(home.bus)
    closed = [fact.sequence for fact in facts if fact.envelope.type == "evaluation-completed"]
    broken = await started(home, file, GREEDY)
    code, _, err = await own_workers.finished(broken)
    assert code == 1
    assert err.startswith(f"resia: worker 'watch' on event {closed[0]} (evaluation-completed) of run")
    assert err.endswith("gave a Seen, which it does not declare: add the class to emits=[...]\n")
    assert "Traceback" not in err
    assert len(await own_workers.log_of(home.bus)) == len(facts)
    fixed = await started(home, file, GOOD, "--run", own_workers.RUN)
    found = await own_workers.customs(home.bus, len(closed))
    await own_workers.end(home.bus)
    assert (await own_workers.finished(fixed))[::2] == (0, "")
    assert sorted(fact.payload["number"] for fact in found) == closed


async def test_killed_workers_leave_every_event_once(home, file):
    """One of two processes is killed once it has written something; nothing is lost and nothing is there twice."""
    facts, _ = await own_workers.lay(home.bus)
    closed = [fact.sequence for fact in facts if fact.envelope.type == "evaluation-completed"]
    first = await started(home, file, GOOD)
    await own_workers.customs(home.bus, 1)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    second = await started(home, file, GOOD, "--run", own_workers.RUN)
    found = await own_workers.customs(home.bus, len(closed))
    await own_workers.end(home.bus)
    assert (await own_workers.finished(second))[0] == 0
    assert sorted(fact.payload["number"] for fact in found) == closed


async def test_an_unknown_run_is_told_before_anything_is_registered(home, file):
    process = await started(home, file, GOOD, "--run", "nope")
    code, _, err = await own_workers.finished(process)
    assert (code, err) == (2, "resia: unknown run 'nope': there is none yet.\n")
    assert (await home.bus.schemas("filealerts"))[1] == 0


# -- logins ----------------------------------------------------------------------------------------------------------


async def granted(home, *args: object) -> dict:
    code, out, err = own_workers.ran(own_workers.resia("worker", "grant", *args, "--store", home.folder, "--json"))
    assert (code, err) == (0, "")
    return json.loads(out)


class Client:
    """A program with a login of its own, and what the server refused it."""

    def __init__(self, login: dict) -> None:
        self.login, self.refused, self.cut = login, asyncio.Queue(), 0

    async def __aenter__(self) -> Client:
        async def on_error(error: Exception) -> None:
            self.refused.put_nowait(str(error))

        async def on_cut() -> None:
            self.cut += 1

        self.client = await nats.connect(
            self.login["url"],
            user=self.login["user"],
            password=self.login["password"],
            inbox_prefix=self.login["inbox"],
            error_cb=on_error,
            disconnected_cb=on_cut,
        )
        self.stream = self.client.jetstream(timeout=10)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.close()

    async def is_refused(self, subject: str, data: bytes = b"{}") -> bool:
        """Whether the server refuses to take a message on `subject`."""
        await self.client.publish(subject, data, reply=f"{self.login['inbox']}.nobody")
        said = await asyncio.wait_for(self.refused.get(), 10)
        return "permissions violation for publish" in said and subject.lower() in said.lower()


async def test_a_login_writes_what_it_was_granted_and_nothing_else(home):
    await home.bus.create_run("r")
    login = await granted(home, "--role", "watch", "--emits", "watch_score-fell")
    assert login["subjects"] == ["resia.*.watch.watch_score-fell.*"]
    async with Client(login) as program:
        await program.stream.publish("resia.r.watch.watch_score-fell.x", b"{}")
        for subject in (
            "resia.r.feedback.decision-made.x",
            "resia.r.feedback.watch_score-fell.x",
            "resia.r.watch.decision-made.x",
            "resia.r.watch.watch_other.x",
            "resia.r.task.rollout-recorded.x",
            "resia-live.r.task",
            "$KV.resia-runs.r",
            "$KV.resia-schemas.other",
            "_INBOX.task.x",
            "$JS.API.STREAM.DELETE.RUN-r",
            "$JS.API.STREAM.UPDATE.RUN-r",
            "$JS.API.STREAM.PURGE.RUN-r",
            "$JS.API.STREAM.MSG.DELETE.RUN-r",
            "$JS.API.CONSUMER.DELETE.RUN-r.feedback",
            "$JS.API.CONSUMER.PAUSE.RUN-r.feedback",
            "$JS.API.CONSUMER.CREATE.RUN-r.feedback",
            "$JS.API.CONSUMER.DURABLE.CREATE.RUN-r.feedback",
            "$JS.API.CONSUMER.MSG.NEXT.RUN-r.feedback",
            "$JS.ACK.RUN-r.feedback.1.1.1.1.0",
        ):
            assert await program.is_refused(subject), subject
    assert await home.bus.last_sequence("r") == 1


async def test_a_stored_message_cannot_be_sent_on_as_anothers(home):
    """The server's answer goes where the request says, so what one wrote oneself must not come back as it is."""
    await home.bus.create_run("r")
    login = await granted(home, "--role", "watch", "--emits", "watch_score-fell")
    async with Client(login) as program:
        await program.stream.publish("resia.r.watch.watch_score-fell.x", b"forged")
        forged = "resia.r.feedback.decision-made.x"
        await program.client.publish("$JS.API.DIRECT.GET.RUN-r", b'{"seq":1}', reply=forged)
        assert "permissions violation" in await asyncio.wait_for(program.refused.get(), 10)
    assert await home.bus.last_sequence("r") == 1


async def test_a_grant_disturbs_no_connection_and_outlives_the_server(home):
    await home.bus.create_run("r")
    first = await granted(home, "--role", "watch", "--emits", "watch_one")
    async with Client(first) as program:
        again = await granted(home, "--role", "watch", "--emits", "watch_one", "--emits", "watch_two")
        other = await granted(home, "--role", "watch", "--emits", "watch_one", "--as", "second")
        assert (again["password"], again["user"]) == (first["password"], "watch_program")
        assert (other["user"], other["password"] == first["password"]) == ("watch_second", False)
        await program.stream.publish("resia.r.watch.watch_two.x", b"{}")  # as the same connection
        assert program.cut == 0
    assert await home.bus.last_sequence("r") == 1
    await home.bus.close()
    home.server.stop()
    access = home.server.start()
    async with Client({**again, "url": access.url}) as program:
        await program.stream.publish("resia.r.watch.watch_two.y", b"{}")


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ((), "name a worker, or a program by --role and --emits: one of the two"),
        (("a.py", "--role", "x"), "one of the two"),
        (("--role", "a.b", "--emits", "a_b"), "role 'a.b' cannot be used"),
        (("--role", "admin", "--emits", "a_b"), "role 'admin' is no worker's"),
        (("--role", "watch", "--emits", "decision-made"), "role 'watch' cannot write decision-made"),
        (("--role", "feedback", "--emits", "decision-made"), "cannot write decision-made: it may write edit-failed or"),
        (("--role", "watch", "--emits", "watch.>"), "unknown event type 'watch.>'"),
        (("--role", "watch", "--emits", "*"), "unknown event type '*'"),
        (("--role", "watch", "--emits", "a_b", "--as", "a b"), "a program cannot be called 'a b'"),
        (("--role", "watch", "--emits", "a_b"), "no server runs over"),
    ],
)
def test_what_cannot_be_granted(say, tmp_path, args, sentence):
    code, out, err = say("worker", "grant", *args, "--store", tmp_path)
    assert (code, out) == (2, "")
    assert sentence in err
    assert not (tmp_path / GRANTS).exists()


async def test_a_worker_in_a_file_is_granted_what_it_declares(home, file):
    login = await granted(home, file(GOOD))
    assert (login["user"], login["subjects"]) == ("filealerts_watch", ["resia.*.filealerts.filealerts_seen.*"])
    assert [grant.login for grant in grants_of(home.folder)] == ["filealerts_watch"]
    assert (home.folder / GRANTS).stat().st_mode & 0o077 == 0


async def test_grants_at_once_lose_none(home):
    names = [f"p{n}" for n in range(6)]
    made = await asyncio.gather(
        *[asyncio.to_thread(admit, home.folder, "watch", name, ["watch_score-fell"]) for name in names]
    )
    assert sorted(grant.login for grant in grants_of(home.folder)) == [f"watch_{name}" for name in names]
    for access, grant in made:
        bus = await connect(access.url, grant.login, grant.password)
        await bus.close()


async def test_a_grant_that_was_cut_short_is_made_again(home, monkeypatch):
    """Killed before the server was told: the login is in the configuration only."""

    def killed(folder):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("resia.runtime.grants._read_again", killed)
        with pytest.raises(KeyboardInterrupt):
            admit(home.folder, "watch", "cut", ["watch_score-fell"])
    assert grants_of(home.folder) == []
    access, grant = await asyncio.to_thread(admit, home.folder, "watch", "cut", ["watch_score-fell"])
    await (await connect(access.url, grant.login, grant.password)).close()


async def test_a_grant_while_the_server_is_being_revived_holds(home):
    pid = home.server.pid
    os.kill(pid, signal.SIGKILL)
    with os.fdopen(os.pidfd_open(pid)) as gone:
        select.select([gone], [], [], 30)
    waiting = asyncio.create_task(asyncio.to_thread(admit, home.folder, "watch", "late", ["watch_score-fell"]))
    assert home.server.revive() == -signal.SIGKILL
    access, grant = await asyncio.wait_for(waiting, 30)
    await (await connect(access.url, grant.login, grant.password)).close()
    assert home.server.pid != pid


async def test_a_login_in_the_address_is_used_as_it_is(home, file, tmp_path):
    facts, _ = await own_workers.lay(home.bus)
    count = sum(fact.envelope.type == "evaluation-completed" for fact in facts)
    login = await granted(home, file(GOOD))
    before = (home.folder / GRANTS).read_bytes()
    url = login["url"].replace("nats://", f"nats://{login['user']}:{login['password']}@")
    command = own_workers.resia("worker", "start", file(GOOD), "--run", own_workers.RUN, "--nats", url)
    process = own_workers.started(command, cwd=tmp_path)
    await own_workers.customs(home.bus, count)
    await own_workers.end(home.bus)
    assert (await own_workers.finished(process))[::2] == (0, "")
    assert (home.folder / GRANTS).read_bytes() == before


@pytest.mark.parametrize(
    ("user", "prefix"), [("alerts_watch", "_INBOX.alerts_watch"), ("", "_INBOX"), ("a.b", "_INBOX"), (">", "_INBOX")]
)
def test_a_prefix_of_inboxes_is_a_subject(user, prefix):
    assert inbox(user) == prefix


def test_logins_that_cannot_be_read_are_told(tmp_path):
    (tmp_path / GRANTS).write_text("{")
    with pytest.raises(UsageError, match=r"the logins in .* cannot be read .*: remove it and grant them again"):
        grants_of(tmp_path)


# -- readers ---------------------------------------------------------------------------------------------------------


async def test_a_reader_reads_all_and_writes_nothing(home):
    await own_workers.lay(home.bus)
    user, password = home.access.login("reader")
    login = {"url": home.access.url, "user": user, "password": password, "inbox": "_INBOX.reader"}
    admin = await nats.connect(home.access.url, user="admin", password=home.access.passwords["admin"])
    stream = f"RUN-{own_workers.RUN}"
    await admin.jetstream().add_consumer(stream, durable_name="feedback", ack_policy="explicit")
    count = await home.bus.last_sequence(own_workers.RUN)
    async with Client(login) as reader:
        ordered = await reader.stream.subscribe(f"resia.{own_workers.RUN}.>", stream=stream, ordered_consumer=True)
        seen = [(await ordered.next_msg(timeout=10)).metadata.sequence.stream for _ in range(count)]
        assert seen == list(range(1, count + 1))
        for subject in (
            f"resia.{own_workers.RUN}.reader.x_y.z",
            f"resia-live.{own_workers.RUN}.reader",
            f"$JS.API.CONSUMER.DELETE.{stream}.feedback",
            f"$JS.API.CONSUMER.DURABLE.CREATE.{stream}.feedback",
            f"$JS.API.CONSUMER.CREATE.{stream}.feedback",
            f"$JS.API.CONSUMER.MSG.NEXT.{stream}.feedback",
            f"$JS.ACK.{stream}.feedback.1.1.1.1.0",
        ):
            assert await reader.is_refused(subject), subject
        durable = {"stream_name": stream, "config": {"durable_name": "mine", "ack_policy": "none"}}
        answer = await reader.client.request(
            f"$JS.API.CONSUMER.CREATE.{stream}", json.dumps(durable).encode(), timeout=10
        )
        assert json.loads(answer.data)["error"]["err_code"] == 10020  # it must be ephemeral
    assert {info.name for info in await admin.jetstream().consumers_info(stream)} >= {"feedback"}
    await admin.close()
    assert await home.bus.last_sequence(own_workers.RUN) == count


async def test_one_login_does_not_hear_anothers_answers(home):
    login = await granted(home, "--role", "watch", "--emits", "watch_score-fell")
    async with Client(login) as program:
        for subject in ("_INBOX.>", "_INBOX.task.>", "resia.>"):
            await program.client.subscribe(subject)
            said = await asyncio.wait_for(program.refused.get(), 10)
            assert "permissions violation for subscription" in said.lower()


async def test_an_event_of_another_run_is_none_of_this_one(home):
    """A consumer may deliver into any stream, under the subject that the message had."""
    for name in ("a", "b"):
        await home.bus.create_run(name)
    await home.bus.append("a", [clerk("a").genesis(requested())])
    admin = await nats.connect(home.access.url, user="admin", password=home.access.passwords["admin"])
    body = json.dumps({"stream_name": "RUN-a", "config": {"ack_policy": "explicit"}}).encode()
    made = json.loads((await admin.request("$JS.API.CONSUMER.CREATE.RUN-a", body, timeout=10)).data)
    elsewhere = "resia.b.user.run-requested.x"
    pull = f"$JS.API.CONSUMER.MSG.NEXT.RUN-a.{made['name']}"
    await admin.publish(pull, b'{"batch": 1, "expires": 5000000000}', reply=elsewhere)
    stray = await asyncio.wait_for(anext(home.bus.read("b", follow=True)), 10)
    assert stray.why.endswith("its subject is another run's")
    await admin.close()


# -- the document ----------------------------------------------------------------------------------------------------

DOCUMENT = Path(__file__).parent.parent / "docs" / "workers.md"


def test_the_ids_in_the_document_are_what_is_derived():
    rows = re.findall(r"^\| `(.+?)` \| `(.+?)` \| `(.+?)` \| (\d+) \| `(\w{26})` \|$", DOCUMENT.read_text(), re.M)
    assert len(rows) == 2
    for run, cause, handler, ordinal, id_ in rows:
        assert event_id(run, cause, handler, int(ordinal)) == id_


def test_the_worker_in_the_document_is_the_example():
    block = re.search(r"```python\n(from collections.*?)```", DOCUMENT.read_text(), re.DOTALL).group(1)
    example = (DOCUMENT.parent.parent / "examples" / "regression_alert.py").read_text()
    assert example.partition('"""\n\n')[2] == block
