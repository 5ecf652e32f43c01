"""The event log on NATS JetStream: the only file that imports nats.

One stream a run, appends idempotent for ever (nothing may exist on an event's own subject), several events as one
atomic batch, decisions fenced by the last decision's sequence. Reading and writing go through this thin layer
because the client's own asynchronous publish and fetch lose errors under load. Knows nothing of roles or rules.

It is longer than other modules since whatever needs the client has to be here.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import Any, NamedTuple, TypeVar

import msgspec
import nats
import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext, api
from nats.js.kv import KeyValue

from resia.events import Draft, Logged
from resia.events import subjects as names
from resia.events.errors import BusError, Tampered, UsageError

from .append import APPEND_TRIES, Unanswered, append, passing
from .append import BATCH_LIMIT as BATCH_LIMIT
from .bulk import Address, Stored
from .connecting import lost, refused, target_of
from .logreader import Arrivals, batches, stored_in_bulk
from .permissions import SCHEMAS, Access, inbox
from .protocol import Appended, Heard, Member, RunEntry, logged, position

REGISTRY = "resia-runs"
ACK_TIMEOUT_S = 10.0
CLUSTER_ACK_S = 4.0  # the same of a cluster, where an answer that does not come was owed by a leader that is gone
PATIENCE_S = 45.0  # that long a cluster is asked the same again while nobody leads it
CONNECT_TIMEOUT_S = 5.0
WATCH_S = 2.0  # without news of runs, after which all are looked at
RECONNECTS, RECONNECT_WAIT_S = 150, 0.2  # 30 s without a server, then every call fails
ACK_WAIT_S = 8.0  # a killed worker's task goes to another after this; a live one says so three times as often
HEARTBEAT_S = 0.5  # of a reader's consumer: a server that came back is noticed after two to four of them
PULL_S = 2.0  # a request for work is made anew this often: a server that came back knows nothing of the old one
PING_S, PINGS = 1.0, 5  # a server that leaves so many unanswered has stopped, or cannot be reached
AGAIN_S = 0.2  # for what was given back a moment ago: it is there at once, or another has it
MAX_IN_HAND = 64  # messages of a durable that its processes hold together: who asks beyond it waits
DEFAULT_PORT = 4222
HEARD = 8  # of the client's latest errors are kept, to say why a connection was given up
_TOO_FEW_NODES = (10005, 10074)  # a cluster that lacks some, and a server that is none
_Answer = TypeVar("_Answer")


class Work(NamedTuple):
    """One delivered message of a role's durable: the event and the handle to acknowledge it."""

    fact: Logged
    message: Msg

    async def ack(self) -> None:
        """Done; BusError when the server does not confirm it, and then hands the work out again."""
        with _bus_errors("acknowledge work"):
            await self.message.ack_sync(timeout=ACK_TIMEOUT_S)

    async def in_progress(self) -> None:
        with _bus_errors("say that work is in hand"):
            await self.message.in_progress()

    async def give_back(self) -> None:
        """Not done: another may take it at once. Where that is not heard, it goes to another when the server misses
        us."""
        with suppress(nats.errors.Error, asyncio.TimeoutError):
            await self.message.nak()


class Durable:
    """One process's share of what a role's durable hands out in a run."""

    def __init__(self, bus: Bus, run: str, role: str, subscription: JetStreamContext.PullSubscription) -> None:
        self._bus, self._run, self._role, self._subscription = bus, run, role, subscription

    async def take(self, timeout: float | None = None) -> Work | None:  # noqa: ASYNC109
        """The next message, None when none comes for `timeout` seconds, PULL_S by default."""
        try:
            (message,) = await self._subscription.fetch(1, timeout=timeout or PULL_S)
        except (TimeoutError, nats.errors.TimeoutError):
            return None
        except (nats.errors.Error, nats.js.errors.Error):
            self._bus.require_open(f"wait for work of {self._role} in run '{self._run}'")
            await asyncio.sleep(RECONNECT_WAIT_S)
            return None
        return Work(_fact(self._run, message), message)


class Held(NamedTuple):
    """A durable: messages that wait, that processes have in hand, that were handed out again, and idle processes."""

    durable: str
    waiting: int
    in_hand: int
    again: int
    idle: int


