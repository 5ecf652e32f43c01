"""What an answer's kernel is made of: a whole source, or the typed arguments of a template file; and the task's text.

A template is a kernel file with a top-level `CHOICES = {"name": [values], ...}`, a literal, whose first value is each
one's default. It is read and never run. Knows nothing of items, times or scores.
"""

from __future__ import annotations

import ast
import math
from pathlib import Path
from typing import NamedTuple

from resia.domains import form
from resia.domains.base import Parameter, Reference, TaskSpec, ToolSpec, Value
from resia.events.errors import UsageError

from . import tool

PLAIN_SOURCE = Path(__file__).with_name("plain.py").read_text(encoding="utf-8")
BUNDLED = Path(__file__).with_name("template.py")
SOURCE = Parameter("source", (), PLAIN_SOURCE, "a kernel file that defines custom_kernel", code=True)
ATTEMPT = ToolSpec(
    "attempt",
    "judges a kernel file on the item's cases, as it is judged in the end",
    {"source": "the kernel file"},
    "verdict",
    "source",
)
_FILE = """A kernel file is one Python file that stands alone and defines
custom_kernel(x, mask, weights, config) -> Tensor
x is (B, N, N, C) and mask (B, N, N), both float32; the result is (B, N, N, C) in float32, new memory at each call.
weights: norm_weight and norm_bias (C), left_proj, left_gate, right_proj, right_gate and out_gate (128, C),
out_norm_weight and out_norm_bias (128), out_proj (C, 128).
config is empty. torch can be imported, and triton on a GPU."""
_SCORE = "Score: a half at the speed of the plain kernel, more for a faster one, nothing for a wrong one."
_ITEM = "The item states N, batch and channels of the timed input, the law of its values and whether it is masked."


class Template(NamedTuple):
    """A kernel file and the arguments that it takes."""

    source: str
    parameters: tuple[Parameter, ...]


def bundled() -> Template:
    """The template in plain torch."""
    return Template(BUNDLED.read_text(encoding="utf-8"), tool.PARAMETERS)


def template(path: Path) -> Template:
    """The template file at `path`. Raises UsageError for what cannot be used."""
    try:
        source = path.read_text(encoding="utf-8")
        tree = ast.parse(source)
    except OSError as cause:
        raise UsageError(f"template {path} cannot be read ({cause.strerror}): name a kernel file") from cause
    # A UnicodeDecodeError is a ValueError; what is nested too deeply ends in one of the last two.
    except (SyntaxError, ValueError, MemoryError, RecursionError) as cause:
        raise UsageError(
            f"template {path} is no Python source ({str(cause) or type(cause).__name__}): name a kernel file"
        ) from cause
    found = next((node.value for node in tree.body if isinstance(node, ast.Assign) and _names_choices(node)), None)
    if found is None:
        raise UsageError(f'template {path} has no CHOICES: write CHOICES = {{"name": [values], ...}} at its top level')
    try:
        choices = ast.literal_eval(found)
    except (ValueError, TypeError) as cause:
        raise UsageError(f"CHOICES of template {path} is no literal: write names and values out") from cause
    return Template(source, _parameters(path, choices))


def _names_choices(node: ast.Assign) -> bool:
    return any(isinstance(target, ast.Name) and target.id == "CHOICES" for target in node.targets)


def _parameters(path: Path, choices: object) -> tuple[Parameter, ...]:
    if not isinstance(choices, dict) or not choices:
        raise UsageError(f"CHOICES of template {path} names no argument: give each name a list of its values")
    return tuple(_parameter(path, name, values) for name, values in choices.items())


def _parameter(path: Path, name: object, values: object) -> Parameter:
    if not isinstance(name, str) or not name.isidentifier():
        raise UsageError(f"CHOICES of template {path} names an argument {name!r}: take a Python name")
    if not isinstance(values, list | tuple) or not values or not all(map(_is_value, values)):
        raise UsageError(
            f"CHOICES of template {path} gives '{name}' {values!r}: give a list of texts or finite numbers of 64 bits"
        )
    return Parameter(name, tuple(values), values[0], "of the template")


def _is_value(value: object) -> bool:
    """What a log can hold."""
    if isinstance(value, int):
        return -(2**63) <= value < 2**63
    return isinstance(value, str) or (isinstance(value, float) and math.isfinite(value))


def source_spec() -> TaskSpec:
    """The task of writing a whole kernel file."""
    text = "Write a kernel file that computes the triangle multiplicative update, so that it is right and fast."
    plain = Reference("plain", {"source": PLAIN_SOURCE}, "the operator as it is written, in float32")
    lines = [text, _ITEM, _SCORE, _FILE, "Reply with the whole file in one block of code between ``` marks."]
    return TaskSpec(
        name="trimul",
        instruction="\n".join(lines),
        tool="submit",
        parameters=(SOURCE,),
        references=(plain,),
        neutral_answers=(),
        objective="max",
        tools=(ATTEMPT,),
        measured=True,
    )


def launch_spec(parameters: tuple[Parameter, ...]) -> TaskSpec:
    """The task of choosing a template's arguments."""
    defaults: dict[str, Value] = form.defaults(parameters)
    lines = [f"{p.name} ({', '.join(map(str, p.choices))}): {p.doc}" for p in parameters]
    text = "Choose how a kernel computes the triangle multiplicative update, so that it is right and fast."
    told = [text, _ITEM, _SCORE, "Reply with one line that sets every argument of the tool launch:", *lines]
    return TaskSpec(
        name="trimul",
        instruction="\n".join([*told, f"Example: {form.render(parameters, defaults)}"]),
        tool="launch",
        parameters=parameters,
        references=(Reference("defaults", defaults, "each argument at its default"),),
        neutral_answers=form.neutral(parameters),
        objective="max",
        measured=True,
    )
