"""Sources of the two code components for an answer that is a name of a closed list, or a set of names.

Names are texts in which other marks may stand than in a number or a word, and a model writes them into prose. As in
`sources` all of it runs only in the sandbox.
"""

from __future__ import annotations

from resia.domains.base import Parameter, TaskSpec

MANY = 24  # choices; fewer are words like `rev` and `std`
ALIKE = 0.6  # of difflib: a name and a misspelt one


def label_parameter(spec: TaskSpec) -> Parameter | None:
    """The one argument of a tool that takes a name of a long list, or several of them; None for any other tool."""
    if len(spec.parameters) != 1:
        return None
    (parameter,) = spec.parameters
    if not parameter.choices:
        return None
    texts = all(isinstance(choice, str) for choice in parameter.choices)
    return parameter if texts and (parameter.separator or len(parameter.choices) > MANY) else None


def label_reading(parameter: Parameter) -> str:
    """All of the text, with or without `name=` before it: whether that is a name of the list, the tool decides."""
    return f"""NAME = {parameter.name!r}


def extract(text):
    said = text.strip()
    head, mark, value = said.partition("=")
    if mark and head.strip() == NAME:
        said = value.strip()
    return {{NAME: said}} if said else None
"""


def label_extraction(parameter: Parameter) -> str:
    """What follows `name=` or `name:` on its line; else the names that stand in the text, none inside another."""
    found = f"{parameter.separator!r}.join(dict.fromkeys(found))" if parameter.separator else "found[0]"
    return f"""import re

{_head(parameter)}
LINE = re.compile(re.escape(NAME) + r"\\s*[=:：]\\s*([^\\n<]+)")
ANY = re.compile("|".join(re.escape(choice) for choice in sorted(CHOICES, key=len, reverse=True)))


def extract(text):
    line = LINE.search(text)
    if line and line.group(1).strip():
        return {{NAME: line.group(1).strip()}}
    found = ANY.findall(text)
    return {{NAME: {found}}} if found else None
"""


def label_repair(spec: TaskSpec, parameter: Parameter) -> str:
    """Puts the name most like it in place of one that is not on the list, and the default where nothing is like it."""
    return f"""import difflib

{_head(parameter)}
DEFAULT = {parameter.default!r}
SEPARATOR = {parameter.separator!r}


def nearest(value):
    if value in CHOICES:
        return value
    inside = [choice for choice in CHOICES if choice in value]
    if inside:
        return max(inside, key=len)
    like = difflib.get_close_matches(value, CHOICES, n=1, cutoff={ALIKE})
    return like[0] if like else DEFAULT


def dispatch(request, tools):
    value = str(request.get(NAME, DEFAULT))
    parts = [part.strip() for part in value.split(SEPARATOR)] if SEPARATOR else [value.strip()]
    names = list(dict.fromkeys(nearest(part) for part in parts if part)) or [DEFAULT]
    return tools.{spec.tool}(**{{NAME: SEPARATOR.join(names)}})
"""


def _head(parameter: Parameter) -> str:
    return f"NAME = {parameter.name!r}\nCHOICES = {list(parameter.choices)!r}"
