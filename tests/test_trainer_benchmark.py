"""Every side of `benchmarks.trainers` takes the same update: their losses agree, so their time and memory compare."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from resia.runtime.engines.tiny import VOCABULARY, build_tiny_model

torch = pytest.importorskip("torch")
ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.filterwarnings("ignore")  # TRL's own
SIDES = {
    "grpo": ("peer",),
    "best_of_n": ("peer",),
    "dpo": ("peer",),
    "reinforce_kl": ("peer",),
    "ppo_gae": ("obvious",),
    "entropic": ("obvious",),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(algorithm, side) -> the reading of two updates in this process."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(str(ROOT))
        given, ours = (importlib.import_module(f"benchmarks.updates.{name}") for name in ("given", "ours"))
        folder = tmp_path_factory.mktemp("sides")
        model = str(build_tiny_model(folder / "model"))
        shape = given.Shape(groups=2, size=4, system=6, item=5, shortest=1, longest=7)
        ours.record(model, given.draw(shape, VOCABULARY), folder / "batch.json")
        sampled = given.read(folder / "batch.json")

        def one(algorithm: str, side: str):
            meter = given.Meter()
            task = given.Task(side, algorithm, model, "", 1, 1, True)
            importlib.import_module(f"benchmarks.updates.{side}").run(task, sampled, meter)
            return meter.reading()

        yield one


@pytest.mark.parametrize("algorithm", SIDES)
def test_both_sides_take_the_same_update(run, algorithm):
    ours = run(algorithm, "ours")
    assert len(ours.seconds) == len(ours.cpu_seconds) == 1
    for side in SIDES[algorithm]:
        assert run(algorithm, side).loss == pytest.approx(ours.loss, abs=1e-5)
    assert abs(ours.loss) > 1e-3
