"""Admission tests: a sound domain passes all of them, and each fault is found by the test that is there for it."""

from __future__ import annotations

import math

import msgspec
import pytest
from fixture_domains import FIXTURES, Sizes

from resia.domains.admission import examine, repeated
from resia.domains.base import Inside, Item, Parameter, Reference, Score, TaskSpec, scored
from resia.domains.contract import contract
from resia.domains.denoising.domain import Denoising, DenoisingOptions
from resia.domains.trials import Plan, record, try_out
from resia.events import ControlScore
from resia.events.ids import sha256

PLAN = Plan(items=2, answers=4, seed=0)
CHECKS = [
    "splits", "task", "form", "refusals", "content", "scores", "direction", "separation", "headroom", "gold",
]  # fmt: skip
SPEC = TaskSpec(
    name="sound",
    instruction="Pick the digit.",
    tool="pick",
    parameters=(Parameter("digit", tuple(range(10)), 5, "any digit"), Parameter("sure", ("yes", "no"), "no", "")),
    references=(Reference("middle", {"digit": 5, "sure": "no"}, "the middle"),),
    neutral_answers=({"digit": 2, "sure": "no"}, {"digit": 8, "sure": "yes"}),
    objective="mean",
    metric="off",
    direction="down",
)


class Sound:
    """Pick the hidden digit. Implements `resia.domains.base.Inspected`."""

    spec = SPEC
    digest = sha256(b"sound")

    def items(self, split):
        return tuple(Item(f"{split}-{n}", split, f"{split} number {n}") for n in range(3))

    def hidden(self, item):
        return int(item[-1]) * 3

    def parse(self, request):
        if set(request) - {"digit", "sure"}:
            raise ValueError("unknown")
        digit, sure = request.get("digit", 5), request.get("sure", "no")
        if type(digit) is not int or digit not in range(10) or sure not in ("yes", "no"):
            raise ValueError("give a digit and whether you are sure")
        return {"digit": digit, "sure": sure}

    def render(self, answer):
        return f"digit={answer['digit']} sure={answer['sure']}"

    def score(self, item, answer):
        off = abs(answer["digit"] - self.hidden(item))
        return Score(1 - off / 10, off == 0, None, "", {"off": float(off)})

    def controls(self, budget, seed):
        return tuple(ControlScore("middle", s, 0.7, 3, {}) for s in ("search", "validation", "test"))

    def inside(self, item):
        gold = {"digit": self.hidden(item), "sure": "no"}
        return Inside(gold, (self.render(gold),))


def verdicts(domain, plan=PLAN):
    return {finding.check: finding.passed for finding in examine(domain, plan).findings}


def told(domain, check):
    return next(finding.detail for finding in examine(domain, PLAN).findings if finding.check == check)


def test_a_sound_domain_passes_every_test():
    assert verdicts(Sound()) == dict.fromkeys(CHECKS, True)


def test_denoising_passes_and_says_what_it_cannot_be_asked():
    options = DenoisingOptions(synthetic=True, search_items=2, validation_items=2, test_items=2)
    found = verdicts(Denoising(options), Plan(items=1, answers=1))
    assert found == {**dict.fromkeys(CHECKS, True), "gold": None}


class SameId(Sound):
    def items(self, split):
        return tuple(msgspec.structs.replace(item, id="x") for item in super().items(split))


class NoTest(Sound):
    def items(self, split):
        return () if split == "test" else super().items(split)


class SharedPrompt(Sound):
    def items(self, split):
        return tuple(msgspec.structs.replace(item, prompt="same") for item in super().items(split))


class SharedParts(Sound):
    def inside(self, item):
        return msgspec.structs.replace(super().inside(item), parts=frozenset({item[-1]}))


class NoReference(Sound):
    spec = msgspec.structs.replace(SPEC, references=())


class BadDefault(Sound):
    spec = msgspec.structs.replace(SPEC, parameters=(Parameter("digit", (1, 2), 3, ""),))


class RefusesItsOwn(Sound):
    spec = msgspec.structs.replace(SPEC, neutral_answers=({"digit": 10, "sure": "no"},))


class OrderedText(Sound):
    def parse(self, request):
        return dict(super().parse(request)) if list(request)[:1] != ["sure"] else {**request}

    def render(self, answer):
        return " ".join(f"{name}={value}" for name, value in answer.items())


class OneText(Sound):
    def render(self, answer):
        return "answer"


class TakesAll(Sound):
    def parse(self, request):
        return {"digit": int(str(request.get("digit", 5))[:1]), "sure": str(request.get("sure", "no"))}


class TakesUnknown(Sound):
    def parse(self, request):
        return super().parse({name: value for name, value in request.items() if name in ("digit", "sure")})


class WrongError(Sound):
    def parse(self, request):
        if "no_such_argument" in request:
            raise KeyError("no_such_argument")
        return super().parse(request)


class NotFinite(Sound):
    def score(self, item, answer):
        return msgspec.structs.replace(super().score(item, answer), metrics={"off": 1.0, "x": math.inf})


class OverOne(Sound):
    def score(self, item, answer):
        found = super().score(item, answer)
        return msgspec.structs.replace(found, reward=found.reward * 2)


class NotBinary(Sound):
    spec = msgspec.structs.replace(SPEC, binary=True)


class PaidFailure(Sound):
    def score(self, item, answer):
        return msgspec.structs.replace(super().score(item, answer), failure="wrong")


