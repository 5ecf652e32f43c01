"""Each benchmark runs in a small setting and gives the figures that it promises. How large they are is not tested."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from resia.domains.denoising.data import save_counts
from resia.domains.denoising.synthetic import synthetic_counts
from resia.runtime.engines.tiny import build_tiny_model

ROOT = Path(__file__).parents[1]


@pytest.fixture
def measured(monkeypatch, tmp_path, capfd):
    """Run a benchmark's main with --json; its result as printed, the same as written."""
    monkeypatch.syspath_prepend(str(ROOT))

    def run(name: str, *options: str) -> dict[str, Any]:
        written = tmp_path / f"{name}.json"
        capfd.readouterr()
        assert importlib.import_module(f"benchmarks.{name}").main(["--json", "--out", str(written), *options]) == 0
        printed = json.loads(capfd.readouterr().out)
        assert printed == json.loads(written.read_text())
        assert printed["benchmark"] == name
        assert {"cpu", "cores", "load_average_before", "system", "python"} <= printed["machine"].keys()
        return printed

    return run


@pytest.fixture
def everything(monkeypatch):
    """The module behind `python -m benchmarks`."""
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("benchmarks.__main__")


def shows(everything: Any, name: str, result: dict[str, Any]) -> list[str]:
    """Labels of the figures of `name` that its table shows for `result`."""
    table = everything._table(name, result)
    return [figure.label for figure in everything.FIGURES[name] if figure.label in table]


def labels(everything: Any, name: str) -> list[str]:
    return [figure.label for figure in everything.FIGURES[name]]


def test_startup_and_overhead_of_one_run(measured, everything, tmp_path):
    started = measured("startup", "--repeats", "1", "--models", "tiny", "--iterations", "1", "--store", str(tmp_path))
    assert min(started["resia_help_s"], started["python_pass_s"], started["import_typer_s"]) > 0
    first = started["first_rollout"]["tiny"]
    assert first["total_s"] == pytest.approx(first["to_request_s"] + first["from_request_s"], abs=0.05)
    assert shows(everything, "startup", started) == ["resia --help", "first rollout, tiny model"]

    overhead = measured("overhead", "--store", str(tmp_path / "tiny-0"), "--run", "tiny-0")
    run = overhead["runs"]["tiny-random"]
    assert len(run["iterations"]) == 2
    assert all(0 < row["bus_and_log_s"] < row["wall_s"] for row in run["iterations"])
    assert run["share_highest"] == run["iterations"][1]["share"] == pytest.approx(run["share"], rel=0.02)
    assert shows(everything, "overhead", overhead) == ["bus and log, tiny model"]


def test_scale(measured, everything):
    small = ("--events", "60", "--items", "2", "--group", "2", "--shard", "4", "--rounds", "1", "--long", "50")
    result = measured("scale", "--workers", "1", "--runs", "1,2", "--span", "0.1", *small)
    row = result["rollouts"]["1"]
    assert result["rollouts_per_s"] == {"1": row["rollouts_per_s"]}
    assert row["ratio"] == pytest.approx(row["rollouts_per_s"] / row["floor_rollouts_per_s"], rel=0.05)
    assert (row["took_part"], row["rollouts"]) == (1, 2 * 2 + 2 + 12)
    assert [row["runs"] for row in result["appends"].values()] == [1, 2]
    assert all(min(row["ours_events_per_s"], row["client_events_per_s"]) > 0 for row in result["appends"].values())
    assert [row["runs"] for row in result["idle"]["rows"]] == [1, 2]
    assert min(result["blobs"]["puts_per_s"], result["blobs"]["bytes_per_rollout"]) > 0
    assert "task workers: 1" in shows(everything, "scale", result)


def test_log(measured, everything):
    small = ("--events", "200", "--rounds", "2", "--batch", "20", "--long", "200", "--tails", "3")
    result = measured("log", *small)
    names = ("append_single_per_s", "client_single_per_s", "append_batch_per_s", "client_batch_per_s", "fold_per_s")
    assert all(result[name] > 0 for name in (*names, "read_per_s", "client_read_per_s"))
    assert result["ratio"].keys() == {"single", "batch", "read"}
    assert result["tails"]["delivered"] == 3 * result["tails"]["events"]
    assert min(result[name] for name in ("p99_ms", "client_p99_ms", "replay_per_s", "plain_decode_per_s")) > 0
    assert shows(everything, "log", result | {"replay_1m_s": 1.0}) == labels(everything, "log")


def test_sandbox(measured, everything):
    result = measured("sandbox", "--boots", "1", "--calls", "2")
    assert shows(everything, "sandbox", result) == labels(everything, "sandbox")
    assert result["tier"] in result["tiers"]
    for figures in result["tiers"].values():
        assert min(figures[name] for name in ("boot_ms", "start_ms", "call_ms", "rollout_ms")) > 0


