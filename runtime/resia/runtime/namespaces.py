"""Who may say what in a custom namespace: the schemas registered on the server, compared and kept.

One document a namespace: for each wire type the JSON Schema of each version. A second package that means something
else by a type is refused before it writes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import msgspec

from resia.events.custom import CUSTOM
from resia.events.errors import BusError, UsageError
from resia.events.schema import payload_schema

from .bus import Bus

TRIES = 10
_WORDS = frozenset({"title", "description"})


class Claim(msgspec.Struct, frozen=True):
    """What is registered for a namespace: who was first, and schema by wire type and version (as text)."""

    package: str
    events: dict[str, dict[str, Any]] = {}


async def register(bus: Bus, package: str, types: Sequence[str]) -> None:
    """Claim the namespaces of `types`, registered wire types of this process; UsageError when one means another
    thing."""
    for namespace, group in groupby(sorted(types), lambda kind: kind.partition("_")[0]):
        ours = {name: {str(CUSTOM[name].version): payload_schema(CUSTOM[name].cls)} for name in group}
        await _register(bus, namespace, Claim(package, ours))


async def _register(bus: Bus, namespace: str, ours: Claim) -> None:
    for _ in range(TRIES):
        document, revision = await bus.schemas(namespace)
        held = msgspec.json.decode(document, type=Claim) if document else Claim(ours.package)
        merged = merge(namespace, held, ours)
        if document and merged == held:
            return
        if await bus.set_schemas(namespace, msgspec.json.encode(merged, order="deterministic"), revision):
            return
    raise BusError(f"register namespace '{namespace}': others change it all the time; start the worker again")


def merge(namespace: str, held: Claim, ours: Claim) -> Claim:
    """`held` with what `ours` adds; UsageError where both have a schema of one version and the schemas differ."""
    events = {name: dict(versions) for name, versions in held.events.items()}
    for name, versions in ours.events.items():
        for version, schema in versions.items():
            known = events.setdefault(name, {}).setdefault(version, schema)
            if _meaning(known) != _meaning(schema):
                raise UsageError(
                    f"namespace '{namespace}' is {held.package}'s, and its '{name}' version {version} is not what"
                    f" {ours.package} declares: take another namespace, or raise the event's version"
                )
    return Claim(held.package, events)


def _meaning(schema: Any) -> Any:
    """A schema without its prose. Names of definitions count: references are by name."""
    if isinstance(schema, Mapping):
        return {key: _part(key, value) for key, value in schema.items() if key not in _WORDS}
    return [_meaning(part) for part in schema] if isinstance(schema, list) else schema


def _part(key: str, value: Any) -> Any:
    """Of these two the keys are names, which may be 'title'."""
    if key in ("properties", "$defs"):
        return {name: _meaning(of) for name, of in value.items()}
    return _meaning(value)
