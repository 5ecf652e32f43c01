"""vLLM for tests: a real server where one can be had, and one that speaks its interface over a tiny model.

What the engine says to both is one conformance suite. A real one takes half a minute to start, and minutes and
gigabytes to prepare, so nobody's tests prepare it unasked: `make test-vllm` asks. Faults of the other are switched on
by its fields.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from resia.events.errors import AssetError
from resia.runtime.assets import model_digest
from resia.runtime.engines.sampling import draw, uniforms
from resia.runtime.engines.vllm_protocol import Base
from resia.runtime.vllm_environment import BUILDS, located, prepare
from resia.runtime.vllm_serving import Server, Serving, start

VERSION = "0.0.0-fake"
PREPARE = "RESIA_TEST_VLLM"  # set to "prepare", vLLM is installed where it is not


@contextmanager
def real_server(model: Path, logs: Path) -> Iterator[Server]:
    """A vLLM server over `model` on this machine's processor; the test is skipped, with the reason, where there is no
    vLLM and none can be installed."""
    build = BUILDS["cpu"]
    if os.environ.get(PREPARE) == "prepare":
        try:
            environment = prepare(build, print)
        except AssetError as cause:
            pytest.skip(str(cause))
    elif (found := located(build)) is not None:
        environment = found
    else:
        pytest.skip(
            "vLLM is not prepared on this machine: run resia engine vllm prepare --device cpu, or make test-vllm"
        )
    server = start(environment, Serving(model, threads=1, rank=8, slots=2, memory_gb=1), logs, print)
    try:
        yield server
    finally:
        server.stop()


def base_of(folder: Path, **changed: Any) -> Base:
    about = {"dtype": "float32", "device": "cpu-fake", "threads": 1, "rank": 8, "slots": 2, **changed}
    return Base(**{"digest": model_digest(folder), **about})


class FakeVllm(ThreadingHTTPServer):
    """One replica. `loaded` are its adapters in the order of loading; `asked` the paths of its requests.

    `ill` answers 503 to completions; `breaking_off` is how many it gives the first token of alone;
    `tokenizer_offset` tokenizes otherwise than the folder does.
    """

    daemon_threads = True

    def __init__(self, folder: Path, name: str | None = None, version: str = VERSION, **changed: Any) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.version = folder, version
        self.name = name or base_of(folder, **changed).name()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.restart()
        self.asked: list[str] = []
        self.ill = False
        self.breaking_off = 0
        self.tokenizer_offset = 0
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def restart(self) -> None:
        """Forget every adapter."""
        self.model: Any = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32).eval()
        self.adapted: Any = None
        self.loaded: dict[str, str] = {}

    def stop(self) -> None:
        self.shutdown()
        self.server_close()

    def load(self, name: str, path: str) -> None:
        from peft import PeftModel

        if self.adapted is None:
            self.adapted = PeftModel.from_pretrained(self.model, path, adapter_name=name)
        elif name not in self.loaded:
            self.adapted.load_adapter(path, adapter_name=name)
        self.loaded[name] = path

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        if body["model"] == self.name and self.adapted is None:
            return self.sampled(self.model, body)
        if body["model"] == self.name:
            with self.adapted.disable_adapter():
                return self.sampled(self.adapted, body)
        self.adapted.set_adapter(body["model"])
        return self.sampled(self.adapted, body)

    def sampled(self, model: Any, body: dict[str, Any]) -> dict[str, Any]:
        tokens: list[int] = []
        logprobs: list[float] = []
        finish, cache, unread = "length", None, body["prompt"]
        for uniform in uniforms([body["seed"] % 2**63], body["max_tokens"])[0]:
            with torch.inference_mode():
                output = model(input_ids=torch.tensor([unread]), past_key_values=cache, use_cache=True)
            drawn = draw(output.logits[:, -1], body["temperature"], uniform[None])
            tokens.append(int(drawn.tokens[0]))
            cache, unread = output.past_key_values, tokens[-1:]
            logprobs.append(float(drawn.logprobs[0]))
            text = self.tokenizer.decode(tokens, skip_special_tokens=body["skip_special_tokens"])
            if tokens[-1] in body["stop_token_ids"] or any(stop in text for stop in body["stop"]):
                finish = "stop"
                break
        choice = {"token_ids": tokens, "prompt_token_ids": body["prompt"], "finish_reason": finish, "text": text}
        return {"choices": [{**choice, "logprobs": {"token_logprobs": logprobs}}]}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeVllm

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        root = str(self.server.folder)
        length = int(self.server.model.config.max_position_embeddings)
        base = {"id": self.server.name, "root": root, "parent": None, "max_model_len": length}
        adapters = [{"id": n, "root": p, "parent": self.server.name} for n, p in self.server.loaded.items()]
        answers: dict[str, Any] = {
            "/v1/models": {"data": [base, *adapters]},
            "/version": {"version": self.server.version},
        }
        self.answer(200, answers[self.path])

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.asked.append(self.path)
        with self.server.lock:
            self.answer(*self.reply(body))

    def reply(self, body: dict[str, Any]) -> tuple[int, Any]:
        match self.path:
            case "/tokenize":
                ids = self.server.tokenizer.encode(body["prompt"], add_special_tokens=body["add_special_tokens"])
                return 200, {"tokens": [token + self.server.tokenizer_offset for token in ids]}
            case "/v1/load_lora_adapter":
                self.server.load(body["lora_name"], body["lora_path"])
                return 200, {}
            case "/v1/unload_lora_adapter":
                return (200, {}) if self.server.loaded.pop(body["lora_name"], None) else (404, {"error": "no such"})
            case "/v1/completions" if self.server.ill:
                return 503, {"error": "ill"}
            case "/v1/completions" if body["model"] not in (self.server.name, *self.server.loaded):
                return 404, {"error": f"The model {body['model']} does not exist"}
            case "/v1/completions" if self.server.breaking_off:
                self.server.breaking_off -= 1
                whole = self.server.complete({**body, "max_tokens": 1})
                return 200, {"choices": [{**whole["choices"][0], "finish_reason": "abort"}]}
            case "/v1/completions":
                return 200, self.server.complete(body)
        return 404, {"error": "no such path"}

    def answer(self, status: int, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""
