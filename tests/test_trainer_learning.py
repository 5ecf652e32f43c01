"""The objectives against TRL, float64 oracles and finite differences; and that each of them learns what it should."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from trainer_given import CONTEXT, SETTINGS, VOCABULARY, batch, random_rollouts, rollout, tiny_model, tiny_policy, turn

from resia.events import TrainingSettings
from resia.events.errors import TrainerError
from resia.trainers.batch import Batch
from resia.trainers.objectives import OBJECTIVES, Selection
from resia.trainers.packing import Padded, pad
from resia.trainers.policy import Policy
from resia.trainers.rounds import (
    RoundResult,
    Step,
    backward,
    effective_sample_size,
    k3,
    micro_batches_of,
    train_round,
)

torch = pytest.importorskip("torch")
ALGORITHMS = ["grpo", "best_of_n"]


@pytest.fixture(scope="module")
def exact() -> Policy:
    torch.set_num_threads(2)
    return tiny_policy(exact=True, hidden=32)


@pytest.fixture(scope="module")
def policy() -> Policy:
    return tiny_policy()


def near_policy(policy: Policy, rollouts, spread: float = 0.15, seed: int = 0) -> Batch:
    """The rollouts with behaviour log-probabilities around the policy's own, so that some ratios are clipped."""
    rng, made = np.random.default_rng(seed), batch(rollouts)
    samples = []
    for sample in made.samples:
        rows = []
        for row in sample.turns:
            with torch.no_grad():
                own = policy.logprobs(pad([row], np.ones(1)))[0].double().numpy()
            old = np.minimum(own + rng.normal(0, spread, len(own)), 0.0)
            rows.append(row._replace(logprobs=tuple(old.tolist())))
        samples.append(sample._replace(turns=tuple(rows)))
    return Batch(tuple(samples))


def whole(policy: Policy, selection: Selection) -> tuple[Padded, np.ndarray]:
    """Every row as one micro-batch, and the policy's log-probabilities of it."""
    padded = pad(selection.rows, selection.advantages_R)
    with torch.no_grad():
        return padded, policy.logprobs(padded).double().numpy()


def grpo_oracle(made: Batch, logprobs_B_T, padded: Padded, rows, chosen: TrainingSettings) -> float:
    """From the formula: token by token, advantages by group, in float64."""
    total, tokens, kept = 0.0, 0, {}
    for b, row in enumerate(rows):
        sample = made.samples[row.sample]
        peers = np.array([other.reward for other in made.samples if other.group == sample.group])
        advantage = sample.reward - peers.mean()
        if not chosen.dr_grpo:
            variance = ((peers - peers.mean()) ** 2).sum() / (len(peers) - 1)
            advantage /= math.sqrt(variance) + chosen.advantage_epsilon
        for t in range(len(row.completion_ids)):
            ratio = math.exp(logprobs_B_T[b, t] - row.logprobs[t])
            bounded = min(max(ratio, 1 - chosen.clip_epsilon), 1 + chosen.clip_epsilon)
            total -= min(ratio * advantage, bounded * advantage)
            tokens += 1
        kept[row.sample] = kept.get(row.sample, 0) + len(row.completion_ids)
    return total / (len(kept) * max(kept.values()) if chosen.dr_grpo else tokens)


def loss_of(policy: Policy, algorithm: str, made: Batch, chosen: TrainingSettings = SETTINGS):
    """One pass over `made`; the gradient replaces the one before."""
    objective = OBJECTIVES[algorithm]
    selection = objective.select(made, chosen)
    policy.model.zero_grad()
    return selection, backward(policy, objective, selection, micro_batches_of(selection, chosen.micro_tokens), chosen)


@pytest.mark.parametrize("dr", [False, True])
def test_grpo_equals_the_formula(exact, dr):
    chosen = replace(SETTINGS, dr_grpo=dr)
    made = near_policy(exact, random_rollouts(11))
    selection, found = loss_of(exact, "grpo", made, chosen)
    padded, logprobs_B_T = whole(exact, selection)
    assert found.loss == pytest.approx(grpo_oracle(made, logprobs_B_T, padded, selection.rows, chosen), abs=1e-10)
    assert 0 < found.clip_fraction < 1


