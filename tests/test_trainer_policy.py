"""The policy's log-probabilities and gradients against plain computations, and the files that its weights travel in."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from msgspec.structs import replace
from trainer_given import (
    SETTINGS,
    VOCABULARY,
    again,
    batch,
    finish,
    gradient,
    random_rollouts,
    tiny_model,
    tiny_policy,
)

from given import requested
from resia.events import ALGORITHMS, EngineSettings
from resia.events.errors import TrainerError
from resia.runtime.blobs import DirectoryBlobs
from resia.runtime.resources import Resources
from resia.trainers import head as head_module
from resia.trainers.adapter import VALUE_HEAD, AdapterInfo, adapter_info, export_peft, without_value_head
from resia.trainers.batch import Row
from resia.trainers.gradient import prepare
from resia.trainers.objectives import OBJECTIVES
from resia.trainers.packing import pad, shared_prefix
from resia.trainers.policy import Policy
from resia.trainers.rounds import train_round
from resia.trainers.tensorfile import tensors_of

torch = pytest.importorskip("torch")
CRITICS = {"ppo_gae"}


@pytest.fixture(scope="module")
def policy() -> Policy:
    torch.set_num_threads(1)
    return tiny_policy()


@pytest.fixture(scope="module")
def exact() -> Policy:
    return tiny_policy(exact=True, hidden=32)


@pytest.fixture(scope="module")
def critic() -> Policy:
    return tiny_policy(exact=True, hidden=32, values=True)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "tiny"
    tiny_model().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return [row for sample in batch(random_rollouts(3)).samples for row in sample.turns]


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
    padded = pad(rows)
    assert len(padded.prefix_P) == 11
    found_B_T, _ = scored(exact, padded)
    assert found_B_T.dtype == np.float64
    for b, row in enumerate(rows):
        length = len(row.completion_ids)
        np.testing.assert_allclose(found_B_T[b, :length], plain_logprobs(exact, row), atol=1e-10)
        assert not found_B_T[b, length:].any()


def test_a_shared_prefix_changes_neither_values_nor_gradient(policy, rows):
    whole, apart = scored(policy, pad(rows)), scored(policy, pad(rows, 0))
    assert shared_prefix(rows) > 0
    np.testing.assert_allclose(whole[0], apart[0], atol=1e-5)
    np.testing.assert_allclose(whole[1], apart[1], atol=1e-5 * np.abs(apart[1]).max())


def test_padding_changes_nothing(exact, rows):
    alone = [scored(exact, pad([row])) for row in rows]
    together = scored(exact, pad(rows))
    for b, (values, _) in enumerate(alone):
        np.testing.assert_allclose(together[0][b, : values.shape[1]], values[0], atol=1e-12)
    np.testing.assert_allclose(together[1], sum(grad for _, grad in alone), atol=1e-10)


def test_chunks_of_the_head_change_nothing(exact, rows, monkeypatch):
    padded = pad(rows)
    whole = scored(exact, padded)
    monkeypatch.setattr(head_module, "CHUNK_BYTES", 5 * VOCABULARY * 8)
    chunked = scored(exact, padded)
    np.testing.assert_allclose(chunked[0], whole[0], atol=1e-12)
    np.testing.assert_allclose(chunked[1], whole[1], atol=1e-10)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_micro_batches_add_up_to_the_whole_batch(exact, critic, algorithm):
    policy, made = critic if algorithm in CRITICS else exact, batch(random_rollouts(5, groups=3))
    counts, passes, gradients = [], [], []
    for budget in (1, 30, 10_000):
        chosen = replace(SETTINGS, micro_tokens=budget)
        work = prepare(policy, OBJECTIVES[algorithm], made, chosen)
        passes.append(again(policy, algorithm, work, chosen))
        gradients.append(gradient(policy))
        counts.append(len(work.micro_batches))
    assert counts[0] == len(work.selection.rows) > counts[2]
    for one, grad in zip(passes[1:], gradients[1:], strict=True):
        np.testing.assert_allclose(one, passes[0], atol=1e-10)
        np.testing.assert_allclose(grad, gradients[0], atol=1e-10)


def test_a_fresh_adapter_is_the_base_and_depends_on_its_seed_alone(model_dir, rows):
    loaded = [Policy.load(model_dir, "float32", 1, SETTINGS, "base", seed=seed) for seed in (7, 7, 8)]
    one, again, other = (policy.adapter_bytes() for policy in loaded)
    assert one == again != other
    with torch.no_grad():
        ours = loaded[0].logprobs(pad(rows))
        with loaded[0].model.disable_adapter():
            base = loaded[0].logprobs(pad(rows))
    assert torch.equal(ours, base)
    state = torch.random.get_rng_state()
    Policy.load(model_dir, "float32", 1, SETTINGS, "base", seed=9)
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
    low = Policy.load(model_dir, "bfloat16", 1, SETTINGS, "base", seed=1)
    assert {weight.dtype for weight in low.weights.values()} == {torch.float32}
    assert low.model.dtype == torch.bfloat16
    values, grad = scored(low, pad(rows))
    assert np.isfinite(grad).all()
    assert np.abs(grad).max() > 0
    high = Policy.load(model_dir, "float32", 1, SETTINGS, "base", seed=1)
    np.testing.assert_allclose(values, scored(high, pad(rows))[0], atol=0.2)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_on_a_bfloat16_base_adapter_and_optimiser_stay_float32(model_dir, algorithm):
    """Through a round and the files it ends in; the base is left as it was loaded. A step of 1e-6 is kept, which
    bfloat16 would round away."""
    low = Policy.load(model_dir, "bfloat16", 1, SETTINGS, "base")
    low.set_adapter(None, 3, values=algorithm in CRITICS)
    trained = {id(weight) for weight in low.weights.values()}
    frozen = {n: w.detach().clone() for n, w in low.model.named_parameters() if id(w) not in trained}
    assert {weight.dtype for weight in frozen.values()} == {torch.bfloat16}
    start = {name: weight.detach().clone() for name, weight in low.weights.items()}
    chosen = replace(SETTINGS, learning_rate=1e-6)
    _, result = finish(train_round(low, batch(random_rollouts(9)), algorithm, chosen, 1, None, lambda: 0.0))
    for data in (result.adapter, result.optimizer):
        assert {tensor.dtype for tensor in tensors_of(data, "it").values()} == {torch.float32}
    moved = {name: weight for name, weight in low.weights.items() if not torch.equal(weight, start[name])}
    assert {name for name in low.weights if ".lora_B." in name} <= moved.keys()
    largest = max(float((weight.detach() - start[name]).abs().max()) for name, weight in moved.items())
    assert 0 < largest < 1.01e-6
    assert all(torch.equal(w, frozen[n]) for n, w in low.model.named_parameters() if n in frozen)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_setting_of_a_run_is_the_precision_of_the_base_alone(model_dir, tmp_path, dtype):
    request = requested(engine=EngineSettings(model=str(model_dir), dtype=dtype, threads=1))
    resources = Resources(DirectoryBlobs(tmp_path), None, False)
    policy = resources.policy(request, SETTINGS)
    trained = {id(weight) for weight in policy.weights.values()}
    base = {weight.dtype for weight in policy.model.parameters() if id(weight) not in trained}
    assert base == {getattr(torch, dtype)}
    assert {weight.dtype for weight in policy.weights.values()} == {torch.float32}
    assert resources.manifest(request).dtype == dtype


@pytest.mark.parametrize("kl_target", [None, 1e-3])
def test_rounds_on_a_bfloat16_base_give_equal_bytes(model_dir, kl_target):
    chosen, made = replace(SETTINGS, kl_target=kl_target), batch(random_rollouts(9))
    files = []
    for _ in range(2):
        policy = Policy.load(model_dir, "bfloat16", 1, SETTINGS, "base", seed=3)
        _, result = finish(train_round(policy, made, "grpo", chosen, 2, None, lambda: 0.0))
        files.append(result)
    assert files[0] == files[1]


def test_the_adapter_file_has_pefts_names_and_equal_bytes(policy, model_dir):
    from peft import get_peft_model_state_dict

    data = policy.adapter_bytes()
    expected = get_peft_model_state_dict(policy.model, save_embedding_layers=False)
    assert set(policy.weights) == set(expected)
    assert adapter_info(data) == AdapterInfo(4, 8, policy.info.target_modules, "base")
    other = Policy.load(model_dir, "float32", 1, SETTINGS, "base", adapter=data)
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
        Policy.load(tmp_path / "nowhere", "float32", 1, SETTINGS, "base")


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
        optimizer = result and result.optimizer
        _, result = finish(train_round(policy, made, algorithm, SETTINGS, count, optimizer, lambda: 0.0))
        policy.set_adapter(result.adapter, 0, values=algorithm in CRITICS)
    return result


def fresh(model_dir, algorithm="best_of_n") -> Policy:
    policy = Policy.load(model_dir, "float32", 1, SETTINGS, "base")
    policy.set_adapter(None, 3, values=algorithm in CRITICS)
    return policy


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_two_fresh_runs_give_equal_files(model_dir, algorithm):
    results = [rounds(fresh(model_dir, algorithm), [2, 1], algorithm) for _ in range(2)]
    assert results[0] == results[1]


@pytest.mark.parametrize("algorithm", ["best_of_n", "dpo", "reinforce_kl", "grpo", "entropic"])
def test_rounds_through_files_equal_one_round(model_dir, algorithm):
    """On one batch; PPO takes its advantages anew every round."""
    whole = rounds(fresh(model_dir, algorithm), [3], algorithm)
    parts = rounds(fresh(model_dir, algorithm), [1, 2], algorithm)
    assert (parts.adapter, parts.optimizer) == (whole.adapter, whole.optimizer)


def head(policy: Policy) -> dict[str, list]:
    return {name: policy.weights[name].tolist() for name in sorted(VALUE_HEAD & policy.weights.keys())}


def test_the_value_head_travels_with_the_adapter(model_dir):
    """It begins as 0, is trained and restored with it, and is left out or begun again where the algorithm changes."""
    policy = fresh(model_dir, "ppo_gae")
    assert not np.any(policy.weights["value_head.weight"].tolist())
    result = rounds(policy, [2], "ppo_gae")
    learned = head(policy)
    assert np.all(learned["value_head.weight"])
    other = Policy.load(model_dir, "float32", 1, SETTINGS, "base", adapter=result.adapter)
    assert not other.has_values
    assert other.adapter_bytes() == without_value_head(result.adapter)
    other.set_adapter(result.adapter, 0, values=True)
    assert head(other) == learned
    assert other.adapter_bytes() == result.adapter
    other.set_adapter(without_value_head(result.adapter), 0, values=True)
    assert not np.any(other.weights["value_head.weight"].tolist())
    made = batch(random_rollouts(9))
    _, again_ = finish(train_round(policy, made, "ppo_gae", SETTINGS, 1, result.optimizer, lambda: 0.0))
    assert again_.adapter != result.adapter


def test_a_value_head_is_there_exactly_where_it_is_needed(policy):
    made, ppo = batch(random_rollouts(9)), tiny_policy(layers=1, values=True)
    with pytest.raises(TrainerError, match="ppo_gae on a policy without a value head"):
        next(train_round(policy, made, "ppo_gae", SETTINGS, 1, None, lambda: 0.0))
    with pytest.raises(TrainerError, match="dpo on a policy with a value head"):
        next(train_round(ppo, made, "dpo", SETTINGS, 1, None, lambda: 0.0))


def test_what_samples_sees_no_value_head(model_dir, tmp_path):
    """Neither PEFT, which would warn of it, nor this project's engine, whose layers are the same with and without."""
    from peft import PeftModel

    from resia.runtime.engines.lora import read_lora

    policy = tiny_policy(values=True)
    data, plain = policy.adapter_bytes(), without_value_head(policy.adapter_bytes())
    assert len(data) > len(plain)
    export_peft(data, tmp_path / "adapter")
    assert (tmp_path / "adapter" / "adapter_model.safetensors").read_bytes() == plain
    theirs = PeftModel.from_pretrained(tiny_model(), tmp_path / "adapter").eval()
    ids = torch.arange(1, 17)[None, :]
    with torch.no_grad():
        assert torch.equal(theirs(ids).logits, policy.model(ids).logits)
    linears = {name: module for name, module in tiny_model().named_modules() if isinstance(module, torch.nn.Linear)}
    layers = []
    for name, content in (("whole", data), ("plain", plain)):
        (tmp_path / name).write_bytes(content)
        layers.append(read_lora(tmp_path / name, linears, "base"))
    assert layers[0].keys() == layers[1].keys() != set()
    for name, factors in layers[0].items():
        assert all(torch.equal(a, b) for a, b in zip(factors, layers[1][name], strict=True))


def test_a_reference_that_does_not_fit_is_refused_and_nothing_changes(policy):
    other, before = tiny_policy(layers=1).adapter_bytes(), policy.adapter_bytes()
    run = train_round(policy, batch(random_rollouts(9)), "dpo", SETTINGS, 1, None, lambda: 0.0, other)
    with pytest.raises(TrainerError, match="the adapter lacks tensor"):
        next(run)
    assert policy.adapter_bytes() == before


def test_an_optimiser_state_of_other_weights_is_refused(policy):
    other = tiny_policy(layers=1)
    result = rounds(other, [1])
    with pytest.raises(TrainerError, match="the optimiser state lacks tensor"):
        next(train_round(policy, batch(random_rollouts(9)), "grpo", SETTINGS, 1, result.optimizer, lambda: 0.0))
    with pytest.raises(TrainerError, match="the optimiser state"):
        next(train_round(policy, batch(random_rollouts(9)), "grpo", SETTINGS, 1, result.adapter, lambda: 0.0))
