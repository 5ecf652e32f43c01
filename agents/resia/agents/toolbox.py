"""What dispatch may call of a domain: the answer's own tool, and those that the domain lists."""

from __future__ import annotations

from resia.domains.base import Domain, Tooled, ToolSpec, called, parsed
from resia.domains.programs import Programmed, Runners, attempted, no_programs

from .ports import Json, Tool

VERDICT = "verdict"  # of ToolSpec.gives
ASK = "ask"  # tools.ask(prompt=...) -> text: the harness's own, a question to the model


def tools_of(domain: Domain, item: str, programs: Runners = no_programs) -> dict[str, Tool]:
    """The domain's tools by name, bound to `item`; those that try a program out run it by `programs`."""

    def answer(arguments: dict[str, Json]) -> Json:
        return parsed(domain, arguments)

    listed = {tool.name: _bound(domain, tool, item, programs) for tool in domain.spec.tools}
    return {**listed, domain.spec.tool: answer}


def _bound(domain: Domain, tool: ToolSpec, item: str, programs: Runners) -> Tool:
    if tool.gives == VERDICT and isinstance(domain, Programmed):
        return lambda arguments: _verdict(domain, item, arguments, programs)
    assert isinstance(domain, Tooled)  # the registry loads no other that lists tools
    return lambda arguments: called(domain, tool.name, item, arguments)


def _verdict(domain: Programmed, item: str, arguments: dict[str, Json], programs: Runners) -> Json:
    """What a trial says, one that the form of an answer refuses included."""
    try:
        answer = parsed(domain, arguments)
    except ValueError as refused:
        return {"ok": False, "failure": "tool_error", "detail": str(refused)}
    return attempted(domain, item, answer, programs)
