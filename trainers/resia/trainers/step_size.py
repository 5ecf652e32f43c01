"""How far one step goes: the optimiser's own step, or that step scaled until the policy has moved by a given KL.

The direction is AdamW's; the line search along it is the one of trust-region methods (TRPO, Schulman et al.,
arXiv:1502.05477, appendix C), which start where the quadratic model KL(s) = c s^2 reaches the target and shrink until
the KL that is measured does not pass it. Here it also grows, so that two algorithms whose gradients differ in size
move the policy alike. Deterministic: the same weights and batch give the same scale. A value head is no part of the
policy and takes its own step. Collaborators: rounds asks for a step, policy measures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from resia.events.errors import TrainerError
from resia.events.settings import TrainingSettings

from .adapter import VALUE_HEAD
from .gradient import Work
from .policy import Policy

if TYPE_CHECKING:
    import torch

# Factors of the optimiser's own step between which the search stays.
SMALLEST, LARGEST = 2.0**-14, 2.0**4
# Measurements of the KL for one step. Each is a forward pass over the batch.
TRIES = 8
# A step is far enough from this share of the target on; a guess aims between it and the target.
NEAR, AIM = 0.8, 0.9


class Move(NamedTuple):
    """`scale` multiplied the optimiser's step; `kl` is KL(pi after || pi before) in nats a completion token of the
    rows that carry gradient, None where nothing asked for it."""

    scale: float
    kl: float | None


def largest_within(kl_at: Callable[[float], float], target: float) -> Move | None:
    """The largest scale found, between SMALLEST and LARGEST, where `kl_at` is at most `target`; None where there is
    none. Asks at most TRIES times and ends early from NEAR * `target` on. What is not finite counts as too far.

    `kl_at` need not rise everywhere: what is returned was measured there.
    """
    best, low, high, scale = None, 0.0, math.inf, 1.0
    for _ in range(TRIES):
        kl = kl_at(scale)
        if kl <= target:
            best, low = Move(scale, kl), scale
            if kl >= NEAR * target or scale == LARGEST:
                break
        else:
            high = scale
        if high <= SMALLEST:
            break
        scale = _guess(scale, kl, target, low, high)
    return best


def _guess(scale: float, kl: float, target: float, low: float, high: float) -> float:
    """Where the quadratic model has AIM * target; where that lies outside (low, high), half way in. The model is not
    asked below a hundredth of the last scale, as where the KL is far above the target it is no quadratic any more."""
    if kl == 0.0:
        wanted = LARGEST
    elif math.isfinite(kl):
        wanted = scale * max(math.sqrt(AIM * target / kl), 0.01)
    else:
        wanted = scale / 8
    if not low < wanted < high:
        wanted = (low + high) / 2
    return min(max(wanted, SMALLEST), LARGEST)


def take_step(policy: Policy, work: Work, settings: TrainingSettings, engine: Any, step: int) -> Move:
    """Update the policy's weights by `engine`, whose gradients are there. Raises TrainerError, with the weights as they
    were, where no scale keeps to `settings.kl_target`."""
    if settings.kl_target is None:
        engine.step()
        return Move(1.0, None)
    ruler = _Ruler(policy, work)
    before = _copies(policy.weights)
    engine.step()
    after = {name: weight for name, weight in _copies(policy.weights).items() if name not in VALUE_HEAD}

    def kl_at(scale: float) -> float:
        _place(policy.weights, before, after, scale)
        return ruler.kl()

    found = largest_within(kl_at, settings.kl_target)
    if found is None:
        _place(policy.weights, before, before, 0.0)
        raise TrainerError(
            f"step {step} moves the policy by more than training.kl_target {settings.kl_target} a token even at "
            f"1/{1 / SMALLEST:.0f} of its size, so it was not made: raise the target or lower training.learning_rate",
            step,
        )
    _place(policy.weights, before, after, found.scale)
    return found


class _Ruler:
    """Measures how far the policy is from where it was when this was made, on the rows that carry gradient."""

    def __init__(self, policy: Policy, work: Work) -> None:
        self._policy, self._padded = policy, [micro.padded for micro in work.micro_batches]
        self._tokens = sum(int(padded.mask_B_T.sum()) for padded in self._padded)
        self._states: dict[int, torch.Tensor] = {}  # of the micro-batches that fall to this rank
        policy.world.each(range(len(self._padded)), self._keep)

    def kl(self) -> float:
        """KL(pi now || pi then) in nats a completion token."""
        return sum(self._policy.world.each(range(len(self._padded)), self._moved)) / self._tokens

    def _keep(self, index: int) -> None:
        self._states[index] = self._policy.states(self._padded[index])

    def _moved(self, index: int) -> float:
        return self._policy.kl(self._padded[index], self._states[index])


def _copies(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in weights.items()}


def _place(
    weights: Mapping[str, torch.Tensor],
    before: Mapping[str, torch.Tensor],
    after: Mapping[str, torch.Tensor],
    scale: float,
) -> None:
    """Put the weights named by `after` at `scale` of the way; 0 and 1 are exactly the two ends."""
    import torch

    with torch.no_grad():
        for name, end in after.items():
            start = before[name]
            weights[name].copy_(end if scale == 1.0 else start if scale == 0.0 else start + scale * (end - start))
