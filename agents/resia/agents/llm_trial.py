"""A proposed harness tried on a harmless input, in the sandbox and nowhere else, before it is measured.

`extract` reads the empty text and the domain's own form of the default answer; `dispatch` gets a request with every
argument at its default. What does not parse, has no entry, loops, prints or returns without end, or returns another
type, is caught by the sandbox's limits or here.
"""

from __future__ import annotations

from collections.abc import Mapping

from resia.domains.base import Domain
from resia.events import Harness
from resia.events.errors import SandboxError

from .llm_reply import Invalid
from .ports import Json, Sandbox, Tool
from .toolbox import ASK, VERDICT

_WANTED = "it must return what the tool returned, a dict, or an observation, a str, where tool_turns allows any"


def try_out(harness: Harness, domain: Domain, sandbox: Sandbox) -> None:
    """Raises Invalid where a source fails, BoundaryError where the sandbox itself did."""
    defaults = {parameter.name: parameter.default for parameter in domain.spec.parameters}
    form = domain.render(domain.parse(defaults))
    for text in ("", form):
        found = _ran(sandbox, harness.answer_extraction, "extract", text, None)
        if found is not None and not isinstance(found, dict):
            raise Invalid(f"extract({text!r}) returned {_kind(found)}: it must return a dict, or None")
    tools: dict[str, Tool] = {domain.spec.tool: domain.parse, **_verdicts(harness, domain)}
    if harness.retry_policy.asks:
        tools[ASK] = lambda _arguments: form
    answer = _ran(sandbox, harness.tool_dispatch, "dispatch", defaults, tools)
    if isinstance(answer, str) and harness.retry_policy.tool_turns:
        return  # an observation, after which the agent goes on
    if not isinstance(answer, dict):
        raise Invalid(f"dispatch({defaults!r}, tools) returned {_kind(answer)}: {_WANTED}")
    try:
        domain.parse(answer)
    except ValueError as cause:
        raise Invalid(
            f"dispatch({defaults!r}, tools) returned an answer that the tool does not take: {cause}"
        ) from None


def _verdicts(harness: Harness, domain: Domain) -> dict[str, Tool]:
    """Tools that judge, all of them content: nothing is judged for a trial."""

    def verdict(arguments: dict[str, Json]) -> Json:
        domain.parse(arguments)
        return {"ok": True, "failure": "", "detail": "", "turns_left": harness.retry_policy.tool_turns}

    return {tool.name: verdict for tool in domain.spec.tools if tool.gives == VERDICT}


def _ran(sandbox: Sandbox, source: str, entry: str, argument: Json, tools: Mapping[str, Tool] | None) -> Json:
    try:
        return sandbox.run(source, entry, [argument], tools).value
    except SandboxError as cause:
        raise Invalid(f"the source of {entry} fails on {argument!r}: {cause} ({cause.failure})") from None


def _kind(value: Json) -> str:
    return f"a {type(value).__name__}" if value is not None else "None"
