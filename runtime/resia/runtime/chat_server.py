"""An HTTP server that speaks the OpenAI chat interface over one engine: `/v1/models` and `/v1/chat/completions`.

The standard library's server, a thread a connection, on one machine: completions are sampled one request at a time, a
few may wait, the rest are told to come back. Whatever is off is answered as JSON. It asks for no key, so it belongs on
loopback. Collaborators: `chat_protocol` (shapes), an engine of `resia.agents.ports`.
"""

from __future__ import annotations

import json
import secrets
import sys
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import structlog

from resia.agents.ports import NO_ROOM, Completion, Engine
from resia.events.errors import ModelError, UsageError
from resia.events.ids import sha256

from .chat_protocol import SEEDS, Asked, Refused, chunks, completion, error, model, models, read

MAX_BODY_BYTES = 4 << 20
DRAINED_BYTES = 64 << 20  # of a body that is refused, so that the client hears why
PIECE = 1 << 16
WAITING = 16  # requests for completions, the one that is sampled included
IDLE_S = 60.0  # of a connection
RETRY_S = 2
_log = structlog.get_logger()


class Served(NamedTuple):
    """What answers: an engine, LoRA weights over it (None: the base), and the name that clients call it by.

    `fingerprint` tells apart what answers under one name."""

    engine: Engine
    adapter: Path | None
    name: str

    @property
    def fingerprint(self) -> str:
        manifest = self.engine.manifest
        weights = sha256(self.adapter.read_bytes()) if self.adapter is not None and self.adapter.is_file() else ""
        return f"fp_{sha256(f'{manifest.model_digest} {manifest.dtype} {manifest.package} {weights}'.encode())[:12]}"


class ChatServer(ThreadingHTTPServer):
    """Bound to (host, port) once made; port 0 takes a free one. Raises UsageError where it cannot be."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, host: str, port: int, served: Served) -> None:
        self.served, self.created, self._host = served, int(time.time()), host
        self.fingerprint = served.fingerprint
        self.waiting, self._sampling = threading.BoundedSemaphore(WAITING), threading.Lock()
        try:
            super().__init__((host, port), _Handler)
        except (OSError, OverflowError) as cause:
            raise UsageError(
                f"{host}:{port} cannot be served on ({cause}): take another --host or --port, or port 0 for a free one"
            ) from None

    @property
    def url(self) -> str:
        """Base URL for clients."""
        return f"http://{self._host}:{self.server_port}/v1"

    def sample(self, asked: Asked) -> list[Completion]:
        """One prompt, a completion a seed; requests take turns. Raises ModelError, or Refused for a long prompt."""
        engine, adapter, _ = self.served
        prompts = [asked.messages] * len(asked.seeds)
        with self._sampling:
            found = engine.generate(prompts, asked.sampling, asked.seeds, adapter)
        if any(one.finish == NO_ROOM for one in found):
            tokens, wanted = len(found[0].prompt_ids), asked.sampling.max_new_tokens
            message = f"a prompt of {tokens} tokens leaves the model no room for {wanted}: shorten it, or ask for fewer"
            raise Refused(400, message, "context_length_exceeded")
        return found

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no matter; anything else is logged and the server goes on."""
        del request, client_address
        cause = sys.exc_info()[1]
        if not isinstance(cause, ConnectionError | TimeoutError):
            _log.warning("a request failed", error=f"{type(cause).__name__}: {cause}")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = IDLE_S
    server: ChatServer

    def do_GET(self) -> None:
        name, created = self.server.served.name, self.server.created
        answers = {"/v1/models": models(name, created), f"/v1/models/{name}": model(name, created)}
        path = self.path.partition("?")[0]
        if path in answers:
            self._answer(200, json.dumps(answers[path]).encode())
        else:
            self._refuse(Refused(404, f"there is no {path[:200]}: ask /v1/models or /v1/chat/completions", "not_found"))

    def do_POST(self) -> None:
        try:
            body = self._body()
            if self.path.partition("?")[0] != "/v1/chat/completions":
                raise Refused(404, f"there is no {self.path[:200]}: ask /v1/chat/completions", "not_found")
            self._complete(read(body, secrets.randbelow(SEEDS)))
        except Refused as cause:
            self._refuse(cause)
        except ModelError as cause:
            self._refuse(Refused(500, str(cause), "model_error"))

    def _complete(self, asked: Asked) -> None:
        name = self.server.served.name
        if asked.model != name:
            raise Refused(404, f"there is no model '{asked.model[:200]}', only '{name}'", "model_not_found")
        if not self.server.waiting.acquire(blocking=False):
            raise Refused(503, f"{WAITING} requests wait already: ask again later", "busy")
        try:
            found = self.server.sample(asked)
        finally:
            self.server.waiting.release()
        whole = completion(
            f"chatcmpl-{secrets.token_hex(12)}", int(time.time()), name, found, self.server.fingerprint, asked
        )
        if asked.stream:
            self._answer(200, chunks(whole), "text/event-stream")
        else:
            self._answer(200, json.dumps(whole).encode())

    def _body(self) -> bytes:
        """The request's JSON. A type that a page of another site may send unasked is not taken."""
        length = self.headers.get("content-length", "")
        if not (length.isascii() and length.isdigit()):
            self.close_connection = True
            raise Refused(411, "say Content-Length: a body in chunks is not taken", "length_required")
        if len(length) > 18 or int(length) > MAX_BODY_BYTES:
            self._drain(int(length[:18]))
            raise Refused(413, f"a body of more than {MAX_BODY_BYTES >> 20} MB is not taken", "too_large")
        body = self.rfile.read(int(length))
        if self.headers.get_content_type() != "application/json":
            raise Refused(415, "say Content-Type: application/json", "unsupported_media_type")
        return body

    def _drain(self, size: int) -> None:
        self.close_connection = True
        left = min(size, DRAINED_BYTES)
        while left > 0 and (piece := self.rfile.read(min(left, PIECE))):
            left -= len(piece)

    def _refuse(self, cause: Refused) -> None:
        self._answer(cause.status, error(str(cause), cause.code, cause.status))

    def _answer(self, status: int, body: bytes, media: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", media)
        self.send_header("Content-Length", str(len(body)))
        if status == HTTPStatus.SERVICE_UNAVAILABLE:
            self.send_header("Retry-After", str(RETRY_S))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the standard library refuses by itself, such as a line that is no HTTP, as JSON too."""
        self.close_connection = True
        self._refuse(Refused(code, message or explain or HTTPStatus(code).phrase))

    def version_string(self) -> str:
        return "resia"

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a prompt is the client's own."""
