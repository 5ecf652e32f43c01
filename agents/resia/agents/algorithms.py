"""The six algorithms in words: what masks each, which rules choose it, and where it comes from.

What `resia algorithms` shows. The numbers are read from the settings, so the words are those of the run that asks;
`selection` holds the rules themselves.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from resia.events import ALGORITHMS, Algorithm, SelectionSettings
from resia.events.settings import OFF_POLICY

from .selection import ALGORITHM_RULE, FALLBACK, REINFORCE_GROUP


class About(NamedTuple):
    """What does not depend on any threshold: a name in words, what it learns from, its paper."""

    title: str
    learns_from: str
    source: str


class Description(msgspec.Struct, frozen=True):
    """`masks` are sentences, each enough to mask the algorithm; `rules` are ids with their conditions."""

    algorithm: Algorithm
    title: str
    learns_from: str
    on_policy: bool
    masks: tuple[str, ...]
    rules: dict[str, str]
    source: str


ABOUT: dict[Algorithm, About] = {
    "ppo_gae": About(
        "PPO with generalised advantage estimation",
        "the reward of each turn, with a value head",
        "Schulman et al., arXiv:1506.02438 and arXiv:1707.06347",
    ),
    "grpo": About(
        "group-relative policy optimisation",
        "rewards standardised within the rollouts of one item",
        "Shao et al., arXiv:2402.03300",
    ),
    "entropic": About(
        "entropic advantage weighting",
        "exponentially tilted rewards within the rollouts of one item",
        "TTT-Discover, arXiv:2601.16175",
    ),
    "reinforce_kl": About(
        "REINFORCE with a leave-one-out baseline and a KL penalty",
        "returns against the other rollouts of one item, held near the reference policy",
        "Williams 1992, doi:10.1007/BF00992696; RLOO, Ahmadian et al., arXiv:2402.14740",
    ),
    "best_of_n": About(
        "best-of-N behaviour cloning",
        "the best successes, as text to imitate",
        "RAFT, Dong et al., arXiv:2304.06767",
    ),
    "dpo": About(
        "direct preference optimisation",
        "pairs of rollouts of one item, the better over the worse",
        "Rafailov et al., arXiv:2305.18290",
    ),
}


def describe(settings: SelectionSettings | None = None) -> tuple[Description, ...]:
    """All six, in the paper's order, with the thresholds of `settings` (None: the defaults)."""
    chosen = settings or SelectionSettings()
    return tuple(
        Description(
            name,
            ABOUT[name].title,
            ABOUT[name].learns_from,
            name not in OFF_POLICY,
            (*_common(name, chosen), *_needs(name, chosen)),
            {f"{ALGORITHM_RULE}:{rule}": when for rule, when in _rules(name, chosen).items()},
            ABOUT[name].source,
        )
        for name in ALGORITHMS
    )


def _common(name: Algorithm, s: SelectionSettings) -> tuple[str, ...]:
    stale = f"ess below {s.min_ess:g} or KL a token above {s.max_kl_per_token:g}, until the rollouts are fresh"
    return (
        "not built in the package that began the run, or not the one that the run asks for",
        "failed on this champion with the same rollouts",
        *(() if name in OFF_POLICY else (stale,)),
    )


def _needs(name: Algorithm, s: SelectionSettings) -> tuple[str, ...]:
    tied = "no group with unequal rewards"
    needs: dict[Algorithm, tuple[str, ...]] = {
        "grpo": (f"fewer than {s.min_group} rollouts an item", tied),
        "entropic": (f"fewer than {s.min_group} rollouts an item", tied),
        "reinforce_kl": (f"fewer than {REINFORCE_GROUP} rollouts an item", tied),
        "best_of_n": (f"fewer than {s.min_successes} successes",),
        "dpo": (f"fewer than {s.min_pairs} pairs that are sure to exist, informative groups x (G - 1)",),
    }
    return needs.get(name, ())


def _rules(name: Algorithm, s: SelectionSettings) -> dict[str, str]:
    sparse = f"p_pos below {s.sparse_p_pos:g}, informative below {s.sparse_informative:g}"
    upper = f"skew above {s.skew:g}, tail above {s.tail:g} or the objective is max"
    rules: dict[Algorithm, dict[str, str]] = {
        "dpo": {"1-dpo": "the reward is ordinal"},
        "best_of_n": {"2-best-of-n": f"{sparse}, and at least {s.min_successes} successes"},
        "entropic": {"3-entropic": f"{upper}; at least {s.distinct_rewards} distinct rewards a group"},
        "reinforce_kl": {
            "4-reinforce-kl": f"regression_risk above {s.regression_risk:g}",
            "7-reinforce-kl": f"no rule before it applies; groups of {REINFORCE_GROUP} are enough",
        },
        "ppo_gae": {"5-ppo-gae": f"reward_density at least {s.dense_reward:g}, horizon at least {s.long_horizon}"},
        "grpo": {"6-grpo": f"informative at least {s.grpo_informative:g}, afford at least {s.grpo_afford:g}"},
    }
    chosen = {"0-requested": "the run asks for it", **rules[name]}
    if name in FALLBACK:
        place = ", ".join(FALLBACK[: FALLBACK.index(name)])
        after = f", and {place} too" if place else ""
        chosen["8-fallback"] = f"reinforce_kl is masked{after}; at least {s.min_successes} successes"
    return chosen