def test_best_of_n_equals_plain_cross_entropy(exact):
    made = batch(random_rollouts(12, temperature=1.0))
    selection, found = loss_of(exact, "best_of_n", made)
    total, tokens = 0.0, 0
    for row in selection.rows:
        ids = torch.tensor([row.prompt_ids + row.completion_ids])
        labels = ids.clone()
        labels[0, : len(row.prompt_ids)] = -100
        with torch.no_grad():
            mean = exact.model(input_ids=ids, labels=labels).loss
        total += float(mean) * len(row.completion_ids)
        tokens += len(row.completion_ids)
    assert found.loss == pytest.approx(total / tokens, abs=1e-5)
    assert found.clip_fraction == 0


def test_the_statistics_equal_their_formulas(exact):
    made = near_policy(exact, random_rollouts(13))
    selection, found = loss_of(exact, "grpo", made)
    padded, logprobs_B_T = whole(exact, selection)
    log_ratio_N = (logprobs_B_T - padded.logprobs_B_T)[padded.mask_B_T]
    ratio_N = np.exp(log_ratio_N)
    assert found.kl == pytest.approx(np.mean(ratio_N - 1 - log_ratio_N), rel=1e-9)
    advantage_N = padded.advantages_B_T[padded.mask_B_T]
    outside_N = ((ratio_N > 1.2) & (advantage_N > 0)) | ((ratio_N < 0.8) & (advantage_N < 0))
    assert found.clip_fraction == pytest.approx(outside_N.mean(), rel=1e-12)
    log_weights: dict[int, float] = {}
    for b, row in enumerate(selection.rows):
        own = (logprobs_B_T - padded.logprobs_B_T)[b][padded.mask_B_T[b]].sum()
        log_weights[row.sample] = log_weights.get(row.sample, 0.0) + own
    weights_S = np.exp(list(log_weights.values()))
    assert found.ess == pytest.approx(weights_S.sum() ** 2 / len(weights_S) / (weights_S**2).sum(), rel=1e-9)


@given(st.lists(st.floats(-600, 600), min_size=1, max_size=20))
def test_effective_sample_size_is_a_share_and_kl_is_not_negative(values):
    array = np.array(values)
    assert 1 / len(values) <= effective_sample_size(array) * (1 + 1e-12) <= 1 + 1e-9
    assert effective_sample_size(array + 50.0) == pytest.approx(effective_sample_size(array), rel=1e-9)
    assert effective_sample_size(np.full(len(values), values[0])) == pytest.approx(1.0)
    assert k3(array / 100) >= 0
    assert k3(np.zeros(3)) == 0


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_gradients_equal_finite_differences(exact, algorithm):
    made = near_policy(exact, random_rollouts(14))
    loss_of(exact, algorithm, made)
    names = sorted(exact.weights)
    gradients = {name: exact.weights[name].grad.clone() for name in names}
    generator, h = torch.Generator().manual_seed(0), 1e-6

    def difference(directions) -> float:
        losses = []
        for sign in (1, -2, 1):  # forward, backward, and home again
            with torch.no_grad():
                for name, direction in directions.items():
                    exact.weights[name].add_(direction, alpha=sign * h)
            losses.append(loss_of(exact, algorithm, made)[1].loss)
        return (losses[0] - losses[1]) / (2 * h)

    for trial in range(4):
        chosen = names if trial == 0 else names[trial * 5 : trial * 5 + 1]
        directions = {n: torch.randn(gradients[n].shape, generator=generator, dtype=torch.float64) for n in chosen}
        expected = sum(float((gradients[n] * d).sum()) for n, d in directions.items())
        assert abs(expected) > 1e-4
        assert difference(directions) == pytest.approx(expected, rel=1e-5)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10_000), st.floats(-5, 5), st.randoms(use_true_random=False), st.integers(1, 200))
def test_what_a_grpo_gradient_does_not_depend_on(exact, seed, constant, random, budget):
    """A constant added to one group's rewards, the names and order of groups and rollouts, the micro-batches."""
    rollouts = random_rollouts(seed, groups=2, size=3)
    made = near_policy(exact, rollouts, seed=seed)
    samples = [
        s._replace(group={"item0": "z", "item1": "a"}[s.group], reward=s.reward + constant * (s.group == "item0"))
        for s in made.samples
    ]
    random.shuffle(samples)
    other = Batch(tuple(s._replace(turns=tuple(r._replace(sample=i) for r in s.turns)) for i, s in enumerate(samples)))
    one = loss_of(exact, "grpo", made)[1], gradient(exact)
    two = loss_of(exact, "grpo", other, replace(SETTINGS, micro_tokens=budget))[1], gradient(exact)
    np.testing.assert_allclose(two[0], one[0], atol=1e-9)
    np.testing.assert_allclose(two[1], one[1], atol=1e-9)


