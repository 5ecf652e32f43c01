"""A problem in a file: what is made of it, what is refused in one sentence, and a whole run on the written one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import fixture_domains
import pytest

from resia.domains.admission import examine
from resia.domains.contract import Finding
from resia.domains.files import is_file, recorded_name
from resia.domains.registry import load_domain
from resia.domains.trials import Plan
from resia.events import RunSettings
from resia.events.errors import UsageError
from resia.runtime.blobs import DirectoryBlobs
from resia.runtime.cli import main
from resia.runtime.cli_options import BUDGET
from resia.runtime.config import load_settings
from resia.runtime.resources import Resources
from resia.runtime.session import first_event

EXAMPLE = Path(__file__).parent.parent / "examples" / "cheapest.py"
WORKING = '''
"""Say yes."""
ANSWER = {"say": ["no", "yes"], "times": range(1, 4)}

def items(split):
    return [{"id": f"{split}{n}", "n": n} for n in range(2)]

def prompt(row):
    return f"row {row['id']}"

def score(row, answer):
    return answer["times"] / 3 if answer["say"] == "yes" else 0
'''


def write(folder: Path, source: str, name: str = "mine.py") -> str:
    (folder / name).write_text(source)
    return str(folder / name)


def installed(folder: Path, name: str, value: str, monkeypatch) -> None:
    """`folder` as an installed package that declares a domain."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[resia.domains]\n{name} = {value}\n")
    monkeypatch.syspath_prepend(str(folder))


@pytest.fixture
def problem(tmp_path, capsys) -> Path:
    """The file that `resia init` writes."""
    assert main(["init", str(tmp_path)]) == 0
    assert "resia task check" in capsys.readouterr().out
    return tmp_path / "problem.py"


def test_three_functions_make_a_whole_domain(tmp_path):
    domain = load_domain(write(tmp_path, WORKING), {})
    assert (domain.spec.name, domain.spec.tool) == ("mine", "answer")
    assert [item.prompt for item in domain.items("test")] == ["row test0", "row test1"]
    assert domain.parse({}) == {"say": "no", "times": 1}
    assert domain.render({"times": 2, "say": "yes"}) == "say=yes times=2"
    assert domain.spec.instruction.splitlines() == [
        "Say yes.",
        "Reply with one line that sets:",
        "say: no, yes",
        "times: 1, 2, 3",
        "Example: say=no times=1",
    ]
    won, lost = (domain.score("test0", {"say": say, "times": 3}) for say in ("yes", "no"))
    assert (won.reward, won.success, lost.reward, lost.success) == (1.0, True, 0.0, False)
    found = {(c.name, c.split): (c.mean, c.answer) for c in domain.controls(1000, 0)}
    assert found["random-search", "test"] == (1.0, "say=yes times=3")
    assert found["reference", "validation"] == (0.0, "say=no times=1")
    with pytest.raises(ValueError, match="argument 'say' is 'maybe': choose one of no, yes"):
        domain.parse({"say": "maybe"})


def test_the_digest_covers_the_file_and_its_rows(tmp_path):
    data = tmp_path / "rows.json"
    source = f"import json, pathlib\n{WORKING}".replace(
        "range(2)", "json.loads(pathlib.Path(__file__).with_name('rows.json').read_text())"
    ).replace('"""Say yes."""', 'INSTRUCTION = "Say yes."')
    data.write_text("[1, 2]")
    first = load_domain(write(tmp_path, source), {}).digest
    assert load_domain(write(tmp_path, source), {}).digest == first
    data.write_text("[1, 3]")
    second = load_domain(write(tmp_path, source), {}).digest
    third = load_domain(write(tmp_path, f"{source}# a comment\n"), {}).digest
    assert len({first, second, third}) == 3


def test_settings_of_the_task_are_constants(tmp_path):
    source = f'{WORKING}\nINSTRUCTION = "Other."\nOBJECTIVE = "max"\nBINARY = True\nREFERENCE = {{"times": 3}}\n'
    spec = load_domain(write(tmp_path, source), {}).spec
    assert (spec.objective, spec.binary, spec.references[0].answer) == ("max", True, {"say": "no", "times": 3})
    assert spec.instruction.startswith("Other.")


