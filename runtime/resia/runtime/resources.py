"""What a worker's `perform` uses, made when first needed: domains, engine, sandbox, policy, live progress.

Heavy libraries are imported here, by the process that needs them and only then.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from resia.agents.ports import PROGRAMS, AgentPorts, ChatModel, Engine, ProposerPorts
from resia.domains.base import Domain
from resia.domains.files import is_file
from resia.domains.registry import load_domain
from resia.events import (
    Blobs,
    EndpointSettings,
    EngineSettings,
    LlmSettings,
    Manifest,
    RunRequested,
    RunSettings,
    TrainingSettings,
)
from resia.events.errors import ResiaError, UsageError

from . import assets
from .fitting import physical_memory, warn_if_too_large

if TYPE_CHECKING:
    from resia.domains.trimul.roofline import Device
    from resia.trainers.policy import Policy
    from resia.trainers.world import World

    from .chamber.process import ProcessChamber
    from .chamber.programs import ProgramChamber
    from .sandbox import ProcessSandbox

# Where a domain's data comes from when its options name no path: an asset of this package's catalogue.
DOMAIN_ASSETS = {"denoising": ("path", "celltypist-sample")}
KERNEL_DOMAINS = frozenset({"trimul"})  # a run of these has a kernel-bench
Live = Callable[[dict[str, Any]], None]


def package_version() -> str:
    return version("resia")


def domain_for(settings: RunSettings, cache: Path | None) -> Domain:
    """The run's domain, its data found among the assets unless the options say otherwise."""
    options: dict[str, object] = dict(settings.domain_options)
    needed = DOMAIN_ASSETS.get(settings.domain)
    if needed and needed[0] not in options and not options.get("synthetic"):
        options[needed[0]] = str(assets.require(needed[1], cache))
    return load_domain(settings.domain, options)


def model_folder(engine: EngineSettings, cache: Path | None) -> Path:
    """The model's folder: an asset's name, or a path to a folder as transformers saves it."""
    given = Path(engine.model)
    return given if (given / "config.json").is_file() else assets.require(engine.model, cache)


def policy_over(engine: EngineSettings, cache: Path | None, digest: str, training: TrainingSettings) -> Policy:
    """A policy over the engine's model, which has `digest`."""
    from transformers.utils import logging

    from resia.trainers.policy import Policy

    logging.disable_progress_bar()
    folder = model_folder(engine, cache)
    warn_if_too_large(folder, engine, physical_memory())
    return Policy.load(folder, engine.dtype, engine.threads, training, digest)


