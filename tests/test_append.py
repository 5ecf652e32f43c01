"""What an append does with a cluster's answers that are no refusals: it asks again, and never takes them for an end."""

from __future__ import annotations

import pytest

from given import drafts_of, step
from resia.events.errors import BusError, FenceMoved
from resia.runtime import append as module
from resia.runtime.append import Unanswered, append


class Line:
    """A log in memory that says `first` before it takes anything, and loses the answer of the attempts in `mute`."""

    def __init__(self, *first: dict[str, object], mute: int = 0, torn: int = 0) -> None:
        self.first, self.mute, self.stored, self.asked = list(first), mute, dict[str, int](), 0
        self.torn = torn

    async def ask(self, subject, data, fields):
        self.asked += 1
        if self.first:
            return {"error": self.first.pop(0)}
        if subject in self.stored:
            return {"error": {"code": 400, "err_code": 10071, "description": "wrong last sequence: 1"}}
        self.stored[subject] = len(self.stored) + 1
        if self.mute:
            self.mute -= 1
            raise Unanswered("TimeoutError: nats: timeout")
        return {"seq": self.stored[subject]}

    async def send(self, subject, data, fields):
        self.stored[subject] = len(self.stored) + 1

    async def find(self, run, subject):
        return self.stored.get(subject)

    async def is_torn(self, run):
        self.torn -= 1
        return self.torn >= 0


PASSING = [
    {"code": 503, "err_code": 10008, "description": "JetStream system temporarily unavailable"},
    {"code": 500, "err_code": 10009, "description": "JetStream cluster can not handle request"},
    {"code": 400, "err_code": 10164, "description": "wrong last sequence"},
    {"code": 400, "err_code": 10176, "description": "atomic publish batch is incomplete"},
]


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    monkeypatch.setattr(module, "_WAIT_S", 0.0)
    monkeypatch.setattr(module, "_LONGEST_WAIT_S", 0.0)


@pytest.mark.parametrize("refusal", PASSING, ids=lambda refusal: str(refusal["err_code"]))
async def test_a_cluster_that_cannot_tell_yet_is_asked_again(refusal):
    line = Line(refusal, refusal)
    assert await append(line, "r", drafts_of("r", [step(1)]), None) == (1, False)
    assert line.asked == 3


async def test_a_lost_answer_is_found_and_not_written_twice():
    line = Line(mute=1)
    assert await append(line, "r", drafts_of("r", [step(1)]), None) == (1, True)
    assert len(line.stored) == 1


async def test_part_of_a_batch_is_not_taken_for_all_of_it():
    drafts, line = drafts_of("r", [step(n) for n in range(3)]), Line(torn=2)
    line.stored = {draft.subject: number for number, draft in enumerate(drafts, 1)}
    assert await append(line, "r", drafts, None) == (3, True)
    assert line.asked == 3, "asked until the log ended with a whole batch"


async def test_a_log_that_stays_torn_is_told(monkeypatch):
    monkeypatch.setattr(module, "APPEND_FOR_S", -1.0)
    drafts, line = drafts_of("r", [step(n) for n in range(3)]), Line(torn=9)
    line.stored = {drafts[0].subject: 1}
    with pytest.raises(BusError, match=r"the log ends amid a batch: is its disk full\?\): bring the server back"):
        await append(line, "r", drafts, None)


async def test_a_fence_that_moved_is_no_matter_of_waiting():
    line = Line({"code": 400, "err_code": 10071, "description": "wrong last sequence: 7"})
    with pytest.raises(FenceMoved):
        await append(line, "r", drafts_of("r", [step(1)]), 3)
    assert line.asked == 1


async def test_a_cluster_that_never_answers_is_told_with_what_to_do(monkeypatch):
    monkeypatch.setattr(module, "APPEND_FOR_S", -1.0)
    with pytest.raises(BusError, match=r"append to run 'r': no answer for .* bring the server back, or most nodes"):
        await append(Line(PASSING[0]), "r", drafts_of("r", [step(1)]), None)


async def test_a_real_refusal_is_told_at_once():
    line = Line({"code": 400, "err_code": 10054, "description": "message size exceeds maximum allowed"})
    with pytest.raises(BusError, match="message size exceeds"):
        await append(line, "r", drafts_of("r", [step(1)]), None)
    assert line.asked == 1
