"""The engine on servers: vLLM replicas of one base, behind one client.

Each prompt is a request of its own, as token ids, with a seed of its own. A batch is spread over the replicas in its
order; one that fails is passed over for the others, and asked last until the next batch, which asks it anew. When all
fail, they are asked again after a pause that grows, and then the whole batch is an infrastructure failure. A server
batches requests as they arrive, so equal calls may differ in the last digits, and in low precision in their tokens.
Collaborators: `vllm_replica` (one server), `vllm_protocol` (what is said), `chat_tokens` (prompts and stops).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from resia.agents.ports import NO_ROOM, Completion, Sampling
from resia.events import EngineSettings, Manifest, Message
from resia.events.errors import ModelError, boundary

from .chat_tokens import load_chat
from .harmony import Stops
from .vllm_adapters import PeftFolders
from .vllm_protocol import completion, sampled
from .vllm_replica import About, Passing, Peft, Replica

TRIES = 6  # 31 s of pauses, and as much when the shard asks once more: what a server takes to come back
FIRST_PAUSE_S = 1.0
IN_FLIGHT = 64  # requests at a time and replica; the server queues what does not fit into its batch


class Asked(NamedTuple):
    """One row: its place in the batch, token ids, seed, and the replica that it goes to first."""

    row: int
    prompt: list[int]
    seed: int
    home: int


class VllmEngine:
    """Implements `resia.agents.ports.Engine` over the servers at `settings.urls`.

    `folder` is the base's model folder, whose tokenizer and template are used and whose weights, with `digest`, are
    not loaded; `adapters` is where adapters are written for the servers to read. `sleep` takes seconds.
    """

    def __init__(
        self,
        folder: Path,
        digest: str,
        settings: EngineSettings,
        adapters: Path,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        with boundary(ModelError, f"the tokenizer of model {settings.model} in {folder} does not load"):
            self._chat, self._context = load_chat(folder, settings.thinking_tokens, settings.effort), _context(folder)
        self._settings, self._digest, self._sleep = settings, digest, sleep
        self._replicas = [Replica(url.rstrip("/"), digest, self._chat) for url in settings.urls]
        self._ailing: set[str] = set()
        self._peft = PeftFolders(adapters, digest)

    @property
    def manifest(self) -> Manifest:
        """What is known of the servers: their version is missing while none that fits has answered. Never raises, as
        a shard that failed has a manifest too."""
        settings, known = self._settings, None
        with suppress(ModelError):
            known = next(iter(self._answering()[0].values()), None)
        return Manifest(
            model=settings.model,
            model_digest=self._digest,
            dtype=known.base.dtype if known else settings.dtype,
            threads=known.base.threads if known else settings.threads,
            instruction_set=known.base.device if known else "",
            package=version("resia"),
            engine=f"vllm {known.version}" if known else "vllm",
        )

    def close(self) -> None:
        for replica in self._replicas:
            replica.close()

    def check(self, rank: int = 0) -> list[About]:
        """What each server is. Raises ModelError naming one that is down or that the run, which trains adapters of
        `rank`, cannot use."""
        answering, failures = self._answering()
        if failures:
            raise ModelError(
                f"a vLLM server does not answer: {'; '.join(failures)}: start it with resia engine vllm serve, or take"
                " it out of engine.urls"
            )
        self._require_alike(answering)
        for replica in self._replicas:
            replica.require_rank(rank, f"training.rank is {rank}")
        return list(answering.values())

    def generate(
        self,
        prompts: Sequence[Sequence[Message]],
        sampling: Sampling,
        seeds: Sequence[int],
        adapter: Path | None,
        on_tokens: Callable[[int], None] | None = None,
    ) -> list[Completion]:
        """See `Engine.generate`; `on_tokens` hears of a completion when it is whole."""
        if len(prompts) != len(seeds):
            raise ModelError(f"{len(prompts)} prompts came with {len(seeds)} seeds; give one seed a prompt")
        if not prompts:
            return []
        peft = self._peft.of(adapter) if adapter else None
        encoded, sampling = self._chat.encode(prompts), self._chat.with_thought(sampling)
        room = self._reached() - sampling.max_new_tokens
        rows = [row for row, tokens in enumerate(encoded) if len(tokens) <= room]
        share = -(-len(rows) // len(self._replicas)) or 1
        asked = [Asked(row, encoded[row], seeds[row], place // share) for place, row in enumerate(rows)]
        done = self._all(asked, sampling, peft, on_tokens)
        none = [Completion(tuple(tokens), (), (), "", NO_ROOM) for tokens in encoded]
        return [done.get(row, none[row]) for row in range(len(encoded))]

    def _all(
        self,
        asked: Sequence[Asked],
        sampling: Sampling,
        peft: Peft | None,
        on_tokens: Callable[[int], None] | None,
    ) -> dict[int, Completion]:
        """Row to completion. The first row that is given up ends the batch: those that wait are not asked."""
        done: dict[int, Completion] = {}
        with ThreadPoolExecutor(min(IN_FLIGHT * len(self._replicas), len(asked)) or 1) as pool:
            waiting = {pool.submit(self._one, one, sampling, peft): one.row for one in asked}
            try:
                for future in as_completed(waiting):
                    found = done[waiting[future]] = future.result()
                    if on_tokens:
                        on_tokens(len(found.token_ids))
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
        return done

    def _one(self, asked: Asked, sampling: Sampling, peft: Peft | None) -> Completion:
        body = completion("", asked.prompt, self._chat.on_server(sampling), asked.seed, self._chat.ends)
        pause = FIRST_PAUSE_S
        for tries in range(TRIES):
            failures = []
            for replica in self._in_turn(asked.home):
                try:
                    reply = replica.complete(body, peft)
                except Passing as cause:
                    self._ailing.add(replica.url)
                    failures.append(str(cause))
                    continue
                self._ailing.discard(replica.url)
                found = sampled(reply, asked.prompt, sampling.max_new_tokens)
                return _completion(
                    asked.prompt, found.token_ids, found.logprobs, found.stopped, self._stopper(sampling)
                )
            if tries + 1 < TRIES:
                self._sleep(pause)
                pause *= 2
        raise ModelError(f"no vLLM server answered in {TRIES} tries: {'; '.join(failures)}")

    def _in_turn(self, home: int) -> list[Replica]:
        """Every replica once, from `home` on, those that failed last time after the others."""
        turned = self._replicas[home:] + self._replicas[:home]
        ailing = set(self._ailing)
        return sorted(turned, key=lambda replica: replica.url in ailing)

    def _stopper(self, sampling: Sampling) -> Stops:
        return self._chat.stopper(sampling.stop)

    def _reached(self) -> int:
        """Waits until a server answers; the context in tokens. Raises ModelError where none does."""
        pause = FIRST_PAUSE_S
        for tries in range(TRIES):
            answering, failures = self._answering()
            if answering:
                self._require_alike(answering)
                return min([self._context, *(about.context for about in answering.values() if about.context)])
            if tries + 1 < TRIES:
                self._sleep(pause)
                pause *= 2
        raise ModelError(f"no vLLM server answered in {TRIES} tries: {'; '.join(failures)}")

    def _answering(self) -> tuple[dict[str, About], list[str]]:
        """What the servers that answer are, by URL, and why the others do not. One that failed before is asked anew,
        and has its part again when it answers."""
        answering, failures = {}, []
        for replica in self._replicas:
            try:
                answering[replica.url] = replica.about(again=replica.url in self._ailing)
                self._ailing.discard(replica.url)
            except Passing as cause:
                self._ailing.add(replica.url)
                failures.append(str(cause))
        return answering, failures

    def _require_alike(self, answering: Mapping[str, About]) -> None:
        """Replicas of different precision or version would make one batch of two distributions."""
        first, *others = answering.items()
        for url, about in others:
            for ours, theirs in ((first[1].version, about.version), (first[1].base.dtype, about.base.dtype)):
                if ours != theirs:
                    raise ModelError(f"the vLLM servers differ: {first[0]} has {ours}, {url} has {theirs}")


def _completion(
    prompt: list[int], tokens: Sequence[int], logprobs: Sequence[float], stopped: bool, stopper: Stops
) -> Completion:
    """The completion up to where the embedded engine would have ended it."""
    length = next((n for n in range(1, len(tokens) + 1) if stopper.stops(list(tokens[:n]))), None)
    kept = list(tokens[:length])
    finish = "stop" if stopped or length is not None else "length"
    return Completion(tuple(prompt), tuple(kept), tuple(logprobs[:length]), stopper.text(kept), finish)


def _context(folder: Path) -> int:
    from transformers import AutoConfig

    return int(AutoConfig.from_pretrained(folder, local_files_only=True).max_position_embeddings)
