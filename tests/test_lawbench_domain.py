"""The domain as the loop sees it, on made-up cases and on the real ones: items, the tool, what is learned, controls."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lawbench_given import REAL, folder, needs_real

from resia.agents.operators import CATALOGUE, SearchView, Seen, applicable
from resia.agents.proposing import first_harness
from resia.domains.admission import examine
from resia.domains.base import FileScored
from resia.domains.lawbench.charges import plain
from resia.domains.lawbench.domain import LawBench
from resia.domains.lawbench.facts import SPLITS
from resia.domains.lawbench.learned import FOLDS
from resia.domains.lawbench.options import LawBenchOptions
from resia.domains.lawbench.tools import OFFERED
from resia.domains.registry import domain_names, load_domain
from resia.domains.trials import Plan
from resia.events.errors import UnknownName, UsageError

WHOLE = {"search_items": 0, "validation_items": 0, "test_items": 0}
FINGERPRINT = """
from resia.domains.registry import load_domain
d = load_domain("lawbench", {"synthetic": True, "search_items": 4, "validation_items": 4, "test_items": 4})
print(d.digest, d.items("test"), [(c.name, c.split, c.mean) for c in d.controls(9, 3)])
"""


def made(**options) -> LawBench:
    return LawBench(LawBenchOptions(synthetic=True, **{**WHOLE, **options}))


SINGLE, SETS, OFFICIAL = (made(protocol=name) for name in ("single", "set-exact", "official"))
DOMAINS = pytest.mark.parametrize("domain", [SINGLE, SETS, OFFICIAL], ids=["single", "set-exact", "official"])


def gold(domain: LawBench) -> dict[str, tuple[str, ...]]:
    return {fact.id: fact.charges for split in SPLITS for fact in domain.corpus.layout.facts[split]}


@DOMAINS
def test_the_spec_holds_together(domain):
    spec, (parameter,) = domain.spec, domain.spec.parameters
    answers = [reference.answer for reference in spec.references] + list(spec.neutral_answers)
    assert [domain.parse(answer) for answer in answers] == answers
    assert len({domain.render(answer) for answer in spec.neutral_answers}) == 6
    assert parameter.default in parameter.choices
    assert spec.binary == (domain is not OFFICIAL)
    assert bool(parameter.separator) == (domain is not SINGLE)
    assert (";" in spec.instruction) == (domain is not SINGLE)
    harness = first_harness(spec)
    longest = max(parameter.choices, key=len)
    assert harness.retry_policy.max_new_tokens >= len(f"charge={longest}".encode())


@DOMAINS
def test_an_answer_scores_what_its_charges_are_worth(domain):
    for split in SPLITS:
        for item in domain.items(split)[:5]:
            right = ";".join(gold(domain)[item.id])
            score = domain.score(item.id, {"charge": right})
            assert (score.reward, score.success, score.failure) == (1.0, True, None)
            other = next(name for name in domain.spec.parameters[0].choices if name not in right)
            assert domain.score(item.id, {"charge": other}).reward == 0.0
            assert not domain.score(item.id, {"charge": other}).success


def test_two_of_three_is_half_a_reward_where_f1_is_asked_for_and_nothing_where_the_set_is():
    item, charges = next((name, held) for name, held in gold(OFFICIAL).items() if len(held) == 2)
    assert OFFICIAL.score(item, {"charge": charges[0]}).reward == pytest.approx(2 / 3)
    assert "official" in OFFICIAL.score(item, {"charge": charges[0]}).metrics
    item, charges = next((name, held) for name, held in gold(SETS).items() if len(held) == 2)
    score = SETS.score(item, {"charge": charges[0]})
    assert (score.reward, score.metrics["corrected"]) == (0.0, pytest.approx(2 / 3))


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        ({}, "argument 'charge' is None"),
        ({"charge": ""}, "argument 'charge' is ''"),
        ({"charge": 5}, "argument 'charge' is 5"),
        ({"charge": ["盗窃"]}, r"argument 'charge' is \['盗窃'\]"),
        ({"charge": "偷窃"}, "unknown charge '偷窃': did you mean 盗窃"),
        ({"charge": "盗窃;诈骗"}, "names 2 charges, 盗窃;诈骗: give one"),
        ({"crime": "盗窃"}, "argument 'crime' is unknown: give charge"),
    ],
)
def test_a_wrong_answer_is_named(request_, sentence):
    with pytest.raises(ValueError, match=sentence):
        SINGLE.parse(request_)


@given(st.sets(st.sampled_from(SETS.spec.parameters[0].choices), min_size=1), st.randoms())
def test_a_set_has_one_text_whatever_its_order(names, random):
    listed = random.sample(sorted(names), len(names))
    answer = SETS.parse({"charge": "；".join(f"{name}罪" for name in listed)})
    assert SETS.parse(answer) == answer
    assert SETS.render(answer) == SETS.render(SETS.parse({"charge": ";".join(sorted(names))}))
    assert set(str(answer["charge"]).split(";")) == names


def test_a_search_of_one_fact_is_refused_before_a_tool_is_asked(tmp_path):
    rows = [
        "fact,charge,split",
        "甲乙丙丁戊己,盗窃,train",
        "甲乙丙丁戊己庚,盗窃,train",
        "子丑,诈骗,test",
        "寅卯,盗窃,validation",
    ]
    (tmp_path / "t.csv").write_text("\n".join(rows), encoding="utf-8")
    with pytest.raises(UsageError, match="the search has 1 fact, near-duplicates counted as one"):
        LawBench(LawBenchOptions(path=str(tmp_path / "t.csv")))


def test_a_charge_that_is_left_in_the_facts_is_found_by_the_check(tmp_path):
    """As it stands at the end of a question of 3-1 that nobody cut."""
    rows = [f"{chr(0x5000 + n) * 9},{'盗窃' if n % 2 else '诈骗'}" for n in range(24)]
    told = "\n".join(["fact,charge", *rows]).replace(f"{chr(0x5003) * 9},", f"{chr(0x5003) * 9}罪名:盗窃。,")
    (tmp_path / "t.csv").write_text(told, encoding="utf-8")
    domain = LawBench(LawBenchOptions(path=str(tmp_path / "t.csv"), **WHOLE))
    (finding,) = [found for found in examine(domain, Plan(1, 0)).findings if found.check == "gold"]
    assert (finding.passed, "row/3' holds its secret '罪名:盗窃'" in finding.detail) == (False, True)
    (finding,) = [found for found in examine(SINGLE, Plan(1, 0)).findings if found.check == "gold"]
    assert finding.passed


def test_items_are_the_facts_and_nothing_more():
    texts = {fact.id: fact.text for split in SPLITS for fact in SINGLE.corpus.layout.facts[split]}
    cut = made(fact_chars=10)
    for split in SPLITS:
        for item in SINGLE.items(split):
            assert item.prompt == texts[item.id]
        assert all(item.prompt == f"{texts[item.id][:10]}…" for item in cut.items(split))
    with pytest.raises(UnknownName, match="unknown item 'made/999'"):
        SINGLE.score("made/999", {"charge": "盗窃"})


def test_the_digest_follows_facts_and_options_but_not_the_path(tmp_path):
    digests = {SINGLE.digest, SETS.digest, OFFICIAL.digest, made(data_seed=1).digest, made(fact_chars=9).digest}
    for name in ("a", "b"):
        path = folder(tmp_path / name)
        digests.add(LawBench(LawBenchOptions(path=str(path), **WHOLE)).digest)
    assert len(digests) == 6
    held = json.loads((path / "zero_shot" / "3-3.json").read_text(encoding="utf-8"))
    held[0]["question"] += "又"
    (path / "zero_shot" / "3-3.json").write_text(json.dumps(held), encoding="utf-8")
    assert LawBench(LawBenchOptions(path=str(path), **WHOLE)).digest not in digests


def test_another_process_makes_the_same_items_and_controls():
    there = subprocess.run([sys.executable, "-c", FINGERPRINT], capture_output=True, text=True, check=True).stdout
    here = made(search_items=4, validation_items=4, test_items=4)
    expected = (here.digest, here.items("test"), [(c.name, c.split, c.mean) for c in here.controls(9, 3)])
    assert there == " ".join(map(str, expected)) + "\n"


# -- what is learned -------------------------------------------------------------------------------------------------


def test_the_tools_never_see_a_facts_own_charge():
    """With the labels of the search turned round, what is said of a search fact follows the others' labels."""
    learned = SINGLE._learned
    for fact in SINGLE.corpus.layout.facts["search"][:10]:
        near = learned.nearest(fact, fact.text, 200)
        assert fact.id not in {case.fact.id for case in near}
        assert max(case.likeness for case in near) < 0.999
        assert len(near) >= len(SINGLE.corpus.layout.facts["search"]) * (1 - 2 / FOLDS)
    searched = {fact.id for fact in SINGLE.corpus.layout.facts["search"]}
    for fact in SINGLE.corpus.layout.facts["test"]:
        near = learned.nearest(fact, fact.text, 999)
        assert {case.fact.id for case in near} == searched


