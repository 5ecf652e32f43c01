"""The trainable policy: a frozen base with LoRA on every linear layer, and log-probabilities of given completions.

The base may be bfloat16; the adapter is float32 at least. Nothing is sampled here and nothing is random after the
seeded initialisation: the model stays in evaluation mode and LoRA has no dropout. What rows of a micro-batch share
is run once, with gradient (see `trunk`). A value head, where one is asked for, reads the same hidden states. Other
policies over the same base (the base itself, another adapter) are had for a while by `standing_in`, never by a second
model. Collaborators: packing makes the micro-batches, trunk and head score them, adapter reads and writes the weights,
gradient and rounds train. Knows nothing of rewards or objectives.
"""

# ruff: noqa: N815 - a field that holds a tensor carries its shape

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from resia.events.errors import TrainerError
from resia.events.settings import TrainingSettings

from .adapter import VALUE_BIAS, VALUE_WEIGHT, AdapterInfo, encode_adapter, load_adapter
from .base_model import load_base
from .batch import Row
from .packing import Padded, pad
from .world import ALONE, World, spread_layers

if TYPE_CHECKING:
    import torch

ADAPTER = "default"
# Completion tokens whose two distributions exist at a time, with half a dozen arrays of that size between them.
KL_CHUNK = 256


class Scores(NamedTuple):
    """Of one micro-batch, with gradient: log-probabilities of the completion tokens, 0 off the mask; the value head's
    estimates at the last prompt token, None without a head."""

    logprobs_B_T: torch.Tensor
    values_B: torch.Tensor | None


