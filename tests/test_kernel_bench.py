"""The role kernel-bench on a real log, one device for one kernel, and the commands that judge a file."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import own_workers
import pytest
from kernels_given import RIGHT, SCRIPTED, ScriptedChamber

from given import clerk, requested
from resia.domains.trimul.roofline import Device
from resia.events import Blob, Event, Fact, KernelBenchmarked, KernelRejected, KernelSubmitted
from resia.events.codec import decode
from resia.events.errors import BlobError, BoundaryError, SandboxError, UsageError
from resia.kernels.bench import BenchPorts, cases_for, judge_submission
from resia.runtime import cli, kernelwork
from resia.runtime.blobs import DirectoryBlobs
from resia.runtime.chamber.devices import _gpu
from resia.runtime.chamber.lease import lease, lease_path
from resia.runtime.cli_options import DONE, FAILED, USAGE
from resia.runtime.resources import Resources
from resia.runtime.roles import role
from resia.runtime.session import DEFAULT_WORKERS, _processes, parse_workers
from resia.runtime.worker import Worker

LIMIT_S = 120.0
MEDIA = "text/x-python"
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="a chamber needs Linux")
torch = pytest.importorskip("torch", reason="torch is not installed")


@pytest.fixture(autouse=True)
def leases(monkeypatch, tmp_path):
    """Leases of the test's own: it must not wait for what else is judged on this machine."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def submitted(blob: Blob) -> KernelSubmitted:
    return KernelSubmitted("rollout-1", blob, {"fuse": 1}, "strict", "smoke")


def bench(bus, run: str, resources: Resources, name: str) -> asyncio.Task[None]:
    chosen = role("kernel-bench", resources, lambda _: lambda _: None)
    return asyncio.create_task(Worker(bus, chosen, clerk(run, "kernel-bench", name)).serve())


@needs_linux
async def test_each_submission_has_one_verdict(bus, run, tmp_path):
    blobs = DirectoryBlobs(tmp_path / "blobs")
    sources = [RIGHT, RIGHT.replace('weights["out_norm_bias"]', 'weights["out_norm_weight"]')]
    await bus.append(run, [clerk(run).genesis(requested())])
    (first,) = await own_workers.log_of(bus, run)
    asked = [submitted(blobs.put(source.encode(), MEDIA)) for source in sources]
    drafts = clerk(run, "task").drafts(first, 1, asked, "task.perform.x")
    await bus.append(run, drafts)
    resources = Resources(blobs, None, False)
    benches = [bench(bus, run, resources, name) for name in ("bench-1", "bench-2")]
    found: dict[str, KernelBenchmarked | KernelRejected] = {}
    async for fact in bus.read(run, follow=True):
        if isinstance(fact, Fact) and isinstance(fact.event, KernelBenchmarked | KernelRejected):
            found[fact.event.submission] = fact.event
            if len(found) == len(asked):
                break
    await own_workers.end(bus, run)
    await asyncio.wait_for(asyncio.gather(*benches), LIMIT_S)
    resources.close()
    right, wrong = (found[draft.id] for draft in drafts)
    assert isinstance(right, KernelBenchmarked), right
    assert (right.protocol, right.suite) == ("strict", "smoke")
    assert right.geomean_us > right.floor_us > 0
    assert right.reward == pytest.approx(1500 / right.geomean_us, rel=1e-3)
    assert "seccomp" in right.tier
    assert isinstance(wrong, KernelRejected)
    assert (wrong.stage, wrong.failure) == ("verify", "wrong")
    kinds = [fact.envelope.type for fact in await own_workers.log_of(bus, run)]
    assert (kinds.count("kernel-benchmarked"), kinds.count("kernel-rejected")) == (1, 1)


class Failing(ScriptedChamber):
    """A chamber in which every call ends in `error`."""

    def __init__(self, error: BoundaryError) -> None:
        super().__init__(100.0, 100.0)
        self._error = error

    def run(self, calls, watch=False):
        raise self._error


@contextmanager
def free(device: Device) -> Iterator[None]:
    yield


def judged(chamber: ScriptedChamber, folder: Path, stored: bool = True) -> list[Event]:
    """What the role performs for one submission."""
    blobs = DirectoryBlobs(folder)
    event = submitted(blobs.put(b"x", MEDIA) if stored else Blob("b" * 64, 3))
    draft = clerk("r", "task").draft("cause", 1, event, "task.perform.x", 0)
    fact = decode(2, draft.subject, draft.data)
    assert isinstance(fact, Fact)
    ports = BenchPorts(lambda: chamber, free, blobs, lambda _: None, SCRIPTED)
    (events,) = judge_submission(fact, 0, ports)
    assert {event.submission for event in events} == {draft.id}
    return events


