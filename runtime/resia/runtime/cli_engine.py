"""Commands for engines beside the embedded one: `resia engine vllm prepare`, `serve` and `check`."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from resia.events.errors import ModelError, UsageError

from .cli_options import DONE, FAILED, CacheOption, JsonOption, emit, run_async, say

if TYPE_CHECKING:
    from .vllm_serving import Server

app = typer.Typer(help="Engines on servers of their own.", no_args_is_help=True)
vllm_app = typer.Typer(help="vLLM: an environment of its own, servers, and a look at them.", no_args_is_help=True)
app.add_typer(vllm_app, name="vllm")

DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]
ModelOption = Annotated[str | None, typer.Option("--model", help="An asset, or a folder as transformers saves it.")]
DtypeOption = Annotated[str, typer.Option("--dtype", help="float32 or bfloat16.")]
DTYPES = ("float32", "bfloat16")
LOOK_S = 0.5


def register(parent: typer.Typer) -> None:
    """Add this group's commands to the command line."""
    parent.add_typer(app, name="engine")


@vllm_app.command()
def prepare(device: DeviceOption = "auto", cache: CacheOption = None, json: JsonOption = False) -> int:
    """Install vLLM into an environment of its own, in the cache: minutes and gigabytes, once."""
    from .vllm_environment import build_for
    from .vllm_environment import prepare as made

    found = made(build_for(device), say, cache)
    if json:
        emit(found)
    else:
        say(f"vLLM {found.vllm} for {found.device} is prepared; start a server with: resia engine vllm serve")
    return DONE


@vllm_app.command()
def serve(
    model: ModelOption = None,
    host: Annotated[str, typer.Option(help="Address to listen on; whoever reaches it may load adapters.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 0,
    dtype: DtypeOption = "float32",
    device: DeviceOption = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="On a processor; default: one a core.")] = None,
    max_lora_rank: Annotated[int, typer.Option(help="Adapters of a higher rank are refused.")] = 32,
    slots: Annotated[int, typer.Option(min=1, help="Adapters that are loaded at a time.")] = 4,
    memory: Annotated[int, typer.Option(min=1, help="GB for keys and values, on a processor.")] = 2,
    option: Annotated[
        list[str] | None, typer.Option(metavar="--NAME=VALUE", help="An option of vLLM's own; once for each.")
    ] = None,
    cache: CacheOption = None,
    json: JsonOption = False,
) -> int:
    """Serve a base model, with adapters loaded at run time, until Ctrl-C."""
    from resia.events import EngineSettings
    from resia.events.errors import UnknownName

    from .resources import model_folder
    from .vllm_environment import build_for, engines_folder, required
    from .vllm_serving import Serving, start

    if dtype not in DTYPES:
        raise UnknownName("dtype", dtype, DTYPES)
    environment = required(build_for(device), cache)
    folder = model_folder(EngineSettings(model=model or EngineSettings().model), cache)
    chosen = (max_lora_rank, slots, memory, tuple(option or ()))
    serving = Serving(folder, dtype, host, port, threads or os.cpu_count() or 1, *chosen)
    server = start(environment, serving, engines_folder(cache) / "logs", say)
    try:
        if json:
            emit({"url": server.url, "pid": server.pid, "base": server.base.model_dump()})
        say(f"serving {folder.name} on {server.url} (Ctrl-C ends it)")
        run_async(_until_ended(server))
    finally:
        server.stop()
    return FAILED


async def _until_ended(server: Server) -> None:
    while True:
        if why := server.ended():
            raise ModelError(why)
        await asyncio.sleep(LOOK_S)


@vllm_app.command()
def check(
    url: Annotated[list[str], typer.Option("--url", help="A server's URL; once for each replica.")],
    model: ModelOption = None,
    adapter: Annotated[Path | None, typer.Option(help="LoRA weights as a run keeps them, to be loaded.")] = None,
    dtype: DtypeOption = "float32",
    threads: Annotated[int, typer.Option(min=1, help="Threads of the comparison.")] = 2,
    cache: CacheOption = None,
    json: JsonOption = False,
) -> int:
    """Would a run take these servers? Their base, and their log-probabilities beside the trainer's own.

    Exit code 1 where the difference is over the bound of a new run.
    """
    from resia.events.errors import UnknownName

    from .vllm_check import checked, lines

    if dtype not in DTYPES:
        raise UnknownName("dtype", dtype, DTYPES)
    if adapter is not None and not adapter.is_file():
        raise UsageError(f"there is no adapter {adapter}: name a safetensors file with --adapter")
    found = checked(url, model, adapter, dtype, threads, cache)
    if json:
        emit(found)
    else:
        typer.echo("\n".join(lines(found)))
    return FAILED if found.alarmed else DONE
