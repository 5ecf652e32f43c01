"""Groups of ranks for test_distributed, forked from one process that has loaded torch once.

`python tests/rank_groups.py FOLDER` plays every scene in two or three processes and leaves what each rank has to tell
in FOLDER, as JSON. Failures are put in from outside, by hooks on the model that is trained.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import torch
from gpt_oss_given import tiny_gpt_oss
from msgspec.structs import replace
from trainer_given import SETTINGS, batch, finish, random_rollouts, tiny_policy

from resia.events import ALGORITHMS, EngineSettings
from resia.events.errors import ResiaError, TrainerError
from resia.trainers.distributed import Load, follow, round_together
from resia.trainers.policy import Policy
from resia.trainers.world import Ranks

WAIT_S = 20.0
STEPS = 2
BASE = Load(EngineSettings(), "base", SETTINGS)
# (algorithm, tokens a micro-batch): a row each, a few, all at once; so more of them than ranks, and fewer.
EXACT = tuple((algorithm, 30) for algorithm in ALGORITHMS)
EXPERTS = (("best_of_n", 30), ("reinforce_kl", 60))
SINGLE = (("grpo", 1), ("grpo", 10_000), ("dpo", 1))
Told = dict[str, Any]


class Trainer:
    """Rank 0, or the only one: a policy whose every round begins with the same weights."""

    def __init__(self, dtype: str, world: Ranks | None = None) -> None:
        self.policy, self.world = policy_for(dtype), world
        self.start = self.policy.adapter_bytes()
        if world is not None:
            world.announce(BASE)
            self.policy.join(world)

    def round(self, algorithm: Any, budget: int) -> Generator[Any, None, Any]:
        self.policy.set_adapter(self.start, 0, values=algorithm == "ppo_gae")
        made, chosen = batch(random_rollouts(5, groups=3)), replace(SETTINGS, micro_tokens=budget)
        return round_together(self.policy, made, algorithm, chosen, STEPS, None, lambda: 0.0)

    def trained(self, algorithm: Any, budget: int) -> Told:
        """Losses and norms of a round's steps, and its adapter and optimiser by digest."""
        steps, result = finish(self.round(algorithm, budget))
        return {
            "steps": [[step.loss, step.grad_norm, step.kl, step.ess, step.clip_fraction] for step in steps],
            "adapter": hashlib.sha256(result.adapter).hexdigest(),
            "optimizer": hashlib.sha256(result.optimizer).hexdigest(),
            "held": sum(_local(weight).numel() for weight in self.policy.model.parameters()),
        }

    def dismiss(self) -> None:
        if self.world is not None:
            self.world.announce(None)


def _local(weight: Any) -> Any:
    return weight.to_local() if hasattr(weight, "to_local") else weight


def policy_for(kind: str) -> Any:
    """`kind` is float64, float32, or experts for a gpt-oss in float32."""
    if kind != "experts":
        return tiny_policy(exact=kind == "float64", hidden=32)
    policy = Policy(tiny_gpt_oss(), SETTINGS, "base")
    policy.set_adapter(None, 1)
    return policy


def all_of(dtype: str, rounds: Sequence[tuple[str, int]], world: Ranks | None = None) -> Told:
    """Rounds one after another."""
    trainer = Trainer(dtype, world)
    told = {f"{algorithm} {budget}": trainer.trained(algorithm, budget) for algorithm, budget in rounds}
    trainer.dismiss()
    return told


def follower(dtype: str, hook: Callable[[], None] | None = None) -> Callable[[Ranks], Told]:
    """A rank above 0; `hook` is called before every pass of its model."""

    def policy_of(load: Load) -> Any:
        assert load == BASE
        policy = policy_for(dtype)
        if hook is not None:
            policy.model.base_model.model.model.register_forward_pre_hook(lambda *_: hook())
        return policy

    def play(world: Ranks) -> Told:
        follow(world, policy_of, lambda: 0.0)
        return {"ended": True}

    return play


def one_round(world: Ranks) -> Told:
    return Trainer("float32", world).trained("grpo", 1)


def failed_then_sound(world: Ranks) -> Told:
    """The other rank fails in its first pass; the next round is sound."""
    trainer = Trainer("float32", world)
    try:
        told = trainer.trained("grpo", 1)
    except TrainerError as cause:
        told = {"error": str(cause), "step": cause.step}
    told["after"] = trainer.trained("grpo", 1)
    trainer.dismiss()
    return told


def abandoned(world: Ranks) -> Told:
    """A round that its caller gives up after one step, then another."""
    trainer = Trainer("float32", world)
    steps = trainer.round("grpo", 1)
    next(steps)
    steps.close()
    told = {"after": trainer.trained("grpo", 1)}
    trainer.dismiss()
    return told


def once(act: Callable[[], None]) -> Callable[[], None]:
    left = [act]
    return lambda: left.pop()() if left else None


def out_of_memory() -> None:
    raise RuntimeError("out of memory")


def die() -> None:
    os._exit(9)


def hang() -> None:
    signal.pause()


def another_version() -> None:
    torch.__version__ = "0.0"


class Scene:
    """`ranks` play at once; `before` is called on the last of them before it joins."""

    def __init__(self, *ranks: Callable[[Ranks], Told], wait_s: float = WAIT_S, before: Any = None, spread=False):
        self.ranks, self.wait_s, self.before, self.spread = ranks, wait_s, before, spread


SCENES = {
    "two in float64": Scene(lambda world: all_of("float64", EXACT, world), follower("float64")),
    "three in float32": Scene(lambda world: all_of("float32", SINGLE, world), follower("float32"), follower("float32")),
    "spread": Scene(lambda world: all_of("float32", SINGLE, world), *[follower("float32")] * 2, spread=True),
    "spread experts": Scene(lambda world: all_of("experts", EXPERTS, world), follower("experts"), spread=True),
    "fails": Scene(failed_then_sound, follower("float32", once(out_of_memory))),
    "abandoned": Scene(abandoned, follower("float32")),
    "dies": Scene(one_round, follower("float32", die)),
    "hangs": Scene(one_round, follower("float32", hang), wait_s=2.0),
    "leader dies": Scene(lambda _: die() or {}, follower("float32")),
    "another version": Scene(one_round, follower("float32"), before=another_version),
}


def play(scene: Scene, folder: Path) -> None:
    """Every rank in a process of its own; the last is killed where the first has ended and it goes on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE=str(len(scene.ranks)))
    pids = [_forked(scene, rank, folder / f"{rank}.json") for rank in range(len(scene.ranks))]
    os.waitpid(pids[0], 0)
    for pid in pids[1:]:
        if scene.wait_s < WAIT_S:
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _forked(scene: Scene, rank: int, path: Path) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        os.environ["RANK"] = str(rank)
        if scene.before is not None and rank == len(scene.ranks) - 1:
            scene.before()
        told = scene.ranks[rank](Ranks(scene.wait_s, spread=scene.spread))
    except ResiaError as cause:
        told = {"error": type(cause).__name__, "text": str(cause)}
    except BaseException:  # noqa: BLE001 - it is told, and the process ends
        told = {"error": "unexpected", "text": traceback.format_exc()}
    path.write_text(json.dumps(told))
    os._exit(0)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    policy_for("float32")  # what it imports takes longer than all the scenes
    for name, scene in SCENES.items():
        (folder / name).mkdir()
        play(scene, folder / name)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
