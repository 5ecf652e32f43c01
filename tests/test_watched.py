"""A whole run that is watched from outside: metrics of every process, spans at a collector, and lines that say what
they are about. Real processes, a real server, and a collector that decodes what OpenTelemetry's exporter sends."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import threading
import urllib.request
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import pytest

from given import SETTINGS
from resia.events import EvaluationCompleted, Fact, Logged, RolloutRecorded, ShardSampled
from resia.events.tracing import span_id, trace_id, trace_in
from resia.replay.spans import Span, spans
from resia.replay.state import RunState
from resia.runtime import cli
from resia.runtime.cli_options import DONE
from resia.runtime.config import load_settings
from resia.runtime.reading import load
from resia.runtime.session import Session, Watch, launch
from resia.runtime.store import Store

prometheus = pytest.importorskip("prometheus_client.parser", reason="needs resia[ops]")
collector = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2", reason="needs resia[ops]")

RUN = "seen"
ROLES = ("meta", "task", "feedback")
WORKERS = {**dict.fromkeys(ROLES, 1), "trainer": 0}
OWN = [*SETTINGS, "loop.mode=H", "loop.max_iterations=1", "sampling.group_size=4"]


class Collector(ThreadingHTTPServer):
    """What an OTLP/HTTP collector is: it takes POST /v1/traces."""

    daemon_threads = True

    def __init__(self) -> None:
        self.requests: list[object] = []
        super().__init__(("127.0.0.1", 0), Taken)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def spans(self) -> Iterator[tuple[str, object]]:
        """(worker, span) of everything that came."""
        for request in self.requests:
            for resource in request.resource_spans:
                named = {a.key: a.value.string_value for a in resource.resource.attributes}
                for scope in resource.scope_spans:
                    yield from ((named["service.instance.id"], span) for span in scope.spans)


class Taken(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        assert self.path == "/v1/traces"
        if self.headers["Content-Type"] == "application/json":
            json.loads(body)
        else:
            self.server.requests.append(collector.ExportTraceServiceRequest.FromString(body))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing: a test's output is its own."""


Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def scraped(url: str) -> Samples:
    with urllib.request.urlopen(url) as answer:
        text = answer.read().decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in prometheus.text_string_to_metric_families(text)
        for sample in family.samples
    }


def lines(folder: Path, worker: str) -> list[dict[str, object]]:
    text = (folder / "workers" / RUN / f"{worker}.log").read_text()
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


