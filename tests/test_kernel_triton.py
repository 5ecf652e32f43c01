"""Our Triton kernels: right on every element under Triton's interpreter, and compiled for an H200."""

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


# Bytes of shared memory that a block may have, by compute capability.
SHARED = {"H200": (90, 227 << 10)}  # A100, (80, 163 << 10), and B200, (100, 227 << 10), fit too and take as long again
COMPILES = """
import json, sys, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from resia.kernels import triton_fused as fused, triton_plain as plain

def shared(function, capability, constants, half=(), **options):
    numbers = {"M", "NN", "C", "N"}
    names = function.arg_names
    kinds = {n: "i32" if n in numbers else "*fp16" if n in half else "*fp32" for n in names}
    kinds |= dict.fromkeys(constants, "constexpr")
    source = ASTSource(function, kinds, {(names.index(n),): value for n, value in constants.items()}, {})
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options).metadata.shared

def launched(function, size, stem):
    return {"num_warps": size[f"{stem}_warps"], "num_stages": size[f"{stem}_stages"]}

found = {}
for device, (capability, _) in json.loads(sys.argv[1]).items():
    size = fused.launch_config(device, {})
    row = {"H": 128, "eps": 1e-5}
    found[device] = [
        shared(fused.project, capability, {**row, "R": size["rows"], "BC": size["block_c"]},
               ("joined", "left", "right", "gate"), **launched(fused.project, size, "project")),
        shared(fused.multiply, capability, {"TM": size["tile_m"], "TN": size["tile_n"], "K": size["block_k"]},
               ("left", "right"), **launched(fused.multiply, size, "multiply")),
        shared(fused.finish, capability, {**row, "R": size["out_rows"], "BC": size["out_c"]},
               ("gate", "matrix"), **launched(fused.finish, size, "finish")),
        shared(plain.project, capability, {**row, "BC": 64}),
        shared(plain.multiply, capability, {"H": 128, "T": 32, "K": 32}),
        shared(plain.finish, capability, {**row, "BC": 64}),
    ]
json.dump(found, sys.stdout)
"""


def test_every_kernel_compiles_for_an_h200(tmp_path):
    """Without a GPU: the compiler needs none."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", COMPILES, json.dumps(SHARED)],
        env={**os.environ, "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for device, sizes in json.loads(done.stdout).items():
        assert len(sizes) == 6
        assert max(sizes) <= SHARED[device][1], device
