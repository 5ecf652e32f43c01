"""The trainable policy: a frozen base with LoRA on every linear layer, and log-probabilities of given completions.

The base may be bfloat16; the adapter is float32 at least. Nothing is sampled here and nothing is random after the
seeded initialisation: the model stays in evaluation mode and LoRA has no dropout. A micro-batch's shared prefix is
run once, with gradient, and its cache repeated for the rows. A value head, where one is asked for, reads the same
hidden states. Other policies over the same base (the base itself, another adapter) are had for a while by
`standing_in`, never by a second model. Collaborators: packing makes the micro-batches, adapter reads and writes the
weights, gradient and rounds train. Knows nothing of rewards or objectives.
"""

# ruff: noqa: N815 - a field that holds a tensor carries its shape

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from resia.events.errors import TrainerError, boundary
from resia.events.settings import TrainingSettings

from .adapter import VALUE_BIAS, VALUE_WEIGHT, AdapterInfo, encode_adapter, load_adapter
from .packing import Padded

if TYPE_CHECKING:
    import torch

ADAPTER = "default"
# Completion tokens whose logits exist at a time: 1024 x 49152 float32 logits are 200 MB.
HEAD_CHUNK = 1024


class Scores(NamedTuple):
    """Of one micro-batch, with gradient: log-probabilities of the completion tokens, 0 off the mask; the value head's
    estimates at the last prompt token, None without a head."""

    logprobs_B_T: torch.Tensor
    values_B: torch.Tensor | None


class Policy:
    """`weights` are the trainable tensors by their name in the adapter file; `context` is in tokens."""

    def __init__(self, model: Any, settings: TrainingSettings, base_digest: str) -> None:
        """Adapt `model`, a transformers causal language model, in place. Raises TrainerError when its logits are not
        its output layer applied to its last hidden state (scaled or capped logits)."""
        import torch
        from peft import LoraConfig, get_peft_model

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
        self._trunk, self._head = model.base_model, model.get_output_embeddings()
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
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(threads)
        with boundary(TrainerError, f"the base model in {model_dir.name} cannot be loaded"):
            model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=getattr(torch, dtype), local_files_only=True)
        policy = cls(model.to(device), settings, base_digest)
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

        def tensor(array: Any) -> torch.Tensor:
            return torch.as_tensor(array, device=self._device)

        cache = self._prefill(tensor(padded.prefix_P), len(padded.inputs_B_S))
        hidden_B_S_H = self._trunk(
            input_ids=tensor(padded.inputs_B_S), past_key_values=cache, use_cache=cache is not None
        ).last_hidden_state
        mask_B_T = tensor(padded.mask_B_T)
        row_N, column_N = mask_B_T.nonzero(as_tuple=True)
        index_B_T = tensor(padded.index_B_T)
        hidden_N_H = hidden_B_S_H[row_N, index_B_T[row_N, column_N]]
        tokens_N, temperature_N = tensor(padded.tokens_B_T)[mask_B_T], tensor(padded.temperature_B)[row_N]
        logprobs_N = self._token_logprobs(hidden_N_H, tokens_N, temperature_N)
        logprobs_B_T = logprobs_N.new_zeros(mask_B_T.shape).masked_scatter(mask_B_T, logprobs_N)
        starts_B_H = hidden_B_S_H[torch.arange(len(index_B_T), device=self._device), index_B_T[:, 0]]
        return Scores(logprobs_B_T, self._values(starts_B_H))

    def _values(self, hidden_B_H: torch.Tensor) -> torch.Tensor | None:
        if not self.has_values:
            return None
        weight, bias = self.weights[VALUE_WEIGHT], self.weights[VALUE_BIAS]
        return (hidden_B_H.to(weight.dtype) @ weight.T + bias).squeeze(1)

    def _prefill(self, prefix_P: torch.Tensor, rows: int) -> Any:
        """Cache of the prefix for `rows` rows, connected to the graph; None without a prefix."""
        if len(prefix_P) == 0:
            return None
        cache = self._trunk(input_ids=prefix_P[None, :], use_cache=True).past_key_values
        cache.batch_repeat_interleave(rows)
        return cache

    def _token_logprobs(
        self, hidden_N_H: torch.Tensor, tokens_N: torch.Tensor, temperature_N: torch.Tensor
    ) -> torch.Tensor:
        """Log-probabilities (N,), the logits of HEAD_CHUNK tokens at a time and again in the backward pass."""
        import torch
        from torch.utils.checkpoint import checkpoint

        def chunk(hidden: torch.Tensor, tokens: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
            logits = self._head(hidden)
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            scaled = logits / temperature.to(logits.dtype)[:, None]
            return -torch.nn.functional.cross_entropy(scaled, tokens, reduction="none")

        parts = list(
            zip(hidden_N_H.split(HEAD_CHUNK), tokens_N.split(HEAD_CHUNK), temperature_N.split(HEAD_CHUNK), strict=True)
        )
        if len(parts) == 1:
            return chunk(*parts[0])
        return torch.cat([checkpoint(chunk, *part, use_reentrant=False, preserve_rng_state=False) for part in parts])

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
            whole, ours = model(input_ids=token).logits, self._head(self._trunk(input_ids=token).last_hidden_state)
        if not torch.equal(whole, ours):
            raise TrainerError(f"{type(model).__name__} changes its logits after the output layer: not supported")


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