@pytest.mark.parametrize(
    ("right", "wrong", "sentence"),
    [
        ("def score(", "def scores(", "mine.py has no function score"),
        (
            "def score(row, answer)",
            "def score(row)",
            r"score of mine.py does not .*: write score\(row, answer\)",
        ),
        ("ANSWER", "ANSWERS", "mine.py has no ANSWER"),
        ("range(1, 4)", "[]", r"ANSWER\['times'\] of mine.py is \[\]"),
        ("range(1, 4)", "[1, 1]", "list its values, none twice"),
        ("range(1, 4)", "[None]", "holds None: give text"),
        ('["no", "yes"]', '["no", "yes please"]', "holds 'yes please': write a value as one word"),
        ("def items", 'REFERENCE = {"say": "maybe"}\ndef items', r"REFERENCE\['say'\] of mine.py is 'maybe'"),
        ("def items", 'OBJECTIVE = "least"\ndef items', "mine.py cannot be made a task: Invalid enum value 'least'"),
        ("def items", 'REFERENCE = {"sya": "no"}\ndef items', "unknown argument in REFERENCE of mine.py 'sya': .* say"),
        ("def items", "REFERENCE = 5\ndef items", "REFERENCE of mine.py is 5: give arguments their values"),
        ("range(1, 4)", "__import__('itertools').count()", r"ANSWER\['times'\] of mine.py has over 10,000 values"),
        ('"""Say yes."""', "", "mine.py has no INSTRUCTION"),
        ('[{"id"', '[1] + [{"id"', r"row 0 of items\('search'\) of mine.py is 1: give a dict"),
        ("range(2)", "range(1 / 0)", r"items\('search'\) of mine.py fails: ZeroDivisionError"),
        (
            "return [{",
            "raise SystemExit(3)\n    return [{",
            r"items\('search'\) of mine.py fails: RuntimeError: it ends the",
        ),
        ('f"row {', '"\\ud800" f"row {', "prompt of row 0 of search holds half a character"),
        (
            'f"row {',
            '"x" * 10**6 + f"row {',
            "prompt of row 0 of search has 1,000,011 characters: give at most 1,000,000",
        ),
        ("Say yes.", "Say \\ud800 yes.", "what mine.py tells an agent, .*, holds half a character"),
        ('"yes"]', '"\\ud800"]', "what mine.py tells an agent, .*, holds half a character"),
        ("range(2)", "[open]", r"items\('search'\) of mine.py fails: TypeError"),
        ("row['id']", "row['di']", "prompt of row 0 of search fails: KeyError"),
        ("def items(split):", "def items(split)", r"mine.py' cannot be loaded: expected ':' \(line 5\)"),
        ("ANSWER =", "1 / 0\nANSWER =", r"mine.py' cannot be loaded: ZeroDivisionError: division by zero \(line 3\)"),
        ("ANSWER =", "raise SystemExit(3)\nANSWER =", "cannot be loaded: SystemExit: 3"),
    ],
)
def test_what_a_file_lacks_is_one_sentence(tmp_path, capsys, right, wrong, sentence):
    file = write(tmp_path, WORKING.replace(right, wrong, 1))
    with pytest.raises(UsageError, match=sentence) as raised:
        load_domain(file, {})
    assert "\n" not in str(raised.value)
    assert main(["task", "check", file]) == 2
    assert capsys.readouterr().err == f"resia: {raised.value}\n"


def test_a_file_that_is_not_there_and_options_that_it_cannot_have(tmp_path):
    with pytest.raises(UsageError, match=r"gone\.py' cannot be read \(No such file or directory\)"):
        load_domain(str(tmp_path / "gone.py"), {})
    with pytest.raises(UsageError, match="unknown option"):
        load_domain(write(tmp_path, WORKING), {"size": 3})
    assert is_file("x/y.py")
    assert not is_file("denoising")
    assert recorded_name("denoising") == "denoising"


@pytest.mark.parametrize("given", ["2", "float('nan')", "'1'", "None", "-0.1"])
def test_a_score_that_is_no_share_is_an_error_and_no_zero(tmp_path, given):
    domain = load_domain(write(tmp_path, WORKING.replace('answer["times"] / 3', given)), {})
    with pytest.raises(ValueError, match="for item 'test0': give a number from 0 to 1"):
        domain.score("test0", {"say": "yes", "times": 1})


