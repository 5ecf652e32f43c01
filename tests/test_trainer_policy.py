"""The policy's log-probabilities and gradients against plain computations, and the files that its weights travel in."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from msgspec.structs import replace
from trainer_given import SETTINGS, batch, random_rollouts, tiny_model, tiny_policy

from resia.events.errors import TrainerError
from resia.trainers import policy as policy_module
from resia.trainers.adapter import AdapterInfo, adapter_info, export_peft
from resia.trainers.batch import Row
from resia.trainers.objectives import OBJECTIVES
from resia.trainers.packing import pad, shared_prefix
from resia.trainers.policy import Policy
from resia.trainers.rounds import backward, micro_batches_of, train_round

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def policy() -> Policy:
    torch.set_num_threads(2)
    return tiny_policy()


@pytest.fixture(scope="module")
def exact() -> Policy:
    return tiny_policy(exact=True, hidden=32)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "tiny"
    tiny_model().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return [row for sample in batch(random_rollouts(3)).samples for row in sample.turns]


def gradient(policy: Policy) -> np.ndarray:
    return np.concatenate([policy.weights[name].grad.double().numpy().ravel() for name in sorted(policy.weights)])


def scored(policy: Policy, padded) -> tuple[np.ndarray, np.ndarray]:
    policy.model.zero_grad()
    logprobs_B_T = policy.logprobs(padded)
    logprobs_B_T.sum().backward()
    return logprobs_B_T.detach().double().numpy(), gradient(policy)


def plain_logprobs(policy: Policy, row: Row) -> np.ndarray:
    """log softmax(logits / temperature) of the completion, by numpy in float64 from one whole forward pass."""
    ids = torch.tensor([row.prompt_ids + row.completion_ids])
    with torch.no_grad():
        logits_T_V = policy.model(ids).logits[0].double().numpy() / row.temperature
    top_T = logits_T_V.max(axis=1)
    log_sum_T = top_T + np.log(np.exp(logits_T_V - top_T[:, None]).sum(axis=1))
    start = len(row.prompt_ids) - 1
    return np.array([logits_T_V[start + t, token] - log_sum_T[start + t] for t, token in enumerate(row.completion_ids)])


def test_logprobs_equal_whole_forward_passes_in_float64(exact, rows):
    padded = pad(rows, np.ones(len(rows)))
    assert len(padded.prefix_P) == 11
    found_B_T, _ = scored(exact, padded)
    assert found_B_T.dtype == np.float64
    for b, row in enumerate(rows):
        length = len(row.completion_ids)
        np.testing.assert_allclose(found_B_T[b, :length], plain_logprobs(exact, row), atol=1e-10)
        assert not found_B_T[b, length:].any()


def test_a_shared_prefix_changes_neither_values_nor_gradient(policy, rows):
    whole, apart = scored(policy, pad(rows, np.ones(len(rows)))), scored(policy, pad(rows, np.ones(len(rows)), 0))
    assert shared_prefix(rows) > 0
    np.testing.assert_allclose(whole[0], apart[0], atol=1e-5)
    np.testing.assert_allclose(whole[1], apart[1], atol=1e-5 * np.abs(apart[1]).max())


def test_padding_changes_nothing(exact, rows):
    alone = [scored(exact, pad([row], np.ones(1))) for row in rows]
    together = scored(exact, pad(rows, np.ones(len(rows))))
    for b, (values, _) in enumerate(alone):
        np.testing.assert_allclose(together[0][b, : values.shape[1]], values[0], atol=1e-12)
    np.testing.assert_allclose(together[1], sum(grad for _, grad in alone), atol=1e-10)


def test_chunks_of_the_head_change_nothing(exact, rows, monkeypatch):
    padded = pad(rows, np.ones(len(rows)))
    whole = scored(exact, padded)
    monkeypatch.setattr(policy_module, "HEAD_CHUNK", 5)
    chunked = scored(exact, padded)
    np.testing.assert_allclose(chunked[0], whole[0], atol=1e-12)
    np.testing.assert_allclose(chunked[1], whole[1], atol=1e-10)


@pytest.mark.parametrize("algorithm", ["grpo", "best_of_n"])
def test_micro_batches_add_up_to_the_whole_batch(exact, algorithm):
    selection = OBJECTIVES[algorithm].select(batch(random_rollouts(5, groups=3)), SETTINGS)
    found = []
    for budget in (1, 30, 10_000):
        exact.model.zero_grad()
        micro_batches = micro_batches_of(selection, budget)
        found.append((len(micro_batches), backward(exact, OBJECTIVES[algorithm], selection, micro_batches, SETTINGS)))
        found[-1] += (gradient(exact),)
    counts, passes, gradients = zip(*found, strict=True)
    assert counts[0] == len(selection.rows) > counts[2]
    for one, grad in zip(passes[1:], gradients[1:], strict=True):
        np.testing.assert_allclose(one, passes[0], atol=1e-10)
        np.testing.assert_allclose(grad, gradients[0], atol=1e-10)


def test_a_fresh_adapter_is_the_base_and_depends_on_its_seed_alone(model_dir, rows):
    loaded = [Policy.load(model_dir, "float32", 2, SETTINGS, "base", seed=seed) for seed in (7, 7, 8)]
    one, again, other = (policy.adapter_bytes() for policy in loaded)
    assert one == again != other
    with torch.no_grad():
        ours = loaded[0].logprobs(pad(rows, np.ones(len(rows))))
        with loaded[0].model.disable_adapter():
            base = loaded[0].logprobs(pad(rows, np.ones(len(rows))))
    assert torch.equal(ours, base)
    state = torch.random.get_rng_state()
    Policy.load(model_dir, "float32", 2, SETTINGS, "base", seed=9)
    assert torch.equal(state, torch.random.get_rng_state())


def test_only_the_adapter_is_trained(policy):
    trained = {name for name, weight in policy.model.named_parameters() if weight.requires_grad}
    assert all("lora_" in name for name in trained)
    assert policy.info.target_modules == (
        "down_proj",
        "gate_proj",
        "k_proj",
        "o_proj",
        "q_proj",
        "up_proj",
        "v_proj",
    )
    assert not policy.model.training
    assert len(policy.weights) == 2 * 7 * 2


def test_a_bfloat16_base_has_a_float32_adapter(model_dir, rows):
    low = Policy.load(model_dir, "bfloat16", 2, SETTINGS, "base", seed=1)
    assert {weight.dtype for weight in low.weights.values()} == {torch.float32}
    assert low.model.dtype == torch.bfloat16
    values, grad = scored(low, pad(rows, np.ones(len(rows))))
    assert np.isfinite(grad).all()
    assert np.abs(grad).max() > 0
    high = Policy.load(model_dir, "float32", 2, SETTINGS, "base", seed=1)
    np.testing.assert_allclose(values, scored(high, pad(rows, np.ones(len(rows))))[0], atol=0.2)


def test_the_adapter_file_has_pefts_names_and_equal_bytes(policy, model_dir):
    from peft import get_peft_model_state_dict

    data = policy.adapter_bytes()
    expected = get_peft_model_state_dict(policy.model, save_embedding_layers=False)
    assert set(policy.weights) == set(expected)
    assert adapter_info(data) == AdapterInfo(4, 8, policy.info.target_modules, "base")
    other = Policy.load(model_dir, "float32", 2, SETTINGS, "base", adapter=data)
    assert hashlib.sha256(other.adapter_bytes()).digest() == hashlib.sha256(data).digest()


def test_an_exported_adapter_loads_in_peft_with_equal_logits(policy, tmp_path):
    from peft import PeftModel

    export_peft(policy.adapter_bytes(), tmp_path / "adapter")
    theirs = PeftModel.from_pretrained(tiny_model(), tmp_path / "adapter").eval()
    ids = torch.arange(1, 17)[None, :]
    with torch.no_grad():
        assert torch.equal(theirs(ids).logits, policy.model(ids).logits)
        assert not torch.allclose(theirs(ids).logits, tiny_model().eval()(ids).logits, atol=1e-2)


def test_an_adapter_that_does_not_fit_is_refused_and_nothing_changes(policy):
    data = policy.adapter_bytes()
    others = {
        "rank 4, but this policy has 2": Policy(tiny_model(), replace(SETTINGS, rank=2), "base"),
        "base_digest base, but this policy has another": Policy(tiny_model(), SETTINGS, "another"),
        "lora_alpha 8, but this policy has 16": Policy(tiny_model(), replace(SETTINGS, lora_alpha=16), "base"),
        "unknown tensor": Policy(tiny_model(layers=1), SETTINGS, "base"),
        "of shape": Policy(tiny_model(hidden=64), SETTINGS, "base"),
    }
    for said, other in others.items():
        other.set_adapter(None, 0)
        before = other.adapter_bytes()
        with pytest.raises(TrainerError, match=said):
            other.set_adapter(data, 0)
        assert other.adapter_bytes() == before


@pytest.mark.parametrize("data", [b"", b"not a file", b"\x00" * 100])
def test_bytes_that_are_no_adapter_are_refused(policy, data):
    with pytest.raises(TrainerError, match="the adapter"):
        policy.set_adapter(data, 0)


def test_a_truncated_or_foreign_file_is_refused(policy):
    from safetensors.torch import save

    with pytest.raises(TrainerError, match="the adapter cannot be read"):
        policy.set_adapter(policy.adapter_bytes()[:-8], 0)
    with pytest.raises(TrainerError, match="no 'resia' metadata"):
        policy.set_adapter(save({"x": torch.zeros(1)}, metadata={"format": "pt"}), 0)


def test_a_model_folder_that_is_not_there_is_a_trainer_error(tmp_path):
    with pytest.raises(TrainerError, match="the base model in nowhere cannot be loaded"):
        Policy.load(tmp_path / "nowhere", "float32", 2, SETTINGS, "base")


def test_a_model_that_changes_its_logits_is_refused():
    model = tiny_model()
    forward = model.forward

    def scaled(*args, **kwargs):
        out = forward(*args, **kwargs)
        out.logits = out.logits * 0.5
        return out

    model.forward = scaled
    with pytest.raises(TrainerError, match="changes its logits"):
        Policy(model, SETTINGS, "base")


def rounds(policy: Policy, steps: list[int], algorithm="best_of_n"):
    """Rounds of so many steps, each from the files of the one before; the last round's result."""
    made, result = batch(random_rollouts(9)), None
    for count in steps:
        run = train_round(policy, made, algorithm, SETTINGS, count, result and result.optimizer, lambda: 0.0)
        while True:
            try:
                next(run)
            except StopIteration as stop:
                result = stop.value
                break
        policy.set_adapter(result.adapter, 0)
    return result


