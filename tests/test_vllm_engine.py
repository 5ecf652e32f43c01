"""The engine on vLLM servers: one suite against a fake and, where one is prepared, a real server; then faults."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from vllm_given import FakeVllm, base_of, real_server

from resia.agents.ports import Sampling
from resia.events import EngineSettings, Message, TrainingSettings
from resia.events.errors import ModelError, UsageError
from resia.runtime.assets import model_digest
from resia.runtime.config import load_settings
from resia.runtime.engines.tiny import build_tiny_model
from resia.runtime.engines.transformers_engine import TransformersEngine
from resia.runtime.engines.vllm_engine import TRIES, VllmEngine
from resia.runtime.engines.vllm_protocol import Base, base_named
from resia.runtime.serving_engine import check_engine, trained_rank
from resia.trainers.batch import Row
from resia.trainers.drift import Drift, drift
from resia.trainers.policy import Policy

pytestmark = pytest.mark.timeout(900)  # a real server imports for half a minute, and for minutes beside others
CONTEXT = 256
SYSTEM = Message("system", "Answer with one line.")
PROMPTS = [[SYSTEM, Message("user", text)] for text in ("one", "another and longer question", "one", "third?")]
SEEDS = [11, 12, 2**62 + 13, 14]
WARM = Sampling(temperature=0.7, max_new_tokens=16)
TRAINING = TrainingSettings(rank=8, lora_alpha=16)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("tiny"), seed=0, context=CONTEXT)


@pytest.fixture(scope="module")
def policy(model: Path) -> Policy:
    return Policy.load(model, "float32", 1, TRAINING, model_digest(model))


@pytest.fixture(scope="module")
def adapters(policy: Policy, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three adapters whose B is not zero."""
    folder, paths = tmp_path_factory.mktemp("adapters"), []
    for seed in range(3):
        policy.set_adapter(None, seed)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for name, weight in policy.weights.items():
                if "lora_B" in name:
                    weight.normal_(std=0.05)
        paths.append(folder / f"{seed}.safetensors")
        paths[-1].write_bytes(policy.adapter_bytes())
    return paths


