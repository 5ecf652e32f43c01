"""What metrics count, and that a process which nobody watches pays nothing for them."""

from __future__ import annotations

import subprocess
import sys

import pytest
import structlog

from given import FAILED, clerk, drafts_of, requested, step
from resia.events.errors import BoundaryError, SandboxError, UsageError
from resia.runtime.config import ProcessConfig
from resia.runtime.observing import ObservedBus, Observer
from resia.runtime.targets import addresses, write_targets
from resia.runtime.watching import collector_named, watching

pytest.importorskip("prometheus_client", reason="needs resia[ops]")


@pytest.fixture
def metrics():
    from resia.runtime.metrics import Metrics

    return Metrics("task", "task-1", "0")


def value(metrics, name, **labels):
    return metrics.registry.get_sample_value(name, labels)


def test_a_batch_is_counted_by_type_once(metrics):
    drafts = drafts_of("r", [step(0), step(1), FAILED])
    metrics.appended(drafts, False, 0.004)
    metrics.appended(drafts, True, 0.004)  # it had been there: nobody did it twice
    assert value(metrics, "resia_events_total", op="appended", type="step-trained") == 2
    assert value(metrics, "resia_training_steps_total") == 2
    assert value(metrics, "resia_failures_total", type="run-failed") == 1
    assert value(metrics, "resia_append_seconds_count", outcome="appended") == 1
    assert value(metrics, "resia_append_seconds_count", outcome="already") == 1
    assert value(metrics, "resia_append_seconds_bucket", outcome="appended", le="0.005") == 1
    assert value(metrics, "resia_append_seconds_bucket", outcome="appended", le="0.0025") == 0


def test_a_lag_is_what_the_log_has_and_the_fold_has_not(metrics):
    from scripted import Tape

    for run, end, folded in (("a", 7, 1), ("b", 1, 1)):
        metrics.read(run, Tape(run).add(requested())[0])
        metrics.end_seen(run, end)
        metrics.folded(run, folded)
    assert value(metrics, "resia_fold_lag") == 6
    metrics.left("a")
    metrics.end_seen("a", 9)
    assert value(metrics, "resia_fold_lag") == 0


def test_runs_of_generated_code_are_counted_by_how_they_ended(metrics):
    with metrics.sandbox_run():
        pass
    for cause in (SandboxError("timeout", "x"), SandboxError("made-up", "x"), BoundaryError("x")):
        with pytest.raises(BoundaryError), metrics.sandbox_run():
            raise cause
    found = [value(metrics, "resia_sandbox_runs_total", outcome=o) for o in ("done", "timeout", "other", "broken")]
    assert found == [1, 1, 1, 1]


class Noted(Observer):
    def __init__(self) -> None:
        self.heard: list[tuple[object, ...]] = []

    def taken(self, deliveries: int) -> None:
        self.heard.append(("taken", deliveries))

    def handled(self, outcome: str) -> None:
        self.heard.append(("handled", outcome))

    def refused(self, moved: bool, seconds: float) -> None:
        self.heard.append(("refused", moved))


async def test_work_that_comes_again_and_a_fence_that_moved_are_seen(bus, run):
    from resia.events.errors import FenceMoved

    await bus.append(run, [clerk(run).genesis(requested())])
    noted = Noted()
    observed = ObservedBus(bus, [noted])

    async def one(settle) -> None:
        async with observed.durable(run, "feedback", ["run-requested"]) as durable:
            while (work := await durable.take()) is None:
                pass
            await settle(work)

    async def nak(work) -> None:
        await work.give_back()

    async def ack(work) -> None:
        await work.ack()

    for settle in (nak, ack):
        work = one(settle)
        await work
    with pytest.raises(FenceMoved):
        await observed.append(run, drafts_of(run, [FAILED], 5), fence=40)
    assert [heard for heard in noted.heard if heard[0] == "taken"] == [("taken", 1), ("taken", 2)]
    assert [heard[1] for heard in noted.heard if heard[0] == "handled"] == ["failed", "nothing"]
    assert ("refused", True) in noted.heard


