"""Prompts said differently: the two perturbations that probe a candidate (docs/gate.md).

Deterministic and published, and the content stays: an answer that is right to one is right to the other. `paraphrase`
rewords what surrounds the task, `shuffle` lists its options in another order. Knows nothing of scores or of the log.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import assert_never

import msgspec

from resia.domains.base import Answer, Domain, Parameter, Shuffling, TaskSpec, Value
from resia.events import Message, Perturbation, Slot
from resia.events.errors import BoundaryError, boundary

OPENING = "What you are asked to do is described below."  # before the system prompt
INTRODUCTION = "This is the next case:"  # before what a user says
# Phrases that say the same, in the order in which they are looked for. Whole words, capitals count.
PHRASES: tuple[tuple[str, str], ...] = (
    ("Answer with one line and nothing else", "Give a single line and nothing besides it"),
    ("Known implementations", "Implementations that are known already"),
    ("Reply with one line", "Respond with a single line"),
    ("Reply with only", "Respond with nothing but"),
    ("Reply with", "Respond with"),
    ("Answer with only", "Respond with nothing but"),
    ("Answer with", "Respond with"),
    ("Think step by step", "Reason one step at a time"),
    ("Make sure that", "See to it that"),
    ("Make sure to", "Take care to"),
    ("Do not", "Don't"),
    ("do not", "don't"),
    ("You must", "You have to"),
    ("Choose the", "Select the"),
    ("Choose one", "Select one"),
    ("Here is", "Below is"),
    ("For example", "For instance"),
    ("Example:", "An example:"),
)
SEPARATORS = ("|", ", ", "/", " or ")  # between the choices of a parameter, where a prompt lists them
_CODE = re.compile(r"(```.*?(?:```|\Z)|`[^`\n]*`)", re.DOTALL)
_BULLET = re.compile(r"[-*] ")


def offered(domain: Domain) -> tuple[Perturbation, ...]:
    """Perturbations that change a prompt of this domain. Options can be shuffled where the domain does it itself, or
    where its instruction lists the choices of a parameter."""
    lists = isinstance(domain, Shuffling) or with_choices_turned(domain.spec.instruction, domain.spec, 0) != (
        domain.spec.instruction
    )
    return ("paraphrase", "shuffle") if lists else ("paraphrase",)


def perturbed(messages: Sequence[Message], domain: Domain, slot: Slot) -> tuple[Message, ...]:
    """What the model sees in `slot`, whose item's own prompt is the last of `messages`. Raises BoundaryError."""
    match slot.probe:
        case None:
            return tuple(messages)
        case "paraphrase":
            return paraphrased(messages)
        case "shuffle":
            return _shuffled(messages, domain, slot)
        case _:
            assert_never(slot.probe)


def restored(answer: Answer, domain: Domain, slot: Slot) -> dict[str, Value]:
    """The answer as the item's own prompt would have it. Raises BoundaryError."""
    if slot.probe != "shuffle" or not isinstance(domain, Shuffling):
        return dict(answer)
    with boundary(BoundaryError, f"restoring an answer to shuffled item '{slot.item}' failed"):
        return domain.parse(domain.restored(slot.item, slot.seed, answer))


def paraphrased(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The same chat in other words; what the assistant is shown to have said stays, since it is the answers' form."""
    return tuple(_reworded(message) for message in messages)


def _reworded(message: Message) -> Message:
    if message.role == "assistant":
        return message
    before = OPENING if message.role == "system" else INTRODUCTION
    return Message(message.role, f"{before}\n{reworded(message.content)}")


def reworded(text: str) -> str:
    """`text` with the published phrases replaced and each list of bullets from its end; code stays as it is."""
    parts = _CODE.split(text)
    parts[::2] = [_other_phrases(part) for part in parts[::2]]
    return _bullets_turned("".join(parts))


def _other_phrases(text: str) -> str:
    """Every phrase replaced once: what has been put in is not looked at again."""
    meant = dict(PHRASES)
    found = "|".join(rf"(?<!\w){re.escape(phrase)}(?!\w)" for phrase, _ in PHRASES)
    return re.sub(found, lambda match: meant[match[0]], text)


def _bullets_turned(text: str) -> str:
    """Neighbouring lines that begin with `- ` or `* ` in reverse: bullets are independent, numbered steps are not."""
    lines: list[str] = []
    held: list[str] = []
    fenced = False
    for line in text.split("\n"):
        fenced ^= line.lstrip().startswith("```")
        if not fenced and _BULLET.match(line):
            held.append(line)
            continue
        lines += [*reversed(held), line]
        held = []
    return "\n".join([*lines, *reversed(held)])


def _shuffled(messages: Sequence[Message], domain: Domain, slot: Slot) -> tuple[Message, ...]:
    """The item's options by the domain where it can, and the choices that the system prompt lists."""
    last = messages[-1]
    if isinstance(domain, Shuffling):
        with boundary(BoundaryError, f"shuffling item '{slot.item}' failed"):
            last = Message(last.role, domain.shuffled(slot.item, slot.seed))
    return tuple(
        msgspec.structs.replace(m, content=with_choices_turned(m.content, domain.spec, slot.seed))
        if m.role == "system"
        else m
        for m in (*messages[:-1], last)
    )


def with_choices_turned(text: str, spec: TaskSpec, seed: int) -> str:
    """`text` with the choices of every parameter that it lists whole turned round by one place or more."""
    lists: Mapping[str, str] = {
        old: new for parameter in spec.parameters for old, new in _turned_lists(parameter, seed).items()
    }
    if not lists:
        return text
    found = "|".join(rf"(?<!\w){re.escape(old)}(?!\w)" for old in sorted(lists, key=len, reverse=True))
    return re.sub(found, lambda match: lists[match[0]], text)


def _turned_lists(parameter: Parameter, seed: int) -> dict[str, str]:
    """How a prompt may list the choices, and the same from another choice on."""
    choices = [str(choice) for choice in parameter.choices]
    if len(choices) < 2:
        return {}
    first = 1 + seed % (len(choices) - 1)
    turned = choices[first:] + choices[:first]
    return {mark.join(choices): mark.join(turned) for mark in SEPARATORS}