@pytest.fixture
def fake(model: Path) -> Iterator[FakeVllm]:
    server = FakeVllm(model)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def real(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with real_server(model, tmp_path_factory.mktemp("logs")) as server:
        yield server


@pytest.fixture(params=["fake", "real"])
def url(request: pytest.FixtureRequest) -> str:
    """A server that the conformance suite is asked of."""
    found: str = request.getfixturevalue(request.param).url
    return found


@pytest.fixture
def engine_of(tmp_path: Path) -> Iterator[Callable[..., VllmEngine]]:
    """Makes engines over servers, and closes them."""
    made: list[VllmEngine] = []

    def make(model: Path, *urls: str, pauses: list[float] | None = None) -> VllmEngine:
        settings = EngineSettings("vllm", "tiny", "float32", 1, urls=urls)
        told = pauses if pauses is not None else []
        made.append(VllmEngine(model, model_digest(model), settings, tmp_path / "peft", told.append))
        return made[-1]

    yield make
    for engine in made:
        engine.close()


def recomputed(policy: Policy, completions: Any, temperature: float, adapter: Path | None) -> Drift:
    rows = [
        Row(n, 0, one.prompt_ids, one.token_ids, one.logprobs, temperature or 1.0, 0.0)
        for n, one in enumerate(completions)
    ]
    return drift(policy, rows, adapter.read_bytes() if adapter else None, 1500)


# -- the suite ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.5])
def test_logprobs_are_those_of_the_distribution_that_was_sampled(url, model, policy, temperature, engine_of):
    found = engine_of(model, url).generate(PROMPTS, Sampling(temperature, 16), SEEDS, None)
    assert recomputed(policy, found, temperature, None).largest < 1e-4


def test_greedy_tokens_and_prompts_are_the_embedded_engines(url, model, engine_of):
    greedy = Sampling(0.0, 16)
    own = TransformersEngine(model, EngineSettings(model="tiny", threads=1)).generate(PROMPTS, greedy, SEEDS, None)
    theirs = engine_of(model, url).generate(PROMPTS, greedy, SEEDS, None)
    pick = lambda row: (row.prompt_ids, row.token_ids, row.text, row.finish)  # noqa: E731
    assert [pick(row) for row in theirs] == [pick(row) for row in own]


def test_rows_have_seeds_of_their_own_and_the_same_seed_says_the_same(url, model, engine_of):
    engine = engine_of(model, url)
    first = engine.generate([PROMPTS[0]] * 4, WARM, SEEDS, None)
    assert len({row.token_ids for row in first}) == 4
    assert [row.token_ids for row in engine.generate([PROMPTS[0]] * 4, WARM, SEEDS, None)] == [
        row.token_ids for row in first
    ]


def test_adapters_are_loaded_and_swapped_at_run_time(url, model, policy, adapters, engine_of):
    """Three of them in two slots, and the base between: each is what the trainer computes for it."""
    engine = engine_of(model, url)
    tokens = set()
    for adapter in (adapters[0], None, adapters[1], adapters[2], adapters[0]):
        found = engine.generate(PROMPTS, WARM, SEEDS, adapter)
        assert recomputed(policy, found, 0.7, adapter).largest < 1e-4
        assert adapter is None or recomputed(policy, found, 0.7, None).mean > 0.01
        tokens.add(tuple(row.token_ids for row in found))
    assert len(tokens) == 4


def test_a_stop_string_ends_where_the_embedded_engine_ends(url, model, engine_of):
    engine = engine_of(model, url)
    free = engine.generate([PROMPTS[1]], Sampling(0.0, 30), [1], None)[0]
    at = next(n for n in range(3, 28) if free.text[n : n + 2].isascii() and free.text[n : n + 2].isprintable())
    stop = free.text[at : at + 2]
    own = TransformersEngine(model, EngineSettings(model="tiny", threads=1))
    asked = ([PROMPTS[1]], Sampling(0.0, 30, (stop,)), [1], None)
    (theirs,), (ours,) = engine.generate(*asked), own.generate(*asked)
    assert (theirs.token_ids, theirs.text, theirs.finish) == (ours.token_ids, ours.text, "stop")
    assert stop not in theirs.text


def test_the_end_token_stops_and_is_kept(url, model, engine_of):
    rows = engine_of(model, url).generate([PROMPTS[0]] * 12, Sampling(2.0, 60), list(range(12)), None)
    ended = [row for row in rows if row.finish == "stop"]
    assert ended
    assert all(row.token_ids[-1] == 2 and 2 not in row.token_ids[:-1] for row in ended)
    assert all(len(row.token_ids) == len(row.logprobs) == 60 for row in rows if row.finish == "length")


def test_a_prompt_without_room_is_not_sent(url, model, engine_of):
    heard: list[int] = []
    long = [Message("user", "x" * CONTEXT)]
    full, beside = engine_of(model, url).generate([long, PROMPTS[0]], WARM, [1, 7], None, heard.append)
    assert (full.finish, full.token_ids) == ("context", ())
    assert heard == [len(beside.token_ids)]


def test_the_manifest_names_the_server(url, model, engine_of):
    manifest = engine_of(model, url).manifest
    assert manifest.engine.startswith("vllm 0.")
    assert manifest.instruction_set.startswith("cpu-")
    assert (manifest.dtype, manifest.threads, manifest.model_digest) == ("float32", 1, model_digest(model))


# -- faults ------------------------------------------------------------------------------------------------------


def test_a_server_of_another_base_is_refused_and_both_are_named(model, tmp_path, engine_of):
    other = build_tiny_model(tmp_path / "other", seed=1, context=CONTEXT)
    server = FakeVllm(other)
    mine, theirs = model_digest(model)[:12], model_digest(other)[:12]
    with pytest.raises(ModelError, match=f"serves base {theirs} .*the run's base is {mine}"):
        engine_of(model, server.url).generate(PROMPTS, WARM, SEEDS, None)
    assert engine_of(model, server.url).manifest.engine == "vllm"
    settings = EngineSettings("vllm", str(model), "float32", 1, urls=(server.url,))
    with pytest.raises(UsageError, match=f"serves base {theirs}"):
        check_engine(settings, model, tmp_path)
    server.stop()


def test_a_server_that_somebody_else_started_is_refused(model, engine_of):
    server = FakeVllm(model, name="llama")
    with pytest.raises(ModelError, match="start it with resia engine vllm serve"):
        engine_of(model, server.url).check()
    server.stop()


def test_another_tokenizer_is_refused(model, fake, engine_of):
    fake.tokenizer_offset = 1
    with pytest.raises(ModelError, match="another tokenizer"):
        engine_of(model, fake.url).check()


def test_a_rank_over_the_servers_limit_is_refused(model, adapters, engine_of):
    server = FakeVllm(model, rank=1)
    with pytest.raises(ModelError, match=r"has rank 8, .* takes ranks up to 1: serve with --max-lora-rank 8"):
        engine_of(model, server.url).generate(PROMPTS, WARM, SEEDS, adapters[0])
    assert server.loaded == {}
    server.stop()


@pytest.mark.parametrize(("mode", "rank", "serve"), [("W", 2, 8), ("W+H", 24, 32), ("H", 24, 0), ("random", 24, 0)])
def test_a_run_whose_adapters_no_server_would_take_does_not_begin(model, tmp_path, mode, rank, serve):
    server = FakeVllm(model, rank=1)
    engine = [f"engine.model={model}", "engine.kind=vllm", f'engine.urls=["{server.url}"]']
    settings = load_settings(None, [*engine, f"loop.mode={mode}", f"training.rank={rank}"])
    asked = settings.engine, model, tmp_path, trained_rank(settings)
    if serve:
        with pytest.raises(
            UsageError, match=rf"training.rank is {rank}, .* up to 1: serve with --max-lora-rank {serve},"
        ):
            check_engine(*asked)
    else:
        check_engine(*asked)
    server.stop()


def test_an_adapter_of_another_base_is_refused(model, adapters, tmp_path, engine_of):
    other = build_tiny_model(tmp_path / "other", seed=1, context=CONTEXT)
    server = FakeVllm(other)
    with pytest.raises(ModelError, match=r"0\.safetensors was trained on base .* but the served base is"):
        engine_of(other, server.url).generate(PROMPTS, WARM, SEEDS, adapters[0])
    server.stop()


def test_a_server_that_is_down_is_asked_again_and_then_given_up(model, fake, engine_of):
    fake.stop()
    pauses: list[float] = []
    engine = engine_of(model, fake.url, pauses=pauses)
    with pytest.raises(ModelError, match=f"no vLLM server answered in {TRIES} tries: {fake.url} cannot be reached"):
        engine.generate(PROMPTS, WARM, SEEDS, None)
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0]
    assert engine.manifest.engine == "vllm"


