"""How often each gate crowns a candidate that is no better, and how often it crowns one that is.

A run offers K candidates in turn against one champion on the same validation items. False accept: the share of runs,
without any effect, in which at least one candidate is crowned. Power: the share of first candidates with the given
true gain that are crowned. Beside the gate of `resia.agents.gate`, with and without its check that validation items
which the champion solved stay solved: "the score went up" and "up by k standard errors". A binary outcome is drawn
anew for each candidate, so items solved by luck are lost by luck: the hardest case for that check.

    python -m benchmarks.gate [--json] [--runs N] [--seed S] [--out PATH]
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from benchmarks import machine
from resia.agents.gate import judge
from resia.events import GateSettings

Floats = npt.NDArray[np.float64]
Gate = Callable[[Floats, Floats, int], bool]  # (candidate_N, champion_N, k) -> crowned

TESTS = 8
EFFECTS = (0.05, 0.1, 0.2, 0.3, 0.4)
SETTINGS = GateSettings()


class Scenario(NamedTuple):
    """`items` validation items; binary rewards, or continuous ones with noise of standard deviation `noise`."""

    name: str
    items: int
    binary: bool
    share: int  # simulate one run in this many: exact sign flips cost more than a table of McNemar outcomes
    noise: float = 0.15


class Rewards(NamedTuple):
    """`candidates` are runs x tests x items, `champion` runs x items."""

    candidates: Floats
    champion: Floats


SCENARIOS = (
    Scenario("binary-24", 24, True, 1),
    Scenario("binary-60", 60, True, 1),
    Scenario("continuous-12", 12, False, 2),
)


def main(argv: Sequence[str] | None = None) -> int:
    parser = machine.options("gate", __doc__)
    parser.add_argument("--runs", type=int, default=500, help="simulated runs a binary scenario")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if args.runs < 10:
        parser.error(f"--runs is {args.runs}: give at least 10")
    result = simulate(args.runs, args.seed)
    machine.report(result, args, _table)
    return 0


def simulate(runs: int, seed: int) -> dict[str, object]:
    """Every scenario with every gate on the same simulated candidates."""
    found = machine.describe(numpy=np.__version__)
    started = time.process_time()
    scenarios = {s.name: _scenario(s, max(runs // s.share, 2), seed + i) for i, s in enumerate(SCENARIOS)}
    return {
        "benchmark": "gate",
        "alpha": SETTINGS.alpha,
        "tests_a_run": TESTS,
        "seed": seed,
        "cpu_seconds": round(time.process_time() - started, 1),
        "machine": found,
        "scenarios": scenarios,
    }


def _scenario(scenario: Scenario, runs: int, seed: int) -> dict[str, object]:
    rng = np.random.default_rng(seed)
    null = _draw(rng, scenario, runs, TESTS, 0.0)
    better = {gain: _draw(rng, scenario, runs, 1, gain) for gain in EFFECTS}
    gates: dict[str, object] = {}
    for name, gate in GATES.items():
        rate = _crowned(gate, null, scenario.binary)
        power = {str(gain): _crowned(gate, rewards, scenario.binary) for gain, rewards in better.items()}
        gates[name] = {"false_accept": rate, "standard_error": math.sqrt(rate * (1 - rate) / runs), "power": power}
    return {"items": scenario.items, "binary": scenario.binary, "runs": runs, "gates": gates}


def _draw(rng: np.random.Generator, scenario: Scenario, runs: int, tests: int, gain: float) -> Rewards:
    """One champion a run, item difficulties of their own, `tests` candidates better by `gain` on every item."""
    level_R_1_N = rng.uniform(0.1, 0.9 - max(EFFECTS), (runs, 1, scenario.items))
    shape = (runs, tests, scenario.items)
    if scenario.binary:
        champion = (rng.random(level_R_1_N.shape) < level_R_1_N).astype(np.float64)
        return Rewards((rng.random(shape) < level_R_1_N + gain).astype(np.float64), champion[:, 0])
    champion = level_R_1_N + scenario.noise * rng.standard_normal(level_R_1_N.shape)
    return Rewards(level_R_1_N + gain + scenario.noise * rng.standard_normal(shape), champion[:, 0])


def _crowned(gate: Gate, rewards: Rewards, binary: bool) -> float:
    """Share of runs in which at least one candidate is crowned."""
    # Counts decide a binary verdict, so equal ones are put in one order and judged once.
    rows = zip(rewards.candidates, rewards.champion, strict=True)
    arranged = (((_arranged(row, champion) if binary else (row, champion)) for row in run) for run, champion in rows)
    return float(np.mean([any(gate(new, old, k) for k, (new, old) in enumerate(run, 1)) for run in arranged]))


def _arranged(candidate: Floats, champion: Floats) -> tuple[Floats, Floats]:
    order = np.lexsort((candidate, champion))
    return candidate[order], champion[order]


def _beyond(errors: float) -> Gate:
    """Mean gain above `errors` standard errors of the paired difference."""

    def gate(candidate: Floats, champion: Floats, _test: int) -> bool:
        effects = candidate - champion
        return bool(effects.mean() > errors * effects.std(ddof=1) / math.sqrt(len(effects)))

    return gate


def _shows_gain(candidate: Floats, champion: Floats, test: int) -> bool:
    return _accepts((tuple(candidate), tuple(champion)), test, frozenset())


def _shows_gain_and_keeps(candidate: Floats, champion: Floats, test: int) -> bool:
    """Solved is a champion's reward above a half. Without the gain the check cannot turn the verdict."""
    solved = frozenset(np.flatnonzero(champion > 0.5).tolist())
    sides = tuple(candidate), tuple(champion)
    return _accepts(sides, test, frozenset()) and _accepts(sides, test, solved)


@cache
def _accepts(sides: tuple[tuple[float, ...], tuple[float, ...]], test: int, solved: frozenset[int]) -> bool:
    candidate, champion = sides
    verdict = judge(
        {f"{i:03}": reward for i, reward in enumerate(candidate)},
        {f"{i:03}": reward for i, reward in enumerate(champion)},
        binary=set(candidate) | set(champion) <= {0.0, 1.0},
        test=test,
        settings=SETTINGS,
        solved={f"{i:03}": (champion[i], candidate[i]) for i in solved},
        seed=test,
    )
    return verdict.outcome == "accept"


GATES: dict[str, Gate] = {
    "resia": _shows_gain_and_keeps,
    "resia, gain alone": _shows_gain,
    "score went up": _beyond(0.0),
    "up by 1 SE": _beyond(1.0),
    "up by 2 SE": _beyond(2.0),
}


def _table(result: dict[str, object]) -> str:
    lines = [f"{'scenario':<16}{'gate':<20}{'false accept':>13}" + "".join(f"{f'+{e:g}':>8}" for e in EFFECTS)]
    scenarios = result["scenarios"]
    assert isinstance(scenarios, dict)
    for name, scenario in scenarios.items():
        for gate, found in scenario["gates"].items():
            power = "".join(f"{share:>8.3f}" for share in found["power"].values())
            lines.append(f"{name:<16}{gate:<20}{found['false_accept']:>13.3f}{power}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
