"""The processes (ranks) that share the passes of one policy, and what they give each other.

A World takes items and does each on some rank: the micro-batches of a pass are dealt out in turn, and their gradients
are added up in the order of the micro-batches on every rank, as one process adds them, so on equal machines sums do not
depend on the number of ranks. A pass costs each rank the reading of one adapter a micro-batch, which is small beside
the micro-batch itself. A rank that fails in a pass fails it on all of them; one that is gone or silent ends the
others with RankLost. Collaborators: gradient gives passes to a World, `distributed` leads the ranks through rounds.
Knows nothing of rounds, objectives or the log.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from resia.events.errors import TrainerError, WorkerError

if TYPE_CHECKING:
    import torch

Item = TypeVar("Item")
Made = TypeVar("Made")
# A pass of one micro-batch takes seconds to minutes; torch's own default is as long.
STEP_WAIT_S = 1800.0
JOIN_WAIT = timedelta(minutes=10)
# Between rounds a rank waits as long as the rollouts take. That rank 0 has gone it learns from the closed connection.
ORDER_WAIT = timedelta(days=365)


class RankLost(WorkerError):
    """Another rank has ended or has not answered in time. Says nothing of the training, which is done again."""


class PassFailed(RuntimeError):
    """A pass that failed on one rank, raised on every rank in the same words."""


class World(Protocol):
    """The processes that share the passes of one policy."""

    @property
    def size(self) -> int: ...

    @property
    def spread(self) -> bool:
        """Whether each holds only its share of the base's layers."""

    def announce(self, order: object) -> None:
        """Tell the other ranks what rank 0 is about to do."""

    def each(
        self, items: Sequence[Item], perform: Callable[[Item], Made], weights: Collection[torch.Tensor] = ()
    ) -> list[Made]:
        """What `perform` makes of each item, in order. The gradients that it leaves on `weights` are added up in the
        order of the items, and to what stood there before."""


class Alone:
    """One process, which does everything itself."""

    size, spread = 1, False

    def announce(self, order: object) -> None:
        """There is nobody to tell."""

    def each(
        self,
        items: Sequence[Item],
        perform: Callable[[Item], Made],
        weights: Collection[torch.Tensor] = (),  # noqa: ARG002 - autograd adds the gradients up
    ) -> list[Made]:
        return [perform(item) for item in items]


ALONE = Alone()


class _Attempt(NamedTuple):
    """What came of one rank's item: `error` None where it went well or the rank had none."""

    made: Any = None
    error: str | None = None


