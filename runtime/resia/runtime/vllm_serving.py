"""A vLLM server over one base, as a child of this process: its command line, its start and its end.

The server is started so that a run can trust it: under a name that tells base, precision and device
(`engines.vllm_protocol`), with log-probabilities of the distribution that is sampled, and without sampling defaults of
the model's own. It listens on loopback unless told otherwise, as whoever reaches it may load adapters into it.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import httpx2

from resia.events.errors import ModelError, UsageError

from .assets import model_digest
from .engines.vllm_protocol import RANKS, Base
from .lifeline import end_with_parent
from .vllm_environment import Environment

READY_S = 600.0  # a large base is read for minutes
POLL_S = 0.25
STOP_S = 10.0
Report = Callable[[str], None]


class Serving(NamedTuple):
    """What is served and how. `memory_gb` is of a CPU server's key-value cache; `more` are options of vLLM's own."""

    folder: Path
    dtype: str = "float32"
    host: str = "127.0.0.1"
    port: int = 0
    threads: int = 2
    rank: int = 32
    slots: int = 4
    memory_gb: int = 2
    more: Sequence[str] = ()


class Server:
    """A running server; `stop` it. `pid` is its process."""

    def __init__(self, process: subprocess.Popen[bytes], url: str, base: Base, log: Path) -> None:
        self._process, self.url, self.base, self.log = process, url, base, log

    @property
    def pid(self) -> int:
        return self._process.pid

    def ended(self) -> str:
        """Why it is gone; empty while it runs."""
        code = self._process.poll()
        return "" if code is None else f"the vLLM server ended with code {code}: {last_words(self.log)}"

    def stop(self) -> None:
        """SIGTERM, and after ten seconds, or for children that it leaves behind, SIGKILL."""
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_S)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def start(environment: Environment, serving: Serving, logs: Path, report: Report) -> Server:
    """Start a server and wait until it answers. Raises ModelError with its last words where it does not."""
    serving = serving._replace(port=free_port(serving.host, serving.port))
    base = base_of(environment, serving)
    words = command(environment, serving, base)
    logs.mkdir(parents=True, exist_ok=True)
    log = logs / f"vllm-{serving.port}.log"
    with log.open("wb") as sink:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            env={**os.environ, **variables(environment, serving)},
            start_new_session=True,
            preexec_fn=end_with_parent,
        )
    server = Server(process, f"http://{serving.host}:{serving.port}", base, log)
    report(f"starting vLLM {environment.vllm} on {server.url} (log: {log})")
    try:
        _wait(server)
    except BaseException:
        server.stop()
        raise
    return server


def _wait(server: Server) -> None:
    until = time.monotonic() + READY_S
    while time.monotonic() < until:
        if why := server.ended():
            raise ModelError(why)
        with suppress(httpx2.TransportError):
            if httpx2.get(f"{server.url}/health", timeout=POLL_S * 8).status_code == 200:
                return
        time.sleep(POLL_S)
    raise ModelError(f"the vLLM server at {server.url} is not ready after {READY_S:.0f} s: {last_words(server.log)}")


def command(environment: Environment, serving: Serving, base: Base) -> list[str]:
    """The server's command line."""
    chosen = {
        "--model": str(serving.folder.resolve()),
        "--served-model-name": base.name(),
        "--host": serving.host,
        "--port": str(serving.port),
        "--dtype": base.dtype,
        "--max-lora-rank": str(base.rank),
        "--max-loras": str(base.slots),
        "--max-cpu-loras": str(base.slots),
        # Else top_p, top_k and penalties of the model's own come into the distribution.
        "--generation-config": "vllm",
        # Else log-probabilities are those at temperature 1, whatever was sampled.
        "--logprobs-mode": "processed_logprobs",
    }
    for word in serving.more:
        name = word.partition("=")[0].replace("_", "-")
        if not name.startswith("--") or name in chosen:
            why = (
                "a run relies on resia's own value" if name in chosen else "it takes --NAME=VALUE, an option of vLLM's"
            )
            raise UsageError(f"--option is {word!r}: {why}")
    pairs = [word for pair in chosen.items() for word in pair]
    return [environment.python, "-m", "vllm.entrypoints.openai.api_server", "--enable-lora", *pairs, *serving.more]


def variables(environment: Environment, serving: Serving) -> dict[str, str]:
    """The server's environment: adapters at run time, no word to anybody, threads on purpose."""
    shared = {
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if environment.device != "cpu":
        return shared
    threads = {"OMP_NUM_THREADS": str(serving.threads), "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    return {**shared, **threads, "VLLM_CPU_KVCACHE_SPACE": str(serving.memory_gb)}


def base_of(environment: Environment, serving: Serving) -> Base:
    """What the server will say that it is."""
    if serving.rank not in RANKS:
        raise UsageError(f"--max-lora-rank is {serving.rank}: vLLM takes {', '.join(map(str, RANKS))}")
    device = re.sub("[^a-z0-9]+", "-", f"{environment.device} {environment.hardware}".lower()).strip("-")
    return Base(
        digest=model_digest(serving.folder),
        dtype=serving.dtype,
        device=device,
        threads=serving.threads if environment.device == "cpu" else 0,
        rank=serving.rank,
        slots=serving.slots,
    )


def free_port(host: str, wanted: int = 0) -> int:
    """`wanted`, or any where it is 0, free now. UsageError where not: who has it would pass for the server."""
    try:
        with socket.create_server((host, wanted)) as probe:
            port: int = probe.getsockname()[1]
            return port
    except OSError as cause:
        where = f"port {wanted} of {host}" if wanted else f"host {host}"
        why = os.strerror(cause.errno) if cause.errno and cause.errno > 0 else str(cause)
        raise UsageError(f"vLLM cannot listen on {where} ({why}): give another with --port or --host") from None


def last_words(log: Path) -> str:
    """The last error that a server's log names and that does not point at another, or its last line."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [found[0] for line in lines if (found := re.search(r"\b\w*(Error|Exception): .*", line))]
    causes = [error for error in errors if "root cause" not in error]
    return (causes or errors or lines or ["it said nothing"])[-1][-400:]
