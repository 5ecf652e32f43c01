"""The server for OpenAI-compatible clients: what it answers, what it refuses and how, and that it goes on."""

from __future__ import annotations

import http.client
import json
import threading
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import pytest
import stored_runs
from chat_given import ASKED, llm_settings
from scripted import ScriptedEngine

from histories import World
from resia.agents.ports import NO_ROOM, Completion, Sampling
from resia.events import EngineSettings, Message
from resia.events.errors import EndpointRefused, ModelError, UsageError
from resia.runtime import chat_server
from resia.runtime.chat_server import MAX_BODY_BYTES, ChatServer, Served
from resia.runtime.cli import main
from resia.runtime.cli_options import FAILED, USAGE
from resia.runtime.cli_serve import _champion
from resia.runtime.engines.openai_chat import OpenAiChat
from resia.runtime.store import Store

HELLO = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
PATH = "/v1/chat/completions"


@contextmanager
def running(engine, name: str = "m", adapter: Path | None = None):
    server = ChatServer("127.0.0.1", 0, Served(engine, adapter, name))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def engine():
    return ScriptedEngine(lambda prompt, seed: f"{prompt}?")


@pytest.fixture
def server(engine):
    with running(engine) as made:
        yield made


def send(server, body, method="POST", path=PATH, **headers):
    """(status, body as JSON where it is, headers)."""
    where = urlsplit(server.url)
    line = http.client.HTTPConnection(where.hostname, where.port, timeout=30)
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    line.request(method, path, data if method == "POST" else None, {"Content-Type": "application/json", **named})
    answer = line.getresponse()
    text = answer.read()
    line.close()
    media = answer.getheader("content-type")
    return answer.status, json.loads(text) if media == "application/json" else text, answer


def refusal(answer) -> str:
    status, body, _ = answer
    assert set(body["error"]) == {"message", "type", "param", "code"}
    return f"{status} {body['error']['code']}: {body['error']['message']}"


def test_it_tells_its_model(server):
    status, body, _ = send(server, b"", "GET", "/v1/models")
    assert (status, [m["id"] for m in body["data"]]) == (200, ["m"])
    assert send(server, b"", "GET", "/v1/models/m")[1]["object"] == "model"


def test_a_completion_has_its_text_and_its_cost(server, engine):
    status, body, _ = send(server, {**HELLO, "temperature": 0.2, "max_tokens": 7, "stop": ["\n"], "seed": 5})
    assert status == 200
    assert body["object"] == "chat.completion"
    assert body["choices"] == [
        {"index": 0, "message": {"role": "assistant", "content": "hello?"}, "finish_reason": "stop"}
    ]
    assert body["usage"] == {"prompt_tokens": 3, "completion_tokens": 6, "total_tokens": 9}
    assert engine.calls == [(Sampling(0.2, 7, ("\n",)), (5,), None)]


def test_adapter_weights_are_used_for_every_request(engine, tmp_path):
    with running(engine, adapter=tmp_path / "a.safetensors") as server:
        send(server, HELLO)
        send(server, HELLO)
    assert [adapter for _, _, adapter in engine.calls] == [tmp_path / "a.safetensors"] * 2


async def test_a_runs_champion_is_its_engine_and_its_adapter(bus, run, access, tmp_path):
    """The played run trains from a champion that was trained already, so its last one has an adapter."""
    store = Store(tmp_path, access.url.replace("nats://", f"nats://admin:{access.passwords['admin']}@"))
    history = stored_runs.played(run, world=World(training=0.3, noise=0.02), mode="W")
    adapter = history.state.champion.candidate.adapter
    assert adapter is not None
    await stored_runs.keep(bus, run, history, store.blobs())
    engine, path = await _champion(store, run)
    assert engine == history.state.request.settings.engine
    assert path.read_bytes() == history.blobs[adapter.digest]


def test_several_choices_draw_from_seeds_of_their_own(server, engine):
    _, body, _ = send(server, {**HELLO, "n": 3, "seed": -1})
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    ((_, seeds, _),) = engine.calls
    assert len(set(seeds)) == 3
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_every_role_and_parts_of_text_are_read(server, engine):
    messages = [
        {"role": "developer", "content": "d"},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]},
    ]
    send(server, {**HELLO, "messages": messages})
    assert engine.messages == [Message("system", "d"), Message("assistant", "a"), Message("user", "one two")]


