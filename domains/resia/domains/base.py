"""What a problem domain is: items by split, a task spec, one tool, a scorer and controls.

The domain knows nothing of models, prompts or the log. Gold stays inside `score`: neither a spec, an item nor a
tool's observation may carry it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import msgspec

from resia.events import ControlScore, Failure, Split
from resia.events.errors import BoundaryError

Value = str | int | float | bool
Answer = Mapping[str, Value]


class Parameter(msgspec.Struct, frozen=True):
    """One argument of the domain's tool: `choices` lists every valid value in order.

    With a `separator` a value is one or several of the choices, texts, joined by it.
    """

    name: str
    choices: tuple[Value, ...]
    default: Value
    doc: str
    separator: str = ""


class Reference(msgspec.Struct, frozen=True):
    """A reference implementation as an answer of the tool, with what it is known for."""

    name: str
    answer: dict[str, Value]
    doc: str


class TaskSpec(msgspec.Struct, frozen=True):
    """What Meta drafts generation 0 from. `objective` 'max': only the best rollout counts in the end; `ordinal`:
    rewards only rank; `binary`: they are 0 or 1. `steps`: the most answers of a rollout; over 1 the domain is
    `Stepwise`."""

    name: str
    instruction: str
    tool: str
    parameters: tuple[Parameter, ...]
    references: tuple[Reference, ...]
    neutral_answers: tuple[dict[str, Value], ...]  # varied valid answers, chosen without looking at any score
    objective: Literal["mean", "max"]
    ordinal: bool = False
    binary: bool = False
    steps: int = 1


class Item(msgspec.Struct, frozen=True):
    """One problem: `prompt` is all that an agent may be told of it."""

    id: str
    split: Split
    prompt: str


class Score(msgspec.Struct, frozen=True):
    """A scored answer. `reward` in [0, 1] is what the loop optimises; `success`: beats the reference on the item.

    `failure` None means valid; an invalid answer has reward 0 and its class. `metrics` hold every score by name.
    `steps`: what each answer of a rollout of several earned; empty where all of it is the last one's.
    """

    reward: float
    success: bool
    failure: Failure | None
    detail: str
    metrics: dict[str, float]
    steps: tuple[float, ...] = ()


class Domain(Protocol):
    """A problem domain. Every method is deterministic; the heavy ones cache nothing across processes."""

    @property
    def spec(self) -> TaskSpec: ...

    @property
    def digest(self) -> str:
        """SHA-256 over the data and the options that fix the items."""
        ...

    def items(self, split: Split) -> tuple[Item, ...]: ...

    def parse(self, request: Mapping[str, object]) -> dict[str, Value]:
        """The tool's arguments, checked: of their types and among their choices, missing ones at their defaults.

        Raises ValueError with one sentence naming the argument, its value and the choices.
        """
        ...

    def render(self, answer: Answer) -> str:
        """Canonical one-line text of an answer: equal answers give equal text."""
        ...

    def score(self, item: str, answer: Answer) -> Score: ...

    def controls(self, budget: int, seed: int) -> tuple[ControlScore, ...]:
        """Fixed controls on every split, and random search that may score `budget` (answer, search item) pairs."""
        ...


@runtime_checkable
class Stepwise(Domain, Protocol):
    """A domain whose rollouts take several answers, each given in the light of what came of those before.

    The dialogue is the item's prompt, an answer, what `observe` says to it, the next answer, and so on.
    """

    def observe(self, item: str, answers: Sequence[Answer]) -> str | None:
        """What the agent is told after `answers`, one or more, before it gives the next; None: that was the last.

        It may not carry gold. Not asked after `spec.steps` answers.
        """
        ...

    def score_steps(self, item: str, answers: Sequence[Answer]) -> Score:
        """The score of a whole rollout, with as many `steps` as `answers`, or none."""
        ...


class FileScore(msgspec.Struct, frozen=True):
    """What a file of answers is worth on one split.

    `scores` are means over `denominator` problems, answered or not; `coverage` is answered / denominator. `invalid`
    counts problems by what is wrong with their answer (`missing`: there is none), `ignored` what the file holds beside
    answers to problems of this protocol, on any split.
    """

    protocol: str
    split: str
    denominator: int
    answered: int
    coverage: float
    scores: dict[str, float]
    invalid: dict[str, int] = {}
    ignored: dict[str, int] = {}


@runtime_checkable
class FileScored(Domain, Protocol):
    """A domain that scores answers which no run gave: predictions of another system, a matrix, a kernel's source."""

    def protocols(self) -> tuple[str, ...]:
        """The names that `score_file` knows."""
        ...

    def score_file(self, protocol: str, path: Path) -> tuple[FileScore, ...]:
        """One score a split that the file has answers for; bad answers are counted, never raised.

        Raises UsageError for a file that holds no answer at all, or answers to other problems, and UnknownName for a
        protocol.
        """
        ...


def following(domain: Domain, item: str, answers: Sequence[Answer]) -> str | None:
    """What is said to the agent before its next answer; None when there is none to give."""
    return domain.observe(item, answers) if isinstance(domain, Stepwise) else None


def scored(domain: Domain, item: str, answers: Sequence[Answer]) -> Score:
    """The score of a rollout of any domain; BoundaryError when its steps are not those of the answers."""
    if not isinstance(domain, Stepwise):
        (answer,) = answers
        return domain.score(item, answer)
    score = domain.score_steps(item, answers)
    if score.steps and len(score.steps) != len(answers):
        raise BoundaryError(f"{domain.spec.name} gave {len(score.steps)} step rewards for {len(answers)} answers")
    return score
