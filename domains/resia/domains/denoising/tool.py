"""The tool `denoise`: its arguments, how they are checked and written, and the task's text.

A line such as `knn=5 t=3 order=rev log=0 scale=1 round=0` is about 20 tokens of a byte-pair vocabulary with single
digits. Knows nothing of counts or scores.
"""

from __future__ import annotations

from collections.abc import Mapping

from resia.domains import form
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


def parse(request: Mapping[str, object]) -> dict[str, Value]:
    """The arguments of a call, checked; see `form.parse`."""
    return form.parse(PARAMETERS, request)


def render(answer: Answer) -> str:
    """`name=value` in the tool's order, one space between."""
    return form.render(PARAMETERS, answer)


def config(answer: Answer) -> Config:
    """The configuration of a parsed answer."""
    order: Order = "rev" if answer["order"] == "rev" else "std"
    log, scale, whole = (bool(answer[name]) for name in ("log", "scale", "round"))
    return Config(int(answer["knn"]), int(answer["t"]), order, log, scale, whole)


REFERENCE = Reference("magic-reversed", form.defaults(PARAMETERS), "MAGIC as the public benchmark ranks it best")
REFERENCES = (
    REFERENCE,
    Reference("magic-standard", {**REFERENCE.answer, "order": "std"}, "MAGIC with library normalisation first"),
)


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
    neutral_answers=form.neutral(PARAMETERS),
    objective="mean",
    metric="audited",
)
