"""The program form of the denoising domain: the same items and scores, with denoise(X, seed) -> X for an answer.

The program's process is given the item's training counts and a seed; the test half stays with the judge, here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resia.domains.base import Answer, Score, TaskSpec, Value
from resia.domains.programs import Program
from resia.events import ControlScore
from resia.events.errors import BoundaryError
from resia.events.ids import seed_for

from . import program_tool, tool
from .domain import Denoising, DenoisingOptions
from .items import SPLITS

SEEDS = 2**32  # those that numpy.random.seed and the random_state of scikit-learn take


class ProgramDenoising(Denoising):
    """Implements `resia.domains.programs.Programmed`. A success beats the reversed MAGIC of the typed form."""

    @property
    def spec(self) -> TaskSpec:
        return program_tool.SPEC

    def parse(self, request: Mapping[str, object]) -> dict[str, Value]:
        return program_tool.parse(request)

    def render(self, answer: Answer) -> str:
        return program_tool.render(answer)

    def score(self, item: str, answer: Answer) -> Score:
        """Raises BoundaryError: a program is run by others, and scored by `score_output`."""
        raise BoundaryError(f"answer {self.render(answer)} to item '{item}' is a program: score what it returns")

    def program(self, item: str, answer: Answer) -> Program:
        """The call on the item's training counts, float64. Raises ValueError for no valid answer and UnknownName for no
        item."""
        source = str(program_tool.parse(answer)[program_tool.PROGRAM.name])
        train = self._bench(item).train.astype(np.float64)
        seed = seed_for(self._seed, "program", item) % SEEDS
        arguments: dict[str, Any] = {"X": train, "seed": seed}
        return Program(source, program_tool.ENTRY, arguments, train.shape, seed, program_tool.LIMITS)

    def fault(self, item: str, output: NDArray[np.float64]) -> str:
        """As the audit has it; the loss alone needs the test half."""
        return self._bench(item).judge.malformed(_single(output))

    def score_output(self, item: str, output: NDArray[np.float64]) -> Score:
        """As `Denoising.score`."""
        return self.scored(item, self.judged(item, _single(output)))

    def controls(self, budget: int, seed: int) -> tuple[ControlScore, ...]:
        """The fixed ones and MAGIC as the typed form has it: programs cannot be drawn, so there is no random search."""
        del budget, seed
        answers: dict[str, Answer] = {"magic-reference": tool.REFERENCE.answer}
        return tuple(score for split in SPLITS for score in self._split_controls(split, answers))


class Forms:
    """Makes the domain in the form that its options name."""

    Options = DenoisingOptions

    def __call__(self, options: DenoisingOptions) -> Denoising:
        """Raises UsageError as `Denoising` does."""
        return ProgramDenoising(options) if options.form == "program" else Denoising(options)


denoising = Forms()


def _single(output: NDArray[np.float64]) -> NDArray[np.float32]:
    """In the precision of the counts, as the typed form's answers; what is too large becomes infinite."""
    with np.errstate(over="ignore", under="ignore"):
        return output.astype(np.float32)
