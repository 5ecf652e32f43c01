"""Controls: what no agent and no training reaches, on every split.

The commonest class and the models come from the search split alone; on it the models judge each fact without its fold.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from resia.events import ControlScore, Split

from .charges import SEPARATOR
from .facts import Fact
from .learned import Learned

Guess = Callable[[Fact], str]
DIGITS = 6


def guesses(learned: Learned, searched: Sequence[Fact], names: Sequence[str], seed: int) -> dict[str, Guess]:
    """By control, what it answers a fact: `random` draws a name from the whole list, each as likely."""
    commonest = Counter(SEPARATOR.join(fact.charges) for fact in searched)
    majority = min(commonest, key=lambda text: (-commonest[text], text))
    return {
        "majority": lambda _: majority,
        "random": lambda fact: names[_draw(seed, fact, len(names))],
        "nearest": lambda fact: SEPARATOR.join(learned.nearest(fact, fact.text, 1)[0].fact.charges),
        "svm": lambda fact: learned.ranked(fact, fact.text, 1)[0][0],
    }


def _draw(seed: int, fact: Fact, count: int) -> int:
    """Of the seed and the fact's own id, so that it does not depend on what else is asked."""
    return int(np.random.default_rng([seed, *fact.id.encode()]).integers(count))


def summary(name: str, split: Split, reward: str, rows: Sequence[Mapping[str, float]], answer: str) -> ControlScore:
    """Means over a split's items of every score; `reward` names the one that the loop optimises."""
    metrics = {key: round(float(np.mean([row[key] for row in rows])), DIGITS) for key in rows[0]}
    return ControlScore(name, split, metrics[reward], len(rows), metrics, answer)
