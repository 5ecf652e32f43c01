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
    Parameter("knn", tuple(range(1, 13)), 5, "neighbours that set the width of a cell's kernel"),
    Parameter("t", tuple(range(1, 9)), 3, "steps of smoothing over the graph of cells"),
    Parameter("order", ("rev", "std"), "rev", "rev: square root before library normalisation, std: after"),
    Parameter("log", (0, 1), 0, "1: correct each mean for the logarithm that the score takes"),
    Parameter("scale", (0, 1), 1, "1: rescale each cell to its number of molecules"),
    Parameter("round", (0, 1), 0, "1: round to whole molecules"),
)
NAMES = tuple(parameter.name for parameter in PARAMETERS)


def parse(request: Mapping[str, object]) -> dict[str, Value]:
    """Every argument in order, of its type and among its choices; a missing one takes its default, as in a call.

    Raises ValueError in one sentence.
    """
    if unknown := [name for name in request if name not in NAMES]:
        raise ValueError(f"argument '{unknown[0]}' is unknown: give {', '.join(NAMES)}")
    return {parameter.name: _checked(parameter, request) for parameter in PARAMETERS}


def _checked(parameter: Parameter, request: Mapping[str, object]) -> Value:
    choices = ", ".join(map(str, parameter.choices))
    given = request.get(parameter.name, parameter.default)
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


REFERENCE = Reference(
    "magic-reversed", {p.name: p.default for p in PARAMETERS}, "MAGIC as the public benchmark ranks it best"
)
REFERENCES = (
    REFERENCE,
    Reference("magic-standard", {**REFERENCE.answer, "order": "std"}, "MAGIC with library normalisation first"),
)


def _neutral(parameter: Parameter) -> dict[str, Value]:
    """The reference with one argument moved half way round its choices: one factor at a time, no score seen."""
    choices = parameter.choices
    moved = choices[(choices.index(parameter.default) + len(choices) // 2) % len(choices)]
    return {**REFERENCE.answer, parameter.name: moved}


def _choices(parameter: Parameter) -> str:
    """`1 to 12` for a run of whole numbers, else every choice."""
    first, last = parameter.choices[0], parameter.choices[-1]
    if len(parameter.choices) > 2 and isinstance(first, int) and isinstance(last, int):
        return f"{first} to {last}"
    return ", ".join(map(str, parameter.choices))


def _instruction() -> str:
    lines = [f"{p.name} ({_choices(p)}): {p.doc}" for p in PARAMETERS]
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
    # Last argument first, so that the arguments a person would tune first stand last, where a small model looks.
    neutral_answers=tuple(_neutral(parameter) for parameter in reversed(PARAMETERS)),
    objective="mean",
)
