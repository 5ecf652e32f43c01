"""What a model that proposes is shown, within a budget of tokens: the task, the harness, the history, trajectories.

Pure. In: the task spec, a harness, past trials, and search rollouts read by `of`. Out: two messages. Of the validation
items nothing is here but each edit's effect, rounded; of the test and of gold answers nothing at all.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from resia.domains.base import Item, Parameter, TaskSpec
from resia.events import Harness, HarnessEdited, Message, RolloutRecorded, Trajectory
from resia.replay.state import RunState, Trial

from .taskwork import outcome_class

TOKEN_BYTES = 2  # the endpoint's tokenizer is not known; prose has some four bytes a token, trajectories 2.7
HISTORY_SHARE = 0.25  # of the budget at most
MISSES = 8  # trajectories that did not fit in a row, after which no more are read
EFFECT_STEP = 0.05
REWARD_DIGITS = 3

_ROLE = """You improve an agent by editing its harness. The agent is a language model that answers the items of one
task; the harness is all that stands around it, in four components:
- system_prompt: a text, and examples shown as chat turns before the item.
- answer_extraction: Python source of extract(text) -> dict or None. It reads one reply of the agent's model.
- tool_dispatch: Python source of dispatch(request, tools) -> dict or str. It gets what extract returned. A dict is the
  answer, what tools.{tool}(name=value, ...) returned; that raises ValueError for what it does not take. A str is an
  observation: the model is told it and goes on, tool_turns times at most. Where asks allows it,
  tools.ask(prompt="...") gives the model's reply to that prompt alone.
- retry_policy: sampling temperature (above 0, to 2), max_new_tokens of a turn (1 to 4096), attempts (1 to 8: tries in
  all when no answer could be read), stop (texts that end a turn), tool_turns (0 to 16), asks (0 to
  32), votes (1 to 15: replies of which the commonest answer counts).
Sources use the standard library alone and run confined: no files, no network, a few seconds.
"""
_POLICY = '{"temperature": 0.7, "max_new_tokens": 64, "attempts": 2, "stop": ["\\n"], "tool_turns": 0, "asks": 8}'
_PROMPT = '{"text": "...", "examples": [{"user": "...", "assistant": "..."}]}'
_EDIT = f"""Reply with one JSON object and nothing else. Change exactly one component, and give its new value whole:
{{"component": "system_prompt", "rationale": "one sentence", "value": {_PROMPT}}}
{{"component": "retry_policy", "rationale": "one sentence", "value": {_POLICY}}}
{{"component": "tool_dispatch", "rationale": "one sentence", "value": "Python source"}}
{{"component": "answer_extraction", "rationale": "one sentence", "value": "Python source"}}
The edited agent is measured on items that you do not see, and kept if it is better by more than chance.
"""
_DRAFT = f"""Reply with one JSON object and nothing else, the first harness:
{{"rationale": "one sentence", "system_prompt": {_PROMPT}, "tool_dispatch": "Python source", "retry_policy": {_POLICY},
"answer_extraction": "Python source"}}
"""


class TooSmall(Exception):
    """The budget does not hold what must be shown."""


def for_draft(spec: TaskSpec, items: Sequence[Item], budget_tokens: int) -> tuple[Message, Message]:
    """The messages that ask for generation 0. Raises TooSmall."""
    system = _ROLE.format(tool=spec.tool) + _DRAFT
    page = _Page(budget_tokens, system)
    page.must(_task(spec))
    page.may("Items", (_item(item) for item in items))
    return Message("system", system), Message("user", page.text)


def for_edit(
    state: RunState,
    spec: TaskSpec,
    harness: Harness,
    evaluation: str,
    items: Sequence[Item],
    of: Callable[[RolloutRecorded], Trajectory],
    budget_tokens: int,
) -> tuple[Message, Message]:
    """The messages that ask for one edit of the champion's `harness`, measured by `evaluation`. Raises TooSmall."""
    system = _ROLE.format(tool=spec.tool) + _EDIT
    rollouts = [r for r in state.evaluations[evaluation].rollouts.values() if r.split == "search"]
    page = _Page(budget_tokens, system)
    page.must(_task(spec))
    page.must(_harness(harness))
    page.must(_classes(rollouts))
    page.may("Edits tried so far, the last first", history(state), HISTORY_SHARE)
    page.may("Trajectories of the present harness", (trajectory(r, of(r)) for r in stratified(rollouts)))
    page.may("Items", (_item(item) for item in items))
    return Message("system", system), Message("user", page.text)


class _Page:
    """Sections in order, within the budget that `system` leaves."""

    def __init__(self, budget_tokens: int, system: str) -> None:
        self._budget, self._whole = budget_tokens, budget_tokens * TOKEN_BYTES
        self._left = self._whole - len(system.encode())
        self._parts: list[str] = []

    @property
    def text(self) -> str:
        return "\n\n".join(self._parts)

    def must(self, part: str) -> None:
        if not self._fits(part):
            raise TooSmall(
                f"llm.prompt_tokens is {self._budget}, which does not hold the task and the harness: raise it"
            )
        self._add(part)

    def may(self, title: str, parts: Iterable[str], share: float = 1.0) -> None:
        """As many of `parts` as fit, whole, in `share` of the budget; those that do not fit are passed over."""
        floor = max(self._left - int(self._whole * share), 0)
        self._left -= floor
        head, misses = f"# {title}", 0
        for part in parts:
            added = part if not head else f"{head}\n\n{part}"
            if self._fits(added):
                self._add(added)
                head, misses = "", 0
            elif (misses := misses + 1) >= MISSES:
                break
        self._left += floor

    def _fits(self, part: str) -> bool:
        return self._size(part) <= self._left

    def _add(self, part: str) -> None:
        self._parts.append(part)
        self._left -= self._size(part)

    def _size(self, part: str) -> int:
        return len(part.encode()) + len("\n\n")


