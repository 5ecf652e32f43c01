"""Made-up cases for tests and examples: each charge has words of its own among words that all share. No real case."""

from __future__ import annotations

import numpy as np

from .facts import Fact

# Names of every kind that the scorers tell apart: one inside another, off the official list, with marks inside.
NAMES = (
    "盗窃",
    "诈骗",
    "合同诈骗",
    "走私",
    "走私废物",
    "抢劫",
    "爆炸",
    "交通肇事",
    "故意伤害",
    "非法持有毒品",
    "走私、贩卖、运输、制造毒品",
    "盗窃、侮辱尸体",
)
CASES, PAIRS = 14, 24  # of each charge alone, of two charges
OWN_WORDS, SHARED_WORDS, LENGTH = 8, 200, 40
TOLD = 0.2  # share of a case's words that are its charge's own
_FIRST = 0x4E00  # of the CJK characters, from which words of two are drawn


def synthetic_facts(seed: int) -> tuple[Fact, ...]:
    """192 facts: 14 a charge and 24 of two charges; equal seeds give equal facts."""
    rng = np.random.default_rng([seed])
    letters = rng.permutation(3000)[: 2 * (OWN_WORDS * len(NAMES) + SHARED_WORDS)] + _FIRST
    words = ["".join(map(chr, pair)) for pair in letters.reshape(-1, 2).tolist()]
    own = {name: words[OWN_WORDS * n : OWN_WORDS * (n + 1)] for n, name in enumerate(NAMES)}
    shared = words[OWN_WORDS * len(NAMES) :]
    asked = [(name,) for name in NAMES for _ in range(CASES)]
    asked += [tuple(sorted(rng.choice(NAMES, 2, replace=False).tolist())) for _ in range(PAIRS)]
    facts = []
    for number, charges in enumerate(asked):
        telling = [word for name in charges for word in own[name]]
        drawn = [rng.choice(telling if rng.random() < TOLD else shared) for _ in range(LENGTH)]
        facts.append(Fact(f"made/{number:03d}", "被告人" + "".join(map(str, drawn)), charges))
    return tuple(facts)