def test_what_a_file_prints_is_no_finding_and_its_end_is_not_ours(tmp_path, capsys):
    source = WORKING.replace("    return answer", "    print('half a line', end='')\n    return answer")
    code, findings, verdict = checked(write(tmp_path, source), capsys)
    assert (code, verdict["admitted"], findings["repeats"]) == (0, True, True)
    source = WORKING.replace("    return answer", "    raise SystemExit(3)\n    return answer")
    code, findings, verdict = checked(write(tmp_path, source, "ends.py"), capsys)
    assert (code, findings["scores"], verdict["admitted"]) == (1, False, False)


def found(file: str) -> dict[str, Finding]:
    return {finding.check: finding for finding in examine(load_domain(file, {}), Plan()).findings}


@pytest.mark.parametrize("shown", ["{row}", "{dict(answer=row)}", "{__import__('json').dumps(row)}"])
def test_a_row_that_is_shown_with_its_gold_in_it_is_found(tmp_path, shown):
    source = WORKING.replace('"n": n}', '"n": n, "say": "yes", "times": 3}')
    source += "\ndef gold(row):\n    return {name: row[name] for name in ANSWER}\n"
    assert found(write(tmp_path, source))["gold"].passed is True
    leaky = source.replace("row {row['id']}", shown)
    assert found(write(tmp_path, leaky, "leaky.py"))["gold"].passed is False


@pytest.mark.parametrize(
    ("gold", "sentence"),
    [
        ("None", "gold of item 'search0' is None: give an answer, as a dict"),
        ('{"say": "maybe"}', "gold of item 'search0' is no answer: argument 'say' is 'maybe'"),
    ],
)
def test_a_gold_that_is_no_answer_is_named(tmp_path, gold, sentence):
    domain = load_domain(write(tmp_path, f"{WORKING}\ndef gold(row):\n    return {gold}\n"), {})
    with pytest.raises(ValueError, match=sentence):
        domain.inside("search0")


def test_a_control_that_cannot_be_scored_says_on_which_item(tmp_path):
    domain = load_domain(write(tmp_path, WORKING.replace("    return answer", "    row['x']\n    return answer")), {})
    with pytest.raises(RuntimeError, match="scoring item 'search0' fails: KeyError: 'x'"):
        domain.controls(0, 0)


def test_one_answer_that_is_always_right_leaves_nothing_to_separate(tmp_path):
    source = WORKING.replace('["no", "yes"]', '["yes"]').replace("range(1, 4)", "[3]")
    source += '\ndef gold(row):\n    return {"say": "yes", "times": 3}\n'
    separation = found(write(tmp_path, source))["separation"]
    assert (separation.passed, separation.detail[:38]) == (False, "every answer that can be tried is gold")


def test_an_entry_point_may_name_a_module_of_three_functions(tmp_path, monkeypatch):
    write(tmp_path, WORKING, "module_of_three.py")
    installed(tmp_path, "three", "module_of_three", monkeypatch)
    try:
        domain = load_domain("three", {})
        assert domain.spec.name == "module_of_three"
        assert domain.score("search0", {"say": "yes", "times": 3}).reward == 1.0
    finally:
        sys.modules.pop("module_of_three", None)


def checked(file: Path | str, capsys, *options: str) -> tuple[int, dict[str, bool | None], dict[str, object]]:
    code = main(["task", "check", str(file), "--json", *options])
    *findings, verdict = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return code, {finding["check"]: finding["passed"] for finding in findings}, verdict


