"""What a run would ask for before anything is spent: rollouts, tokens, time and money, expected and at most.

Loads no model and starts no worker. What is known is told from what is not: sizes and speed are measured where the
store has runs of the same domain and model; otherwise sizes are counted from bytes, and there is no time.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import msgspec

from resia.agents.perturbing import offered
from resia.domains.base import Domain
from resia.events import BASELINES, Algorithm, RunSettings, Split
from resia.replay.ledger import MILLION, price
from resia.trainers.objectives import FEASIBLE

from .needs import (
    Levers,
    Need,
    Size,
    evaluation,
    first_size,
    if_nothing_is_accepted,
    sampled,
    sealed_test,
    training,
    widest_size,
)
from .past import Past

SPLITS: tuple[Split, ...] = ("search", "validation", "test")


class Part(msgspec.Struct, frozen=True):
    """One step, or all: rollouts and tokens expected and at most; seconds None where no speed is known, money in the
    run's currency. `rollouts_most` is None where only the tokens bound them."""

    name: str
    rollouts: int
    rollouts_most: int | None
    tokens: int
    tokens_most: int
    prompt_tokens: int
    completion_tokens: int
    training_tokens: int
    seconds: float | None
    money: float
    money_most: float


class Estimate(msgspec.Struct, frozen=True):
    """A run's needs. `parts` are one evaluation, one training by each algorithm, and the sealed test; `run` is all."""

    domain: str
    model: str
    mode: str
    items: dict[Split, int]
    max_iterations: int
    token_budget: int
    currency: str
    sizes: str
    speed: str
    levers: str
    overrun: str
    parts: tuple[Part, ...]
    run: Part


class _Sizes(NamedTuple):
    """Of a rollout: what to expect, the most of generation 0, and the most of any later harness."""

    expected: Size
    first: Size
    widest: Size


class _Both(NamedTuple):
    expected: Need
    most: Need


class _Plan(NamedTuple):
    """What everything in an estimate is made of."""

    settings: RunSettings
    items: dict[Split, int]
    sizes: _Sizes
    past: Past
    perturbations: int  # probes that sample what would be crowned again


def estimate(settings: RunSettings, domain: Domain, past: Past) -> Estimate:
    """The needs of a run under `settings` on `domain`, by what `past` runs measured."""
    items = {split: len(domain.items(split)) for split in SPLITS}
    thought = settings.engine.thinking_tokens
    first, edits = first_size(domain, True, thought), settings.loop.mode in ("H", "W+H")
    expected = past.size or first_size(domain, False, thought)
    sizes = _Sizes(expected, first, widest_size(domain, thought) if edits else first)
    probed = set(offered(domain)) & set(settings.gate.probes.on) if settings.loop.mode not in BASELINES else ()
    made = _Plan(settings, items, sizes, past, len(probed))
    trains = settings.loop.mode in ("W", "W+H")
    trainings = {f"training by {name}": _trained(made, name) for name in _algorithms(settings)} if trains else {}
    probes = {"probes of a new champion": _probed(made)} if settings.loop.mode not in BASELINES else {}
    steps = {"each evaluation": _measured(made), **probes, **trainings, "sealed test": _tested(made)}
    levers = past.levers or if_nothing_is_accepted(settings)
    return Estimate(
        domain=settings.domain,
        model=settings.engine.model,
        mode=settings.loop.mode,
        items=items,
        max_iterations=settings.loop.max_iterations,
        token_budget=settings.loop.token_budget,
        currency=settings.price.currency,
        sizes=_said_sizes(made),
        speed=_said_speed(past),
        levers=_said_levers(made, levers),
        overrun=_said_overrun(made),
        parts=tuple(_part(made, name, need, need.most.rollouts) for name, need in steps.items()),
        run=_whole(made, levers),
    )


def _algorithms(settings: RunSettings) -> tuple[Algorithm, ...]:
    return (settings.algorithm,) if settings.algorithm else FEASIBLE


def _measured(made: _Plan) -> _Both:
    settings, items, sizes, *_ = made
    return _Both(evaluation(settings, items, sizes.expected), evaluation(settings, items, sizes.widest))


def _probed(made: _Plan) -> _Both:
    """What the gate would accept, sampled again with prompts said differently; at most its champion is too."""
    rollouts = made.items["validation"] * made.perturbations
    return _Both(sampled(rollouts, made.sizes.expected), sampled(2 * rollouts, made.sizes.widest))


def _trained(made: _Plan, algorithm: Algorithm) -> _Both:
    settings, items, sizes, *_ = made
    return _Both(
        training(settings, algorithm, items, sizes.expected, most=False),
        training(settings, algorithm, items, sizes.widest, most=True),
    )


def _tested(made: _Plan) -> _Both:
    return _Both(sealed_test(made.items, made.sizes.expected), sealed_test(made.items, made.sizes.widest))


def _dearest(made: _Plan) -> Need:
    """The most that one step of the loop can take: a lever, and the measurement and the probes of its candidate."""
    measured = _measured(made).most.plus(_probed(made).most)
    if made.settings.loop.mode not in ("W", "W+H"):
        return measured
    trained = max((_trained(made, name).most for name in _algorithms(made.settings)), key=lambda need: need.tokens)
    return measured.plus(trained)