@pytest.mark.parametrize("algorithm", ["grpo", "best_of_n"])
def test_two_fresh_runs_give_equal_files(model_dir, algorithm):
    results = [rounds(Policy.load(model_dir, "float32", 2, SETTINGS, "base", seed=3), [2], algorithm) for _ in range(2)]
    assert results[0] == results[1]


def test_rounds_through_files_equal_one_round(model_dir):
    whole = rounds(Policy.load(model_dir, "float32", 2, SETTINGS, "base", seed=3), [3])
    parts = rounds(Policy.load(model_dir, "float32", 2, SETTINGS, "base", seed=3), [1, 2])
    assert (parts.adapter, parts.optimizer) == (whole.adapter, whole.optimizer)


def test_an_optimiser_state_of_other_weights_is_refused(policy):
    other = tiny_policy(layers=1)
    result = rounds(other, [1])
    with pytest.raises(TrainerError, match="the optimiser state lacks tensor"):
        next(train_round(policy, batch(random_rollouts(9)), "grpo", SETTINGS, 1, result.optimizer, lambda: 0.0))
    with pytest.raises(TrainerError, match="the optimiser state"):
        next(train_round(policy, batch(random_rollouts(9)), "grpo", SETTINGS, 1, result.adapter, lambda: 0.0))
