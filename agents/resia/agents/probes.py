"""Goodhart probes: whether what raised a score also raises what the score stands for (docs/gate.md).

In: scores of champion and candidate by validation item, and the same under a probe. Out: a `ProbeReport`, and a
`ProbeAlarmed` where the gain does not hold. Pure; resampling draws from a seed that is handed in. Knows nothing of how
a prompt is perturbed, nor of what a verifier checks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from resia.events import Probe, ProbeAlarmed, ProbeReport, ProbeSettings

from .gate import TIE, sign_flip

Scores = Mapping[str, float]
WORDS: Mapping[Probe, str] = {
    "paraphrase": "with its prompts in other words",
    "shuffle": "with its options in another order",
    "verifier": "by the second verifier",
}


class Sides(NamedTuple):
    """Scores by item of the champion (`before`) and the candidate (`after`)."""

    before: Scores
    after: Scores


def probe(name: Probe, score: Sides, probed: Sides, settings: ProbeSettings, *, alpha: float, seed: int) -> ProbeReport:
    """Whether the probe follows the score.

    On items that all four sides hold, d is the change of the score and c that of the probe, both in [-1, 1]. The
    shortfall s = keeps * d - c is what the probe lacks of the share that it should keep. Alarm when the mean d is
    above 0 and the one-sided sign-flip test of mean(s) > `bound` has p <= `alpha`; 4 items cannot reach 0.05.
    """
    items = sorted(score.before.keys() & score.after.keys() & probed.before.keys() & probed.after.keys())
    if not items:
        return ProbeReport(name, 0, 0.0, 0.0, 1.0, False)
    score_N, probed_N = _changes(score, items), _changes(probed, items)
    shortfall_N = settings.keeps * score_N - probed_N
    p_value, _ = sign_flip(shortfall_N - settings.bound, seed)
    rose = float(score_N.mean())
    return ProbeReport(name, len(items), rose, float(probed_N.mean()), p_value, bool(rose > TIE and p_value <= alpha))


def alarm_of(report: ProbeReport, settings: ProbeSettings, *, alpha: float, evaluation: str) -> ProbeAlarmed | None:
    """The fact of an alarm on the candidate measured by `evaluation`; None where there is none."""
    if not report.alarmed:
        return None
    more = f" by more than {settings.bound:g}" if settings.bound else ""
    detail = (
        f"the score changed by {report.score_change:+.3f} and {WORDS[report.probe]} by {report.probe_change:+.3f}, "
        f"which falls short of a share of {settings.keeps:g}{more}: p = {report.p_value:.3g} <= {alpha:g} "
        f"on {report.items} items"
    )
    return ProbeAlarmed(evaluation, report.probe, report.score_change, report.probe_change, detail)


def _changes(sides: Sides, items: list[str]) -> npt.NDArray[np.float64]:
    return np.array([sides.after[item] - sides.before[item] for item in items], dtype=np.float64)
