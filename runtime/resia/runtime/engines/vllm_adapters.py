"""Adapters in the form that vLLM loads: a PEFT folder an adapter, by the digest of its file.

The folder is written whole beside its place and renamed, so a server never reads half of one. It is a cache: what is
missing is written again from the blob.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
from pathlib import Path

from resia.events.errors import ModelError, boundary
from resia.runtime.assets import file_digest
from resia.trainers.adapter import adapter_info, export_peft

from .vllm_replica import Peft

CONFIG = "adapter_config.json"


class PeftFolders:
    """PEFT folders under `root` of adapters over the base with `base_digest`."""

    def __init__(self, root: Path, base_digest: str) -> None:
        self._root, self._base = root, base_digest
        self._known: dict[tuple[Path, int, int], Peft] = {}
        self._writing = threading.Lock()

    def of(self, path: Path) -> Peft:
        """The folder of the adapter file `path`, which is read once unless it changes. Raises ModelError naming the
        file when it is unreadable or was trained on another base."""
        with self._writing, boundary(ModelError, f"adapter {path} cannot be read"):
            stat = path.stat()
            key = (path.resolve(), stat.st_mtime_ns, stat.st_size)
            if key not in self._known or not (self._known[key].folder / CONFIG).is_file():
                self._known[key] = self._written(path)
            return self._known[key]

    def _written(self, path: Path) -> Peft:
        data, digest = path.read_bytes(), file_digest(path)
        about = adapter_info(data)
        if about.base_digest != self._base:
            raise ModelError(
                f"adapter {path} was trained on base {about.base_digest[:12]}, but the served base is {self._base[:12]}"
            )
        folder = (self._root / digest).resolve()
        if not (folder / CONFIG).is_file():
            self._root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self._root, prefix=".scratch-") as scratch:
                made = Path(scratch) / digest
                export_peft(data, made)
                if folder.exists():  # cut short by a disk that was full, say
                    shutil.rmtree(folder)
                try:
                    made.rename(folder)
                except OSError:
                    if not (folder / CONFIG).is_file():  # else another process was first
                        raise
        return Peft(digest, about.rank, folder)
