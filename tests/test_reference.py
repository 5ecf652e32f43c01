"""docs/results.md says what its logs say, and a log that was changed gives no row."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from benchmarks import reference

PAGE = Path(__file__).parents[1] / "docs" / "results.md"
LOG = reference.LOGS / "denoising-w-h-2.jsonl.gz"


@pytest.fixture(scope="module")
def rows():
    return [reference.reference(path) for path in sorted(reference.LOGS.glob("*.jsonl.gz"))]


def test_every_row_of_the_page_is_what_its_log_says(rows):
    page = PAGE.read_text()
    assert reference.written(page, rows) == page
    assert all(f"](../benchmarks/logs/{row.path})" in page for row in rows)


def test_a_row_holds_the_sealed_test_the_controls_and_what_earned_it(rows):
    row = next(row for row in rows if row.path == LOG.name)
    assert (row.domain, row.mode, row.items, row.events) == ("denoising", "W+H", 12, 416)
    assert row.first < row.champion < 1
    assert row.accepted == ("demonstrate-neutral", "demonstrate-best")
    assert row.control[0] == "magic-reference"
    assert row.random_search is not None


def test_the_logs_name_no_folder_of_a_machine():
    for path in reference.LOGS.glob("*.jsonl.gz"):
        text = gzip.decompress(path.read_bytes()).decode()
        assert not any(folder in text for folder in ("/home/", "/tmp/", "/root/", "/work/")), path


def changed(tmp_path, old, new):
    text = gzip.decompress(LOG.read_bytes())
    assert old in text
    path = tmp_path / "changed.jsonl.gz"
    path.write_bytes(gzip.compress(text.replace(old, new, 1)))
    return path


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        (b'"reward":', b'"reward" :', "does not match its hash"),
        (b'"sequence":7,', b'"sequence":8,', "should be event 7"),
        (b'{"events":', b'{"rows":', "changed.jsonl"),
    ],
)
def test_a_changed_log_is_refused_in_one_sentence(tmp_path, capsys, old, new, why):
    assert reference.main([str(changed(tmp_path, old, new))]) == 2
    told = capsys.readouterr()
    assert (told.out, told.err.count("\n")) == ("", 1)
    assert why in told.err


def test_the_command_prints_a_row_as_json(capsys):
    assert reference.main(["--json", str(LOG)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["digest"].startswith("fc36445cae47")
    assert found["champion"] == pytest.approx(0.5008, abs=1e-4)


def test_what_is_no_log_is_refused(tmp_path, capsys):
    path = tmp_path / "noise.jsonl.gz"
    path.write_bytes(b"no gzip")
    assert reference.main([str(path), str(tmp_path / "none.jsonl.gz")]) == 2
    assert "noise.jsonl.gz" in capsys.readouterr().err
