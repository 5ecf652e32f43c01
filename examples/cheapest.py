"""A problem of one's own in one file: which of three offers is the cheapest for a kilo.

`resia task check examples/cheapest.py`, then `resia run --domain examples/cheapest.py`. Rewards are 0 or 1.
"""

from __future__ import annotations

import random

INSTRUCTION = "Each offer has a weight in grams and a price in cents. Which one costs the least for a kilo?"
ANSWER = {"offer": ["A", "B", "C"]}
BINARY = True
SIZES = {"search": 12, "validation": 16, "test": 16}

Row = dict[str, list[list[int]]]


def items(split: str) -> list[Row]:
    draw = random.Random(split)
    return [{"offers": [_offer(draw) for _ in ANSWER["offer"]]} for _ in range(SIZES[split])]


def _offer(draw: random.Random) -> list[int]:
    """Grams and cents; every drawn price for a kilo is another one, but for a chance of one in thousands."""
    grams = draw.randrange(100, 2000, 50)
    return [grams, round(grams * draw.uniform(0.2, 2.0))]


def prompt(row: Row) -> str:
    offers = zip(ANSWER["offer"], row["offers"], strict=True)
    return ", ".join(f"{name}: {grams} g for {cents} cents" for name, (grams, cents) in offers)


def score(row: Row, answer: dict[str, str]) -> float:
    return float(answer == gold(row))


def gold(row: Row) -> dict[str, str]:
    costs = [cents / grams for grams, cents in row["offers"]]
    return {"offer": ANSWER["offer"][costs.index(min(costs))]}
