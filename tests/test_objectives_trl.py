"""The losses against TRL's own, for the algorithms that TRL has: its numbers on the same rollouts and weights."""

from __future__ import annotations

import numpy as np
import pytest
from msgspec.structs import replace
from trainer_given import (
    SETTINGS,
    VOCABULARY,
    batch,
    near_policy,
    one_pass,
    random_rollouts,
    tiny_model,
    tiny_policy,
)

from resia.trainers.batch import Batch
from resia.trainers.policy import Policy

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning", "ignore::ResourceWarning"
)
CPU = {
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "dataloader_pin_memory": False,
    "report_to": "none",
}
SIZES = {"num_generations": 2, "per_device_train_batch_size": 2}


@pytest.fixture(scope="module")
def policy() -> Policy:
    torch.set_num_threads(1)
    return tiny_policy()


@pytest.fixture(scope="module")
def single() -> list:
    """Groups of three rollouts of one turn, at temperature 0.7."""
    return [r for r in random_rollouts(21) if not r.id.endswith("0")]


@pytest.fixture(scope="module")
def cold(single) -> list:
    """The same at temperature 1, which is the only one that TRL's off-policy trainers know."""
    return [r._replace(trajectory=replace(r.trajectory, temperature=1.0)) for r in single]


def tokenizer():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(VOCABULARY)}, unk_token="t0"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="t0", eos_token="t1")


