"""TriMul against the mathematics written in another way, the criterion, the cases and the roofline's known numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resia.domains.trimul.cases import FULL, SMALL, SUITES, geometric_mean, reward, suite
from resia.domains.trimul.criterion import compare
from resia.domains.trimul.operator import HIDDEN, Case, draw, reference, reference_block, shapes
from resia.domains.trimul.roofline import cpu, floor_us, gpu, ideal_us, three_kernels_us
from resia.events.errors import UnknownName

torch = pytest.importorskip("torch", reason="torch is not installed")


def oracle(inputs):
    """The operator by torch's own layers and einsum in float64, and by loops over b, i and j."""
    x, mask = torch.from_numpy(inputs.x).double(), torch.from_numpy(inputs.mask).double()
    w = {name: torch.from_numpy(value).double() for name, value in inputs.weights.items()}
    norm = torch.nn.functional.layer_norm
    y = norm(x, x.shape[-1:], w["norm_weight"], w["norm_bias"], 1e-5)
    linear = torch.nn.functional.linear
    left = linear(y, w["left_proj"]) * mask[..., None] * torch.sigmoid(linear(y, w["left_gate"]))
    right = linear(y, w["right_proj"]) * mask[..., None] * torch.sigmoid(linear(y, w["right_gate"]))
    product = torch.empty(*x.shape[:3], HIDDEN, dtype=torch.float64)
    for b in range(len(x)):
        for i in range(x.shape[1]):
            for j in range(x.shape[1]):
                product[b, i, j] = (left[b, i] * right[b, j]).sum(0)
    normed = norm(product, (HIDDEN,), w["out_norm_weight"], w["out_norm_bias"], 1e-5)
    return linear(normed * torch.sigmoid(linear(y, w["out_gate"])), w["out_proj"]).numpy()


CASES = st.builds(
    Case,
    n=st.integers(1, 7),
    batch=st.integers(1, 2),
    channels=st.integers(2, 24),
    law=st.sampled_from(("normal", "cauchy")),
    masked=st.booleans(),
)


@settings(max_examples=20, deadline=None)
@given(CASES, st.integers(0, 2**32))
def test_the_reference_is_the_operator(case, seed):
    inputs = draw(case, seed)
    assert {name: array.shape for name, array in inputs.arrays().items()} == shapes(case)
    assert {array.dtype for array in inputs.arrays().values()} == {np.dtype(np.float32)}
    np.testing.assert_allclose(reference(inputs), oracle(inputs), rtol=1e-9, atol=1e-9)


@settings(max_examples=15, deadline=None)
@given(CASES, st.data())
def test_a_block_is_part_of_the_whole(case, data):
    inputs = draw(case, 3)
    some = st.lists(st.integers(0, case.n - 1), min_size=1, unique=True)
    rows, columns = (np.array(sorted(data.draw(some))) for _ in range(2))
    whole = reference(inputs)[:, rows][:, :, columns]
    np.testing.assert_allclose(reference_block(inputs, rows, columns), whole, rtol=1e-10, atol=1e-12)


def test_draws_are_of_their_law_and_of_their_seed():
    case = Case(40, 2, 16, "cauchy", masked=True)
    a, b, other = draw(case, 1), draw(case, 1), draw(case, 2)
    assert all(np.array_equal(x, y) for x, y in zip(a.arrays().values(), b.arrays().values(), strict=True))
    assert not np.array_equal(a.x, other.x)
    assert np.median(np.abs(a.x)) == pytest.approx(2.0, rel=0.05)  # the median of |Cauchy| is its scale
    assert set(np.unique(a.mask)) == {0.0, 1.0}
    assert a.mask.mean() == pytest.approx(0.5, abs=0.03)
    plain = draw(Case(40, 2, 16), 1)
    assert plain.x.std() == pytest.approx(1.0, abs=0.02)
    assert (plain.mask == 1).all()
    assert plain.weights["left_proj"].std() == pytest.approx(HIDDEN**-0.5, rel=0.1)
    assert plain.weights["out_proj"].std() == pytest.approx(16**-0.5, rel=0.1)