def test_the_written_problem_passes_the_check_and_is_never_overwritten(problem, capsys):
    code, found, verdict = checked(problem, capsys)
    assert (code, verdict["admitted"], verdict["domain"]) == (0, True, "problem")
    assert {check for check, passed in found.items() if passed is not True} == {"direction"}
    assert main(["init", str(problem)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["init", str(problem.parent / "deep" / "other.py"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["file"].endswith("other.py")
    assert (problem.parent / "deep" / "other.py").read_bytes() == problem.read_bytes()


def test_a_scorer_that_draws_is_refused_with_exit_code_1(tmp_path, capsys):
    drawing = WORKING.replace('answer["times"] / 3', "__import__('random').random()")
    assert main(["task", "check", write(tmp_path, drawing)]) == 1
    said = capsys.readouterr().out
    assert "failed  repeats" in said
    assert said.splitlines()[-1].endswith("is refused: repeats")


def test_the_example_is_admitted_and_every_right_answer_wins(capsys):
    code, _, verdict = checked(EXAMPLE, capsys)
    assert (code, verdict["admitted"]) == (0, True)
    domain = load_domain(str(EXAMPLE), {})
    for split in ("search", "validation", "test"):
        assert all(domain.score(item.id, domain.inside(item.id).gold).success for item in domain.items(split))


def test_a_domain_whose_own_code_fails_is_one_sentence(tmp_path, monkeypatch, capsys):
    lines = [
        "class Breaks:",
        "    from resia.domains.simple import NoOptions as Options",
        "    def __init__(self, _): 1 / 0",
    ]
    source = "\n".join(lines)
    (tmp_path / "breaking_domain.py").write_text(source)
    installed(tmp_path, "breaking", "breaking_domain:Breaks", monkeypatch)
    try:
        assert main(["task", "check", "breaking"]) == 1
    finally:
        sys.modules.pop("breaking_domain", None)
    assert capsys.readouterr().err == "resia: building domain 'breaking': ZeroDivisionError: division by zero\n"


def test_nothing_that_an_agent_or_a_trainer_runs_asks_for_the_inside():
    root = Path(__file__).parent.parent
    files = [path for part in ("agents", "trainers", "replay", "runtime") for path in (root / part).rglob("*.py")]
    assert len(files) > 100
    assert [path.name for path in files if "inside(" in path.read_text(encoding="utf-8")] == []


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return fixture_domains.build_model(tmp_path_factory.mktemp("model"))


def asked(problem: Path, model: Path) -> RunSettings:
    return load_settings(None, [f'domain="{problem}"', f'engine.model="{model}"'])


def test_a_log_names_the_whole_path_and_a_changed_file_is_refused_by_name(problem, model, tmp_path, monkeypatch):
    monkeypatch.chdir(problem.parent)
    request = first_event(asked(Path("problem.py"), model), None)
    assert request.settings.domain == str(problem.resolve())
    assert request.settings_digest == request.settings.digest()
    assert len(request.items["validation"]) == 12
    resources = Resources(DirectoryBlobs(tmp_path / "blobs"), None, unsafe_local=False)
    assert resources.domain(request).digest == request.domain_digest == load_domain(str(problem), {}).digest
    problem.write_text(problem.read_text().replace("SHIFT = 3", "SHIFT = 4"))
    with pytest.raises(
        UsageError, match=r"the file '.*problem\.py' is not what the run began with .*, seed what its items draw"
    ):
        Resources(DirectoryBlobs(tmp_path / "blobs"), None, unsafe_local=False).domain(request)


def test_a_run_on_an_unsound_problem_does_not_begin(problem, model):
    source = problem.read_text().replace('{"number": number}', '{"id": "one", "number": number}')
    problem.write_text(source)
    with pytest.raises(UsageError, match="is refused: the id 'one' is given twice"):
        first_event(asked(problem, model), None)


def test_a_whole_run_on_the_written_problem(problem, model, tmp_path):
    """The command, its worker processes, and a model that says a digit: the file is loaded in every process."""
    settings = ["engine.threads=1", "loop.max_iterations=1", "sampling.group_size=2", f'engine.model="{model}"']
    command = [sys.executable, "-m", "resia.runtime.cli", "run", "--domain", "problem.py", "--mode", "H", "--json"]
    command += [part for setting in settings for part in ("--set", setting)] + ["--store", str(tmp_path / "store")]
    done = subprocess.run(command, cwd=problem.parent, capture_output=True, text=True, timeout=240)
    assert done.returncode == BUDGET, done.stderr  # its iterations
    result = json.loads(done.stdout)
    assert (result["run"], result["status"]) == ("problem-h-0", "completed")
    controls = {(c["name"], c["split"]): c["mean"] for c in result["controls"]}
    expected = {(c.name, c.split): c.mean for c in load_domain(str(problem), {}).controls(0, 0)}
    assert controls["reference", "test"] == pytest.approx(expected["reference", "test"])
    assert result["champion_test"] == pytest.approx(
        controls["reference", "test"]
    )  # the model says 5 whatever it is told