class Played(NamedTuple):
    folder: Path
    facts: tuple[Logged, ...]
    samples: dict[str, Samples]
    at: int  # number of the event after which the samples were taken
    collector: Collector
    state: RunState


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Played]:
    import tiny_agent

    folder, taken = tmp_path_factory.mktemp("watched"), Collector()
    model = tiny_agent.unpack(tmp_path_factory.mktemp("taught"))
    samples: dict[str, Samples] = {}
    at: list[int] = []

    def on_fact(state: RunState, fact: Logged) -> None:
        # The process that closes an evaluation has by then counted all of it, and nothing else is asked of it yet.
        if isinstance(fact, Fact) and isinstance(fact.event, EvaluationCompleted) and fact.event.purpose != "test":
            at.append(fact.sequence)
            for worker in [f"{role}-1" for role in ROLES]:
                *_, url = (line["url"] for line in lines(folder, worker) if line["event"] == "metrics")
                samples[worker] = scraped(url)

    settings = load_settings(None, [*OWN, f"engine.model={model}"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", taken.url)
        session = Session(RUN, settings, Store(folder), WORKERS, metrics="0")
        state = asyncio.run(launch(session, Watch(fact=on_fact)))
    yield Played(folder, asyncio.run(load(Store(folder), RUN)).facts, samples, at[-1], taken, state)
    taken.shutdown()
    taken.server_close()


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples.get((name, tuple(sorted(labels.items()))), 0.0)


def total(samples: Samples, name: str, **labels: str) -> float:
    return sum(v for (n, held), v in samples.items() if n == name and labels.items() <= dict(held).items())


def test_counters_are_what_the_log_holds(played):
    task, before = played.samples["task-1"], [f for f in played.facts if f.sequence < played.at]
    events = [f.event for f in before if isinstance(f, Fact)]
    rollouts = [e for e in events if isinstance(e, RolloutRecorded)]
    assert len(rollouts) > 10
    found = Counter(e.failure or "none" for e in rollouts)
    assert {f: value(task, "resia_rollouts_total", failure=f) for f in found} == found
    assert total(task, "resia_rollouts_total") == len(rollouts)
    assert value(task, "resia_tokens_total", direction="in") == sum(e.prompt_tokens for e in rollouts)
    assert value(task, "resia_tokens_total", direction="out") == sum(e.completion_tokens for e in rollouts)
    shards = [e for e in events if isinstance(e, ShardSampled)]
    assert value(task, "resia_shard_seconds_count") == len(shards)
    assert value(task, "resia_shard_seconds_sum") == pytest.approx(sum(e.seconds for e in shards))
    wrote = Counter(f.envelope.type for f in before if f.envelope.producer.role == "task")
    del wrote["evaluation-completed"]  # the one that was just read may be counted already
    assert {k: value(task, "resia_events_total", op="appended", type=k) for k in wrote} == wrote


def test_the_work_itself_is_timed_and_counted(played):
    task = played.samples["task-1"]
    assert value(task, "resia_append_seconds_count", outcome="appended") > 3
    assert value(task, "resia_engine_seconds_count", outcome="done") >= value(task, "resia_shard_seconds_count")
    assert total(task, "resia_sandbox_runs_total") > 0
    assert value(task, "resia_blob_bytes_total", op="put") > 1000
    assert value(task, "resia_handled_total", outcome="wrote") > 1
    assert value(task, "resia_handled_total", outcome="failed") == 0
    assert value(task, "process_resident_memory_bytes") > 10e6
    assert ("resia_fold_lag", ()) in task
    for samples in played.samples.values():
        assert total(samples, "resia_redeliveries_total") == 0
        assert total(samples, "resia_events_total", op="read") > 0


def test_no_label_holds_a_run_or_an_id(played):
    ids = {f.envelope.id for f in played.facts if isinstance(f, Fact)}
    for samples in played.samples.values():
        said = {text for _, labels in samples for _, text in labels}
        assert not said & (ids | {RUN})


def flat(span: Span) -> tuple[object, ...]:
    return span.trace, span.id, span.parent, span.name, span.start_ns, span.end_ns, span.worker


def test_what_the_processes_sent_is_what_the_log_says(played):
    sent = Counter(
        (
            *(span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex(), span.name),
            *(span.start_time_unix_nano, span.end_time_unix_nano, worker),
        )
        for worker, span in played.collector.spans()
    )
    rebuilt = Counter(map(flat, spans(RUN, played.facts)))
    assert sent == rebuilt
    workers = {key[-1] for key in sent}
    assert workers == {"cli", *(f"{role}-1" for role in ROLES)}


def test_every_envelope_names_the_trace_of_its_iteration(played):
    for fact in played.facts:
        iteration = played.state.iteration_at(fact.sequence)
        assert trace_in(fact.envelope.trace) == trace_id(RUN, iteration)
        assert fact.envelope.trace.split("-")[2] == span_id(fact.envelope.id)


def test_a_trace_hangs_together(played):
    found = list(spans(RUN, played.facts))
    by_trace: dict[str, dict[str, Span]] = {}
    for span in found:
        by_trace.setdefault(span.trace, {})[span.id] = span
    assert len(by_trace) == played.state.iteration + 1
    for held in by_trace.values():
        roots = [span for span in held.values() if not span.parent]
        assert [span.name.split()[0] for span in roots] == ["iteration"]
        assert all(span.parent in held for span in held.values() if span.parent)
        assert all(roots[0].start_ns <= span.start_ns <= span.end_ns for span in held.values())
    links = [span for span in found if span.link]
    assert all(span.link[1] in by_trace[span.link[0]] for span in links)
    assert len({span.link[0] for span in links}) == played.state.iteration


def test_the_command_makes_the_same_spans_of_the_log(played, capsys, tmp_path):
    out = tmp_path / "spans.jsonl"
    assert cli.main(["trace", RUN, "--store", str(played.folder), "--out", str(out), "--json"]) == DONE
    said = json.loads(capsys.readouterr().out)
    requests = [json.loads(line) for line in out.read_text().splitlines()]
    held = [
        (span, {a["key"]: a["value"]["stringValue"] for a in resource["resource"]["attributes"]})
        for request in requests
        for resource in request["resourceSpans"]
        for span in resource["scopeSpans"][0]["spans"]
    ]
    rebuilt = Counter(map(flat, spans(RUN, played.facts)))
    ints = ("startTimeUnixNano", "endTimeUnixNano")
    assert rebuilt == Counter(
        (s["traceId"], s["spanId"], s["parentSpanId"], s["name"], *(int(s[i]) for i in ints), of["service.instance.id"])
        for s, of in held
    )
    assert said["spans"] == len(held)
    assert said["traces"] == played.state.iteration + 1
    for request in requests:  # what the specification's own schema reads
        from google.protobuf import json_format

        for resource in request["resourceSpans"]:
            for span in resource["scopeSpans"][0]["spans"]:
                assert re.fullmatch("[0-9a-f]{32}", span["traceId"])
                span["traceId"] = span["spanId"] = span["parentSpanId"] = ""  # OTLP has hex where protobuf has base64
                for link in span["links"]:
                    link["traceId"] = link["spanId"] = ""
        json_format.ParseDict(request, collector.ExportTraceServiceRequest())


def test_every_line_about_an_event_says_which(played):
    by_number = {f.sequence: f.envelope for f in played.facts}
    seen = 0
    for worker in [f"{role}-1" for role in ROLES]:
        for line in lines(played.folder, worker):
            if line["event"] != "handled":
                continue
            envelope = by_number[line["sequence"]]
            assert (line["id"], line["cause"], line["run"]) == (envelope.id, envelope.cause, RUN)
            assert line["iteration"] == played.state.iteration_at(line["sequence"])
            assert line["worker"] == worker
            seen += 1
    assert seen > 10
