"""The event log on NATS JetStream: the only file that imports nats.

One stream a run, appends idempotent for ever (nothing may exist on an event's own subject), several events as one
atomic batch, decisions fenced by the last decision's sequence. Reading and writing go through this thin layer
because the client's own asynchronous publish and fetch lose errors under load. Knows nothing of roles or rules.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple

import msgspec
import nats
import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import api
from nats.js.kv import KeyValue

from resia.events import Draft, Logged, Skipped, read
from resia.events import subjects as names
from resia.events.errors import BusError, FenceMoved, Tampered, UnreadableEvent, UsageError
from resia.events.merkle import leaf

from .protocol import Appended, RunEntry, error_of, headers, last_number

REGISTRY = "resia-runs"
ACK_TIMEOUT_S = 10.0
CONNECT_TIMEOUT_S = 5.0
RECONNECTS, RECONNECT_WAIT_S = 150, 0.2  # 30 s without a server, then every call fails
ACK_WAIT_S = 8.0  # a killed worker's task goes to another after this; a live one says so three times as often
APPEND_TRIES = 5
BATCH_LIMIT = 1000
_WRONG_LAST_SEQUENCE = 10071


class Work(NamedTuple):
    """One delivered message of a role's durable: the event and the handle to acknowledge it."""

    fact: Logged
    message: Msg

    async def ack(self) -> None:
        await self.message.ack_sync(timeout=ACK_TIMEOUT_S)

    async def in_progress(self) -> None:
        await self.message.in_progress()


class Heard(NamedTuple):
    """One core message: stored nowhere, heard by whoever listens. `reply` is empty where no answer is awaited."""

    subject: str
    reply: str
    data: bytes


