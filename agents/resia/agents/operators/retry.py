"""Edits of the retry policy: how answers are sampled, and how often.

The gate compares greedy answers, which the temperature does not reach unless there is a second try or a vote: its
steps have nothing to do before.
"""

from __future__ import annotations

from resia.domains.base import Domain
from resia.events import Harness

from .base import Operator, SearchView, with_policy

MAX_NEW_TOKENS = 256
RETRY_ATTEMPTS = 3
VOTES = 5  # odd, so that two answers cannot share them evenly
COOLEST, HOTTEST = 0.1, 1.4  # a step halves or doubles the temperature, and stops here


def _retry_unparsed(harness: Harness, domain: Domain, view: SearchView) -> Harness:
    del domain, view
    return with_policy(harness, attempts=max(harness.retry_policy.attempts, RETRY_ATTEMPTS))


def _longer_answers(harness: Harness, domain: Domain, view: SearchView) -> Harness:
    del domain, view
    tokens = harness.retry_policy.max_new_tokens
    return with_policy(harness, max_new_tokens=max(tokens, min(tokens * 2, MAX_NEW_TOKENS)))


def _any_line(harness: Harness, domain: Domain, view: SearchView) -> Harness:
    del domain, view
    return with_policy(harness, stop=())


def _vote(harness: Harness, domain: Domain, view: SearchView) -> Harness:
    del domain, view
    return with_policy(harness, votes=max(harness.retry_policy.votes, VOTES))


def _cooler(harness: Harness, domain: Domain, view: SearchView) -> Harness:
    del domain, view
    now = harness.retry_policy.temperature
    return with_policy(harness, temperature=min(now, max(now / 2, COOLEST))) if _samples(harness) else harness


def _hotter(harness: Harness, domain: Domain, view: SearchView) -> Harness:
    del domain, view
    now = harness.retry_policy.temperature
    return with_policy(harness, temperature=max(now, min(now * 2, HOTTEST))) if _samples(harness) else harness


def _samples(harness: Harness) -> bool:
    return harness.retry_policy.votes > 1 or harness.retry_policy.attempts > 1


OPERATORS = (
    Operator(
        "retry-unparsed",
        "retry_policy",
        {"parse": 0.4, "refusal": 0.3},
        "Some answers could not be read: sample again, at most three times in all.",
        _retry_unparsed,
    ),
    Operator(
        "longer-answers",
        "retry_policy",
        {"truncation": 0.9},
        "Answers were cut off: allow twice the tokens.",
        _longer_answers,
    ),
    Operator(
        "self-consistency",
        "retry_policy",
        {"wrong": 0.5, "tool_error": 0.3, "weak": 0.15},
        "Answers are valid but vary: sample five and take the one that most of them give.",
        _vote,
    ),
    Operator(
        "any-line",
        "retry_policy",
        {"parse": 0.3, "truncation": 0.1},
        "Answers stopped before they said anything: let the model go on past the end of a line.",
        _any_line,
    ),
    Operator(
        "lower-temperature",
        "retry_policy",
        {"parse": 0.2, "tool_error": 0.2, "wrong": 0.1},
        "Sampled answers stray from the form: halve the temperature.",
        _cooler,
    ),
    Operator(
        "higher-temperature",
        "retry_policy",
        {"refusal": 0.2, "weak": 0.1, "wrong": 0.1},
        "Second tries and votes say the same again: double the temperature.",
        _hotter,
    ),
)
