"""Configuration: a run's settings from TOML and overrides, and what one worker process is told.

Both are built once, frozen and checked before anything heavy is imported. Nothing else reads files or the
environment for configuration.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec
from pydantic import BaseModel, ConfigDict

from resia.events import GateSettings, RunSettings
from resia.events.errors import UnknownName, UsageError

from .permissions import Access

STALLED_S = 1800.0  # longer than a large model takes to load
MAX_RUNS = 500
# A field's default is what a log without the field means; a new run takes the present rules.
NEW_RUN = RunSettings(gate=GateSettings(retention="sampled"))


class ProcessConfig(BaseModel):
    """What a worker process needs to know; written to a private file because it holds the role's password."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str
    user: str = ""
    password: str = ""
    ca: str = ""  # who signed the server's certificate; empty: whom the machine trusts
    role: str
    worker: str
    blobs: Path
    shared: str = ""  # where the blobs are that `blobs` is then a cache of: see Access
    cache: Path | None = None
    run: str | None = None  # None: serve every active run
    unsafe_local: bool = False
    grace_s: float = 0.0  # to finish what is in hand after SIGTERM
    stalled_s: float | None = STALLED_S  # without progress of what is performed, then the process ends
    max_runs: int = MAX_RUNS  # served at once; more wait
    beat: Path | None = None  # file that is touched as long as the process is not frozen
    metrics: str | None = None  # PORT or HOST:PORT that they are served at

    @property
    def access(self) -> Access:
        """How this process reaches the log and the blobs."""
        return Access(self.url, {self.user: self.password} if self.user else {}, self.ca, blobs=self.shared)


def load_settings(path: Path | None, overrides: Sequence[str] = (), base: RunSettings | None = None) -> RunSettings:
    """Settings from `base` (None: those of a new run), then the TOML file, then `section.key=value` overrides;
    UsageError names what is off."""
    tree: dict[str, Any] = msgspec.to_builtins(base or NEW_RUN)
    changes = [(_read(path), str(path))] if path is not None else []
    changes += [(_override(override), f"--set {override}") for override in overrides]
    for section in ("endpoint", "llm"):
        _lay_profile(tree, section, [change for change, _ in changes])
    for change, source in changes:
        _merge(tree, change, source)
    return checked(tree)


def _lay_profile(tree: dict[str, Any], section: str, changes: Sequence[dict[str, Any]]) -> None:
    """Put the profile that `changes` name last in `section` over `tree`, under them; its short name is recorded."""
    named = [c[section] for c in changes if isinstance(c.get(section), dict) and c[section].get("profile")]
    if not named:
        return
    from .profiles import underlay

    name = str(named[-1]["profile"])
    prices = [c["price"] for c in changes if isinstance(c.get("price"), dict)]
    currency = next((str(price["currency"]) for price in reversed(prices) if "currency" in price), None)
    _merge(tree, underlay(section, name, currency), f"profile {name}")
    for one in named:
        one["profile"] = Path(name).stem


def checked(tree: Mapping[str, Any]) -> RunSettings:
    """Settings of a tree of plain values; UsageError says which field, what it is and what it may be."""
    try:
        settings = msgspec.convert(tree, RunSettings)
    except msgspec.ValidationError as cause:
        raise _refusal(tree, str(cause)) from None
    for name, value in _leaves(tree):
        if isinstance(value, float) and not isfinite(value):
            raise UsageError(f"setting {name} is {value}: give a finite number")  # the log's JSON has no other
    return settings


def _leaves(tree: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def _refusal(tree: Mapping[str, Any], cause: str) -> UsageError:
    """What msgspec says of a value, as a sentence with the value in it, and with the names where there is a list."""
    why, _, place = cause.partition(" - at ")
    name = place.strip("`").removeprefix("$.")
    value: Any = tree
    kind: Any = RunSettings
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return UsageError(f"the settings cannot be used: {cause}")
        value, kind = value[part], get_type_hints(kind)[part]
    if isinstance(value, str) and (names := _choices(kind)):
        return UnknownName(f"value of {name}", value, names)
    return UsageError(f"setting {name} is {value!r}: {why[0].lower()}{why[1:]}")


def _choices(kind: Any) -> list[str]:
    """The strings of a Literal, also inside a union; none for another type."""
    if get_origin(kind) is Literal:
        return [str(choice) for choice in get_args(kind)]
    return [choice for member in get_args(kind) for choice in _choices(member)]


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
        read = tomllib.loads(f"v = {value}")
    except tomllib.TOMLDecodeError:
        read = {}
    parsed: Any = read["v"] if len(read) == 1 else value
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
