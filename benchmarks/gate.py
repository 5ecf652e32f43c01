"""How often each gate crowns a candidate that is no better, one that is, and one that loses what was solved.

A run offers K candidates in turn against one champion on the same items. False accept: the share of runs, without any
effect, in which at least one candidate is crowned. Power: the share of first candidates with the given true gain that
are crowned. Lossy: the same for candidates that gain 0.6 on one half of the items and lose 0.3 on the other, which the
champion solves. The gates are that of `resia.agents.gate` under both rules of what stays solved and without any; "the
score went up"; and "up by k standard errors". Every outcome is drawn anew for each candidate, so items solved by luck
are lost by luck. Beside them, how often a probe alarms by how much of a gain holds under it.

    python -m benchmarks.gate [--json] [--runs N] [--seed S] [--out PATH]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from benchmarks import machine
from resia.agents.gate import judge
from resia.agents.probes import Sides, probe
from resia.events import GateSettings

Floats = npt.NDArray[np.float64]

TESTS = 8
EFFECTS = (0.05, 0.1, 0.2, 0.3, 0.4)
SETTINGS = GateSettings()
SEARCH_ITEMS, GROUP = 12, 8  # sampled rollouts an item
SOLVED = 0.5  # a reward above is a success
EASY, HARD = 0.9, 0.1
LOST, WON = -0.3, 0.6  # on easy and on hard items
HOLDS = (1.0, 0.75, 0.5, 0.25, 0.0)
PROBED_ITEMS = (12, 16)
PROBED_GAIN = 0.5


class Scenario(NamedTuple):
    """`items` validation items; binary rewards, or continuous ones with noise of standard deviation `noise`."""

    name: str
    items: int
    binary: bool
    share: int  # simulate one run in this many: exact sign flips cost more than a table of McNemar outcomes
    noise: float = 0.15


class Case(NamedTuple):
    """One candidate at test `test` of its run: greedy validation rewards (N) of both sides, and of the canaries (C) the
    greedy and the mean sampled rewards, champion's and candidate's."""

    candidate: Floats
    champion: Floats
    greedy: tuple[Floats, Floats]
    sampled: tuple[Floats, Floats]
    test: int


Gate = Callable[[Case], bool]
Runs = list[list[Case]]

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
    """Every scenario with every gate on the same simulated candidates, and the probes."""
    found = machine.describe(numpy=np.__version__)
    started = time.process_time()
    scenarios = {s.name: _scenario(s, max(runs // s.share, 2), seed + i) for i, s in enumerate(SCENARIOS)}
    probes = {f"{items} items": _alarms(items, runs, seed) for items in PROBED_ITEMS}
    return {
        "benchmark": "gate",
        "alpha": SETTINGS.alpha,
        "tests_a_run": TESTS,
        "search_items": SEARCH_ITEMS,
        "group_size": GROUP,
        "seed": seed,
        "cpu_seconds": round(time.process_time() - started, 1),
        "machine": found,
        "scenarios": scenarios,
        "probes": {"gain": PROBED_GAIN, "keeps": SETTINGS.probes.keeps, "runs": runs, "alarms_by_share_held": probes},
    }


def _scenario(scenario: Scenario, runs: int, seed: int) -> dict[str, object]:
    rng = np.random.default_rng(seed)
    null = _runs(rng, scenario, runs, TESTS, 0.0)
    better = {gain: _runs(rng, scenario, runs, 1, gain) for gain in EFFECTS}
    lossy = _runs(rng, scenario, runs, 1, None)
    gates: dict[str, object] = {}
    for name, gate in GATES.items():
        wrong = sum(_crowned(gate, null))
        gates[name] = {
            "false_accept": wrong / runs,
            "interval": _interval(wrong, runs),
            "alpha": SETTINGS.alpha,
            "power": {str(gain): float(np.mean(_crowned(gate, cases))) for gain, cases in better.items()},
            "lossy": float(np.mean(_crowned(gate, lossy))),
        }
    return {"items": scenario.items, "binary": scenario.binary, "runs": runs, "gates": gates}


def _interval(count: int, runs: int) -> tuple[float, float]:
    """Clopper and Pearson's 95% interval of a share."""
    from scipy.stats import binomtest

    found = binomtest(count, runs).proportion_ci(0.95, method="exact")
    return round(float(found.low), 4), round(float(found.high), 4)


def _runs(rng: np.random.Generator, scenario: Scenario, runs: int, tests: int, gain: float | None) -> Runs:
    """One champion a run, item difficulties of their own, `tests` candidates better by `gain` on every item; None: easy
    and hard items by turns, and candidates that lose on the easy ones."""
    return [_run(rng, scenario, tests, gain) for _ in range(runs)]


def _run(rng: np.random.Generator, scenario: Scenario, tests: int, gain: float | None) -> list[Case]:
    level_N, level_M = (_levels(rng, items, gain) for items in (scenario.items, SEARCH_ITEMS))
    champion_N, greedy_M = _rewards(rng, scenario, level_N), _rewards(rng, scenario, level_M)
    canaries = np.flatnonzero(greedy_M > SOLVED)[: SETTINGS.canaries]
    level_C = level_M[canaries]
    sampled_C = _mean_rewards(rng, scenario, level_C)
    better_N, better_C = _better(level_N, gain), _better(level_C, gain)
    return [
        Case(
            candidate=_rewards(rng, scenario, better_N),
            champion=champion_N,
            greedy=(greedy_M[canaries], _rewards(rng, scenario, better_C)),
            sampled=(sampled_C, _mean_rewards(rng, scenario, better_C)),
            test=test,
        )
        for test in range(1, tests + 1)
    ]


