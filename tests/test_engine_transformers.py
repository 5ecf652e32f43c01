"""The embedded engine on a tiny random model, against an unbatched loop without a cache and against PEFT."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from resia.agents.ports import Sampling
from resia.events import EngineSettings, Message
from resia.events.errors import ModelError
from resia.runtime.assets import model_digest
from resia.runtime.engines.sampling import draw, uniforms
from resia.runtime.engines.shared_prefix import common_prefix
from resia.runtime.engines.stopping import Stopper
from resia.runtime.engines.tiny import build_tiny_model
from resia.runtime.engines.transformers_engine import TransformersEngine

CONTEXT = 256
SYSTEM = Message("system", "Answer with one line.")
PROMPTS = [
    [SYSTEM, Message("user", text)] for text in ("one", "another and longer question", "one", "third?", "one", "zz")
]
SEEDS = [11, 12, 13, 14, 15, 16]
WARM = Sampling(temperature=0.8, max_new_tokens=20)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("tiny"), seed=0, context=CONTEXT)


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> TransformersEngine:
    return TransformersEngine(tiny_model, EngineSettings(model="tiny", threads=1))


@pytest.fixture(scope="module")
def reference(tiny_model: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32, attn_implementation="eager").eval()


@pytest.fixture(scope="module")
def peft_model(tiny_model: Path, reference: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, dict]:
    """A LoRA model whose B is not zero, and its state dict as PEFT saves it."""
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32, attn_implementation="eager")
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = get_peft_model(base, config).eval()
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.1)
    return model, {name: weight.detach().clone() for name, weight in get_peft_model_state_dict(model).items()}


@pytest.fixture
def adapter(tiny_model: Path, peft_model: tuple[Any, dict], tmp_path: Path) -> Path:
    return save_adapter(tmp_path / "adapter.safetensors", peft_model[1], base_digest=model_digest(tiny_model))


def save_adapter(path: Path, weights: dict, **changed: object) -> Path:
    about = {"rank": 4, "lora_alpha": 8, "target_modules": ["down_proj", "q_proj", "v_proj"], **changed}
    save_file(weights, path, metadata={"resia": json.dumps(about)})
    return path


def softmax64(logits: np.ndarray, temperature: float) -> np.ndarray:
    scaled = logits.astype(np.float64) / temperature
    weights = np.exp(scaled - scaled.max())
    return weights / weights.sum()


def sample_alone(model: Any, prompt: tuple[int, ...], sampling: Sampling, seed: int, end: int) -> list[int]:
    """The definition: the whole sequence through the model for every token, one uniform a token."""
    generator = torch.Generator().manual_seed(seed)
    draws = torch.rand(sampling.max_new_tokens, generator=generator, dtype=torch.float64).numpy()
    tokens: list[int] = []
    for u in draws:
        with torch.inference_mode():
            logits = model(torch.tensor([[*prompt, *tokens]])).logits[0, -1].numpy()
        tokens.append(int(np.searchsorted(np.cumsum(softmax64(logits, sampling.temperature)), u, side="right")))
        if tokens[-1] == end:
            break
    return tokens


def full_forward_logprobs(
    model: Any, prompt: tuple[int, ...], tokens: tuple[int, ...], temperature: float
) -> np.ndarray:
    with torch.inference_mode():
        logits = model(torch.tensor([[*prompt, *tokens]])).logits[0].numpy()
    at = len(prompt) - 1
    return np.array([np.log(softmax64(logits[at + i], temperature)[token]) for i, token in enumerate(tokens)])


def test_the_same_call_gives_the_same_completions(engine):
    assert engine.generate(PROMPTS, WARM, SEEDS, None) == engine.generate(PROMPTS, WARM, SEEDS, None)


def test_a_row_is_what_it_would_be_alone(engine, reference):
    for row, seed in zip(engine.generate(PROMPTS, WARM, SEEDS, None), SEEDS, strict=True):
        assert list(row.token_ids) == sample_alone(reference, row.prompt_ids, WARM, seed, end=2)


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_logprobs_are_those_of_one_forward_pass(engine, reference, temperature):
    sampling = Sampling(temperature=temperature, max_new_tokens=20)
    for row in engine.generate(PROMPTS, sampling, SEEDS, None):
        expected = full_forward_logprobs(reference, row.prompt_ids, row.token_ids, temperature)
        np.testing.assert_allclose(row.logprobs, expected, atol=1e-4)


def test_greedy_takes_the_likeliest_token_at_temperature_one(engine, reference):
    rows = engine.generate(PROMPTS, Sampling(temperature=0, max_new_tokens=10), SEEDS, None)
    for row in rows:
        with torch.inference_mode():
            logits = reference(torch.tensor([[*row.prompt_ids, *row.token_ids]])).logits[0]
        at = len(row.prompt_ids) - 1
        assert list(row.token_ids) == logits[at:-1].argmax(-1).tolist()
        np.testing.assert_allclose(
            row.logprobs, full_forward_logprobs(reference, row.prompt_ids, row.token_ids, 1.0), atol=1e-4
        )
    assert rows[0].token_ids == rows[2].token_ids  # equal prompts, other seeds


def test_a_batch_without_a_common_prefix_needs_none(tiny_model, reference, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "plain")
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    plain = TransformersEngine(folder, EngineSettings(model="tiny", threads=1))
    rows = plain.generate([[Message("user", "abc")], [Message("user", "xyzw")]], WARM, [1, 2], None)
    assert common_prefix([list(row.prompt_ids) for row in rows]) == 0
    for row, seed in zip(rows, (1, 2), strict=True):
        assert list(row.token_ids) == sample_alone(reference, row.prompt_ids, WARM, seed, end=2)


def test_prefill_in_parts_equals_prefill_at_once(engine, monkeypatch):
    whole = engine.generate(PROMPTS, WARM, SEEDS, None)
    monkeypatch.setattr("resia.runtime.engines.decoding.PREFILL_TOKENS", 1)
    parts = engine.generate(PROMPTS, WARM, SEEDS, None)
    assert [row.token_ids for row in parts] == [row.token_ids for row in whole]
    for part, row in zip(parts, whole, strict=True):
        np.testing.assert_allclose(part.logprobs, row.logprobs, atol=1e-4)


def test_a_stop_string_ends_the_row_and_leaves_the_text(engine):
    prompts, seeds = [PROMPTS[1]] * 16, list(range(16))
    free = engine.generate(prompts, WARM, seeds, None)
    # Two characters, so two tokens of the byte-level tokenizer.
    found = next((row, at) for row in free if (at := re.search(r".[!-~]{2}.", row.text)))
    stop = found[1].group()[1:3]
    for row, whole in zip(engine.generate(prompts, Sampling(0.8, 20, (stop,)), seeds, None), free, strict=True):
        assert row.token_ids == whole.token_ids[: len(row.token_ids)]
        assert len(row.logprobs) == len(row.token_ids)
        assert row.text == whole.text.split(stop)[0]
        assert row.finish == ("stop" if stop in whole.text else whole.finish)
        if whole is found[0]:
            assert len(row.token_ids) < len(whole.token_ids)


def test_the_end_token_stops_and_is_kept(engine):
    rows = engine.generate([PROMPTS[0]] * 32, Sampling(1.5, 60), list(range(32)), None)
    ended = [row for row in rows if row.finish == "stop"]
    assert ended
    assert all(row.token_ids[-1] == 2 and 2 not in row.token_ids[:-1] for row in ended)
    assert all(len(row.token_ids) == 60 for row in rows if row.finish == "length")


def test_progress_counts_every_token(engine):
    heard: list[int] = []
    rows = engine.generate(PROMPTS, WARM, SEEDS, None, heard.append)
    assert sum(heard) == sum(len(row.token_ids) for row in rows)


def test_the_adapter_gives_what_peft_gives(engine, peft_model, adapter):
    for row in engine.generate(PROMPTS, WARM, SEEDS, adapter):
        expected = full_forward_logprobs(peft_model[0], row.prompt_ids, row.token_ids, WARM.temperature)
        np.testing.assert_allclose(row.logprobs, expected, atol=1e-4)


def test_switching_back_to_the_base_is_exact(engine, adapter):
    before = engine.generate(PROMPTS, WARM, SEEDS, None)
    adapted = engine.generate(PROMPTS, WARM, SEEDS, adapter)
    assert engine.generate(PROMPTS, WARM, SEEDS, None) == before
    assert engine.generate(PROMPTS, WARM, SEEDS, adapter) == adapted
    assert [row.token_ids for row in adapted] != [row.token_ids for row in before]


def test_more_adapters_than_stay_loaded(engine, peft_model, tiny_model, tmp_path):
    weights, digest = peft_model[1], model_digest(tiny_model)
    paths = [
        save_adapter(tmp_path / f"{k}", {n: w * k for n, w in weights.items()}, base_digest=digest) for k in (1, 2, 3)
    ]
    first = [engine.generate(PROMPTS[:1], WARM, [1], path) for path in paths]
    assert [engine.generate(PROMPTS[:1], WARM, [1], path) for path in paths] == first
    assert len({row[0].logprobs for row in first}) == 3


def test_bfloat16_adapts_too(tiny_model, peft_model, reference, adapter):
    """Near the float32 model with the adapter, far from the one without."""
    engine = TransformersEngine(tiny_model, EngineSettings(model="tiny", dtype="bfloat16", threads=1))
    base = engine.generate(PROMPTS, WARM, SEEDS, None)
    for row in engine.generate(PROMPTS, WARM, SEEDS, adapter):
        near, far = (
            np.abs(row.logprobs - full_forward_logprobs(model, row.prompt_ids, row.token_ids, WARM.temperature)).mean()
            for model in (peft_model[0], reference)
        )
        assert near < 0.1 < far
    assert engine.generate(PROMPTS, WARM, SEEDS, None) == base
    assert engine.manifest.dtype == "bfloat16"


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"base_digest": "0" * 64}, "trained on base 000000000000"),
        ({"rank": 8}, "not those of rank 8"),
        ({"target_modules": ["q_proj"]}, "does not match the layers q_proj"),
        ({"target_modules": []}, "does not match"),
        ({"rank": "four"}, "cannot be read"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(engine, tiny_model, peft_model, tmp_path, changed, says):
    about = {"base_digest": model_digest(tiny_model), **changed}
    path = save_adapter(tmp_path / "odd.safetensors", peft_model[1], **about)
    before = engine.generate(PROMPTS[:1], WARM, [1], None)
    with pytest.raises(ModelError, match=says) as caught:
        engine.generate(PROMPTS[:1], WARM, [1], path)
    assert "odd.safetensors" in str(caught.value)
    assert engine.generate(PROMPTS[:1], WARM, [1], None) == before


@pytest.mark.parametrize("damage", ["truncated", "missing", "foreign"])
def test_a_damaged_adapter_is_named(engine, adapter, tmp_path, damage):
    path = tmp_path / "bad.safetensors"
    if damage == "truncated":
        path.write_bytes(adapter.read_bytes()[:-100])
    if damage == "foreign":
        save_file(load_file(adapter), path)
    with pytest.raises(ModelError, match=r"adapter .*bad\.safetensors"):
        engine.generate(PROMPTS[:1], WARM, [1], path)


def test_a_prompt_without_room_is_not_sampled_and_leaves_the_others_as_they_are(engine):
    long, short = [Message("user", "x" * CONTEXT)], PROMPTS[0]
    (alone,) = engine.generate([short], WARM, [7], None)
    full, beside = engine.generate([long, short], WARM, [1, 7], None)
    assert (full.finish, full.token_ids, full.text) == ("context", (), "")
    assert len(full.prompt_ids) > CONTEXT
    assert (beside.prompt_ids, beside.token_ids) == (alone.prompt_ids, alone.token_ids)
    assert [row.finish for row in engine.generate([long, long], WARM, [1, 2], None)] == ["context"] * 2


def test_every_prompt_needs_a_seed(engine):
    with pytest.raises(ModelError, match="6 prompts came with 1 seeds"):
        engine.generate(PROMPTS, WARM, [1], None)
    assert engine.generate([], WARM, [], None) == []


def test_a_missing_model_names_the_command(tmp_path):
    with pytest.raises(ModelError, match="run: resia assets pull nothing"):
        TransformersEngine(tmp_path, EngineSettings(model="nothing"))


def test_the_manifest_says_what_tokens_depend_on(engine, tiny_model):
    manifest = engine.manifest
    assert manifest.model_digest == model_digest(tiny_model)
    assert (manifest.model, manifest.dtype, manifest.threads, manifest.sandbox_tier) == ("tiny", "float32", 1, "")
    assert manifest.instruction_set
    assert manifest.package


def test_draws_follow_the_distribution():
    """Quantiles spread evenly over [0, 1) hit each token in proportion to its probability."""
    logits = np.array([0.0, 1.5, -2.0, 0.7])
    n = 20_000
    u = torch.from_numpy((np.arange(n) + 0.5) / n)
    drawn = draw(torch.from_numpy(logits).float().expand(n, 4), 0.7, u)
    counts = np.bincount(drawn.tokens.numpy(), minlength=4)
    np.testing.assert_allclose(counts / n, softmax64(logits, 0.7), atol=1e-3)


def test_no_draw_takes_an_impossible_token():
    logits = torch.tensor([[-1e9, 0.0, 0.0, -1e9]]).expand(2, 4)
    drawn = draw(logits, 1.0, torch.tensor([0.0, 1.0 - 2**-53], dtype=torch.float64))
    assert drawn.tokens.tolist() == [1, 2]


def test_uniforms_of_a_row_depend_on_its_seed_alone():
    assert torch.equal(uniforms([7, 8], 5)[1], uniforms([8], 5)[0])


def test_a_stop_string_is_found_across_tokens():
    pieces = {1: "a", 2: "\n", 3: "END", 4: "E", 5: "ND"}
    stopper = Stopper(lambda tokens, _: "".join(pieces[t] for t in tokens), frozenset({9}), ("\nEND", "\n\n"))
    assert [stopper.stops(tokens) for tokens in ([1, 2], [1, 2, 3], [1, 2, 4], [1, 2, 4, 5], [2, 2], [1, 3], [9])] == [
        False, True, False, True, True, False, True,
    ]  # fmt: skip
    assert stopper.text([1, 2, 4, 5]) == "a"


def test_common_prefix_leaves_every_row_a_token():
    assert common_prefix([[1, 2, 3], [1, 2, 3]]) == 2
    assert common_prefix([[1, 2], [1, 2, 3]]) == 1
    assert common_prefix([[1], [2]]) == 0
    assert common_prefix([[5, 6, 7, 8], [5, 6, 9, 8], [5, 6, 7, 7]]) == 2


def test_the_tiny_model_is_the_same_for_the_same_seed(tiny_model, tmp_path):
    same, other = (build_tiny_model(tmp_path / str(seed), seed=seed, context=CONTEXT) for seed in (0, 1))
    assert model_digest(same) == model_digest(tiny_model)
    assert model_digest(other) != model_digest(tiny_model)
