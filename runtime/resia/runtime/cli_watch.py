"""A run as a person sees it from the command line: followed while it lasts, then its table, and its exit code."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .cli_options import BUDGET, DONE, FAILED, run_async

if TYPE_CHECKING:
    from resia.replay.report import Summary
    from resia.replay.state import RunState

    from .session import Session


def watched(session: Session) -> tuple[RunState, Summary]:
    """See the run to its end, with progress and its table on standard error."""
    from resia.replay.report import rows, summary

    from .console import View, cost_table, table
    from .session import launch

    view = View(session.run)
    with view.showing():
        state: RunState = run_async(launch(session, view.watch()))
    result = summary(state)
    view.console.print(table(rows(state), view.console.width))
    view.console.print(cost_table(result))
    view.console.print(f"{result.status}: {result.reason}", highlight=False, markup=False, soft_wrap=True)
    return state, result


def ended(run: str, result: Summary) -> dict[str, object]:
    """A run's end as one JSON object."""
    import msgspec

    return {"run": run, **msgspec.to_builtins(result)}


def exit_code(state: RunState) -> int:
    """3 when a budget ended the run, 1 when it failed."""
    if state.status == "failed":
        return FAILED
    spent = state.decisions and state.decisions[-1].decision.rule.endswith(":0-budget")
    return BUDGET if spent else DONE
