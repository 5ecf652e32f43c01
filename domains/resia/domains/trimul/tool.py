"""The tool `launch`: the arguments of the kernel template, how they are checked and written, and the task's text.

Knows nothing of times or scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

from resia.domains.base import Answer, Parameter, Reference, TaskSpec, Value

PARAMETERS = (
    Parameter("fuse", (0, 1), 0, "1: one product for the five projections"),
    Parameter("gemm", ("einsum", "heads"), "einsum", "heads: batched products over the hidden channels"),
    Parameter("heads", (8, 32, 128), 128, "hidden channels in one batched product"),
    Parameter("rows", (0, 8, 32), 0, "rows of x projected at a time, 0 for all"),
    Parameter("inplace", (0, 1), 0, "1: gates and mask overwrite"),
    Parameter("dtype", ("fp32", "bf16", "fp16"), "fp32", "of the operands of every product"),
)
NAMES = tuple(parameter.name for parameter in PARAMETERS)
PLAIN = Reference("plain", {p.name: p.default for p in PARAMETERS}, "the operator as it is written, in float32")
FUSED = Reference(
    "fused",
    {**PLAIN.answer, "fuse": 1, "gemm": "heads", "inplace": 1},
    "one product for the projections, batched products over the hidden channels",
)


def parse(request: Mapping[str, object]) -> dict[str, Value]:
    """Every argument in order, of its type and among its choices; a missing one takes its default.

    Raises ValueError in one sentence.
    """
    if unknown := [name for name in request if name not in NAMES]:
        raise ValueError(f"argument '{unknown[0]}' is unknown: give {', '.join(NAMES)}")
    return {parameter.name: _checked(parameter, request) for parameter in PARAMETERS}


def _checked(parameter: Parameter, request: Mapping[str, object]) -> Value:
    given = request.get(parameter.name, parameter.default)
    for choice in parameter.choices:
        if type(given) is type(choice) and given == choice:
            return choice
    choices = ", ".join(map(str, parameter.choices))
    raise ValueError(f"argument '{parameter.name}' is {given!r}: choose one of {choices}")


def render(answer: Answer) -> str:
    """`name=value` in the tool's order, one space between."""
    return " ".join(f"{name}={answer[name]}" for name in NAMES)


def grid() -> tuple[dict[str, Value], ...]:
    """Every valid answer, in the order of the choices."""
    rows = product(*(parameter.choices for parameter in PARAMETERS))
    return tuple(dict(zip(NAMES, row, strict=True)) for row in rows)


def _neutral(parameter: Parameter) -> dict[str, Value]:
    """The plain answer with one argument moved half way round its choices: no time was looked at."""
    choices = parameter.choices
    moved = choices[(choices.index(parameter.default) + len(choices) // 2) % len(choices)]
    return {**PLAIN.answer, parameter.name: moved}


def _instruction() -> str:
    lines = [f"{p.name} ({', '.join(map(str, p.choices))}): {p.doc}" for p in PARAMETERS]
    return "\n".join(
        [
            "Choose how a kernel computes the triangle multiplicative update, so that it is right and fast.",
            "The item states N, batch and channels of its input, the law of its values and whether it is masked.",
            "Score: a half at the speed of the plain kernel, more for a faster one, nothing for a wrong one.",
            "Reply with one line that sets every argument of the tool launch:",
            *lines,
            f"Example: {render(PLAIN.answer)}",
        ]
    )


SPEC = TaskSpec(
    name="trimul",
    instruction=_instruction(),
    tool="launch",
    parameters=PARAMETERS,
    references=(PLAIN, FUSED),
    # Last argument first, so that the arguments a person would tune first stand last, where a small model looks.
    neutral_answers=tuple(_neutral(parameter) for parameter in reversed(PARAMETERS)),
    objective="max",
    measured=True,
)
