"""Edits of the answer extraction: how a request is read from what the model said."""

from __future__ import annotations

import msgspec

from resia.agents import sources
from resia.domains.base import Domain
from resia.events import Harness

from .base import Operator, SearchView


def _tolerant(harness: Harness, domain: Domain, view: SearchView) -> Harness:
    del view
    return msgspec.structs.replace(harness, answer_extraction=sources.tolerant_extraction(domain.spec))


def _last_mention(harness: Harness, domain: Domain, view: SearchView) -> Harness:
    del view
    return msgspec.structs.replace(harness, answer_extraction=sources.tolerant_extraction(domain.spec, last=True))


OPERATORS = (
    Operator(
        "tolerant-extraction",
        "answer_extraction",
        {"parse": 0.6, "truncation": 0.3},
        "Answers held pairs that the extraction did not accept: find them anywhere in the text.",
        _tolerant,
    ),
    Operator(
        "last-mention",
        "answer_extraction",
        {"wrong": 0.15, "tool_error": 0.15, "parse": 0.35},
        "Answers named a value more than once: take the last, which a model says when it has made up its mind.",
        _last_mention,
    ),
)
