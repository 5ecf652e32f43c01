"""The tool `launch`: the arguments of the kernel template, how they are checked and written, and the task's text.

Knows nothing of times or scores.
"""

from __future__ import annotations

from collections.abc import Mapping

from resia.domains import form
from resia.domains.base import Answer, Parameter, Reference, TaskSpec, Value

PARAMETERS = (
    Parameter("fuse", (0, 1), 0, "1: one product for the five projections"),
    Parameter("gemm", ("einsum", "heads"), "einsum", "heads: batched products over the hidden channels"),
    Parameter("heads", (8, 32, 128), 128, "hidden channels in one batched product"),
    Parameter("rows", (0, 8, 32), 0, "rows of x projected at a time, 0 for all"),
    Parameter("inplace", (0, 1), 0, "1: gates and mask overwrite"),
    Parameter("dtype", ("fp32", "bf16", "fp16"), "fp32", "of the operands of every product"),
)
PLAIN = Reference("plain", form.defaults(PARAMETERS), "the operator as it is written, in float32")
FUSED = Reference(
    "fused",
    {**PLAIN.answer, "fuse": 1, "gemm": "heads", "inplace": 1},
    "one product for the projections, batched products over the hidden channels",
)


def parse(request: Mapping[str, object]) -> dict[str, Value]:
    """The arguments of a call, checked; see `form.parse`."""
    return form.parse(PARAMETERS, request)


def render(answer: Answer) -> str:
    """`name=value` in the tool's order, one space between."""
    return form.render(PARAMETERS, answer)


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
    neutral_answers=form.neutral(PARAMETERS),
    objective="max",
    measured=True,
)
