"""Rollouts, tiny models and single passes that the trainer's tests start from. Token ids need no tokenizer."""

from __future__ import annotations

import numpy as np

from resia.events import TrainingSettings, Trajectory, Turn
from resia.trainers.batch import Batch, Rollout, batch_of
from resia.trainers.objectives import OBJECTIVES
from resia.trainers.packing import pad

CONTEXT = 128
VOCABULARY = 264
SETTINGS = TrainingSettings(rank=4, lora_alpha=8, micro_tokens=4096, clip_epsilon=0.2, bon_top=4)


def turn(prompt=(1, 2, 3), completion=(4, 5), logprobs=None, reward=0.0) -> Turn:
    logprobs = (-1.0,) * len(completion) if logprobs is None else tuple(logprobs)
    return Turn((), tuple(prompt), tuple(completion), logprobs, "", "stop", reward=reward)


def rollout(name, group="item", reward=0.0, success=False, failure=None, temperature=1.0, turns=None) -> Rollout:
    turns = (turn(),) if turns is None else tuple(turns)
    return Rollout(name, group, reward, success, failure, Trajectory(group, 0, temperature, turns))


def random_rollouts(seed: int, groups: int = 2, size: int = 4, temperature: float = 0.7, prefix: int = 12):
    """Groups of rollouts whose prompts begin alike, of one or two turns, with distinct rewards."""
    rng = np.random.default_rng(seed)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(rng.integers(0, VOCABULARY, count).tolist())

    def one_turn(prompt) -> Turn:
        completion = ids(int(rng.integers(1, 7)))
        return turn(prompt, completion, (-5.6 + rng.normal(0, 0.15, len(completion))).tolist())

    shared, made = ids(prefix), []
    for g in range(groups):
        prompt = shared + ids(g)
        for i in range(size):
            turns = [one_turn(prompt) for _ in range(1 + (i == 0))]
            reward = float(rng.random())
            made.append(rollout(f"r{g}{i}", f"item{g}", reward, reward > 0.3, None, temperature, turns))
    return made


def batch(rollouts) -> Batch:
    return batch_of(rollouts, CONTEXT)


def tiny_model(vocabulary: int = VOCABULARY, hidden: int = 128, layers: int = 2, exact: bool = False):
    """A random Llama; `exact` computes its norms in the model's own dtype, so that float64 is float64 throughout."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=hidden // 2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        initializer_range=0.1,
    )
    model = LlamaForCausalLM(config)
    if exact:
        for layer in model.model.layers:
            layer.input_layernorm = torch.nn.RMSNorm(hidden, config.rms_norm_eps)
            layer.post_attention_layernorm = torch.nn.RMSNorm(hidden, config.rms_norm_eps)
        model.model.norm = torch.nn.RMSNorm(hidden, config.rms_norm_eps)
        model = model.double()
    return model


def tiny_policy(
    seed: int = 1, spread: float = 0.05, settings: TrainingSettings = SETTINGS, values: bool = False, **shape
):
    """Policy over a tiny model; `spread` moves LoRA's B and the value head away from 0, so that every weight has a
    gradient."""
    import torch

    from resia.trainers.policy import Policy

    policy = Policy(tiny_model(**shape), settings, "base")
    policy.set_adapter(None, seed, values=values)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name in sorted(policy.weights):
            policy.weights[name].add_(spread * torch.randn(policy.weights[name].shape, generator=generator))
            if policy.model.dtype == torch.float64:
                policy.weights[name].data = policy.weights[name].data.double()
    return policy


def near_policy(policy, rollouts, spread: float = 0.15, seed: int = 0) -> Batch:
    """The rollouts with behaviour log-probabilities around the policy's own, so that some ratios are clipped."""
    import torch

    rng, made = np.random.default_rng(seed), batch(rollouts)
    samples = []
    for sample in made.samples:
        rows = []
        for row in sample.turns:
            with torch.no_grad():
                own = policy.logprobs(pad([row]))[0].double().numpy()
            old = np.minimum(own + rng.normal(0, spread, len(own)), 0.0)
            rows.append(row._replace(logprobs=tuple(old.tolist())))
        samples.append(sample._replace(turns=tuple(rows)))
    return Batch(tuple(samples))


def one_pass(policy, algorithm, made: Batch, chosen: TrainingSettings = SETTINGS, reference: bytes | None = None):
    """(work, gradient) of one pass over `made`; what is left on the weights replaces the pass before."""
    from resia.trainers.gradient import prepare

    work = prepare(policy, OBJECTIVES[algorithm], made, chosen, reference)
    return work, again(policy, algorithm, work, chosen)


def again(policy, algorithm, work, chosen: TrainingSettings = SETTINGS):
    """Another pass over prepared work."""
    from resia.trainers.gradient import backward

    for weight in policy.weights.values():
        weight.grad = None
    return backward(policy, OBJECTIVES[algorithm], work, chosen)


def gradient(policy) -> np.ndarray:
    """What the last pass left on the weights, one after another."""
    return np.concatenate([policy.weights[name].grad.double().numpy().ravel() for name in sorted(policy.weights)])


def finish(run):
    """(steps, result) of a round."""
    steps = []
    while True:
        try:
            steps.append(next(run))
        except StopIteration as stop:
            return steps, stop.value
