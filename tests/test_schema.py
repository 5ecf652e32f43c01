"""The published contract is what the types say, and every event on the wire is in it."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from resia.events import TYPES, Namespace
from resia.events.catalogue import version_of
from resia.events.errors import UnknownName, UsageError
from resia.events.schema import custom_schema, main, payload_schema, render

FOLDER = Path(__file__).parent.parent / "docs" / "events"
DOCUMENTS = {name: json.loads(data) for name, data in render().items()}


def test_the_folder_holds_these_files_and_no_other():
    assert {path.name for path in FOLDER.glob("*.json")} == set(render())


@pytest.mark.parametrize("name", sorted(render()))
def test_the_file_is_current(name):
    assert (FOLDER / name).read_bytes() == render()[name], "run: python -m resia.events.schema docs/events"


def test_written_files_are_what_is_rendered(tmp_path):
    main(tmp_path / "events")
    assert {path.name: path.read_bytes() for path in (tmp_path / "events").iterdir()} == render()


@pytest.mark.parametrize("name", TYPES)
def test_every_wire_type_is_documented(name):
    schema = DOCUMENTS["events.schema.json"]
    assert {"$ref": f"#/$defs/{name}"} in schema["oneOf"]
    properties = schema["$defs"][name]["properties"]
    assert properties["type"] == {"const": name}
    assert properties["version"] == {"const": version_of(name)}
    payload = schema["$defs"][properties["payload"]["$ref"].rsplit("/", 1)[-1]]
    assert set(payload["properties"]) == set(TYPES[name].__struct_fields__)
    channels = DOCUMENTS["asyncapi.json"]["channels"]
    assert channels[name]["address"].split(".")[3] == name


notes = Namespace("notes")


class Remark(msgspec.Struct, frozen=True):
    text: str


@notes.event("note-taken", version=3)
class NoteTaken(msgspec.Struct, frozen=True):
    """Somebody   said
    something."""

    remarks: tuple[Remark, ...]
    weight: float = 1.0


def test_a_custom_event_has_a_schema_of_its_own():
    schema = custom_schema("notes_note-taken")
    assert schema["description"] == "Somebody said something."
    assert schema["properties"]["type"] == {"const": "notes_note-taken"}
    assert schema["properties"]["version"] == {"const": 3}
    assert {"id", "run", "cause", "basis", "producer", "payload"} <= set(schema["required"])
    assert set(schema["$defs"]) == {"Envelope", "Producer", "NoteTaken", "Remark"}
    assert schema["properties"]["payload"] == {"$ref": "#/$defs/NoteTaken"}
    assert "notes_note-taken" not in DOCUMENTS["events.schema.json"]["$defs"]


def test_a_custom_event_that_nobody_registered_offers_the_nearest():
    with pytest.raises(UnknownName, match="unknown custom event type 'notes_note': did you mean notes_note-taken"):
        custom_schema("notes_note")


def test_an_event_that_json_cannot_hold_is_refused_in_one_line():
    odd = msgspec.defstruct("Odd", [("what", object)], frozen=True)
    with pytest.raises(UsageError, match="event class Odd cannot be written to the log: type <class 'object'> is not"):
        payload_schema(odd)


@pytest.mark.parametrize("name", sorted(DOCUMENTS))
def test_every_reference_leads_somewhere(name):
    def references(node):
        if isinstance(node, dict):
            if isinstance(node.get("$ref"), str):
                yield node["$ref"]
            for value in node.values():
                yield from references(value)
        elif isinstance(node, list):
            for value in node:
                yield from references(value)

    found = set(references(DOCUMENTS[name]))
    assert found
    for reference in found:
        node = DOCUMENTS[name]
        for part in reference.removeprefix("#/").split("/"):
            node = node[part]
