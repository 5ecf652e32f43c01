"""The tool `charge`: one argument, the name of a charge or a set of names, how it is checked and written, and the
task's text. Knows nothing of facts or scores.
"""

from __future__ import annotations

from collections.abc import Mapping

from resia.domains.base import Answer, Parameter, Reference, TaskSpec, Value

from .charges import SEPARATOR, Charges
from .scoring import REWARD, Protocol
from .tools import OFFERED

TOOL, ARGUMENT = "name_charge", "charge"
USUAL = "盗窃"  # theft, the commonest crime before the courts: the reference guess, chosen without looking at the data
NEUTRAL = 6
# The second score of each protocol's answers that is not its reward.
VERIFIERS: Mapping[Protocol, str] = {"official": "official", "set-exact": "corrected"}
ONE = "the charge's name as the criminal law words it, without a final 罪"
SEVERAL = f"{ONE}; several names stand apart by '{SEPARATOR}'"


def parse(request: Mapping[str, object], charges: Charges, protocol: Protocol) -> dict[str, Value]:
    """The charges in canonical form. There is no default: an answer that names none is no answer.

    Raises ValueError in one sentence.
    """
    if unknown := [name for name in request if name != ARGUMENT]:
        raise ValueError(f"argument '{unknown[0]}' is unknown: give {ARGUMENT}")
    given = request.get(ARGUMENT)
    if not isinstance(given, str):
        raise ValueError(f"argument '{ARGUMENT}' is {given!r:.80}: give the name of a charge")
    named = charges.several(given)
    if not named:
        raise ValueError(f"argument '{ARGUMENT}' is {given!r:.80}: give the name of a charge")
    if protocol == "single" and len(named) > 1:
        raise ValueError(f"argument '{ARGUMENT}' names {len(named)} charges, {SEPARATOR.join(named)[:80]}: give one")
    return {ARGUMENT: SEPARATOR.join(named)}


def render(answer: Answer) -> str:
    """`charge=` and the names in the order of the list."""
    return f"{ARGUMENT}={answer[ARGUMENT]}"


def names(answer: Answer) -> tuple[str, ...]:
    """The charges of a parsed answer."""
    return tuple(str(answer[ARGUMENT]).split(SEPARATOR))


def spec(charges: Charges, protocol: Protocol) -> TaskSpec:
    """The task in words. The list is a closed one and is not spelt out here: it is longer than most cases."""
    single = protocol == "single"
    usual = USUAL if USUAL in charges.names else charges.names[0]
    longest = max(charges.names, key=lambda name: (len(name), name))
    neutral = _neutral(charges, single)
    separator = "" if single else SEPARATOR
    references = (
        Reference("usual", {ARGUMENT: usual}, "the charge that courts see most"),
        # Its length is what generation 0 allows an answer.
        Reference("longest", {ARGUMENT: longest}, "the longest name on the list"),
    )
    return TaskSpec(
        name="lawbench",
        instruction=_instruction(single, usual, neutral),
        tool=TOOL,
        parameters=(Parameter(ARGUMENT, charges.names, usual, ONE if single else SEVERAL, separator),),
        references=references if single else (*references, _pair(charges)),
        neutral_answers=neutral,
        objective="mean",
        binary=protocol != "official",
        tools=OFFERED,
        verifier=VERIFIERS.get(protocol, ""),
        metric=REWARD[protocol],
    )


def _pair(charges: Charges) -> Reference:
    two = SEPARATOR.join(charges.names[:2])
    return Reference("two", {ARGUMENT: two}, "how two charges are written")


def _neutral(charges: Charges, single: bool) -> tuple[dict[str, Value], ...]:
    """Names at even distances of the sorted list, every third answer a pair where pairs are asked for."""
    step = max(len(charges.names) // NEUTRAL, 1)
    picked = charges.names[step // 2 :: step][:NEUTRAL]
    answers = [
        SEPARATOR.join(charges.ordered((name, picked[(n + 1) % len(picked)]))) if n % 3 == 2 and not single else name
        for n, name in enumerate(picked)
    ]
    return tuple({ARGUMENT: text} for text in answers)


def _instruction(single: bool, usual: str, neutral: tuple[dict[str, Value], ...]) -> str:
    pairs = [answer for answer in neutral if SEPARATOR in str(answer[ARGUMENT])]
    shown: list[dict[str, Value]] = [{ARGUMENT: usual}, *pairs[:1]]
    asked = "the charge" if single else "every charge"
    return "\n".join(
        [
            f"Read the facts of a Chinese criminal case and name {asked}.",
            f"Reply with one line that sets the argument of the tool {TOOL}:",
            f"{ARGUMENT}: {ONE if single else SEVERAL}",
            *(f"Example: {render(answer)}" for answer in shown),
        ]
    )
