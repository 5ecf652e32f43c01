"""The trainable policy: a frozen base with LoRA on every linear layer, and log-probabilities of given completions.

The base may be bfloat16; the adapter is float32 at least. Nothing is sampled here and nothing is random after the
seeded initialisation: the model stays in evaluation mode and LoRA has no dropout. A micro-batch's shared prefix is
run once, with gradient, and its cache repeated for the rows. Collaborators: packing makes the micro-batches,
adapter reads and writes the weights, rounds trains. Knows nothing of rewards or objectives.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from resia.events.errors import TrainerError, boundary
from resia.events.settings import TrainingSettings

from .adapter import AdapterInfo, encode_adapter, load_adapter
from .packing import Padded

if TYPE_CHECKING:
    import torch

ADAPTER = "default"
# Completion tokens whose logits exist at a time: 1024 x 49152 float32 logits are 200 MB.
HEAD_CHUNK = 1024


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
        self.weights: dict[str, torch.Tensor] = {
            name.replace(f".{ADAPTER}.", "."): weight
            for name, weight in self.model.named_parameters()
            if weight.requires_grad
        }
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

    def set_adapter(self, adapter: bytes | None, seed: int) -> None:
        """Take the weights of an adapter file, or a fresh initialisation (None) that `seed` alone determines: A
        uniform as in Hu et al. (arXiv:2106.09685) and PEFT, B zero, so that the policy equals the base."""
        if adapter is None:
            self._initialise(seed)
        else:
            load_adapter(self.weights, self.info, adapter)

    def adapter_bytes(self) -> bytes:
        """The current weights as an adapter file."""
        return encode_adapter(self.weights, self.info)

    def logprobs(self, padded: Padded) -> torch.Tensor:
        """Log-probabilities (B, T) of the completion tokens under softmax(logits / temperature), with gradient to the
        adapter, 0 off the mask; float32, or float64 for a float64 model."""
        import torch

        def tensor(array: Any) -> torch.Tensor:
            return torch.as_tensor(array, device=self._device)

        cache = self._prefill(tensor(padded.prefix_P), len(padded.inputs_B_S))
        hidden_B_S_H = self._trunk(
            input_ids=tensor(padded.inputs_B_S), past_key_values=cache, use_cache=cache is not None
        ).last_hidden_state
        mask_B_T = tensor(padded.mask_B_T)
        row_N, column_N = mask_B_T.nonzero(as_tuple=True)
        hidden_N_H = hidden_B_S_H[row_N, tensor(padded.index_B_T)[row_N, column_N]]
        tokens_N, temperature_N = tensor(padded.tokens_B_T)[mask_B_T], tensor(padded.temperature_B)[row_N]
        logprobs_N = self._token_logprobs(hidden_N_H, tokens_N, temperature_N)
        return logprobs_N.new_zeros(mask_B_T.shape).masked_scatter(mask_B_T, logprobs_N)

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

    def _initialise(self, seed: int) -> None:
        import torch

        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name in sorted(self.weights):
                weight = self.weights[name]
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
