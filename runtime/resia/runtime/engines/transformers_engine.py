"""The embedded engine: a transformers model on the CPU, sampled by a loop of our own.

Unlike `model.generate` it gives every row a generator of its own, returns the log-probability of each token under the
distribution it was drawn from, and computes what the rows of a batch share only once. Tokens depend on the manifest and
on the batch: neighbours change float32 results in the last digits only, lower precisions more.
Collaborators: `sampling` (draws), `chat_tokens` (prompts, stops), `decoding` (the batch in flight), `shared_prefix`
(attention), `lora` (adapters). Knows nothing of harnesses, scores or events.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, Mxfp4Config
from transformers.utils import logging

from resia.agents.ports import NO_ROOM, Completion, Sampling
from resia.events import EngineSettings, Manifest, Message
from resia.events.errors import ModelError, boundary
from resia.runtime.assets import model_digest

from .chat_tokens import ChatTokens, end_tokens, load_tokenizer
from .decoding import Decoding
from .lora import Adapters
from .sampling import draw, uniforms
from .shared_prefix import NAME, Prefix, common_prefix, prefill_prefix

KEEP_PREFIXES = 4
OWN = frozenset({"gpt_oss"})  # architectures whose own attention runs: sliding windows and sinks share no prefix


class TransformersEngine:
    """Implements `resia.agents.ports.Engine`. One process should hold one: it sets torch's number of threads."""

    def __init__(self, model_dir: Path, settings: EngineSettings) -> None:
        """Load the model folder `model_dir` as transformers writes it; raises ModelError when it cannot be used."""
        if not (model_dir / "config.json").is_file():
            raise ModelError(f"there is no model in {model_dir}: run: resia assets pull {settings.model}")
        torch.set_num_threads(settings.threads)
        logging.disable_progress_bar()
        with boundary(ModelError, f"model {settings.model} in {model_dir} does not load"):
            digest = model_digest(model_dir)
            self._model: Any = _loaded(model_dir, settings)
            tokenizer = load_tokenizer(model_dir)
            ends = end_tokens(tokenizer, self._model.generation_config)
            self._chat = ChatTokens(tokenizer, ends, settings.thinking_tokens, settings.effort)
        kinds = set(getattr(self._model.config, "layer_types", None) or ["full_attention"])
        self._window: int | None = self._model.config.sliding_window if self._model.config.model_type in OWN else None
        if kinds != {"full_attention"} and self._window is None:
            raise ModelError(
                f"model {settings.model} has layers of {', '.join(sorted(kinds))}; only full attention works"
            )
        self._settings = settings
        self._adapters = Adapters(self._model, digest)
        self._prefixes: OrderedDict[tuple[str, tuple[int, ...]], Prefix] = OrderedDict()
        self._manifest = Manifest(
            model=settings.model,
            model_digest=digest,
            dtype=settings.dtype,
            threads=settings.threads,
            instruction_set=torch.backends.cpu.get_cpu_capability(),
            package=version("resia"),
        )

    @property
    def manifest(self) -> Manifest:
        """What the tokens depend on beside the seeds; `sandbox_tier` is empty, for it is not the engine's."""
        return self._manifest

    def generate(
        self,
        prompts: Sequence[Sequence[Message]],
        sampling: Sampling,
        seeds: Sequence[int],
        adapter: Path | None,
        on_tokens: Callable[[int], None] | None = None,
    ) -> list[Completion]:
        """See `Engine.generate`."""
        if len(prompts) != len(seeds):
            raise ModelError(f"{len(prompts)} prompts came with {len(seeds)} seeds; give one seed a prompt")
        if not prompts:
            return []
        key = self._adapters.use(adapter)
        with boundary(ModelError, f"model {self._settings.model} failed to generate"), torch.inference_mode():
            encoded = self._chat.encode(prompts)
            sampling = self._chat.with_thought(sampling)
            room = self._model.config.max_position_embeddings - sampling.max_new_tokens
            rows = [row for row, tokens in enumerate(encoded) if len(tokens) <= room]
            some = [encoded[row] for row in rows], [seeds[row] for row in rows]
            sampled = dict(zip(rows, self._sample(key, *some, sampling, on_tokens), strict=True))
            none = [Completion(tuple(tokens), (), (), "", NO_ROOM) for tokens in encoded]
            return [sampled.get(row, none[row]) for row in range(len(encoded))]

    def _sample(
        self,
        adapter: str,
        encoded: list[list[int]],
        seeds: Sequence[int],
        sampling: Sampling,
        on_tokens: Callable[[int], None] | None,
    ) -> list[Completion]:
        if not encoded:
            return []
        shared = common_prefix(encoded) if self._window is None else 0
        prefix = self._prefix(adapter, encoded[0][:shared])
        suffixes = [row[shared:] for row in encoded]
        decoding = Decoding(self._model, prefix, suffixes, sampling.max_new_tokens, self._window)
        return self._decode(decoding, encoded, sampling, seeds, on_tokens)

    def _prefix(self, adapter: str, tokens: list[int]) -> Prefix | None:
        """Keys and values of the shared tokens, kept from call to call for a few (adapter, tokens)."""
        if not tokens:
            return None
        key = (adapter, tuple(tokens))
        if key not in self._prefixes:
            self._prefixes[key] = prefill_prefix(self._model, tokens)
        self._prefixes.move_to_end(key)
        if len(self._prefixes) > KEEP_PREFIXES:
            self._prefixes.popitem(last=False)
        return self._prefixes[key]

    def _decode(
        self,
        decoding: Decoding,
        encoded: list[list[int]],
        sampling: Sampling,
        seeds: Sequence[int],
        on_tokens: Callable[[int], None] | None,
    ) -> list[Completion]:
        """Sample until every row has stopped or is long enough."""
        uniforms_B_T = uniforms(seeds, sampling.max_new_tokens)
        stopper = self._chat.stopper(sampling.stop)
        tokens: list[list[int]] = [[] for _ in encoded]
        logprobs: list[list[float]] = [[] for _ in encoded]
        stopped: set[int] = set()
        for step in range(sampling.max_new_tokens):
            drawn = draw(decoding.logits_B_V, sampling.temperature, uniforms_B_T[decoding.rows, step])
            slots = [slot for slot, row in enumerate(decoding.rows) if row not in stopped]
            for slot in slots:
                row = decoding.rows[slot]
                tokens[row].append(int(drawn.tokens[slot]))
                logprobs[row].append(float(drawn.logprobs[slot]))
                if stopper.stops(tokens[row]):
                    stopped.add(row)
            if on_tokens:
                on_tokens(len(slots))
            alive = [slot for slot in slots if decoding.rows[slot] not in stopped]
            if not alive or step + 1 == sampling.max_new_tokens:
                break
            drawn_B = drawn.tokens
            # Half the rows or fewer left: a smaller batch pays for the copying.
            if 2 * len(alive) <= len(decoding.rows):
                decoding.keep(alive)
                drawn_B = drawn_B[alive]
            decoding.step(drawn_B)
        return [
            Completion(
                prompt_ids=tuple(encoded[row]),
                token_ids=tuple(tokens[row]),
                logprobs=tuple(logprobs[row]),
                text=stopper.text(tokens[row]),
                finish="stop" if row in stopped else "length",
            )
            for row in range(len(encoded))
        ]


def _loaded(model_dir: Path, settings: EngineSettings) -> Any:
    """The model ready to answer; experts stored as MXFP4 are unpacked, as the trainer unpacks them."""
    config = AutoConfig.from_pretrained(model_dir, local_files_only=True)
    stored = getattr(config, "quantization_config", None) or {}
    unpacked = {"quantization_config": Mxfp4Config(dequantize=True)} if stored.get("quant_method") == "mxfp4" else {}
    return AutoModelForCausalLM.from_pretrained(
        model_dir,
        dtype=getattr(torch, settings.dtype),
        attn_implementation="eager" if config.model_type in OWN else NAME,
        local_files_only=True,
        **unpacked,
    ).eval()
