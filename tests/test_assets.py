"""Assets from a wheel made here, with a fetcher that copies it: every stage, corruption, interruption, two at once."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest

from resia.events.errors import AssetError, UnknownName, UsageError
from resia.runtime import assets
from resia.runtime.assets import locate, model_digest, pip_download, pull, require
from resia.runtime.assets_catalogue import CATALOGUE, Asset

MEMBER = b"a,b\n1,2\n"


class Index:
    """Fetches from a folder; counts, and may fail or serve damaged bytes the first times."""

    def __init__(self, wheel: Path, corrupt: int = 0, offline: bool = False) -> None:
        self.wheel, self.corrupt, self.offline, self.calls = wheel, corrupt, offline, 0

    def __call__(self, asset: Asset, folder: Path) -> None:
        self.calls += 1
        if self.offline:
            raise AssetError("no route to the index")
        data = self.wheel.read_bytes()
        (folder / asset.wheel).write_bytes(data[:-10] if self.calls <= self.corrupt else data)


def upper(member: Path, target: Path) -> None:
    target.write_bytes(member.read_bytes().upper())


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    path = tmp_path / "index" / "toy-1.0-py3-none-any.whl"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("toy/data.csv", MEMBER)
        archive.writestr("toy-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
        archive.writestr("toy-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("toy-1.0.dist-info/RECORD", "")
    return path


@pytest.fixture
def toy(wheel: Path) -> dict[str, Asset]:
    return {"toy": toy_asset(wheel)}


def toy_asset(wheel: Path, convert=upper, member: bytes = MEMBER) -> Asset:
    return Asset(
        name="toy",
        summary="a toy",
        licence="MIT",
        distribution="toy",
        version="1.0",
        wheel=wheel.name,
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        wheel_size=wheel.stat().st_size,
        member="toy/data.csv",
        member_sha256=hashlib.sha256(member).hexdigest(),
        output="data.txt",
        convert=convert,
    )


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_pull_leaves_the_output_alone(toy, wheel, cache):
    said: list[str] = []
    index = Index(wheel)
    path = pull("toy", said.append, cache, toy, index)
    assert path.read_bytes() == MEMBER.upper()
    assert names(path.parent) == {"data.txt", "asset.json", ".lock"}
    assert [line.split()[0] for line in said] == ["downloading", "extracting", "converting", "toy"]
    assert locate("toy", cache, toy) == require("toy", cache, toy) == path


def test_a_second_pull_does_nothing(toy, wheel, cache):
    index, said = Index(wheel), []
    path = pull("toy", cache=cache, assets=toy, fetch=index)
    assert pull("toy", said.append, cache, toy, index) == path
    assert index.calls == 1
    assert said == []


def test_what_is_not_pulled_is_asked_for_by_command(toy, cache):
    assert locate("toy", cache, toy) is None
    with pytest.raises(UsageError, match="run: resia assets pull toy"):
        require("toy", cache, toy)


def test_an_unknown_name_gets_the_nearest(toy, cache):
    with pytest.raises(UnknownName, match="unknown asset 'tyo': did you mean toy"):
        pull("tyo", cache=cache, assets=toy)


def test_offline_is_one_sentence_with_the_command(toy, wheel, cache):
    with pytest.raises(AssetError) as caught:
        pull("toy", cache=cache, assets=toy, fetch=Index(wheel, offline=True))
    text = str(caught.value)
    assert text == "asset 'toy' could not be pulled (no route to the index); retry with: resia assets pull toy"
    assert locate("toy", cache, toy) is None


def test_a_corrupt_download_is_named_and_fetched_once_more(toy, wheel, cache):
    said: list[str] = []
    index = Index(wheel, corrupt=1)
    assert pull("toy", said.append, cache, toy, index).read_bytes() == MEMBER.upper()
    assert index.calls == 2
    assert f"{wheel.name} is corrupt: removing it" in said


def test_a_download_that_stays_corrupt_fails(toy, wheel, cache):
    index = Index(wheel, corrupt=9)
    with pytest.raises(AssetError, match=r"toy-1\.0-py3-none-any\.whl arrived corrupt twice.*retry with"):
        pull("toy", cache=cache, assets=toy, fetch=index)
    assert index.calls == 2
    assert names(cache / "assets" / "toy") == {".lock"}


def test_a_member_that_is_not_the_pinned_one_fails(wheel, cache):
    other = {"toy": toy_asset(wheel, member=b"something else")}
    with pytest.raises(AssetError, match=r"toy/data\.csv in toy-1\.0-py3-none-any\.whl is not the file it should be"):
        pull("toy", cache=cache, assets=other, fetch=Index(wheel))


def test_a_corrupt_member_is_extracted_again(toy, wheel, cache):
    folder = cache / "assets" / "toy"
    folder.mkdir(parents=True)
    (folder / "data.csv").write_bytes(b"half")
    (folder / ".scratch-killed").mkdir()
    said: list[str] = []
    pull("toy", said.append, cache, toy, Index(wheel))
    assert "data.csv is corrupt: removing it" in said
    assert names(folder) == {"data.txt", "asset.json", ".lock"}


def test_a_pull_cut_short_goes_on_from_the_stage_it_reached(wheel, cache):
    def killed(member: Path, target: Path) -> None:
        target.write_bytes(b"half of it")
        raise KeyboardInterrupt

    index, said = Index(wheel), []
    with pytest.raises(KeyboardInterrupt):
        pull("toy", cache=cache, assets={"toy": toy_asset(wheel, killed)}, fetch=index)
    assert locate("toy", cache, {"toy": toy_asset(wheel)}) is None
    (cache / "assets" / "toy" / wheel.name).unlink()  # the member is enough to go on
    path = pull("toy", said.append, cache, {"toy": toy_asset(wheel)}, index)
    assert path.read_bytes() == MEMBER.upper()
    assert index.calls == 1
    assert said[0] == "converting data.csv"


def test_a_failed_conversion_says_why(wheel, cache):
    def broken(member: Path, target: Path) -> None:
        raise ValueError("column 3 is empty")

    with pytest.raises(AssetError, match=r"ValueError: column 3 is empty.*retry with"):
        pull("toy", cache=cache, assets={"toy": toy_asset(wheel, broken)}, fetch=Index(wheel))


def test_a_damaged_output_is_refused_by_who_needs_it(toy, wheel, cache):
    pull("toy", cache=cache, assets=toy, fetch=Index(wheel)).write_bytes(b"other")
    with pytest.raises(AssetError, match="is corrupt; make it again with: resia assets pull toy"):
        require("toy", cache, toy)


def test_a_damaged_output_is_found_by_pull_and_made_again(toy, wheel, cache):
    said: list[str] = []
    index = Index(wheel)
    path = pull("toy", cache=cache, assets=toy, fetch=index)
    path.write_bytes(b"damaged")
    assert pull("toy", said.append, cache, toy, index).read_bytes() == MEMBER.upper()
    assert said[0] == "data.txt is corrupt: removing it"


def test_another_pinned_member_replaces_the_old_output(toy, wheel, cache, tmp_path):
    pull("toy", cache=cache, assets=toy, fetch=Index(wheel))
    newer = tmp_path / "newer" / wheel.name
    newer.parent.mkdir()
    with zipfile.ZipFile(newer, "w") as archive:
        archive.writestr("toy/data.csv", b"new")
    changed = {"toy": toy_asset(newer, member=b"new")}
    assert locate("toy", cache, changed) is None
    assert pull("toy", cache=cache, assets=changed, fetch=Index(newer)).read_bytes() == b"NEW"


def test_two_pulls_at_once_do_the_work_once(wheel, cache):
    inside, go_on, waiting = threading.Event(), threading.Event(), threading.Event()

    def slow(member: Path, target: Path) -> None:
        inside.set()
        assert go_on.wait(10)
        upper(member, target)

    index, found = Index(wheel), []
    slowly = {"toy": toy_asset(wheel, slow)}
    said: list[str] = []

    def hear(line: str) -> None:
        said.append(line)
        waiting.set()

    first = threading.Thread(target=lambda: found.append(pull("toy", cache=cache, assets=slowly, fetch=index)))
    first.start()
    assert inside.wait(10)
    second = threading.Thread(target=lambda: found.append(pull("toy", hear, cache, slowly, index)))
    second.start()
    assert waiting.wait(10)
    go_on.set()
    first.join(10)
    second.join(10)
    assert found == [cache / "assets" / "toy" / "data.txt"] * 2
    assert index.calls == 1
    assert said == ["another process is pulling it: waiting"]


def test_pip_fetches_the_wheel(toy, wheel, cache, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    assert pull("toy", cache=cache, assets=toy, fetch=pip_download).read_bytes() == MEMBER.upper()


def test_pip_without_the_wheel_is_an_asset_error(toy, cache, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(
        AssetError, match=r"'toy' could not be pulled \(ERROR: No matching distribution found for toy==1"
    ):
        pull("toy", cache=cache, assets=toy)


def test_the_digest_of_a_model_follows_its_weights(tmp_path):
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"first")
    assert model_digest(tmp_path) == hashlib.sha256(b"first").hexdigest() == model_digest(tmp_path)
    weights.write_bytes(b"second one")
    assert model_digest(tmp_path) == hashlib.sha256(b"second one").hexdigest()
    (tmp_path / "model-2.safetensors").write_bytes(b"third")
    parts = {
        name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
        for name in sorted(names(tmp_path))
        if name.endswith(".safetensors")
    }
    assert (
        model_digest(tmp_path) == hashlib.sha256("".join(f"{d}  {n}\n" for n, d in parts.items()).encode()).hexdigest()
    )


def test_a_folder_without_weights_has_no_digest(tmp_path):
    with pytest.raises(AssetError, match="no safetensors weights"):
        model_digest(tmp_path)


def test_the_catalogue_is_pinned_and_loads_no_torch():
    assert (
        {asset.name for asset in assets.catalogue()} == {"smollm2-135m-instruct", "celltypist-sample"} == set(CATALOGUE)
    )
    for asset in assets.catalogue():
        assert len(asset.wheel_sha256) == len(asset.member_sha256) == 64
        assert asset.licence
    program = "import sys, resia.runtime.assets; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
