"""Charges as text, and the scores: every flaw of the published one worked by hand, beside what corrects it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lawbench_given import CHARGES

from resia.domains.lawbench.charges import SEPARATOR, UNLISTED, NotListed, written
from resia.domains.lawbench.scoring import PROTOCOLS, f1, judge_charges, judge_text, official_set

sets = st.sets(st.sampled_from(CHARGES.names))


def official(text: str, *gold: str) -> dict[str, float]:
    return judge_text("official", text, gold, CHARGES).scores


# -- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "盗窃",
        "盗窃罪",
        " 盗 窃\u3000",
        "[盗窃]",
        "“盗窃罪”。",
        "【盗窃】",
        "盗窃；",
        "；盗窃罪;",
        "\n盗窃\n",
        "盗窃;盗窃罪",
    ],
)
def test_a_name_is_known_whatever_its_width_marks_and_final_character(text):
    assert CHARGES.several(text) == ("盗窃",)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("盗窃;诈骗", {"盗窃", "诈骗"}),
        ("诈骗罪；盗窃罪", {"盗窃", "诈骗"}),
        ("盗窃、诈骗", {"盗窃", "诈骗"}),
        ("盗窃，诈骗", {"盗窃", "诈骗"}),
        ("盗窃\n合同诈骗", {"盗窃", "合同诈骗"}),
        # A name with a comma inside is one name, in whatever width the comma is written.
        ("走私、贩卖、运输、制造毒品", {"走私、贩卖、运输、制造毒品"}),
        ("走私，贩卖，运输，制造毒品罪", {"走私、贩卖、运输、制造毒品"}),
        ("[走私、贩卖、运输、制造]毒品", {"走私、贩卖、运输、制造毒品"}),
        ("盗窃、侮辱尸体;抢劫", {"盗窃、侮辱尸体", "抢劫"}),
        ("", set()),
        (" ;。; ", set()),
    ],
)
def test_a_list_of_names_is_a_set(text, names):
    assert set(CHARGES.several(text)) == names


@pytest.mark.parametrize("text", ["偷窃", "盗窃;偷窃", "盗窃、偷窃", "theft", "盗窃或者诈骗", "罪", "\ud800"])
def test_a_name_that_is_on_no_list_is_refused_with_its_like(text):
    with pytest.raises(NotListed, match="unknown charge"):
        CHARGES.several(text)


@given(st.text(max_size=30))
def test_any_text_is_names_or_refused(text):
    try:
        assert set(CHARGES.several(text)) <= set(CHARGES.names)
    except NotListed:
        assert text
    assert set(CHARGES.found(text)) <= set(CHARGES.names)
    assert written(written(text)) == written(written(written(text)))


@given(sets, st.randoms())
def test_a_set_is_written_one_way(names, random):
    listed = random.sample(sorted(names), len(names))
    text = SEPARATOR.join(CHARGES.ordered(listed))
    assert text == SEPARATOR.join(CHARGES.several(SEPARATOR.join(listed)))
    assert CHARGES.found(f"判决如下:{text}。") == CHARGES.ordered(names)


# -- the published score and its flaws -------------------------------------------------------------------------------


def test_the_list_of_the_benchmark_lacks_thirteen_names():
    assert len(UNLISTED) == 13
    assert set(CHARGES.names) - set(CHARGES.official) == {"爆炸", "走私"}


def test_f1_of_two_of_three():
    """P = {盗窃, 抢劫}, G = {盗窃, 诈骗}: precision 1/2, recall 1/2."""
    scores = official("[罪名]盗窃;抢劫<eoa>", "盗窃", "诈骗")
    assert scores == {"official": 0.5, "abstention_rate": 0.0, "corrected": 0.5, "exact": 0.0}


def test_flaw_one_a_charge_off_the_list_can_never_be_right():
    """G = {爆炸}: the right answer is no prediction at all, and counts as an abstention."""
    scores = official("[罪名]爆炸<eoa>", "爆炸")
    assert scores == {"official": 0.0, "abstention_rate": 1.0, "corrected": 1.0, "exact": 1.0}


def test_flaw_two_a_short_name_inside_a_long_one_is_a_second_prediction():
    """G = {合同诈骗}, P = {合同诈骗, 诈骗}: F1 = 2 * 1 / (2 + 1)."""
    scores = official("[罪名]合同诈骗<eoa>", "合同诈骗")
    assert scores["official"] == pytest.approx(2 / 3)
    assert (scores["corrected"], scores["exact"]) == (1.0, 1.0)


def test_flaw_two_pays_for_a_wrong_answer_too():
    """G = {诈骗} and the answer names another crime that ends in the same words."""
    scores = official("[罪名]合同诈骗<eoa>", "诈骗")
    assert scores["official"] == pytest.approx(2 / 3)
    assert scores["corrected"] == 0.0


def test_flaw_three_any_text_counts_the_question_and_a_denial_included():
    """The prompt's own example, 盗窃;诈骗, is a prediction when it is repeated; so is a charge that is ruled out."""
    echo = official("例如[罪名]盗窃;诈骗<eoa>。答:[罪名]抢劫<eoa>", "抢劫")
    assert echo["official"] == pytest.approx(2 / (3 + 1))
    assert echo["corrected"] == 1.0
    denial = official("不构成盗窃罪。[罪名]抢劫<eoa>", "抢劫")
    assert denial["official"] == pytest.approx(2 / 3)
    assert denial["corrected"] == 1.0