def test_one_of_two_replicas_dies(model, policy, adapters, fake, engine_of):
    """Both work at first; then one dies, and the other does its part."""
    dying = FakeVllm(model)
    pauses: list[float] = []
    engine = engine_of(model, dying.url, fake.url, pauses=pauses)
    before = engine.generate(PROMPTS, WARM, SEEDS, adapters[0])
    assert "/v1/completions" in dying.asked
    assert "/v1/completions" in fake.asked
    dying.ill = True
    ill = engine.generate(PROMPTS, WARM, SEEDS, adapters[0])
    dying.stop()
    after = engine.generate(PROMPTS, WARM, SEEDS, adapters[0])
    assert before == ill == after
    assert pauses == []


def test_a_replica_that_is_well_again_has_its_part_again(model, fake, engine_of):
    failing = FakeVllm(model)
    engine = engine_of(model, failing.url, fake.url, pauses=[])
    failing.ill = True
    engine.generate(PROMPTS, WARM, SEEDS, None)
    failing.ill = False
    failing.asked.clear()
    engine.generate(PROMPTS, WARM, SEEDS, None)
    assert failing.asked.count("/v1/completions") == len(PROMPTS) / 2
    failing.stop()


def test_a_server_that_was_started_again_gets_its_adapter_again(model, adapters, fake, engine_of):
    engine = engine_of(model, fake.url)
    before = engine.generate(PROMPTS, WARM, SEEDS, adapters[0])
    fake.restart()
    assert engine.generate(PROMPTS, WARM, SEEDS, adapters[0]) == before