def test_a_stream_is_the_same_text_as_events(server):
    status, body, answer = send(server, {**HELLO, "stream": True})
    assert (status, answer.getheader("content-type")) == (200, "text/event-stream")
    *lines, done = [line.removeprefix("data: ") for line in body.decode().split("\n\n") if line]
    assert done == "[DONE]"
    pieces = [json.loads(line) for line in lines]
    assert "".join(c["delta"].get("content", "") for p in pieces for c in p["choices"]) == "hello?"
    assert [c.get("finish_reason") for p in pieces for c in p["choices"]] == [None, "stop"]
    assert {p["object"] for p in pieces} == {"chat.completion.chunk"}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "400 invalid_request: the body: Invalid JSON"),
        (b'{"model": "m", "messages": ', "400 invalid_request: the body: Invalid JSON"),
        (b"\xff\xfe", "400 invalid_request: the body: Invalid JSON"),
        (b"[]", "400 invalid_request: the body: Input should be an object"),
        ({"model": "m"}, "400 invalid_request: messages: Field required"),
        ({"model": "m", "messages": []}, "400 invalid_request: messages: List should have at least 1"),
        ({**HELLO, "messages": [{"role": "tool", "content": "x"}]}, "400 invalid_request: messages.0.role"),
        ({**HELLO, "messages": [{"role": "user", "content": None}]}, "400 invalid_request: messages.0.content"),
        ({**HELLO, "temperature": 3}, "400 invalid_request: temperature: Input should be less than or equal to 2"),
        ({**HELLO, "max_tokens": 0}, "400 invalid_request: max_tokens"),
        ({**HELLO, "max_tokens": 10**9}, "400 invalid_request: max_tokens"),
        ({**HELLO, "n": 99}, "400 invalid_request: n: Input should be less than or equal to 16"),
        ({**HELLO, "stop": [""]}, "400 invalid_request: stop"),
        ({**HELLO, "tools": [{}], "top_p": 0.5}, "400 unsupported_parameter: this server does not know tools, top_p"),
        ({**HELLO, "response_format": {"type": "json_object"}}, "400 unsupported_parameter"),
        ({**HELLO, "model": "other"}, "404 model_not_found: there is no model 'other', only 'm'"),
    ],
)
def test_a_request_that_is_off_is_answered_with_what_is_off(server, engine, body, said):
    assert refusal(send(server, body)).startswith(said)
    assert engine.calls == []
    assert send(server, HELLO)[0] == 200


def test_other_paths_and_methods_are_named(server):
    assert refusal(send(server, b"", "GET", "/")).startswith("404 not_found: there is no /:")
    assert refusal(send(server, HELLO, path="/v1/embeddings")).startswith("404 not_found")
    assert refusal(send(server, b"", "DELETE", "/v1/models")).startswith("501")


def test_what_another_sites_page_may_send_is_not_taken(server, engine):
    assert refusal(send(server, HELLO, Content_Type="text/plain")).startswith("415")
    assert engine.calls == []


def test_a_field_of_ten_megabytes_is_refused_and_the_client_hears_it(server, engine):
    huge = {**HELLO, "messages": [{"role": "user", "content": "x" * (10 << 20)}]}
    assert refusal(send(server, huge)).startswith("413 too_large: a body of more than 4 MB")
    assert engine.calls == []
    assert send(server, HELLO)[0] == 200


@pytest.mark.parametrize("length", ["-1", "x", str(10**30)])
def test_an_absurd_length_is_refused(server, length):
    where = urlsplit(server.url)
    line = http.client.HTTPConnection(where.hostname, where.port, timeout=30)
    line.putrequest("POST", PATH)
    line.putheader("Content-Length", length)
    line.endheaders()
    line.sock.shutdown(1)  # nothing more is coming
    assert line.getresponse().status in (411, 413)
    line.close()


def test_a_body_at_the_limit_is_read(server):
    padding = "x" * (MAX_BODY_BYTES - len(json.dumps({**HELLO, "padding": ""})))
    assert send(server, {**HELLO, "padding": padding})[0] == 200


class Full(ScriptedEngine):
    def generate(self, prompts, sampling, seeds, adapter, on_tokens=None):
        return [Completion((1,) * 50, (), (), "", NO_ROOM) for _ in prompts]


