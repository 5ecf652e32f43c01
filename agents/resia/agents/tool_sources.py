"""Python sources of dispatch that calls tools beside the answer's own. They run only in the sandbox."""

from __future__ import annotations

from resia.domains.base import TaskSpec, ToolSpec

from .code_sources import CONTRACT
from .toolbox import ASK

MENDED = f"\nMend it. {CONTRACT}"


def shortlist_dispatch(spec: TaskSpec, tool: ToolSpec) -> str:
    """Keeps to a shortlist: an answer that is not on it becomes the one spelt most alike, or the shortlist's first."""
    return f"""import difflib

{_choices(spec)}

def nearest(said, shortlist):
    names = [str(choice) for choice in shortlist]
    close = difflib.get_close_matches(str(said), names, n=1)
    return shortlist[names.index(close[0])] if close else shortlist[0]


def dispatch(request, tools):
    answer = {{name: value for name, value in request.items() if name in CHOICES}}
    shortlist = tools.{tool.name}()
    said = answer.get({tool.parameter!r})
    if shortlist and said not in shortlist:
        answer[{tool.parameter!r}] = nearest(said, shortlist)
    return tools.{spec.tool}(**answer)
"""


def label_dispatch(spec: TaskSpec, tool: ToolSpec) -> str:
    """Takes one argument from a classifier, and the others as the model gave them."""
    return f"""{_choices(spec)}

def dispatch(request, tools):
    answer = {{name: value for name, value in request.items() if name in CHOICES}}
    answer[{tool.parameter!r}] = tools.{tool.name}()
    return tools.{spec.tool}(**answer)
"""


def asking_dispatch(spec: TaskSpec) -> str:
    """Asks the model again for each argument that is missing or none of its choices, one at a time."""
    defaults = {p.name: p.default for p in spec.parameters}
    return f"""{_choices(spec)}
DEFAULTS = {defaults!r}


def valid(name, value):
    return any(choice == value and type(choice) is type(value) for choice in CHOICES[name])


def asked(name, tools):
    choices = CHOICES[name]
    text = tools.{ASK}(prompt="Give " + name + " alone, one of: " + ", ".join(map(str, choices)) + ".")
    words = text.replace("=", " ").replace(",", " ").replace(".", " ").split()
    return next((choice for choice in choices if str(choice) in words or str(choice) == text.strip()), DEFAULTS[name])


def dispatch(request, tools):
    said = {{name: request.get(name) for name in CHOICES}}
    answer = {{name: value if valid(name, value) else asked(name, tools) for name, value in said.items()}}
    return tools.{spec.tool}(**answer)
"""


def attempting_dispatch(spec: TaskSpec, tool: ToolSpec) -> str:
    """Hands in a program that is found valid; of any other the model hears what is wrong, while it has turns left."""
    return f"""def dispatch(request, tools):
    verdict = tools.{tool.name}(**request)
    if verdict["ok"] or not verdict["turns_left"]:
        return tools.{spec.tool}(**request)
    return "That program is no valid answer. " + verdict["failure"] + ": " + verdict["detail"] + {MENDED!r}
"""


def _choices(spec: TaskSpec) -> str:
    choices = {p.name: list(p.choices) for p in spec.parameters}
    return f"CHOICES = {choices!r}"
