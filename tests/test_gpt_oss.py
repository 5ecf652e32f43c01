"""gpt-oss: what docs/gpt-oss.md computes against the model itself, and a tiny one trained from MXFP4 weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from gpt_oss_given import tiny_config, tiny_gpt_oss
from structlog.testing import capture_logs
from trainer_given import SETTINGS, VOCABULARY, batch, finish, random_rollouts

from resia.events import EngineSettings
from resia.events.errors import UsageError
from resia.runtime.config import load_settings
from resia.runtime.fitting import warn_if_too_large
from resia.trainers import memory
from resia.trainers.memory import ATTENTION, DENSE, EXPERTS, Shape, shape_of
from resia.trainers.packing import pad
from resia.trainers.policy import Policy
from resia.trainers.rounds import train_round
from resia.trainers.serving_plan import H100, H200, decode_seconds, experts_read, longest, served, update_seconds

torch = pytest.importorskip("torch")
from transformers import GptOssConfig, GptOssForCausalLM, LlamaConfig, LlamaForCausalLM  # noqa: E402 - heavy

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "gpt-oss.md"
PROFILES = sorted((ROOT / "examples" / "profiles").glob("*.toml"))


def large() -> Shape:
    """gpt-oss-120b: the defaults of transformers' GptOssConfig."""
    return shape_of(GptOssConfig().to_dict())


def medium() -> Shape:
    """gpt-oss-20b."""
    return shape_of(GptOssConfig(num_hidden_layers=24, num_local_experts=32).to_dict())


def numel(model) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("config", "made"),
    [
        (GptOssConfig(), GptOssForCausalLM),
        (GptOssConfig(num_hidden_layers=24, num_local_experts=32), GptOssForCausalLM),
        (LlamaConfig(hidden_size=96, num_attention_heads=6, num_key_value_heads=2, head_dim=16), LlamaForCausalLM),
        (LlamaConfig(hidden_size=64, num_hidden_layers=3, tie_word_embeddings=True), LlamaForCausalLM),
    ],
)
def test_parameters_are_those_of_the_model(config, made):
    with torch.device("meta"):
        model = made(config)
    assert memory.parameters(shape_of(config.to_dict())).total == numel(model)
    experts = sum(p.numel() for name, p in model.named_parameters() if name.endswith(EXPERTS))
    assert memory.parameters(shape_of(config.to_dict())).expert_weights == experts


def test_another_architecture_is_refused():
    with pytest.raises(UsageError, match="memory is not known for model_type 'mamba'"):
        shape_of({"model_type": "mamba"})
    with pytest.raises(UsageError, match="the model's config has no 'num_attention_heads'"):
        shape_of({"model_type": "llama"})
    with pytest.raises(UsageError, match="there is no gate_proj to adapt: this model has q_proj"):
        memory.adapter_parameters(large(), 32, DENSE)


def test_a_spread_base_is_its_layers_shared_and_its_embeddings_whole():
    config = tiny_config(3)
    shape, model = shape_of(config.to_dict()), tiny_gpt_oss(3)
    whole = 2 * numel(model)
    assert memory.layer_bytes(shape) == 2 * numel(model.model.layers[0])
    assert memory.spread_bytes(shape, 1) == whole
    assert memory.spread_bytes(shape, 4) == whole - 3 * memory.layer_bytes(shape) * 3 // 4


@pytest.mark.parametrize("targets", [ATTENTION, EXPERTS, (*ATTENTION, *EXPERTS)])
def test_adapters_have_pefts_size(targets):
    from peft import LoraConfig, get_peft_model

    names, parameters = [t for t in targets if t in ATTENTION], [t for t in targets if t in EXPERTS]
    config = LoraConfig(r=4, target_modules=names, target_parameters=parameters or None, task_type="CAUSAL_LM")
    adapted = get_peft_model(tiny_gpt_oss(), config)
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert memory.adapter_parameters(shape_of(tiny_config().to_dict()), 4, targets) == trained