def stratified(rollouts: Iterable[RolloutRecorded]) -> list[RolloutRecorded]:
    """Every distinct rollout, one of each outcome class in turn, of a class the best, the worst, the next best, ..."""
    classes: dict[str, dict[tuple[str, str], RolloutRecorded]] = {}
    for rollout in sorted(rollouts, key=lambda r: (-r.reward, r.item, r.index)):
        same = (rollout.item, rollout.answer or rollout.trajectory.digest)
        classes.setdefault(outcome_class(rollout), {}).setdefault(same, rollout)
    queues = [_both_ends(list(classes[name].values())) for name in sorted(classes)]
    longest = max(map(len, queues), default=0)
    return [queue[place] for place in range(longest) for queue in queues if place < len(queue)]


def _both_ends(ordered: Sequence[RolloutRecorded]) -> list[RolloutRecorded]:
    count = len(ordered)
    return [ordered[n // 2] if n % 2 == 0 else ordered[count - 1 - n // 2] for n in range(count)]


def trajectory(rollout: RolloutRecorded, found: Trajectory) -> str:
    """A rollout whole: what the model was told and said in every turn, and what became of it."""
    lines = [f"## {rollout.item}: {outcome_class(rollout)}, reward {rollout.reward:.{REWARD_DIGITS}g}"]
    told = None
    for turn in found.turns:
        asked = turn.messages[-1].content if turn.messages else ""
        if asked != told:
            lines.append(f"user: {asked}")
        told = asked
        lines.append(f"model: {turn.text}" + (" [cut off]" if turn.finish == "length" else ""))
        if turn.request:
            lines.append(f"extracted: {turn.request}")
        lines += [f"tool: {call.name}({call.arguments}) -> {call.result}" for call in turn.calls]
        if turn.failure:
            lines.append(f"failed: {turn.failure}")
    return "\n".join(lines)


def history(state: RunState) -> list[str]:
    """Every edit tried in the run, the last first, with its effect on items that the model does not see, rounded."""
    edits = {e.iteration: e for e in state.harnesses.values() if isinstance(e, HarnessEdited)}
    measured = {e.request.iteration: e for e in state.evaluations.values() if e.request.purpose == "candidate"}
    lines = []
    for number, trial in enumerate(state.trials):
        if trial.lever != "edit_harness":
            continue
        where = "the present harness" if number >= state.fresh_from else "an earlier one"
        edit, found = edits.get(trial.iteration), measured.get(trial.iteration)
        what = f"{edit.component} by {edit.operator}: {edit.rationale}" if edit else trial.name
        search = found.completed.scores.get("search") if found and found.completed else None
        seen = f", search mean {search.mean:.{REWARD_DIGITS}g}" if search else ""
        lines.append(f"- iteration {trial.iteration}, on {where}. {what} -> {_result(trial)}{seen}")
    return lines[::-1]


def _result(trial: Trial) -> str:
    if trial.gate is None:
        return f"{trial.outcome}: {trial.detail}" if trial.detail else trial.outcome
    return f"{trial.outcome}, effect {rounded(trial.gate.effect):+.2f}"


def rounded(effect: float) -> float:
    """To the nearest 0.05, so that single validation items cannot be made out."""
    return round(effect / EFFECT_STEP) * EFFECT_STEP + 0.0


def _task(spec: TaskSpec) -> str:
    parameters = [f"- {p.name}: {_valid(p)}, default {json.dumps(p.default)}; {p.doc}" for p in spec.parameters]
    references = [f"- {r.name}: {json.dumps(r.answer)}; {r.doc}" for r in spec.references]
    steps = f"\nA rollout takes up to {spec.steps} answers, each in the light of what came of those before."
    return "\n".join(
        [
            f"# Task\n{spec.instruction.strip()}{steps if spec.steps > 1 else ''}",
            f"Arguments of tools.{spec.tool}:",
            *parameters,
            *(["Known answers:", *references] if references else []),
        ]
    )


def _valid(parameter: Parameter) -> str:
    if parameter.code:
        return "a Python source"
    return f"one of {json.dumps(list(parameter.choices))}" if parameter.choices else "any text"


def _harness(harness: Harness) -> str:
    prompt = msgspec.json.encode(harness.system_prompt).decode()
    policy = msgspec.json.encode(harness.retry_policy).decode()
    return (
        f"# Present harness\nsystem_prompt: {prompt}\nretry_policy: {policy}\n"
        f"tool_dispatch:\n```python\n{harness.tool_dispatch}```\n"
        f"answer_extraction:\n```python\n{harness.answer_extraction}```"
    )


def _classes(rollouts: Sequence[RolloutRecorded]) -> str:
    counts: Mapping[str, int] = Counter(map(outcome_class, rollouts))
    told = ", ".join(f"{name} {counts[name]}" for name in sorted(counts))
    return f"# Outcomes of its {len(rollouts)} rollouts\n{told or 'none'}"


def _item(item: Item) -> str:
    return f"- {item.id}: {item.prompt}"
