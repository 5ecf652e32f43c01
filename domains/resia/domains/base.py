"""What a problem domain is: items by split, a task spec, one tool, a scorer and controls.

The domain knows nothing of models, prompts or the log. Gold stays inside `score`: neither a spec, an item nor a
tool's observation may carry it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import msgspec

from resia.events import ControlScore, Failure, Split
from resia.events.errors import BoundaryError, boundary

SUM_TOLERANCE = 1e-9
Value = str | int | float | bool
Answer = Mapping[str, Value]


class Parameter(msgspec.Struct, frozen=True):
    """One argument of the domain's tool: `choices` lists every valid value in order.

    With a `separator` a value is one or several of the choices, texts, joined by it. Without choices any text is valid;
    with `code` it is a Python source, which only a sandbox may run.
    """

    name: str
    choices: tuple[Value, ...]
    default: Value
    doc: str
    separator: str = ""
    code: bool = False


class Reference(msgspec.Struct, frozen=True):
    """A reference implementation as an answer of the tool, with what it is known for."""

    name: str
    answer: dict[str, Value]
    doc: str


class ToolSpec(msgspec.Struct, frozen=True):
    """A tool that a harness may call beside the answer's own; the domain is `Tooled`.

    `arguments` gives each one's name and what it is; one that is left out stands for the item's own. `gives`: `text`,
    or of the answer's `parameter` one value (`label`) or several, the likeliest first (`shortlist`), or whether a value
    of it would be a valid answer (`verdict`): {"ok": bool, "failure": str, "detail": str}, without any score.
    """

    name: str
    doc: str
    arguments: dict[str, str] = {}
    gives: Literal["text", "label", "shortlist", "verdict"] = "text"
    parameter: str = ""


class TaskSpec(msgspec.Struct, frozen=True):
    """What Meta drafts generation 0 from. `objective` 'max': only the best rollout counts in the end; `ordinal`:
    rewards only rank; `binary`: they are 0 or 1. `steps`: the most answers of a rollout; over 1 the domain is
    `Stepwise`. `tools` are what it offers beside `tool`, which takes the answer. `verifier`: the metric that is a
    second score of an answer, in [0, 1] and of the reward's scale, which an honest gain raises too; empty where there
    is none. `metric`: what of `Score.metrics` the reward is made of, empty where it is no one number; a reward never
    falls when the metric goes `direction`. `measured`: rewards are taken with a clock and differ from time to time."""

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
    tools: tuple[ToolSpec, ...] = ()
    verifier: str = ""
    metric: str = ""
    direction: Literal["up", "down"] = "up"
    measured: bool = False


class Item(msgspec.Struct, frozen=True):
    """One problem: `prompt` is all that an agent may be told of it."""

    id: str
    split: Split
    prompt: str


class Score(msgspec.Struct, frozen=True):
    """A scored answer. `reward` in [0, 1] is what the loop optimises; `success`: beats the reference on the item.

    `failure` None means valid; an invalid answer has reward 0 and its class. `metrics` hold every score by name.
    `steps`: what each answer of a rollout of several earned, `reward` in all; empty where all of it is the last one's.
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
    answers to problems of this protocol, on any split. `device`: where scores that are times were measured.
    """

    protocol: str
    split: str
    denominator: int
    answered: int
    coverage: float
    scores: dict[str, float]
    invalid: dict[str, int] = {}
    ignored: dict[str, int] = {}
    device: str = ""


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


@runtime_checkable
class Giving(Domain, Protocol):
    """A domain whose items are more than their prompts, and can be written to files for another system to answer."""

    def write_given(self, folder: Path) -> tuple[Path, ...]:
        """Write what an answer may be made of, a file an item; nothing that is held out. Raises UsageError."""
        ...


@runtime_checkable
class Tooled(Domain, Protocol):
    """A domain with tools beside that of the answer: retrieval, a classifier, whatever `spec.tools` lists."""

    def call(self, tool: str, item: str, arguments: Mapping[str, object]) -> object:
        """What `tool` gives on `item`, as JSON. Whatever it has learned, it has learned from the search split alone,
        and for an item of that split from the others: its gold may not come back in this way.

        Raises ValueError with one sentence for arguments that it cannot take; any other error is infrastructure.
        """
        ...


@runtime_checkable
class Shuffling(Domain, Protocol):
    """A domain whose items list options under labels, and can list them in another order."""

    def shuffled(self, item: str, seed: int) -> str:
        """The item's prompt with its options in an order drawn by `seed`, never the item's own."""
        ...

    def restored(self, item: str, seed: int, answer: Answer) -> dict[str, Value]:
        """What an answer to `shuffled(item, seed)` says of the item's own prompt."""
        ...


