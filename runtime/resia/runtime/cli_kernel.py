"""Commands that judge one kernel file, without a run: `resia kernel verify` and `resia kernel bench`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .cli_options import DONE, FAILED, JsonOption, UnsafeOption, emit, say

if TYPE_CHECKING:
    from resia.kernels.judge import Verdict

app = typer.Typer(help="Judge a TriMul kernel file: is it right, and how fast?", no_args_is_help=True)

FileArgument = Annotated[
    Path, typer.Argument(metavar="FILE.py", help="Defines custom_kernel(x, mask, weights, config).")
]
ConfigOption = Annotated[
    list[str] | None, typer.Option("--config", metavar="NAME=VALUE", help="Given to each call; once for each.")
]
SuiteOption = Annotated[
    str | None, typer.Option("--suite", help="full, small or smoke; without it full on a GPU, small elsewhere.")
]
CaseOption = Annotated[
    list[str] | None,
    typer.Option("--case", metavar="N/B/C[-cauchy][-masked]", help="Only this case; once for each."),
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]
ThreadsOption = Annotated[int, typer.Option("--threads", min=1, max=256, help="Threads of torch on a processor.")]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Of the inputs it is verified on.")]


def register(parent: typer.Typer) -> None:
    """Add this group's commands to the command line."""
    parent.add_typer(app, name="kernel")


@app.command()
def verify(
    file: FileArgument,
    config: ConfigOption = None,
    suite: SuiteOption = None,
    case: CaseOption = None,
    device: DeviceOption = "auto",
    threads: ThreadsOption = 2,
    seed: SeedOption = 0,
    unsafe_local: UnsafeOption = False,
    json: JsonOption = False,
) -> int:
    """Is it right on every tested case? Exit code 1 when it is not."""
    from . import kernelwork

    work = kernelwork.Work(file, config or [], suite, case or [], device, threads, seed, unsafe_local)
    return _show(kernelwork.verified(work, say), json)


@app.command()
def bench(
    file: FileArgument,
    protocol: Annotated[str, typer.Option("--protocol", help="strict or gpumode.")] = "strict",
    config: ConfigOption = None,
    suite: SuiteOption = None,
    case: CaseOption = None,
    device: DeviceOption = "auto",
    threads: ThreadsOption = 2,
    seed: SeedOption = 0,
    unsafe_local: UnsafeOption = False,
    json: JsonOption = False,
) -> int:
    """Verify it, time every timed case, and audit the times. Exit code 1 when it is rejected."""
    from . import kernelwork

    work = kernelwork.Work(file, config or [], suite, case or [], device, threads, seed, unsafe_local)
    return _show(kernelwork.benched(work, protocol, say), json)


def _show(verdict: Verdict, json: bool) -> int:
    from .kernelwork import lines

    if json:
        emit(verdict)
    else:
        typer.echo("\n".join(lines(verdict)))
    return FAILED if verdict.failure else DONE