class Resources:
    """One process's share of the outside world, for any number of runs."""

    def __init__(self, blobs: Blobs, cache: Path | None, unsafe_local: bool, world: World | None = None) -> None:
        """`world` are the processes that train together, None for this one alone."""
        self._blobs, self._cache, self._unsafe, self._world = blobs, cache, unsafe_local, world
        self._domains = lru_cache(maxsize=4)(self._load_domain)
        self._engine = lru_cache(maxsize=1)(self._load_engine)
        self._remote = lru_cache(maxsize=8)(self._reach_engine)
        self._sandbox = lru_cache(maxsize=1)(self._start_sandbox)
        self._programs = lru_cache(maxsize=1)(self._start_programs)
        self._policy = lru_cache(maxsize=1)(self._load_policy)
        self._chat = lru_cache(maxsize=1)(self._reach_endpoint)
        self._chambers: dict[int, ProcessChamber] = {}  # by threads
        self._starting = threading.Lock()
        self._disconnecting: list[Callable[[], None]] = []

    def domain(self, request: RunRequested) -> Domain:
        """The run's domain over exactly the data the run began with."""
        settings = request.settings  # of which runs may differ in all else and share the data
        named = RunSettings(domain=settings.domain, domain_options=settings.domain_options)
        return self._domains(msgspec.json.encode(named, order="deterministic"), request.domain_digest)

    def agent_ports(self, request: RunRequested, live: Live) -> AgentPorts:
        return AgentPorts(
            engine=lambda: self._engine_of(request),
            sandbox=lambda: self._sandbox(),
            blobs=self._blobs,
            clock=time.monotonic,
            live=live,
            programs=self.programs,
            structured=request.settings.engine.kind == "openai" and request.settings.endpoint.answer == "json",
        )

    def programs(self) -> ProgramChamber:
        """Where answers that are programs run. Raises UsageError."""
        with self._starting:
            return self._programs()

    def _engine_of(self, request: RunRequested) -> Engine:
        settings = request.settings
        if settings.engine.kind == "openai":
            return self._remote(settings.engine, msgspec.json.encode(settings.endpoint), request.model_digest)
        return self._engine(settings.engine, request.model_digest)

    def proposer_ports(self, request: RunRequested) -> ProposerPorts:
        return ProposerPorts(lambda: self._chat(request.settings.llm), lambda: self._sandbox(), self._blobs)

    @property
    def blobs(self) -> Blobs:
        return self._blobs

    def policy(self, request: RunRequested, training: TrainingSettings) -> Policy:
        return self._policy(request.settings.engine, request.model_digest, training)

    def chamber(self, threads: int) -> ProcessChamber:
        """Where kernel files are judged: the GPU of this machine, or `threads` of its processor. Raises UsageError."""
        with self._starting:  # runs are served by threads of their own
            if threads not in self._chambers:
                self._chambers[threads] = self._start_chamber(threads)
            return self._chambers[threads]

    def lease(self, device: Device) -> AbstractContextManager[None]:
        """`device` for one process of this machine at a time."""
        from .chamber.lease import lease

        return lease(device)

    def manifest(self, request: RunRequested) -> Manifest:
        """What an adapter's bytes depend on, as the trainer sees it."""
        import torch

        engine = request.settings.engine
        return Manifest(
            engine.model,
            request.model_digest,
            engine.dtype,
            torch.get_num_threads(),
            torch.backends.cpu.get_cpu_capability(),
            package_version(),
        )

    def here(self, request: RunRequested, threads: int) -> Manifest:
        """What this machine would perform with if `threads` were asked for, which it has up to one a processor.

        The model's digest is that of the folder that is here, empty where there is none. Without `sandbox_tier`.
        """
        import torch

        engine = request.settings.engine
        try:
            digest = assets.model_digest(model_folder(engine, self._cache))
        except ResiaError:
            digest = ""
        return Manifest(
            engine.model,
            digest,
            engine.dtype,
            min(threads, os.cpu_count() or 1),
            torch.backends.cpu.get_cpu_capability(),
            package_version(),
        )

    def domain_digest(self, request: RunRequested) -> str:
        """Digest of the domain's data that are here, empty where there are none."""
        try:
            return domain_for(request.settings, self._cache).digest
        except ResiaError:
            return ""

    def sandbox_tier(self, programs: bool = False) -> str:
        """How generated code is confined here, answers that are `programs` too; "none" where it is refused."""
        try:
            own = self._sandbox().tier
            return f"{own}{PROGRAMS}{self._programs().tier}" if programs else own
        except UsageError:
            return "none"

    def close(self) -> None:
        """End the processes of sandbox and chamber and the connections of the engine, where they were started."""
        if self._engine.cache_info().currsize:
            self._engine.cache_clear()
            for disconnect in self._disconnecting:
                disconnect()
        while self._chambers:
            self._chambers.popitem()[1].close()
        if self._programs.cache_info().currsize:
            self._programs().close()
            self._programs.cache_clear()
        if self._sandbox.cache_info().currsize:
            self._sandbox().close()
            self._sandbox.cache_clear()

    def _load_domain(self, settings: bytes, digest: str) -> Domain:
        asked = msgspec.json.decode(settings, type=RunSettings)
        domain = domain_for(asked, self._cache)
        if domain.digest != digest:
            what, fix = f"the data of domain '{domain.spec.name}'", "restore it"
            if is_file(asked.domain):  # whose rows may be drawn anew by every process that loads it
                what, fix = f"the file '{asked.domain}'", "restore it, seed what its items draw"
            raise UsageError(
                f"{what} is not what the run began with (digest {domain.digest[:12]},"
                f" the run's {digest[:12]}): {fix}, or start a new run"
            )
        return domain

    def _load_engine(self, settings: EngineSettings, digest: str) -> Engine:
        folder = model_folder(settings, self._cache)
        here = assets.model_digest(folder)
        if here != digest:
            raise UsageError(
                f"model '{settings.model}' is not what the run began with (digest {here[:12]}, the run's"
                f" {digest[:12]}): pull the asset again"
            )
        if settings.kind == "vllm":
            from .serving_engine import served_engine

            served = served_engine(folder, digest, settings, self._cache)
            self._disconnecting.append(served.close)
            return served
        from .engines.transformers_engine import TransformersEngine

        return TransformersEngine(folder, settings)

    def _reach_endpoint(self, settings: LlmSettings) -> ChatModel:
        from .endpoint import endpoint_key
        from .engines.openai_chat import OpenAiChat

        return OpenAiChat(settings, endpoint_key(settings))

    def _reach_engine(self, engine: EngineSettings, endpoint: bytes, digest: str) -> Engine:
        from .endpoint import endpoint_key
        from .engines.openai_engine import OpenAiEngine

        settings = msgspec.json.decode(endpoint, type=EndpointSettings)
        return OpenAiEngine(engine, settings, endpoint_key(settings), digest)

    def _start_sandbox(self) -> ProcessSandbox:
        from .sandbox import ProcessSandbox, SandboxLimits

        return ProcessSandbox(SandboxLimits(), unsafe_local=self._unsafe)

    def _start_programs(self) -> ProgramChamber:
        from .chamber.programs import ProgramChamber

        return ProgramChamber(unsafe_local=self._unsafe)

    def _start_chamber(self, threads: int) -> ProcessChamber:
        from resia.kernels.ports import Limits

        from .chamber.devices import find
        from .chamber.process import ProcessChamber

        return ProcessChamber(Limits(threads=threads), find("auto", threads), unsafe_local=self._unsafe)

    def _load_policy(self, engine: EngineSettings, digest: str, training: TrainingSettings) -> Policy:
        if self._world is None:
            return policy_over(engine, self._cache, digest, training)
        from resia.trainers.distributed import Load

        self._world.announce(Load(engine, digest, training))
        policy = policy_over(engine, self._cache, digest, training)
        policy.join(self._world)
        return policy
