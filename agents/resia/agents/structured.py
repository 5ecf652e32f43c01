"""Answers as JSON objects, for models behind endpoints that can be held to a schema.

The schema is made of the tool's parameters; what an endpoint does not enforce is asked for in words, and what it gives
is read by the same extraction. Nothing here calls a model.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec

from resia.domains.base import Parameter, TaskSpec
from resia.events import Harness

_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean"}
ROOM = 2  # a JSON object's marks and quotes beside the plain form's own bytes, at most so many times as long


def answer_schema(spec: TaskSpec) -> str:
    """JSON Schema of the tool's arguments, every one required and no other allowed, as strict modes want it."""
    return json.dumps(
        {
            "type": "object",
            "properties": {parameter.name: _property(parameter) for parameter in spec.parameters},
            "required": [parameter.name for parameter in spec.parameters],
            "additionalProperties": False,
        }
    )


def _property(parameter: Parameter) -> dict[str, Any]:
    kinds = sorted({_TYPES[type(choice)] for choice in (*parameter.choices, parameter.default)})
    made: dict[str, Any] = {"type": kinds[0] if len(kinds) == 1 else kinds}
    # Several names in one text are no single choice.
    return {**made, "enum": list(parameter.choices)} if parameter.choices and not parameter.separator else made


def json_extraction(spec: TaskSpec) -> str:
    """Source of `extract`: the first JSON object in the text that has one of the tool's arguments."""
    names = [parameter.name for parameter in spec.parameters]
    return f"""import json

NAMES = {json.dumps(names)}


def extract(text):
    decoder = json.JSONDecoder()
    at = text.find("{{")
    while at >= 0:
        try:
            found, _ = decoder.raw_decode(text, at)
        except ValueError:
            found = None
        if isinstance(found, dict) and any(name in found for name in NAMES):
            return {{name: found[name] for name in NAMES if name in found}}
        at = text.find("{{", at + 1)
    return None
"""


def asking_for_json(harness: Harness, spec: TaskSpec) -> Harness:
    """`harness` whose model is told to answer with an object, and whose answers are read as one."""
    wanted = json.dumps({p.name: p.default for p in spec.parameters})
    told = f"{harness.system_prompt.text}\nAnswer with one JSON object of this form and nothing else: {wanted}"
    replace, policy = msgspec.structs.replace, harness.retry_policy
    return replace(
        harness,
        system_prompt=replace(harness.system_prompt, text=told),
        answer_extraction=json_extraction(spec),
        retry_policy=replace(
            policy,
            max_new_tokens=min(ROOM * policy.max_new_tokens + len(wanted.encode()), 4096),
            stop=(),  # an object may be written over several lines
        ),
    )