class Inside(msgspec.Struct, frozen=True):
    """What only the scorer knows of an item, told to the admission tests and to nobody else.

    `gold`: a right answer, None where none is known. `secrets`: texts that no agent may be shown with the item.
    `parts`: what the item is made of, such as its cells or its text; no part may be in two splits. Empty: its prompt.
    """

    gold: dict[str, Value] | None = None
    secrets: tuple[str, ...] = ()
    parts: frozenset[str] = frozenset()


@runtime_checkable
class Inspected(Domain, Protocol):
    """A domain that lets the admission tests see more than an agent sees. Nothing that an agent runs asks for it."""

    def inside(self, item: str) -> Inside: ...


def called(domain: Tooled, tool: str, item: str, arguments: Mapping[str, object]) -> object:
    """`domain.call`; BoundaryError where it broke or gave no JSON, and no ValueError but one about the arguments."""
    with boundary(BoundaryError, f"tool '{tool}' failed on item '{item}'"):
        try:
            result = domain.call(tool, item, arguments)
        except ValueError as cause:
            refused = str(cause)
        else:
            msgspec.json.encode(result)
            return result
    raise ValueError(refused)


def following(domain: Domain, item: str, answers: Sequence[Answer]) -> str | None:
    """What is said to the agent before its next answer; None when there is none to give.

    Raises BoundaryError when the domain fails at it.
    """
    if not isinstance(domain, Stepwise):
        return None
    with boundary(BoundaryError, f"observing item '{item}' failed"):
        told = domain.observe(item, answers)
    if not isinstance(told, str | None):
        raise BoundaryError(f"observing item '{item}' gave {told!r:.80} and no text")
    return told


def rendered(domain: Domain, answer: Answer) -> str:
    """`domain.render`; BoundaryError where it fails."""
    with boundary(BoundaryError, "rendering an answer failed"):
        return domain.render(answer)


def parsed(domain: Domain, request: Mapping[str, object]) -> dict[str, Value]:
    """`domain.parse`; ValueError where it refuses the request, BoundaryError where it fails."""
    try:
        return domain.parse(request)
    except ValueError:
        raise
    except Exception as cause:
        raise BoundaryError(f"reading a request of the agent's failed: {type(cause).__name__}: {cause}") from cause


def scored(domain: Domain, item: str, answers: Sequence[Answer]) -> Score:
    """The score of a rollout of any domain; BoundaryError when the domain fails at it, or gives a number that is not
    finite or other steps than answers."""
    with boundary(BoundaryError, f"scoring item '{item}' failed"):
        score = domain.score_steps(item, answers) if isinstance(domain, Stepwise) else domain.score(item, answers[0])
    return sound(item, answers, score)


def sound(item: str, answers: Sequence[Answer], score: Score) -> Score:
    """`score`; BoundaryError where it holds a number that is not finite, or other steps than answers."""
    numbers = {"reward": score.reward, **score.metrics, **{f"step {n}": r for n, r in enumerate(score.steps)}}
    _require_finite(f"item '{item}'", numbers)
    if score.steps and len(score.steps) != len(answers):
        raise BoundaryError(f"item '{item}' got {len(score.steps)} step rewards for {len(answers)} answers")
    if score.steps and abs(math.fsum(score.steps) - score.reward) > SUM_TOLERANCE:
        raise BoundaryError(f"item '{item}' got reward {score.reward} and step rewards that sum to another")
    return score


def controlled(domain: Domain, budget: int, seed: int) -> tuple[ControlScore, ...]:
    """The domain's controls; BoundaryError when they cannot be measured."""
    with boundary(BoundaryError, "measure the controls"):
        found = domain.controls(budget, seed)
    for score in found:
        _require_finite(f"control {score.name} on {score.split}", {"mean": score.mean, **score.metrics})
    return found


def _require_finite(what: str, numbers: Mapping[str, float]) -> None:
    """JSON has no word for the others, so an event that held one could not be read again."""
    for name, number in numbers.items():
        if not math.isfinite(number):
            raise BoundaryError(f"{what} was given {name} {number}: the scorer must give finite numbers")