def _whole(made: _Plan, levers: Levers) -> Part:
    """The run: what is expected, and at most what its iterations can ask for or its budgets let pass."""
    loop, tokens = made.settings.loop, _let_pass(made)
    expected, most = _searched(made) if loop.mode in BASELINES else _looped(made, levers)
    expected = expected.times(min(1.0, tokens / max(expected.tokens, 1.0)))
    part = _part(made, "the whole run", _Both(expected, most), None if loop.mode == "best-of-n" else most.rollouts)
    dearest_token = max(msgspec.structs.astuple(price(made.settings, made.settings.engine.model))) / MILLION
    return msgspec.structs.replace(
        part,
        tokens_most=min(part.tokens_most, round(tokens)),
        money_most=min(part.money_most, tokens * dearest_token, _money_let_pass(made)),
    )


def _looped(made: _Plan, levers: Levers) -> _Both:
    """A run that edits and trains: generation 0, its levers with a candidate each, and the sealed test."""
    measured, tested, algorithms = _measured(made), _tested(made), _algorithms(made.settings)
    expected = measured.expected.times(1 + levers.edits + levers.trainings).plus(tested.expected)
    for name in algorithms if levers.trainings else ():
        expected = expected.plus(_trained(made, name).expected.times(levers.trainings / len(algorithms)))
    most = _first(made).plus(_dearest(made).times(made.settings.loop.max_iterations)).plus(tested.most)
    return _Both(expected, most)


def _searched(made: _Plan) -> _Both:
    """A baseline: generation 0, what the tokens buy more of it, and one answer judged, whose harness is no larger."""
    tested, size = _tested(made).expected, made.sizes.expected
    once = _measured(made).expected
    samples = made.settings.loop.mode == "best-of-n"
    more = max(made.settings.loop.token_budget - 2 * once.tokens, 0) / max(size.tokens, 1.0) if samples else 0.0
    expected = once.times(2).plus(sampled(more, size)).plus(tested)
    most = _first(made).times(2).plus(sealed_test(made.items, made.sizes.first))
    return _Both(expected, most.plus(Need(prompt=made.settings.loop.token_budget)) if samples else most)


def _first(made: _Plan) -> Need:
    """The most that measuring generation 0 takes, which no budget stops."""
    return evaluation(made.settings, made.items, made.sizes.first)


def _let_pass(made: _Plan) -> float:
    """Tokens that the budget cannot stop: it is looked at before each step, and the sealed test comes after."""
    most = max(made.settings.loop.token_budget, _first(made).tokens)
    return most + _dearest(made).tokens + _tested(made).most.tokens


def _money_let_pass(made: _Plan) -> float:
    settings = made.settings
    if settings.loop.money_budget is None:
        return math.inf
    most = max(settings.loop.money_budget, _first(made).cost(settings))
    return most + _dearest(made).cost(settings) + _tested(made).most.cost(settings)


def _part(made: _Plan, name: str, need: _Both, rollouts_most: float | None) -> Part:
    expected, most = need
    return Part(
        name,
        round(expected.rollouts),
        None if rollouts_most is None else round(rollouts_most),
        round(expected.tokens),
        round(most.tokens),
        round(expected.prompt),
        round(expected.completion),
        round(expected.training),
        _seconds(made.past, expected),
        expected.cost(made.settings),
        most.cost(made.settings),
    )


def _seconds(past: Past, need: Need) -> float | None:
    """By the measured speeds; None where one that is needed was never measured."""
    total = 0.0
    for tokens, speed in ((need.prompt + need.completion, past.sampling_speed), (need.training, past.training_speed)):
        if tokens and speed is None:
            return None
        total += tokens / speed if speed else 0.0
    return round(total, 1)


# -- in words ----------------------------------------------------------------------------------------------------


def _said_sizes(made: _Plan) -> str:
    size, past = made.sizes.expected, made.past
    text = f"a rollout is {size.prompt:,.0f} prompt and {size.completion:,.0f} completion tokens"
    if past.rollouts:
        return f"{text}, the mean of {past.rollouts:,} rollouts of {past.runs} past run{'s' * (past.runs != 1)}"
    return f"{text}, guessed from bytes and the longest answer: no past run of this domain and model is in the store"


def _said_overrun(made: _Plan) -> str:
    return (
        f"a budget is looked at before each step and overrun by one at most, {_dearest(made).tokens:,.0f} tokens, and"
        " the sealed test; most counts a token a byte, every try, and every edit operator applied"
    )


def _said_speed(past: Past) -> str:
    if past.sampling_speed is None:
        return "time is not known: no past run of this model is in the store"
    trained = f", training {past.training_speed:,.0f}" if past.training_speed else ", training not measured"
    return f"sampling {past.sampling_speed:,.0f} tokens a second{trained}, as measured with this model here"


def _said_levers(made: _Plan, levers: Levers) -> str:
    if made.settings.loop.mode in BASELINES:
        return "expected: generation 0, its search at the budget, and one answer judged"
    edits, trainings = (f"{number:.3g} {what}{'s' * (number != 1)}" for number, what in _counts(levers))
    text = f"expected: {edits} and {trainings}"
    if made.past.ended:
        return f"{text}, the mean of {made.past.ended} past run{'s' * (made.past.ended != 1)} of this domain and mode"
    return f"{text}, as if nothing were accepted: no past run of this domain and mode is in the store"


def _counts(levers: Levers) -> tuple[tuple[float, str], tuple[float, str]]:
    return (levers.edits, "edit"), (levers.trainings, "training")
