"""A problem as three functions in one file: `items`, `prompt` and `score`, made into a whole domain.

`resia init` writes such a file (`starter.py` beside this one). The file is code of the person who runs it, and runs
as that person, like any worker of theirs; what an agent answers reaches it only as checked values.
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Mapping
from itertools import islice
from types import ModuleType
from typing import Any, cast

import msgspec

from resia.events import ControlScore, Split
from resia.events.errors import UnknownName, UsageError
from resia.events.ids import sha256

from . import form
from .base import Answer, Inside, Item, Parameter, Reference, Score, TaskSpec, Value

SPLITS: tuple[Split, ...] = ("search", "validation", "test")
FUNCTIONS = {"items": 1, "prompt": 1, "score": 2}
SETTINGS = ("objective", "binary", "ordinal")  # what of the task spec a file may set, as OBJECTIVE = "max"
TOOL = "answer"
MOST = 10_000  # values of an argument
LONGEST = 1_000_000  # characters that an agent is shown at once
REFERENCE = "reference"
Row = Mapping[str, Any]


class NoOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A problem in a file has no options: it is changed by changing the file."""


class Problem:
    """What makes the domain of one module; `said` is how a person named it, `source` the module's bytes.

    Raises UsageError, on the way to the domain, for whatever the module lacks.
    """

    Options: type[msgspec.Struct] = NoOptions

    def __init__(self, module: ModuleType, said: str, source: bytes) -> None:
        self._module, self._said, self._source = module, said, source

    def __call__(self, _options: Any, /) -> Simple:
        for name, arguments in FUNCTIONS.items():
            self._check_function(name, arguments)
        spec = _spec(self._module, self._parameters(), self._said)
        rows = {split: self._rows(split) for split in SPLITS}
        return Simple(self._module, spec, rows, sha256(self._source))

    def _check_function(self, name: str, arguments: int) -> None:
        function = getattr(self._module, name, None)
        wanted = {"items": "items(split)", "prompt": "prompt(row)", "score": "score(row, answer)"}
        if not callable(function):
            raise UsageError(
                f"{self._said} has no function {name}: it needs {', '.join(wanted.values())} ('resia init' writes an"
                " example)"
            )
        try:
            inspect.signature(function).bind(*range(arguments))
        except TypeError:
            raise UsageError(f"{name} of {self._said} does not take what it is given: write {wanted[name]}") from None

    def _parameters(self) -> tuple[Parameter, ...]:
        """ANSWER: each argument of an answer with what it may be; the first is the default."""
        said = getattr(self._module, "ANSWER", None)
        if not isinstance(said, Mapping) or not said:
            raise UsageError(
                f'{self._said} has no ANSWER: give each argument its values, such as ANSWER = {{"pick": range(10)}}'
            )
        usual = getattr(self._module, "REFERENCE", {})
        if not isinstance(usual, Mapping):
            raise UsageError(f"REFERENCE of {self._said} is {usual!r:.40}: give arguments their values, as a dict")
        if strange := [name for name in usual if name not in said]:
            raise UnknownName(f"argument in REFERENCE of {self._said}", str(strange[0]), map(str, said))
        return tuple(self._parameter(str(name), choices, usual) for name, choices in said.items())

    def _parameter(self, name: str, choices: Any, usual: Mapping[str, Value]) -> Parameter:
        try:
            values = tuple(islice(choices, MOST + 1))
        except TypeError:
            values = ()
        if len(values) > MOST:
            raise UsageError(
                f"ANSWER['{name}'] of {self._said} has over {MOST:,} values: give fewer, an agent is told each"
            )
        if not values or len(set(map(str, values))) < len(values):
            raise UsageError(f"ANSWER['{name}'] of {self._said} is {choices!r:.80}: list its values, none twice")
        if bad := [value for value in values if not isinstance(value, str | int | float | bool)]:
            raise UsageError(f"ANSWER['{name}'] of {self._said} holds {bad[0]!r:.40}: give text, numbers or bool")
        if bad := [value for value in values if isinstance(value, str) and (not value or value.split() != [value])]:
            raise UsageError(f"ANSWER['{name}'] of {self._said} holds {bad[0]!r:.40}: write a value as one word")
        default = usual.get(name, values[0])
        if default not in values:
            raise UsageError(f"REFERENCE['{name}'] of {self._said} is {default!r:.40}, which ANSWER does not list")
        return Parameter(name, values, default, "")

    def _rows(self, split: Split) -> tuple[Row, ...]:
        try:
            rows = tuple(_called(self._module.items, split))
            msgspec.json.encode(rows)
        except Exception as cause:
            raise UsageError(f"items('{split}') of {self._said} fails: {type(cause).__name__}: {cause}") from cause
        for number, row in enumerate(rows):
            if not isinstance(row, Mapping):
                raise UsageError(f"row {number} of items('{split}') of {self._said} is {row!r:.60}: give a dict")
        return rows


