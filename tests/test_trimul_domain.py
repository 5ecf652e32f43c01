"""The TriMul domain as the loop sees it: items, the tool, scores on this machine's processor, controls."""

from __future__ import annotations

import pytest

from resia.domains import form
from resia.domains.registry import domain_names, load_domain
from resia.domains.trimul import stopwatch, tool
from resia.domains.trimul.criterion import compare
from resia.domains.trimul.domain import SPLITS, TriMulOptions, scored, shape
from resia.domains.trimul.operator import Case, draw, reference
from resia.domains.trimul.roofline import cpu
from resia.domains.trimul.stopwatch import Timing, lay_out
from resia.domains.trimul.template import custom_kernel
from resia.events.errors import UnknownName, UsageError

torch = pytest.importorskip("torch", reason="torch is not installed")
SMALL = {"search_items": 2, "validation_items": 1, "test_items": 1}


@pytest.fixture(scope="module")
def domain():
    return load_domain("trimul", SMALL)


def test_it_is_built_in_and_its_options_are_checked():
    assert "trimul" in domain_names()
    with pytest.raises(UsageError, match="smallest"):
        load_domain("trimul", {"smallest": 9})
    with pytest.raises(UnknownName, match="search_items"):
        load_domain("trimul", {"search_item": 3})


def test_no_shape_is_in_two_splits():
    options = TriMulOptions()
    sizes = {split: {shape(split, index, options.smallest).n for index in range(96)} for split in SPLITS}
    assert not (sizes["search"] & sizes["validation"])
    assert not (sizes["validation"] & sizes["test"])
    assert not sizes["search"] & sizes["test"]
    twelve = {shape("validation", index, options.smallest) for index in range(12)}
    assert len(twelve) == 12
    assert len({(case.law, case.masked, case.channels) for case in twelve}) == 8


def test_items_follow_from_the_options(domain):
    assert [item.id for item in domain.items("search")] == ["search-00", "search-01"]
    assert domain.items("test")[0].prompt == "N=13 batch=1 channels=128 law=normal masked=0"
    assert domain.digest == load_domain("trimul", SMALL).digest != load_domain("trimul", {}).digest


@pytest.mark.parametrize(
    "answer", [a for a in form.grid(tool.PARAMETERS) if a["rows"] != 32 and a["heads"] != 128 and a["dtype"] != "bf16"]
)
def test_every_configuration_is_the_operator(answer):
    case = Case(9, 2, 16, "cauchy", masked=True)
    inputs = draw(case, 5)
    weights = {name: torch.from_numpy(value) for name, value in inputs.weights.items()}
    output = custom_kernel(torch.from_numpy(inputs.x), torch.from_numpy(inputs.mask), weights, answer)
    assert output.dtype == torch.float32
    assert compare(output.numpy(), reference(inputs)).right


def test_a_score_is_a_time_beside_the_plain_kernel(domain):
    found = domain.score("search-00", tool.FUSED.answer)
    assert 0 < found.reward < 1
    assert found.failure is None
    share = found.metrics["plain_us"] / (found.metrics["plain_us"] + found.metrics["us"])
    assert found.reward == pytest.approx(share, abs=1e-5)
    assert found.metrics["reward_1500"] == pytest.approx(1500 / found.metrics["us"], abs=1e-5)
    assert found.metrics["us"] > found.metrics["ideal_us"] > 0
    assert "CPU us" in found.detail
    assert domain.score("search-00", tool.FUSED.answer) is found  # taken once
    with pytest.raises(UnknownName, match="search-00"):
        domain.score("search-0", tool.FUSED.answer)
    with pytest.raises(ValueError, match="dtype"):
        domain.score("search-00", {"dtype": "fp8"})


def test_a_wrong_output_is_worth_nothing_however_fast(monkeypatch):
    monkeypatch.setattr(stopwatch, "custom_kernel", lambda x, mask, weights, config: torch.zeros_like(x))
    case = Case(8, 1, 16)
    timing = stopwatch.timed(lay_out(case, 0), tool.FUSED.answer, tool.PLAIN.answer, 1)
    found = scored(case, timing, cpu(1))
    assert (found.reward, found.success, found.failure) == (0.0, False, "wrong")
    assert "out of tolerance" in found.detail


@pytest.mark.parametrize(("us", "success"), [(94.0, True), (96.0, False), (100.0, False), (200.0, False)])
def test_success_is_five_percent_faster(us, success):
    found = scored(Case(8, 1, 16), Timing(us, 100.0), cpu(1))
    assert found.success is success
    assert found.reward == pytest.approx(100 / (100 + us), abs=1e-6)


def test_controls_are_on_every_split_and_random_search_spends_its_budget(domain, monkeypatch):
    asked = []
    score = type(domain).score
    monkeypatch.setattr(
        type(domain), "score", lambda self, item, a: asked.append((item, tool.render(a))) or score(self, item, a)
    )
    found = domain.controls(4, 0)
    assert {(c.name, c.split) for c in found} == {
        (name, split) for name in ("plain", "fused", "random-search") for split in SPLITS
    }
    drawn = {answer for item, answer in asked if item == "search-00"} - {
        tool.render(r.answer) for r in tool.SPEC.references
    }
    assert len(drawn) == 2  # four scorings on two search items


def test_what_is_shown_is_what_is_read():
    for answer in form.grid(tool.PARAMETERS):
        text = tool.render(answer)
        read = dict(part.split("=") for part in text.split())
        assert {name: str(value) for name, value in answer.items()} == read
        assert tool.parse(answer) == answer
    assert tool.parse({}) == tool.PLAIN.answer
    with pytest.raises(ValueError, match="fuze"):
        tool.parse({"fuze": 1})
    with pytest.raises(ValueError, match="'fuse' is True"):
        tool.parse({"fuse": True})
