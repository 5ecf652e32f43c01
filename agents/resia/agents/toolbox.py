"""What dispatch may call of a domain: the answer's own tool, and those that the domain lists."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from resia.domains.base import Answer, Domain, Tooled, ToolSpec, called, parsed
from resia.domains.programs import Programmed, Runners, attempted, no_programs

from .benching import Bench
from .ports import Json, Tool

VERDICT = "verdict"  # of ToolSpec.gives
ASK = "ask"  # tools.ask(prompt=...) -> text: the harness's own, a question to the model


class Judges(NamedTuple):
    """Who gives verdicts on an answer before it is handed in: what runs programs, or a bench, which `who` asks."""

    programs: Runners = no_programs
    bench: Bench | None = None
    who: str = ""


NO_JUDGES = Judges()


def tools_of(domain: Domain, item: str, judges: Judges = NO_JUDGES) -> dict[str, Tool]:
    """The domain's tools by name, bound to `item`; those that give a verdict ask `judges`."""

    def answer(arguments: dict[str, Json]) -> Json:
        return parsed(domain, arguments)

    listed = {tool.name: _bound(domain, tool, item, judges) for tool in domain.spec.tools}
    return {**listed, domain.spec.tool: answer}


def _bound(domain: Domain, tool: ToolSpec, item: str, judges: Judges) -> Tool:
    bench, programs = judges.bench, judges.programs
    if tool.gives == VERDICT and bench is not None:
        return lambda arguments: _verdict(domain, arguments, lambda answer: bench.attempt(item, answer, judges.who))
    if tool.gives == VERDICT and isinstance(domain, Programmed):
        return lambda arguments: _verdict(domain, arguments, lambda answer: attempted(domain, item, answer, programs))
    assert isinstance(domain, Tooled)  # the registry loads no other that lists tools
    return lambda arguments: called(domain, tool.name, item, arguments)


def _verdict(domain: Domain, arguments: dict[str, Json], judged: Callable[[Answer], dict[str, Json]]) -> Json:
    """What a trial says, one that the form of an answer refuses included."""
    try:
        answer = parsed(domain, arguments)
    except ValueError as refused:
        return {"ok": False, "failure": "tool_error", "detail": str(refused)}
    return judged(answer)
