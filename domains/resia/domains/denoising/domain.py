"""The denoising domain: options, items, scores and controls put together.

Scores are computed once for each (item, answer) of a process, and the last items used stay laid out in memory. Knows
nothing of who asks, and reads no file but the one its options name.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import numpy as np
from msgspec import Meta

from resia.domains.base import Answer, FileScore, Inside, Item, Score, TaskSpec, Value
from resia.domains.random_search import random_search
from resia.events import ControlScore, Split
from resia.events.errors import UnknownName, UsageError
from resia.events.ids import sha256

from . import controls, tool
from .file_scores import PROTOCOLS, WHOLE_ITEM, Held, score_matrices
from .items import SPLITS, Bench, check_depth, halves_of, lay_out, pools, problems, whole
from .matrices import read_counts
from .matrix_files import Named, write_matrix
from .metrics import Floats, Verdict
from .synthetic import synthetic_counts

LAID_OUT = 8  # items kept in memory, about 15 MB each

Items = Annotated[int, Meta(ge=1, le=999)]


class DenoisingOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What fixes the items. Either `path` to counts, or `synthetic`, a small matrix for tests and examples.

    `path`: an .npz, an .h5ad, a 10x folder, or hub:OWNER/NAME/FILE[@REVISION]; `layer`: which layer of an .h5ad holds
    raw counts, or `raw`, its slot so called (empty: X). Genes counted in fewer than `min_cells_per_gene` of all cells
    are left out: they are nearly all zero, in every score, and cost a quarter of the time. `form`: an answer is the
    settings of MAGIC, or a program denoise(X, seed) (`program_domain`), on the same items.
    """

    path: str = ""
    synthetic: bool = False
    search_items: Items = 6
    validation_items: Items = 12
    test_items: Items = 12
    data_seed: Annotated[int, Meta(ge=0)] = 0
    min_cells_per_gene: Annotated[int, Meta(ge=1)] = 30
    layer: str = ""
    form: Literal["typed", "program"] = "typed"


