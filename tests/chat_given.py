"""A local OpenAI-compatible endpoint that says what a test has recorded, and the settings that lead to it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

from resia.events import LlmSettings, Message

DATA = Path(__file__).parent / "data" / "llm"
KEY = "sk-canary-3f9a6b1c77d2"
KEY_MARK = "{{KEY}}"  # in a recorded reply: the key that the client sent, as a careless endpoint would repeat it
ASKED = (Message("system", "You edit."), Message("user", "Edit."))


class Reply(NamedTuple):
    """What the endpoint answers: a status, a body, headers. `sent` bytes of the body only, where it is cut."""

    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()
    sent: int | None = None


SILENCE = Reply(0, b"")  # never answers


def recorded(name: str) -> Reply:
    """A recorded completion, of tests/data/llm."""
    return Reply(200, (DATA / f"{name}.json").read_bytes())


def saying(text: str) -> Reply:
    """A completion with this text and no count of tokens."""
    return Reply(200, json.dumps({"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}).encode())


def failing(status: int, message: str = "no", code: str = "y", **headers: str) -> Reply:
    named = tuple((name.replace("_", "-"), value) for name, value in headers.items())
    return Reply(status, json.dumps({"error": {"message": message, "type": "x", "code": code}}).encode(), named)


class Endpoint:
    """Answers request n with `replies[n]`, and every later one with the last. `heard` are the requests' bodies."""

    def __init__(self, *replies: Reply) -> None:
        self.replies = list(replies)
        self.heard: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.paths: list[str] = []
        self._over, self._lock = threading.Event(), threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    def take(self, path: str, key: str | None, body: bytes) -> Reply:
        with self._lock:
            number = len(self.heard)
            self.heard.append(json.loads(body))
            self.keys.append(key)
            self.paths.append(path)
        return self.replies[min(number, len(self.replies) - 1)]

    def wait_for_the_end(self) -> None:
        self._over.wait()

    def start(self) -> None:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        self._over.set()
        self._server.shutdown()
        self._server.server_close()


def _handler(endpoint: Endpoint) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            key = self.headers.get("authorization") or self.headers.get("api-key")
            reply = endpoint.take(self.path, key, self.rfile.read(int(self.headers["content-length"])))
            if reply is SILENCE:
                endpoint.wait_for_the_end()
                return
            sent = (key or "").removeprefix("Bearer ").encode()
            body = reply.body.replace(KEY_MARK.encode(), sent)
            self.send_response(reply.status)
            for name, value in reply.headers:
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: reply.sent])

        def log_message(self, *args: object) -> None:
            pass

    return Handler


@contextmanager
def endpoint(*replies: Reply) -> Iterator[Endpoint]:
    made = Endpoint(*replies)
    made.start()
    try:
        yield made
    finally:
        made.stop()


def llm_settings(url: str, **changes: Any) -> LlmSettings:
    return LlmSettings(**{"base_url": url, "model": "recorded-1", "timeout_s": 10.0, **changes})
