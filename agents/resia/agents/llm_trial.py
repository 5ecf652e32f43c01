"""A proposed harness tried on a harmless input, in the sandbox and nowhere else, before it is measured.

`extract` reads the empty text and the domain's own form of the default answer; `dispatch` gets a request with every
argument at its default. What does not parse, has no entry, loops, prints or returns without end, or returns another
type, is caught by the sandbox's limits or here.
"""

from __future__ import annotations

from resia.domains.base import Domain
from resia.events import Harness
from resia.events.errors import SandboxError

from .llm_reply import Invalid
from .ports import Json, Sandbox


def try_out(harness: Harness, domain: Domain, sandbox: Sandbox) -> None:
    """Raises Invalid where a source fails, BoundaryError where the sandbox itself did."""
    defaults = {parameter.name: parameter.default for parameter in domain.spec.parameters}

    def tool(arguments: dict[str, Json]) -> Json:
        return domain.parse(arguments)

    for text in ("", domain.render(domain.parse(defaults))):
        try:
            found = sandbox.run(harness.answer_extraction, "extract", [text]).value
        except SandboxError as cause:
            raise Invalid(f"answer_extraction fails on the text {text!r}: {cause} ({cause.failure})") from None
        if found is not None and not isinstance(found, dict):
            raise Invalid(f"extract({text!r}) returned {_kind(found)}: it must return a dict, or None")
    try:
        answer = sandbox.run(harness.tool_dispatch, "dispatch", [defaults], {domain.spec.tool: tool}).value
    except SandboxError as cause:
        raise Invalid(f"tool_dispatch fails on the request {defaults!r}: {cause} ({cause.failure})") from None
    if not isinstance(answer, dict):
        raise Invalid(f"dispatch returned {_kind(answer)}: it must return what the tool returned, a dict")
    try:
        domain.parse(answer)
    except ValueError as cause:
        raise Invalid(f"dispatch returned an answer that the tool does not take: {cause}") from None


def _kind(value: Json) -> str:
    return f"a {type(value).__name__}" if value is not None else "None"
