"""Our Triton kernels under Triton's interpreter, on small shapes: right on every element."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("triton", reason="triton is not installed: pip install 'resia[gpu]'")

# Triton decides when it is imported whether it interprets, so this is a process of its own.
PROGRAM = """
import json, sys, torch
from resia.domains.trimul.criterion import compare
from resia.domains.trimul.operator import Case, draw, reference
from resia.kernels import triton_fused, triton_plain

BLOCKS = {"tile": 16, "rows": 16, "block_c": 16, "tile_m": 16, "tile_n": 16, "block_k": 16, "out_rows": 16, "out_c": 16}
found = {}
for case in (Case(5, 1, 16), Case(4, 2, 24, "cauchy", masked=True)):
    inputs = draw(case, 3)
    weights = {name: torch.from_numpy(value) for name, value in inputs.weights.items()}
    expected = reference(inputs)
    for module in (triton_plain, triton_fused):
        output = module.custom_kernel(torch.from_numpy(inputs.x), torch.from_numpy(inputs.mask), weights, BLOCKS)
        agreement = compare(output.numpy(), expected)
        found[f"{module.__name__} {case.name}"] = [str(output.dtype), agreement.outside, agreement.worst]
table = [triton_fused.launch_config(*asked) for asked in (("", {}), ("NVIDIA H100 80GB", {"block_k": 32, "other": 1}))]
json.dump({"found": found, "table": table}, sys.stdout)
"""


@pytest.fixture(scope="module")
def interpreted():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_both_kernels_are_the_operator(interpreted):
    assert len(interpreted["found"]) == 4
    for name, (dtype, outside, worst) in interpreted["found"].items():
        assert (dtype, outside) == ("torch.float32", 0), name
        assert worst < 0.5, name  # 16-bit operands leave room


def test_sizes_come_from_the_device_and_the_config(interpreted):
    plain, h100 = interpreted["table"]
    assert h100.keys() == plain.keys()
    assert (plain["tile_m"], h100["tile_m"], h100["block_k"]) == (64, 128, 32)