def test_a_right_kernel_is_benchmarked(tmp_path):
    (event,) = judged(ScriptedChamber(750.0, 750.0), tmp_path)
    assert isinstance(event, KernelBenchmarked)
    assert (event.device, event.geomean_us, event.reward, event.suite) == ("scripted", 750.0, 2.0, "smoke")


def test_a_kernel_that_fails_is_rejected_by_name(tmp_path):
    (event,) = judged(Failing(SandboxError("memory", "out of memory")), tmp_path)
    assert event == KernelRejected(event.submission, "verify", "memory", "out of memory")


def test_a_bench_that_breaks_says_nothing_about_the_kernel(tmp_path):
    (event,) = judged(Failing(BoundaryError("the fork server has died")), tmp_path)
    assert (event.failure, event.detail) == ("infrastructure", "the fork server has died")
    with pytest.raises(BlobError):
        judged(ScriptedChamber(1.0, 1.0), tmp_path, stored=False)


def test_the_suite_follows_the_device_where_none_is_named():
    cpu, gpu = (Device("x", kind, 1.0, 1.0, 1) for kind in ("cpu", "cuda"))
    assert cases_for("", cpu).name == "small"
    assert cases_for("", gpu).name == "full"
    assert cases_for("smoke", gpu).name == "smoke"


def test_a_run_of_trimul_has_a_bench_and_others_when_asked():
    assert _processes(DEFAULT_WORKERS, "trimul")["kernel-bench"] == 1
    assert _processes(DEFAULT_WORKERS, "denoising")["kernel-bench"] == 0
    assert _processes(parse_workers(["kernel-bench=2"]), "denoising")["kernel-bench"] == 2


async def test_one_kernel_at_a_time_on_a_device(tmp_path):
    one, other = (Device(name, "cpu", 1.0, 1.0, 1) for name in ("A, 1 threads", "B, 1 threads"))
    assert lease_path(one, tmp_path) == lease_path(Device("A, 2 threads", "cpu", 1.0, 1.0, 1), tmp_path)
    order, busy = list[str](), threading.Event()

    def second() -> None:
        with lease(one, tmp_path, busy.set):
            order.append("second")

    with lease(one, tmp_path):
        waiting = asyncio.create_task(asyncio.to_thread(second))
        await asyncio.to_thread(lambda: lease(other, tmp_path).__enter__())
        await asyncio.to_thread(busy.wait)
        order.append("first")
    await asyncio.wait_for(waiting, LIMIT_S)
    assert order == ["first", "second"]


def test_a_lease_that_cannot_be_kept_is_said(tmp_path):
    blocked = tmp_path / "file"
    blocked.touch()
    with pytest.raises(UsageError, match="set XDG_CACHE_HOME"), lease(Device("A", "cpu", 1.0, 1.0, 1), blocked):
        pass


def test_two_gpus_of_one_kind_have_a_lease_each(tmp_path):
    def properties(**told):
        return SimpleNamespace(name="NVIDIA H200", major=9, minor=0, **told)

    first, second = (_gpu(properties(uuid=f"GPU-{n}", pci_bus_id=n)) for n in (1, 2))
    assert first.name == second.name
    assert lease_path(first, tmp_path) != lease_path(second, tmp_path)
    assert lease_path(first, tmp_path) == lease_path(_gpu(properties(uuid="GPU-1", pci_bus_id=9)), tmp_path)
    places = [{"pci_domain_id": 0, "pci_bus_id": bus, "pci_device_id": 0} for bus in (1, 2)]
    assert len({lease_path(_gpu(properties(**place)), tmp_path) for place in places}) == 2
    assert _gpu(properties()).unit == ""  # a driver that tells neither


def said(capsys, *args: str) -> tuple[int, str, str]:
    code = cli.main(["kernel", *args])
    out, err = capsys.readouterr()
    return code, out, err


