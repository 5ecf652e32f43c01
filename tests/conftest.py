"""Shared fixtures: a real nats-server on a free port in a temporary folder."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import structlog

from resia.runtime.blobs import DirectoryBlobs
from resia.runtime.bus import Bus, connect
from resia.runtime.cli import main
from resia.runtime.server import Access, EmbeddedServer


@pytest.fixture(scope="session")
def access(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Access]:
    server = EmbeddedServer(tmp_path_factory.mktemp("server"))
    yield server.start()
    server.stop()


@pytest.fixture
async def bus(access: Access) -> AsyncIterator[Bus]:
    bus = await connect(access.url, *access.login("admin"))
    await bus.create_registry()
    yield bus
    await bus.close()


class Home(NamedTuple):
    folder: Path
    access: Access
    bus: Bus
    server: EmbeddedServer


_numbers = itertools.count()


@pytest.fixture
async def run(bus: Bus) -> str:
    name = f"run-{next(_numbers)}"
    await bus.create_run(name)
    return name


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[Home]:
    """A server of the test's own: its store folder, and a connection as admin."""
    server = EmbeddedServer(tmp_path / "home")
    access = server.start()
    bus = await connect(access.url, *access.login("admin"))
    await bus.create_registry()
    yield Home(tmp_path / "home", access, bus, server)
    await bus.close()
    server.stop()


@pytest.fixture
async def empty(tmp_path: Path) -> AsyncIterator[Bus]:
    """Another server, with nothing in it."""
    server = EmbeddedServer(tmp_path / "empty")
    access = server.start()
    bus = await connect(access.url, *access.login("admin"))
    await bus.create_registry()
    yield bus
    await bus.close()
    server.stop()


@pytest.fixture
def blobs(tmp_path: Path) -> DirectoryBlobs:
    return DirectoryBlobs(tmp_path / "blobs")


@pytest.fixture
def say(capsys, monkeypatch, tmp_path):
    """Run a command in an empty folder: (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)

    def run(*args: object) -> tuple[int, str, str]:
        code = main([str(arg) for arg in args])
        out, err = capsys.readouterr()
        return code, out, err

    yield run
    structlog.reset_defaults()  # a worker's log goes to the standard output of its test
