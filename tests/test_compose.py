"""compose.yaml says what it must: least rights, limits, health, no secret in it, and files that are there."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer

from resia.events.subjects import ROLES
from resia.runtime.cli import app
from resia.runtime.cluster import credentials, nodes
from resia.runtime.leaving import GRACE_S

yaml = pytest.importorskip("yaml", reason="compose.yaml is read with PyYAML")
ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "compose.yaml").read_text(encoding="utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
WORKERS = [role for role in ROLES if role != "user"]
each = pytest.mark.parametrize("name", sorted(SERVICES))


def _client() -> list[str]:
    """The words that call Compose here, as docker's plug-in or alone; none where it is not."""
    for words in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(words[0]) is None:
            continue
        if subprocess.run([*words, "version"], capture_output=True, check=False).returncode == 0:
            return words
    return []


@pytest.mark.skipif(not _client(), reason="there is no docker compose here")
def test_the_client_takes_it(tmp_path):
    shutil.copy(ROOT / "compose.yaml", tmp_path)
    credentials.make(tmp_path / ".cluster")
    command = [*_client(), "--profile", "*", "--file", str(tmp_path / "compose.yaml"), "config", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_there_is_a_service_for_every_role_and_three_nodes():
    assert {*WORKERS, *credentials.NODES} <= SERVICES.keys()
    for role in WORKERS:
        assert SERVICES[role]["command"][:3] == ["worker", "start", role]


@each
def test_a_service_is_watched_limited_and_without_rights(name):
    service = SERVICES[name]
    assert service["healthcheck"]["test"][0] == "CMD"
    assert {"cpus", "memory"} <= service["deploy"]["resources"]["limits"].keys()
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert not service.get("privileged")
    user, group = re.findall(r"\$\{\w+:-(\d+)\}", service["user"])
    assert int(user) > 0
    assert int(group) > 0
    assert "ports" not in service, "nobody outside needs the log"


@pytest.mark.parametrize("role", WORKERS)
def test_a_worker_has_time_to_leave_and_leases_what_its_neighbours_see(role):
    service = SERVICES[role]
    assert int(service["stop_grace_period"].removesuffix("s")) > GRACE_S
    assert f"cache:{service['environment']['XDG_CACHE_HOME']}" in service["volumes"]


@each
def test_a_service_is_given_the_secrets_of_its_role_alone(name):
    own = {
        (secret if isinstance(secret, str) else secret["source"]) for secret in SERVICES[name].get("secrets", ())
    } - {"ca.pem"}
    if name in credentials.NODES:
        assert own == {"users", f"{name}.pem", f"{name}.key"}
    elif name == "operator":
        assert own == {"admin"}
    else:
        assert own == ({name} if name in WORKERS else set())


def test_no_secret_stands_in_the_file(tmp_path):
    credentials.make(tmp_path)
    assert not [password for password in credentials.passwords_of(tmp_path).values() if password in TEXT]
    for name, service in SERVICES.items():
        for key, value in service.get("environment", {}).items():
            secret = re.search(r"PASS|SECRET|TOKEN|API_KEY", key)
            assert secret is None, f"{name} has {key}={value}"


def test_every_secret_is_one_that_init_makes(tmp_path):
    credentials.make(tmp_path)
    for secret in COMPOSE["secrets"].values():
        folder, _, path = secret["file"].partition("/")
        assert folder == ".cluster"
        assert (tmp_path / path).is_file(), path
    assert ".cluster/" in (ROOT / ".gitignore").read_text().split()


@each
def test_every_file_that_is_mounted_is_there(name):
    for volume in SERVICES[name].get("volumes", ()):
        source = volume.split(":")[0]
        assert (ROOT / source).is_file() if source.startswith(".") else source in COMPOSE["volumes"]


@pytest.mark.parametrize("name", credentials.NODES)
def test_a_node_is_told_all_that_its_configuration_asks_for(name, tmp_path):
    asked = set(re.findall(r"\$([A-Z_]+)", nodes.CONFIG.read_text()))
    assert asked <= SERVICES[name]["environment"].keys()
    assert asked == nodes.Nodes(tmp_path).environment(name).keys()
    assert SERVICES[name]["environment"]["NODE"] == name
    assert "include users.conf" in nodes.CONFIG.read_text()
    assert {"source": "users", "target": "/etc/nats/users.conf"} in SERVICES[name]["secrets"]


def test_every_build_is_a_target_of_the_one_dockerfile():
    targets = {name for _, name in re.findall(r"^FROM (\S+) AS (\S+)$", (ROOT / "Dockerfile").read_text(), re.M)}
    built = {service["build"]["target"] for service in SERVICES.values() if "build" in service}
    assert built <= targets
    assert {"worker", "task", "trainer", "kernel-bench", "vllm", "log"} == built
    for service in SERVICES.values():
        assert "build" in service or re.search(r":v?\d+\.\d+\.\d+$", service["image"]), (
            "an image from elsewhere is pinned"
        )


def test_the_thin_image_has_no_torch_and_no_image_is_roots():
    text = (ROOT / "Dockerfile").read_text()
    parts = {part.split()[2]: part for part in re.split(r"^FROM ", text, flags=re.M)[1:] if part.split()[1] == "AS"}
    assert "torch" not in parts["worker"]
    assert "local" not in parts["worker"]
    for target in ("log", "worker", "task"):
        assert "USER resia\n" in parts[target]
    for derived in ("trainer", "kernel-bench"):
        assert parts[derived].startswith("task AS")


def test_what_the_dockerfile_copies_is_there_and_let_through():
    text, let = (ROOT / "Dockerfile").read_text(), (ROOT / ".dockerignore").read_text()
    for line in re.findall(r"^COPY (?!--)(.+)$", text, re.M):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert f"!{source}\n" in let, source


def test_a_model_server_is_resias_own_and_reads_adapters_where_workers_write_them():
    vllm = SERVICES["vllm"]
    assert vllm["profiles"] == ["vllm"]
    command = vllm["command"]
    assert command[:3] == ["engine", "vllm", "serve"]
    taken = {name for param in _options("engine", "vllm", "serve") for name in param.opts}
    given = dict(word.split("=", 1) for word in command[3:])
    assert given.keys() <= taken
    for role in ("task", "trainer"):
        worker = SERVICES[role]
        assert worker["command"][worker["command"].index("--cache") + 1] == given["--cache"]
        assert f"cache:{given['--cache']}" in worker["volumes"]
    assert f"cache:{given['--cache']}" in vllm["volumes"]
    assert f":{given['--port']}/health" in vllm["healthcheck"]["test"][-1]


def _options(*path: str) -> list[Any]:
    found: Any = typer.main.get_command(app)
    for name in path:
        found = found.commands[name]
    return found.params


def test_the_health_check_of_a_worker_is_a_command():
    assert SERVICES["meta"]["healthcheck"]["test"] == ["CMD", "resia", "cluster", "status", "--answers"]
    assert "cluster" in {group.name for group in app.registered_groups}
