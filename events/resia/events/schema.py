"""The published contract, generated: JSON Schema of every event and an AsyncAPI 3 document.

`python -m resia.events.schema DIR` writes `events.schema.json` and `asyncapi.json`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec

from .catalogue import TYPES, version_of
from .custom import CUSTOM
from .envelope import Envelope
from .errors import UnknownName, UsageError


def _components(ref: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """(schema by wire type, named components): each event is the envelope's fields plus its payload."""
    classes = [*TYPES.values(), Envelope]
    schemas, components = msgspec.json.schema_components(classes, ref_template=ref)
    envelope = components["Envelope"]
    events: dict[str, Any] = {}
    for (name, _), schema in zip(TYPES.items(), schemas, strict=False):
        properties = {
            **envelope["properties"],
            "type": {"const": name},
            "version": {"const": version_of(name)},
            "payload": schema,
        }
        events[name] = {
            "title": name,
            "description": " ".join((TYPES[name].__doc__ or "").split()),
            "type": "object",
            "properties": properties,
            "required": [*envelope["required"], "payload"],
        }
    return events, components


def payload_schema(cls: type[msgspec.Struct]) -> dict[str, Any]:
    """JSON Schema of what an event class says, whole in itself. UsageError for a field that JSON cannot hold."""
    try:
        return msgspec.json.schema(cls)
    except (TypeError, NameError) as cause:
        why = str(cause).strip().splitlines()[-1]  # before it come hints for who extends msgspec
        raise UsageError(f"event class {cls.__qualname__} cannot be written to the log: {why}") from None


def custom_schema(name: str) -> dict[str, Any]:
    """JSON Schema 2020-12 of a registered custom event on the wire: the envelope and its payload. UnknownName else."""
    if name not in CUSTOM:
        raise UnknownName("custom event type", name, CUSTOM)
    known = CUSTOM[name]
    payload_schema(known.cls)
    (payload, _), components = msgspec.json.schema_components([known.cls, Envelope], ref_template="#/$defs/{name}")
    fields = {**components["Envelope"]["properties"], "type": {"const": name}, "version": {"const": known.version}}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": name,
        "description": " ".join((known.cls.__doc__ or "").split()),
        "type": "object",
        "properties": {**fields, "payload": payload},
        "required": [*components["Envelope"]["required"], "payload"],
        "$defs": components,
    }


def json_schema() -> dict[str, Any]:
    """JSON Schema 2020-12 of any event on the wire, discriminated by `type`."""
    events, components = _components("#/$defs/{name}")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "resia event",
        "oneOf": [{"$ref": f"#/$defs/{name}"} for name in events],
        "$defs": {**components, **events},
    }


def asyncapi() -> dict[str, Any]:
    """AsyncAPI 3.0: one channel an event type, on the run's stream."""
    events, components = _components("#/components/schemas/{name}")
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "resia",
            "version": "1",
            "description": "Facts of a self-improving run on NATS JetStream: stream RUN-<run>, JSON, append-only.",
        },
        "channels": {
            name: {
                "address": "resia.{run}.{role}." + name + ".{id}",
                "messages": {name: {"$ref": f"#/components/messages/{name}"}},
                "parameters": {"run": {}, "role": {}, "id": {}},
            }
            for name in events
        },
        "operations": {name: {"action": "receive", "channel": {"$ref": f"#/channels/{name}"}} for name in events},
        "components": {
            "messages": {
                name: {
                    "name": name,
                    "contentType": "application/json",
                    "payload": {"$ref": f"#/components/schemas/{name}"},
                }
                for name in events
            },
            "schemas": {**components, **events},
        },
    }


def render() -> dict[str, bytes]:
    """File name to contents."""
    documents = {"events.schema.json": json_schema(), "asyncapi.json": asyncapi()}
    return {
        name: msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"
        for name, document in documents.items()
    }


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in render().items():
        (folder / name).write_bytes(data)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
