"""The TriMul domain: items are shapes, an answer is a launch configuration, its score is how fast that is here.

A score is a measurement: it is taken once for each (item, answer) of a process, and whoever records it records what
the clock said. Knows nothing of kernels that an agent writes; those go to the kernel-bench.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated

import msgspec
import numpy as np
from msgspec import Meta

from resia.domains.base import Answer, Item, Score, TaskSpec, Value
from resia.domains.random_search import random_search
from resia.events import ControlScore, Split
from resia.events.errors import UnknownName
from resia.events.ids import seed_for, sha256

from . import tool
from .cases import RESIDUES, reward
from .operator import Case, Law
from .roofline import Device, cpu, ideal_us

if TYPE_CHECKING:
    from .stopwatch import Stage, Timing

LAID_OUT = 16  # items kept in memory, a few MB each
FASTER = 0.95  # of the plain kernel's time: what is closer is noise
SPLITS: tuple[Split, ...] = ("search", "validation", "test")
CHANNELS = (128, 256)
LAWS: tuple[Law, ...] = ("normal", "cauchy")

Items = Annotated[int, Meta(ge=1, le=96)]


class TriMulOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What fixes the items: their number a split, the `smallest` N, and the seed of their inputs."""

    search_items: Items = 6
    validation_items: Items = 12
    test_items: Items = 12
    smallest: Annotated[int, Meta(ge=8, le=1024, multiple_of=8)] = 8
    data_seed: Annotated[int, Meta(ge=0)] = 0


class TriMul:
    """The form `launch`, timed in this process. Implements `resia.domains.base.Domain`; see there, but for its scores,
    which are of this machine and moment."""

    Options = TriMulOptions

    def __init__(self, options: TriMulOptions) -> None:
        self._seed = options.data_seed
        sizes = {"search": options.search_items, "validation": options.validation_items, "test": options.test_items}
        self._digest = sha256(b"trimul 1" + msgspec.json.encode(options, order="deterministic"))
        self._cases = {
            split: {f"{split}-{index:02d}": shape(split, index, options.smallest) for index in range(sizes[split])}
            for split in SPLITS
        }
        self._scores: dict[tuple[str, str], Score] = {}
        self._stage: Callable[[str], Stage] = lru_cache(maxsize=LAID_OUT)(self._lay_out)

    @property
    def spec(self) -> TaskSpec:
        return tool.SPEC

    @property
    def digest(self) -> str:
        return self._digest

    def items(self, split: Split) -> tuple[Item, ...]:
        return tuple(Item(id_, split, prompt(case)) for id_, case in self._cases[split].items())

    def parse(self, request: Mapping[str, object]) -> dict[str, Value]:
        return tool.parse(request)

    def render(self, answer: Answer) -> str:
        return tool.render(answer)

    def score(self, item: str, answer: Answer) -> Score:
        """Reward plain / (plain + own) of the two times; success: at least 5% faster than the plain kernel.

        Raises ValueError for no valid answer and UnknownName for no item.
        """
        parsed, case = tool.parse(answer), self._case(item)
        key = (item, tool.render(parsed))
        if key not in self._scores:
            from .stopwatch import timed

            self._scores[key] = scored(case, timed(self._stage(item), parsed, tool.PLAIN.answer), this_device())
        return self._scores[key]

    def controls(self, budget: int, seed: int) -> tuple[ControlScore, ...]:
        """The two references, and the best of as many random answers as `budget` scorings on search items pay for."""
        answers: dict[str, Answer] = {reference.name: reference.answer for reference in tool.SPEC.references}
        items = tuple(self._cases["search"])

        def mean_reward(answer: Answer) -> float:
            return sum(self.score(item, answer).reward for item in items)

        answers["random-search"] = random_search(tool.PARAMETERS, mean_reward, len(items), budget, seed)
        return tuple(self._control(name, split, answer) for split in SPLITS for name, answer in answers.items())

    def _control(self, name: str, split: Split, answer: Answer) -> ControlScore:
        scores = [self.score(item, answer) for item in self._cases[split]]
        metrics = {key: round(float(np.mean([s.metrics[key] for s in scores])), 6) for key in scores[0].metrics}
        mean = round(float(np.mean([s.reward for s in scores])), 6)
        return ControlScore(name, split, mean, len(scores), metrics, tool.render(answer))

    def _lay_out(self, item: str) -> Stage:
        from .stopwatch import lay_out

        return lay_out(self._case(item), seed_for(self._seed, "trimul", item))

    def _case(self, item: str) -> Case:
        known = {id_: case for cases in self._cases.values() for id_, case in cases.items()}
        if item not in known:
            raise UnknownName("item", item, known)
        return known[item]


def shape(split: Split, index: int, smallest: int) -> Case:
    """Shape `index` of a split: channels, law, mask and N take turns, N of another residue of 8 in each split."""
    channels, masked, law = CHANNELS[index % 2], bool(index // 2 % 2), LAWS[index // 4 % 2]
    return Case(smallest + 8 * (index % 3) + RESIDUES[split], 1 + index // 8 % 2, channels, law, masked)


def prompt(case: Case) -> str:
    """All that an agent is told of an item."""
    return f"N={case.n} batch={case.batch} channels={case.channels} law={case.law} masked={int(case.masked)}"


def scored(case: Case, timing: Timing, device: Device) -> Score:
    """A timing as a score. `reward_1500` is the published 1500/us, which has no upper end and cannot be the reward."""
    metrics = {
        "us": timing.us,
        "plain_us": timing.plain_us,
        "reward_1500": round(reward(timing.us), 6),
        "ideal_us": round(ideal_us(case, device), 6),
        "valid": float(not timing.wrong),
    }
    if timing.wrong:
        return Score(0.0, False, "wrong", timing.wrong, metrics)
    detail = f"{timing.us:.0f} CPU us, plain {timing.plain_us:.0f}"
    share = round(timing.plain_us / (timing.plain_us + timing.us), 6)
    return Score(share, timing.us < FASTER * timing.plain_us, None, detail, metrics)


@lru_cache(maxsize=1)
def this_device() -> Device:
    """The processor that the scores are of."""
    import torch

    return cpu(torch.get_num_threads())
