"""The embedded proposer's catalogue: typed edit operators by component, and the order in which they are tried.

An operator changes one component of a harness, from the task spec and the search view alone. Everything is pure;
which operator is tried is decided on facts (`ranking`), what it makes is done in `proposing`.
"""

from .base import Operator, SearchView, Seen
from .catalogue import CATALOGUE, applicable
from .prompt import MAX_EXAMPLES
from .ranking import RANKING_RULE, Ranking, rank, ranking, scores

__all__ = [
    "CATALOGUE",
    "MAX_EXAMPLES",
    "RANKING_RULE",
    "Operator",
    "Ranking",
    "SearchView",
    "Seen",
    "applicable",
    "rank",
    "ranking",
    "scores",
]
