"""Edits of the system prompt: what the model reads before the item."""

from __future__ import annotations

from resia.agents.code_sources import CONTRACT, block, code_parameter, spoken
from resia.domains.base import Domain
from resia.events import Example, Harness

from .base import Operator, SearchView, Seen, with_prompt

MAX_EXAMPLES = 6


def _demonstrate_neutral(harness: Harness, domain: Domain, view: SearchView) -> Harness:
    """Valid answers chosen without looking at any score, so they teach the form and nothing else."""
    if harness.system_prompt.examples:
        return harness
    answers = domain.spec.neutral_answers[:MAX_EXAMPLES]
    examples = tuple(
        Example(view.prompts[n % len(view.prompts)], spoken(domain, answer)) for n, answer in enumerate(answers)
    )
    return with_prompt(harness, examples=examples)


def _demonstrate_best(harness: Harness, domain: Domain, view: SearchView) -> Harness:
    """The run's own best scored answers, at most one an item and no answer twice while others are left."""
    best = sorted((s for s in view.rollouts if s.reward > 0), key=lambda s: (-s.reward, s.item, s.answer))
    chosen: list[Seen] = []
    for distinct in (True, False):
        for seen in best:
            known_item = any(seen.item == c.item for c in chosen)
            known_answer = any(seen.answer == c.answer for c in chosen)
            if len(chosen) < MAX_EXAMPLES and not known_item and not (distinct and known_answer):
                chosen.append(seen)
    # The best last: a small model copies what stands nearest. A prompt is answered by the first step.
    examples = tuple(Example(s.prompt, _first_answer(s, domain)) for s in reversed(chosen))
    return with_prompt(harness, examples=examples) if examples else harness


def _first_answer(seen: Seen, domain: Domain) -> str:
    """As the model is to say it: a source is told in full, and its canonical text is only its digest."""
    return block(seen.source) if code_parameter(domain.spec) else seen.answer.partition("\n")[0]


def _format_contract(harness: Harness, domain: Domain, view: SearchView) -> Harness:
    del view
    form = " ".join(f"{p.name}=<{'|'.join(str(c) for c in p.choices)}>" for p in domain.spec.parameters)
    contract = CONTRACT if code_parameter(domain.spec) else f"Answer with one line and nothing else: {form}"
    if contract in harness.system_prompt.text:
        return harness
    return with_prompt(harness, text=f"{harness.system_prompt.text}\n{contract}")


def _shorten_instruction(harness: Harness, domain: Domain, view: SearchView) -> Harness:
    """Demonstrations carry the form; a small model does better with less prose before them."""
    del view
    first = domain.spec.instruction.strip().splitlines()[0]
    return with_prompt(harness, text=first) if harness.system_prompt.examples else harness


OPERATORS = (
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
        "format-contract",
        "system_prompt",
        {"parse": 0.5, "tool_error": 0.4},
        "Answers broke the form: state it in one line, with every choice.",
        _format_contract,
    ),
    Operator(
        "shorten-instruction",
        "system_prompt",
        {"weak": 0.2, "wrong": 0.2, "parse": 0.1},
        "The demonstrations carry the task: cut the instruction to its first line.",
        _shorten_instruction,
    ),
)
