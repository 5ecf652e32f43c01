"""What dispatch may call of a domain: the answer's own tool, and those that the domain lists."""

from __future__ import annotations

from resia.domains.base import Domain, Tooled, called, parsed

from .benching import Bench
from .ports import Json, Tool

ASK = "ask"  # tools.ask(prompt=...) -> text: the harness's own, a question to the model


def tools_of(domain: Domain, item: str, bench: Bench | None = None, who: str = "") -> dict[str, Tool]:
    """The domain's tools by name, bound to `item`; `bench` gives the verdicts that `who` asks for."""

    def answer(arguments: dict[str, Json]) -> Json:
        return parsed(domain, arguments)

    def attempt(arguments: dict[str, Json]) -> Json:
        assert bench is not None
        return bench.attempt(item, parsed(domain, arguments), who)

    listed = {tool.name: _bound(domain, tool.name, item) for tool in domain.spec.tools if isinstance(domain, Tooled)}
    if bench is not None:
        listed |= {tool.name: attempt for tool in domain.spec.tools if tool.gives == "verdict"}
    return {**listed, domain.spec.tool: answer}


def _bound(domain: Tooled, tool: str, item: str) -> Tool:
    return lambda arguments: called(domain, tool, item, arguments)
