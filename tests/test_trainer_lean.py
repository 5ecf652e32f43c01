"""What the trainer leaves out of memory and does not compute twice, and that the numbers stay those of a plain pass."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as run_settings
from hypothesis import strategies as st
from msgspec.structs import replace
from trainer_given import SETTINGS, again, batch, gradient, random_rollouts, tiny_model, tiny_policy

from resia.trainers import head, trunk
from resia.trainers.batch import Row
from resia.trainers.gradient import prepare
from resia.trainers.objectives import OBJECTIVES
from resia.trainers.packing import pad
from resia.trainers.policy import Policy

torch = pytest.importorskip("torch")
VOCABULARY = 50


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def exact() -> Policy:
    return tiny_policy(exact=True, hidden=32)


def rows_of(rollouts) -> list[Row]:
    return [row for sample in batch(rollouts).samples for row in sample.turns]


def layer(dtype, bias: bool = False):
    generator = torch.Generator().manual_seed(0)
    made = torch.nn.Linear(8, VOCABULARY, bias=bias).requires_grad_(False)
    made.weight.copy_(torch.randn(made.weight.shape, generator=generator))
    return made.to(dtype)


def tokens_of(count: int, seed: int, dtype):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(count, 8, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    tokens = torch.randint(0, VOCABULARY, (count,), generator=generator)
    return hidden, tokens, 0.5 + torch.rand(count, generator=generator, dtype=torch.float64)


def oracle(made, hidden, tokens, temperature, weights) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities and the gradient of their weighted sum by numpy in float64: softmax and its derivative."""
    W, h = made.weight.double().numpy(), hidden.detach().double().numpy()
    t, rows = temperature.numpy()[:, None], np.arange(len(h))
    bias = 0.0 if made.bias is None else made.bias.double().numpy()
    logits = (h @ W.T + bias) / t
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    ids = tokens.numpy()
    return np.log(p[rows, ids]), weights.numpy()[:, None] * (W[ids] - p @ W) / t


