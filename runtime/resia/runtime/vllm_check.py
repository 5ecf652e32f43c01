"""A look at vLLM servers as a run would see them: are they the base, and do they compute what the trainer computes?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import msgspec

from resia.agents.ports import Completion, Sampling
from resia.events import EngineSettings, Manifest, Message, TrainingSettings
from resia.events.errors import ModelError, TrainerError, UsageError

if TYPE_CHECKING:
    from resia.trainers.batch import Row

PROMPTS = ("Count from one to ten.", "Name a colour.", "knn=5 t=3 is a setting. Another?", "Why is the sky blue?")
TEMPERATURES = (0.0, 0.7, 1.3)
NEW_TOKENS = 24


class Checked(msgspec.Struct, frozen=True):
    """What servers are; `mean` and `largest` are absolute differences in nats over `tokens` tokens."""

    manifest: Manifest
    replicas: int
    tokens: int
    mean: float
    largest: float
    bound: float
    alarmed: bool


def checked(
    urls: Sequence[str], model: str | None, adapter: Path | None, dtype: str, threads: int, cache: Path | None
) -> Checked:
    """Ask each server for completions at several temperatures, and recompute their log-probabilities here in `dtype`.

    Raises UsageError where one is down or is not what a run with this model would take.
    """
    from resia.trainers.drift import drift

    from .assets import model_digest
    from .resources import model_folder, policy_over
    from .serving_engine import check_engine, served_engine

    known = EngineSettings()
    precision = cast(Literal["float32", "bfloat16"], dtype)
    settings = EngineSettings("vllm", model or known.model, precision, threads, urls=tuple(urls))
    data = adapter.read_bytes() if adapter else None
    training = _training(adapter, data)
    folder = model_folder(settings, cache)
    digest = model_digest(folder)
    check_engine(settings, folder, cache)
    rows, manifest = [], None
    try:
        for url in urls:
            engine = served_engine(folder, digest, msgspec.structs.replace(settings, urls=(url,)), cache)
            manifest = engine.manifest
            for temperature in TEMPERATURES:
                chats = [[Message("user", prompt)] for prompt in PROMPTS]
                found = engine.generate(chats, Sampling(temperature, NEW_TOKENS), range(len(chats)), adapter)
                rows += [_row(completion, temperature) for completion in found if completion.token_ids]
            engine.close()
    except ModelError as cause:
        raise UsageError(str(cause)) from cause
    assert manifest is not None
    measured = drift(policy_over(settings, cache, digest, training), rows, data, training.micro_tokens)
    return Checked(manifest, len(urls), *measured, settings.drift_limit, measured.mean > settings.drift_limit)


def _training(adapter: Path | None, data: bytes | None) -> TrainingSettings:
    """The settings of the adapter in the file `adapter`, which holds `data`."""
    from resia.trainers.adapter import adapter_info

    if data is None:
        return TrainingSettings()
    try:
        about = adapter_info(data)
    except TrainerError as cause:
        raise UsageError(
            f"{adapter} is no adapter ({cause}): name the weights that a run keeps, a safetensors file"
        ) from None
    return TrainingSettings(rank=about.rank, lora_alpha=about.lora_alpha)


def _row(completion: Completion, temperature: float) -> Row:
    from resia.trainers.batch import Row

    return Row(0, 0, completion.prompt_ids, completion.token_ids, completion.logprobs, temperature or 1.0, 0.0)


def lines(found: Checked) -> list[str]:
    """The result for a person."""
    about = found.manifest
    where = f"{about.dtype} on {about.instruction_set}, {about.threads or 'no set number of'} threads"
    return [
        f"{about.engine}, {found.replicas} replica{'s' if found.replicas > 1 else ''} of {about.model}, {where}",
        f"log-probabilities beside the trainer's: {found.mean:.2g} nats a token on average, {found.largest:.2g} at"
        f" most, over {found.tokens} tokens; {'over' if found.alarmed else 'within'} the bound of {found.bound:g}",
    ]
