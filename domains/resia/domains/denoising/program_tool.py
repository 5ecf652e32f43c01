"""The tool of the program form: what a program is given and has to give, its references, and the task's text.

The programs are the files in `programs/`, kept as a model is to write them: they stand alone. Knows nothing of counts
or scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files

from resia.domains import form
from resia.domains.base import Answer, Parameter, Reference, TaskSpec, ToolSpec, Value
from resia.domains.programs import ProgramLimits

ENTRY = "denoise"
LIMITS = ProgramLimits()


def shipped(name: str) -> str:
    """The text of one of our own programs."""
    return files(__package__).joinpath("programs", f"{name}.py").read_text(encoding="utf-8")


PROGRAM = Parameter("program", (), shipped("none"), "a Python source that defines denoise(X, seed)", code=True)
REFERENCES = (
    Reference("none", {"program": shipped("none")}, "no denoising: scores 0"),
    Reference("magic", {"program": shipped("magic")}, "MAGIC, square root before library normalisation"),
)
NEUTRAL: tuple[dict[str, Value], ...] = tuple({"program": shipped(name)} for name in ("median", "means", "neighbours"))
ATTEMPT = ToolSpec(
    "attempt",
    "runs a program on the item and says whether its output is a valid answer; it gives no score",
    {"program": "a Python source that defines denoise(X, seed)"},
    "verdict",
    "program",
)


def parse(request: Mapping[str, object]) -> dict[str, Value]:
    """The one argument, checked; see `form.parse`."""
    return form.parse((PROGRAM,), request)


def render(answer: Answer) -> str:
    """`program=` and the SHA-256 of the text."""
    return form.render((PROGRAM,), answer)


def _instruction() -> str:
    return "\n".join(
        [
            "Write a Python function denoise(X, seed) that denoises a single-cell RNA count matrix.",
            "X is a float64 numpy array of molecule counts, cells in rows and genes in columns; seed is an int.",
            "Return a float64 numpy array of the same shape: expected counts, none negative or NaN, no cell all zero.",
            "Score: how much closer the answer is to held-out molecules of the same cells than X is, 0 to 1: the mean",
            "squared difference of log1p of each cell scaled to 10,000.",
            "numpy, scipy and scikit-learn may be imported. There are no files, no network, no threads, no processes.",
            f"A call may take {LIMITS.cpu_s} seconds and {LIMITS.memory_bytes >> 30} GiB.",
            "The item states its number of cells and its depth (share of molecules kept).",
            "Reply with the whole program as one block of Python code.",
        ]
    )


SPEC = TaskSpec(
    name="denoising",
    instruction=_instruction(),
    tool="submit",
    parameters=(PROGRAM,),
    references=REFERENCES,
    neutral_answers=NEUTRAL,
    objective="mean",
    tools=(ATTEMPT,),
    metric="audited",
)
