"""Profiles of endpoints: what a provider's OpenAI-compatible interface knows, its limits and its prices, as TOML.

A profile is laid under the settings that a person gives when these name it, and everything that it says then stands in
the run's first event: no rule and no worker reads it again. Bundled ones are in the folder `profile_files`; a
person's own are `<configuration folder>/endpoints/NAME.toml`, or any path that ends in `.toml`.
"""

from __future__ import annotations

import datetime
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import platformdirs

from resia.events import EndpointSettings, LlmSettings, Price
from resia.events.errors import UnknownName, UsageError

BUNDLED = Path(__file__).parent / "profile_files"
_NOT_OURS = frozenset({"profile", "answer"})  # of the run, not of a provider


class Prices(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a million tokens cost on the day `as_of`, by `source`: they change, and a person's own table goes before."""

    as_of: datetime.date
    source: str
    currency: str = "USD"
    models: dict[str, Price] = {}


class Profile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`endpoint` are fields of the section `endpoint`; `form` is what a base URL looks like where each has its own."""

    title: str
    about: str
    endpoint: dict[str, Any]
    form: str = ""
    prices: Prices | None = None

    @property
    def settings(self) -> EndpointSettings:
        return msgspec.convert(self.endpoint, EndpointSettings)


def own_folder() -> Path:
    """Where a person's own profiles lie."""
    return platformdirs.user_config_path("resia") / "endpoints"


def names(folder: Path | None = None) -> dict[str, Path]:
    """Name to file of every profile there is; a person's own goes before a bundled one of its name."""
    folders = (BUNDLED, folder or own_folder())
    return dict(sorted((path.stem, path) for where in folders for path in sorted(where.glob("*.toml"))))


def profile(name: str, folder: Path | None = None) -> Profile:
    """The profile called `name`, or in the file `name`; UsageError in one sentence where it cannot be used."""
    if name.endswith(".toml"):
        return _read(Path(name))
    known = names(folder)
    if name not in known:
        raise UnknownName("endpoint profile", name, known)
    return _read(known[name])


def _read(path: Path) -> Profile:
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
        made = msgspec.convert(tree, Profile)
        _ = made.settings
    except FileNotFoundError:
        raise UsageError(f"there is no endpoint profile {path}: check the path") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as cause:
        raise UsageError(f"the endpoint profile {path} cannot be used: {cause}") from None
    if taken := sorted(_NOT_OURS & set(made.endpoint)):
        raise UsageError(f"the endpoint profile {path} sets endpoint.{taken[0]}, which belongs to a run: leave it out")
    return made


def underlay(section: str, name: str, currency: str | None) -> dict[str, Any]:
    """What the profile `name` puts under the settings that name it in `section` (endpoint or llm); prices only where
    these name no other `currency`."""
    found = profile(name)
    made: dict[str, Any] = {section: {**_fields(section, found), "profile": Path(name).stem}}
    if section == "endpoint":
        made["engine"] = {"kind": "openai"}
    # A person's currency and a provider's numbers would make a sum of nothing.
    if found.prices is not None and currency in (None, found.prices.currency):
        models = msgspec.to_builtins(found.prices.models)
        made["price"] = {"currency": found.prices.currency, "models": models}
    return made


def _fields(section: str, found: Profile) -> dict[str, Any]:
    """All fields of the section, so that nothing of an earlier endpoint stays."""
    if section == "endpoint":
        fields = msgspec.to_builtins(found.settings)
        return {name: value for name, value in fields.items() if name not in _NOT_OURS}
    shared = ("base_url", "key_env", "token_field", "timeout_s", "retries")
    return {n: getattr(found.settings, n) for n in shared if n in LlmSettings.__struct_fields__ and n in found.endpoint}
