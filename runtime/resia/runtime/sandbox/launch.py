"""One child process, started by a thread that stays until the child has ended, and what it complained of.

bubblewrap ends with its parent, and to the kernel the parent is the thread that started it, not that thread's process;
a pool's thread may end at any time. Knows nothing of sandboxes.
"""

from __future__ import annotations

import queue
import subprocess
import threading
from collections.abc import Mapping, Sequence

_END_S = 5.0
_COMPLAINT_BYTES = 4096


class Child:
    """`command`, started in `folder` with `environment` and the descriptors `fds` beside the three standard ones.

    Raises OSError when it cannot be started.
    """

    def __init__(self, command: Sequence[str], folder: str, environment: Mapping[str, str], fds: Sequence[int]) -> None:
        made: queue.SimpleQueue[subprocess.Popen[bytes] | OSError] = queue.SimpleQueue()

        def keep() -> None:
            try:
                process = subprocess.Popen(
                    command,
                    cwd=folder,
                    env=environment,
                    pass_fds=fds,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    start_new_session=True,  # an interrupt at the terminal is not meant for it
                )
            except OSError as error:
                made.put(error)
            else:
                made.put(process)
                process.wait()

        self._keeper = threading.Thread(target=keep, name="sandbox-keeper", daemon=True)
        self._keeper.start()
        outcome = made.get()
        if isinstance(outcome, OSError):
            raise outcome
        self._process = outcome

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def complaint(self) -> str:
        """The last line of what it wrote to standard error; ends it first."""
        self._stop()
        errors = self._process.stderr
        said = errors.read(_COMPLAINT_BYTES).decode(errors="replace").split("\n") if errors else []
        return next((line.strip() for line in reversed(said) if line.strip()), "")

    def end(self) -> None:
        """Wait for it to end, and kill it when it takes long; a second time does nothing."""
        self._stop()
        if self._process.stderr:
            self._process.stderr.close()

    def _stop(self) -> None:
        self._keeper.join(_END_S)
        if self._keeper.is_alive():
            self._process.kill()
            self._keeper.join()