def _spec(module: ModuleType, parameters: tuple[Parameter, ...], said: str) -> TaskSpec:
    instruction = getattr(module, "INSTRUCTION", "") or inspect.getdoc(module) or ""
    if not isinstance(instruction, str) or not instruction.strip():
        raise UsageError(f"{said} has no INSTRUCTION: say in it what an agent is to do")
    settings = {name: getattr(module, name.upper()) for name in SETTINGS if hasattr(module, name.upper())}
    reference = Reference(REFERENCE, form.defaults(parameters), "what the problem's file names as such")
    lines = [instruction.strip(), *_forms(parameters), f"Example: {form.render(parameters, reference.answer)}"]
    told = _shown("\n".join(lines), f"what {said} tells an agent, INSTRUCTION and ANSWER,")
    fields = {
        "name": module.__name__.rpartition(".")[2],
        "instruction": told,
        "tool": TOOL,
        "parameters": parameters,
        "references": (reference,),
        "neutral_answers": form.neutral(parameters),
        "objective": "mean",
        **settings,
    }
    try:
        return msgspec.convert(fields, TaskSpec, strict=True, from_attributes=True)
    except msgspec.ValidationError as cause:
        raise UsageError(f"{said} cannot be made a task: {cause}") from cause


def _shown(text: str, said: str) -> str:
    """`text`, if an agent can be shown it. Raises UsageError where no model could read it or no log could hold it."""
    if len(text) > LONGEST:
        raise UsageError(f"{said} has {len(text):,} characters: give at most {LONGEST:,}")
    if not text.isascii() and text != text.encode(errors="replace").decode():
        raise UsageError(f"{said} holds half a character (a lone surrogate): mend it")
    return text


def _called(function: Callable[..., Any], *given: object) -> Any:
    """What a function of the file gives. Where it ends the process, that is an error of its own like any other."""
    try:
        return function(*given)
    except SystemExit as cause:
        raise RuntimeError(f"it ends the process, SystemExit({cause})") from cause


def _printed(answer: Answer) -> tuple[str, ...]:
    """How an answer looks in a row that is shown as it stands, as Python and as JSON print it, to its closing mark."""
    return tuple(f"{text[1:-1]}{end}" for text in (repr(dict(answer)), json.dumps(dict(answer))) for end in ",}")


def _forms(parameters: tuple[Parameter, ...]) -> list[str]:
    return ["Reply with one line that sets:", *(f"{p.name}: {', '.join(map(str, p.choices))}" for p in parameters)]


