"""Three nodes as the server of a stage: killed, paused, cut off and rebuilt by name."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from resia.runtime.cluster.credentials import NODES, make
from resia.runtime.cluster.nodes import Nodes
from resia.runtime.permissions import Access

_networks = itertools.count()


class Fleet:
    """Implements stage.Server. Nodes that are `held` stay dead when the stage revives what has died."""

    def __init__(self, folder: Path, network: Network | None = None) -> None:
        hosts = network.hosts if network else ()
        make(folder, hosts=hosts)
        self.nodes = Nodes(folder, hosts, network.within) if network else Nodes(folder)
        self.network = network
        self.held: set[str] = set()

    def start(self) -> Access:
        return self.nodes.start()

    @property
    def pids(self) -> dict[str, int]:
        found = {name: self.nodes.pid(name) for name in NODES}
        return {name: pid for name, pid in found.items() if pid is not None}

    def revive(self) -> int | None:
        dead = [name for name in self.nodes.dead() if name not in self.held]
        for name in dead:
            self.nodes.launch(name)
        return len(dead) or None

    def stop(self) -> None:
        for pid in self.pids.values():
            os.kill(pid, signal.SIGCONT)
        self.nodes.stop()

    def kill(self, name: str) -> None:
        """SIGKILL; it stays dead until it is let go."""
        self.held.add(name)
        self.nodes.end(name, signal.SIGKILL)

    def forget(self, name: str) -> None:
        """What a dead node had stored is gone."""
        shutil.rmtree(self.nodes.store(name))


class Network:
    """A network namespace a node, joined by a bridge of this machine; needs the right to make them.

    OSError says why there is none. Use as a context: it leaves nothing behind.
    """

    def __init__(self) -> None:
        number = os.getpid() % 60000 + next(_networks)
        self._bridge = f"rsb{number}"
        self._names = {node: f"rs{number}-{n}" for n, node in enumerate(NODES, 1)}
        self._net = f"10.{200 + number // 250 % 50}.{number % 250}"
        self.hosts = [f"{self._net}.{n}" for n in range(1, len(NODES) + 1)]

    def __enter__(self) -> Network:
        try:
            _ip("link", "add", self._bridge, "type", "bridge")
            _ip("addr", "add", f"{self._net}.254/24", "dev", self._bridge)
            _ip("link", "set", self._bridge, "up")
            for (_, name), host in zip(self._names.items(), self.hosts, strict=True):
                _ip("netns", "add", name)
                _ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
                _ip("link", "set", name, "master", self._bridge)
                _ip("link", "set", name, "up")
                _ip("-n", name, "addr", "add", f"{host}/24", "dev", "eth0")
                _ip("-n", name, "link", "set", "eth0", "up")
                _ip("-n", name, "link", "set", "lo", "up")
        except OSError:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name in self._names.values():
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
        subprocess.run(["ip", "link", "del", self._bridge], capture_output=True, check=False)

    def within(self, node: str) -> Sequence[str]:
        return ("ip", "netns", "exec", self._names[node])

    def cut(self, node: str) -> None:
        """Nothing reaches the node, and nothing tells anybody."""
        _ip("link", "set", self._names[node], "down")

    def mend(self, node: str) -> None:
        _ip("link", "set", self._names[node], "up")


def _ip(*arguments: str) -> None:
    if shutil.which("ip") is None:
        raise OSError("there is no program ip")
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
