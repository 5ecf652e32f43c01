"""What a person watches on standard error: a live view in a terminal, one line a step elsewhere.

Draws the folded state and live progress; decides nothing. Collaborators: replay.report for the table's rows.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from resia.events import (
    AdapterTrained,
    Custom,
    DecisionMade,
    DriftFailed,
    DriftMeasured,
    EvaluationCompleted,
    Logged,
    RolloutFailed,
    RoundTrained,
    Skipped,
    StepTrained,
    TrainingFailed,
)
from resia.replay.ledger import Cycle
from resia.replay.report import Row, Summary, rows
from resia.replay.state import RunState
from resia.replay.wording import score_text
from resia.trainers.decider import plan

from .drift_view import drift_text
from .holding import Pace, heard
from .session import Watch
from .supervisor import Died, Supervisor

OUTCOMES = {"accepted": "green", "rejected": "red", "undecided": "yellow", "failed": "red", "baseline": "cyan"}


class View:
    """Follows one run. `watch()` is what a session calls; `showing()` draws until it is left."""

    def __init__(self, run: str, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self._run, self._started = run, time.monotonic()
        self._state = RunState()
        self._sampling: dict[str, Any] = {}
        self._steps: list[StepTrained] = []
        self._round: dict[str, Any] = {}
        self._notes: list[str] = []
        self._lost: set[str] = set()
        self._pace, self._slow = Pace(), ("", 0)

    def watch(self) -> Watch:
        return Watch(self.fact, self.live, self.died, self.started, self.note)

    def started(self, supervisor: Supervisor) -> None:
        del supervisor
        self.note(f"run {self._run}: workers start")

    def fact(self, state: RunState, fact: Logged) -> None:
        """Remember the state; in a plain terminal also say what happened."""
        self._state = state
        self._pace.saw(fact)
        if isinstance(fact, Skipped):
            self.note(f"event {fact.sequence} is not one of ours and was skipped: {fact.why}")
            return
        if isinstance(fact, Custom):
            return
        event = fact.event
        if isinstance(event, StepTrained):
            self._steps = [*self._steps, event] if event.round or event.step else [event]
        if isinstance(event, AdapterTrained | TrainingFailed | DecisionMade):
            self._steps, self._round = [], {}
        if isinstance(event, EvaluationCompleted):
            self._sampling = {}
        if isinstance(event, RolloutFailed) and event.error not in self._lost:
            self._lost.add(event.error)  # a shard loses all of its rollouts for one reason, which is said once
            self.note(f"rollouts are lost to infrastructure: {event.error}")
        line = _line(event)
        if line:
            self.note(line)

    def live(self, data: dict[str, Any]) -> None:
        if data.get("kind") == "tokens":
            self._sampling = data
        elif data.get("kind") == "round":
            self._round = data
        elif (held := heard(data)) and (why := self._pace.slow(held)) and self._slow != (held.worker, held.sequence):
            self._slow = held.worker, held.sequence
            self.note(f"{held.worker} is slow on event {held.sequence} ({held.type}): {why}")

    def died(self, died: Died) -> None:
        how = f"was killed by signal {-died.code}" if died.code < 0 else f"ended with code {died.code}"
        self.note(f"{died.worker} (process {died.pid}) {how}; starting it again")

    def note(self, text: str) -> None:
        """One line that stays."""
        self._notes = [*self._notes[-4:], text]
        if not self.console.is_terminal:
            self.console.print(f"{self._elapsed():6.1f}s  {text}", highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def showing(self) -> Iterator[None]:
        """Draw four times a second in a terminal; elsewhere the notes have been printed as they came."""
        if not self.console.is_terminal:
            yield
            return
        with Live(
            get_renderable=self._render, console=self.console, refresh_per_second=4, transient=True, screen=False
        ):
            yield

    def _elapsed(self) -> float:
        return time.monotonic() - self._started

    def _render(self) -> RenderableType:
        decisions = self._state.decisions
        head = Text.assemble(
            ("resia ", "bold"),
            f"{self._run}  {self._elapsed():.0f} s  iteration {self._state.iteration}  events {self._state.sequence}",
        )
        parts: list[RenderableType] = [head]
        if self._state.evaluations:
            parts.append(table(rows(self._state), self.console.width, running=True))
        if decisions and self._state.ending is None:
            last = decisions[-1].decision
            doing = f"{last.action}{f' with {last.algorithm}' if last.algorithm else ''}: {last.reason}"
            parts.append(Text(doing, style="bold"))
        parts.extend(self._bars())
        parts.extend(Text(note, style="dim") for note in self._notes)
        return Group(*parts)

    def _bars(self) -> list[RenderableType]:
        bars: list[RenderableType] = []
        if self._sampling:
            x = self._sampling
            label = f"sampling {x['purpose']}  shard {x['shard'] + 1} of {x['shards']}  {x['tokens']} tokens"
            bars.append(_bar(label, x["shard"] + 0.5, x["shards"]))
        if self._round or self._steps:
            bars.append(self._training_bar())
        return bars

    def _training_bar(self) -> RenderableType:
        running = [t for t in self._state.trainings.values() if t.outcome is None]
        total = plan(running[0].request.algorithm, running[0].request.settings).rounds if running else 1
        done = len(running[0].rounds) if running else 0
        label = f"training {self._round.get('algorithm', '')}  round {self._round.get('round', done) + 1}"
        if self._steps:
            s = self._steps[-1]
            label += f"  loss {s.loss:+.4f}  kl {s.kl:.4f}  gradient {s.grad_norm:.2f}  {s.tokens_per_s:.0f} tokens/s"
        return _bar(label, done, max(total, done))


def _bar(label: str, done: float, total: float) -> RenderableType:
    grid = Table.grid(padding=(0, 1))
    grid.add_row(ProgressBar(total=total, completed=done, width=24), Text(label))
    return grid


def _line(event: object) -> str:
    """One line for the events a person follows; empty for the rest."""
    match event:
        case EvaluationCompleted():
            scores = "  ".join(f"{split} {score_text(s.mean, s.coverage)}" for split, s in event.scores.items())
            lost = f"  ({event.failed} rollouts lost to infrastructure)" if event.failed else ""
            told = scores or f"{len(event.rollouts)} rollouts"  # those of a probe and of a search count in no score
            return f"measured {event.purpose} of iteration {event.iteration}: {told}{lost}"
        case DecisionMade():
            return f"decided {event.action}{f' {event.algorithm}' if event.algorithm else ''}: {event.reason}"
        case RoundTrained():
            return f"trained round {event.round + 1} of {event.algorithm}: mean reward {event.reward_mean:.3f}"
        case AdapterTrained():
            return f"adapter {event.adapter.digest[:12]} trained by {event.algorithm} in {event.rounds} rounds"
        case TrainingFailed():
            return f"training by {event.algorithm} failed: {event.error}"
        case DriftMeasured():
            return f"{'alarm: ' if event.alarmed else ''}{drift_text(event)}"
        case DriftFailed():
            return f"drift was not measured: {event.error}"
        case _:
            return ""


_LEVERS = {"draft": "draft", "edit_harness": "edit", "train_weights": "train"}
_LEFT = ("lever", "change", "gate", "effect")
WIDE = 104  # columns that the whole table needs; a narrower terminal shows what matters then
_WHILE_RUNNING = ("it", "lever", "change", "search", "valid", "gate", "effect")
_AT_THE_END = ("it", "gen", "lever", "change", "search", "valid", "gate", "answers", "tokens")
_ALL = ("it", "gen", "lever", "change", "search", "valid", "gate", "p", "effect", "answers", "tokens")


def table(lines: list[Row], width: int, running: bool = False) -> Table:
    """The run's candidates, one a row; `it` marks the champion, effects are on validation with their interval."""
    names = _ALL if width >= WIDE else _WHILE_RUNNING if running else _AT_THE_END
    view = Table(box=None, header_style="bold", pad_edge=False, collapse_padding=True)
    for name in names:
        view.add_column(name, justify="left" if name in _LEFT else "right", no_wrap=name != "change")
    for row in lines:
        cells = _cells(row)
        view.add_row(*(cells[name] for name in names))
    return view


