"""`resia score`: files of answers in every form, what is wrong with them, and what the command says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from lawbench_given import GOLD, REAL, folder, needs_real

from resia.domains.lawbench.domain import LawBench
from resia.domains.lawbench.options import LawBenchOptions
from resia.events.errors import UsageError
from resia.runtime.cli import main

CHEAPEST = Path(__file__).resolve().parents[1] / "examples" / "cheapest.py"
TEST = (6, 7, 8)  # records of the published test split: 盗窃, 诈骗, 盗窃;诈骗


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return folder(tmp_path_factory.mktemp("law") / "f")


@pytest.fixture
def score(data, tmp_path):
    domain = LawBench(LawBenchOptions(protocol="set-exact", path=str(data)))

    def run(text: str, name: str = "p.jsonl", protocol: str = "set-exact"):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return domain.score_file(protocol, tmp_path / name)

    return run


def lines(*entries: object) -> str:
    return "\n".join(entry if isinstance(entry, str) else json.dumps(entry) for entry in entries)


def answers(numbers=TEST, **more):
    return {str(n): {"prediction": f"[罪名]{GOLD[n]}<eoa>", **more} for n in numbers}


@pytest.mark.parametrize("form", ["benchmark", "list", "lines", "csv", "texts"])
def test_every_form_of_file_is_read_alike(score, form):
    every = answers(range(12))
    rows = [{"id": f"3-3/{int(n):03d}", **entry} for n, entry in every.items()]
    name, text = {
        "benchmark": ("p.json", json.dumps(every)),
        "list": ("p.json", json.dumps(rows)),
        "lines": ("p.jsonl", lines(*rows)),
        "csv": ("p.csv", "id,prediction\n" + "\n".join(f"{n},{entry['prediction']}" for n, entry in every.items())),
        "texts": ("p.json", json.dumps([entry["prediction"] for entry in every.values()])),
    }[form]
    search, validation, test = score(text, name)
    assert (search.denominator, validation.denominator, test.denominator) == (4, 2, 3)
    for found in (search, validation, test):
        assert (found.scores["exact"], found.coverage, found.invalid) == (1.0, 1.0, {})
        assert found.ignored == {"unknown_id": 3}  # records that the split leaves over


def test_the_denominator_is_the_split_whatever_is_answered(score):
    (found,) = score(json.dumps(answers([6])), "p.json")
    assert (found.split, found.denominator, found.answered) == ("test", 3, 1)
    assert found.coverage == found.scores["exact"] == pytest.approx(1 / 3)
    assert found.invalid == {"missing": 2}


def test_what_is_wrong_with_an_answer_is_counted_as_what_it_is(score):
    found = score(
        lines(
            {"id": "6", "prediction": "[罪名]偷窃<eoa>"},
            {"id": "7", "prediction": "[罪名]诈骗"},
            {"id": "8", "prediction": " "},
            {"id": "4", "prediction": None, "failure": "timeout"},
            {"id": "5", "prediction": None},
            {"id": "0", "prediction": "盗窃"},
            {"id": "0", "prediction": "诈骗"},
            {"id": "999", "prediction": "盗窃"},
            {"id": "9" * 5000, "prediction": "盗窃"},
            {"prediction": "盗窃"},
            {"id": "1"},
            {"id": "2", "prediction": 5},
            "null",
            "1" * 5000,
            '{"id": "3", "predic',
        )
    )
    search, validation, test = found
    assert test.invalid == {"unknown_label": 1, "truncated": 1, "empty": 1}
    assert (test.answered, test.scores["exact"]) == (2, 0.0)
    assert validation.invalid == {"failed_timeout": 1, "empty": 1}
    assert (search.scores["exact"], search.invalid) == (0.25, {"missing": 3})  # the first answer of an id counts
    assert search.ignored == {"unreadable": 6, "repeated_id": 1, "unknown_id": 2}


def test_a_csv_row_that_is_cut_off_is_counted(score):
    (found,) = score('id,prediction\n6,盗窃\n7\n8,"盗窃;诈骗', "p.csv")
    assert found.scores["exact"] == pytest.approx(1 / 3)
    assert found.ignored == {"unreadable": 2}


@pytest.mark.parametrize("name", ["p.csv", "p.jsonl"])
def test_an_answer_in_another_encoding_is_unreadable_and_no_wrong_label(data, tmp_path, name):
    """As Excel saves a .csv in China. Half a character that a model wrote, and JSON can hold, is an answer."""
    head, other, good = {
        "p.csv": ("id,prediction\n", "6,盗窃\n7,盗窃\n", "8,-\n"),
        "p.jsonl": ("", '{"id": 6, "prediction": "盗窃"}\n' * 2, '{"id": 8, "prediction": "\\ud83d"}\n'),
    }[name]
    domain = LawBench(LawBenchOptions(protocol="set-exact", path=str(data)))
    (tmp_path / name).write_bytes((head + other + good).encode("gbk"))
    (found,) = domain.score_file("set-exact", tmp_path / name)
    assert (found.ignored, found.invalid) == ({"unreadable": 2}, {"missing": 2, "unknown_label": 1})
    (tmp_path / name).write_bytes((head + other).encode("gbk"))
    with pytest.raises(UsageError, match=r"no entry that can be read: .* in UTF-8"):
        domain.score_file("set-exact", tmp_path / name)


def test_a_text_may_hold_what_ends_a_line_elsewhere(score):
    """As Python's csv module writes it: only a comma, a quote and the two ends of a line are quoted."""
    (found,) = score("id,prediction\r\n6,[罪名]盗窃<eoa>\u2028\x0b\x85\r\n7,诈骗\x1c\r\n8,盗窃;诈骗\r\n", "p.csv")
    assert (found.answered, found.ignored, found.scores["exact"]) == (3, {}, 1.0)


