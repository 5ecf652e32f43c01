"""What choosing an algorithm costs against the best one: the rules, a learned policy, each algorithm alone, chance.

Seven worlds (benchmarks.choosing.worlds), each trained in by all six real objectives from the same rollouts
(benchmarks.choosing.learner). An algorithm's return is the exact gain in expected utility on validation items, 0 where
the gate would refuse it. The best of a world is the highest mean return over the history's seeds, which no figure is
taken on. Regret is the best's return less the chosen one's, a mean over worlds, on the other seeds. The rules see the
features of the rollouts through the package's own landscape and choice. The learned policy is fitted on draws of its
own over the history, generation after generation, and then frozen; what it draws is chance, so the history is played
HISTORIES times and figures are means over these. What was drawn also serves inverse propensity, beside the truth.

    python -m benchmarks.selection [--json] [--seeds N] [--history N] [--worlds NAME ...] [--other-trusts NATS ...]
        [--out PATH]
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from benchmarks import machine
from benchmarks.choosing.cases import GROUP, Case, case_of
from benchmarks.choosing.history import EPSILON, EXPLORATION, fitted, off_policy, play
from benchmarks.choosing.learner import CAP, TRUST
from benchmarks.choosing.worlds import WORLDS
from resia.agents.experience import Update, by_policy, by_rules
from resia.events import ALGORITHMS, Algorithm, LearnedPolicy

GROUPS = (16, 8, 4, 2)  # for which the rules' choice is counted
NEAR = 0.01  # mean returns this close to the best count as the best too
HISTORIES = 20  # times that the history's draws are made anew, on the same returns
OTHER_TRUSTS = (0.125, 2.0)
NO_EXPLORING = 1e-9  # in place of epsilon, where the policy's best score is taken
HISTORY_FROM = 1000  # its seeds are none of those that regret is measured on

Choose = Callable[[Case], Mapping[str, float]]  # probability of each algorithm; what is left over trains nothing


def main(argv: Sequence[str] | None = None) -> int:
    parser = machine.options("selection", __doc__)
    parser.add_argument("--seeds", type=int, default=10, help="seeds that regret is measured on")
    parser.add_argument("--history", type=int, default=15, help="seeds of past runs")
    parser.add_argument(
        "--other-trusts",
        type=float,
        nargs="*",
        default=OTHER_TRUSTS,
        metavar="NATS",
        help=f"regret also where an update aims at so much KL a decision, beside {TRUST:g}",
    )
    parser.add_argument("--worlds", nargs="+", choices=list(WORLDS), default=list(WORLDS), metavar="NAME")
    args = parser.parse_args(argv)
    if args.seeds < 2 or args.history < 2:
        parser.error("--seeds and --history are at least 2, or there is no standard error")
    if not all(0 < trust < np.inf for trust in args.other_trusts):
        parser.error("--other-trusts are numbers above 0")
    machine.report(compare(args.worlds, args.seeds, args.history, args.other_trusts), args, _table)
    return 0


def _always(name: Algorithm) -> Choose:
    return lambda _: {name: 1.0}


def _evenly(names: Sequence[Algorithm]) -> dict[str, float]:
    return dict.fromkeys(map(str, names), 1 / max(len(names), 1))


FIXED: dict[str, Choose] = {
    "rules": lambda case: by_rules(case.situation),
    **{name: _always(name) for name in ALGORITHMS},
    "random": lambda _: _evenly(ALGORITHMS),
    "random feasible": lambda case: _evenly(case.situation.feasible),
}


class Played(NamedTuple):
    """One step size: the cases that regret is measured on, those of the history, and what each playing of the history
    drew and fitted."""

    cases: Sequence[Case]
    past: Sequence[Case]
    good: Mapping[str, Sequence[Algorithm]]  # by world, the best first
    updates: Sequence[Sequence[Update]]
    policies: Sequence[LearnedPolicy]

    def regrets(self) -> dict[str, list[float]]:
        """By selector, a number a seed; of the learned ones the mean over histories."""
        found = {name: self._of(choose) for name, choose in FIXED.items()}
        for name, epsilon in (("learned", NO_EXPLORING), ("learned, exploring", EPSILON)):
            found[name] = np.mean([self._learned(policy, epsilon) for policy in self.policies], axis=0).tolist()
        found["oracle"] = [0.0] * len(found["rules"])  # regret is to the best algorithm of each world
        return {name: found[name] for name in ("rules", "learned", "learned, exploring", *FIXED, "oracle")}

    def histories(self) -> dict[str, float]:
        """How far the learned policy's regret depends on what its history happened to draw."""
        means = [float(np.mean(self._learned(policy, NO_EXPLORING))) for policy in self.policies]
        rules = float(np.mean(self._of(FIXED["rules"])))
        return {
            "histories": len(means),
            "sd": float(np.std(means, ddof=1)),
            "lowest": min(means),
            "highest": max(means),
            "share_below_rules": sum(mean < rules - 1e-9 for mean in means) / len(means),
            "share_above_rules": sum(mean > rules + 1e-9 for mean in means) / len(means),
        }

    def _learned(self, policy: LearnedPolicy, epsilon: float) -> list[float]:
        frozen = msgspec.structs.replace(policy, epsilon=epsilon)
        return self._of(lambda case: by_policy(frozen, case.situation))

    def _of(self, choose: Choose) -> list[float]:
        return _regrets(self.cases, {world: names[0] for world, names in self.good.items()}, choose)


