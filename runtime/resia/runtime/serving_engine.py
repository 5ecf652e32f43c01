"""The engine that a run asks, checked before the run begins: its settings, and each server that it names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from resia.events import BASELINES, EngineSettings, RunSettings
from resia.events.errors import ModelError, UsageError

if TYPE_CHECKING:
    from .engines.vllm_engine import VllmEngine


def served_engine(folder: Path, digest: str, settings: EngineSettings, cache: Path | None) -> VllmEngine:
    """The engine over the servers of `settings`, for the base in `folder`; nothing is asked yet."""
    from .engines.vllm_engine import VllmEngine
    from .vllm_environment import engines_folder

    return VllmEngine(folder, digest, settings, engines_folder(cache) / "adapters")


def check_engine(settings: EngineSettings, folder: Path, cache: Path | None, rank: int = 0) -> None:
    """Raises UsageError where the settings do not fit each other, or a server is down, serves something else or takes
    no adapters of `rank`; 0: none is trained."""
    if settings.kind == "transformers":
        if settings.urls:
            raise UsageError("engine.urls is set and engine.kind is transformers: set engine.kind=vllm too")
        return
    if not settings.urls:
        raise UsageError(
            "engine.kind is vllm and engine.urls is empty: start a server with resia engine vllm serve, and set"
            ' engine.urls=["http://HOST:PORT"]'
        )
    for url in settings.urls:
        check_url(url)
    from .assets import model_digest

    engine = served_engine(folder, model_digest(folder), settings, cache)
    try:
        engine.check(rank)
    except ModelError as cause:
        raise UsageError(str(cause)) from cause
    finally:
        engine.close()


def check_resumed(settings: RunSettings, cache: Path | None) -> None:
    """The same for a run that goes on, where servers are asked; the embedded engine was checked when it began."""
    if settings.engine.kind == "vllm":
        from .resources import model_folder

        check_engine(settings.engine, model_folder(settings.engine, cache), cache, trained_rank(settings))


def trained_rank(settings: RunSettings) -> int:
    """Rank of the adapters that a run trains, 0 where its mode trains none."""
    mode = settings.loop.mode
    return 0 if mode == "H" or mode in BASELINES else settings.training.rank


def check_url(url: str) -> None:
    """A server's URL is its scheme, host and port; what may hold a password is not repeated."""
    wanted = "give http://HOST:PORT of a server of resia engine vllm serve"
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise UsageError(f"a URL of engine.urls cannot be read: {wanted}") from None
    if parts.username or parts.password or parts.query or parts.fragment:
        raise UsageError(f"a URL of engine.urls holds a login or a query, which the log would keep: {wanted}")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path not in ("", "/"):
        raise UsageError(f"engine.urls has {url!r}, which is no server's URL: {wanted}")
