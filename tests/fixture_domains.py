"""Small domains with a known reward landscape each, as a package of a user's own would bring them, and their model.

Every answer is one digit. The model is built, not taught: a table of which byte follows which, so that it says
`pick=` and a digit, each about equally often, and 5 where it is greedy. What a digit is worth is the landscape.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from resia.agents.ports import Json, Ran, Sandbox, Tool
from resia.domains.base import Answer, Item, Parameter, Reference, Score, TaskSpec, Value
from resia.events import (
    ControlScore,
    Split,
)
from resia.events.ids import sha256

SPLITS: tuple[Split, ...] = ("search", "validation", "test")
DIGITS = tuple(range(10))
GREEDY = 5  # the digit that the model holds for the likeliest, by a little
STEPS = 6
LEAD, CERTAIN = 0.3, 20.0  # logits: of 5 over the other digits, and of a byte that must follow
PICK = Parameter("pick", DIGITS, GREEDY, "any digit")
Items = Annotated[int, Meta(ge=1, le=99)]
# What a digit is worth on an item of a split, by the item's number: reward and whether that is a success.
Pays = Callable[[Split, int, int], tuple[float, bool]]


class Sizes(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Items by split."""

    search_items: Items = 4
    validation_items: Items = 4
    test_items: Items = 1


class Digits:
    """Implements `resia.domains.base.Domain`; `pays` is its landscape."""

    def __init__(self, name: str, pays: Pays, sizes: Sizes, **said: Any) -> None:
        counts = zip(SPLITS, (sizes.search_items, sizes.validation_items, sizes.test_items), strict=True)
        self._items = {s: tuple(Item(f"{s}-{n:02d}", s, f"item {n}") for n in range(count)) for s, count in counts}
        self._places = {item.id: (s, n) for s, items in self._items.items() for n, item in enumerate(items)}
        self._pays = pays
        self.digest = sha256(name.encode() + msgspec.json.encode(sizes))
        given: dict[str, Any] = {"objective": "mean", **said}
        self.spec = TaskSpec(
            name=name,
            instruction="Pick a digit.\nReply with one line.",
            tool="pick",
            parameters=(PICK,),
            references=(Reference("middle", {"pick": GREEDY}, "a digit like any other"),),
            neutral_answers=({"pick": 2}, {"pick": 7}),
            **given,
        )

    def items(self, split: Split) -> tuple[Item, ...]:
        return self._items[split]

    def parse(self, request: Mapping[str, object]) -> dict[str, Value]:
        pick = request.get("pick", GREEDY)
        if set(request) - {"pick"} or type(pick) is not int or pick not in DIGITS:
            raise ValueError(f"the request {dict(request)!r} picks no digit: give pick, 0 to 9")
        return {"pick": pick}

    def render(self, answer: Answer) -> str:
        return f"pick={answer['pick']}"

    def score(self, item: str, answer: Answer) -> Score:
        reward, success = self._pays(*self._places[item], int(answer["pick"]))
        return Score(reward, success, None, "", {"reward": reward})

    def controls(self, budget: int, seed: int) -> tuple[ControlScore, ...]:
        del budget, seed
        found = {s: [self.score(item.id, {"pick": GREEDY}).reward for item in self._items[s]] for s in SPLITS}
        return tuple(
            ControlScore("middle", s, sum(rewards) / len(rewards), len(rewards), {}) for s, rewards in found.items()
        )


# -- landscapes ------------------------------------------------------------------------------------------------------


def odd(split: Split, number: int, digit: int) -> tuple[float, bool]:
    """Half of the digits, on every item."""
    return float(digit % 2), bool(digit % 2)


def one_item(split: Split, number: int, digit: int) -> tuple[float, bool]:
    """Half of the digits, on one item of the search."""
    won = split == "search" and number == 0 and digit >= GREEDY
    return float(won), won


def ranks(split: Split, number: int, digit: int) -> tuple[float, bool]:
    return digit / 9, digit >= 8


def rare_jackpot(split: Split, number: int, digit: int) -> tuple[float, bool]:
    """Each digit is worth three times the one below."""
    return 3.0 ** (digit - 9), digit == 9


def two_masters(split: Split, number: int, digit: int) -> tuple[float, bool]:
    """The search pays most for 9, which is worth nothing where it is validated: whoever learns it loses the 5."""
    if split == "search":
        return {9: 1.0, GREEDY: 0.5}.get(digit, digit / 100), digit in (GREEDY, 9)
    return float(digit == GREEDY), digit == GREEDY


def nothing(split: Split, number: int, digit: int) -> tuple[float, bool]:
    return 0.0, False


class MidBinary(Digits):
    Options = Sizes

    def __init__(self, sizes: Sizes) -> None:
        super().__init__("mid_binary", odd, sizes, binary=True)