class Bus:
    """A connection. Create with `connect`; every method raises BusError when the server cannot do its part."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._js = client.jetstream(timeout=ACK_TIMEOUT_S)

    async def close(self) -> None:
        """Send what is buffered and disconnect."""
        with suppress(nats.errors.Error, asyncio.TimeoutError):
            await asyncio.wait_for(self._client.drain(), 5)

    # -- runs -------------------------------------------------------------------------------------------------

    async def create_registry(self) -> None:
        with _bus_errors("create the registry of runs"):
            await self._js.create_key_value(api.KeyValueConfig(bucket=REGISTRY, storage=api.StorageType.FILE))

    async def create_run(self, run: str) -> None:
        """The run's stream and its registry entry; UsageError when a run of this name exists."""
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
        )
        with _bus_errors(f"create the log of run '{run}'"):
            await self._js.add_stream(config)
            entry = RunEntry(run, names.stream(run))
            await (await self._registry()).create(run, msgspec.json.encode(entry))

    async def find_run(self, run: str) -> RunEntry | None:
        with _bus_errors(f"look up run '{run}'"):
            try:
                found = await (await self._registry()).get(run)
            except nats.js.errors.KeyNotFoundError:
                return None
        return msgspec.json.decode(found.value or b"", type=RunEntry) if found.value else None

    async def runs(self) -> list[RunEntry]:
        """Every run in the registry, by name."""
        prefix = f"$KV.{REGISTRY}."
        with _bus_errors("list the runs"):
            # The client's own keys() may end before the first key has come.
            state = (await self._js.stream_info(f"KV_{REGISTRY}", subjects_filter=f"{prefix}>")).state
            found = [await self.find_run(subject.removeprefix(prefix)) for subject in sorted(state.subjects or {})]
        return [entry for entry in found if entry is not None]

    async def watch_runs(self) -> AsyncIterator[RunEntry]:
        """Every entry, now and whenever one changes."""
        with _bus_errors("watch the registry of runs"):
            watcher = await (await self._registry()).watchall()
        while True:
            try:
                update = await watcher.updates(timeout=60)
            except (TimeoutError, nats.errors.TimeoutError):
                self._require_open("watch the registry of runs")
                continue
            if update is not None and update.value:
                yield msgspec.json.decode(update.value, type=RunEntry)

    async def set_status(self, run: str, status: str) -> None:
        with _bus_errors(f"mark run '{run}' {status}"):
            entry = RunEntry(run, names.stream(run), status)
            await (await self._registry()).put(run, msgspec.json.encode(entry))

    async def seal(self, run: str) -> None:
        """Nothing can be appended any more; needs the admin credential."""
        with _bus_errors(f"seal run '{run}'"):
            info = await self._js.stream_info(names.stream(run))
            if not info.config.sealed:
                await self._js.update_stream(info.config.evolve(sealed=True))

    async def last_sequence(self, run: str) -> int:
        """Number of the last event; Tampered when the stream is not contiguous from 1 or lost messages."""
        with _bus_errors(f"read the log of run '{run}'"):
            state = (await self._js.stream_info(names.stream(run))).state
        if state.messages and state.last_seq != state.messages:
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

    def _require_open(self, what: str) -> None:
        if self._client.is_closed:
            raise BusError(f"{what}: the server went away for good")

    async def _registry(self) -> KeyValue:
        return await self._js.key_value(REGISTRY)

    # -- append -----------------------------------------------------------------------------------------------

    async def append(self, run: str, drafts: Sequence[Draft], fence: int | None = None) -> Appended:
        """Append `drafts` as one atomic batch; doing it again changes nothing.

        A batch that ends with the outcome of a request is appended only while no outcome of that request, of whatever
        type, is there: of two workers that performed it and disagree, the first is heard. `already` is then true.
        `fence` is the sequence of the last decision the caller has folded (0: none); when another decision stands
        there FenceMoved is raised. A lost acknowledgement is retried: the expectations make that safe.
        """
        if not 0 < len(drafts) <= BATCH_LIMIT:
            raise BusError(f"a batch has 1 to {BATCH_LIMIT} events, not {len(drafts)}")
        for attempt in range(APPEND_TRIES):
            try:
                return await self._append_once(run, drafts, fence)
            except (TimeoutError, nats.errors.Error) as cause:
                if attempt == APPEND_TRIES - 1:
                    raise BusError(f"append to run '{run}': {type(cause).__name__}: {cause}") from cause
                await asyncio.sleep(0.2 * 2**attempt)
        raise AssertionError("the last try returns or raises")

    async def _append_once(self, run: str, drafts: Sequence[Draft], fence: int | None) -> Appended:
        batch = secrets.token_hex(12)  # names this attempt on the wire only; no event carries it
        for number, draft in enumerate(drafts[:-1], 1):
            first = (fence, _guard(run, drafts)) if number == 1 else ()
            fields = headers(run, batch, number, *first)
            if number == 1:  # the first member is acknowledged, so a server without batches is noticed at once
                refusal = error_of(await self._request(draft, fields))
                if refusal:
                    return await self._refused(run, drafts, fence, refusal)
            else:
                await self._client.publish(draft.subject, draft.data, headers=fields)
        if len(drafts) == 1:
            fields = headers(run, None, 1, fence, _guard(run, drafts))
        else:
            fields = {**headers(run, batch, len(drafts)), "Nats-Batch-Commit": "1"}
        reply = await self._request(drafts[-1], fields)
        refusal = error_of(reply)
        if refusal:
            return await self._refused(run, drafts, fence, refusal)
        return Appended(int(reply["seq"]), False)

    async def _request(self, draft: Draft, fields: dict[str, str]) -> dict[str, Any]:
        message = await self._client.request(draft.subject, draft.data, timeout=ACK_TIMEOUT_S, headers=fields)
        return msgspec.json.decode(message.data, type=dict) if message.data else {}

    async def _refused(self, run: str, drafts: Sequence[Draft], fence: int | None, refusal: dict[str, Any]) -> Appended:
        """Sort a refusal: committed before, fence moved, or an error."""
        code, text = refusal.get("err_code"), str(refusal.get("description", refusal))
        # A batch is whole or absent, so its first member speaks for it, or the outcome that it ends with.
        present = await self._find(run, _guard(run, drafts) or drafts[0].subject)
        if present is not None:
            return Appended(present, True)
        if code == _WRONG_LAST_SEQUENCE:
            if fence is not None:
                raise FenceMoved(last_number(text))
            raise BusError(f"append to run '{run}': part of a batch is there and part is not: {text}")
        if "sealed" in text.lower():
            raise BusError(f"run '{run}' is sealed: it takes no more events")
        raise BusError(f"append to run '{run}': {text}")

    async def _find(self, run: str, subject: str) -> int | None:
        """Sequence of the event on `subject`, None when there is none."""
        try:
            found = await self._js.get_last_msg(names.stream(run), subject)
        except nats.js.errors.NotFoundError:
            return None
        sequence: int = found.seq
        return sequence

    # -- read -------------------------------------------------------------------------------------------------

    async def read(self, run: str, after: int = 0, follow: bool = False) -> AsyncIterator[Logged]:
        """Facts in order from number `after` + 1: up to the present end, or for ever with `follow`.

        Uses an ephemeral consumer of its own. Raises Tampered when a number is missing.
        """
        last = await self.last_sequence(run)
        expected = after + 1
        if not follow and expected > last:
            return
        config = api.ConsumerConfig(deliver_policy=api.DeliverPolicy.BY_START_SEQUENCE, opt_start_seq=expected)
        with _bus_errors(f"read the log of run '{run}'"):
            subscription = await self._js.subscribe(
                names.all_events(run), stream=names.stream(run), ordered_consumer=True, config=config
            )
        try:
            while follow or expected <= last:
                fact = _fact(await _next(subscription))
                if fact.sequence < expected:
                    continue  # delivered again after a reconnect
                if fact.sequence > expected:
                    raise Tampered(expected, f"it is missing, the next is {fact.sequence}")
                expected += 1
                yield fact
        finally:
            with suppress(nats.errors.Error, asyncio.TimeoutError):
                await subscription.unsubscribe()

    async def work(self, run: str, role: str, types: Sequence[str]) -> AsyncIterator[Work]:
        """Messages for `role`, shared by its processes: each until acknowledged, oldest first."""
        stream = names.stream(run)
        config = api.ConsumerConfig(
            durable_name=role,
            filter_subjects=[names.of_type(run, kind) for kind in types],
            ack_policy=api.AckPolicy.EXPLICIT,
            ack_wait=ACK_WAIT_S,
            max_deliver=-1,
            max_ack_pending=64,
        )
        with _bus_errors(f"attach {role} to run '{run}'"):
            await self._js.add_consumer(stream, config)
            subscription = await self._js.pull_subscribe_bind(consumer=role, stream=stream)
        try:
            while True:
                try:
                    messages = await subscription.fetch(1, timeout=5.0)
                except (TimeoutError, nats.errors.TimeoutError):
                    continue
                except (nats.errors.Error, nats.js.errors.Error):
                    self._require_open(f"wait for work of {role} in run '{run}'")
                    await asyncio.sleep(RECONNECT_WAIT_S)
                    continue
                for message in messages:
                    yield Work(_fact(message), message)
        finally:
            with suppress(nats.errors.Error, asyncio.TimeoutError):
                await subscription.unsubscribe()

    # -- plain messages: the server's own services -----------------------------------------------------------------

    def inbox(self) -> str:
        """A fresh subject that only this connection will be told of, under the prefix that every user may listen on."""
        inbox: str = self._client.new_inbox()
        return inbox

    async def request(self, subject: str, data: bytes = b"", timeout: float = ACK_TIMEOUT_S) -> bytes:
        """The first answer to `data` on `subject`; BusError when none comes in `timeout` seconds or nobody listens."""
        with _bus_errors(f"ask {subject}"):
            answer: bytes = (await self._client.request(subject, data, timeout=timeout)).data
        return answer

    async def publish(self, subject: str, data: bytes, reply: str = "") -> None:
        """Send `data` to whoever listens on `subject`; nothing says whether anybody did."""
        with _bus_errors(f"send to {subject}"):
            await self._client.publish(subject, data, reply)

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
        await self._client.publish(names.live(run, role), msgspec.json.encode(data))

    async def live(self, run: str) -> AsyncIterator[dict[str, Any]]:
        subscription = await self._client.subscribe(names.live(run, "*"))
        async for message in subscription.messages:
            yield {"role": message.subject.rsplit(".", 1)[-1], **msgspec.json.decode(message.data, type=dict)}