def gradient(policy: Policy) -> np.ndarray:
    return np.concatenate([policy.weights[name].grad.double().numpy().ravel() for name in sorted(policy.weights)])


def tokenizer():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(VOCABULARY)}, unk_token="t0"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="t0", eos_token="t1")


CPU = {
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "dataloader_pin_memory": False,
    "report_to": "none",
}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")
def test_losses_equal_trls(policy, tmp_path):
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

    single = [r for r in random_rollouts(21) if not r.id.endswith("0")]  # those of one turn
    made = near_policy(policy, single)
    longest = max(sample.completion_tokens for sample in made.samples)
    sizes = {"num_generations": 2, "per_device_train_batch_size": 2, "max_completion_length": longest}
    config = GRPOConfig(tmp_path, **CPU, temperature=0.7, **sizes)
    one = Dataset.from_dict({"prompt": ["t1"]})
    grpo = GRPOTrainer(tiny_model(), lambda **_: [0.0], config, one, processing_class=tokenizer())
    merge(grpo.model, policy)
    for kind in ("dapo", "bnpo", "dr_grpo"):
        chosen = replace(SETTINGS, dr_grpo=kind == "dr_grpo")
        selection, found = loss_of(policy, "grpo", made, chosen)
        inputs = trl_inputs(selection)
        rewards = torch.tensor([made.samples[row.sample].reward for row in selection.rows]).view(-1, 3)
        advantages = rewards - rewards.mean(1, keepdim=True)
        if not chosen.dr_grpo:
            advantages = advantages / (rewards.std(1, keepdim=True) + 1e-4)
        inputs["advantages"] = advantages.flatten()
        grpo.loss_type = kind
        assert found.loss == pytest.approx(float(grpo._compute_loss(grpo.model.eval(), inputs)), abs=1e-5)
        assert found.clip_fraction == pytest.approx(grpo._metrics["eval"]["clip_ratio/region_mean"][-1], abs=1e-6)

    cold = batch([r._replace(trajectory=replace(r.trajectory, temperature=1.0)) for r in single])
    selection, found = loss_of(policy, "best_of_n", cold)
    inputs = trl_inputs(selection)
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
    answer = torch.cat([torch.zeros_like(inputs["prompt_mask"]), inputs["completion_mask"]], 1)
    sft = SFTTrainer(
        tiny_model(), SFTConfig(tmp_path, **CPU), train_dataset=Dataset.from_dict({"text": ["t1 t2"]}),
        processing_class=tokenizer(),
    )  # fmt: skip
    merge(sft.model, policy)
    given_in = {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(answer == 0, -100)}
    assert found.loss == pytest.approx(float(sft.compute_loss(sft.model.eval(), given_in)), abs=1e-5)


