"""An answer that is a program: the drafted sources in the real sandbox, its form, and what a proposer sees of it."""

from __future__ import annotations

import msgspec
import pytest
from scripted import confined, small_domain

from resia.agents import sources
from resia.agents.code_sources import CONTRACT, code_parameter, spoken
from resia.agents.operators import CATALOGUE, SearchView, Seen, applicable
from resia.agents.proposing import first_harness
from resia.domains import form
from resia.domains.base import Parameter, Reference, TaskSpec

PROGRAM = "def solve(x):\n    return x\n"
SOURCE = Parameter("source", (), PROGRAM, "defines solve(x)", code=True)
SPEC = TaskSpec(
    "programs", "Write solve.", "submit", (SOURCE,), (Reference("plain", {"source": PROGRAM}, "as it is"),), (), "mean"
)


class Programs:
    spec = SPEC

    def parse(self, request):
        return form.parse((SOURCE,), request)

    def render(self, answer):
        return form.render((SOURCE,), answer)


@pytest.fixture(scope="module")
def sandbox():
    yield from confined()


@pytest.mark.parametrize(
    ("text", "strict", "longest", "last"),
    [
        ("```python\na = 1\n```", "a = 1", "a = 1", "a = 1"),
        ("\n```py\na = 1\n```\n", "a = 1", "a = 1", "a = 1"),
        ("Here:\n```\nfirst = 22\n```\nor\n```python\nb = 2\n```", None, "first = 22", "b = 2"),
        ("```python\ncut = off", None, "cut = off", "cut = off"),
        ("Sure!\nimport math\nx = 1", None, "import math\nx = 1", "import math\nx = 1"),
        ("I cannot help with that.", None, None, None),
        ("```python\n\n```", None, None, None),
    ],
)
def test_a_program_is_read_out_of_a_text(sandbox, text, strict, longest, last):
    wrote = (
        sources.strict_extraction(SPEC),
        sources.tolerant_extraction(SPEC),
        sources.tolerant_extraction(SPEC, last=True),
    )
    found = [sandbox.run(source, "extract", [text]).value for source in wrote]
    assert [said and said["source"].strip() for said in found] == [strict, longest, last]


def test_the_same_program_has_one_text_and_another_has_another():
    domain = Programs()
    texts = [domain.render(domain.parse({"source": said})) for said in ("a = 1", "\n\na = 1   \n\n", "a = 2")]
    assert texts[0] == texts[1] != texts[2]
    assert all(len(text) < 100 and "\n" not in text for text in texts)


@pytest.mark.parametrize("source", [None, 3, "", " \n", "a\x00b", "x" * (form.LONGEST + 1), ["a"]])
def test_what_is_no_text_is_refused_in_a_sentence(source):
    with pytest.raises(ValueError, match=r"argument 'source'.*: give"):
        Programs().parse({"source": source})


def test_the_first_harness_shows_the_reference_whole_and_lets_the_model_write_lines(sandbox):
    harness = first_harness(SPEC)
    assert PROGRAM.rstrip() in harness.system_prompt.text
    assert harness.retry_policy.stop == ()
    assert harness.retry_policy.max_new_tokens > len(PROGRAM)
    request = sandbox.run(harness.answer_extraction, "extract", [spoken(Programs(), {"source": PROGRAM})]).value
    tools = {"submit": Programs().parse}
    assert sandbox.run(harness.tool_dispatch, "dispatch", [request], tools).value == {"source": PROGRAM}


def test_operators_leave_out_what_makes_no_sense_for_a_program_and_show_programs_whole():
    harness, domain = first_harness(SPEC), Programs()
    found = applicable(harness, domain)
    assert {"tolerant-extraction", "demonstrate-best", "format-contract"} <= set(found)
    assert not {"repair-arguments", "ask-one-by-one", "any-line"} & set(found)
    seen = Seen("i", "item", domain.render({"source": "a = 1\n"}), 0.7, "", "a = 1\n")
    view = SearchView(("item",), (seen,))
    shown = CATALOGUE["demonstrate-best"].edit(harness, domain, view).system_prompt.examples
    assert [example.assistant for example in shown] == ["```python\na = 1\n```"]
    assert CONTRACT in CATALOGUE["format-contract"].edit(harness, domain, view).system_prompt.text


def test_other_domains_have_no_program():
    assert code_parameter(small_domain().spec) is None
    spec = msgspec.structs.replace(SPEC, parameters=(Parameter("word", (), "a", "free, and no code"),))
    assert code_parameter(spec) is None