@pytest.mark.skipif(sys.platform != "linux", reason="a chamber needs Linux")
def test_trimul(measured, everything, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # it waits for no other kernel on this machine
    small = ("--device", "cpu", "--suite", "smoke", "--threads", "1", "--kernels", "torch-fused", "--wall-s", "1")
    result = measured("trimul", *small)
    assert (result["unit"], result["suite"]) == ("CPU microseconds", "smoke")
    row = result["kernels"]["torch-fused"]
    assert (row["failure"], row["verified"]) == ("", 2), row
    assert row["geomean_us"] > row["floor_us"] > 0
    assert row["protocols"].keys() == {"strict", "gpumode"}
    for figures in row["protocols"].values():
        (us,) = figures["case_us"].values()
        assert figures["geomean_us"] == us
        assert figures["ratio_to_three_kernels"] == pytest.approx(us / result["three_kernels_us"], rel=1e-3)
    assert shows(everything, "trimul", result) == ["TriMul, torch, fused"]
    with pytest.raises(SystemExit):
        measured("trimul", "--kernels", "cuda-fused", "--device", "cpu")


def test_a_kernel_of_trimul_that_is_rejected_is_a_row_of_its_own(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    trimul = importlib.import_module("benchmarks.trimul")
    wrong = tmp_path / "wrong.py"
    wrong.write_text("import torch\n\ndef custom_kernel(x, mask, weights, config):\n    return torch.zeros_like(x)\n")
    monkeypatch.setitem(trimul.KERNELS["cpu"], "wrong", trimul.Kernel(wrong))
    assert trimul.main(["--device", "cpu", "--suite", "smoke", "--threads", "1", "--kernels", "wrong"]) == 1
    assert "wrong, strict\n  rejected wrong: case 12/1/32-normal: " in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        trimul.main(["--device", "tpu"])
    assert capsys.readouterr().err.endswith("error: unknown device 'tpu': did you mean cpu?\n")


def test_gate(measured, everything):
    result = measured("gate", "--runs", "10")
    assert shows(everything, "gate", result) == labels(everything, "gate")


def test_engine(measured, everything, tmp_path):
    model = build_tiny_model(tmp_path / "model", context=4096)
    result = measured("engine", "--model", str(model), "--rollouts", "2", "--serial", "1", "--threads", "1")
    assert shows(everything, "engine", result) == labels(everything, "engine")


def test_trainers(measured, everything, tmp_path):
    model = build_tiny_model(tmp_path / "model")
    small = ("--model", str(model), "--shapes", "short", "--threads", "1", "--repeats", "1", "--updates", "1")
    result = measured("trainers", *small, "--algorithms", "entropic")
    figures = result["algorithms"]["entropic"]
    assert figures["loss_difference"] < 1e-5
    assert figures["sides"].keys() == {"resia", "obvious"}
    assert all(min(side["seconds"], side["peak_mb"], side["model_mb"]) > 0 for side in figures["sides"].values())
    assert shows(everything, "trainers", result) == ["entropic / obvious, time", "entropic / obvious, memory"]
    with pytest.raises(SystemExit):
        measured("trainers", "--algorithms", "grop")


def test_magic(measured, everything, tmp_path):
    save_counts(synthetic_counts(0), tmp_path / "c.npz")
    result = measured("magic", "--counts", str(tmp_path / "c.npz"), "--min-cells", "1", "--repeats", "1")
    assert result["sides"].keys() == {"resia", "plain", "randomised"}
    assert result["sides"]["plain"]["differs_from_resia"] < 1e-5
    assert result["sides"]["plain"]["audited"] == pytest.approx(result["sides"]["resia"]["audited"], abs=1e-4)
    assert shows(everything, "magic", result) == [
        "MAGIC, 559 x 7,221",
        "its score",
        "plain version's over ours",
    ]


def test_all_are_listed(everything):
    # What others use, and what measures nothing.
    shared = {"__main__", "benchmarks", "crew", "heard", "machine", "many_runs", "reference", "trimul_compiled"}
    assert set(everything.FIGURES) == {path.stem for path in (ROOT / "benchmarks").glob("*.py")} - shared


def test_one_can_be_run_by_its_path(tmp_path):
    command = [sys.executable, ROOT / "benchmarks" / "selection.py", "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()[:2]) == (0, ["usage:", "benchmarks.selection"])


def test_one_that_cannot_run_fails_the_whole(everything, capfd, tmp_path):
    options = ["--boots", "1", "--calls", "2", "--out", str(tmp_path / "sandbox.json")]
    assert everything.main(["sandbox", *options]) == 0
    assert "sandbox call" in capfd.readouterr().out
    assert everything.main(["sandbox", "--calls", "0"]) == 1
    assert "failed to run: sandbox" in capfd.readouterr().err
    with pytest.raises(SystemExit):
        everything.main(["sandbx"])
    assert "unknown benchmark 'sandbx'" in capfd.readouterr().err


def test_time_covered_by_work_counts_once(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    overhead = importlib.import_module("benchmarks.overhead")
    window = overhead.Span(10.0, 20.0)
    spans = [overhead.Span(*span) for span in [(8, 11), (12, 15), (13, 14), (14, 16), (19, 25), (30, 31)]]
    assert overhead._covered(window, spans) == pytest.approx(1 + 4 + 1)
    assert overhead._covered(window, []) == 0.0