def merge(model, policy: Policy) -> None:
    """Give `model` the policy's weights with the adapter added in: W + alpha / rank B A."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            stem = f"base_model.model.{name.removesuffix('.weight')}"
            if f"{stem}.lora_A.weight" in policy.weights:
                low, high = policy.weights[f"{stem}.lora_A.weight"], policy.weights[f"{stem}.lora_B.weight"]
                weight.add_(high @ low, alpha=policy.info.lora_alpha / policy.info.rank)


def trl_inputs(selection: Selection) -> dict:
    """Prompts padded on the left, completions on the right."""
    rows = selection.rows
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


def finish(run) -> tuple[list[Step], RoundResult]:
    steps = []
    while True:
        try:
            steps.append(next(run))
        except StopIteration as stop:
            return steps, stop.value


PROMPT, ARMS, TARGET = (1, 2, 3), 16, 5
BANDIT = TrainingSettings(rank=4, lora_alpha=8, learning_rate=1e-2, bon_top=16)


def arms(policy: Policy) -> np.ndarray:
    """Probabilities of the first token after the prompt."""
    with torch.no_grad():
        return policy.model(torch.tensor([PROMPT])).logits[0, -1].double().softmax(0).numpy()


def play(policy: Policy, algorithm: str, rounds: int, shuffled: bool) -> list[Step]:
    """Rounds of one step on 64 fresh pulls; the reward is 1 for the target token."""
    rng, optimizer, steps = np.random.default_rng(0), None, []
    for _ in range(rounds):
        probabilities = arms(policy)
        pulls = rng.choice(ARMS, 64, p=probabilities / probabilities.sum())
        rewards = (pulls == TARGET).astype(float)
        if shuffled:
            rng.shuffle(rewards)
        rollouts = [
            rollout(f"{i:02}", "bandit", rewards[i], rewards[i] > 0,
                    turns=[turn(PROMPT, [pull], [min(0.0, math.log(probabilities[pull]))])])
            for i, pull in enumerate(pulls.tolist())
        ]  # fmt: skip
        try:
            made, result = finish(train_round(policy, batch(rollouts), algorithm, BANDIT, 1, optimizer, lambda: 0.0))
        except TrainerError:  # every pull alike: nothing to learn this round
            continue
        optimizer, steps = result.optimizer, steps + made
    return steps


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_bandit_is_solved_and_only_by_its_rewards(algorithm):
    def fresh() -> Policy:
        policy = Policy(tiny_model(ARMS, hidden=64, layers=1), BANDIT, "base")
        policy.set_adapter(None, 1)
        return policy

    player, control = fresh(), fresh()
    assert arms(player)[TARGET] < 0.2
    steps = play(player, algorithm, 16, shuffled=False)
    play(control, algorithm, 16, shuffled=True)
    assert arms(player)[TARGET] > 0.9
    assert arms(control)[TARGET] < 0.3
    assert steps[0].kl == pytest.approx(0, abs=1e-6)  # on-policy before the first update
    assert steps[0].ess == pytest.approx(1, abs=1e-6)


def test_a_round_reports_what_it_did(policy):
    rollouts = random_rollouts(31)
    rollouts += [rollout(f"same{i}", "same", 0.5, turns=[turn()]) for i in range(3)]
    made = near_policy(policy, rollouts)
    ticks = iter(range(0, 100, 2))
    before = policy.adapter_bytes()
    chosen = replace(SETTINGS, learning_rate=1e-3)
    steps, result = finish(train_round(policy, made, "grpo", chosen, 3, None, lambda: float(next(ticks))))
    tokens = sum(len(r.prompt_ids) + len(r.completion_ids) for s in made.samples for r in s.turns if s.group != "same")
    assert [step.step for step in steps] == [0, 1, 2]
    assert {(step.tokens, step.tokens_per_s, step.learning_rate) for step in steps} == {(tokens, tokens / 2, 1e-3)}
    assert (result.steps, result.used, result.dropped, result.tokens) == (3, 8, 3, 3 * tokens)
    assert result.reward_mean == pytest.approx(np.mean([r.reward for r in rollouts]))
    assert steps[2].loss < steps[0].loss
    assert result.adapter == policy.adapter_bytes() != before
    policy.set_adapter(before, 0)


def test_updates_are_clipped_to_the_norm_that_is_asked(policy):
    made, before = near_policy(policy, random_rollouts(32)), policy.adapter_bytes()
    (step,), _ = finish(train_round(policy, made, "grpo", replace(SETTINGS, max_grad_norm=1e-3), 1, None, lambda: 0.0))
    assert step.grad_norm > 1e-3
    assert np.linalg.norm(gradient(policy)) == pytest.approx(1e-3, rel=1e-3)
    policy.set_adapter(before, 0)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_loss_that_is_not_finite_stops_before_the_weights_change(algorithm):
    broken = tiny_policy(layers=1)
    made = near_policy(broken, random_rollouts(33))
    with torch.no_grad():
        next(iter(broken.weights.values()))[0, 0] = float("nan")
    before = broken.adapter_bytes()
    with pytest.raises(TrainerError, match="step 0 has loss nan") as raised:
        finish(train_round(broken, made, algorithm, SETTINGS, 2, None, lambda: 0.0))
    assert raised.value.step == 0
    assert broken.adapter_bytes() == before


def test_log_probabilities_of_another_policy_do_not_pass_in_silence(policy):
    """With behaviour log-probabilities far too low every rewarded ratio is clipped and nothing would be learned."""
    good, bad = turn(completion=[4, 5], logprobs=[-50.0, -50.0]), turn(completion=[6, 7], logprobs=[-1e-6, -1e-6])
    made = batch([rollout("a", reward=1.0, turns=[good]), rollout("b", reward=0.0, turns=[bad])])
    before = policy.adapter_bytes()
    with pytest.raises(TrainerError, match="the first gradient is exactly zero"):
        finish(train_round(policy, made, "grpo", SETTINGS, 1, None, lambda: 0.0))
    assert policy.adapter_bytes() == before


def test_a_round_without_a_step_is_refused(policy):
    with pytest.raises(TrainerError, match="a round of 0 steps"):
        next(train_round(policy, batch(random_rollouts(1)), "grpo", SETTINGS, 0, None, lambda: 0.0))
    assert policy.context == CONTEXT