class Crashes(Sound):
    def score(self, item, answer):
        raise ZeroDivisionError("in the scorer")


class Upside(Sound):
    spec = msgspec.structs.replace(SPEC, direction="up")


class NoMetric(Sound):
    spec = msgspec.structs.replace(SPEC, metric="latency_us")


class Blind(Sound):
    def score(self, item, answer):
        return Score(0.5, False, None, "", {"off": 0.0})


class BlindWithoutGold(Blind):
    def inside(self, item):
        return Inside()


class GoldIsWorse(Sound):
    def inside(self, item):
        return Inside({"digit": (self.hidden(item) + 5) % 10, "sure": "no"})


class Solved(Sound):
    def controls(self, budget, seed):
        return (ControlScore("trick", "validation", 0.99, 3, {}),)


class NoControls(Sound):
    def controls(self, budget, seed):
        return ()


class Leaks(Sound):
    def items(self, split):
        items = super().items(split)
        return tuple(
            msgspec.structs.replace(i, prompt=f"{i.prompt}, not digit={self.hidden(i.id)} sure=no") for i in items
        )


class Quotes(Sound):
    spec = msgspec.structs.replace(SPEC, instruction="Pick the digit.\nvalidation number 1 wants 3.")


class Whispers(Sound):
    """Tells gold after the first answer."""

    spec = msgspec.structs.replace(SPEC, steps=2)

    def observe(self, item, answers):
        return f"it was digit={self.hidden(item)} sure=no"

    def score_steps(self, item, answers):
        return self.score(item, answers[-1])


class NoInside(Sound):
    def inside(self, item):
        raise LookupError(item)


@pytest.mark.parametrize(
    ("cls", "check", "sentence"),
    [
        (SameId, "splits", "the id 'x' is given twice"),
        (NoTest, "splits", "the split test has no items"),
        (SharedPrompt, "content", "of validation holds what search holds"),
        (SharedParts, "content", "of validation holds what search holds, '0'"),
        (NoReference, "task", "no reference"),
        (BadDefault, "task", "the default of 'digit' is 3"),
        (RefusesItsOwn, "form", "is refused: give a digit"),
        (OrderedText, "form", "with its arguments turned round"),
        (OneText, "form", "have the same text 'answer'"),
        (TakesAll, "refusals", "is taken for the answer"),
        (TakesUnknown, "refusals", "an unknown argument is taken for the answer"),
        (WrongError, "refusals", "an unknown argument raises KeyError"),
        (NotFinite, "scores", "item 'search-0' was given x inf: the scorer must give finite numbers"),
        (OverOne, "scores", "give a number from 0 to 1"),
        (NotBinary, "scores", "and the spec says binary"),
        (PaidFailure, "scores", "it failed (wrong) and has reward"),
        (Crashes, "scores", "scoring item 'search-0' failed: ZeroDivisionError: in the scorer"),
        (Upside, "direction", "though better is up"),
        (NoMetric, "direction", "has no metric 'latency_us'"),
        (Blind, "separation", "gold earns 0.500 and"),
        (BlindWithoutGold, "separation", "does not tell right from wrong"),
        (GoldIsWorse, "separation", "earns 0.8 and gold"),
        (Solved, "headroom", "control trick earns 0.990 on validation"),
        (NoControls, "headroom", "no controls"),
        (Leaks, "gold", "holds its secret 'digit=0 sure=no'"),
        (Quotes, "gold", "the task's own text quotes item 'validation-1'"),
        (Whispers, "gold", "holds its secret 'digit=0 sure=no'"),
        (NoInside, "content", "the domain raises LookupError"),
    ],
)
def test_a_fault_is_found_by_its_own_test(cls, check, sentence):
    assert verdicts(cls())[check] is False
    assert sentence in told(cls(), check)


@pytest.mark.parametrize("name", FIXTURES)
def test_the_contract_is_cheap_enough_for_every_run_and_scores_nothing(name, monkeypatch):
    domain = FIXTURES[name](Sizes())
    monkeypatch.setattr(domain, "score", None)
    assert [finding.passed for finding in contract(domain)] == [True, True, True]


def test_a_domain_that_nothing_can_move_has_no_headroom_and_no_separation():
    found = verdicts(FIXTURES["hopeless"](Sizes()))
    assert found["separation"] is False
    assert verdicts(FIXTURES["dense_steps"](Sizes()))["separation"] is True


def test_a_scorer_that_counts_its_calls_does_not_repeat_backwards():
    class Counts(Sound):
        calls = 0

        def score(self, item, answer):
            self.calls += 1
            return msgspec.structs.replace(super().score(item, answer), metrics={"off": 0.0, "calls": self.calls})

    here, there = (record(Counts(), try_out(Counts(), PLAN, backwards)) for backwards in (False, True))
    assert repeated(here, there).passed is False
    assert "answer digit=" in repeated(here, there).detail
    here, there = (record(Sound(), try_out(Sound(), PLAN, backwards)) for backwards in (False, True))
    assert repeated(here, there).passed is True
    assert repeated(here, there[:-1]).passed is False


def test_a_rollout_of_several_steps_is_tried_to_its_end():
    domain = FIXTURES["dense_steps"](Sizes())
    trial = try_out(domain, PLAN).tried[0]
    assert trial.told == tuple(f"step {n}" for n in range(1, 6))
    picks = [{"pick": int(text.removeprefix("pick="))} for text in trial.text.split(" then ")]
    assert len(picks) == 6
    assert trial.score == scored(domain, trial.item.id, picks)