def _cells(row: Row) -> dict[str, RenderableType]:
    outcome = "baseline" if row.lever == "draft" else row.outcome
    return {
        "it": f"{row.iteration}{'*' if row.champion else ' '}",
        "gen": str(row.generation),
        "lever": _LEVERS[row.lever],
        "change": Text(row.name),
        "search": score_text(row.search, row.search_coverage),
        "valid": score_text(row.validation, row.validation_coverage),
        "gate": Text(outcome, style=OUTCOMES.get(outcome, "dim")),
        "p": "" if row.p_value is None else f"{row.p_value:.4f}",
        "effect": "" if row.effect is None else f"{row.effect:+.2f} [{row.ci_low:+.2f}, {row.ci_high:+.2f}]",
        "answers": str(row.distinct_answers),
        "tokens": f"{row.tokens / 1000:.0f}k",
    }


_CYCLES = {
    "draft": "draft",
    "edit_harness": "edit",
    "train_weights": "train",
    "sample": "sample",
    "stop": "sealed test",
}


def cost_table(summary: Summary) -> Table:
    """What each cycle cost: rollouts, tokens by kind, and money where the run has prices."""
    kinds = [
        "prompt",
        "completion",
        "training",
        *(["proposer"] if any(c.proposer_tokens for c in summary.cycles) else []),
    ]
    names = ["it", "cycle", "rollouts", *kinds, "tokens", *([summary.currency] if summary.money else [])]
    view = Table(box=None, header_style="bold", pad_edge=False, collapse_padding=True)
    for name in names:
        view.add_column(name, justify="left" if name == "cycle" else "right")
    for cycle in summary.cycles:
        cells = _costs(cycle, summary.currency)
        view.add_row(*(cells[name] for name in names))
    total = _costs(_total(summary.cycles), summary.currency)
    view.add_row(*({**total, "it": "", "cycle": "in all"}[name] for name in names), style="bold")
    return view