def test_near_duplicates_of_a_search_fact_are_in_its_fold(tmp_path):
    text = "被告人某甲在东街第一号楼内用刀威胁他人并抢走现金三千元"
    others = [f"{chr(0x5000 + n) * 12}" for n in range(20)]
    rows = [
        *(f"{text}{c},抢劫" for c in "零一二三"),
        *(f"{other},{'盗窃' if n % 2 else '诈骗'}" for n, other in enumerate(others)),
    ]
    (tmp_path / "t.csv").write_text("\n".join(["fact,charge", *rows]), encoding="utf-8")
    for seed in range(9):
        domain = LawBench(LawBenchOptions(path=str(tmp_path / "t.csv"), data_seed=seed, **WHOLE))
        copies = [fact for fact in domain.corpus.layout.facts["search"] if text in plain(fact.text)]
        if copies:
            break
    assert len(copies) == 4
    assert len({domain.corpus.layout.group[fact.id] for fact in copies}) == 1
    for fact in copies:
        assert domain.call("nearest", fact.id, {}) != "抢劫"
        assert "抢劫" not in domain.call("shortlist", fact.id, {"count": 20})


def test_the_tools_answer_with_names_of_the_list():
    for domain, several in ((SINGLE, False), (SETS, True)):
        for item in (domain.items("search")[0], domain.items("test")[0]):
            for tool in ("svm", "nearest"):
                assert domain.render(domain.parse({"charge": domain.call(tool, item.id, {})}))
            shortlist = domain.call("shortlist", item.id, {"count": 3})
            assert len(shortlist) == 3
            assert shortlist[0] == domain.call("svm", item.id, {})
            assert several or not any(";" in name for name in shortlist)
            assert len(domain.call("similar", item.id, {"count": 2}).splitlines()) == 2


