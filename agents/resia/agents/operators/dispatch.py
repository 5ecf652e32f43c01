"""Edits of the tool dispatch: what is done with a request, and with which tools."""

from __future__ import annotations

import msgspec

from resia.agents import sources, tool_sources
from resia.agents.code_sources import code_parameter
from resia.domains.base import Domain
from resia.events import Harness

from .base import Operator, SearchView


def _repair_arguments(harness: Harness, domain: Domain, view: SearchView) -> Harness:
    del view
    return msgspec.structs.replace(harness, tool_dispatch=sources.repairing_dispatch(domain.spec))


def _shortlist(harness: Harness, domain: Domain, view: SearchView) -> Harness:
    del view
    tool = next((tool for tool in domain.spec.tools if tool.gives == "shortlist"), None)
    source = tool_sources.shortlist_dispatch(domain.spec, tool) if tool else harness.tool_dispatch
    return msgspec.structs.replace(harness, tool_dispatch=source)


def _classify(harness: Harness, domain: Domain, view: SearchView) -> Harness:
    del view
    tool = next((tool for tool in domain.spec.tools if tool.gives == "label"), None)
    source = tool_sources.label_dispatch(domain.spec, tool) if tool else harness.tool_dispatch
    return msgspec.structs.replace(harness, tool_dispatch=source)


def _decompose(harness: Harness, domain: Domain, view: SearchView) -> Harness:
    """A dispatch that asks for each unusable argument alone, where the policy lets it ask for all of them."""
    del view
    if harness.retry_policy.asks < len(domain.spec.parameters) or code_parameter(domain.spec):
        return harness
    return msgspec.structs.replace(harness, tool_dispatch=tool_sources.asking_dispatch(domain.spec))


OPERATORS = (
    Operator(
        "repair-arguments",
        "tool_dispatch",
        {"tool_error": 0.9},
        "The tool refused arguments: fill what is missing and move values to the nearest choice.",
        _repair_arguments,
    ),
    Operator(
        "shortlist-labels",
        "tool_dispatch",
        {"wrong": 0.6, "tool_error": 0.6, "weak": 0.4},
        "Answers were none of those that fit the item: keep to the shortlist that the domain's retrieval gives.",
        _shortlist,
    ),
    Operator(
        "classify-labels",
        "tool_dispatch",
        {"wrong": 0.7, "weak": 0.5, "tool_error": 0.5},
        "Answers are valid but often wrong: take the label of the classifier that was fitted on the search split.",
        _classify,
    ),
    Operator(
        "ask-one-by-one",
        "tool_dispatch",
        {"tool_error": 0.6, "wrong": 0.2},
        "Some arguments were missing or refused: ask the model for each of them alone.",
        _decompose,
    ),
)