def test_a_port_that_is_taken_is_named_and_a_worker_goes_on_without(capsys):
    with watching("task", "w", "0") as first:
        port = first.url.rpartition(":")[2].removesuffix("/metrics")
        with pytest.raises(UsageError, match=f"port {port}|on {port}"), watching("task", "w", port):
            pass
        with watching("task", "w", port, strict=False) as second:
            assert second.metrics is None
            assert second.observers == ()
    with pytest.raises(UsageError, match="--metrics takes PORT"), watching("task", "w", "http"):
        pass


def test_a_library_that_is_missing_is_named(monkeypatch):
    monkeypatch.delitem(sys.modules, "resia.runtime.metrics", raising=False)
    monkeypatch.delitem(sys.modules, "resia.runtime.traces", raising=False)
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4318")
    missing = "prometheus_client, which is not installed: pip install 'resia\\[ops\\]'"
    with pytest.raises(UsageError, match=missing), watching("task", "w", "0"):
        pass
    with structlog.testing.capture_logs() as lines, watching("task", "w", None) as watched:
        assert watched.observers == ()
    assert [line["event"] for line in lines] == ["no spans are sent"]


def test_a_collector_that_is_silent_does_not_hold_a_worker_up(monkeypatch):
    import socket

    from scripted import Tape

    from resia.runtime import traces

    monkeypatch.setattr(traces, "CLOSE_S", 0.1)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
        sending = traces.Traces("user", "w1", "0", began=0.0)
        sending.read("r", Tape("r").add(requested())[0])
        with structlog.testing.capture_logs() as lines:
            sending.close()
    assert [line["event"] for line in lines] == ["the last spans were not sent"]


def test_a_session_gives_each_process_a_port_and_says_which(tmp_path):
    places = addresses("0.0.0.0:9464", ["cli", "meta-1", "task-1"])
    assert places == {"cli": "0.0.0.0:9464", "meta-1": "0.0.0.0:9465", "task-1": "0.0.0.0:9466"}
    assert addresses("0", ["a", "b"]) == {"a": "0", "b": "0"}
    write_targets(tmp_path, addresses("0", ["a"]))
    assert not (tmp_path / "targets.json").exists()  # nobody knows the ports before they are taken
    assert addresses(None, ["a"]) == {}
    with pytest.raises(UsageError, match="room for 3 ports"):
        addresses("65534", ["a", "b", "c"])
    write_targets(tmp_path, addresses("9464", ["cli", "task-1"]))
    import json

    said = json.loads((tmp_path / "targets.json").read_text())
    assert [group["targets"] for group in said] == [["127.0.0.1:9464"], ["127.0.0.1:9465"]]
    assert said[1]["labels"] == {"worker": "task-1"}
    write_targets(tmp_path, {})
    assert not (tmp_path / "targets.json").exists()


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_SDK_DISABLED": "true"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_TRACES_EXPORTER": "none"}, False),
        ({"OTEL_SERVICE_NAME": "x"}, False),
    ],
)
def test_spans_are_sent_where_the_environment_names_a_collector(environment, named):
    assert collector_named(environment) == named


UNWATCHED = """
import sys
import resia.runtime.process
from resia.runtime.watching import watching
from resia.runtime.bus import Bus
with watching("task", "w", None) as watched:
    bus = object()
    assert watched.bus(bus) is bus
    assert type(watched.resources(None, None, False)).__name__ == "Resources"
loaded = {name.partition(".")[0] for name in sys.modules}
assert not loaded & {"prometheus_client", "opentelemetry"}, loaded
assert "resia.runtime.observing" not in sys.modules
"""


def test_a_process_that_nobody_watches_loads_nothing_for_it():
    done = subprocess.run([sys.executable, "-c", UNWATCHED], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_worker_is_told_where_to_serve(tmp_path):
    config = ProcessConfig(url="nats://h:1", role="task", worker="task-1", blobs=tmp_path, metrics="9465")
    assert ProcessConfig.model_validate_json(config.model_dump_json()).metrics == "9465"