@pytest.mark.parametrize("tokens", [5, 8, 20])
def test_the_cache_has_the_size_of_transformers_own(tokens):
    model = tiny_gpt_oss(4)
    with torch.no_grad():
        cache = model.model(input_ids=torch.arange(tokens)[None], use_cache=True).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert memory.cache_bytes(shape_of(model.config.to_dict()), tokens, width=4) == held


def kept_by_autograd(tokens: int, layers: int, **changes) -> int:
    """Bytes of all tensors that a forward pass saves, each storage once, the model's own left out."""
    from peft import LoraConfig, get_peft_model

    model = tiny_gpt_oss(layers, sliding_window=4096, **changes).to(torch.bfloat16)
    get_peft_model(model, LoraConfig(r=SETTINGS.rank, target_modules=list(ATTENTION), task_type="CAUSAL_LM"))
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    held = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage  # kept, so that no address comes twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.model(input_ids=torch.randint(0, VOCABULARY, (1, tokens)), use_cache=False)
    return sum(storage.nbytes() for storage in held.values())


@pytest.mark.parametrize("changes", [{}, {"hidden_size": 128, "num_experts_per_tok": 3}, {"num_attention_heads": 8}])
@pytest.mark.parametrize("tokens", [48, 96])
def test_activations_are_what_autograd_keeps(tokens, changes):
    """The difference of four layers and two is that of two layers, without embeddings."""
    counted = kept_by_autograd(tokens, 4, **changes) - kept_by_autograd(tokens, 2, **changes)
    shape = shape_of(tiny_config(2, **changes).to_dict())
    assert memory.activation_bytes(shape, tokens, SETTINGS.rank, checkpointed=False) == pytest.approx(counted, rel=0.02)


def test_activations_of_dense_models_are_not_claimed():
    with pytest.raises(UsageError, match="mixtures of experts only"):
        memory.activation_bytes(shape_of(LlamaConfig().to_dict()), 10, 4, checkpointed=False)


# -- a tiny one, trained -----------------------------------------------------------------------------------------------

FP4 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0])


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """(folder, experts): a checkpoint whose experts are MXFP4, as gpt-oss's are, and what they are in plain numbers."""
    from safetensors.torch import save_file

    folder, model = tmp_path_factory.mktemp("packed"), tiny_gpt_oss()
    state, plain, draw = model.state_dict(), {}, torch.Generator().manual_seed(5)
    for name in [name for name in state if name.endswith(EXPERTS)]:
        experts, into, out = state.pop(name).shape
        blocks = torch.randint(0, 256, (experts, out, into // 32, 16), dtype=torch.uint8, generator=draw)
        scales = torch.randint(122, 126, (experts, out, into // 32), dtype=torch.uint8, generator=draw)
        state |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        # Two values a byte, the lower half first; 32 values share the power of two that their scale names.
        values = FP4[torch.stack([blocks & 15, blocks >> 4], -1).long()].flatten(-2)
        plain[name] = (values * 2.0 ** (scales.float() - 127)[..., None]).flatten(2).transpose(1, 2)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "model.safetensors")
    config = {**model.config.to_dict(), "architectures": ["GptOssForCausalLM"]}
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "mxfp4"}}))
    return folder, plain


def test_a_packed_base_is_unpacked_and_its_attention_trained(packed):
    folder, plain = packed
    policy = Policy.load(folder, "float32", 1, SETTINGS, "base", seed=1)
    named = dict(policy.model.named_parameters())
    for name, values in plain.items():
        held = named[f"base_model.model.{name}"]
        assert torch.equal(held, values)
        assert torch.equal(values.bfloat16().float(), values)
        assert not held.requires_grad
    assert policy.info.target_modules == tuple(sorted(ATTENTION))
    assert not any("router" in name for name in policy.weights)
    before = policy.adapter_bytes()
    made = batch(random_rollouts(3, prefix=20))
    steps, result = finish(train_round(policy, made, "best_of_n", SETTINGS, 3, None, lambda: 0.0))
    assert steps[2].loss < steps[0].loss
    assert result.adapter != before