@needs_linux
def test_a_file_is_verified_and_timed(capsys, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(RIGHT)
    chosen = (str(file), "--case", "16/1/64-masked", "--threads", "1", "--config", "fuse=1", "--json")
    code, out, err = said(capsys, "bench", *chosen, "--protocol", "gpumode")
    verdict = json.loads(out)
    assert (code, verdict["failure"]) == (DONE, ""), verdict
    assert verdict["case_us"].keys() == {"16/1/64-normal-masked"}
    assert verdict["reward"] == pytest.approx(1500 / verdict["geomean_us"], rel=1e-3)
    assert "timing case 1 of 1" in err
    file.write_text("def custom_kernel(x, mask, weights, config):\n    return x.half()\n")
    code, out, err = said(capsys, "verify", *chosen)
    assert (code, json.loads(out)["failure"]) == (FAILED, "dtype")
    code, out, err = said(capsys, "verify", *chosen[:-1])
    assert (code, "rejected dtype (verify)" in out) == (FAILED, True)


def test_a_config_holds_what_json_holds():
    given = ["a=1", "b=2.5", "c=nan", f"d={2**70}", "e=1e999", "f=x", "g=", "h=-3"]
    assert kernelwork._config(given) == {
        "a": 1, "b": 2.5, "c": "nan", "d": float(2**70), "e": "1e999", "f": "x", "g": "", "h": -3,
    }  # fmt: skip


@needs_linux
def test_a_file_is_scored_without_a_run(say):
    Path("mine.py").write_text(RIGHT)
    asked = ("score", "trimul", "--predictions", "mine.py", "--set", "suite=smoke", "--json")
    code, out, _ = say(*asked, "--protocol", "gpumode")
    score = json.loads(out)
    assert (code, score["split"], score["denominator"], score["answered"]) == (DONE, "smoke", 1, 1), score
    assert score["scores"]["reward_1500"] == pytest.approx(1500 / score["scores"]["geomean_us"], rel=1e-3)
    assert score["device"].endswith(" threads")  # the microseconds of a processor
    Path("mine.py").write_text("def custom_kernel(x, mask, weights, config):\n    return x.half()\n")
    code, out, _ = say(*asked)
    score = json.loads(out)
    assert (code, score["protocol"], score["answered"], score["invalid"]) == (DONE, "strict", 0, {"dtype": 1})
    assert score["scores"] == {"reward_1500": 0.0}
    code, _, err = say(*asked, "--set", "form=source")
    assert (code, "unknown option of a kernel file of the trimul domain 'form'" in err) == (USAGE, True)
    code, _, err = say(*asked, "--protocol", "quick")
    assert (code, "unknown protocol of the trimul domain 'quick'" in err) == (USAGE, True)


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["verify", "gone.py"], "kernel file gone.py cannot be read: No such file"),
        (["verify", "bytes.py"], "bytes.py is no text in UTF-8 (byte 0)"),
        (["bench", "ok.py", "--protocol", "quick"], "unknown protocol 'quick'"),
        (["verify", "ok.py", "--suite", "tiny"], "unknown suite of cases 'tiny'"),
        (["verify", "ok.py", "--case", "16x1x8"], "such as 32/1/128-masked, not '16x1x8'"),
        (["verify", "ok.py", "--case", "0/1/8"], "not '0/1/8'"),
        (["verify", "/dev/zero"], "kernel file /dev/zero has more than 1048576 bytes"),
        (
            ["verify", "ok.py", "--case", "99999/1/128"],
            "--case 99999/1/128 has an x of 5,119.9 GB: at most 4.3 (1024/1/768: 3.2)",
        ),
        (["verify", "ok.py", "--config", "fuse"], "--config takes NAME=VALUE"),
        (["verify", "ok.py", "--device", "tpu"], "unknown device 'tpu'"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_sentence(args, sentence, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("ok.py").write_text(RIGHT)
    Path("bytes.py").write_bytes(b"\xff")
    code, out, err = said(capsys, *args)
    assert (code, out) == (USAGE, "")
    assert sentence in err
    assert err.count("\n") == 1


@needs_linux
def test_without_bubblewrap_the_locks_hold_alone(monkeypatch, tmp_path):
    from resia.kernels.ports import Limits
    from resia.runtime.chamber.process import ProcessChamber

    monkeypatch.setenv("PATH", str(tmp_path))
    with ProcessChamber(Limits(threads=1)) as chamber:
        assert chamber.tier == "landlock+seccomp+rlimits"


def test_without_any_locks_a_kernel_is_refused_unless_that_is_wanted(monkeypatch):
    from resia.kernels.ports import Limits
    from resia.runtime.chamber import process
    from resia.runtime.chamber.tiers import UNSAFE

    monkeypatch.setattr(process, "candidates", lambda device, folders: [UNSAFE])
    with pytest.raises(UsageError, match="--unsafe-local"):
        process.ProcessChamber(Limits(threads=1))
    with process.ProcessChamber(Limits(threads=1), unsafe_local=True) as chamber:
        assert chamber.tier == "unsafe-local: rlimits only"