def compare(worlds: Sequence[str], seeds: int, history: int, other_trusts: Sequence[float]) -> dict[str, object]:
    """Every selector on every world and seed."""
    import torch

    found = machine.describe(numpy=np.__version__, torch=torch.__version__, torch_threads=1)
    torch.set_num_threads(1)
    started = time.process_time()
    played = _played(worlds, seeds, history, TRUST, GROUPS)
    others = {f"{trust:g}": _played(worlds, seeds, history, trust, (GROUP,)).regrets() for trust in other_trusts}
    regrets = played.regrets()
    return {
        "benchmark": "selection",
        "seeds": seeds,
        "history": history,
        "settings": {"trust": TRUST, "cap": CAP, "epsilon": EPSILON, "exploration": EXPLORATION, "group": GROUP},
        "cpu_seconds": round(time.process_time() - started, 1),
        "machine": found,
        **{name: _mean(values)["mean"] for name, values in regrets.items()},
        "standard_errors": {name: _mean(values)["se"] for name, values in regrets.items()},
        "best_static": min((_mean(regrets[name]) | {"algorithm": name} for name in ALGORITHMS), key=_by_mean),
        "differences": _differences(regrets),
        "step_size": {
            trust: {
                "regret": {name: _mean(values) for name, values in other.items()},
                "differences": _differences(other),
            }
            for trust, other in others.items()
        },
        "worlds": {w: _about([c for c in played.cases if c.world == w], played.good[w]) for w in worlds},
        "group_size": {str(group): _confusion(played.cases, played.good, group) for group in GROUPS},
        "histories": played.histories(),
        "off_policy": off_policy(played.updates, played.past),
        "policy": msgspec.to_builtins(played.policies[0].arms),
    }


def _played(worlds: Sequence[str], seeds: int, history: int, trust: float, groups: Sequence[int]) -> Played:
    cases = [case_of(world, seed, groups, trust) for seed in range(seeds) for world in worlds]
    past = [case_of(world, HISTORY_FROM + n, (GROUP,), trust) for n in range(history) for world in worlds]
    good = {world: _good([case for case in past if case.world == world]) for world in worlds}
    updates = [play(past, number) for number in range(HISTORIES)]
    return Played(cases, past, good, updates, [fitted(drawn) for drawn in updates])