def test_a_prefix_longer_than_the_window_changes_nothing(packed):
    policy = Policy.load(packed[0], "float32", 1, SETTINGS, "base", seed=1)
    rows = [row for sample in batch(random_rollouts(3, prefix=20)).samples for row in sample.turns]
    assert len(pad(rows).prefix_P) > policy.model.config.sliding_window
    with torch.no_grad():
        torch.testing.assert_close(policy.logprobs(pad(rows)), policy.logprobs(pad(rows, 0)), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("dtype", "memory", "said"), [("bfloat16", 233, True), ("bfloat16", 234, False), ("float32", 234, True)]
)
def test_a_base_that_cannot_fit_is_said_before_it_is_loaded(tmp_path, dtype, memory, said):
    GptOssConfig().save_pretrained(tmp_path)
    with capture_logs() as logs:
        warn_if_too_large(tmp_path, EngineSettings(model="large", dtype=dtype), memory * 10**9)
    assert [(log["event"], log["memory_gb"]) for log in logs] == [("the base does not fit into memory", memory)] * said


def test_a_base_of_unknown_size_is_loaded_without_a_word(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    with capture_logs() as logs:
        warn_if_too_large(tmp_path, EngineSettings(), 1)
    assert logs == []


# -- the document and the profiles -------------------------------------------------------------------------------------


def dense(**sizes: int) -> Shape:
    """A model of Llama 3's shapes."""
    heads = {"num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256}
    return shape_of({"model_type": "llama", **heads, **sizes})


def gigabytes(count: float) -> str:
    return f"{count / 1e9:,.2f} GB"


def figures() -> dict[str, str]:
    """Every computed number of the document, as it stands there."""
    found = {}
    for name, shape in (("120b", large()), ("20b", medium())):
        counted = memory.parameters(shape)
        trained = memory.adapter_parameters(shape, 32, ATTENTION)
        everything = memory.adapter_parameters(shape, 32, (*ATTENTION, *EXPERTS))
        found |= {
            f"{name} parameters": f"{counted.total:,}",
            f"{name} expert weights": f"{counted.expert_weights:,}",
            f"{name} rest": f"{counted.rest:,}",
            f"{name} active": f"{memory.active_parameters(shape):,}",
            f"{name} packed": gigabytes(memory.weight_bytes(shape, "mxfp4")),
            f"{name} plain": gigabytes(memory.weight_bytes(shape, "bfloat16")),
            f"{name} adapter": f"{trained:,}",
            f"{name} adapter with experts": f"{everything:,}",
            f"{name} trained": gigabytes(16 * trained),
            f"{name} trained with experts": gigabytes(16 * everything),
            f"{name} layer copy": gigabytes(memory.layer_copy_bytes(shape)),
            f"{name} cache 4096": gigabytes(memory.cache_bytes(shape, 4096)),
            f"{name} cache 131072": gigabytes(memory.cache_bytes(shape, 131072)),
        }
        for tokens in (1024, 4096):
            for checkpointed in (False, True):
                held = memory.memory_of(shape, 32, ATTENTION, tokens, checkpointed=checkpointed)
                key = f"{name} {tokens} {'checkpointed' if checkpointed else 'kept'}"
                found |= {f"{key} activations": gigabytes(held.activations), f"{key} total": gigabytes(held.total)}
    shapes = {
        "1b": dense(
            num_hidden_layers=16, hidden_size=2048, intermediate_size=8192, head_dim=64, tie_word_embeddings=True
        ),
        "8b": dense(num_hidden_layers=32, hidden_size=4096, intermediate_size=14336),
    }
    for name, shape in shapes.items():
        trained = memory.adapter_parameters(shape, 32, (*ATTENTION, *DENSE))
        found |= {
            f"{name} parameters": f"{memory.parameters(shape).total:,}",
            f"{name} plain": gigabytes(memory.weight_bytes(shape, "bfloat16")),
            f"{name} adapter": f"{trained:,}",
            f"{name} trained": gigabytes(16 * trained),
        }
    for name, shape in (("120b", large()), ("20b", medium())):
        found[f"{name} layer"] = gigabytes(memory.layer_bytes(shape))
        for ranks in (1, 2, 4, 8):
            found[f"{name} base over {ranks}"] = gigabytes(memory.spread_bytes(shape, ranks))
            for tokens in (1024, 4096):
                needed = memory.rank_bytes(shape, 32, ATTENTION, tokens, ranks)
                found[f"{name} over {ranks} with {tokens}"] = gigabytes(needed)
    return found | rows_of_the_plan()


def rows_of_the_plan() -> dict[str, str]:
    """The table rows of the serving and training plan of gpt-oss-120b."""
    shape, found = large(), {}
    for card in (H100, H200):
        for cards in (1, 2, 8):
            held = served(shape, card, cards, 4096)
            long = served(shape, card, cards, 131072).sequences
            speeds = [
                f"{size / decode_seconds(shape, card, cards, size, 4096):,.0f}" if size <= held.sequences else "-"
                for size in (1, 16, 128)
            ]
            cells = [gigabytes(held.weights), gigabytes(held.left), f"{held.sequences:,}", f"{long:,}", *speeds]
            found[f"serving on {cards} {card.name}"] = f"| {cards} {card.name} | {' | '.join(cells)} |"
            fits, spent = longest(shape, card, cards), update_seconds(shape, card, cards, 128, 1024)
            times = [f"{spent.computing:.1f} s", f"{spent.gathering:.1f} s"] if fits >= 1024 else ["-", "-"]
            cells = [f"{fits:,}" if fits else "does not fit", *times]
            found[f"training on {cards} {card.name}"] = f"| {cards} {card.name} | {' | '.join(cells)} |"
    held = memory.memory_of(shape, 32, ATTENTION, 1024, checkpointed=True)
    spread = memory.spread_bytes(shape, 2) + 2 * memory.layer_bytes(shape)
    found["two cards, activations made again"] = gigabytes(held.total - held.weights + spread)
    return found


def test_experts_that_a_batch_meets_are_those_of_a_draw():
    shape, draw = medium(), torch.Generator().manual_seed(0)
    for size in (1, 8, 40):
        chosen = torch.rand(2000, size, shape.experts, generator=draw).topk(shape.active, -1).indices
        met = torch.zeros(2000, shape.experts).scatter_(1, chosen.flatten(1), 1.0).sum(1).mean().item()
        assert experts_read(shape, size) == pytest.approx(met, rel=0.01)


def test_one_token_of_one_sequence_reads_what_it_goes_through():
    """On a card without latency or arithmetic: bytes over bandwidth, its experts packed."""
    shape = large()
    counted = memory.parameters(shape)
    packed = counted.expert_weights // shape.experts * shape.active * memory.MXFP4
    plain = 2 * (counted.rest - shape.vocabulary * shape.hidden)
    seconds = (packed + plain + memory.cache_bytes(shape, 4096)) / H100.bandwidth
    assert decode_seconds(shape, H100, 1, 1, 4096) == pytest.approx(seconds)


def test_more_cards_never_take_longer_or_hold_less():
    shape = large()
    for card in (H100, H200):
        for few, many in ((1, 2), (2, 8)):
            assert served(shape, card, few, 4096).sequences < served(shape, card, many, 4096).sequences
            assert decode_seconds(shape, card, few, 16, 4096) > decode_seconds(shape, card, many, 16, 4096)
            assert longest(shape, card, few) <= longest(shape, card, many)


@pytest.mark.parametrize(("name", "figure"), figures().items())
def test_every_figure_of_the_document_is_computed(name, figure):
    assert figure in DOCUMENT.read_text(), name


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_a_profile_is_a_settings_file(path):
    settings = load_settings(path)
    assert settings.engine.dtype == "bfloat16"
    assert settings.training.rank == 32
    assert path.name in (ROOT / "examples" / "README.md").read_text() or path.name in DOCUMENT.read_text()


def test_there_are_profiles():
    assert {path.stem for path in PROFILES} == {"gpt-oss-120b", "gpt-oss-20b", "one-gpu-1b", "one-gpu-8b"}