def test_what_a_file_calls_a_failure_can_be_printed(score):
    (found,) = score(lines({"id": "6", "failure": "half \ud800\n\x1b[2J"}, {"id": "7", "failure": ["x"] * 99}))
    assert found.invalid.keys() == {"failed_half ? ?[2J", f"failed_{str(['x'] * 99)[:50]}", "missing"}


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("p.jsonl", "", "is empty"),
        ("p.json", "", "is empty"),
        ("p.json", '{"0": {"prediction": "盗', "is no whole JSON file .*cut off"),
        ("p.json", "[]", "holds no predictions"),
        ("p.json", "5", "holds no predictions"),
        ("p.csv", "a,b\n1,2", "has no columns id and prediction"),
        ("p.txt", "盗窃", "of no known form: give a .json, .jsonl or .csv file"),
        ("p.jsonl", "nonsense\n", "has no entry that can be read: give each an id and a prediction as text, in UTF-8"),
        ("p.json", "[5, null]", "has no entry that can be read"),
        ("p.jsonl", '{"id": "x", "prediction": "盗窃"}', "its ids are x"),
        ("p.json", json.dumps(answers([6], refr="罪名:放火")), "answer 6 of .* was made for other facts than 3-3/006"),
    ],
)
def test_a_file_that_answers_nothing_is_refused(score, name, text, sentence):
    with pytest.raises(UsageError, match=sentence):
        score(text, name)


def test_the_gold_that_a_file_brings_along_must_be_ours(score):
    (found,) = score(json.dumps({n: {**e, "refr": f"罪名:{GOLD[int(n)]}"} for n, e in answers().items()}), "p.json")
    assert found.scores["exact"] == 1.0


def test_the_command_gives_one_object_a_line(data, tmp_path, capsys):
    path = tmp_path / "p.json"
    path.write_text(json.dumps(answers([6, 7, 8, 4])), encoding="utf-8")
    command = ["score", "lawbench", "--protocol", "set-exact", "--predictions", str(path), "--set", f"path={data}"]
    assert main([*command, "--json"]) == 0
    out, err = capsys.readouterr()
    found = [json.loads(line) for line in out.splitlines()]
    assert [line["split"] for line in found] == ["validation", "test"]
    assert found[1]["scores"] == {"exact": 1.0, "corrected": 1.0}
    assert found[1] | {"denominator": 3, "answered": 3, "coverage": 1.0, "invalid": {}} == found[1]
    assert err == ""
    assert main(command) == 0
    assert "set-exact test: corrected 1.0000  exact 1.0000  (3 of 3 answered)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["lawbenc"], "unknown domain 'lawbenc': did you mean lawbench?"),
        ([str(CHEAPEST)], "cheapest.py' scores no files"),
        (["lawbench"], "the lawbench domain needs one source of facts"),
        (["lawbench", "--set", "synthetic=true", "--protocol", "officia"], "'officia': did you mean official?"),
        (["lawbench", "--set", "synthetic=true", "--set", "protokol=x"], "unknown option of the lawbench domain"),
        (["lawbench", "--set", "synthetic"], "--set takes name=value"),
        (["lawbench", "--set", "path=nowhere"], "'nowhere' is neither a folder nor a table"),
    ],
)
def test_a_mistake_is_one_sentence(arguments, sentence, tmp_path, capsys):
    path = tmp_path / "p.json"
    path.write_text(json.dumps(answers()), encoding="utf-8")
    assert main(["score", *arguments, "--predictions", str(path)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert sentence in err
    assert len(err.splitlines()) == 1


def test_a_file_that_is_not_there_is_named(capsys):
    assert main(["score", "lawbench", "--predictions", "gone.json", "--set", "synthetic=true"]) == 2
    assert "there is no file gone.json" in capsys.readouterr().err


@needs_real
def test_right_answers_to_all_of_3_3_score_what_the_benchmarks_own_scorer_gives_them(tmp_path):
    """0.93224 is what LawBench's evaluation prints for this file: 87 right answers are below 1."""
    records = json.loads((REAL / "zero_shot" / "3-3.json").read_text(encoding="utf-8"))
    right = {
        str(n): {"prediction": f"[罪名]{r['answer'].removeprefix('罪名:')}<eoa>", "refr": r["answer"]}
        for n, r in enumerate(records)
    }
    (tmp_path / "p.json").write_text(json.dumps(right), encoding="utf-8")
    domain = LawBench(LawBenchOptions(protocol="official", path=str(REAL)))
    (found,) = domain.score_file("official", tmp_path / "p.json")
    assert found.scores["official"] == pytest.approx(0.9322428571428572, abs=1e-12)
    assert found.scores["abstention_rate"] == pytest.approx(7 / 500)
    assert (found.scores["corrected"], found.scores["exact"], found.invalid) == (1.0, 1.0, {})
    (tmp_path / "one.json").write_text(json.dumps({"0": right["0"]}), encoding="utf-8")
    (found,) = domain.score_file("official", tmp_path / "one.json")
    assert found.scores == {"official": 1 / 500, "corrected": 1 / 500, "exact": 1 / 500, "abstention_rate": 499 / 500}
