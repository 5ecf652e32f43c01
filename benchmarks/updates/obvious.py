"""The obvious side, for algorithms that TRL has no trainer for: padded rows, whole logits, our losses on them.

What one writes first with transformers and PEFT: every row whole and padded on the right, the model's logits at every
position in float32, log-softmax over them, AdamW. Losses and advantages are this project's, so that both sides take
the same step; so many rows go together as in TRL.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from peft import LoraConfig, get_peft_model

from benchmarks.updates import given
from resia.events.settings import Algorithm
from resia.trainers.batch import Row
from resia.trainers.objectives import Tokens, objective_of
from resia.trainers.policy import linear_layers


def run(task: given.Task, sampled: list[given.Sampled], meter: given.Meter) -> None:
    settings, objective = given.settings(), objective_of(cast(Algorithm, task.algorithm))
    base = given.load_model(task.model)
    layers = list(linear_layers(base))
    lora = LoraConfig(r=settings.rank, lora_alpha=settings.lora_alpha, target_modules=layers, task_type="CAUSAL_LM")
    model = get_peft_model(base, lora)
    critic = torch.nn.Linear(base.config.hidden_size, 1)
    torch.nn.init.zeros_(critic.weight)
    torch.nn.init.zeros_(critic.bias)
    weights = [weight for weight in (*model.parameters(), *critic.parameters()) if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=settings.learning_rate, weight_decay=0.0)
    selection = objective.select(given.batch(sampled), settings)
    rows = selection.rows
    micro_batches = [
        range(start, min(start + given.MICRO_ROWS, len(rows))) for start in range(0, len(rows), given.MICRO_ROWS)
    ]
    with_values = "values" in objective.needs
    meter.loaded()
    for _ in range(1 + task.updates):
        meter.begin()
        weighed, total = selection, 0.0
        if with_values:
            with torch.no_grad():
                values = [_forward(model, critic, [rows[i] for i in micro])[1] for micro in micro_batches]
            weighed = objective.estimate(selection, torch.cat(values).double().numpy(), settings)
        for micro in micro_batches:
            tokens = _tokens(model, critic, [rows[i] for i in micro], weighed, list(micro), with_values)
            loss = objective.loss(tokens, settings)
            scaled = loss.total / weighed.normalizer
            if loss.values is not None:
                scaled = scaled + loss.values / len(rows)
            scaled.backward()
            total += float(scaled.detach())
        torch.nn.utils.clip_grad_norm_(weights, settings.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        meter.end()
        meter.loss(total)


def _forward(model: Any, critic: Any, rows: Sequence[Row]) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities (B, T) of completion tokens and values (B,) at the ends of prompts."""
    ids_B_L = _table([row.prompt_ids + row.completion_ids for row in rows])
    mask_B_L = _table([(1,) * (len(row.prompt_ids) + len(row.completion_ids)) for row in rows])
    out = model(input_ids=ids_B_L, attention_mask=mask_B_L, output_hidden_states=True)
    logprobs_B_L_V = out.logits[:, :-1].float().log_softmax(-1)
    picked_B_L = logprobs_B_L_V.gather(-1, ids_B_L[:, 1:, None]).squeeze(-1)
    answer = max(len(row.completion_ids) for row in rows)
    aligned = [_slice(picked_B_L[b], row, answer) for b, row in enumerate(rows)]
    ends = torch.tensor([len(row.prompt_ids) - 1 for row in rows])
    return torch.stack(aligned), critic(out.hidden_states[-1][torch.arange(len(rows)), ends]).squeeze(1)


def _slice(picked_L: torch.Tensor, row: Row, width: int) -> torch.Tensor:
    start, length = len(row.prompt_ids) - 1, len(row.completion_ids)
    return torch.nn.functional.pad(picked_L[start : start + length], (0, width - length))


def _tokens(model: Any, critic: Any, rows: list[Row], weighed: Any, index: list[int], with_values: bool) -> Tokens:
    logprobs_B_T, values_B = _forward(model, critic, rows)
    mask_B_T = _table([(1,) * len(row.completion_ids) for row in rows]).bool()
    advantages_B = torch.as_tensor(weighed.advantages_R[index], dtype=torch.float32)
    return Tokens(
        logprobs_B_T=logprobs_B_T,
        old_logprobs_B_T=_table([row.logprobs for row in rows]),
        reference_B_T=torch.zeros_like(logprobs_B_T),
        advantages_B_T=advantages_B[:, None] * mask_B_T,
        mask_B_T=mask_B_T,
        values_B=values_B if with_values else None,
        returns_B=torch.as_tensor(weighed.returns_R[index], dtype=torch.float32) if with_values else None,
    )


def _table(values: Sequence[tuple[Any, ...]]) -> torch.Tensor:
    width = max(map(len, values))
    return torch.tensor([[*row, *([0] * (width - len(row)))] for row in values])