def test_the_mask_decides_most_of_the_elements():
    inputs = draw(Case(32, 1, 128, masked=True), 0)
    skipped = reference(inputs._replace(mask=np.ones_like(inputs.mask)))
    found = compare(skipped.astype(np.float32), reference(inputs))
    assert found.outside / found.elements > 0.5


@pytest.mark.parametrize(
    ("output", "expected", "outside"),
    [
        (1.0, 1.0, 0),
        (1.0399, 1.0, 0),
        (1.0401, 1.0, 1),
        (-0.0199, 0.0, 0),
        (0.0201, 0.0, 1),
        (math.nan, 1.0, 1),
        (math.inf, 1.0, 1),
        (1.0, math.nan, 1),
        (math.nan, math.nan, 0),
        (math.inf, math.inf, 0),
        (-math.inf, math.inf, 1),
        (math.nan, math.inf, 1),
    ],
)
def test_the_criterion(output, expected, outside):
    found = compare(np.array([0.5, output], np.float32), np.array([0.5, expected]))
    assert (found.elements, found.outside, found.right) == (2, outside, not outside)


def test_another_shape_is_an_error():
    with pytest.raises(ValueError, match="shape"):
        compare(np.zeros((2, 1), np.float32), np.zeros((1, 2)))


def test_the_cases_are_the_published_ones():
    assert len(FULL.timed) == len(SMALL.timed) == 7
    assert len(FULL.tested) == 7 * 4
    assert {(c.n, c.batch, c.channels) for c in FULL.tested if c.masked and c.law == "cauchy"} == {
        *((32, 1, 128), (64, 2, 256), (128, 1, 768), (256, 1, 128), (768, 2, 128), (1024, 1, 384), (1024, 1, 768))
    }
    assert [(c.n, c.law, c.masked) for c in FULL.timed] == [
        *((256, "normal", False), (768, "cauchy", False), (256, "normal", True), (512, "normal", False)),
        *((1024, "cauchy", False), (768, "normal", True), (1024, "normal", False)),
    ]
    for known in SUITES.values():
        assert any(case.masked for case in known.tested)
        assert len({case.name for case in known.tested}) == len(known.tested)
    with pytest.raises(UnknownName, match="smoke"):
        suite("smokes")


def test_score_and_reward():
    assert geometric_mean({"a": 100.0, "b": 400.0}) == pytest.approx(200.0)
    assert reward(1161.0) == pytest.approx(1.292, abs=5e-4)
    assert reward(12483.0) == pytest.approx(0.120, abs=5e-4)


@pytest.mark.parametrize(("name", "ideal", "three"), [("NVIDIA H200", 250, 394), ("NVIDIA H100 80GB", 260, 522)])
def test_the_roofline_of_known_gpus(name, ideal, three):
    device = gpu(name, 0.0, 0.0, 0)
    assert floor_us(FULL.timed, device) == pytest.approx(ideal, abs=1)
    floors = {case.name: three_kernels_us(case, device) for case in FULL.timed}
    assert geometric_mean(floors) == pytest.approx(three, abs=1)
    if "H200" in name:
        assert list(floors.values()) == pytest.approx([94, 463, 167, 187, 910, 795, 1500], abs=1.5)


def test_an_unknown_gpu_has_the_roofline_of_its_properties():
    case, slow, fast = FULL.timed[0], gpu("X", 1e12, 1e11, 1), gpu("X", 2e12, 2e11, 1)
    assert ideal_us(case, slow) == pytest.approx(2 * ideal_us(case, fast))


def test_a_processor_has_a_roofline_that_grows_with_threads():
    case = SMALL.timed[-1]
    assert 0 < ideal_us(case, cpu(2)) <= ideal_us(case, cpu(1))
    assert "2 threads" in cpu(2).name