def test_the_published_score_takes_a_text_as_it_stands():
    """No width is folded: a name with a full-width comma or a space is none."""
    scores = official("[罪名]盗 窃<eoa>", "盗窃")
    assert (scores["official"], scores["abstention_rate"], scores["corrected"]) == (0.0, 1.0, 1.0)


@given(sets, sets)
def test_f1_is_that_of_precision_and_recall(predicted, gold):
    right = len(predicted & gold)
    precision = right / len(predicted) if predicted else 0.0
    recall = right / len(gold) if gold else 0.0
    expected = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    assert f1(predicted, gold) == pytest.approx(expected, abs=1e-15)
    assert f1(predicted, gold) == f1(gold, predicted)


@given(sets.filter(bool))
def test_the_corrected_score_of_a_right_answer_is_one_and_the_published_one_no_more(gold):
    scores = official(f"[罪名]{SEPARATOR.join(gold)}<eoa>", *gold)
    assert (scores["corrected"], scores["exact"]) == (1.0, 1.0)
    assert scores["official"] <= 1.0
    # Without the flaws' causes the two agree.
    nested = {"诈骗", "合同诈骗", "走私废物", "走私、贩卖、运输、制造毒品", "盗窃、侮辱尸体"} & gold
    if not nested and not gold & UNLISTED:
        assert scores["official"] == 1.0


@given(sets.filter(bool), sets.filter(bool))
def test_a_parsed_answer_and_its_text_score_alike(predicted, gold):
    text = f"[罪名]{SEPARATOR.join(predicted)}<eoa>"
    for protocol in ("official", "set-exact"):
        parsed = judge_charges(protocol, sorted(predicted), gold, CHARGES).scores
        assert parsed.items() <= judge_text(protocol, text, gold, CHARGES).scores.items()


# -- the other protocols ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "score", "invalid"),
    [
        ("[罪名]诈骗;盗窃<eoa>", 1.0, ""),
        ("诈骗罪；盗窃罪", 1.0, ""),
        ("[罪名]盗窃<eoa>", 0.0, ""),
        ("[罪名]盗窃;诈骗;抢劫<eoa>", 0.0, ""),
        ("[罪名]盗窃;诈骗", 0.0, "truncated"),
        ("[罪名]盗窃;偷窃<eoa>", 0.0, "unknown_label"),
        ("我认为是盗窃和诈骗", 0.0, "unknown_label"),
        ("", 0.0, "empty"),
        ("[罪名] <eoa>", 0.0, "empty"),
    ],
)
def test_set_exact_wants_the_whole_set(text, score, invalid):
    verdict = judge_text("set-exact", text, ("盗窃", "诈骗"), CHARGES)
    assert (verdict.scores["exact"], verdict.invalid) == (score, invalid)


@pytest.mark.parametrize(
    ("text", "score", "invalid"),
    [
        ("诈骗", 1.0, ""),
        ("[罪名]诈骗罪<eoa>", 1.0, ""),
        ("合同诈骗", 0.0, ""),
        ("诈骗;盗窃", 0.0, "several_labels"),
        ("诈 骗 罪。", 1.0, ""),
        ("敲诈", 0.0, "unknown_label"),
        ("\n", 0.0, "empty"),
        ("；", 0.0, "empty"),
        ("[罪名]诈骗", 0.0, "truncated"),
    ],
)
def test_single_wants_the_one_name(text, score, invalid):
    verdict = judge_text("single", text, ("诈骗",), CHARGES)
    assert (verdict.scores["accuracy"], verdict.invalid) == (score, invalid)
    assert bool(verdict.detail) == bool(invalid)


@given(st.sampled_from(PROTOCOLS), st.text(max_size=40), sets.filter(bool))
def test_any_text_has_a_score_in_range(protocol, text, gold):
    verdict = judge_text(protocol, text, sorted(gold), CHARGES)
    assert all(0.0 <= value <= 1.0 for value in verdict.scores.values())
    if verdict.invalid and protocol != "official":
        assert not any(verdict.scores.values())


def test_the_official_set_is_of_substrings():
    assert official_set("走私废物罪", CHARGES.official) == {"走私废物"}
    assert official_set("", CHARGES.official) == frozenset()
