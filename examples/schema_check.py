"""Check a log against the published schema: resia tail RUN --json | python examples/schema_check.py

Reads one event a line from standard input, names every line that does not fit, and exits with 1 if there is one. It
knows the keywords that `docs/events/events.schema.json` uses and refuses a schema with others, so that nothing passes
unchecked. Imports the standard library alone: a reader of the log in another language would do the same.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SCHEMA = Path(__file__).parent.parent / "docs" / "events" / "events.schema.json"
SILENT = {"$schema", "$defs", "title", "description", "default"}
TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}


def problems(value: Any, schema: dict[str, Any], defs: dict[str, Any], place: str = "event") -> Iterator[str]:
    """Every way in which `value` breaks `schema`; raises ValueError for a keyword that is not known here."""
    for keyword, wanted in schema.items():
        match keyword:
            case "$ref":
                yield from problems(value, defs[wanted.rpartition("/")[2]], defs, place)
            case "oneOf" | "anyOf":
                if not any(not list(problems(value, choice, defs, place)) for choice in wanted):
                    yield f"{place} fits none of {len(wanted)} choices"
            case "properties" | "required" | "additionalProperties":
                if isinstance(value, dict):
                    yield from _of_object(value, keyword, schema, defs, place)
            case "items":
                for number, held in enumerate(value if isinstance(value, list) else ()):
                    yield from problems(held, wanted, defs, f"{place}[{number}]")
            case _ if keyword not in SILENT and not _holds(value, keyword, wanted):
                yield f"{place} is {json.dumps(value)[:60]}; {keyword}: {wanted}"


def _of_object(
    value: dict[str, Any], keyword: str, schema: dict[str, Any], defs: dict[str, Any], place: str
) -> Iterator[str]:
    wanted, named = schema[keyword], schema.get("properties", {})
    if keyword == "required":
        yield from (f"{place} has no {name}" for name in wanted if name not in value)
        return
    for name, held in value.items():
        if keyword == "properties" and name in named:
            yield from problems(held, named[name], defs, f"{place}.{name}")
        elif keyword == "additionalProperties" and name not in named:
            if wanted is False:
                yield f"{place}.{name} is not a field"
            elif isinstance(wanted, dict):
                yield from problems(held, wanted, defs, f"{place}.{name}")


def _holds(value: Any, keyword: str, wanted: Any) -> bool:
    """One keyword about a single value. Bounds speak of numbers alone."""
    number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
    match keyword:
        case "type":
            return isinstance(value, TYPES[wanted]) and (isinstance(value, bool) == (wanted == "boolean"))
        case "const":
            return type(value) is type(wanted) and bool(value == wanted)
        case "enum":
            return value in wanted
        case "minimum":
            return number is None or number >= wanted
        case "maximum":
            return number is None or number <= wanted
        case "exclusiveMinimum":
            return number is None or number > wanted
        case "exclusiveMaximum":
            return number is None or number < wanted
        case _:
            raise ValueError(f"the schema says '{keyword}', which this example does not check")


def check(event: Any, schema: dict[str, Any]) -> list[str]:
    """Problems of one event, by the schema of the type that it names."""
    defs, kind = schema["$defs"], event.get("type") if isinstance(event, dict) else None
    if {"$ref": f"#/$defs/{kind}"} not in schema["oneOf"]:
        return [f"type is {json.dumps(kind)[:60]}, which is no event"]
    return list(problems(event, defs[kind], defs))


def main() -> int:
    parser = argparse.ArgumentParser(description="Check one event a line against the published schema.")
    parser.add_argument("--schema", type=Path, default=SCHEMA)
    schema = json.loads(parser.parse_args().schema.read_text(encoding="utf-8"))
    lines, broken = 0, 0
    for lines, line in enumerate(sys.stdin, 1):
        found = check(json.loads(line), schema)
        broken += bool(found)
        sys.stdout.writelines(f"line {lines}: {problem}\n" for problem in found)
    sys.stdout.write(f"{lines} events, {broken} do not fit\n")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