def _levels(rng: np.random.Generator, items: int, gain: float | None) -> Floats:
    if gain is None:
        return np.where(np.arange(items) % 2 == 0, EASY, HARD)
    return rng.uniform(0.1, 0.9 - max(EFFECTS), items)


def _better(level: Floats, gain: float | None) -> Floats:
    better: Floats = level + (np.where(level > SOLVED, LOST, WON) if gain is None else gain)
    return better


def _rewards(rng: np.random.Generator, scenario: Scenario, level: Floats) -> Floats:
    if scenario.binary:
        return (rng.random(level.shape) < level).astype(np.float64)
    return level + scenario.noise * rng.standard_normal(level.shape)


def _mean_rewards(rng: np.random.Generator, scenario: Scenario, level: Floats) -> Floats:
    """Mean of GROUP rollouts an item."""
    means: Floats = _rewards(rng, scenario, np.broadcast_to(level, (GROUP, len(level)))).mean(axis=0)
    return means


def _crowned(gate: Gate, runs: Runs) -> list[bool]:
    """Whether at least one candidate is crowned, run by run."""
    return [any(gate(case) for case in cases) for cases in runs]


def _beyond(errors: float) -> Gate:
    """Mean gain above `errors` standard errors of the paired difference."""

    def gate(case: Case) -> bool:
        effects = case.candidate - case.champion
        return bool(effects.mean() > errors * effects.std(ddof=1) / np.sqrt(len(effects)))

    return gate


def _shows_gain(case: Case) -> bool:
    """Counts decide a binary verdict, so equal ones are put in one order and judged once."""
    order = np.lexsort((case.candidate, case.champion))
    return _accepts(tuple(case.candidate[order]), tuple(case.champion[order]), case.test)


def _keeps_sampled(case: Case) -> bool:
    """Rule gate/2. Without the gain no check can turn the verdict."""
    return _shows_gain(case) and _judged(case.candidate, case.champion, case.test, *case.sampled)


def _keeps_greedy(case: Case) -> bool:
    """Rule gate/1: canaries and solved validation items by their greedy rewards."""
    solved = case.champion > SOLVED
    before = np.concatenate([case.champion[solved], case.greedy[0]])
    after = np.concatenate([case.candidate[solved], case.greedy[1]])
    return _shows_gain(case) and _judged(case.candidate, case.champion, case.test, before, after)


@cache
def _accepts(candidate: tuple[float, ...], champion: tuple[float, ...], test: int) -> bool:
    return _judged(np.array(candidate), np.array(champion), test, np.zeros(0), np.zeros(0))


def _judged(candidate: Floats, champion: Floats, test: int, before: Floats, after: Floats) -> bool:
    verdict = judge(
        _named(candidate),
        _named(champion),
        binary=bool(np.isin([*candidate, *champion], (0.0, 1.0)).all()),
        test=test,
        settings=SETTINGS,
        solved={name: (float(old), float(new)) for (name, old), new in zip(_named(before).items(), after, strict=True)},
        seed=test,
    )
    return verdict.outcome == "accept"


def _named(rewards: Floats) -> dict[str, float]:
    return {f"{i:03}": float(reward) for i, reward in enumerate(rewards)}


GATES: dict[str, Gate] = {
    "resia": _keeps_sampled,
    "resia, gate/1": _keeps_greedy,
    "resia, gain alone": _shows_gain,
    "score went up": _beyond(0.0),
    "up by 1 SE": _beyond(1.0),
    "up by 2 SE": _beyond(2.0),
}


def _alarms(items: int, runs: int, seed: int) -> dict[str, float]:
    """Share of probes that alarm, of a binary gain of which a share holds under the probe; all outcomes anew."""
    return {str(holds): float(np.mean(_alarmed(items, runs, seed, holds))) for holds in HOLDS}


def _alarmed(items: int, runs: int, seed: int, holds: float) -> list[bool]:
    rng = np.random.default_rng([seed, items])
    level_R_N = rng.uniform(0.1, 0.9 - PROBED_GAIN, (runs, items))
    rises = (0.0, PROBED_GAIN, 0.0, holds * PROBED_GAIN)
    drawn_4_R_N = [(rng.random(level_R_N.shape) < level_R_N + rise).astype(float) for rise in rises]
    found = []
    for number, rows in enumerate(zip(*drawn_4_R_N, strict=True)):
        before, after, probed_before, probed_after = map(_named, rows)
        sides = Sides(before, after), Sides(probed_before, probed_after)
        found.append(probe("shuffle", *sides, SETTINGS.probes, alpha=SETTINGS.alpha, seed=number).alarmed)
    return found


def _table(result: dict[str, object]) -> str:
    effects = "".join(f"{f'+{e:g}':>8}" for e in EFFECTS)
    lines = [f"{'scenario':<16}{'gate':<20}{'false accept':>13}{'interval':>16}{effects}{'lossy':>8}"]
    scenarios = result["scenarios"]
    assert isinstance(scenarios, dict)
    for name, scenario in scenarios.items():
        for gate, found in scenario["gates"].items():
            power = "".join(f"{share:>8.3f}" for share in (*found["power"].values(), found["lossy"]))
            between = "{:.3f} - {:.3f}".format(*found["interval"])
            lines.append(f"{name:<16}{gate:<20}{found['false_accept']:>13.3f}{between:>16}{power}")
    probes = result["probes"]
    assert isinstance(probes, dict)
    for items, shares in probes["alarms_by_share_held"].items():
        lines.append(f"alarms of a probe on {items}, by the share of the gain that holds: {shares}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
