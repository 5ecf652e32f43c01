"""TRL's side: its own trainers run `train()` on the given rollouts, one update a step, every update on the same batch.

Generation is replaced by the recorded rollouts (`_generate_and_score_completions` is private, so this is for the pinned
version); SFT and DPO take token ids as their preparation would have made them. Everything else is TRL's default, but
for float32, a constant learning rate, and what the caller chooses of gradient checkpointing.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer, SFTConfig, SFTTrainer

from benchmarks.updates import given
from resia.events.settings import TrainingSettings
from resia.trainers.objectives import Selection, objective_of
from resia.trainers.policy import linear_layers

PEERS = {"grpo": "GRPO", "best_of_n": "SFT", "dpo": "DPO", "reinforce_kl": "RLOO"}
Made = dict[str, Any]


def run(task: given.Task, sampled: list[given.Sampled], meter: given.Meter) -> None:
    """Train for the asked updates; the meter is read by a callback at the ends of every optimiser step."""
    warnings.simplefilter("ignore")
    build = {"grpo": _grpo, "reinforce_kl": _rloo, "best_of_n": _sft, "dpo": _dpo}[task.algorithm]
    settings = given.settings()
    selection = objective_of(task.algorithm).select(given.batch(sampled), settings)  # type: ignore[arg-type]
    model = given.load_model(task.model)
    with tempfile.TemporaryDirectory() as folder:
        common = _arguments(task, settings, folder)
        shared = {
            "processing_class": AutoTokenizer.from_pretrained(task.model),
            "peft_config": LoraConfig(
                r=settings.rank,
                lora_alpha=settings.lora_alpha,
                target_modules=list(linear_layers(model)),
                task_type="CAUSAL_LM",
            ),
            "callbacks": [_Read(meter)],
        }
        build(model, selection, common, shared).train()


class _Read(TrainerCallback):  # type: ignore[misc]
    """Reads the meter at the trainer's own events."""

    def __init__(self, meter: given.Meter) -> None:
        self._meter = meter

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._meter.loaded()

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._meter.begin()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._meter.end()

    def on_log(self, _args: Any, _state: Any, _control: Any, logs: Made | None = None, **__: Any) -> None:
        if logs and "loss" in logs:
            self._meter.loss(float(logs["loss"]))


def _arguments(task: given.Task, settings: TrainingSettings, folder: str) -> Made:
    return {
        "output_dir": folder,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": task.checkpointing,
        "dataloader_pin_memory": False,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "logging_steps": 1,
        "max_steps": 1 + task.updates,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": "constant",
        "max_grad_norm": settings.max_grad_norm,
        "remove_unused_columns": False,
    }


def _micro(rows: int) -> Made:
    """As many rollouts a forward pass as TRL takes by default, gradients accumulated over the batch."""
    size = max(n for n in range(1, min(rows, given.MICRO_ROWS) + 1) if rows % n == 0)
    return {"per_device_train_batch_size": size, "gradient_accumulation_steps": rows // size}


def _recorded(kind: type, inputs: Callable[[], Made]) -> type:
    """The trainer `kind`, which is given its rollouts instead of sampling them."""

    class Recorded(kind):  # type: ignore[misc]
        def _generate_and_score_completions(self, _: Any) -> Made:
            return inputs()

    return Recorded


def _online(
    config: type, trainer: type, extra: Made, model: Any, selection: Selection, common: Made, shared: Made
) -> Any:
    rows = selection.rows
    groups = len({row.prompt_ids for row in rows})
    longest = max(len(row.completion_ids) for row in rows)
    made = config(
        **common, **_micro(len(rows)), num_generations=len(rows) // groups, max_completion_length=longest, beta=0.0
    )
    dataset = Dataset.from_dict({"prompt": [f"item {n}" for n in range(groups)]})

    def inputs() -> Made:
        padded = _padded(selection)
        return {name: padded[name] for name in padded if name not in extra} | {
            name: make(padded) for name, make in extra.items() if make
        }

    return _recorded(trainer, inputs)(model, reward_funcs=lambda **_: [0.0], args=made, train_dataset=dataset, **shared)


def _grpo(model: Any, selection: Selection, common: Made, shared: Made) -> Any:
    return _online(GRPOConfig, GRPOTrainer, {}, model, selection, common, shared)


def _rloo(model: Any, selection: Selection, common: Made, shared: Made) -> Any:
    extra = {
        "old_logps": lambda padded: padded["old_per_token_logps"].sum(1),
        "old_per_token_logps": None,
        "num_items_in_batch": None,
    }
    return _online(RLOOConfig, RLOOTrainer, extra, model, selection, common, shared)


def _sft(model: Any, selection: Selection, common: Made, shared: Made) -> Any:
    rows = selection.rows
    dataset = Dataset.from_dict(
        {
            "input_ids": [row.prompt_ids + row.completion_ids for row in rows],
            "labels": [(-100,) * len(row.prompt_ids) + row.completion_ids for row in rows],
        }
    )
    args = SFTConfig(**common, **_micro(len(rows)), dataset_kwargs={"skip_prepare_dataset": True})
    return SFTTrainer(model, args, train_dataset=dataset, **shared)


def _dpo(model: Any, selection: Selection, common: Made, shared: Made) -> Any:
    by_sample = {row.sample: row for row in selection.rows}
    pairs = [(by_sample[better], by_sample[worse]) for better, worse in selection.pairs]
    dataset = Dataset.from_dict(
        {
            "prompt_ids": [better.prompt_ids for better, _ in pairs],
            "chosen_ids": [better.completion_ids for better, _ in pairs],
            "rejected_ids": [worse.completion_ids for _, worse in pairs],
        }
    )

    class Tokenized(DPOTrainer):  # type: ignore[misc]
        def _prepare_dataset(self, given_: Any, *_: Any) -> Any:
            return given_

    micro = _micro(2 * len(pairs))
    micro["per_device_train_batch_size"] //= 2  # a pair is two rows
    args = DPOConfig(**common, **micro, beta=given.settings().dpo_beta, max_length=None)
    return Tokenized(model, args=args, train_dataset=dataset, **shared)


def _padded(selection: Selection) -> Made:
    """Prompts padded on the left, completions on the right, as TRL's own generation leaves them."""
    rows = selection.rows
    prompt, answer = max(len(r.prompt_ids) for r in rows), max(len(r.completion_ids) for r in rows)

    def table(values: list[Any], width: int, left: bool = False) -> torch.Tensor:
        return torch.tensor(
            [[0] * (width - len(v)) + list(v) if left else list(v) + [0] * (width - len(v)) for v in values]
        )

    return {
        "prompt_ids": table([r.prompt_ids for r in rows], prompt, left=True),
        "prompt_mask": table([[1] * len(r.prompt_ids) for r in rows], prompt, left=True),
        "completion_ids": table([r.completion_ids for r in rows], answer),
        "completion_mask": table([[1] * len(r.completion_ids) for r in rows], answer),
        "old_per_token_logps": table([r.logprobs for r in rows], answer),
        "advantages": torch.as_tensor(selection.advantages_R, dtype=torch.float32),
        "num_items_in_batch": torch.tensor(sum(len(r.completion_ids) for r in rows)),
    }
