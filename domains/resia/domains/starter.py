"""A problem of your own: three functions and the form of an answer. Change all of it.

Check it with `resia task check problem.py`, improve an agent on it with `resia run --domain problem.py`.
"""

from __future__ import annotations

import random

# What the agent is told of the task. The form of an answer and an example are added by themselves.
INSTRUCTION = "An item shows a digit. Pick the digit that a hidden rule wants for it. The rule is the same everywhere."

# Each argument of an answer, and every value that it may take.
ANSWER = {"pick": range(10)}

# Where the agent starts, and what an answer has to beat to count as a success; without it, the first values.
REFERENCE = {"pick": 5}

SHIFT = 3  # the rule, which only the score knows
NUMBERS = random.Random(0).sample(range(1000), 30)  # the same in every process, and none twice
SPLITS = {"search": NUMBERS[:6], "validation": NUMBERS[6:18], "test": NUMBERS[18:]}


def items(split: str) -> list[dict[str, int]]:
    """The problems of `split`, which is search, validation or test: rows of anything that JSON can hold.

    The agent learns from search, is judged on validation, and meets test once, at the end: let them share no row.
    """
    return [{"number": number} for number in SPLITS[split]]


def prompt(row: dict[str, int]) -> str:
    """All that the agent sees of a row. What only the score may know stays out of it."""
    return f"number={row['number']} digit={row['number'] % 10}"


def score(row: dict[str, int], answer: dict[str, int]) -> float:
    """What an answer is worth, from 0 to 1: here 1 at the right digit and less the further round the circle."""
    off = abs(answer["pick"] - gold(row)["pick"])
    return 1.0 - min(off, 10 - off) / 5


def gold(row: dict[str, int]) -> dict[str, int]:
    """A right answer, for the check alone; leave this function out where there is none to tell."""
    return {"pick": (row["number"] + SHIFT) % 10}