def test_a_prompt_that_leaves_no_room_is_refused_by_its_length():
    with running(Full(lambda prompt, seed: "")) as server:
        said = refusal(send(server, HELLO))
        chat = OpenAiChat(llm_settings(server.url, model="m"), "")
        with pytest.raises(EndpointRefused, match="HTTP 400"):
            chat.complete(ASKED)
    assert said.startswith("400 context_length_exceeded: a prompt of 50 tokens leaves the model no room for 256")


def test_an_engine_that_breaks_is_an_error_of_the_server_and_the_next_request_is_served():
    with running(ScriptedEngine(lambda prompt, seed: "fine", broken=1)) as server:
        assert refusal(send(server, HELLO)) == "500 model_error: the model is gone"
        assert send(server, HELLO)[0] == 200


class Slow(ScriptedEngine):
    """Samples when it is told to."""

    def __init__(self) -> None:
        super().__init__(lambda prompt, seed: "done")
        self.began, self.go_on = threading.Event(), threading.Event()

    def generate(self, *args, **kwargs):
        self.began.set()
        self.go_on.wait()
        return super().generate(*args, **kwargs)


def test_more_requests_than_may_wait_are_told_to_come_back(monkeypatch):
    monkeypatch.setattr(chat_server, "WAITING", 1)
    engine, found = Slow(), []
    with running(engine) as server:
        first = threading.Thread(target=lambda: found.append(send(server, HELLO)))
        first.start()
        engine.began.wait()
        status, body, answer = send(server, HELLO)
        engine.go_on.set()
        first.join()
    assert (status, body["error"]["code"], answer.getheader("retry-after")) == (503, "busy", "2")
    assert [status for status, *_ in found] == [200]


def test_a_client_that_goes_away_harms_nobody(server):
    where = urlsplit(server.url)
    line = http.client.HTTPConnection(where.hostname, where.port, timeout=30)
    line.putrequest("POST", PATH)
    line.putheader("Content-Length", "1000")
    line.endheaders(b'{"model"')
    line.close()
    assert send(server, HELLO)[0] == 200


def test_a_port_that_is_taken_is_named(server):
    with pytest.raises(UsageError, match=f"{server.server_port} cannot be served on"):
        ChatServer("127.0.0.1", server.server_port, server.served)


# -- the real engine ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    from resia.runtime.engines.tiny import build_tiny_model

    return build_tiny_model(tmp_path_factory.mktemp("tiny"))


def test_the_embedded_engine_gives_its_own_tokens(tiny):
    from resia.runtime.engines.transformers_engine import TransformersEngine

    engine = TransformersEngine(tiny, EngineSettings(model=str(tiny), threads=1))
    (own,) = engine.generate([ASKED], Sampling(0.8, 12), [9], None)
    with running(engine) as server:
        messages = [msgspec.to_builtins(message) for message in ASKED]
        asked = {"model": "m", "messages": messages, "temperature": 0.8, "max_completion_tokens": 12, "seed": 9}
        _, body, _ = send(server, asked)
        reply = OpenAiChat(llm_settings(server.url, model="m", max_tokens=12), "").complete(ASKED)
        with pytest.raises(ModelError, match="no room for 5000"):
            OpenAiChat(llm_settings(server.url, model="m", max_tokens=5000), "").complete(ASKED)
    assert body["choices"][0]["message"]["content"] == own.text
    assert body["usage"]["prompt_tokens"] == len(own.prompt_ids) == reply.prompt_tokens


def served_with(*args: str, capsys) -> tuple[int, str]:
    code = main(["serve", *args])
    return code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (("--run", "r", "--model", "m"), USAGE, "--run has its own model and adapter"),
        (("--adapter", "none.safetensors"), USAGE, "there is no adapter none.safetensors"),
        (("--model", "nonesuch"), USAGE, "unknown asset 'nonesuch'"),
        (("--run", "r", "--store", "nowhere"), USAGE, "there is no store at nowhere"),
        (("--port", "70000"), USAGE, "'--port'"),
    ],
)
def test_the_command_names_what_is_off(capsys, args, code, words):
    assert (served_with(*args, capsys=capsys)[0], True) == (code, True)
    assert words in served_with(*args, capsys=capsys)[1]


def test_an_adapter_of_another_base_is_named_before_anybody_asks(tiny, tmp_path, capsys):
    wrong = tmp_path / "wrong.safetensors"
    wrong.write_bytes(b"no weights")
    code, said = served_with("--model", str(tiny), "--adapter", str(wrong), capsys=capsys)
    assert code == FAILED
    assert "wrong.safetensors" in said