def merge(model, policy: Policy) -> None:
    """Give `model` the policy's weights with the adapter added in: W + alpha / rank B A."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            stem = f"base_model.model.{name.removesuffix('.weight')}"
            if f"{stem}.lora_A.weight" in policy.weights:
                low, high = policy.weights[f"{stem}.lora_A.weight"], policy.weights[f"{stem}.lora_B.weight"]
                weight.add_(high @ low, alpha=policy.info.lora_alpha / policy.info.rank)


def trl_inputs(rows) -> dict:
    """Prompts padded on the left, completions on the right."""
    prompt, answer = max(len(r.prompt_ids) for r in rows), max(len(r.completion_ids) for r in rows)

    def table(values, width, left=False, fill=0):
        return torch.tensor([
            [fill] * (width - len(v)) + list(v) if left else list(v) + [fill] * (width - len(v)) for v in values
        ])  # fmt: skip

    return {
        "prompt_ids": table([r.prompt_ids for r in rows], prompt, left=True),
        "prompt_mask": table([[1] * len(r.prompt_ids) for r in rows], prompt, left=True),
        "completion_ids": table([r.completion_ids for r in rows], answer),
        "completion_mask": table([[1] * len(r.completion_ids) for r in rows], answer),
        "old_per_token_logps": table([r.logprobs for r in rows], answer, fill=0.0),
        "num_items_in_batch": torch.tensor(sum(len(r.completion_ids) for r in rows)),
    }


def joined(rows) -> dict:
    """Prompt and completion in one row, as the off-policy trainers take them."""
    inputs = trl_inputs(rows)
    return {
        "input_ids": torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1),
        "attention_mask": torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1),
        "completion_mask": torch.cat([torch.zeros_like(inputs["prompt_mask"]), inputs["completion_mask"]], 1),
    }


def rewards_of(made: Batch, rows):
    """(groups, 3)."""
    return torch.tensor([made.samples[row.sample].reward for row in rows]).view(-1, 3)


@pytest.fixture(scope="module")
def grpo(policy, single, tmp_path_factory):
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    longest = max(r.trajectory.turns[0].completion_ids.__len__() for r in single)
    config = GRPOConfig(tmp_path_factory.mktemp("grpo"), **CPU, **SIZES, temperature=0.7, max_completion_length=longest)
    one = Dataset.from_dict({"prompt": ["t1"]})
    trainer = GRPOTrainer(tiny_model(), lambda **_: [0.0], config, one, processing_class=tokenizer())
    merge(trainer.model, policy)
    return trainer


@pytest.mark.parametrize("kind", ["dapo", "bnpo", "dr_grpo"])
@pytest.mark.parametrize("cap", [None, 1.25])
def test_grpo(policy, single, grpo, kind, cap):
    chosen = replace(SETTINGS, dr_grpo=kind == "dr_grpo", max_ratio=cap or 1e9)
    made = near_policy(policy, single)
    work, found = one_pass(policy, "grpo", made, chosen)
    rewards = rewards_of(made, work.selection.rows)
    advantages = rewards - rewards.mean(1, keepdim=True)
    if not chosen.dr_grpo:
        advantages = advantages / (rewards.std(1, keepdim=True) + 1e-4)
    inputs = trl_inputs(work.selection.rows) | {"advantages": advantages.flatten()}
    grpo.loss_type, grpo.args.delta = kind, cap
    assert found.loss == pytest.approx(float(grpo._compute_loss(grpo.model.eval(), inputs)), abs=1e-5)
    if cap is None:
        assert found.clip_fraction == pytest.approx(grpo._metrics["eval"]["clip_ratio/region_mean"][-1], abs=1e-6)


def test_the_kl_penalty_is_grpos(policy, single, grpo):
    """REINFORCE's with alpha less that without, a rollout; TRL's GRPO with beta less that without, a token."""
    made = near_policy(policy, single)
    losses, theirs = [], []
    grpo.loss_type, grpo.args.delta = "bnpo", None
    for alpha in (0.0, 0.7):
        work, found = one_pass(policy, "reinforce_kl", made, replace(SETTINGS, kl_alpha=alpha))
        rows = work.selection.rows
        inputs = trl_inputs(rows) | {"advantages": torch.ones(len(rows))}
        reference = torch.zeros(inputs["completion_ids"].shape)
        for micro in work.micro_batches:
            width = micro.reference_B_T.shape[1]
            reference[list(micro.rows), :width] = torch.as_tensor(micro.reference_B_T, dtype=torch.float32)
        grpo.beta = alpha
        theirs.append(float(grpo._compute_loss(grpo.model.eval(), inputs | {"ref_per_token_logps": reference})))
        losses.append(found.loss)
    grpo.beta = 0.0
    tokens = int(inputs["num_items_in_batch"])
    assert losses[1] - losses[0] > 0.01
    assert losses[1] - losses[0] == pytest.approx((theirs[1] - theirs[0]) * tokens / len(rows), abs=1e-5)


def test_rloo_without_a_penalty(policy, single, tmp_path):
    from datasets import Dataset
    from trl import RLOOConfig, RLOOTrainer

    config = RLOOConfig(tmp_path, **CPU, **SIZES, temperature=0.7, beta=0.0)
    one = Dataset.from_dict({"prompt": ["t1"]})
    rloo = RLOOTrainer(tiny_model(), lambda **_: [0.0], config, one, processing_class=tokenizer())
    merge(rloo.model, policy)
    made = near_policy(policy, single)
    work, found = one_pass(policy, "reinforce_kl", made, replace(SETTINGS, kl_alpha=0.0))
    rewards = rewards_of(made, work.selection.rows)
    advantages = rewards - (rewards.sum(1, keepdim=True) - rewards) / 2
    inputs = trl_inputs(work.selection.rows) | {"advantages": advantages.flatten()}
    inputs["old_logps"] = inputs["old_per_token_logps"].sum(1)
    assert found.loss == pytest.approx(float(rloo._compute_loss(rloo.model.eval(), inputs)), abs=1e-5)
    assert 0 < rloo._metrics["eval"]["clip_ratio/region_mean"][-1] < 1


def test_best_of_n_is_supervised_fine_tuning(policy, cold, tmp_path):
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    work, found = one_pass(policy, "best_of_n", batch(cold))
    inputs = joined(work.selection.rows)
    one = Dataset.from_dict({"text": ["t1 t2"]})
    sft = SFTTrainer(tiny_model(), SFTConfig(tmp_path, **CPU), train_dataset=one, processing_class=tokenizer())
    merge(sft.model, policy)
    inputs["labels"] = inputs["input_ids"].masked_fill(inputs.pop("completion_mask") == 0, -100)
    assert found.loss == pytest.approx(float(sft.compute_loss(sft.model.eval(), inputs)), abs=1e-5)


def test_dpo(policy, cold, tmp_path):
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    made, chosen = batch(cold), replace(SETTINGS, dpo_beta=0.4)
    work, found = one_pass(policy, "dpo", made, chosen)
    pairs = [[made.samples[i].turns[0] for i in side] for side in zip(*work.selection.pairs, strict=True)]
    assert len(pairs[0]) == 6
    one = Dataset.from_dict({"prompt": ["t1"], "chosen": ["t2"], "rejected": ["t3"]})
    dpo = DPOTrainer(
        tiny_model(), tiny_model(), DPOConfig(tmp_path, **CPU, beta=0.4), train_dataset=one,
        processing_class=tokenizer(),
    )  # fmt: skip
    merge(dpo.model, policy)
    theirs = dpo._compute_loss(dpo.model.eval(), joined(pairs[0] + pairs[1]), return_outputs=False)
    assert found.loss == pytest.approx(float(theirs), abs=1e-5)
    assert abs(found.loss - np.log(2)) > 1e-3