class Simple:
    """Implements `resia.domains.base.Inspected` over a module's functions; see there."""

    Options = NoOptions

    def __init__(self, module: ModuleType, spec: TaskSpec, rows: Mapping[Split, tuple[Row, ...]], source: str) -> None:
        self._module, self.spec = module, spec
        self.digest = sha256(source.encode() + msgspec.json.encode(rows, order="deterministic"))
        self._items: dict[Split, tuple[Item, ...]] = {}
        self._rows: dict[str, Row] = {}
        for split, held in rows.items():
            ids = [str(row.get("id", f"{split}-{number:02d}")) for number, row in enumerate(held)]
            self._rows |= dict(zip(ids, held, strict=True))
            shown = [self._prompt(split, number, row) for number, row in enumerate(held)]
            self._items[split] = tuple(Item(name, split, text) for name, text in zip(ids, shown, strict=True))

    def _prompt(self, split: Split, number: int, row: Row) -> str:
        try:
            text = _called(self._module.prompt, row)
        except Exception as cause:
            raise UsageError(f"prompt of row {number} of {split} fails: {type(cause).__name__}: {cause}") from cause
        if not isinstance(text, str) or not text.strip():
            raise UsageError(f"prompt of row {number} of {split} is {text!r:.60}: give what an agent is to see")
        return _shown(text, f"prompt of row {number} of {split}")

    def items(self, split: Split) -> tuple[Item, ...]:
        return self._items[split]

    def parse(self, request: Mapping[str, object]) -> dict[str, Value]:
        return form.parse(self.spec.parameters, request)

    def render(self, answer: Answer) -> str:
        return form.render(self.spec.parameters, answer)

    def score(self, item: str, answer: Answer) -> Score:
        """Success: 1 where rewards are binary, else more than the reference earns on the item.

        Raises ValueError where the file's own score is no number from 0 to 1.
        """
        reward, reference = self._reward(item, answer), self._reward(item, self.spec.references[0].answer)
        success = reward == 1.0 if self.spec.binary else reward > reference
        return Score(reward, success, None, "", {"reward": reward, "reference": reference})

    def _reward(self, item: str, answer: Answer) -> float:
        given = _called(self._module.score, self._rows[item], dict(answer))
        if isinstance(given, str) or not hasattr(given, "__float__") or not 0.0 <= float(given) <= 1.0:
            raise ValueError(f"score gives {given!r:.40} for item '{item}': give a number from 0 to 1")
        return float(given)

    def inside(self, item: str) -> Inside:
        """The file's own gold, where it has a function `gold(row)`: it and its text."""
        told = cast("Callable[[Row], Answer] | None", getattr(self._module, "gold", None))
        if told is None:
            return Inside()
        given = _called(told, self._rows[item])
        if not isinstance(given, Mapping):
            raise ValueError(f"gold of item '{item}' is {given!r:.40}: give an answer, as a dict")
        try:
            gold = self.parse(given)
        except ValueError as cause:
            raise ValueError(f"gold of item '{item}' is no answer: {cause}") from cause
        return Inside(gold, (self.render(gold), *_printed(gold)))

    def controls(self, budget: int, seed: int) -> tuple[ControlScore, ...]:
        """The reference, and random search: the best on the search items of as many answers as `budget` pays for."""
        searched = self._items["search"]
        tried = form.drawn(self.spec.parameters, max(budget // max(len(searched), 1), 1), seed)
        best = max(tried, key=lambda answer: self._mean("search", answer)) if len(tried) > 1 else tried[0]
        named = {REFERENCE: self.spec.references[0].answer, "random-search": best}
        return tuple(
            ControlScore(name, split, self._mean(split, answer), len(self._items[split]), answer=self.render(answer))
            for split in SPLITS
            for name, answer in named.items()
        )

    def _mean(self, split: Split, answer: Answer) -> float:
        return math.fsum(self._named(item.id, answer) for item in self._items[split]) / len(self._items[split])

    def _named(self, item: str, answer: Answer) -> float:
        """The reward of one among many, where an error has to say of which."""
        try:
            return self._reward(item, answer)
        except Exception as cause:
            raise RuntimeError(f"scoring item '{item}' fails: {type(cause).__name__}: {cause}") from cause
