"""What dispatch may call: the answer's own tool, those that the domain lists, and those of the harness itself."""

from __future__ import annotations

from resia.domains.base import Domain, Tooled, called

from .ports import Json, Tool

ASK = "ask"  # tools.ask(prompt=...) -> text: one more turn of the model
HARNESS_TOOLS: frozenset[str] = frozenset()  # what a harness offers on any domain


def tools_of(domain: Domain, item: str) -> dict[str, Tool]:
    """The domain's tools by name, bound to `item`."""

    def answer(arguments: dict[str, Json]) -> Json:
        return domain.parse(arguments)

    listed = {tool.name: _bound(domain, tool.name, item) for tool in domain.spec.tools if isinstance(domain, Tooled)}
    return {**listed, domain.spec.tool: answer}


def _bound(domain: Tooled, tool: str, item: str) -> Tool:
    return lambda arguments: called(domain, tool, item, arguments)
