"""Three nats-servers on this machine as one cluster, from the configuration that compose.yaml gives its containers.

`Nodes(folder).start()` gives the `Access` of everybody; nodes are then killed, paused and started again by name.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from resia.events.errors import BusError, UsageError
from resia.runtime.lifeline import die_with_parent
from resia.runtime.permissions import Access
from resia.runtime.server import binary

from .credentials import NODES, blobs_of, passwords_of, write_logins

CONFIG = Path(__file__).with_name("nats.conf")
READY_S = 30.0
_LOOPBACK = ("127.0.0.1",) * len(NODES)


class Place(NamedTuple):
    """Where one node listens: for clients, for the other nodes, and on loopback for health checks."""

    host: str
    client: int
    route: int
    monitor: int


def _bare(name: str) -> Sequence[str]:
    del name
    return ()


class Nodes:
    """The nodes over `folder`, which has their secrets, with their stores in `folder`/stores.

    `hosts` are their addresses, a node each; `within(name)` a command that another is run by, such as a network
    namespace's.
    """

    def __init__(
        self, folder: Path, hosts: Sequence[str] = _LOOPBACK, within: Callable[[str], Sequence[str]] = _bare
    ) -> None:
        self.folder, self._within = folder, within
        self._places = dict(zip(NODES, self._chosen(hosts), strict=True))
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> Access:
        """Start all and wait until one of them leads. Writes login files for this place.

        Raises UsageError (no binary, no secrets, a port is taken) and BusError when they do not come up.
        """
        passwords = passwords_of(self.folder)
        binary()
        self._refuse_taken()
        url = ",".join(f"tls://{place.host}:{place.client}" for place in self._places.values())
        blobs = blobs_of(self.folder)
        write_logins(self.folder / "logins", url, "../ca.pem", passwords, blobs)
        for name in NODES:
            self.launch(name)
        self.wait_ready()
        return Access(url, passwords, str((self.folder / "ca.pem").resolve()), len(NODES), blobs)

    def environment(self, name: str) -> dict[str, str]:
        """What `nats.conf` takes from the environment, for one node."""
        place, folder = self._places[name], self.folder.resolve()
        values = {
            "NODE": name,
            "CLIENTS": f"{place.host}:{place.client}",
            "ROUTES_HERE": f"{place.host}:{place.route}",
            "MONITOR": f"{place.host}:{place.monitor}",
            "ROUTES": [f"nats-route://{other.host}:{other.route}" for other in self._places.values()],
            "STORE": str(self.store(name)),
            "TLS_CERT": str(folder / f"{name}.pem"),
            "TLS_KEY": str(folder / f"{name}.key"),
            "TLS_CA": str(folder / "ca.pem"),
        }
        return {key: json.dumps(value) for key, value in values.items()}

    def store(self, name: str) -> Path:
        return self.folder.resolve() / "stores" / name

    @property
    def config(self) -> Path:
        """The shipped configuration, seen from the folder that has `users.conf`."""
        link = self.folder.resolve() / "nats.conf"
        if not link.exists():
            link.unlink(missing_ok=True)
            link.symlink_to(CONFIG)
        return link

    def launch(self, name: str) -> None:
        """Start one node; nothing is waited for."""
        self.store(name).mkdir(parents=True, exist_ok=True)
        with (self.folder / f"{name}.log").open("ab") as sink:
            self._processes[name] = subprocess.Popen(
                [*self._within(name), binary(), "-c", str(self.config)],
                env={**os.environ, **self.environment(name)},
                stdout=sink,
                stderr=sink,
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # a Ctrl-C in the terminal is for us to handle
                preexec_fn=die_with_parent,
            )

    def pid(self, name: str) -> int | None:
        """Process id of a node that runs."""
        process = self._processes.get(name)
        return process.pid if process is not None and process.poll() is None else None

    def dead(self) -> list[str]:
        """Nodes that were started and have ended."""
        return [name for name in self._processes if self.pid(name) is None]

    def end(self, name: str, how: int = signal.SIGTERM) -> None:
        """Send a node `how` and wait until it has gone; SIGKILL after 10 s."""
        process = self._processes[name]
        if process.poll() is None:
            process.send_signal(how)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def healthy(self, name: str) -> bool:
        """Whether a node says that it is up and that what it holds is current."""
        return self._asked(name, "healthz") is not None

    def wait_ready(self) -> None:
        """Until every node that runs is healthy and knows who leads. BusError after `READY_S`."""
        deadline = time.monotonic() + READY_S
        while not all(self._ready(name) for name in self._processes):
            if time.monotonic() > deadline or self.dead():
                raise BusError(f"the cluster in {self.folder} does not start: {self._last_words()}")
            time.sleep(0.05)

    def _ready(self, name: str) -> bool:
        about = self._asked(name, "jsz")
        return bool(about and about.get("meta_cluster", {}).get("leader")) and self.healthy(name)

    def _asked(self, name: str, what: str) -> dict[str, dict[str, str]] | None:
        """What a node's monitoring says; None when it does not answer, or says that it is not well."""
        place = self._places[name]
        try:
            with urllib.request.urlopen(f"http://{place.host}:{place.monitor}/{what}", timeout=1.0) as answer:
                return msgspec.json.decode(answer.read())  # type: ignore[no-any-return]
        except (OSError, urllib.error.URLError, msgspec.MsgspecError):
            return None

    def stop(self) -> None:
        """Stop all, cleanly where they can; safe to call twice."""
        for process in self._processes.values():
            if process.poll() is None:
                process.terminate()
        for name in self._processes:
            self.end(name, signal.SIGTERM)
        self._processes.clear()

    def _chosen(self, hosts: Sequence[str]) -> list[Place]:
        """The places of the time before, or free ones."""
        path = self.folder / "places.json"
        try:
            before = msgspec.json.decode(path.read_bytes(), type=list[Place])
        except (OSError, msgspec.MsgspecError):
            before = []
        if [place.host for place in before] == list(hosts):
            return before
        places = [Place(host, *_free_ports()) for host in hosts]
        self.folder.mkdir(parents=True, exist_ok=True)
        path.write_bytes(msgspec.json.encode(places))
        return places

    def _refuse_taken(self) -> None:
        for place in self._places.values():
            for port in place[1:]:
                with socket.socket() as probe:
                    if place.host in _LOOPBACK and probe.connect_ex((place.host, port)) == 0:
                        raise UsageError(
                            f"port {port} is taken: is the cluster in {self.folder} running already? Stop it, or"
                            f" remove {self.folder / 'places.json'} for other ports"
                        )

    def _last_words(self) -> str:
        for name in self.dead() or NODES:
            path = self.folder / f"{name}.log"
            lines = path.read_text(errors="replace").strip().splitlines() if path.exists() else []
            if lines:
                return f"{name}: {lines[-1]}"
        return "nobody said anything"


def _free_ports() -> tuple[int, int, int]:
    probes = [socket.socket() for _ in range(3)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        client, route, monitor = (int(probe.getsockname()[1]) for probe in probes)
    finally:
        for probe in probes:
            probe.close()
    return client, route, monitor