def test_what_a_server_broke_off_is_asked_for_again(model, fake, engine_of):
    pauses: list[float] = []
    engine = engine_of(model, fake.url, pauses=pauses)
    whole = engine.generate(PROMPTS, WARM, SEEDS, None)
    fake.breaking_off = 1
    assert engine.generate(PROMPTS, WARM, SEEDS, None) == whole
    assert pauses == [1.0]


def test_replicas_that_differ_are_refused(model, fake, engine_of):
    newer = FakeVllm(model, version="9.9")
    with pytest.raises(ModelError, match=r"the vLLM servers differ: .* has 0.0.0-fake, .* has 9\.9"):
        engine_of(model, fake.url, newer.url).check()
    newer.stop()


def test_the_least_recent_adapter_is_unloaded(model, adapters, tmp_path, fake, engine_of):
    engine = engine_of(model, fake.url)
    for adapter in (adapters[0], adapters[1], adapters[0], adapters[2]):
        engine.generate(PROMPTS[:1], WARM, [1], adapter)
    names = [path.name for path in (tmp_path / "peft").iterdir()]
    kept = {name.rpartition("-")[2] for name in fake.loaded}
    assert len(names) == 3
    assert len(kept) == 2
    gone = engine._peft.of(adapters[1]).digest
    assert gone not in kept


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (EngineSettings(urls=("http://h:1",)), "set engine.kind=vllm too"),
        (EngineSettings("vllm"), "engine.urls is empty"),
        (EngineSettings("vllm", urls=("http://user:secret@h:1",)), "holds a login"),
        (EngineSettings("vllm", urls=("ftp://h",)), "no server's URL"),
        (EngineSettings("vllm", urls=("http://h:x",)), "cannot be read"),
    ],
)
def test_settings_are_checked_before_a_run(model, tmp_path, settings, says):
    with pytest.raises(UsageError, match=says) as caught:
        check_engine(settings, model, tmp_path)
    assert "secret" not in str(caught.value)


def test_a_served_name_tells_what_is_served(model):
    base = base_of(model)
    assert base_named(base.name()) == base
    for odd in (
        "llama",
        base.name() + ".1",
        base.name().replace("resia-base", "base"),
        base.name().replace(".8.", ".x."),
    ):
        assert base_named(odd) is None
    assert isinstance(base, Base)


# -- drift -------------------------------------------------------------------------------------------------------


def test_drift_is_the_difference_that_was_put_in(policy, model, fake, engine_of):
    """Numeric oracle: shifting each recorded log-probability shifts mean and largest by as much."""
    found = engine_of(model, fake.url).generate(PROMPTS, WARM, SEEDS, None)
    shifts = np.linspace(0.1, 0.4, sum(len(row.token_ids) for row in found))
    rows, at = [], 0
    for n, one in enumerate(found):
        length = len(one.token_ids)
        moved = tuple(np.array(one.logprobs) - shifts[at : at + length])
        rows.append(Row(n, 0, one.prompt_ids, one.token_ids, moved, 0.7, 0.0))
        at += length
    measured = drift(policy, rows, None, 1500)
    assert measured.tokens == len(shifts)
    assert measured.mean == pytest.approx(shifts.mean(), abs=1e-5)
    assert measured.largest == pytest.approx(0.4, abs=1e-5)


def test_drift_shows_another_adapter_and_another_temperature(policy, model, adapters, fake, engine_of):
    found = engine_of(model, fake.url).generate(PROMPTS, WARM, SEEDS, adapters[0])
    bound = EngineSettings().drift_limit
    assert recomputed(policy, found, 0.7, adapters[0]).mean < bound / 10
    assert recomputed(policy, found, 0.7, adapters[1]).mean > bound
    assert recomputed(policy, found, 1.0, adapters[0]).mean > bound
