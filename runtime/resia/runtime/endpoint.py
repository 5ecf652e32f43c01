"""The endpoint of the proposer `llm`: its settings checked before a run begins, and its key read where it is needed.

The key is in one environment variable of the processes that ask, and nowhere else: no event, file, log line or message
holds it.
"""

from __future__ import annotations

import os
import re
from urllib.parse import urlsplit

from resia.events import LlmSettings, RunSettings
from resia.events.errors import UsageError

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_KEY = re.compile(r"[!-~]+")  # what an HTTP header takes


def check_proposer(settings: RunSettings) -> None:
    """Raises UsageError when the run would ask an endpoint that cannot be asked from here."""
    if settings.proposer != "llm":
        return
    _check_url(settings.llm.base_url)
    if not settings.llm.model.strip():
        raise UsageError("llm.model is empty: name a model that the endpoint of llm.base_url serves")
    endpoint_key(settings.llm)


def _check_url(url: str) -> None:
    """What may hold a password is not repeated."""
    wanted = "give the endpoint's URL up to its version, such as https://HOST/v1"
    if not url:
        raise UsageError(f"proposer llm needs llm.base_url: {wanted}")
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise UsageError(f"llm.base_url cannot be read as a URL: {wanted}") from None
    if parts.username or parts.password or parts.query or parts.fragment:
        raise UsageError("llm.base_url holds a login or a query: name the key's environment variable in llm.key_env")
    if parts.scheme not in ("http", "https") or not parts.hostname or not url.isprintable() or " " in url:
        raise UsageError(f"llm.base_url is {url!r}, no http or https URL: {wanted}")


def endpoint_key(settings: LlmSettings) -> str:
    """The key, empty where none is asked for; UsageError naming the variable that does not hold one."""
    name = settings.key_env
    if not name:
        return ""
    if not _NAME.fullmatch(name):  # perhaps the key itself, so it is not repeated
        raise UsageError("llm.key_env is no name of an environment variable: put the key in one and name that")
    key = os.environ.get(name, "").strip()
    if not key:
        raise UsageError(f"the environment variable {name}, which llm.key_env names, is not set: set it to the key")
    if not _KEY.fullmatch(key):
        raise UsageError(f"the environment variable {name} holds no key: spaces and other letters than ASCII cannot be")
    return key
