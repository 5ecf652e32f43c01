"""Domains by name: the built-in ones, plug-ins of other packages, and what is refused."""

from __future__ import annotations

import subprocess
import sys

import pytest

from resia.domains.registry import domain_names, load_domain
from resia.events.errors import UnknownName, UsageError

PLUG_IN = """
import msgspec
from resia.domains.base import TaskSpec

class Settings(msgspec.Struct, frozen=True):
    size: int = 1

class Toy:
    Options = Settings
    digest = "d" * 64
    spec = TaskSpec("toy", "Play.", "play", (), (), (), "mean")
    items = parse = render = score = controls = lambda *asked: ()

    def __init__(self, options):
        self.options = options

class Long(Toy):
    spec = msgspec.structs.replace(Toy.spec, steps=3)

def plain(options):
    return Toy(options)

class Half:
    Options, spec, items = Settings, Toy.spec, Toy.items

    def __init__(self, options):
        pass
"""


@pytest.fixture
def plug_in(tmp_path, monkeypatch):
    """An installed package as importlib.metadata sees one."""
    (tmp_path / "toy_domain_for_tests.py").write_text(PLUG_IN)
    (tmp_path / "raising_domain_for_tests.py").write_text("1 / 0\n")
    info = tmp_path / "toy_domain-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-domain\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[resia.domains]\ntoy = toy_domain_for_tests:Toy\nbroken = toy_domain_for_tests:Absent\n"
        "raises = raising_domain_for_tests:Toy\nplain = toy_domain_for_tests:plain\n"
        "half = toy_domain_for_tests:Half\nlong = toy_domain_for_tests:Long\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("toy_domain_for_tests", None)


def test_denoising_is_built_in():
    domain = load_domain("denoising", {"synthetic": True, "search_items": 2})
    assert domain.spec.name == "denoising"
    assert len(domain.items("search")) == 2


@pytest.mark.parametrize("name", ["denoise", "zzz"])
def test_an_unknown_domain_offers_the_nearest(name):
    with pytest.raises(UnknownName, match=f"unknown domain '{name}': did you mean .*denoising"):
        load_domain(name, {})


def test_an_unknown_option_offers_the_nearest():
    with pytest.raises(UnknownName, match=r"'serch_items': did you mean .*search_items"):
        load_domain("denoising", {"synthetic": True, "serch_items": 3})


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"search_items": 0}, r"option search_items of the denoising domain is 0: expected `int` >= 1"),
        ({"search_items": "3"}, r"option search_items of the denoising domain is '3': expected `int`"),
        ({"data_seed": -1}, "option data_seed of the denoising domain is -1"),
        ({"synthetic": "yes"}, "option synthetic of the denoising domain is 'yes'"),
        ({"form": "haiku"}, "option form of the denoising domain is 'haiku': choose from [a-z]+, [a-z]"),
    ],
)
def test_a_wrong_value_is_named(options, sentence):
    with pytest.raises(UsageError, match=sentence):
        load_domain("denoising", {"synthetic": True, **options})


@pytest.mark.usefixtures("plug_in")
def test_a_plug_in_is_found_and_given_its_options():
    assert {"toy", "denoising"} <= set(domain_names())
    assert load_domain("toy", {"size": 4}).options.size == 4
    with pytest.raises(UnknownName, match=r"option of the toy domain 'sizes': did you mean size"):
        load_domain("toy", {"sizes": 4})


@pytest.mark.usefixtures("plug_in")
def test_a_plug_in_that_cannot_be_imported_is_named():
    with pytest.raises(UsageError, match="domain 'broken' of the package toy_domain_for_tests:Absent"):
        load_domain("broken", {})
    with pytest.raises(
        UsageError, match=r"domain 'raises' of .* cannot be imported: ZeroDivisionError: division by zero"
    ):
        load_domain("raises", {})
    with pytest.raises(UsageError, match=r"domain 'plain' of .* has no Options"):
        load_domain("plain", {})


@pytest.mark.parametrize("name", ["denoising", "lawbench"])
def test_a_library_that_is_not_there_is_named_with_what_brings_it(name):
    code = (
        "import sys; sys.modules['numpy'] = None\n"
        "from resia.runtime.cli import main\n"
        f"sys.exit(main(['score', '{name}', '--predictions', '.', '--set', 'synthetic=true']))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert f"domain '{name}' cannot be imported" in done.stderr
    assert "pip install 'resia[local]'" in done.stderr


@pytest.mark.usefixtures("plug_in")
def test_a_plug_in_that_is_no_whole_domain_is_told_what_it_lacks():
    with pytest.raises(UsageError, match="domain 'half' has no digest, parse, render, score, controls: see"):
        load_domain("half", {})
    with pytest.raises(UsageError, match="domain 'long' takes 3 answers a rollout, so it needs observe and score_ste"):
        load_domain("long", {})


def test_the_registry_imports_no_domain():
    code = "import sys, resia.domains.registry as r; r.domain_names(); sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
