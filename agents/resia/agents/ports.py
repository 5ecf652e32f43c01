"""The effects that the agents may ask for; the worker loop hands in what implements them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import msgspec

from resia.domains.programs import ProgramRunner, no_programs
from resia.events import Blobs, Event, Manifest, Message, Usage
from resia.replay.state import RunState

Json = Any
T = TypeVar("T")
NO_ROOM, REFUSED = "context", "refusal"
PROGRAMS = "; programs: "  # between the tier of harness code and that of answers which are programs
Tool = Callable[[dict[str, Json]], Json]


class Sampling(msgspec.Struct, frozen=True):
    """How tokens are drawn. `temperature` 0 is greedy; `stop` strings end a completion and are not part of it.

    `schema` is JSON Schema that the text should obey, empty for none; an engine that cannot is free to pass it over.
    """

    temperature: float
    max_new_tokens: int
    stop: tuple[str, ...] = ()
    schema: str = ""


class Completion(msgspec.Struct, frozen=True):
    """One completion. `token_ids` include the token that stopped it; `logprobs` (same length, natural log) are of
    softmax(logits / temperature), at temperature 1 when greedy. `finish` is stop, length, refusal (an endpoint withheld
    the answer), or context: the prompt leaves no room for so many new tokens, and nothing was sampled. `usage` are the
    counts of an endpoint that need not give ids."""

    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    finish: str
    usage: Usage | None = None

    @property
    def prompt_tokens(self) -> int:
        return len(self.prompt_ids) if self.usage is None else self.usage.prompt

    @property
    def completion_tokens(self) -> int:
        return len(self.token_ids) if self.usage is None else self.usage.completion


class Engine(Protocol):
    """A language model. The same call on the same manifest gives the same tokens."""

    @property
    def manifest(self) -> Manifest: ...

    def generate(
        self,
        prompts: Sequence[Sequence[Message]],
        sampling: Sampling,
        seeds: Sequence[int],
        adapter: Path | None,
        on_tokens: Callable[[int], None] | None = None,
    ) -> list[Completion]:
        """One completion a prompt, sampled as one batch; row i draws from a generator seeded with seeds[i].

        `adapter` is a safetensors file of LoRA weights (None: the base); switching does not reload the base.
        `on_tokens` hears the number of new tokens as they come. Raises ModelError.
        """
        ...


class Ran(NamedTuple):
    """What a sandboxed function returned and the tool calls it made: (name, arguments, result)."""

    value: Json
    calls: tuple[tuple[str, dict[str, Json], Json], ...]


class Sandbox(Protocol):
    """Runs generated Python where it can reach nothing but its arguments and the given tools."""

    @property
    def tier(self) -> str: ...

    def run(self, source: str, entry: str, args: Sequence[Json], tools: Mapping[str, Tool] | None = None) -> Ran:
        """Define `source`, call `entry(*args)`, or `entry(*args, tools)` when tools are given.

        In the child `tools.NAME(**kwargs)` calls back into this process. Values cross as JSON. Raises SandboxError
        whose `failure` is tool_error (it raised, does not parse, lacks `entry`, returned no JSON), timeout or
        sandbox_violation (killed by a limit or a forbidden call); raises BoundaryError when the sandbox itself broke.
        """
        ...


class ChatReply(NamedTuple):
    """One reply of an endpoint. `finish` is length where it was cut off; tokens as the endpoint counts them, estimated
    where it says nothing. `failures` names each request that had to be sent again before this one."""

    text: str
    finish: str
    model: str
    prompt_tokens: int
    completion_tokens: int
    failures: tuple[str, ...] = ()


class ChatModel(Protocol):
    """A language model behind an endpoint, which need not answer the same twice."""

    def complete(self, messages: Sequence[Message]) -> ChatReply:
        """The next message of the dialogue. Raises EndpointRefused where asking again would change nothing, and
        ModelError where the endpoint was out of order for as long as it was waited for."""
        ...


class ProposerPorts(NamedTuple):
    """All that a proposer's `perform` may touch."""

    chat: Callable[[], ChatModel]
    sandbox: Callable[[], Sandbox]
    blobs: Blobs


class Line(Protocol):
    """How the performance of a request asks another role, which is another process."""

    def ask(self, event: Event, answered: Callable[[RunState], T | None]) -> T:
        """Append `event`, whose id comes from what it asks, and wait until `answered` finds the answer in the run's
        state; at once where it is there already. Raises BusError when the run or the worker ends before.
        """
        ...


class AgentPorts(NamedTuple):
    """All that the agents' `perform` may touch. `clock` is monotonic seconds; `live` publishes progress that no log
    keeps; `line` is there where a domain's answers are judged by another role, `programs` is asked for only where they
    are programs; `structured`: the engine is asked for answers as JSON objects."""

    engine: Callable[[], Engine]
    sandbox: Callable[[], Sandbox]
    blobs: Blobs
    clock: Callable[[], float]
    live: Callable[[dict[str, Json]], None]
    line: Line | None = None
    programs: Callable[[], ProgramRunner] = no_programs
    structured: bool = False