class Bus:
    """A connection. Create with `connect`; every method raises BusError when the server cannot do its part.

    `login` is the user and password to make a further connection with, empty where the server asks for none.
    """

    def __init__(
        self, client: Client, login: tuple[str, str] = ("", ""), replicas: int = 1, gone: Callable[[], str] = str
    ) -> None:
        """`gone` says why the connection was given up."""
        self._client = client
        self._login = login
        self._gone = gone
        self._replicas = replicas
        self._clustered = bool(client._server_info.get("cluster"))
        self._ack_s = min(CLUSTER_ACK_S, ACK_TIMEOUT_S) if self._clustered else ACK_TIMEOUT_S
        self._js = client.jetstream(timeout=self._ack_s)
        self._watching = asyncio.create_task(_leave_the_silent(client))

    async def close(self) -> None:
        """Send what is buffered and disconnect. What has come and was not taken is left: a drain would wait for it."""
        self._watching.cancel()
        with suppress(nats.errors.Error, asyncio.TimeoutError, OSError):  # the server may have left first
            await self._client.flush(2)
        with suppress(nats.errors.Error, asyncio.TimeoutError, OSError):
            await asyncio.wait_for(self._client.close(), 2)

    # -- runs -------------------------------------------------------------------------------------------------

    async def create_registry(self) -> None:
        for bucket in (REGISTRY, SCHEMAS):
            await self._answered(
                "create the registry of runs", partial(self._js.create_key_value, self._bucket(bucket))
            )

    def _bucket(self, name: str) -> api.KeyValueConfig:
        return api.KeyValueConfig(bucket=name, storage=api.StorageType.FILE, replicas=self._replicas)

    async def create_run(self, run: str, status: str = "active") -> None:
        """The run's stream and its registry entry; UsageError when a run of this name exists.

        Workers serve a run from the moment that its entry says active.
        """
        names.check_run(run)
        if await self.find_run(run) is not None:
            raise UsageError(f"run '{run}' exists already: take another name, or continue it with --resume {run}")
        config = api.StreamConfig(
            name=names.stream(run),
            subjects=[names.all_events(run)],
            retention=api.RetentionPolicy.LIMITS,
            storage=api.StorageType.FILE,
            discard=api.DiscardPolicy.NEW,
            max_msgs_per_subject=1,  # a second message on an event's subject is refused, whoever sends it
            discard_new_per_subject=True,
            duplicate_window=1.0,  # the expectation on an event's own subject is what deduplicates, for ever
            deny_delete=True,
            deny_purge=True,
            allow_direct=True,
            allow_atomic=True,
            max_age=0,
            num_replicas=self._replicas,
        )
        await self._answered(f"create the log of run '{run}'", lambda: self._js.add_stream(config))
        entry = RunEntry(run, names.stream(run), status)
        if not await self._kept_once(f"create the log of run '{run}'", self._registry, run, msgspec.json.encode(entry)):
            raise UsageError(f"run '{run}' exists already: take another name, or continue it with --resume {run}")

    async def _kept_once(
        self, what: str, bucket: Callable[[], Awaitable[KeyValue]], key: str, value: bytes, revision: int = 0
    ) -> bool:
        """Write `key` where nobody has since `revision`; False when another did. A cluster without a leader is asked
        again, and the answer that did not come may have been yes: then what stands there is ours."""
        tries = 0

        async def kept() -> bool:
            nonlocal tries
            tries += 1
            place = await bucket()
            try:
                await (place.update(key, value, last=revision) if revision else place.create(key, value))
            except nats.js.errors.KeyWrongLastSequenceError:
                return tries > 1 and (await place.get(key)).value == value
            return True

        return await self._answered(what, kept)

    async def find_run(self, run: str) -> RunEntry | None:
        async def found() -> RunEntry | None:
            try:
                entry = await (await self._registry()).get(run)
            except (nats.js.errors.KeyNotFoundError, nats.js.errors.BucketNotFoundError):
                return None  # nobody has begun any run here yet, where there is no registry
            return msgspec.json.decode(entry.value, type=RunEntry) if entry.value else None

        return await self._answered(f"look up run '{run}'", found)

    async def runs(self) -> list[RunEntry]:
        """Every run in the registry, by name; none where nobody has begun one yet."""
        prefix = f"$KV.{REGISTRY}."

        async def listed() -> list[str]:
            # The client's own keys() may end before the first key has come.
            try:
                info = await self._js.stream_info(f"KV_{REGISTRY}", subjects_filter=f"{prefix}>")
            except nats.js.errors.NotFoundError:
                return []
            return sorted(info.state.subjects or {})

        subjects = await self._answered("list the runs", listed)
        found = [await self.find_run(subject.removeprefix(prefix)) for subject in subjects]
        return [entry for entry in found if entry is not None]

    async def watch_runs(self) -> AsyncGenerator[RunEntry, None]:
        """Every entry, now and whenever one changes."""
        watcher, known, seen = await self._watcher(), dict[str, RunEntry](), 0
        while True:
            try:
                update = await watcher.updates(timeout=WATCH_S)
                seen = max(seen, (update.revision or 0) if update is not None else 0)
                news = [msgspec.json.decode(update.value, type=RunEntry)] if update is not None and update.value else []
            except (TimeoutError, nats.errors.TimeoutError):
                seen, news = await self._unsaid(seen)
            for entry in news:
                if known.get(entry.run) != entry:
                    known[entry.run] = entry
                    yield entry

    async def _watcher(self) -> KeyValue.KeyWatcher:
        async def watchall() -> KeyValue.KeyWatcher | None:
            try:
                return await (await self._registry()).watchall()
            except nats.js.errors.NotFoundError:
                return None

        while True:
            watcher = await self._answered("watch the registry of runs", watchall)
            if watcher is not None:
                return watcher
            await asyncio.sleep(WATCH_S)  # nobody has begun a run here yet

    async def _unsaid(self, seen: int) -> tuple[int, list[RunEntry]]:
        """Every entry when the registry is further than `seen` and the watcher is silent: it may have ended with an
        earlier server. One question where nothing happened: many workers ask this all the time."""
        self.require_open("watch the registry of runs")
        with suppress(BusError):  # no server for the moment
            with _bus_errors("look at the registry of runs"):
                last: int = (await self._js.stream_info(f"KV_{REGISTRY}")).state.last_seq
            if last != seen:
                return last, await self.runs()
        return seen, []

    async def set_status(self, run: str, status: str) -> None:
        await self.change_entry(run, status=status)

    async def change_entry(self, run: str, **fields: Any) -> None:
        """Set these fields of a run's entry, whatever others set of it meanwhile; a new entry where there is none."""
        if not await self._answered(f"mark run '{run}'", lambda: self._changed(run, fields)):
            raise BusError(f"mark run '{run}': others kept changing its entry")

    async def _changed(self, run: str, fields: dict[str, Any]) -> bool:
        registry = await self._registry()
        for _ in range(APPEND_TRIES):
            try:
                found = await registry.get(run)
                entry, revision = msgspec.json.decode(found.value or b"", type=RunEntry), found.revision or 0
            except nats.js.errors.KeyNotFoundError as none:
                # A name that was given back has a revision too.
                entry = RunEntry(run, names.stream(run))
                revision = getattr(getattr(none, "entry", None), "revision", None) or 0
            data = msgspec.json.encode(msgspec.structs.replace(entry, **fields))
            try:
                await registry.update(run, data, last=revision)
                return True
            except nats.js.errors.KeyWrongLastSequenceError:
                continue
        return False

    async def set_entry(self, entry: RunEntry) -> None:
        """Write a run's whole entry; the name needs no stream yet."""

        async def put() -> None:
            await (await self._registry()).put(entry.run, msgspec.json.encode(entry))

        await self._answered(f"mark run '{entry.run}' {entry.status}", put)

    async def forget_run(self, run: str) -> None:
        """Take the entry of a run away, so that its name is free; the stream is the caller's to delete."""

        async def deleted() -> None:
            await (await self._registry()).delete(run)

        await self._answered(f"take run '{run}' out of the registry", deleted)

    async def schemas(self, namespace: str) -> tuple[bytes, int]:
        """What is registered for a custom namespace, and its revision; nothing and 0 when nobody claimed it."""

        async def found() -> tuple[bytes, int]:
            try:
                entry = await (await self._schemas()).get(namespace)
            except nats.js.errors.KeyNotFoundError:
                return b"", 0
            return entry.value or b"", int(entry.revision or 0)

        return await self._answered(f"look up namespace '{namespace}'", found)

    async def set_schemas(self, namespace: str, document: bytes, revision: int) -> bool:
        """Register `document` for a namespace; False when another did since `revision`."""
        what = f"register namespace '{namespace}'"
        return await self._kept_once(what, self._schemas, namespace, document, revision)

    async def seal(self, run: str) -> None:
        """Nothing can be appended any more; needs the admin credential."""

        async def sealed() -> None:
            info = await self._js.stream_info(names.stream(run))
            if not info.config.sealed:
                await self._js.update_stream(info.config.evolve(sealed=True))

        await self._answered(f"seal run '{run}'", sealed)

    async def last_sequence(self, run: str) -> int:
        """Number of the last event; Tampered when the stream is not contiguous from 1 or lost messages."""
        what = f"read the log of run '{run}'"
        state = (await self._answered(what, lambda: self._js.stream_info(names.stream(run)))).state
        if state.last_seq != state.messages:
            missing = await self._first_missing(run, state.first_seq)
            raise Tampered(missing, f"it is missing, {state.messages} of {state.last_seq} events are there")
        last: int = state.last_seq
        return last

    async def _first_missing(self, run: str, first: int) -> int:
        """Number of the first event that was numbered and is not there."""
        if first != 1:
            return 1
        subject = f"$JS.API.STREAM.INFO.{names.stream(run)}"
        reply = await self._client.request(subject, b'{"deleted_details": true}', timeout=ACK_TIMEOUT_S)
        found = msgspec.json.decode(reply.data, type=dict)
        lost: list[int] = found["state"].get("deleted") or [first]
        return min(lost)

    async def members(self, run: str | None = None) -> list[Member]:
        """The servers that hold the log of `run` (None: the registry of runs), its leader first; empty where one
        server stands alone, or no run was begun yet."""
        stream = f"KV_{REGISTRY}" if run is None else names.stream(run)
        with _bus_errors("ask who holds the log", self._clustered):
            try:
                cluster = (await self._js.stream_info(stream)).cluster
            except nats.js.errors.NotFoundError:
                if run is not None:
                    raise
                return []
        if cluster is None:
            return []
        if not cluster.leader:
            raise BusError("ask who holds the log: the cluster has no leader: most of its nodes must be up")
        others = [
            Member(peer.name or "", False, bool(peer.current) and not peer.offline) for peer in cluster.replicas or []
        ]
        return [Member(cluster.leader, True, True), *others]

    async def _answered(self, what: str, ask: Callable[[], Awaitable[_Answer]]) -> _Answer:
        """What `ask` gives; it must do no harm twice, since a cluster that has no leader is asked again."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                with _bus_errors(what, self._clustered):
                    return await ask()
            except BusError as cause:
                impatient = not self._clustered or self._client.is_closed or time.monotonic() > deadline
                if impatient or not _passes(cause.__cause__):
                    raise
            await asyncio.sleep(RECONNECT_WAIT_S)

    @property
    def is_clustered(self) -> bool:
        """Whether the server is one of several."""
        return self._clustered

    @property
    def is_open(self) -> bool:
        """Whether the connection is there, or may come back; False once it is given up."""
        return not self._client.is_closed

    def require_open(self, what: str) -> None:
        """BusError once the connection is given up."""
        if not self.is_open:
            raise BusError(f"{what}: {self._gone()}")

    async def _registry(self) -> KeyValue:
        return await self._js.key_value(REGISTRY)

    async def _schemas(self) -> KeyValue:
        return await self._js.key_value(SCHEMAS)

    # -- append -----------------------------------------------------------------------------------------------

    async def append(self, run: str, drafts: Sequence[Draft], fence: int | None = None) -> Appended:
        """Append `drafts` as one atomic batch; doing it again changes nothing.

        A batch that ends with the outcome of a request is appended only while no outcome of that request, of whatever
        type, is there: of two workers that performed it and disagree, the first is heard. `already` is then true.
        `fence` is the sequence of the last decision the caller has folded (0: none); when another decision stands
        there FenceMoved is raised. A lost acknowledgement is retried: the expectations make that safe.
        """
        return await append(_Line(self._client, self._js, self._ack_s, self._gone), run, drafts, fence)

    # -- read -------------------------------------------------------------------------------------------------

    async def read(self, run: str, after: int = 0, follow: bool = False) -> AsyncGenerator[Logged, None]:
        """Facts in order from number `after` + 1: up to the present end, or for ever with `follow`.

        Uses an ephemeral consumer of its own. Raises Tampered when a number is missing.
        """
        async with aclosing(self.batches(run, after, follow)) as batches:
            async for batch in batches:
                for fact in batch:
                    yield fact

    async def batches(
        self, run: str, after: int = 0, follow: bool = False, until: int | None = None
    ) -> AsyncGenerator[list[Logged], None]:
        """What `read` reads, as lists of what has come by now, none of them empty: for whoever folds a long log.

        Without `follow`, up to number `until`, which is there already, or to the present end.
        """
        async with aclosing(batches(self, run, after, follow, until)) as found:
            async for batch in found:
                yield batch

    def stored(self, run: str, after: int, last: int) -> AsyncGenerator[list[Stored], None]:
        """A long log from `after` + 1 to `last` or further; less where there is no bulk reading, or no more."""
        return stored_in_bulk(self, run, after, last)

    def bulk_address(self) -> Address | None:
        """Where a plain connection of our own is possible; None where it is not."""
        url = self._client.connected_url
        if url is None or url.scheme != "nats" or not url.hostname:
            return None
        return Address(url.hostname, url.port or DEFAULT_PORT, *self._login)

    async def pushed(self, run: str, after: int) -> AsyncGenerator[list[Logged], None]:
        """Everything after `after`, as it comes. Ends when the log is further than what comes: begin again then.

        The client makes its consumer anew when it breaks, and gives that up when the server is not there just then.
        """
        config = api.ConsumerConfig(deliver_policy=api.DeliverPolicy.BY_START_SEQUENCE, opt_start_seq=after + 1)
        arrivals = Arrivals[Msg]()
        subscription = await self._answered(
            f"read the log of run '{run}'",
            lambda: self._js.subscribe(
                ">",  # and not the run's subjects: what is delivered into its stream from elsewhere has a number too
                stream=names.stream(run),
                ordered_consumer=True,
                config=config,
                cb=arrivals.put,
                idle_heartbeat=HEARTBEAT_S,
            ),
        )
        try:
            while True:
                if messages := await arrivals.take():
                    batch = [_fact(run, message) for message in messages]
                    after = batch[-1].sequence
                    yield batch
                    continue
                self.require_open(f"read the log of run '{run}'")
                with suppress(BusError):  # no server for the moment: the client is at it
                    if await self.last_sequence(run) > after:
                        return
        finally:
            with suppress(nats.errors.Error, asyncio.TimeoutError):
                await subscription.unsubscribe()

    @asynccontextmanager
    async def durable(self, run: str, role: str, types: Sequence[str]) -> AsyncIterator[Durable]:
        """The messages for `role`, shared by its processes: each until acknowledged, oldest first."""
        stream = names.stream(run)
        config = api.ConsumerConfig(
            durable_name=role,
            filter_subjects=[names.of_type(run, kind) for kind in types],
            ack_policy=api.AckPolicy.EXPLICIT,
            ack_wait=ACK_WAIT_S,
            max_deliver=-1,
            max_ack_pending=MAX_IN_HAND,
        )
        what = f"attach {role} to run '{run}'"
        await self._answered(what, lambda: self._js.add_consumer(stream, config))
        subscription = await self._answered(what, lambda: self._js.pull_subscribe_bind(consumer=role, stream=stream))
        try:
            yield Durable(self, run, role, subscription)
        finally:
            with suppress(nats.errors.Error, asyncio.TimeoutError):
                await self._give_back(stream, subscription)
            with suppress(nats.errors.Error, asyncio.TimeoutError):
                await subscription.unsubscribe()

    async def _give_back(self, stream: str, subscription: JetStreamContext.PullSubscription) -> None:
        """What the server sent while nobody here asked for it any more goes to others at once."""
        # After an answer all is here that was sent before. Not `flush`: one that is cancelled ends the connection for
        # good, as the client fails on the server's PONG.
        await self._js.stream_info(stream)
        while subscription.pending_msgs:
            for message in await subscription.fetch(1, timeout=AGAIN_S):
                await message.nak()

    async def held(self, run: str, durable: str) -> Held | None:
        """How far a durable of the run is; None where there is none of this name."""
        with _bus_errors(f"look up {durable} of run '{run}'", self._clustered):
            try:
                i = await self._js.consumer_info(names.stream(run), durable)
            except nats.js.errors.NotFoundError:
                return None
        return Held(durable, i.num_pending or 0, i.num_ack_pending or 0, i.num_redelivered or 0, i.num_waiting or 0)

    # -- plain messages: the server's own services -----------------------------------------------------------------

    def inbox(self) -> str:
        """A fresh subject that only this connection will be told of, under the prefix that every user may listen on."""
        inbox: str = self._client.new_inbox()
        return inbox

    async def request(
        self,
        subject: str,
        data: bytes = b"",
        timeout: float = ACK_TIMEOUT_S,  # noqa: ASYNC109
        headers: dict[str, str] | None = None,
    ) -> bytes:
        """The first answer to `data` on `subject`; BusError when none comes in `timeout` seconds or nobody listens."""
        with _bus_errors(f"ask {subject}"):
            answer: bytes = (await self._client.request(subject, data, timeout=timeout, headers=headers)).data
        return answer

    async def publish(self, subject: str, data: bytes, reply: str = "", headers: dict[str, str] | None = None) -> None:
        """Send `data` to whoever listens on `subject`; nothing says whether anybody did."""
        with _bus_errors(f"send to {subject}"):
            await self._client.publish(subject, data, reply, headers=headers)

    @asynccontextmanager
    async def listen(self, subject: str) -> AsyncIterator[AsyncIterator[Heard]]:
        """Messages on `subject` from the moment the context is entered: the server knows of the interest by then.

        `async with bus.listen(s) as heard: await bus.publish(...); async for message in heard: ...`
        """
        with _bus_errors(f"listen on {subject}"):
            subscription = await self._client.subscribe(subject)
            await self._client.flush(ACK_TIMEOUT_S)
        try:
            yield (Heard(message.subject, message.reply, message.data) async for message in subscription.messages)
        finally:
            with suppress(nats.errors.Error, asyncio.TimeoutError):
                await subscription.unsubscribe()

    # -- live progress: core NATS, stored nowhere -----------------------------------------------------------------

    async def publish_live(self, run: str, role: str, data: dict[str, Any]) -> None:
        with _bus_errors("tell of progress"):
            await self._client.publish(names.live(run, role), msgspec.json.encode(data))

    async def live(self, run: str) -> AsyncIterator[dict[str, Any]]:
        subscription = await self._client.subscribe(names.live(run, "*"))
        async for message in subscription.messages:
            yield {"role": message.subject.rsplit(".", 1)[-1], **msgspec.json.decode(message.data, type=dict)}


MINIMUM_SERVER = (2, 12)


async def reach(access: Access, role: str) -> Bus:
    """A bus that is connected as `role`. UsageError when its password is not among those of `access`."""
    access.require(role)
    return await connect(access.url, *access.login(role), ca=access.ca, replicas=access.replicas)


async def connect(url: str, user: str = "", password: str = "", *, ca: str = "", replicas: int = 1) -> Bus:
    """A connected bus; UsageError for an address that is none, BusError with what the server said otherwise.

    `url`: one server, or several of a cluster with commas between. `ca`: who signed their certificates. `replicas`:
    how many servers are to hold each log that is created here.
    """
    target = target_of(url, user, password, ca)
    options: dict[str, Any] = {"user": target.user, "password": target.password} if target.user else {}
    options |= {"inbox_prefix": inbox(target.user), "tls": target.tls}
    said = deque[str](maxlen=HEARD)

    async def on_error(error: Exception) -> None:
        said.append(str(error) or type(error).__name__)

    try:
        # The client retries its first connection as long as a lost one: a person should hear sooner.
        client = await asyncio.wait_for(
            nats.connect(
                list(target.servers),
                max_reconnect_attempts=RECONNECTS,
                reconnect_time_wait=RECONNECT_WAIT_S,
                connect_timeout=CONNECT_TIMEOUT_S / 2,  # time for another, when the first one accepts and is silent
                ping_interval=PING_S,
                max_outstanding_pings=PINGS,
                error_cb=on_error,
                **options,
            ),
            CONNECT_TIMEOUT_S,
        )
    except (OSError, TimeoutError, ValueError, nats.errors.Error) as cause:
        raise BusError(refused(target, said or [f"{type(cause).__name__} {cause}".strip()])) from cause
    version = client.connected_server_version
    if (version.major, version.minor) < MINIMUM_SERVER:
        await client.close()
        found, needed = f"{version.major}.{version.minor}.{version.patch}", ".".join(map(str, MINIMUM_SERVER))
        raise BusError(
            f"the server at {target.address} is {found}; resia needs {needed} or newer, for atomic batches: upgrade it"
        )

    def gone() -> str:
        return lost(target, [*said, str(client.last_error or "")])

    return Bus(client, (target.user, target.password), replicas, gone)


class _Line(NamedTuple):
    """What `append` needs of the client."""

    client: Client
    stream: JetStreamContext
    ack_s: float
    gone: Callable[[], str]

    async def ask(self, subject: str, data: bytes, fields: dict[str, str]) -> dict[str, Any]:
        with _unanswered(self.gone):
            message = await self.client.request(subject, data, timeout=self.ack_s, headers=fields)
        return msgspec.json.decode(message.data, type=dict) if message.data else {}

    async def send(self, subject: str, data: bytes, fields: dict[str, str]) -> None:
        try:  # and not the context manager, which would cost a tenth of the whole on every event of a batch
            await self.client.publish(subject, data, headers=fields)
        except (TimeoutError, nats.errors.Error) as cause:
            raise Unanswered(f"{type(cause).__name__}: {cause}") from cause

    async def find(self, run: str, subject: str) -> int | None:
        with _unanswered(self.gone):
            try:
                found = await self.stream.get_last_msg(names.stream(run), subject)
            except nats.js.errors.NotFoundError:
                return None
        sequence: int = found.seq
        return sequence

    async def is_torn(self, run: str) -> bool:
        with _unanswered(self.gone):
            last = await self.stream.get_last_msg(names.stream(run), ">")
        fields = last.headers or {}
        return "Nats-Batch-Id" in fields and "Nats-Batch-Commit" not in fields


async def _leave_the_silent(client: Client) -> None:
    """Break a connection whose server is silent. The client would do so in order, and over TLS wait half a minute for
    an answer to its farewell before it looked for another server."""
    while not client.is_closed:
        await asyncio.sleep(PING_S)
        line = getattr(client._transport, "_io_writer", None)
        if client.is_connected and client._pings_outstanding >= PINGS and line is not None:
            line.transport.abort()


@contextmanager
def _unanswered(gone: Callable[[], str]) -> Iterator[None]:
    try:
        yield
    except nats.errors.ConnectionClosedError as cause:
        raise BusError(f"append: {gone()}") from cause
    except (TimeoutError, nats.errors.Error) as cause:
        raise Unanswered(f"{type(cause).__name__}: {cause}") from cause


def _passes(cause: BaseException | None) -> bool:
    """Whether a cluster may answer when it is asked again."""
    if isinstance(cause, nats.js.errors.APIError):
        return passing({"code": cause.code, "err_code": cause.err_code})
    return isinstance(cause, TimeoutError | nats.errors.NoRespondersError | nats.js.errors.NoStreamResponseError)


def _fact(run: str, message: Msg) -> Logged:
    return logged(run, position(message.reply).sequence, message.subject, message.data)


class _bus_errors:  # noqa: N801 - reads as a statement
    """Turn whatever the client raises into BusError with the attempt named."""

    def __init__(self, what: str, clustered: bool = False) -> None:
        self._what = what
        self._clustered = clustered

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, cause: BaseException | None, trace: object) -> None:
        if isinstance(cause, nats.js.errors.NotFoundError):
            raise BusError(f"{self._what}: there is no such run on this server") from cause
        if isinstance(cause, nats.js.errors.APIError) and cause.err_code in _TOO_FEW_NODES:
            raise BusError(
                f"{self._what}: fewer nodes are up than it is to have copies ({cause.description}): bring the missing"
                " ones back, or lower replicas in the login file"
            ) from cause
        if self._clustered and _passes(cause):
            raise BusError(
                f"{self._what}: the cluster has no leader ({type(cause).__name__}: {cause}): most of its nodes must be"
                " up, and resia cluster status says which are"
            ) from cause
        if isinstance(cause, nats.errors.Error | asyncio.TimeoutError | ConnectionError):
            raise BusError(f"{self._what}: {type(cause).__name__}: {cause}") from cause