def _differences(regrets: Mapping[str, Sequence[float]]) -> dict[str, object]:
    """Paired by seed; below 0 the first is better."""
    return {
        f"{a} - {b}": _mean([x - y for x, y in zip(regrets[a], regrets[b], strict=True)])
        for a in ("rules", "learned")
        for b in (*ALGORITHMS, "random", *(("learned",) if a == "rules" else ()))
    }


def _good(cases: Sequence[Case]) -> list[Algorithm]:
    """The best algorithm by mean return, then those within NEAR of it."""
    means = {name: float(np.mean([case.returns[name] for case in cases])) for name in ALGORITHMS}
    order = sorted(ALGORITHMS, key=lambda name: -means[name])
    return [name for name in order if means[order[0]] - means[name] <= NEAR]


def _regrets(cases: Sequence[Case], best: Mapping[str, Algorithm], choose: Choose) -> list[float]:
    """Mean over worlds, a number a seed."""
    by_seed: dict[int, list[float]] = {}
    for case in cases:
        by_seed.setdefault(case.seed, []).append(case.returns[best[case.world]] - case.value(choose(case)))
    return [float(np.mean(values)) for values in by_seed.values()]


def _mean(values: Sequence[float]) -> dict[str, float]:
    return {"mean": float(np.mean(values)), "se": float(np.std(values, ddof=1) / np.sqrt(len(values)))}


def _by_mean(found: Mapping[str, object]) -> float:
    mean = found["mean"]
    assert isinstance(mean, float)
    return mean


def _about(cases: Sequence[Case], good: Sequence[Algorithm]) -> dict[str, object]:
    best = good[0]
    returns = {name: _mean([case.returns[name] for case in cases]) for name in ALGORITHMS}
    return {
        "best": best,
        "near": list(good[1:]),
        "returns": returns,
        "rules": dict(Counter(case.situation.context.partition(":")[2] for case in cases)),
        "regret_of_rules": _mean([case.returns[best] - case.value(by_rules(case.situation)) for case in cases]),
    }


def _confusion(cases: Sequence[Case], good: Mapping[str, Sequence[Algorithm]], group: int) -> dict[str, object]:
    """What the rules choose on features of `group` rollouts an item; returns stay those of GROUP."""
    chosen: dict[str, Counter[str]] = {world: Counter() for world in good}
    regrets = []
    for case in cases:
        ruled = case.seen[group].ruled
        chosen[case.world][ruled or "none"] += 1
        regrets.append(case.returns[good[case.world][0]] - (case.returns[ruled] if ruled else 0.0))
    return {
        "chosen": {world: dict(counts) for world, counts in chosen.items()},
        "share_best": sum(chosen[world][names[0]] for world, names in good.items()) / len(cases),
        "share_near": sum(chosen[world][name] for world, names in good.items() for name in names) / len(cases),
        "regret": float(np.mean(regrets)),
    }


def _table(result: dict[str, Any]) -> str:
    others = result["step_size"]
    lines = [f"{'selector':<20}{'regret':>9}{'se':>9}" + "".join(f"{'trust ' + trust:>14}" for trust in others)]
    for name, error in result["standard_errors"].items():
        beside = "".join(f"{other['regret'][name]['mean']:>14.4f}" for other in others.values())
        lines.append(f"{name:<20}{result[name]:>9.4f}{error:>9.4f}{beside}")
    lines += ["", f"{'world':<20}{'best':<14}" + "".join(f"{name:>14}" for name in ALGORITHMS)]
    for world, about in result["worlds"].items():
        gains = "".join(f"{about['returns'][name]['mean']:>14.3f}" for name in ALGORITHMS)
        lines.append(f"{world:<20}{about['best']:<14}{gains}  {', '.join(about['rules'])}")
    lines.append("")
    lines += [f"G = {g:<4} regret of the rules {found['regret']:.4f}" for g, found in result["group_size"].items()]
    lines.append("")
    for name, found in result["off_policy"].items():
        if "ips" in found:
            lines.append(f"{name}: {found['ips']:.4f} +- {found['ips_se']:.4f} by IPS, in truth {found['truth']:.4f}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