MINIMUM_SERVER = (2, 12)


async def connect(url: str, user: str = "", password: str = "") -> Bus:
    """A connected bus; UsageError for an address that is none, BusError with what the server said otherwise."""
    if not url.startswith(("nats://", "tls://")):
        raise UsageError(f"'{url[:80]}' is not a server's address: write it as nats://HOST:PORT")
    scheme, _, rest = url.partition("://")
    address = f"{scheme}://{rest.rpartition('@')[2]}"  # without a password, for messages
    options: dict[str, Any] = {"user": user, "password": password} if user else {}
    said: list[str] = []

    async def on_error(error: Exception) -> None:
        said.append(str(error) or type(error).__name__)

    try:
        # The client retries its first connection as long as a lost one: a person should hear sooner.
        client = await asyncio.wait_for(
            nats.connect(
                url,
                max_reconnect_attempts=RECONNECTS,
                reconnect_time_wait=RECONNECT_WAIT_S,
                error_cb=on_error,
                **options,
            ),
            CONNECT_TIMEOUT_S,
        )
    except (OSError, TimeoutError, ValueError, nats.errors.Error) as cause:
        why = said[-1] if said else f"{type(cause).__name__} {cause}".strip()
        raise BusError(
            f"no event log answers at {address} ({why}): start the server, or check --nats and its user"
        ) from cause
    version = client.connected_server_version
    if (version.major, version.minor) < MINIMUM_SERVER:
        await client.close()
        found, needed = f"{version.major}.{version.minor}.{version.patch}", ".".join(map(str, MINIMUM_SERVER))
        raise BusError(
            f"the server at {address} is {found}; resia needs {needed} or newer, for atomic batches: upgrade it"
        )
    return Bus(client)


