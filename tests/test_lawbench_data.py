"""Where facts come from, what is wrong with files, near-duplicates and splits."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lawbench_given import FACTS, GOLD, REAL, folder, needs_real

from resia.domains.lawbench.charges import UNLISTED, plain
from resia.domains.lawbench.corpus import load
from resia.domains.lawbench.facts import SPLITS, Fact, merged
from resia.domains.lawbench.near import NEAR, grams, groups, near_pairs
from resia.domains.lawbench.options import LawBenchOptions
from resia.domains.lawbench.records import read_folder
from resia.domains.lawbench.splits import SHARES, lay_out, sample
from resia.domains.lawbench.tables import Columns, _numbered
from resia.events.errors import UnknownName, UsageError

HEAD = "fact,charge,split"


def table(tmp_path, *rows: str, name: str = "t.csv"):
    path = tmp_path / name
    path.write_text("\n".join(rows), encoding="utf-8")
    return path


def corpus(path, protocol="single", **options):
    return load(LawBenchOptions(protocol=protocol, path=str(path), **options))


def ids(layout) -> dict[str, list[str]]:
    return {split: [fact.id for fact in layout.facts[split]] for split in SPLITS}


# -- the benchmark's own folder --------------------------------------------------------------------------------------


def test_3_1_is_cut_at_its_last_mark_so_that_no_label_is_in_the_facts(tmp_path):
    found = corpus(folder(tmp_path / "f"))
    facts = {fact.id: fact for split in SPLITS for fact in found.layout.facts[split]}
    assert facts["3-1/002"].charges == ("走私",)
    assert facts["3-1/002"].text == "某乙供述其罪名:抢劫不实，实系偷运弹药入境。"
    assert not any("走私" in fact.text for fact in facts.values())


def test_facts_of_both_files_are_one_fact(tmp_path):
    found = corpus(folder(tmp_path / "f"))
    assert found.repeated == 2
    every = [name for names in ids(found.layout).values() for name in names]
    assert len(every) == len(set(every)) == 11  # 12 and one more, less two of two charges
    assert {"3-1/000", "3-1/001"}.isdisjoint(every)


def test_set_exact_takes_the_published_split_and_nothing_else(tmp_path):
    path = folder(tmp_path / "f")
    given = {"search": [0, 1, 2, 3], "validation": [4, 5], "test": [6, 7, 8]}
    named = {split: [f"3-3/{n:03d}" for n in numbers] for split, numbers in given.items()}
    assert ids(corpus(path, "set-exact").layout) == named
    more = ids(corpus(path, "set-exact", all_facts=True).layout)
    assert more["test"] == named["test"]
    assert set(more["search"]) == {*named["search"], "3-3/009", "3-3/010", "3-3/011", "3-1/002"}


def test_official_wants_the_whole_of_3_3(tmp_path):
    with pytest.raises(UsageError, match="needs task 3-3 whole, 500 records of 202 charges, and the data have 12 rec"):
        corpus(folder(tmp_path / "f"), "official")


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("zero_shot/3-3.json", "", "3-3.json is empty"),
        ("zero_shot/3-3.json", '[{"question": "事实:', "is no whole JSON file .*cut off"),
        ("zero_shot/3-3.json", "{}", "is no list of records"),
        ("zero_shot/3-3.json", '[{"question": 1, "answer": ""}]', "record 0 of .* has no question and answer"),
        ("zero_shot/3-3.json", '[{"question": "事实:x", "answer": "罪名:"}]', "lacks its facts or its charge"),
        ("zero_shot/3-1.json", '[{"question": "事实:x", "answer": ""}]', "record 0 of .*3-1.json lacks"),
        ("split_meta_harness_200_50_100.json", "{}", "has no list 'train'"),
        ("split_meta_harness_200_50_100.json", '{"train": [1], "val": [1], "test": [2]}', "puts record 1 into two"),
        ("split_meta_harness_200_50_100.json", '{"train": [500], "val": [1], "test": [2]}', "0 to 499"),
    ],
)
def test_a_file_that_is_off_is_named(tmp_path, name, text, sentence):
    path = folder(tmp_path / "f")
    (path / name).write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=sentence):
        corpus(path, "set-exact")


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"has no zero_shot/3-3\.json"):
        corpus(tmp_path)
    (folder(tmp_path / "f") / "split_meta_harness_200_50_100.json").unlink()
    with pytest.raises(UsageError, match="put it there, or choose protocol single"):
        corpus(tmp_path / "f", "set-exact")
    with pytest.raises(UsageError, match="neither a folder nor a table"):
        corpus(tmp_path / "nowhere")
    (tmp_path / "f" / "zero_shot" / "3-3.json").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="is not UTF-8 at byte 0"):
        corpus(tmp_path / "f")


# -- tables and data sets --------------------------------------------------------------------------------------------


def test_a_csv_with_splits_is_taken_as_it_says(tmp_path):
    rows = [f'"{fact}",{GOLD[n]},{"train" if n < 8 else "test"}' for n, fact in enumerate(FACTS)]
    found = corpus(table(tmp_path, HEAD, *rows))
    assert [len(found.layout.facts[split]) for split in SPLITS] == [6, 1, 3]  # two charges are no single label
    assert ids(found.layout)["test"] == ["row/9", "row/10", "row/11"]
    assert set(found.charges.names) == {"盗窃", "诈骗", "抢劫", "爆炸", "合同诈骗"}


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_json_is_read_with_its_own_names_for_columns(tmp_path, suffix):
    rows = [
        {"text": fact, "crimes": [f"[{gold}]罪"]} for fact, gold in zip(FACTS, GOLD, strict=True) if ";" not in gold
    ]
    text = json.dumps(rows) if suffix == ".json" else "\n".join(map(json.dumps, rows))
    found = corpus(table(tmp_path, text, name=f"t{suffix}"), fact_column="text", charge_column="crimes")
    assert sum(map(len, ids(found.layout).values())) == 10
    assert "盗窃" in found.charges.names


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([], "has no rows"),
        ([HEAD], "has no rows"),
        (["text,charge", "x,盗窃"], "has no column 'fact', only text, charge"),
        ([HEAD, "x,盗窃"], "line 2 of .* has not the 3 columns"),
        ([HEAD, ",盗窃,train"], "row 0 of .* lacks its facts"),
        ([HEAD, "x,;,train"], "row 0 of .* lacks its facts or its charge"),
        ([HEAD, "x,盗窃,tset"], "unknown split of row 0 .* 'tset': did you mean test"),
        (["charge,fact", '盗窃,"被告人某甲'], "line 2 of .* is no CSV"),
    ],
)
def test_a_table_that_is_off_is_named(tmp_path, rows, sentence):
    with pytest.raises(UsageError, match=sentence):
        corpus(table(tmp_path, *rows))


@pytest.mark.parametrize("text", ['{"fact": "x"', "[1]", "1" * 5000])
def test_a_cut_off_line_is_named(tmp_path, text):
    with pytest.raises(UsageError, match="line 2 of"):
        corpus(table(tmp_path, '{"fact": "x", "charge": "盗窃"}', text, name="t.jsonl"))


@pytest.mark.parametrize("charge", [{"name": "盗窃"}, [{"name": "盗窃"}], [["盗窃"]]])
def test_a_charge_that_is_no_text_is_named_and_no_class(tmp_path, charge):
    text = json.dumps([{"fact": "x", "charge": charge}])
    with pytest.raises(UsageError, match=r"row 0 of .* has no text as its charge but .*: give a text, or a list"):
        corpus(table(tmp_path, text, name="t.json"))


@pytest.mark.parametrize("half", [{"fact": "某\ud83d乙"}, {"charge": "盗\udc00窃"}])
def test_half_a_character_is_named(tmp_path, half):
    text = json.dumps([{"fact": "x", "charge": "盗窃"}, {"fact": "y", "charge": "诈骗", **half}])
    with pytest.raises(UsageError, match=r"fact row/1 holds half a character, \\ud"):
        corpus(table(tmp_path, text, name="t.json"))


@pytest.mark.parametrize("several", [False, True])
def test_numbers_of_a_data_set_are_the_labels_that_they_stand_for(tmp_path, several):
    datasets = pytest.importorskip("datasets")
    label = datasets.ClassLabel(names=["盗窃", "诈骗"])
    kind = datasets.Features({"fact": datasets.Value("string"), "charge": [label] if several else label})
    rows = [{"fact": fact, "charge": [n % 2] if several else n % 2} for n, fact in enumerate(FACTS)]
    part = datasets.Dataset.from_list(rows, features=kind)
    found = list(_numbered("made", [("train", part)], Columns("fact", "charge", ("train", "validation", "test"))))
    assert [fact.charges for fact in found] == [("盗窃",), ("诈骗",)] * 6
    unknown = datasets.Dataset.from_list([{"fact": "x", "charge": [-1] if several else -1}], features=kind)
    with pytest.raises(UsageError, match="row 0 of data set 'made' lacks its facts or its charge"):
        list(_numbered("made", [("train", unknown)], Columns("fact", "charge", ("train", "validation", "test"))))


def test_a_data_set_is_loaded_by_the_package_datasets(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "hub").mkdir()
    for name, part in (("train", slice(0, 8)), ("test", slice(8, 12))):
        rows = zip(FACTS[part], GOLD[part], strict=True)
        text = "\n".join(json.dumps({"fact": fact, "charge": gold}) for fact, gold in rows)
        table(tmp_path / "hub", text, name=f"{name}.jsonl")
    found = load(LawBenchOptions(protocol="set-exact", hub=str(tmp_path / "hub")))
    assert [len(found.layout.facts[split]) for split in SPLITS] == [7, 1, 4]
    with pytest.raises(UnknownName, match=r"split of data set .* 'none'"):
        load(LawBenchOptions(hub=str(tmp_path / "hub"), search_split="none", validation_split="no", test_split="nil"))
    with pytest.raises(UsageError, match=r"data set '.*gone' cannot be loaded"):
        load(LawBenchOptions(hub=str(tmp_path / "gone")))


@pytest.mark.parametrize("given", [{}, {"path": "x", "synthetic": True}, {"hub": "x", "path": "y"}])
def test_there_is_one_source(given):
    with pytest.raises(UsageError, match="needs one source of facts"):
        LawBenchOptions(**given)


# -- near-duplicates and splits --------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text("甲乙丙丁", min_size=0, max_size=14), max_size=9))
def test_near_pairs_are_those_that_sets_of_grams_say(texts):
    def pieces(text):
        return {text[i : i + 5] for i in range(max(len(text) - 4, 1))}

    expected = []
    for j in range(len(texts)):
        for i in range(j):
            one, two = pieces(texts[i]), pieces(texts[j])
            if len(one & two) >= NEAR * min(len(one), len(two)):
                expected.append((i, j))
    assert near_pairs(texts) == sorted(expected)


def test_marks_and_spaces_make_no_text_another():
    assert grams("盗窃，手机 一部；").tolist() == grams("盗窃,手机一部;").tolist()
    assert groups(5, [(3, 4), (1, 3)]) == [0, 1, 2, 1, 1]


def made(count: int, classes: int) -> list[Fact]:
    return [Fact(f"f/{n}", f"{chr(0x4E00 + n)}" * 9, (f"罪{n % classes}",)) for n in range(count)]


@settings(max_examples=40, deadline=None)
@given(st.integers(3, 80), st.integers(1, 9), st.integers(0, 5))
def test_drawn_splits_divide_the_facts_by_class(count, classes, seed):
    facts = made(count, classes)
    layout = lay_out(facts, seed)
    assert sorted(name for names in ids(layout).values() for name in names) == sorted(fact.id for fact in facts)
    assert layout == lay_out(facts, seed)
    for split in SPLITS:
        assert abs(len(layout.facts[split]) - SHARES[split] * count) <= 1.0
        held = Counter(fact.charges for fact in layout.facts[split])
        for charges, total in Counter(fact.charges for fact in facts).items():
            assert abs(held[charges] - SHARES[split] * total) <= 2.0


def test_near_duplicates_never_straddle_a_drawn_split():
    facts = made(30, 3)
    text = "被告人某甲在东街第一号楼内用刀威胁他人并抢走现金三千元"
    copies = [Fact(f"n/{n}", f"{text}{'零一二三'[n]}", ("罪0",)) for n in range(4)]
    for seed in range(20):
        layout = lay_out([*facts, *copies], seed)
        assert len({s for s in SPLITS for fact in layout.facts[s] if fact.id.startswith("n/")}) == 1
        assert len({layout.group[copy.id] for copy in copies}) == 1
        assert layout.left_out == 0


def test_what_is_near_to_a_given_test_leaves_the_search():
    text = "被告人某甲在东街第一号楼内用刀威胁他人并抢走现金三千元"
    facts = [
        Fact("a", text, ("罪0",), "search"),
        Fact("b", f"{text}整", ("罪0",), "test"),
        Fact("c", f"{text}余", ("罪0",)),
        *(fact._replace(split="search") for fact in made(3, 1)),
    ]
    layout = lay_out(facts, 0)
    assert ids(layout) == {"search": ["f/0", "f/1", "f/2"], "validation": [], "test": ["b"]}
    assert layout.left_out == 2


def test_a_text_with_two_answers_is_left_out_and_copies_go_to_the_last_split():
    facts = [
        Fact("a", "甲 乙", ("罪0",), "search"),
        Fact("b", "甲乙", ("罪0",), "test"),
        Fact("c", "丙", ("罪0",)),
        Fact("d", " 丙", ("罪1",)),
    ]
    found = merged(facts)
    assert [(fact.id, fact.split) for fact in found.facts] == [("a", "test")]
    assert (found.repeated, found.contradictory) == (1, 2)


def test_a_sample_is_in_order_and_whole_for_none():
    facts = made(20, 2)
    some = sample(facts, 7, 3)
    assert len(some) == 7
    assert [fact for fact in facts if fact in some] == list(some)
    assert sample(facts, 0, 3) == sample(facts, 99, 3) == tuple(facts)
    assert sample(facts, 7, 4) != some


# -- the real files --------------------------------------------------------------------------------------------------


@needs_real
def test_the_real_pool_is_what_its_description_says():
    found = corpus(REAL)
    every = [fact for split in SPLITS for fact in found.layout.facts[split]]
    assert (len(every), len({fact.charges for fact in every}), found.repeated) == (672, 145, 86)
    assert (len(found.charges.names), len(found.charges.official)) == (202, 189)
    assert set(found.charges.names) >= UNLISTED
    assert [len(found.layout.facts[split]) for split in SPLITS] == [403, 67, 202]
    assert len({plain(fact.text) for fact in every}) == 672


@needs_real
def test_the_real_pool_has_one_pair_of_near_duplicates():
    facts = merged(read_folder(REAL)).facts
    assert len(facts) == 914
    ((one, two),) = near_pairs([fact.text for fact in facts])
    assert (facts[one].id, facts[two].id) == ("3-1/393", "3-1/446")


@needs_real
@pytest.mark.parametrize(
    ("protocol", "all_facts", "sizes"),
    [("official", False, [355, 59, 500]), ("set-exact", False, [200, 50, 100]), ("set-exact", True, [764, 50, 100])],
)
def test_no_real_fact_of_both_files_straddles_splits(protocol, all_facts, sizes):
    layout = corpus(REAL, protocol, all_facts=all_facts).layout
    assert [len(layout.facts[split]) for split in SPLITS] == sizes
    apart = [{layout.group[fact.id] for fact in layout.facts[split]} for split in SPLITS]
    assert sum(map(len, apart)) == len(set.union(*apart))
    for split in SPLITS:
        assert not any("罪名:" in fact.text and fact.text.endswith("。") is False for fact in layout.facts[split])
