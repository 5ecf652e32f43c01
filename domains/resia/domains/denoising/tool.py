"""The tool `denoise`: its arguments, how they are checked and written, and the task's text.

A line such as `knn=5 t=3 order=rev log=0 scale=1 round=0` is about 20 tokens of a byte-pair vocabulary with single
digits. Knows nothing of counts or scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

from resia.domains.base import Answer, Parameter, Reference, TaskSpec, Value

from .magic import Config, Order

PARAMETERS = (
    Parameter("knn", (1, 2, 3, 5, 8, 12, 20), 5, "neighbours that set the width of a cell's kernel"),
    Parameter("t", (1, 2, 3, 5, 8), 3, "steps of smoothing over the graph of cells"),
    Parameter("order", ("rev", "std"), "rev", "rev: square root before library normalisation, std: after"),
    Parameter("log", (0, 1), 0, "1: correct each mean for the logarithm that the score takes"),
    Parameter("scale", (0, 1), 1, "1: rescale each cell to its number of molecules"),
    Parameter("round", (0, 1), 0, "1: round to whole molecules"),
)
NAMES = tuple(parameter.name for parameter in PARAMETERS)
NEUTRAL = 6


def parse(request: Mapping[str, object]) -> dict[str, Value]:
    """Every argument, present, of its type and among its choices, in order. Raises ValueError in one sentence."""
    if unknown := [name for name in request if name not in NAMES]:
        raise ValueError(f"argument '{unknown[0]}' is unknown: give {', '.join(NAMES)}")
    return {parameter.name: _checked(parameter, request) for parameter in PARAMETERS}


def _checked(parameter: Parameter, request: Mapping[str, object]) -> Value:
    choices = ", ".join(map(str, parameter.choices))
    if parameter.name not in request:
        raise ValueError(f"argument '{parameter.name}' is missing: choose one of {choices}")
    given = request[parameter.name]
    for choice in parameter.choices:
        if type(given) is type(choice) and given == choice:
            return choice
    raise ValueError(f"argument '{parameter.name}' is {given!r}: choose one of {choices}")


def render(answer: Answer) -> str:
    """`name=value` in the tool's order, one space between."""
    return " ".join(f"{name}={answer[name]}" for name in NAMES)


def config(answer: Answer) -> Config:
    """The configuration of a parsed answer."""
    order: Order = "rev" if answer["order"] == "rev" else "std"
    log, scale, whole = (bool(answer[name]) for name in ("log", "scale", "round"))
    return Config(int(answer["knn"]), int(answer["t"]), order, log, scale, whole)


def grid() -> tuple[dict[str, Value], ...]:
    """Every valid answer, in the order of the choices."""
    rows = product(*(parameter.choices for parameter in PARAMETERS))
    return tuple(dict(zip(NAMES, row, strict=True)) for row in rows)


def _neutral(index: int) -> dict[str, Value]:
    """A varied answer by position alone: each argument steps through its choices at its own pace."""
    places = (index, 2 * index, index, index // 2, index // 3, (index + 1) // 2)
    return {p.name: p.choices[place % len(p.choices)] for p, place in zip(PARAMETERS, places, strict=True)}


REFERENCE = Reference(
    "magic-reversed", {p.name: p.default for p in PARAMETERS}, "MAGIC as the public benchmark ranks it best"
)
REFERENCES = (
    REFERENCE,
    Reference("magic-standard", {**REFERENCE.answer, "order": "std"}, "MAGIC with library normalisation first"),
)


def _instruction() -> str:
    lines = [f"{p.name} ({', '.join(map(str, p.choices))}): {p.doc}" for p in PARAMETERS]
    return "\n".join(
        [
            "Choose the settings that best denoise a single-cell RNA count matrix with MAGIC.",
            "The item states its number of cells and its depth (share of molecules kept).",
            "Score: how much closer the answer is to held-out molecules, 0 to 1.",
            "Reply with one line that sets every argument of the tool denoise:",
            *lines,
            f"Example: {render(REFERENCE.answer)}",
        ]
    )


SPEC = TaskSpec(
    name="denoising",
    instruction=_instruction(),
    tool="denoise",
    parameters=PARAMETERS,
    references=REFERENCES,
    neutral_answers=tuple(_neutral(index) for index in range(NEUTRAL)),
    objective="mean",
)
