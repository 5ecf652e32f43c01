"""What the documents say is there: commands, options, make targets, wire types and who acts on them, linked files."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from resia.events import NAMES, TYPES
from resia.events.subjects import ROLES
from resia.runtime import cli, profiles
from resia.runtime.blobs import DirectoryBlobs
from resia.runtime.cli_options import BUDGET, DONE, FAILED, INTERRUPTED, USAGE
from resia.runtime.resources import Resources
from resia.runtime.roles import ROLE_NAMES, role

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
WORDS = [*PAGES, *(p for p in sorted((ROOT / "examples").rglob("*")) if p.suffix in {".py", ".toml", ".md"})]
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
GROUPS = ("assets", "bench", "cluster", "engine", "kernel", "policy", "task", "worker")
DEPTH = {"engine": 3}  # words of a command in a group of groups
# The pages' own, and those that a bundled profile names.
KNOWN_HOSTS = {
    "localhost:8080",
    "localhost:4318",
    "HOST:8222",
    "vllm:8000",
    "keepachangelog.com",
    "semver.org",
    "arxiv.org",
    *(
        urlsplit(found.settings.base_url or found.form).netloc
        for found in (profiles.profile(str(path)) for path in profiles.BUNDLED.glob("*.toml"))
    ),
}
NO_ONE = "nobody yet"


def page_id(path: Path) -> str:
    return str(path.relative_to(ROOT))


def commands(path: Path) -> list[str]:
    """Every line after a prompt in the page's console blocks."""
    blocks = re.findall(r"^```console\n(.*?)^```", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]


def shown() -> list[str]:
    return sorted({command for path in PAGES for command in commands(path)})


def exists(command: str, capsys: pytest.CaptureFixture[str]) -> bool:
    """Whether a command line starts with something that is there, with options that it has."""
    program, *rest = shlex.split(command)
    if program == "make":
        return all(re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE) for target in rest)
    if program != "resia" or not rest:
        return False
    name = rest[: DEPTH.get(rest[0], 2) if rest[0] in GROUPS else 1]
    code = cli.main([*name, "--help"])
    text = capsys.readouterr().out
    options = [word.partition("=")[0] for word in rest if word.startswith("--")]
    return code == DONE and all(re.search(rf"(?<!\S){option}\b", text) for option in options)


def test_commands_are_found_in_the_pages():
    assert "resia replay small --verify" in shown()
    assert len(shown()) > 20


@pytest.mark.parametrize("command", shown())
def test_a_command_that_is_shown_exists(command, capsys):
    assert exists(command, capsys)


@pytest.mark.parametrize(
    "command",
    ["resia surgeon", "resia tail r --fast", "make coffee", "resia assets push", "resia engine vllm warm", "cat x"],
)
def test_a_command_that_is_not_there_is_noticed(command, capsys):
    assert not exists(command, capsys)


def test_every_command_has_a_section_with_an_output():
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    found = {command.name or command.callback.__name__ for command in cli.app.registered_commands}
    sections = re.findall(r"^## resia (\w+)", page, re.MULTILINE)
    assert set(sections) == found | set(GROUPS)
    assert {shlex.split(c)[1] for c in commands(ROOT / "docs" / "cli.md")} == (found | set(GROUPS)) - {"demo"}


def test_the_readme_names_make_test_and_make_demo_before_anything_else():
    assert commands(ROOT / "README.md")[:2] == ["make test", "make demo"]
    before = (ROOT / "README.md").read_text(encoding="utf-8").partition("$ make test")[0]
    assert not re.search(r"\bresia \w+ --|\bpip\b|\$ ", before)


def test_the_readme_has_the_exit_codes():
    rows = re.findall(r"^\| (\d+) \| ", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert [int(code) for code in rows] == [DONE, FAILED, USAGE, BUDGET, INTERRUPTED]


def event_table() -> dict[str, tuple[set[str], set[str]]]:
    """Wire type to (roles that write it, roles that act on it), from the architecture page."""
    rows = re.findall(r"^\| `([a-z-]+)` \|([^|]*)\|([^|]*)\|[^|]*\|$", ARCHITECTURE, re.MULTILINE)
    return {kind: (names(written), names(acted)) for kind, written, acted in rows}


def names(cell: str) -> set[str]:
    return {name.strip() for name in cell.split(",")} - {""}


def test_every_wire_type_is_in_the_table():
    assert set(event_table()) == set(TYPES)
    for written, _ in event_table().values():
        assert written <= {*ROLES, NO_ONE}


@pytest.mark.parametrize("name", ROLE_NAMES)
def test_the_table_says_what_each_role_acts_on(name, tmp_path):
    acting = role(name, Resources(DirectoryBlobs(tmp_path), None, False), lambda run: lambda data: None)
    said = {kind for kind, (_, acted) in event_table().items() if name in acted}
    assert said == {NAMES[cls] for cls in (*acting.decides, *acting.performs)}


@pytest.mark.parametrize("path", WORDS, ids=page_id)
def test_no_page_names_a_machine(path):
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"(?<![\w.])/(root|home|work|tmp|Users|mnt|opt)/", text)
    assert not re.search(r"\b\d{1,3}(\.\d{1,3}){3}\b", text)
    assert set(re.findall(r"https?://([^/\s)\"'`]+)", text)) <= KNOWN_HOSTS


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_links_lead_somewhere(path):
    links = re.findall(r"\]\(([^)\s#]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (path.parent / link).exists()]
    assert missing == []


def test_decisions_are_numbered_dated_and_listed():
    pages = sorted((ROOT / "docs" / "adr").glob("0*.md"))
    index = (ROOT / "docs" / "adr" / "README.md").read_text(encoding="utf-8")
    for number, page in enumerate(pages, 1):
        text = page.read_text(encoding="utf-8")
        assert page.name.startswith(f"{number:04d}-")
        assert re.match(rf"# {number:04d}\. .+\n\n- Status: \w+\n- Date: \d{{4}}-\d\d-\d\d\n", text)
        assert re.findall(r"^## (.+)$", text, re.MULTILINE) == ["Context", "Decision", "Consequences"]
        assert f"]({page.name})" in index