@given(st.integers(1, 12), st.integers(0, 2**31), st.integers(1, 5), st.booleans())
def test_log_probabilities_and_their_gradient_equal_the_formula(count, seed, rows, bias):
    for dtype, atol in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        made = layer(dtype, bias)
        hidden, tokens, temperature = tokens_of(count, seed, dtype)
        weights = torch.randn(count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(head, "CHUNK_BYTES", rows * VOCABULARY * dtype.itemsize)
            found = head.token_logprobs(made, hidden, tokens, temperature)
            with torch.no_grad():
                again_ = head.token_logprobs(made, hidden, tokens, temperature)
        (found * weights).sum().backward()
        expected, slopes = oracle(made, hidden, tokens, temperature, weights)
        assert found.dtype == dtype
        assert torch.equal(found.detach(), again_)
        np.testing.assert_allclose(found.detach().double().numpy(), expected, atol=atol)
        np.testing.assert_allclose(hidden.grad.double().numpy(), slopes, atol=10 * atol)


def test_a_bfloat16_head_gives_float32_log_probabilities_and_a_gradient_as_fine_as_autograds():
    made = layer(torch.bfloat16)
    hidden, tokens, temperature = tokens_of(40, 1, torch.bfloat16)
    found = head.token_logprobs(made, hidden, tokens, temperature)
    assert found.dtype == torch.float32
    found.sum().backward()
    ours = hidden.grad.double().numpy()
    hidden.grad = None
    plain = torch.nn.functional.cross_entropy(
        made(hidden).float() / temperature.float()[:, None], tokens, reduction="none"
    )
    (-plain.sum()).backward()
    np.testing.assert_allclose(found.detach().numpy(), -plain.detach().numpy(), atol=1e-5)
    _, slopes = oracle(made, hidden, tokens, temperature, torch.ones(40, dtype=torch.float64))
    theirs = hidden.grad.double().numpy()
    assert np.abs(ours - slopes).max() <= 1.5 * np.abs(theirs - slopes).max()


def test_what_is_no_number_stays_none():
    hidden, tokens, temperature = tokens_of(3, 0, torch.float32)
    with torch.no_grad():
        hidden[1, 0] = float("nan")
    found = head.token_logprobs(layer(torch.float32), hidden, tokens, temperature)
    assert torch.isnan(found).tolist() == [False, True, False]


class Seen:
    """Counts, for every module of a model that is called, the rows that it got."""

    def __init__(self, policy: Policy) -> None:
        self.calls: Counter[str] = Counter()
        self.rows: list[int] = []
        base = policy.model.base_model.model
        self._handles = [base.lm_head.register_forward_pre_hook(lambda _, args: self.rows.append(len(args[0])))]
        for number, one in enumerate(base.model.layers):
            name = f"layer {number}"
            self._handles.append(one.mlp.register_forward_pre_hook(lambda *_, name=name: self.calls.update([name])))
        self._handles.append(base.model.register_forward_pre_hook(self._whole, with_kwargs=True))
        self.tokens: list[int] = []

    def _whole(self, _module, _args, kwargs) -> None:
        self.tokens.append(kwargs["input_ids"].numel())

    def __enter__(self) -> Seen:
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()


def test_logits_exist_for_a_chunk_of_completion_tokens_and_are_made_once(exact, monkeypatch):
    rows = rows_of(random_rollouts(3))
    monkeypatch.setattr(head, "CHUNK_BYTES", 7 * exact.vocabulary * 8)
    with Seen(exact) as seen:
        exact.logprobs(pad(rows)).sum().backward()
    assert max(seen.rows) == 7
    assert sum(seen.rows) == sum(len(row.completion_ids) for row in rows)


def test_shared_tokens_are_run_once_and_activations_are_made_again(exact):
    rows = rows_of(random_rollouts(3, groups=1, size=8, prefix=60))
    with Seen(exact) as seen:
        found = exact.logprobs(pad(rows))
        assert set(seen.calls.values()) == {1}
        found.sum().backward()
    assert set(seen.calls.values()) == {2}  # in the backward pass once more
    assert len(seen.tokens) == 1
    assert seen.tokens[0] < 60 + 2 * sum(len(row.completion_ids) for row in rows)
    with Seen(exact) as seen, torch.no_grad():
        exact.logprobs(pad(rows))
    assert set(seen.calls.values()) == {1}


def test_activations_made_again_are_the_same_bits(monkeypatch):
    """As if they had been kept, and in float32 too."""
    policy, padded = tiny_policy(), pad(rows_of(random_rollouts(3, groups=3)))

    def slopes() -> bytes:
        policy.model.zero_grad()
        policy.logprobs(padded).sum().backward()
        return gradient(policy).tobytes()

    again_ = slopes()
    monkeypatch.setattr(trunk, "checkpoint", lambda forward, *args, **_: forward(*args))
    with Seen(policy) as seen:
        assert slopes() == again_
    assert set(seen.calls.values()) == {1}


def plain(policy: Policy, rows: list[Row], weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every row by itself through the whole model, log-softmax over all logits, and the gradient by autograd."""
    policy.model.zero_grad()
    sums = []
    for row, weight in zip(rows, weights, strict=True):
        logits = policy.model(torch.tensor([row.prompt_ids + row.completion_ids])).logits[0] / row.temperature
        start = len(row.prompt_ids) - 1
        picked = logits.log_softmax(-1)[torch.arange(start, start + len(row.completion_ids)), row.completion_ids]
        (weight * picked.sum()).backward()
        sums.append(float(picked.sum().detach()))
    return np.array(sums), gradient(policy)


@run_settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 3), st.integers(1, 5), st.sampled_from([0, 3, 20]), st.booleans())
def test_a_micro_batch_equals_its_rows_one_by_one(exact, seed, groups, size, prefix, shuffled):
    rows = rows_of(random_rollouts(seed, groups, size, prefix=max(prefix, 1)))
    rng = np.random.default_rng(seed)
    if shuffled:
        rows = [rows[i] for i in rng.permutation(len(rows))]
    weights = rng.normal(size=len(rows))
    sums, slopes = plain(exact, rows, weights)
    exact.model.zero_grad()
    found = exact.logprobs(pad(rows)).sum(1)
    (found * torch.as_tensor(weights)).sum().backward()
    np.testing.assert_allclose(found.detach().numpy(), sums, atol=1e-10)
    np.testing.assert_allclose(gradient(exact), slopes, atol=1e-9)


def test_float32_is_within_a_millionth_of_float64():
    """Relative to the largest: log-probabilities and gradients of one batch in both precisions."""
    rows, found = rows_of(random_rollouts(8, groups=2)), {}
    for dtype in (torch.float32, torch.float64):
        policy = tiny_policy(exact=True, hidden=32)
        policy.model.to(dtype)
        logprobs = policy.logprobs(pad(rows))
        assert logprobs.dtype == dtype
        logprobs.sum().backward()
        found[dtype] = logprobs.detach().double().numpy(), gradient(policy)
    for single, double in zip(found[torch.float32], found[torch.float64], strict=True):
        assert np.abs(single - double).max() <= 1e-6 * np.abs(double).max()


@pytest.mark.parametrize("kind", ["grouped queries", "sliding window"])
def test_other_attention(kind):
    """Grouped queries run as any; a window that cuts the prefix off is not plain causal, and runs padded."""
    rows = rows_of(random_rollouts(3))
    torch.manual_seed(0)
    if kind == "grouped queries":
        from transformers import LlamaConfig, LlamaForCausalLM

        model = LlamaForCausalLM(LlamaConfig(**SHAPE)).double()
    else:
        from transformers import MistralConfig, MistralForCausalLM

        model = MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=6)).double()
    policy = Policy(model, SETTINGS, "base")
    policy.set_adapter(None, 1)
    sums, slopes = plain(policy, rows, np.ones(len(rows)))
    policy.model.zero_grad()
    found = policy.logprobs(pad(rows))
    found.sum().backward()
    np.testing.assert_allclose(found.detach().sum(1).numpy(), sums, atol=1e-4)  # norms are float32 in these
    np.testing.assert_allclose(gradient(policy), slopes, atol=1e-4)


SHAPE = {
    "vocab_size": 264,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
}


@pytest.mark.parametrize(("budget", "passes"), [(10_000, 1), (30, 2)])
def test_dpo_needs_no_pass_before_when_one_holds_all_its_rows(exact, budget, passes):
    made = batch(random_rollouts(5))
    chosen = replace(SETTINGS, micro_tokens=budget)
    work = prepare(exact, OBJECTIVES["dpo"], made, chosen)
    with Seen(exact) as seen:
        again(exact, "dpo", work, chosen)
    assert len(seen.tokens) == passes * len(work.micro_batches)


@pytest.mark.parametrize(("alpha", "passes"), [(0.05, 1), (0.0, 0)])
def test_reinforce_without_a_penalty_needs_no_reference(exact, alpha, passes):
    with Seen(exact) as seen:
        prepare(exact, OBJECTIVES["reinforce_kl"], batch(random_rollouts(5)), replace(SETTINGS, kl_alpha=alpha))
    assert len(seen.tokens) == passes


def test_the_same_batch_gives_the_same_bits():
    def once() -> bytes:
        policy = tiny_policy()
        policy.logprobs(pad(rows_of(random_rollouts(3, groups=3)))).sum().backward()
        return gradient(policy).tobytes()

    assert once() == once()


def test_a_model_that_keeps_the_layout_from_its_attention_is_refused(exact):
    from resia.events.errors import TrainerError

    model = tiny_model()
    forward = model.model.forward
    policy = Policy(model, SETTINGS, "base")
    model.model.forward = lambda segments=None, **kwargs: forward(**kwargs)
    with pytest.raises(TrainerError, match="does not pass its arguments to attention"):
        policy.logprobs(pad(rows_of(random_rollouts(3))))