class Denoising:
    """Implements `resia.domains.base.Domain`; see there. Raises UsageError for options or counts it cannot use."""

    Options = DenoisingOptions

    def __init__(self, options: DenoisingOptions) -> None:
        if bool(options.path) == options.synthetic:
            raise UsageError(
                "the denoising domain needs either the option path, a file of counts ('resia assets pull' makes one), "
                "or synthetic=true"
            )
        counts = synthetic_counts(options.data_seed) if options.synthetic else read_counts(options.path, options.layer)
        self._counts = counts.genes_in(options.min_cells_per_gene)
        self._seed = options.data_seed
        self._digest = sha256(_fixed(options) + counts.digest().encode())
        pool = pools(self._counts, options.data_seed)
        sizes = dict(zip(SPLITS, (options.search_items, options.validation_items, options.test_items), strict=True))
        made = {split: problems(split, pool[split], sizes[split], options.data_seed) for split in SPLITS}
        self._items = {split: tuple(problem.item for problem in made[split]) for split in SPLITS}
        self._problems = {problem.item.id: problem for split in SPLITS for problem in made[split]}
        for problem in self._problems.values():
            check_depth(problem, self._counts)
        self._verdicts: dict[tuple[str, str], Verdict] = {}
        self._bench = lru_cache(maxsize=LAID_OUT)(self._lay_out)

    @property
    def spec(self) -> TaskSpec:
        return tool.SPEC

    @property
    def digest(self) -> str:
        return self._digest

    def items(self, split: Split) -> tuple[Item, ...]:
        return self._items[split]

    def parse(self, request: Mapping[str, object]) -> dict[str, Value]:
        return tool.parse(request)

    def render(self, answer: Answer) -> str:
        return tool.render(answer)

    def score(self, item: str, answer: Answer) -> Score:
        """Audited reward; success beats the reversed MAGIC on the same item. Raises ValueError for no valid answer and
        UnknownName for no item."""
        return self.scored(item, self._verdict(item, tool.parse(answer)))

    def scored(self, item: str, verdict: Verdict) -> Score:
        """The score of an answer to `item` that was judged so."""
        reference = self._verdict(item, tool.REFERENCE.answer).audited
        metrics = {**_metrics(verdict), "reference": reference}
        if verdict.fault:
            return Score(0.0, False, "wrong", verdict.fault, metrics)
        detail = f"audited {verdict.audited:.3f}, reference {reference:.3f}"
        return Score(verdict.audited, verdict.audited > reference, None, detail, metrics)

    def inside(self, item: str) -> Inside:
        """The item's cells by content. What is held out of them is a matrix that no text shows."""
        counts, cells = self._counts, self._problems[item].cells
        spans = (slice(counts.indptr[row], counts.indptr[row + 1]) for row in cells)
        parts = (counts.indices[span].tobytes() + counts.data[span].tobytes() for span in spans)
        return Inside(parts=frozenset(sha256(part) for part in parts))

    def protocols(self) -> tuple[str, ...]:
        return PROTOCOLS

    def score_file(self, protocol: str, path: Path) -> tuple[FileScore, ...]:
        """Denoised matrices of items, of all cells (`whole`), or of halves that the file brings along."""
        splits = {split: [item.id for item in self._items[split]] for split in SPLITS} | {WHOLE_ITEM: [WHOLE_ITEM]}
        known = next((name for name in PROTOCOLS if name == protocol), None)
        if known is None:
            raise UnknownName("protocol of the denoising domain", protocol, PROTOCOLS)
        return score_matrices(known, path, splits, self._held)

    def write_given(self, folder: Path) -> tuple[Path, ...]:
        """The training counts of every item and of `whole`, an .npz each in the form that `score_file` takes."""
        return tuple(
            write_matrix(folder / f"{name}.npz", self._held(name).train) for name in (*self._problems, WHOLE_ITEM)
        )

    def _held(self, item: str) -> Held:
        """Both halves in double precision, cells called after their rows in the counts; genes by their names, where no
        two have the same."""
        problem = whole(self._counts, self._seed) if item == WHOLE_ITEM else self._problems[item]
        halves = halves_of(problem, self._counts)
        cells = tuple(str(row) for row in problem.cells[halves.cells])
        genes = tuple(self._counts.genes[column] for column in halves.genes)
        named = genes if len(set(genes)) == len(genes) else None
        return Held(Named(halves.train.astype(np.float64), cells, named), halves.test.astype(np.float64))

    def controls(self, budget: int, seed: int) -> tuple[ControlScore, ...]:
        found = random_search(tool.PARAMETERS, self._search_mean, len(self._items["search"]), budget, seed)
        answers: dict[str, Answer] = {"magic-reference": tool.REFERENCE.answer, "random-search": found}
        return tuple(score for split in SPLITS for score in self._split_controls(split, answers))

    def _split_controls(self, split: Split, answers: Mapping[str, Answer]) -> list[ControlScore]:
        ids = [item.id for item in self._items[split]]
        judged: dict[str, list[Verdict]] = {name: [] for name in (*controls.FIXED, *answers)}
        for item in ids:
            bench = self._bench(item)
            for name, make in controls.FIXED.items():
                judged[name].append(_rounded(bench.judge.verdict(make(bench.train))))
            for name, answer in answers.items():
                judged[name].append(self._verdict(item, answer))
        texts = {name: tool.render(answer) for name, answer in answers.items()}
        return [
            controls.summary(name, split, [_metrics(v) for v in row], [v.audited for v in row], texts.get(name, ""))
            for name, row in judged.items()
        ]

    def _search_mean(self, answer: Answer) -> float:
        rewards = [self._verdict(item.id, answer).audited for item in self._items["search"]]
        return sum(rewards) / len(rewards)

    def judged(self, item: str, answer_CG: Floats) -> Verdict:
        """The verdict on a matrix, to six digits. Raises UnknownName for no item."""
        return _rounded(self._bench(item).judge.verdict(answer_CG))

    def _verdict(self, item: str, answer: Answer) -> Verdict:
        """On MAGIC with the settings of `answer`."""
        key = (item, tool.render(answer))
        if key not in self._verdicts:
            bench = self._bench(item)
            self._verdicts[key] = _rounded(bench.judge.verdict(bench.magic.denoise(tool.config(answer))))
        return self._verdicts[key]

    def _lay_out(self, item: str) -> Bench:
        if item not in self._problems:
            raise UnknownName("item", item, self._problems)
        return lay_out(self._problems[item], self._counts)


def _fixed(options: DenoisingOptions) -> bytes:
    """What the options fix beside the counts: wherever and however those lay, equal ones make the same items."""
    said = msgspec.structs.asdict(options) | {"path": ""}
    del said["layer"]
    if said["form"] == "typed":  # as the digest was before there was another
        del said["form"]
    return msgspec.json.encode(said)


def _rounded(verdict: Verdict) -> Verdict:
    """To six digits: below that, the number of threads of the linear algebra shows."""
    fields = {name: value for name, value in msgspec.structs.asdict(verdict).items() if isinstance(value, float)}
    return msgspec.structs.replace(verdict, **{name: round(value, 6) for name, value in fields.items()})


def _metrics(verdict: Verdict) -> dict[str, float]:
    """Every number of a verdict by name, and whether each check passed (1 or 0)."""
    numbers = {name: value for name, value in msgspec.structs.asdict(verdict).items() if isinstance(value, float)}
    return {**numbers, "valid": float(not verdict.fault), "gate_passed": float(not verdict.gate)}