async def _next(subscription: Any) -> Msg:
    """The next message, however long it takes: the ordered consumer is made anew by the client when it breaks."""
    while True:
        try:
            message: Msg = await subscription.next_msg(timeout=60)
        except (TimeoutError, nats.errors.TimeoutError):
            continue
        except nats.errors.Error as cause:
            raise BusError(
                f"read the log: the server went away and did not come back ({type(cause).__name__})"
            ) from cause
        return message


def _guard(run: str, drafts: Sequence[Draft]) -> str | None:
    """The filter on which nothing may exist yet, where it is not the first draft's own subject."""
    return names.of_id(run, drafts[-1].id) if drafts[-1].outcome else None


def _fact(message: Msg) -> Logged:
    sequence = message.metadata.sequence.stream
    try:
        return read(sequence, message.subject, message.data)
    except UnreadableEvent as cause:
        return Skipped(sequence, leaf(sequence, message.subject, message.data), cause.why)


class _bus_errors:  # noqa: N801 - reads as a statement
    """Turn whatever the client raises into BusError with the attempt named."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, cause: BaseException | None, trace: object) -> None:
        if isinstance(cause, nats.js.errors.NotFoundError):
            raise BusError(f"{self._what}: there is no such run on this server") from cause
        if isinstance(cause, nats.errors.Error | asyncio.TimeoutError):
            raise BusError(f"{self._what}: {type(cause).__name__}: {cause}") from cause