def test_a_tool_takes_another_text():
    item = SINGLE.items("test")[0]
    for fact in SINGLE.corpus.layout.facts["search"][:20]:
        assert SINGLE.call("nearest", item.id, {"text": fact.text}) == fact.charges[0]


@pytest.mark.parametrize(
    ("tool", "arguments", "sentence"),
    [
        ("svn", {}, "there is no tool 'svn': call svm, nearest, shortlist, similar"),
        ("svm", {"count": 3}, "argument 'count' of svm is unknown: give text"),
        ("svm", {"text": " "}, "argument 'text' of svm is ' '"),
        ("svm", {"text": 3}, "argument 'text' of svm is 3"),
        ("similar", {"count": 0}, "argument 'count' of similar is 0: give a whole number from 1 to 20"),
        ("shortlist", {"count": True}, "argument 'count' of shortlist is True"),
    ],
)
def test_a_tool_refuses_what_it_cannot_take(tool, arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        SINGLE.call(tool, SINGLE.items("test")[0].id, arguments)


def test_every_tool_that_is_offered_is_there():
    for tool in OFFERED:
        assert SINGLE.call(tool.name, SINGLE.items("test")[0].id, {})
        assert tool.gives in ("text", "label", "shortlist")


# -- controls --------------------------------------------------------------------------------------------------------


@DOMAINS
def test_controls_cover_every_split(domain):
    scores = domain.controls(12, 5)
    names = ["majority", "random", "nearest", "svm"]
    assert [(score.split, score.name) for score in scores] == [(split, name) for split in SPLITS for name in names]
    means = {(score.split, score.name): score.mean for score in scores}
    for score in scores:
        assert score.items == len(domain.items(score.split))
        assert 0.0 <= score.mean <= 1.0
        assert (score.answer != "") == (score.name == "majority")
    for split in SPLITS:
        assert means[split, "svm"] > 0.4 > means[split, "majority"]
    assert domain.controls(999, 5) == scores
    assert domain.controls(12, 6) != scores


def test_a_search_of_one_charge_has_that_for_an_answer(tmp_path):
    rows = [f"{chr(0x5000 + n) * 9},{'盗窃' if n < 9 else '诈骗'},{'train' if n < 9 else 'test'}" for n in range(12)]
    (tmp_path / "t.csv").write_text("\n".join(["fact,charge,split", *rows]), encoding="utf-8")
    domain = LawBench(LawBenchOptions(path=str(tmp_path / "t.csv"), **WHOLE))
    assert domain.call("shortlist", domain.items("test")[0].id, {}) == ["盗窃"]
    assert {(c.name, c.mean) for c in domain.controls(1, 0) if c.split == "test"} >= {("svm", 0.0), ("majority", 0.0)}


# -- with the rest ---------------------------------------------------------------------------------------------------


def test_the_domain_is_there_by_name_and_says_what_is_wrong_with_its_options():
    assert "lawbench" in domain_names()
    domain = load_domain("lawbench", {"synthetic": True})
    assert isinstance(domain, FileScored)
    with pytest.raises(UsageError, match="needs one source of facts"):
        load_domain("lawbench", {})
    with pytest.raises(UsageError, match=r"option protocol of the lawbench domain is 'exact': choose from .*set-exact"):
        load_domain("lawbench", {"synthetic": True, "protocol": "exact"})


@DOMAINS
def test_every_operator_edits_a_harness_of_the_domain(domain):
    harness = first_harness(domain.spec)
    names = applicable(harness, domain)
    assert {"demonstrate-neutral", "tolerant-extraction", "repair-arguments"} <= set(names)
    item = domain.items("search")[0]
    view = SearchView((item.prompt,), (Seen(item.id, item.prompt, "charge=盗窃", 1.0, "charge=盗窃"),))
    assert all(CATALOGUE[name].edit(harness, domain, view) != harness for name in names)


def test_the_package_imports_neither_numpy_nor_scikit_learn():
    code = "import sys, resia.domains.lawbench, resia.domains.registry; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    code = (
        "import sys; from resia.domains.registry import load_domain; load_domain('lawbench', {'synthetic': True});"
        " sys.exit('sklearn' in sys.modules or 'datasets' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@needs_real
def test_the_real_svm_reaches_what_classical_learning_is_known_to():
    """53.9 +- 1.9% on random thirds; one class alone reaches 2.5%."""
    domain = LawBench(LawBenchOptions(path=str(REAL), **WHOLE))
    searched = domain.corpus.layout.facts["test"]
    right = sum(domain.call("svm", fact.id, {}) == fact.charges[0] for fact in searched)
    assert right / len(searched) == pytest.approx(0.539, abs=3 * 0.019)
