"""What is learned from the search split alone: TF-IDF with a linear SVM, and the nearest cases.

For an item of the search itself the models are those fitted without its fold, near-duplicates in one fold: no fact's
own charge comes back to it. A set of charges is one class, written as one text. scikit-learn is imported on first use.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from resia.events.errors import UsageError

from .charges import SEPARATOR, plain
from .facts import Fact

FOLDS = 5
WHOLE = -1  # the fold of a fact that is not of the search: models fitted on all of it
GRAMS = (1, 3)  # characters
MIN_FACTS = 2  # that hold a gram


class Case(NamedTuple):
    """A search fact beside a text: cosine of their TF-IDF vectors, 0 to 1."""

    fact: Fact
    likeness: float


class Fitted(NamedTuple):
    """Models of some facts. `svm` is None where all of them have one class."""

    facts: tuple[Fact, ...]
    vectorizer: Any
    matrix: Any
    svm: Any
    classes: tuple[str, ...]


class Learned:
    """Models of the search facts, fitted when they are first asked for; equal facts give equal models."""

    def __init__(self, facts: Sequence[Fact], group: Mapping[str, int]) -> None:
        """`group`: near-duplicates of each fact by its id. Raises UsageError where no fact has others to be told by."""
        self._facts = tuple(facts)
        numbers = {number: place for place, number in enumerate(sorted({group[fact.id] for fact in facts}))}
        if len(numbers) == 1:
            raise UsageError(
                "the search has 1 fact, near-duplicates counted as one, and none to learn of it from: give at least two"
            )
        self._fold = {fact.id: numbers[group[fact.id]] % FOLDS for fact in facts}
        self._fitted = lru_cache(maxsize=FOLDS + 1)(self._fit)

    def ranked(self, fact: Fact, text: str, count: int) -> list[tuple[str, float]]:
        """The `count` likeliest classes of a text asked about with `fact`, and their SVM margins; larger: likelier."""
        models = self._models(fact)
        if models.svm is None:
            return [(models.classes[0], 0.0)]
        margins = np.atleast_1d(models.svm.decision_function(models.vectorizer.transform([plain(text)]))[0])
        if len(models.classes) == 2:  # one margin, of the second class
            margins = np.array([-margins[0], margins[0]])
        best = np.lexsort((np.arange(len(margins)), -margins))[:count]
        return [(models.classes[n], float(margins[n])) for n in best.tolist()]

    def nearest(self, fact: Fact, text: str, count: int) -> list[Case]:
        """The `count` most similar search facts, best first, the earlier of two alike; never `fact` or its like."""
        models = self._models(fact)
        likeness: NDArray[Any] = (models.matrix @ models.vectorizer.transform([plain(text)]).T).toarray()[:, 0]
        best = np.lexsort((np.arange(len(likeness)), -likeness))[:count]
        return [Case(models.facts[n], float(likeness[n])) for n in best.tolist()]

    def _models(self, fact: Fact) -> Fitted:
        return self._fitted(self._fold.get(fact.id, WHOLE))

    def _fit(self, fold: int) -> Fitted:
        """Models of every search fact outside of `fold`."""
        from sklearn.svm import LinearSVC

        facts = tuple(fact for fact in self._facts if self._fold[fact.id] != fold)
        if not facts:
            raise UsageError("the search has no facts to learn from: give some")
        vectorizer, matrix = _vectors([plain(fact.text) for fact in facts])
        labels = [SEPARATOR.join(fact.charges) for fact in facts]
        if len(set(labels)) == 1:
            return Fitted(facts, vectorizer, matrix, None, (labels[0],))
        with warnings.catch_warnings():
            # Half of the charges have one case: that many classes are no regression.
            warnings.filterwarnings("ignore", message="The number of unique classes")
            svm = LinearSVC(random_state=0).fit(matrix, labels)
        return Fitted(facts, vectorizer, matrix, svm, tuple(map(str, svm.classes_)))


def _vectors(texts: Sequence[str]) -> tuple[Any, Any]:
    """A fitted TF-IDF and the texts' vectors; of grams that one text alone has only where no two share any."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    for least in (min(MIN_FACTS, len(texts)), 1):
        vectorizer = TfidfVectorizer(analyzer="char", ngram_range=GRAMS, min_df=least, sublinear_tf=True)
        try:
            return vectorizer, vectorizer.fit_transform(texts)
        except ValueError:  # no term remains
            if least == 1:
                raise
    raise AssertionError("the last try returns or raises")