def _total(cycles: tuple[Cycle, ...]) -> Cycle:
    def added(name: str) -> Any:
        return sum(getattr(cycle, name) for cycle in cycles)

    return Cycle(0, "draft", *(added(name) for name in Cycle.__struct_fields__[2:]))


def _costs(cycle: Cycle, currency: str) -> dict[str, str]:
    lost = f" (+{cycle.failed_rollouts} lost)" if cycle.failed_rollouts else ""
    return {
        "it": str(cycle.iteration),
        "cycle": _CYCLES[cycle.action],
        "rollouts": f"{cycle.rollouts:,}{lost}",
        "prompt": f"{cycle.prompt_tokens:,}",
        "completion": f"{cycle.completion_tokens:,}",
        "training": f"{cycle.training_tokens:,}",
        "proposer": f"{cycle.proposer_tokens:,}",
        "tokens": f"{cycle.tokens:,}",
        currency: f"{cycle.money:.4f}",
    }


def controls_table(summary: Summary) -> Table:
    """What no learning reaches, beside baseline and champion on the sealed test."""
    view = Table(box=None, header_style="bold", pad_edge=False)
    for name, side in (("", "left"), ("search", "right"), ("validation", "right"), ("sealed test", "right")):
        view.add_column(name, justify="left" if side == "left" else "right")
    by_name: dict[str, dict[str, float]] = {}
    for score in summary.controls:
        by_name.setdefault(score.name, {})[score.split] = score.mean
    for name, scores in by_name.items():
        view.add_row(
            Text(f"control: {name}"), *(score_text(scores.get(split)) for split in ("search", "validation", "test"))
        )
    means, scored = msgspec.structs.asdict(summary), summary.coverage
    for label, name, style in (("generation 0", "baseline", ""), ("champion", "champion", "bold")):
        cells = (score_text(means[key], scored.get(key)) for key in (f"{name}_validation", f"{name}_test"))
        view.add_row(label, "", *cells, style=style)
    return view