class Policy:
    """`weights` are the trainable tensors by their name in the adapter file; `context` is in tokens; token ids are
    below `vocabulary`."""

    def __init__(self, model: Any, settings: TrainingSettings, base_digest: str) -> None:
        """Adapt `model`, a transformers causal language model, in place. Raises TrainerError when its logits are not
        its output layer applied to its last hidden state (scaled or capped logits)."""
        import torch
        from peft import LoraConfig, get_peft_model

        from .trunk import Trunk

        targets = linear_layers(model)
        config = LoraConfig(
            r=settings.rank,
            lora_alpha=settings.lora_alpha,
            target_modules=list(targets),
            lora_dropout=0.0,
            bias="none",
            task_type="CAUSAL_LM",
        )
        with torch.random.fork_rng(devices=[]):  # PEFT draws an initialisation that `set_adapter` replaces
            self.model = get_peft_model(model, config, adapter_name=ADAPTER).eval()
        self.info = AdapterInfo(settings.rank, settings.lora_alpha, targets, base_digest)
        self._lora: dict[str, torch.Tensor] = {
            name.replace(f".{ADAPTER}.", "."): weight
            for name, weight in self.model.named_parameters()
            if weight.requires_grad
        }
        self.weights = dict(self._lora)
        self.context = int(model.config.max_position_embeddings)
        self.vocabulary = int(model.get_input_embeddings().num_embeddings)
        self.world: World = ALONE
        self._trunk, self._head = Trunk(model), model.get_output_embeddings()
        self._device = next(model.parameters()).device
        self._check_head(model)

    @classmethod
    def load(
        cls,
        model_dir: Path,
        dtype: Literal["float32", "bfloat16"],
        threads: int,
        settings: TrainingSettings,
        base_digest: str,
        *,
        adapter: bytes | None = None,
        seed: int = 0,
        device: str = "cpu",
    ) -> Policy:
        """Policy over the model in `model_dir`, then `set_adapter(adapter, seed)`. Sets torch's thread count for the
        process, on which low-precision results depend."""
        import torch

        torch.set_num_threads(threads)
        policy = cls(load_base(model_dir, dtype).to(device), settings, base_digest)
        policy.set_adapter(adapter, seed)
        return policy

    def set_adapter(self, adapter: bytes | None, seed: int, *, values: bool = False) -> None:
        """Take the weights of an adapter file, or a fresh initialisation (None) that `seed` alone determines: A
        uniform as in Hu et al. (arXiv:2106.09685) and PEFT, B zero, so that the policy equals the base.

        With `values` there is a value head among the weights, the file's or else one that says 0 everywhere; without,
        the file's is left out.
        """
        weights = {**self._lora, **(self._fresh_value_head() if values else {})}
        if adapter is None:
            self._initialise(seed)
        else:
            load_adapter(weights, self.info, adapter)
        self.weights = weights

    def join(self, world: World) -> None:
        """Share the passes with the other ranks of `world`, and the layers of the base where it spreads them."""
        self.world = world
        if world.spread:
            spread_layers(self.model, self._lora.values(), world.size)

    def pad(self, rows: Sequence[Row]) -> Padded:
        """A micro-batch as this policy can run it: a layer that is spread cannot be called twice in one pass, as a
        prefix in a cache asks for."""
        return pad(rows, 0 if self.world.spread and not self._trunk.shares else None)

    def restore(self, adapter: bytes) -> None:
        """Take the weights of an adapter file with a value head exactly where this policy has one."""
        load_adapter(self.weights, self.info, adapter)

    @contextmanager
    def standing_in(self, adapter: bytes | None) -> Iterator[None]:
        """Within, log-probabilities are those of the base (None) or of that adapter; afterwards the policy's weights
        are its own again."""
        import torch

        if adapter is None:
            with self.model.disable_adapter():
                yield
            return
        own = {name: weight.detach().clone() for name, weight in self._lora.items()}
        load_adapter(self._lora, self.info, adapter)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, weight in self._lora.items():
                    weight.copy_(own[name])

    @property
    def has_values(self) -> bool:
        return VALUE_WEIGHT in self.weights

    def adapter_bytes(self) -> bytes:
        """The current weights as an adapter file."""
        return encode_adapter(self.weights, self.info)

    def logprobs(self, padded: Padded) -> torch.Tensor:
        """`score` without the values."""
        return self.score(padded).logprobs_B_T

    def score(self, padded: Padded) -> Scores:
        """Log-probabilities under softmax(logits / temperature) and values, with gradient to the weights; float32, or
        float64 for a float64 model."""
        import torch

        from .head import token_logprobs

        hidden_B_S_H = self._hidden(padded)
        mask_B_T, index_B_T = self._tensor(padded.mask_B_T), self._tensor(padded.index_B_T)
        hidden_N_H = _completions(hidden_B_S_H, mask_B_T, index_B_T)
        tokens_N, temperature_N = self._tensor(padded.tokens_B_T)[mask_B_T], self._temperatures(padded, mask_B_T)
        logprobs_N = token_logprobs(self._head, hidden_N_H, tokens_N, temperature_N)
        logprobs_B_T = logprobs_N.new_zeros(mask_B_T.shape).masked_scatter(mask_B_T, logprobs_N)
        starts_B_H = hidden_B_S_H[torch.arange(len(index_B_T), device=self._device), index_B_T[:, 0]]
        return Scores(logprobs_B_T, self._values(starts_B_H))

    def states(self, padded: Padded) -> torch.Tensor:
        """What this policy would say of every completion token, for `kl`: the last hidden states (N, H) that predict
        them, without gradient. The output layer is no part of the adapter, so they determine the distributions."""
        import torch

        with torch.no_grad():
            return _completions(self._hidden(padded), self._tensor(padded.mask_B_T), self._tensor(padded.index_B_T))

    def kl(self, padded: Padded, before_N_H: torch.Tensor) -> float:
        """Sum over completion tokens of KL(pi || pi_before) in nats, over the whole vocabulary at the temperature of
        each; `before_N_H` are the `states` of pi_before."""
        import torch

        total, temperature_N = 0.0, self._temperatures(padded, self._tensor(padded.mask_B_T))
        with torch.no_grad():
            chunks = (tensor.split(KL_CHUNK) for tensor in (self.states(padded), before_N_H, temperature_N))
            for after, before, temperature in zip(*chunks, strict=True):
                logprobs_C_V, earlier_C_V = (
                    (self._logits(hidden) / temperature[:, None]).log_softmax(-1) for hidden in (after, before)
                )
                # sum p (e^d - 1 - d) is KL for d = log q - log p, and no rounding makes a term of it negative.
                apart_C_V = earlier_C_V - logprobs_C_V
                total += float((logprobs_C_V.exp() * (apart_C_V.expm1() - apart_C_V)).double().sum())
        return total

    def _tensor(self, array: Any) -> torch.Tensor:
        import torch

        return torch.as_tensor(array, device=self._device)

    def _temperatures(self, padded: Padded, mask_B_T: torch.Tensor) -> torch.Tensor:
        """Of every completion token, (N,), in the precision of the logits."""
        import torch

        per_token_B_T = self._tensor(padded.temperature_B)[:, None].expand(mask_B_T.shape)
        return per_token_B_T[mask_B_T].to(torch.promote_types(self.model.dtype, torch.float32))

    def _hidden(self, padded: Padded) -> torch.Tensor:
        """Last hidden states of every suffix, (B, S, H)."""
        return self._trunk.hidden(padded, self._device)

    def _logits(self, hidden_N_H: torch.Tensor) -> torch.Tensor:
        """float32 at least."""
        import torch

        logits_N_V: torch.Tensor = self._head(hidden_N_H)
        return logits_N_V.to(torch.promote_types(logits_N_V.dtype, torch.float32))

    def _values(self, hidden_B_H: torch.Tensor) -> torch.Tensor | None:
        if not self.has_values:
            return None
        weight, bias = self.weights[VALUE_WEIGHT], self.weights[VALUE_BIAS]
        return (hidden_B_H.to(weight.dtype) @ weight.T + bias).squeeze(1)

    def _fresh_value_head(self) -> dict[str, torch.Tensor]:
        """Zeros: until it has learned something it says nothing of any state, whatever the seed."""
        import torch

        about = {"dtype": torch.promote_types(self.model.dtype, torch.float32), "device": self._device}
        hidden = self._head.weight.shape[1]
        return {
            VALUE_WEIGHT: torch.zeros((1, hidden), requires_grad=True, **about),
            VALUE_BIAS: torch.zeros(1, requires_grad=True, **about),
        }

    def _initialise(self, seed: int) -> None:
        import torch

        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name in sorted(self._lora):
                weight = self._lora[name]
                fresh = torch.zeros(weight.shape)
                if ".lora_A." in name:
                    torch.nn.init.kaiming_uniform_(fresh, a=math.sqrt(5), generator=generator)
                weight.copy_(fresh)

    def _check_head(self, model: Any) -> None:
        import torch

        token = torch.zeros((1, 1), dtype=torch.long, device=self._device)
        with torch.no_grad():
            whole, ours = model(input_ids=token).logits, self._head(model.base_model(input_ids=token).last_hidden_state)
        if not torch.equal(whole, ours):
            raise TrainerError(f"{type(model).__name__} changes its logits after the output layer: not supported")


def _completions(hidden_B_S_H: torch.Tensor, mask_B_T: torch.Tensor, index_B_T: torch.Tensor) -> torch.Tensor:
    """The hidden states (N, H) that predict each completion token."""
    row_N, column_N = mask_B_T.nonzero(as_tuple=True)
    return hidden_B_S_H[row_N, index_B_T[row_N, column_N]]


def linear_layers(model: Any) -> tuple[str, ...]:
    """Sorted last names of all linear layers but the output layer, such as q_proj."""
    import torch

    head = model.get_output_embeddings()
    return tuple(
        sorted(
            {
                name.rpartition(".")[2]
                for name, module in model.named_modules()
                if isinstance(module, torch.nn.Linear) and module is not head
            }
        )
    )