class Sparse(Digits):
    Options = Sizes

    def __init__(self, sizes: Sizes) -> None:
        super().__init__("sparse", one_item, sizes, binary=True)


class Ordinal(Digits):
    Options = Sizes

    def __init__(self, sizes: Sizes) -> None:
        super().__init__("ordinal", ranks, sizes, ordinal=True)


class Skewed(Digits):
    Options = Sizes

    def __init__(self, sizes: Sizes) -> None:
        super().__init__("skewed", rare_jackpot, sizes, objective="max")


class RegressionProne(Digits):
    Options = Sizes

    def __init__(self, sizes: Sizes) -> None:
        super().__init__("regression_prone", two_masters, sizes, ordinal=True)


class Hopeless(Digits):
    Options = Sizes

    def __init__(self, sizes: Sizes) -> None:
        super().__init__("hopeless", nothing, sizes, binary=True)


class DenseSteps(Digits):
    """Six steps, in each of which half of the digits are right: the odd and the even ones in turn.

    Implements `resia.domains.base.Stepwise`.
    """

    Options = Sizes

    def __init__(self, sizes: Sizes) -> None:
        super().__init__("dense_steps", odd, sizes, steps=STEPS)

    def observe(self, item: str, answers: Sequence[Answer]) -> str | None:
        return f"step {len(answers)}"

    def score_steps(self, item: str, answers: Sequence[Answer]) -> Score:
        """A sixth of the reward in each step."""
        split, number = self._places[item]
        won = [odd(split, number, int(answer["pick"]) + step)[0] / STEPS for step, answer in enumerate(answers)]
        return Score(sum(won), sum(won) > 0.6, None, "", {"reward": sum(won)}, tuple(won))


FIXTURES = {
    "mid_binary": MidBinary,
    "sparse": Sparse,
    "ordinal": Ordinal,
    "skewed": Skewed,
    "regression_prone": RegressionProne,
    "hopeless": Hopeless,
    "dense_steps": DenseSteps,
}


def install(folder: Path) -> Path:
    """The fixtures as an installed package declares its domains; `folder` and this file's go on the import path."""
    info = folder / "fixture_domains-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fixture-domains\nVersion: 1.0\n")
    points = [f"{name} = {__name__}:{cls.__name__}" for name, cls in FIXTURES.items()]
    (info / "entry_points.txt").write_text("\n".join(["[resia.domains]", *points, ""]))
    return folder


class Remembering:
    """Implements ports.Sandbox by another, asked once for each text: a guest is a process, and these say ten things."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._known: dict[bytes, Ran] = {}

    @property
    def tier(self) -> str:
        return self._sandbox.tier

    def run(self, source: str, entry: str, args: Sequence[Json], tools: Mapping[str, Tool] | None = None) -> Ran:
        key = msgspec.json.encode([source, entry, args])
        if key not in self._known:
            self._known[key] = self._sandbox.run(source, entry, args, tools)
        else:
            for name, arguments, _ in self._known[key].calls:  # whoever hands in tools hears of their calls
                (tools or {})[name](arguments)
        return self._known[key]


# -- the model -------------------------------------------------------------------------------------------------------


def build_model(folder: Path) -> Path:
    """A tiny model whose next byte depends on the last one alone, until it is trained.

    Its layers add nothing to the stream at first, so the last token's embedding, an axis of its own, reads its row off
    the output matrix. The other axes of that matrix stay random: through them the adapters tell the digits apart.
    """
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoTokenizer

    from resia.runtime.engines.tiny import build_tiny_model

    build_tiny_model(folder, context=512)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    ids = {c: tokenizer.encode(c, add_special_tokens=False)[0] for c in "\npick=" + "0123456789"}
    weights = load_file(folder / "model.safetensors")
    for name, tensor in weights.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            tensor.zero_()
    axes = {c: axis for axis, c in enumerate(ids)}
    embedding, output = weights["model.embed_tokens.weight"], weights["lm_head.weight"]
    width = embedding.shape[1]
    embedding.zero_()
    embedding[:, width - 1] = 1.0
    output[:, [*axes.values(), width - 1]] = 0.0
    for before, after in [*zip("\npick", "pick=", strict=True), *((str(digit), "\n") for digit in DIGITS)]:
        output[ids[after], axes[before]] = CERTAIN
    for digit in DIGITS:
        output[ids[str(digit)], axes["="]] = CERTAIN + LEAD * (digit == GREEDY)
    for c, axis in axes.items():
        embedding[ids[c]] = torch.eye(width)[axis]
    output[:, : len(axes)] /= width**0.5  # the last norm gives a unit axis the length of sqrt(width)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
