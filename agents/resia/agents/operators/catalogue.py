"""The catalogue: every operator by name, in the order that breaks ties."""

from __future__ import annotations

from resia.agents.code_sources import code_parameter
from resia.domains.base import Domain
from resia.events import Harness

from . import dispatch, extraction, prompt, retry
from .base import Operator, SearchView, Seen

_FOUND = {op.name: op for module in (prompt, dispatch, extraction, retry) for op in module.OPERATORS}
_ORDER = (
    "demonstrate-neutral",
    "demonstrate-best",
    "classify-labels",
    "shortlist-labels",
    "repair-arguments",
    "tolerant-extraction",
    "retry-unparsed",
    "format-contract",
    "longer-answers",
    "shorten-instruction",
    "self-consistency",
    "ask-one-by-one",
    "last-mention",
    "any-line",
    "lower-temperature",
    "higher-temperature",
)
CATALOGUE: dict[str, Operator] = {name: _FOUND[name] for name in _ORDER}
assert CATALOGUE.keys() == _FOUND.keys(), "an operator has no place in the order"


def applicable(harness: Harness, domain: Domain) -> tuple[str, ...]:
    """Operators that would change `harness` given some rollouts to learn from."""
    reference, code = domain.spec.references[0].answer, code_parameter(domain.spec)
    answer, source = domain.render(reference), str(reference[code.name]) if code else ""
    view = SearchView(("item",), (Seen("i", "item", answer, 1.0, answer, source),))
    return tuple(name for name, op in CATALOGUE.items() if op.edit(harness, domain, view) != harness)
