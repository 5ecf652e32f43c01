"""The typed form of an answer: how a tool's arguments are checked, written, varied and drawn.

Every domain whose answers are a few named values can use it. Knows nothing of items or scores.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from itertools import product

from resia.events.ids import sha256

from .base import Answer, Parameter, Value

LARGEST = 2**62  # answers that are told apart by number
LONGEST = 60_000  # characters of a text that is free
FEW = 2  # with no more parameters than this, each is moved to several places


def parse(parameters: Sequence[Parameter], request: Mapping[str, object]) -> dict[str, Value]:
    """Every argument in order, of its type and among its choices; a missing one takes its default, as in a call.

    Raises ValueError in one sentence.
    """
    names = [parameter.name for parameter in parameters]
    if unknown := [name for name in request if name not in names]:
        raise ValueError(f"argument '{unknown[0]}' is unknown: give {', '.join(names)}")
    return {parameter.name: _checked(parameter, request) for parameter in parameters}


def _checked(parameter: Parameter, request: Mapping[str, object]) -> Value:
    given = request.get(parameter.name, parameter.default)
    if not parameter.choices:
        return _text(parameter.name, given)
    for choice in parameter.choices:
        if type(given) is type(choice) and given == choice:
            return choice
    choices = ", ".join(map(str, parameter.choices))
    raise ValueError(f"argument '{parameter.name}' is {given!r}: choose one of {choices}")


def _text(name: str, given: object) -> str:
    """A free text without the blanks that say nothing: at the ends of its lines, before it and after it."""
    if not isinstance(given, str) or "\x00" in given or not given.strip():
        raise ValueError(f"argument '{name}' is {given!r:.60}: give a text")
    if len(given) > LONGEST:
        raise ValueError(f"argument '{name}' has {len(given)} characters: give at most {LONGEST}")
    return "\n".join(line.rstrip() for line in given.strip("\n").splitlines()).strip("\n") + "\n"


def render(parameters: Sequence[Parameter], answer: Answer) -> str:
    """`name=value` in the order of the parameters, one space between; for a free text the SHA-256 of it."""
    return " ".join(f"{parameter.name}={_written(parameter, answer)}" for parameter in parameters)


def _written(parameter: Parameter, answer: Answer) -> Value:
    value = answer[parameter.name]
    return value if parameter.choices else sha256(str(value).encode())


def defaults(parameters: Sequence[Parameter]) -> dict[str, Value]:
    """The answer that leaves every argument at its default."""
    return {parameter.name: parameter.default for parameter in parameters}


def neutral(parameters: Sequence[Parameter]) -> tuple[dict[str, Value], ...]:
    """Valid answers that move one argument from its default, no score seen: half way round its choices, and where there
    are few parameters a quarter and three quarters round too.

    Last argument first, so that the arguments a person would tune first stand last, where a small model looks.
    """
    quarters = (1, 2, 3) if len(parameters) <= FEW else (2,)
    start = defaults(parameters)
    found: list[dict[str, Value]] = []
    for parameter in reversed(parameters):
        choices = parameter.choices
        for quarter in quarters:
            place = (choices.index(parameter.default) + max(len(choices) * quarter // 4, 1)) % len(choices)
            moved = {**start, parameter.name: choices[place]}
            if moved != start and moved not in found:
                found.append(moved)
    return tuple(found)


def grid(parameters: Sequence[Parameter]) -> tuple[dict[str, Value], ...]:
    """Every answer, in the order of the choices."""
    rows = product(*(parameter.choices for parameter in parameters))
    return tuple({p.name: value for p, value in zip(parameters, row, strict=True)} for row in rows)


def drawn(parameters: Sequence[Parameter], count: int, seed: int) -> tuple[dict[str, Value], ...]:
    """At most `count` different answers, each argument drawn evenly; all of them where there are no more."""
    size = min(math.prod(len(parameter.choices) for parameter in parameters), LARGEST)
    places = random.Random(seed).sample(range(size), min(count, size))
    return tuple(_at(parameters, place) for place in places)


def _at(parameters: Sequence[Parameter], place: int) -> dict[str, Value]:
    """The answer number `place` of all, the last argument counting up first."""
    digits: dict[str, Value] = {}
    for parameter in reversed(parameters):
        place, digit = divmod(place, len(parameter.choices))
        digits[parameter.name] = parameter.choices[digit]
    return {parameter.name: digits[parameter.name] for parameter in parameters}
