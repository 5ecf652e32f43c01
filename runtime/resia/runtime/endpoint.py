"""Endpoints of a run: their settings checked before it begins, and their keys read where they are needed.

There are two: that of the proposer `llm` (section `llm`) and that of the engine `openai` (section `endpoint`). A key is
in one environment variable of the processes that ask, and nowhere else: no event, file, log line or message holds it.
"""

from __future__ import annotations

import os
import re
from urllib.parse import urlsplit

from resia.events import BASELINES, EndpointSettings, LlmSettings, RunSettings
from resia.events.errors import UsageError
from resia.events.ids import sha256

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_KEY = re.compile(r"[!-~]+")  # what an HTTP header takes
OWN_FIELDS = frozenset(
    {"model", "messages", "temperature", "stop", "seed", "n", "stream", "logprobs", "response_format"}
    | {"max_tokens", "max_completion_tokens", "return_token_ids", "tools"}
)


def check_endpoints(settings: RunSettings) -> None:
    """Raises UsageError when the run would ask an endpoint that cannot be asked from here, or not for this."""
    check_proposer(settings)
    check_engine(settings)


def check_proposer(settings: RunSettings) -> None:
    """The proposer's endpoint."""
    if settings.proposer != "llm":
        return
    _check_url(settings.llm.base_url, "llm", "proposer llm")
    if not settings.llm.model.strip():
        raise UsageError("llm.model is empty: name a model that the endpoint of llm.base_url serves")
    endpoint_key(settings.llm)


def check_engine(settings: RunSettings) -> None:
    """The engine's endpoint, and that nothing is to be trained by what it says."""
    if settings.engine.kind != "openai":
        return
    endpoint, mode = settings.endpoint, settings.loop.mode
    if mode != "H" and mode not in BASELINES:
        raise UsageError(
            f"mode {mode} trains weights, and the endpoint of engine.kind openai has none to train: take mode H, random"
            " or best-of-n"
        )
    _check_url(endpoint.base_url, "endpoint", "engine.kind openai")
    if not settings.engine.model.strip():
        raise UsageError("engine.model is empty: name a model that the endpoint of endpoint.base_url serves")
    if taken := sorted(OWN_FIELDS & set(endpoint.extra)):
        raise UsageError(f"endpoint.extra has {taken[0]}, which is set by the run: leave it out")
    endpoint_key(endpoint)


def endpoint_digest(settings: RunSettings) -> str:
    """What stands in for the digest of weights that nobody here has: that of URL and model."""
    return sha256(f"{settings.endpoint.base_url.rstrip('/')}\n{settings.engine.model}".encode())


def _check_url(url: str, section: str, who: str) -> None:
    """What may hold a password is not repeated."""
    wanted = "give the endpoint's URL up to its version, such as https://HOST/v1"
    if not url:
        raise UsageError(f"{who} needs {section}.base_url: {wanted}")
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise UsageError(f"{section}.base_url cannot be read as a URL: {wanted}") from None
    if parts.username or parts.password or parts.query or parts.fragment:
        raise UsageError(
            f"{section}.base_url holds a login or a query: name the key's environment variable in {section}.key_env"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname or not url.isprintable() or " " in url:
        raise UsageError(f"{section}.base_url is {url!r}, no http or https URL: {wanted}")


def endpoint_key(settings: LlmSettings | EndpointSettings) -> str:
    """The key, empty where none is asked for; UsageError naming the variable that does not hold one."""
    name, setting = settings.key_env, f"{section_of(settings)}.key_env"
    if not name:
        return ""
    if not _NAME.fullmatch(name):  # perhaps the key itself, so it is not repeated
        raise UsageError(f"{setting} is no name of an environment variable: put the key in one and name that")
    key = os.environ.get(name, "").strip()
    if not key:
        raise UsageError(f"the environment variable {name}, which {setting} names, is not set: set it to the key")
    if not _KEY.fullmatch(key):
        raise UsageError(f"the environment variable {name} holds no key: spaces and other letters than ASCII cannot be")
    return key


def section_of(settings: LlmSettings | EndpointSettings) -> str:
    """The section of the settings that a message names."""
    return "llm" if isinstance(settings, LlmSettings) else "endpoint"
