"""Python sources of the two code components, written for a task spec: dispatch(request, tools) and extract(text).

They are what Meta drafts and operators put in place. They run only in the sandbox.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from resia.domains.base import TaskSpec, Value

from .code_sources import code_extraction, code_parameter, code_reading
from .label_sources import label_extraction, label_parameter, label_reading, label_repair


def strict_dispatch(spec: TaskSpec) -> str:
    """Hands the request to the tool as it is; the tool refuses what is missing or out of range."""
    return f"""def dispatch(request, tools):
    return tools.{spec.tool}(**request)
"""


def repairing_dispatch(spec: TaskSpec) -> str:
    """Drops unknown arguments, fills missing ones with their defaults and moves values to the nearest choice."""
    if label := label_parameter(spec):
        return label_repair(spec, label)
    if code_parameter(spec):
        return strict_dispatch(spec)  # a program has no nearest one
    choices = {p.name: list(p.choices) for p in spec.parameters}
    defaults = {p.name: p.default for p in spec.parameters}
    return f"""CHOICES = {choices!r}
DEFAULTS = {defaults!r}


def nearest(name, value):
    for choice in CHOICES[name]:
        if choice == value:
            return choice  # and not the value: 1.0 equals 1 and the tool takes no float for it
    numbers = [c for c in CHOICES[name] if isinstance(c, (int, float))]
    if isinstance(value, (int, float)) and numbers:
        return min(numbers, key=lambda c: abs(c - value))
    return DEFAULTS[name]


def dispatch(request, tools):
    repaired = {{name: nearest(name, request.get(name, DEFAULTS[name])) for name in CHOICES}}
    return tools.{spec.tool}(**repaired)
"""


def strict_extraction(spec: TaskSpec) -> str:
    """Takes a text that is nothing but name=value pairs of known names, none twice."""
    if label := label_parameter(spec):
        return label_reading(label)
    if code := code_parameter(spec):
        return code_reading(code)
    names = [p.name for p in spec.parameters]
    return f"""NAMES = {json.dumps(names)}
{_VALUE}

def extract(text):
    request = {{}}
    for part in text.split():
        name, mark, value = part.partition("=")
        if not mark or name not in NAMES or name in request or not value:
            return None
        request[name] = convert(value)
    return request or None
"""


def tolerant_extraction(spec: TaskSpec, last: bool = False) -> str:
    """Finds name=value or name: value pairs anywhere in the text; the first of each name counts, or the last."""
    if label := label_parameter(spec):
        return label_extraction(label)
    if code := code_parameter(spec):
        return code_extraction(code, last)
    names = [p.name for p in spec.parameters]
    return f"""import re

NAMES = {json.dumps(names)}
PAIR = re.compile(r"\\b(\\w+)\\s*[=:]\\s*([\\w.+-]+)")
{_VALUE}

def extract(text):
    request = {{}}
    for name, value in PAIR.findall(text):
        if name in NAMES{"" if last else " and name not in request"}:
            request[name] = convert(value.rstrip(".,;"))
    return request or None
"""


_VALUE = """

def convert(value):
    try:
        return int(value)
    except ValueError:
        pass
    try:
        number = float(value)
    except ValueError:
        return value
    return number if number - number == 0 else value  # JSON has no nan and no infinity
"""


def fixed_extraction(answer: Mapping[str, Value]) -> str:
    """Reads `answer` out of any text."""
    return f"""ANSWER = {dict(answer)!r}


def extract(text):
    return dict(ANSWER)
"""