class Ranks:
    """This process's place among several. Every rank calls `each` with equal items in the same order."""

    def __init__(self, step_wait_s: float = STEP_WAIT_S, *, spread: bool = False) -> None:
        """Join the job that the environment names as torchrun and `accelerate launch` set it (RANK, WORLD_SIZE,
        MASTER_ADDR, MASTER_PORT). `step_wait_s` seconds without an answer in a pass are a lost rank."""
        import torch
        import torch.distributed as dist

        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        with _lost("joining the other ranks"):
            dist.init_process_group(backend, timeout=JOIN_WAIT)
            self._require_alike()
            # Objects and gradients travel through the host's memory: both are small, and every machine has gloo.
            self._steps = dist.new_group(backend="gloo", timeout=timedelta(seconds=step_wait_s))
            self._orders = dist.new_group(backend="gloo", timeout=ORDER_WAIT)
        self.rank, self.size, self.spread = dist.get_rank(), dist.get_world_size(), spread

    def announce(self, order: object) -> None:
        import torch.distributed as dist

        with _lost("telling the other ranks what to do"):
            dist.broadcast_object_list([order], src=0, group=self._orders)

    def heard(self) -> Any:
        """The next order of rank 0, however long it takes."""
        import torch.distributed as dist

        told: list[Any] = [None]
        with _lost("waiting for rank 0"):
            dist.broadcast_object_list(told, src=0, group=self._orders)
        return told[0]

    def each(
        self, items: Sequence[Item], perform: Callable[[Item], Made], weights: Collection[torch.Tensor] = ()
    ) -> list[Made]:
        made: list[Made] = []
        total = _taken(weights)
        for first in range(0, len(items), self.size):
            turn = items[first : first + self.size]
            # Gathering a layer takes all ranks, so where they are spread a rank without an item repeats another's.
            has_one = self.rank < len(turn) or self.spread
            attempt = _attempt(perform, turn[self.rank % len(turn)]) if has_one else _Attempt()
            made += [found.made for found in self._gathered(attempt)[: len(turn)]]
            total = self._added(total, weights, len(turn))
        _give(weights, total)
        return made

    def leave(self) -> None:
        """Close the connections; this rank is of no further use."""
        import torch.distributed as dist

        dist.destroy_process_group()

    def _gathered(self, attempt: _Attempt) -> list[_Attempt]:
        """Every rank's attempt, by rank; raises PassFailed on all of them where one failed."""
        import torch.distributed as dist

        found = [_Attempt()] * self.size
        with _lost("a pass over the batch"):
            dist.all_gather_object(found, attempt, group=self._steps)
        for rank, each in enumerate(found):
            if each.error is not None:
                raise PassFailed(f"rank {rank}: {each.error}")
        return found

    def _added(self, total: torch.Tensor | None, weights: Collection[torch.Tensor], ranks: int) -> torch.Tensor | None:
        """`total` and the gradients of ranks 0 to `ranks` - 1, added in this order on every rank."""
        import torch.distributed as dist

        mine = _taken(weights)
        for rank in range(ranks if weights else 0):
            received = mine if rank == self.rank and mine is not None else _zeros(weights)
            with _lost("adding up gradients"):
                dist.broadcast(received, src=rank, group=self._steps)
            total = received.clone() if total is None else total.add_(received)
        return total

    def _require_alike(self) -> None:
        """Ranks of different software or instruction sets would drift apart, step by step and unseen."""
        import torch
        import torch.distributed as dist

        mine = {"torch": torch.__version__, "instruction set": torch.backends.cpu.get_cpu_capability()}
        found: list[dict[str, str]] = [{}] * dist.get_world_size()
        dist.all_gather_object(found, mine)
        for rank, theirs in enumerate(found):
            for what in mine:
                if theirs[what] != found[0][what]:
                    raise WorkerError(
                        f"rank {rank} has {what} {theirs[what]} and rank 0 {found[0][what]}: give all ranks the same"
                    )


def spread_layers(model: Any, keep: Collection[torch.Tensor], size: int) -> None:
    """Leave of every decoder layer this rank's share, but all of the tensors in `keep`. The whole model has to be here
    before, on the device where it is to run; embeddings and output layer stay whole."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from transformers.modeling_layers import GradientCheckpointingLayer

    mesh = init_device_mesh(next(model.parameters()).device.type, (size,))
    for layer in [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]:
        fully_shard(layer, mesh=mesh, ignored_params=set(keep))


@contextmanager
def _lost(what: str) -> Iterator[None]:
    """What the connection says of a rank that is gone or silent."""
    try:
        yield
    except (RuntimeError, ConnectionError) as cause:
        raise RankLost(f"another rank has ended or is silent ({what}): {cause}") from cause


def _attempt(perform: Callable[[Item], Made], item: Item) -> _Attempt:
    """A failure is told to the other ranks, which would wait for this one otherwise."""
    try:
        return _Attempt(perform(item))
    except (RuntimeError, MemoryError, TrainerError) as cause:
        return _Attempt(error=f"{type(cause).__name__}: {cause}")


def _taken(weights: Collection[torch.Tensor]) -> torch.Tensor | None:
    """The gradients one after another in the host's memory, taken off the weights; None where there is none."""
    import torch

    if all(weight.grad is None for weight in weights):
        return None
    parts = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in weights]
    for weight in weights:
        weight.grad = None
    return torch.cat([part.detach().flatten().cpu() for part in parts])


def _zeros(weights: Collection[torch.Tensor]) -> torch.Tensor:
    """Room for what `_taken` gives."""
    import torch

    return torch.cat([torch.zeros(weight.numel(), dtype=weight.dtype) for weight in weights])


def _give(weights: Collection[torch.Tensor], total: torch.Tensor | None) -> None:
    """Put back what `_taken` took."""
    if total is None:
        return
    start = 0
    for weight in weights:
        part = total[start : start + weight.numel()]
        weight.grad = part.reshape(weight.shape).to(device=weight.device, dtype=weight.dtype)
        start += weight.numel()
