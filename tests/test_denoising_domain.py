"""The domain as the loop sees it: items, the tool, scores and controls, on synthetic counts."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resia.domains import form
from resia.domains.denoising import tool
from resia.domains.denoising.controls import FIXED
from resia.domains.denoising.domain import Denoising, DenoisingOptions
from resia.domains.denoising.items import DEPTHS, SPLITS, pools, problems
from resia.domains.denoising.synthetic import synthetic_counts
from resia.domains.random_search import random_search
from resia.events.errors import UnknownName, UsageError

GRID = form.grid(tool.PARAMETERS)
OPTIONS = DenoisingOptions(synthetic=True, search_items=3, validation_items=3, test_items=3)
FINGERPRINT = """
from resia.domains.denoising.domain import Denoising, DenoisingOptions
d = Denoising(DenoisingOptions(synthetic=True, search_items=3, validation_items=3, test_items=3))
print(d.digest)
for split in ("search", "validation", "test"):
    for item in d.items(split):
        print(item.id, item.prompt, d.score(item.id, d.spec.references[0].answer))
"""


@pytest.fixture(scope="module")
def domain() -> Denoising:
    return Denoising(OPTIONS)


def test_pools_are_disjoint_and_items_stay_in_theirs():
    counts = synthetic_counts(0)
    pool = pools(counts, 7)
    sets = [set(pool[split].tolist()) for split in SPLITS]
    assert sum(map(len, sets)) == len(set.union(*sets)) == counts.cells
    for split, cells in zip(SPLITS, sets, strict=True):
        for problem in problems(split, pool[split], 9, 7):
            assert set(problem.cells.tolist()) <= cells
            assert len(set(problem.cells.tolist())) == len(problem.cells)


def test_nine_items_of_a_split_have_nine_settings():
    made = problems("test", np.arange(100), 9, 0)
    assert {(problem.depth, len(problem.cells)) for problem in made} == {(d, c) for d in DEPTHS for c in (30, 60, 90)}
    assert made[1].item.prompt == "cells=60 depth=0.3"


def test_seeds_change_the_items():
    counts = synthetic_counts(0)
    first, second = (problems("search", pools(counts, seed)["search"], 3, seed) for seed in (0, 1))
    assert [p.cells.tolist() for p in first] != [p.cells.tolist() for p in second]


def test_another_process_makes_the_same_items_and_scores():
    here = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"}
    runs = [
        subprocess.run([sys.executable, "-c", FINGERPRINT], env=here, capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    assert runs[0] == runs[1]
    assert runs[0].startswith(Denoising(OPTIONS).digest)


def test_the_digest_follows_data_and_options_but_not_the_path(tmp_path):
    from resia.domains.denoising.data import save_counts

    digests = {Denoising(OPTIONS).digest, Denoising(DenoisingOptions(synthetic=True)).digest}
    for name in ("a", "b"):
        save_counts(synthetic_counts(0), tmp_path / f"{name}.npz")
        digests.add(Denoising(DenoisingOptions(path=str(tmp_path / f"{name}.npz"))).digest)
    assert len(digests) == 3
    assert all(len(digest) == len(hashlib.sha256().hexdigest()) for digest in digests)


@given(st.sampled_from(GRID))
def test_every_configuration_is_parsed_as_it_stands_and_written_uniquely(answer):
    assert tool.parse(answer) == answer
    words = dict(word.split("=") for word in tool.render(answer).split(" "))
    assert words == {name: str(value) for name, value in answer.items()}
    assert tool.render(dict(reversed(answer.items()))) == tool.render(answer)


VALID = {"knn": 5, "t": 3, "order": "rev", "log": 0, "scale": 1, "round": 0}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"knn": 13}, "argument 'knn' is 13: choose one of 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12"),
        ({"knn": "5"}, "argument 'knn' is '5'"),
        ({"knn": 5.0}, "argument 'knn' is 5.0"),
        ({"log": True}, "argument 'log' is True"),
        ({"order": "reversed"}, "choose one of rev, std"),
        ({"order": None}, "argument 'order' is None"),
        ({"knn": [5]}, r"argument 'knn' is \[5\]"),
        ({"pcs": 20}, "argument 'pcs' is unknown: give knn, t, order, log, scale, round"),
    ],
)
def test_a_wrong_argument_is_named_with_its_choices(domain, change, sentence):
    with pytest.raises(ValueError, match=sentence):
        domain.parse({**VALID, **change})


@pytest.mark.parametrize("name", [parameter.name for parameter in tool.PARAMETERS])
def test_a_missing_argument_takes_its_default(domain, name):
    given = {key: value for key, value in VALID.items() if key != name}
    assert domain.parse(given)[name] == next(p.default for p in tool.PARAMETERS if p.name == name)


def test_the_spec_holds_together(domain):
    spec = domain.spec
    answers = [reference.answer for reference in spec.references] + list(spec.neutral_answers)
    assert [domain.parse(answer) for answer in answers] == answers
    assert len({domain.render(answer) for answer in spec.neutral_answers}) == 6
    for parameter in spec.parameters:
        assert parameter.default in parameter.choices
        assert len({answer[parameter.name] for answer in spec.neutral_answers}) > 1
        assert f"{parameter.name} (" in spec.instruction
    assert domain.render(spec.references[0].answer) in spec.instruction


def test_denoising_helps_and_the_reference_does_not_beat_itself(domain):
    reference, standard = domain.spec.references
    scores = [domain.score(item.id, reference.answer) for item in domain.items("search")]
    assert all(score.reward > 0.01 for score in scores)
    assert not any(score.success for score in scores)
    assert all(score.metrics["reference"] == score.reward == score.metrics["audited"] for score in scores)
    other = domain.score("search-00", standard.answer)
    assert other.success == (other.reward > other.metrics["reference"])


def test_an_invalid_answer_says_which_audit_failed(domain):
    score = domain.score("search-02", {**VALID, "scale": 0, "round": 1})
    assert (score.reward, score.success, score.failure) == (0.0, False, "wrong")
    assert "all-zero cells" in score.detail
    assert score.metrics["valid"] == 0.0


def test_the_best_configuration_depends_on_the_item(domain):
    grid = [a for a in GRID if (a["order"], a["log"], a["scale"], a["round"]) == ("rev", 1, 1, 0)]
    best = {item.id: max(grid, key=lambda a: domain.score(item.id, a).reward) for item in domain.items("search")}
    assert len({domain.render(answer) for answer in best.values()}) > 1


@settings(deadline=None, max_examples=25)
@given(st.sampled_from(GRID), st.sampled_from(["search-01", "validation-00", "test-02"]))
def test_scores_are_in_range_and_repeatable(answer, item):
    score = SHARED.score(item, answer)
    assert 0.0 <= score.reward <= 1.0
    assert (score.failure == "wrong") == (score.metrics["valid"] == 0.0)
    assert score.reward == score.metrics["audited"]
    assert {"published", "mse_norm", "poisson_norm", "poisson_norm_published"} <= score.metrics.keys()
    assert SHARED.score(item, answer) == score


SHARED = Denoising(OPTIONS)


def test_an_unknown_item_is_named(domain):
    with pytest.raises(UnknownName, match="unknown item 'serch-00'"):
        domain.score("serch-00", VALID)


def test_controls_cover_every_split_and_reward_no_trick(domain):
    scores = domain.controls(12, 5)
    names = [*FIXED, "magic-reference", "random-search"]
    assert [(score.split, score.name) for score in scores] == [(split, name) for split in SPLITS for name in names]
    for score in scores:
        assert score.items == 3
        assert score.mean == score.metrics["audited"]
        assert "published" in score.metrics
        if score.name in ("all-zero", "shrunk", "undenoised"):
            assert score.mean == 0.0
    found = {score.answer for score in scores if score.name == "random-search"}
    assert len(found) == 1
    assert domain.controls(12, 5) == scores


def test_random_search_spends_its_budget_on_search_items_only():
    spent = []

    def mean_reward(answer):
        spent.append(tool.render(answer))
        return float(answer["knn"])

    best = random_search(tool.PARAMETERS, mean_reward, items=3, budget=35, seed=1)
    assert len(spent) == len(set(spent)) == 11
    assert best["knn"] == max(int(text.split()[0].removeprefix("knn=")) for text in spent)


@pytest.mark.parametrize("budget", [0, 3, 5])
def test_random_search_without_a_choice_takes_the_first_draw_unseen(budget):
    def forbidden(answer):
        raise AssertionError("nothing may be scored")

    assert random_search(tool.PARAMETERS, forbidden, items=3, budget=budget, seed=1) in GRID


def test_random_search_with_more_budget_is_no_worse(domain):
    means = []
    for budget in (3, 30, 150):
        scores = {(score.split, score.name): score.mean for score in domain.controls(budget, 2)}
        means.append(scores["search", "random-search"])
    assert means == sorted(means)


@pytest.mark.parametrize("options", [DenoisingOptions(), DenoisingOptions(path="x.npz", synthetic=True)])
def test_the_source_of_counts_must_be_one(options):
    with pytest.raises(UsageError, match="either the option path"):
        Denoising(options)


def test_too_few_cells_are_refused():
    with pytest.raises(UsageError, match="lower min_cells_per_gene"):
        Denoising(DenoisingOptions(synthetic=True, min_cells_per_gene=241))


def test_the_package_imports_no_numpy():
    code = "import sys, resia.domains.denoising; sys.exit('numpy' in sys.modules)"
    root = Path(__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
