"""A file that is asked for by name takes nobody's place, whoever else writes there meanwhile."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from resia.events.errors import UsageError
from resia.runtime.newfile import new_file


def write(path: Path, text: str, meanwhile: Callable[[], None] = lambda: None) -> None:
    with new_file(path) as partial:
        partial.write_text(text)
        meanwhile()


def test_two_that_write_one_file_at_once_leave_the_first_that_was_whole(tmp_path):
    path = tmp_path / "out"
    with pytest.raises(UsageError, match="out exists already: name another file with --out"):
        write(path, "late", lambda: write(path, "early"))
    assert path.read_text() == "early"
    assert os.listdir(tmp_path) == ["out"]


def test_what_was_not_finished_is_not_there(tmp_path):
    def fail() -> None:
        raise LookupError

    with pytest.raises(LookupError):
        write(tmp_path / "out", "half", fail)
    assert os.listdir(tmp_path) == []


def test_a_folder_that_is_not_there_is_said(tmp_path):
    with pytest.raises(UsageError, match=r"out cannot be written \(No such file or directory\)"):
        write(tmp_path / "none" / "out", "nowhere")
