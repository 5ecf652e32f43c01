"""The serve command: the embedded model, or a run's champion, for any OpenAI-compatible client."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from resia.events.errors import UsageError

from .cli_options import DONE, STORE, CacheOption, JsonOption, NatsOption, StoreOption, emit, run_async, say

if TYPE_CHECKING:
    from resia.events import EngineSettings

    from .chat_server import ChatServer, Served
    from .store import Store


def register(app: typer.Typer) -> None:
    """Add this group's commands to the command line."""
    app.command()(serve)


def serve(
    model: Annotated[str | None, typer.Option(help="An asset, or a folder as transformers saves it.")] = None,
    run: Annotated[str | None, typer.Option("--run", help="The model and the champion's adapter of this run.")] = None,
    adapter: Annotated[Path | None, typer.Option(help="LoRA weights as a run keeps them, a safetensors file.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; whoever reaches it may ask.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 0,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of the engine; default: one a processor.")] = None,
    store: StoreOption = STORE,
    nats: NatsOption = None,
    cache: CacheOption = None,
    json: JsonOption = False,
) -> int:
    """Serve a model to OpenAI-compatible clients until Ctrl-C: /v1/models and /v1/chat/completions."""
    from resia.events import EngineSettings

    from .store import Store

    if run is not None and (model is not None or adapter is not None):
        raise UsageError("--run has its own model and adapter: leave --model and --adapter out")
    if adapter is not None and not adapter.is_file():
        raise UsageError(f"there is no adapter {adapter}: name a safetensors file with --adapter")
    if run is not None:
        engine, adapter = run_async(_champion(Store(store, nats), run))
        if engine.kind == "openai":
            raise UsageError(
                f"run '{run}' asked model '{engine.model}' behind an endpoint, so there is nothing to serve"
            )
    else:
        engine = EngineSettings(model=model or EngineSettings().model)
    threads = threads or os.cpu_count() or 1
    server = _server(host, port, _loaded(engine, adapter, threads, cache, run or Path(engine.model).name))
    if json:
        emit({"url": server.url, "model": server.served.name, "adapter": str(adapter) if adapter else None})
    say(f"serving {server.served.name} on {server.url}; Ctrl-C ends it")
    run_async(_until_stopped(server))
    return DONE


async def _champion(store: Store, run: str) -> tuple[EngineSettings, Path | None]:
    """The engine of `run` and its champion's adapter file, None for the base."""
    from .reading import state_of

    state = await state_of(store, run)
    if state.request is None or state.champion is None:
        raise UsageError(f"run '{run}' has no champion yet: wait until its baseline is measured")
    weights = state.champion.candidate.adapter
    return state.request.settings.engine, store.blobs().path(weights) if weights else None


def _loaded(engine: EngineSettings, adapter: Path | None, threads: int, cache: Path | None, name: str) -> Served:
    """The model with its adapter, tried once: what does not fit is named before anybody asks."""
    import msgspec

    from resia.agents.ports import Sampling
    from resia.events import Message

    from .chat_server import Served
    from .engines.transformers_engine import TransformersEngine
    from .resources import model_folder

    settings = msgspec.structs.replace(engine, threads=threads)
    loaded = TransformersEngine(model_folder(engine, cache), settings)
    loaded.generate([[Message("user", "?")]], Sampling(0.0, 1), [0], adapter)
    return Served(loaded, adapter, name)


def _server(host: str, port: int, served: Served) -> ChatServer:
    from .chat_server import ChatServer

    return ChatServer(host, port, served)


async def _until_stopped(server: ChatServer) -> None:
    serving = threading.Thread(target=server.serve_forever, daemon=True)
    serving.start()
    try:
        await asyncio.Event().wait()
    finally:
        server.shutdown()
        server.server_close()
