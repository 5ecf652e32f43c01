"""Sources of the two code components for an answer that is a Python source, and how a model is to write one.

Knows nothing of what the source does: that is the domain's tool. As in `sources` all of it runs only in the sandbox.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from resia.domains.base import Answer, Domain, Parameter, TaskSpec
from resia.events import ToolCall, Trajectory

CONTRACT = "Answer with one block of Python code between ``` marks and nothing else."


def code_parameter(spec: TaskSpec) -> Parameter | None:
    """The argument that is a source; None for a tool without one."""
    return next((parameter for parameter in spec.parameters if parameter.code), None)


def spoken(domain: Domain, answer: Answer) -> str:
    """An answer as a model is to say it: its canonical text, or for a source a block of code."""
    code = code_parameter(domain.spec)
    return domain.render(answer) if code is None else block(str(answer[code.name]))


def written(spec: TaskSpec, trajectory: Trajectory) -> str:
    """The program that a rollout handed in last; empty where it handed in none or the answer is no program."""
    if (code := code_parameter(spec)) is None:
        return ""
    calls = (call for turn in trajectory.turns for call in turn.calls if call.name == spec.tool)
    return str(next((found[code.name] for found in _results(calls) if code.name in found), ""))


def _results(calls: Iterable[ToolCall]) -> list[dict[str, object]]:
    """What the calls gave, the last first."""
    return [result for call in reversed([*calls]) if isinstance(result := json.loads(call.result), dict)]


def block(source: str) -> str:
    """`source` between the marks of a block of code."""
    return f"```python\n{source.rstrip()}\n```"


def code_reading(parameter: Parameter) -> str:
    """A text that is one block of code and nothing else."""
    return f"""import re

NAME = {parameter.name!r}
BLOCK = re.compile(r"\\s*```(?:python|py)?[ \\t]*\\n(.*?)\\n?```\\s*", re.DOTALL)


def extract(text):
    found = BLOCK.fullmatch(text)
    return {{NAME: found.group(1)}} if found and "```" not in found.group(1) and found.group(1).strip() else None
"""


def code_extraction(parameter: Parameter, last: bool = False) -> str:
    """The longest block of code in the text, or the last; one that has no end goes to the end of the text. Without a
    block all from the first line that begins like code."""
    chosen = "blocks[-1]" if last else "max(blocks, key=len)"
    return f"""import re

NAME = {parameter.name!r}
BLOCK = re.compile(r"```(?:python|py)?[ \\t]*\\n(.*?)(?:```|\\Z)", re.DOTALL)
CODE = re.compile(r"^(?:import |from |def |class |@)", re.MULTILINE)


def extract(text):
    blocks = [found for found in BLOCK.findall(text) if found.strip()]
    if blocks:
        return {{NAME: {chosen}}}
    start = CODE.search(text)
    return {{NAME: text[start.start():]}} if start else None
"""
