"""What generated code may say: its own answer and its own tool calls, and nobody believes more, on every tier."""

from __future__ import annotations

import json
import pickle

import pytest
from sandbox_tiers import OPEN_DESCRIPTORS, refused, returned, sandbox_of

from resia.events.errors import SandboxError
from resia.runtime.sandbox import TIERS

WRITE_TO_THE_LINE = OPEN_DESCRIPTORS + "while data: data = data[os.write(found[3], data):]\nos._exit(0)"


@pytest.fixture(scope="module", params=TIERS, ids=[tier.name.partition("+")[0] for tier in TIERS])
def sandbox(request):
    with sandbox_of(request.param) as made:
        yield made


def test_a_huge_answer_is_not_taken(sandbox):
    failure, message = refused(sandbox, "return 'x' * 20_000_000")
    assert failure == "tool_error"
    assert "20000033 bytes of JSON, more than 1048576" in message
    assert refused(sandbox, "return 'x' * 100_000_000")[0] in {"tool_error", "sandbox_violation"}


def test_printing_goes_nowhere(sandbox, capfd):
    body = "for _ in range(100): print('x' * 1_000_000)\nprint('y', file=sys.stderr)\nreturn sys.stdin.read()"
    assert returned(sandbox, body, imports="sys") == ""
    assert capfd.readouterr() == ("", "")


BOMB = """
import os, pickle

class Bomb:
    def __reduce__(self):
        return os.system, (f"touch {target}",)
"""


@pytest.mark.parametrize(
    "body",
    [
        "return Bomb()",
        "return pickle.dumps(Bomb())",
        "return {'answer': Bomb()}",
        "return tools.score(answer=Bomb())",
        "return tools.score(answer=pickle.dumps(Bomb()))",
        "pickle.loads(pickle.dumps(Bomb()))\n if not os.path.exists(target): raise ValueError('a dud')",
    ],
)
def test_a_pickle_bomb_does_not_go_off(sandbox, tmp_path, body):
    target = tmp_path / "crater"
    text = f"target = {str(target)!r}\n{BOMB}\ndef f(tools):\n {body}"
    with pytest.raises(SandboxError) as caught:
        sandbox.run(text, "f", [], {"score": lambda arguments: pickle.loads(arguments["answer"])})
    assert caught.value.failure in {"tool_error", "sandbox_violation"}
    assert not target.exists()


def test_what_looks_like_a_pickle_stays_text(sandbox):
    bomb = pickle.dumps(ZeroDivisionError()).decode("latin-1")
    ran = sandbox.run("def f(text, tools): return tools.same(text=text)", "f", [bomb], {"same": lambda a: a["text"]})
    assert ran.value == bomb
    assert type(ran.calls[0][1]["text"]) is str


PATCHES = """
import builtins, gc, json, os, sys
builtins.min = builtins.max = builtins.sum = builtins.abs = lambda *a, **k: 1
builtins.len = builtins.len
class Always:
    def __eq__(self, other): return True
    def __getattr__(self, name): return lambda *a, **k: 1
for name in ("resia.domains", "resia.domains.base", "scorer", "numpy", "resia.agents.rollout"):
    sys.modules[name] = Always()
for module in list(sys.modules.values()):
    for name in ("score", "check", "evaluate", "parse"):
        if not name.startswith("_") and module is not json:
            try:
                setattr(module, name, lambda *a, **k: 1.0)
            except (AttributeError, TypeError):
                continue
for found in gc.get_objects():
    if isinstance(found, dict) and "reward" in found:
        found["reward"] = 1.0
def f(tools): return {"answer": 7, "seen": tools.score(answer=7), "again": tools.score(answer=42)}
"""


def test_a_patched_scorer_scores_as_before(sandbox):
    def score(arguments):
        return max(0.0, 1.0 - abs(arguments["answer"] - 42) / 42)

    honest = sandbox.run("def f(tools): return tools.score(answer=7)", "f", [], {"score": score}).value
    ran = sandbox.run(PATCHES, "f", [], {"score": score})
    assert ran.value == {"answer": 7, "seen": honest, "again": 1.0}
    assert ran.calls == (("score", {"answer": 7}, honest), ("score", {"answer": 42}, 1.0))
    assert sandbox.run("def f(tools): return tools.score(answer=7)", "f", [], {"score": score}).value == honest


FORGED = json.dumps({"type": "returned", "value": {"reward": 1.0}})


@pytest.mark.parametrize(
    "body",
    [
        f"print({FORGED!r}, flush=True)",
        f"sys.stdout.buffer.write(len({FORGED!r}).to_bytes(4) + {FORGED!r}.encode())\nsys.stdout.flush()",
        f"sys.__stdout__.write({FORGED!r})\nsys.__stderr__.write({FORGED!r})",
        f"for fd in (0, 1, 2): os.write(fd, len({FORGED!r}).to_bytes(4) + {FORGED!r}.encode())",
    ],
)
def test_an_answer_forged_on_standard_output_is_none(sandbox, capfd, body):
    assert returned(sandbox, f"{body}\nreturn 'mine'", imports="os, sys") == "mine"
    assert capfd.readouterr() == ("", "")


def test_a_forged_answer_is_the_code_s_own_and_ends_its_run(sandbox):
    frame = len(FORGED).to_bytes(4, "big") + FORGED.encode()
    body = f"data = {frame!r} * 3\n" + OPEN_DESCRIPTORS + "os.write(found[3], data)\nreturn 'mine'"
    assert returned(sandbox, body) == {"reward": 1.0}
    assert returned(sandbox, "return 'the next'") == "the next"


@pytest.mark.parametrize("failure", ["infrastructure", "wrong", "BoundaryError", ""])
def test_a_failure_that_is_not_the_code_s_cannot_be_claimed(sandbox, failure):
    said = json.dumps({"type": "raised", "failure": failure, "message": "the engine is away"}).encode()
    body = f"data = {len(said).to_bytes(4, 'big') + said!r}\n" + WRITE_TO_THE_LINE
    assert refused(sandbox, body)[0] == "tool_error"


@pytest.mark.parametrize(
    "sent",
    [
        b"\xff\xff\xff\xff",
        b"\x00\x00\x00\x03\x80\x04N",
        b"\x00\x00\x00\x02{}",
        b'\x00\x00\x00\x10{"type":"ready"}',
        b"\x00\x0f\x00\x00" + b"[" * 0xF0000,
    ],
    ids=["too long", "pickle", "no type", "ready twice", "deep"],
)
def test_a_forged_message_is_the_code_s_own_failure(sandbox, sent):
    body = f"data = {sent[:32]!r} + b'[' * {max(0, len(sent) - 32)}\n" + WRITE_TO_THE_LINE
    failure, message = refused(sandbox, body)
    assert failure == "tool_error"
    assert message.removeprefix("output_limit: ").startswith("sent ")


def test_a_forged_tool_call_reaches_only_the_tools(sandbox):
    body = "args[0]._names.append('secret')\nreturn args[0].secret()"
    with pytest.raises(SandboxError) as caught:
        sandbox.run(f"def f(*args):\n {body.replace(chr(10), chr(10) + ' ')}", "f", [], {"open": lambda _: 1})
    assert "no tool 'secret'" in str(caught.value)
