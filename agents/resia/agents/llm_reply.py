"""What a model may reply, validated by pydantic: a whole harness, or one edit of one component, as one JSON object.

In: a reply's text. Out: a Harness. Whatever is off is `Invalid` with a sentence that the model can act on. Nothing here
runs a source: that is `llm_trial`.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal, TypeVar

import msgspec
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from resia.events import Component, Example, Harness, RetryPolicy, SystemPrompt

MAX_TEXT = 20_000  # characters of a system prompt or a source
MAX_EXAMPLE = 4_000
MAX_EXAMPLES = 16
MAX_RATIONALE = 500
MAX_STOPS = 8
_NAMED_ERRORS = 3
_FENCED = re.compile(r"```(?:json)?\s*\n(.*?)```", re.DOTALL)


_T = TypeVar("_T")


class Invalid(Exception):
    """A reply that cannot be used; the message says why."""


def _storable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("half a character (a lone surrogate) cannot be stored") from None
    return text


Text = Annotated[str, Field(min_length=1, max_length=MAX_TEXT), AfterValidator(_storable)]
Short = Annotated[str, Field(min_length=1, max_length=MAX_EXAMPLE), AfterValidator(_storable)]
Rationale = Annotated[str, Field(min_length=1, max_length=MAX_RATIONALE), AfterValidator(_storable)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ExampleValue(_Strict):
    user: Short
    assistant: Short


class PromptValue(_Strict):
    text: Text
    examples: Annotated[tuple[ExampleValue, ...], Field(max_length=MAX_EXAMPLES)] = ()

    def made(self) -> SystemPrompt:
        return SystemPrompt(self.text, tuple(Example(e.user, e.assistant) for e in self.examples))


class PolicyValue(_Strict):
    """The ranges are those of `RetryPolicy`; those that have a default may be left out."""

    temperature: Annotated[float, Field(gt=0.0, le=2.0)]
    max_new_tokens: Annotated[int, Field(ge=1, le=4096)]
    attempts: Annotated[int, Field(ge=1, le=8)]
    stop: Annotated[tuple[Annotated[Short, Field(max_length=100)], ...], Field(max_length=MAX_STOPS)]
    tool_turns: Annotated[int, Field(ge=0, le=16)] = 0
    asks: Annotated[int, Field(ge=0, le=32)] = 8
    votes: Annotated[int, Field(ge=1, le=15)] = 1

    def made(self) -> RetryPolicy:
        return RetryPolicy(**self.model_dump())


class PromptEdit(_Strict):
    component: Literal["system_prompt"]
    rationale: Rationale
    value: PromptValue


class PolicyEdit(_Strict):
    component: Literal["retry_policy"]
    rationale: Rationale
    value: PolicyValue


class SourceEdit(_Strict):
    component: Literal["tool_dispatch", "answer_extraction"]
    rationale: Rationale
    value: Text


class DraftReply(_Strict):
    rationale: Rationale
    system_prompt: PromptValue
    tool_dispatch: Text
    retry_policy: PolicyValue
    answer_extraction: Text


EditReply = Annotated[PromptEdit | PolicyEdit | SourceEdit, Field(discriminator="component")]
_draft = TypeAdapter(DraftReply)
_edit: TypeAdapter[PromptEdit | PolicyEdit | SourceEdit] = TypeAdapter(EditReply)


class Proposal(msgspec.Struct, frozen=True):
    """A harness as a reply makes it, and what it changes: None for all of it."""

    harness: Harness
    component: Component | None
    rationale: str


def read_draft(text: str) -> Proposal:
    """The harness that a reply drafts. Raises Invalid."""
    reply = _validated(_draft, text)
    harness = Harness(
        reply.system_prompt.made(), reply.tool_dispatch, reply.retry_policy.made(), reply.answer_extraction
    )
    return Proposal(harness, None, _one_line(reply.rationale))


def read_edit(text: str, parent: Harness) -> Proposal:
    """`parent` with the one component that a reply changes. Raises Invalid, also where nothing changes."""
    reply = _validated(_edit, text)
    value = reply.value if isinstance(reply, SourceEdit) else reply.value.made()
    harness = msgspec.structs.replace(parent, **{reply.component: value})
    if harness == parent:
        raise Invalid(f"its {reply.component} is the present one, so nothing would change")
    return Proposal(harness, reply.component, _one_line(reply.rationale))


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _validated(adapter: TypeAdapter[_T], text: str) -> _T:
    try:
        return adapter.validate_json(_object(text))
    except ValidationError as cause:
        raise Invalid(_named(cause)) from None


def _object(text: str) -> str:
    """The JSON of a reply that may stand in a fence or between words."""
    if fenced := _FENCED.findall(text):
        text = str(fenced[-1])
    first, last = text.find("{"), text.rfind("}")
    return text[first : last + 1] if 0 <= first < last else text


def _named(cause: ValidationError) -> str:
    """The first few faults with their places. What stood there is left out: it may be long, and the model has it."""
    errors = cause.errors(include_url=False, include_input=False, include_context=False)
    named = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" if e["loc"] else e["msg"] for e in errors[:_NAMED_ERRORS]]
    more = len(errors) - len(named)
    return "; ".join(named) + (f"; and {more} more" if more else "")
