"""Tests of a domain that score nothing: its splits, its task, and how answers are read and written.

`contract` is asked of every run before it begins. Each test gives a finding in words.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping

import msgspec

from .base import Domain, Inspected, Parameter
from .trials import SPLITS, every_item, inside

Refusal = tuple[Mapping[str, object], str]


class Finding(msgspec.Struct, frozen=True):
    """What one test found; `passed` None: it could not be judged."""

    check: str
    passed: bool | None
    detail: str


def contract(domain: Domain) -> list[Finding]:
    """Splits by id, the task, and that answers are read and written one way."""
    return [named("splits", _splits(domain)), named("task", _task(domain)), named("form", _form(domain))]


def named(check: str, faults: tuple[str, str]) -> Finding:
    """A finding of (what is wrong, what is right): the fault, or the good news."""
    wrong, right = faults
    return Finding(check, not wrong, wrong or right)


def clip(text: str, characters: int = 200) -> str:
    return text if len(text) <= characters else f"{text[:characters]} ..."


def _splits(domain: Domain) -> tuple[str, str]:
    sizes = {split: len(domain.items(split)) for split in SPLITS}
    right = f"{', '.join(f'{count} {split}' for split, count in sizes.items())} items, each with an id of its own"
    if empty := [split for split in SPLITS if not sizes[split]]:
        return f"the split {empty[0]} has no items: give it at least one", right
    if wrong := [item.id for split in SPLITS for item in domain.items(split) if item.split != split]:
        return f"item '{wrong[0]}' says that it is of another split than it is in", right
    twice = [name for name, count in Counter(item.id for item in every_item(domain)).items() if count > 1]
    return (f"the id '{twice[0]}' is given twice: ids tell items apart in all splits together" if twice else ""), right


def _task(domain: Domain) -> tuple[str, str]:
    spec = domain.spec
    right = f"tool {spec.tool} of {len(spec.parameters)} arguments, {len(spec.references)} references"
    if not spec.instruction.strip():
        return "the spec has no instruction: say what an agent is to do", right
    if not spec.tool.isidentifier():
        return f"the tool's name is '{spec.tool}': take a Python name, as dispatch calls it", right
    if not spec.references:
        return "the spec has no reference: name one answer to begin from", right
    for parameter in spec.parameters:
        if not parameter.name.isidentifier():
            return f"argument '{parameter.name}' is no Python name, as which dispatch passes it", right
        if parameter.choices and not _among(parameter, parameter.default):
            return f"the default of '{parameter.name}' is {parameter.default!r}, which is not among its choices", right
    return "", right


def _among(parameter: Parameter, value: object) -> bool:
    return any(type(value) is type(choice) and value == choice for choice in parameter.choices)


def _form(domain: Domain) -> tuple[str, str]:
    """Every answer of the spec is its own parse, and has one line of text whatever the order of its arguments."""
    spec, texts = domain.spec, dict[str, dict[str, object]]()
    right = "every answer of the spec reads back as it stands and has one text of its own"
    for answer in [*(reference.answer for reference in spec.references), *spec.neutral_answers]:
        try:
            parsed, turned = domain.parse(answer), dict(reversed(answer.items()))
            text, again = domain.render(parsed), domain.render(domain.parse(turned))
        except ValueError as cause:
            return f"an answer of the spec, {answer}, is refused: {cause}", right
        if {name: parsed.get(name) for name in answer} != answer:
            return f"an answer of the spec, {answer}, is read as {parsed}", right
        if text != again or "\n" in text or not text.strip():
            return f"the answer {answer} is written {text!r}, and {again!r} with its arguments turned round", right
        if texts.setdefault(text, dict(parsed)) != parsed:
            return f"two answers, {parsed} and {texts[text]}, have the same text {text!r}", right
    return "", right


def refusals(domain: Domain) -> tuple[str, str]:
    """What is no answer is refused with ValueError."""
    tried = list(_garbage(domain))
    right = f"{len(tried)} requests that are no answers were refused"
    for request, what in tried:
        try:
            read = domain.parse(request)
        except ValueError:
            continue
        except Exception as cause:  # noqa: BLE001 - any other error is the finding
            return f"{what} raises {type(cause).__name__} ({cause}) and not ValueError", right
        return f"{what} is taken for the answer {read}", right
    return "", right


def _garbage(domain: Domain) -> Iterable[Refusal]:
    spec = domain.spec
    answer: dict[str, object] = dict(spec.references[0].answer) if spec.references else {}
    yield {**answer, "no_such_argument": 1}, "an unknown argument"
    for parameter in spec.parameters:
        for value in (None, [1], {"a": 1}, math.nan, "\x00"):
            yield {**answer, parameter.name: value}, f"{parameter.name}={value!r}"
        if parameter.choices and type(parameter.default) in (int, float):
            yield {**answer, parameter.name: str(parameter.default)}, f"{parameter.name} as text"
            beyond = max(float(choice) for choice in parameter.choices if not isinstance(choice, str)) + 1
            yield {**answer, parameter.name: type(parameter.default)(beyond)}, f"{parameter.name} beyond its choices"


def content(domain: Domain) -> Finding:
    """No part of an item is in two splits."""
    homes: dict[str, str] = {}
    for item in every_item(domain):
        for part in inside(domain, item.id).parts or {item.prompt}:
            home = homes.setdefault(part, item.split)
            if home != item.split:
                hint = "" if isinstance(domain, Inspected) else "; if only the prompts are alike, tell parts by inside"
                detail = f"item '{item.id}' of {item.split} holds what {home} holds, {clip(part, 60)!r}{hint}"
                return Finding("content", False, detail)
    return Finding("content", True, f"{len(homes)} parts, none in two splits")
