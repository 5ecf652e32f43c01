"""The embedded proposer: a catalogue of typed edit operators, ranked by the failure classes they mend.

An operator changes one component of a harness, from the task spec and the search view alone. Everything is pure;
which operator is tried is decided on facts (`rank`), what it makes is done in `proposing`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from resia.domains.base import Domain
from resia.events import Component, Example, Harness

from . import sources

MAX_EXAMPLES = 6
MAX_NEW_TOKENS = 256
RETRY_ATTEMPTS = 3
_replace = msgspec.structs.replace


class Seen(NamedTuple):
    """One search rollout as a proposer may see it: the item's prompt, the answer and its reward; never gold."""

    item: str
    prompt: str
    answer: str
    reward: float
    text: str


class SearchView(NamedTuple):
    """All that a proposer sees of a run: the search items' prompts and the champion's search rollouts."""

    prompts: tuple[str, ...]
    rollouts: tuple[Seen, ...]


class Operator(NamedTuple):
    """A typed edit. `mends` weighs the outcome classes it is meant for, in [0, 1]; `edit` returns the harness
    unchanged where it has nothing to do."""

    name: str
    component: Component
    mends: Mapping[str, float]
    rationale: str
    edit: Callable[[Harness, Domain, SearchView], Harness]


def rank(names: Sequence[str], failures: Mapping[str, int]) -> list[str]:
    """`names` by the share of outcomes each is meant to mend, best first; ties by catalogue order."""
    total = max(sum(failures.values()), 1)

    def worth(name: str) -> float:
        return sum(weight * failures.get(kind, 0) / total for kind, weight in CATALOGUE[name].mends.items())

    order = list(CATALOGUE)
    return sorted((n for n in names if n in CATALOGUE), key=lambda n: (-worth(n), order.index(n)))


def applicable(harness: Harness, domain: Domain) -> tuple[str, ...]:
    """Operators that would change `harness` given some rollouts to learn from."""
    answer = domain.render(domain.spec.references[0].answer)
    view = SearchView(("item",), (Seen("i", "item", answer, 1.0, answer),))
    return tuple(name for name, op in CATALOGUE.items() if op.edit(harness, domain, view) != harness)


def _with_prompt(harness: Harness, **changes: object) -> Harness:
    return _replace(harness, system_prompt=_replace(harness.system_prompt, **changes))


def _with_policy(harness: Harness, **changes: object) -> Harness:
    return _replace(harness, retry_policy=_replace(harness.retry_policy, **changes))


def _demonstrate_neutral(harness: Harness, domain: Domain, view: SearchView) -> Harness:
    """Valid answers chosen without looking at any score, so they teach the form and nothing else."""
    if harness.system_prompt.examples:
        return harness
    answers = domain.spec.neutral_answers[:MAX_EXAMPLES]
    examples = tuple(
        Example(view.prompts[n % len(view.prompts)], domain.render(answer)) for n, answer in enumerate(answers)
    )
    return _with_prompt(harness, examples=examples)


def _demonstrate_best(harness: Harness, domain: Domain, view: SearchView) -> Harness:
    """The run's own best scored answers, at most one an item and no answer twice while others are left."""
    del domain
    best = sorted((s for s in view.rollouts if s.reward > 0), key=lambda s: (-s.reward, s.item, s.answer))
    chosen: list[Seen] = []
    for distinct in (True, False):
        for seen in best:
            known_item = any(seen.item == c.item for c in chosen)
            known_answer = any(seen.answer == c.answer for c in chosen)
            if len(chosen) < MAX_EXAMPLES and not known_item and not (distinct and known_answer):
                chosen.append(seen)
    # The best last: a small model copies what stands nearest. A prompt is answered by the first step.
    examples = tuple(Example(s.prompt, s.answer.partition("\n")[0]) for s in reversed(chosen))
    return _with_prompt(harness, examples=examples) if examples else harness


def _format_contract(harness: Harness, domain: Domain, view: SearchView) -> Harness:
    del view
    form = " ".join(f"{p.name}=<{'|'.join(str(c) for c in p.choices)}>" for p in domain.spec.parameters)
    contract = f"Answer with one line and nothing else: {form}"
    if contract in harness.system_prompt.text:
        return harness
    return _with_prompt(harness, text=f"{harness.system_prompt.text}\n{contract}")


def _shorten_instruction(harness: Harness, domain: Domain, view: SearchView) -> Harness:
    """Demonstrations carry the form; a small model does better with less prose before them."""
    del view
    first = domain.spec.instruction.strip().splitlines()[0]
    return _with_prompt(harness, text=first) if harness.system_prompt.examples else harness


def _tolerant_extraction(harness: Harness, domain: Domain, view: SearchView) -> Harness:
    del view
    return _replace(harness, answer_extraction=sources.tolerant_extraction(domain.spec))


def _repair_arguments(harness: Harness, domain: Domain, view: SearchView) -> Harness:
    del view
    return _replace(harness, tool_dispatch=sources.repairing_dispatch(domain.spec))


def _retry_unparsed(harness: Harness, domain: Domain, view: SearchView) -> Harness:
    del domain, view
    return _with_policy(harness, attempts=max(harness.retry_policy.attempts, RETRY_ATTEMPTS))


def _longer_answers(harness: Harness, domain: Domain, view: SearchView) -> Harness:
    del domain, view
    tokens = harness.retry_policy.max_new_tokens
    return _with_policy(harness, max_new_tokens=max(tokens, min(tokens * 2, MAX_NEW_TOKENS)))


_ALL = (
    Operator(
        "demonstrate-neutral",
        "system_prompt",
        {"parse": 1.0, "refusal": 1.0, "truncation": 0.8, "tool_error": 0.7},
        "Most answers had no usable form: show valid answers as chat turns.",
        _demonstrate_neutral,
    ),
    Operator(
        "demonstrate-best",
        "system_prompt",
        {"weak": 1.0, "wrong": 1.0, "solved": 0.3, "tool_error": 0.2},
        "Answers are valid but score low: show the run's own best answers instead.",
        _demonstrate_best,
    ),
    Operator(
        "repair-arguments",
        "tool_dispatch",
        {"tool_error": 0.9},
        "The tool refused arguments: fill what is missing and move values to the nearest choice.",
        _repair_arguments,
    ),
    Operator(
        "tolerant-extraction",
        "answer_extraction",
        {"parse": 0.6, "truncation": 0.3},
        "Answers held pairs that the extraction did not accept: find them anywhere in the text.",
        _tolerant_extraction,
    ),
    Operator(
        "retry-unparsed",
        "retry_policy",
        {"parse": 0.4, "refusal": 0.3},
        "Some answers could not be read: sample again, at most three times in all.",
        _retry_unparsed,
    ),
    Operator(
        "format-contract",
        "system_prompt",
        {"parse": 0.5, "tool_error": 0.4},
        "Answers broke the form: state it in one line, with every choice.",
        _format_contract,
    ),
    Operator(
        "longer-answers",
        "retry_policy",
        {"truncation": 0.9},
        "Answers were cut off: allow twice the tokens.",
        _longer_answers,
    ),
    Operator(
        "shorten-instruction",
        "system_prompt",
        {"weak": 0.2, "wrong": 0.2, "parse": 0.1},
        "The demonstrations carry the task: cut the instruction to its first line.",
        _shorten_instruction,
    ),
)
CATALOGUE: dict[str, Operator] = {op.name: op for op in _ALL}
