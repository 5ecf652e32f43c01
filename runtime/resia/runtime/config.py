"""Configuration: a run's settings from TOML and overrides, and what one worker process is told.

Both are built once, frozen and checked before anything heavy is imported. Nothing else reads files or the
environment for configuration.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_type_hints

import msgspec
from pydantic import BaseModel, ConfigDict

from resia.events import RunSettings
from resia.events.errors import UnknownName, UsageError


class ProcessConfig(BaseModel):
    """What a worker process needs to know; written to a private file because it holds the role's password."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str
    user: str = ""
    password: str = ""
    role: str
    worker: str
    blobs: Path
    cache: Path | None = None
    run: str | None = None  # None: serve every active run
    unsafe_local: bool = False


def load_settings(path: Path | None, overrides: Sequence[str] = (), base: RunSettings | None = None) -> RunSettings:
    """Settings from `base`, then the TOML file, then `section.key=value` overrides; UsageError names what is off."""
    tree: dict[str, Any] = msgspec.to_builtins(base or RunSettings())
    if path is not None:
        _merge(tree, _read(path), str(path))
    for override in overrides:
        _merge(tree, _override(override), f"--set {override}")
    return checked(tree)


def checked(tree: Mapping[str, Any]) -> RunSettings:
    """Settings of a tree of plain values; UsageError says which field, what it is and what it may be."""
    try:
        return msgspec.convert(tree, RunSettings)
    except msgspec.ValidationError as cause:
        raise UsageError(f"the settings cannot be used: {cause}") from None


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"there is no settings file {path}: check the name given to --config") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as cause:
        raise UsageError(f"the settings file {path} cannot be read: {cause}") from None


def _override(text: str) -> dict[str, Any]:
    """`a.b=1` as {'a': {'b': 1}}; the value is read as TOML, or as text where it is none."""
    name, mark, value = text.partition("=")
    if not mark or not name.strip():
        raise UsageError(f"--set takes name=value such as loop.patience_h=1, not '{text}'")
    try:
        parsed: Any = tomllib.loads(f"v = {value}")["v"]
    except tomllib.TOMLDecodeError:
        parsed = value
    for part in reversed(name.strip().split(".")):
        parsed = {part: parsed}
    return dict(parsed)


def _merge(tree: dict[str, Any], changes: Mapping[str, Any], source: str, kind: Any = RunSettings) -> None:
    """Lay `changes` over `tree`; every key must be a field of `kind`, but those of domain_options, which the domain
    checks itself."""
    known = get_type_hints(kind) if hasattr(kind, "__struct_fields__") else None
    for key, value in changes.items():
        if known is not None and key not in known:
            raise UnknownName(f"setting in {source}:", key, known)
        if isinstance(value, Mapping) and isinstance(tree.get(key), dict):
            _merge(tree[key], value, source, known[key] if known else None)
        else:
            tree[key] = value
