"""One vLLM server: what it serves, the adapters that it has loaded, and completions.

Adapters are loaded when they are first asked for, under a name that their digest gives, and the least recent one goes
when the server's slots are full. A server that was started again, or whose adapters another client has unloaded, is
asked anew. Failures that another try or another replica may mend are `Passing`. Safe to use from several threads.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import httpx2
from pydantic import BaseModel, ValidationError

from resia.events.errors import ModelError

from .chat_tokens import ChatTokens
from .vllm_protocol import PROBE, RANKS, Base, Completed, Model, Models, Tokens, Version, base_named

CONNECT_S, ANSWER_S = 5.0, 600.0
PASSING = frozenset({408, 425, 429, *range(500, 600)})
ENDED = frozenset({"stop", "length"})  # any other is the server's doing: what is there is no whole completion
QUOTED_CHARS = 300
Reply = TypeVar("Reply", bound=BaseModel)


class Passing(Exception):
    """A failure that may pass."""


class Gone(Passing):
    """The server does not know the name that it was asked for: it was started again, or an adapter was unloaded."""


class Peft(NamedTuple):
    """An adapter as a server loads it: `folder` must be readable where the server runs."""

    digest: str
    rank: int
    folder: Path

    @property
    def name(self) -> str:
        return f"resia-adapter-{self.digest}"


class About(NamedTuple):
    """What a server is: the base, vLLM's version, and the context in tokens."""

    base: Base
    version: str
    context: int


class Replica:
    """The server at `url`, which must serve the base with `digest` and tokenize as `chat` does."""

    def __init__(self, url: str, digest: str, chat: ChatTokens) -> None:
        self.url = url
        self._digest, self._chat = digest, chat
        self._about: About | None = None
        self._loaded: OrderedDict[str, None] = OrderedDict()
        self._changing = threading.RLock()
        self._client = httpx2.Client(
            base_url=url,
            timeout=httpx2.Timeout(ANSWER_S, connect=CONNECT_S),
            limits=httpx2.Limits(max_connections=None),
            follow_redirects=False,
        )

    def close(self) -> None:
        self._client.close()

    def about(self, again: bool = False) -> About:
        """What it serves, asked once, or `again`: it may have been started anew. Raises Passing, or ModelError where it
        is not what the run needs."""
        with self._changing:
            if again:
                self._forget()
            if self._about is None:
                self._about = self._asked()
            return self._about

    def require_rank(self, rank: int, what: str) -> None:
        """Raises ModelError, of which `what` is the beginning, where the server takes no adapters of `rank`."""
        most = self.about().base.rank
        if rank > most:
            wanted = min(fitting) if (fitting := [known for known in RANKS if known >= rank]) else RANKS[-1]
            raise ModelError(
                f"{what}, and the vLLM server at {self.url} takes ranks up to {most}: serve with --max-lora-rank"
                f" {wanted}, or train with a lower training.rank"
            )

    def complete(self, body: dict[str, Any], adapter: Peft | None) -> Completed:
        """The reply to `body` from the base, or from the base with `adapter`. Raises Passing or ModelError."""
        model = self._use(adapter)
        try:
            reply = self._post("/v1/completions", {**body, "model": model}, Completed)
        except Gone:
            self._forget()
            raise
        if (finish := reply.choices[0].finish_reason) not in ENDED:
            raise Passing(f"the vLLM server at {self.url} broke a completion off (finish_reason {finish})")
        return reply

    def _asked(self) -> About:
        models, version = self._get("/v1/models", Models), self._get("/version", Version)
        served = next((model for model in models.data if base_named(model.id)), None)
        if served is None:
            names = ", ".join(f"'{_shown(model)}'" for model in models.data if model.parent is None) or "nothing"
            raise ModelError(
                f"the vLLM server at {self.url} serves {names}, and not the run's base {self._digest[:12]}: start it"
                " with resia engine vllm serve"
            )
        base = base_named(served.id)
        assert base is not None
        if base.digest != self._digest:
            raise ModelError(
                f"the vLLM server at {self.url} serves base {base.digest[:12]} ({served.root}), and the run's base is"
                f" {self._digest[:12]}: serve the run's model, or set engine.urls to a server that does"
            )
        theirs = self._post("/tokenize", {"model": served.id, "prompt": PROBE, "add_special_tokens": False}, Tokens)
        if theirs.tokens != self._chat.tokens(PROBE):
            raise ModelError(
                f"the vLLM server at {self.url} has the weights of base {self._digest[:12]} and another tokenizer than"
                " the run's model folder: serve that folder"
            )
        return About(base, version.version, served.max_model_len or 0)

    def _use(self, adapter: Peft | None) -> str:
        """The name to ask for, the adapter loaded under it."""
        with self._changing:
            base = self.about().base
            if adapter is None:
                return base.name()
            self.require_rank(adapter.rank, f"adapter {adapter.digest[:12]} has rank {adapter.rank}")
            if adapter.name not in self._loaded:
                self._load(adapter, base.slots)
            self._loaded.move_to_end(adapter.name)
            return adapter.name

    def _load(self, adapter: Peft, slots: int) -> None:
        while len(self._loaded) >= slots:
            oldest, _ = self._loaded.popitem(last=False)
            response = self._send("POST", "/v1/unload_lora_adapter", {"lora_name": oldest})
            if response.status_code not in (200, 400, 404):  # one that is not there any more is unloaded
                raise self._refusal(response)
        # In place, as another client may have loaded the same weights, under the same name.
        asked = {"lora_name": adapter.name, "lora_path": str(adapter.folder), "load_inplace": True}
        response = self._send("POST", "/v1/load_lora_adapter", asked)
        if response.status_code != 200:
            raise self._refusal(response, f"does not load adapter {adapter.digest[:12]} from {adapter.folder}")
        self._loaded[adapter.name] = None

    def _forget(self) -> None:
        with self._changing:
            self._about = None
            self._loaded.clear()

    def _get(self, path: str, kind: type[Reply]) -> Reply:
        return self._read(self._send("GET", path, None), kind)

    def _post(self, path: str, body: dict[str, Any], kind: type[Reply]) -> Reply:
        return self._read(self._send("POST", path, body), kind)

    def _send(self, method: str, path: str, body: dict[str, Any] | None) -> httpx2.Response:
        try:
            return self._client.request(method, path, json=body)
        except httpx2.RequestError as cause:
            raise Passing(f"{self.url} cannot be reached ({type(cause).__name__}: {cause})") from cause

    def _read(self, response: httpx2.Response, kind: type[Reply]) -> Reply:
        if response.status_code != 200:
            raise self._refusal(response)
        try:
            return kind.model_validate_json(response.content)
        except ValidationError as cause:
            first = cause.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise ModelError(
                f"the vLLM server at {self.url} answered what is no {kind.__name__}: {where} {first['msg']}"
            ) from None

    def _refusal(self, response: httpx2.Response, what: str = "refuses") -> Exception:
        said = " ".join(response.text[:QUOTED_CHARS].split())
        text = f"the vLLM server at {self.url} {what}: {response.status_code} {said}"
        if response.status_code == 404:
            return Gone(text)
        return Passing(text) if response.status_code in PASSING else ModelError(text)


def _shown(model: Model) -> str:
    return model.root or model.id
