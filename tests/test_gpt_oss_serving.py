"""A tiny gpt-oss from prompt to adapter: harmony, rollouts of the Task-Agent, all six updates, what is served then."""

from __future__ import annotations

import msgspec
import pytest
from fixture_domains import MidBinary, Remembering, Sizes
from gpt_oss_given import MARKS, WORDS, harmony_model
from scripted import Tape, confined, ports
from test_chat_server import running
from trainer_given import finish

from given import requested
from resia.agents.ports import Sampling
from resia.agents.proposing import first_harness
from resia.agents.rollout import sample_shard
from resia.events import (
    Candidate,
    EndpointSettings,
    EngineSettings,
    Message,
    RolloutRecorded,
    RolloutsRequested,
    Slot,
    TrainingSettings,
    decode_trajectory,
)
from resia.events.ids import seed_for
from resia.runtime.blobs import DirectoryBlobs
from resia.runtime.engines.openai_engine import OpenAiEngine
from resia.trainers.batch import Rollout, batch_of
from resia.trainers.objectives import FEASIBLE
from resia.trainers.policy import Policy
from resia.trainers.rounds import train_round

torch = pytest.importorskip("torch")
from resia.runtime.engines.transformers_engine import TransformersEngine  # noqa: E402 - heavy

CHAT = (Message("system", "Pick."), Message("user", "item 1"))
LONGER = (Message("system", "Pick."), Message("assistant", "pick=3"), Message("user", "another, please"))
DRAWN = Sampling(1.0, 40)
ENGINE = EngineSettings(model="gpt-oss-tiny", threads=1, thinking_tokens=40)
TRAINING = TrainingSettings(rank=4, lora_alpha=8, learning_rate=2e-2, micro_tokens=100_000, bon_top=8, dpo_pairs=8)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return harmony_model(tmp_path_factory.mktemp("harmony"))


@pytest.fixture(scope="module")
def engine(model):
    return TransformersEngine(model, ENGINE)


def decoded(engine, tokens) -> str:
    return engine._chat._tokenizer.decode(list(tokens))


def test_the_prompt_is_harmony_on_a_day_that_no_clock_says(engine):
    (found,) = engine.generate([LONGER], DRAWN, [1], None)
    said = decoded(engine, found.prompt_ids)
    assert said.startswith("<|start|>system<|message|>You are a model.")
    assert "Current date: 2025-08-05\n\nReasoning: medium" in said
    assert "<|start|>developer<|message|># Instructions\n\nPick.<|end|>" in said
    assert "<|start|>assistant<|channel|>final<|message|>pick=3<|end|>" in said
    assert said.endswith("another, please<|end|><|start|>assistant")


def test_how_hard_to_think_is_told(model):
    told = TransformersEngine(model, msgspec.structs.replace(ENGINE, effort="high"))
    assert "Reasoning: high" in decoded(told, told.generate([CHAT], DRAWN, [1], None)[0].prompt_ids)


def test_log_probabilities_are_those_of_the_whole_sequence(engine, model):
    """Sampled step by step, in a padded batch, over prompts of many windows; against one pass of transformers' own."""
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    found = engine.generate([CHAT, LONGER, CHAT, LONGER], DRAWN, [1, 2, 3, 4], None)
    assert len({len(one.prompt_ids) for one in found}) == 2
    for one in found:
        tokens = torch.tensor([[*one.prompt_ids, *one.token_ids]])
        with torch.no_grad():
            logits = plain(input_ids=tokens).logits[0, len(one.prompt_ids) - 1 : -1]
        wanted = torch.log_softmax(logits, -1).gather(1, torch.tensor(one.token_ids)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(one.logprobs), wanted, atol=5e-5, rtol=0)


def test_the_text_is_the_final_message_and_not_the_thought(engine):
    found = engine.generate([CHAT] * 24, DRAWN, list(range(24)), None)
    raw = [decoded(engine, one.token_ids) for one in found]
    thoughtful = [n for n, said in enumerate(raw) if "analysis<|message|>" in said and "final<|message|>" in said]
    assert thoughtful
    for n, said in enumerate(raw):
        finals = [part.partition("<|message|>")[2] for part in said.split("<|channel|>") if part.startswith("final")]
        wanted = finals[-1].partition("<|")[0] if finals else ""
        assert (found[n].text, found[n].finish) == (wanted, "stop" if said.endswith("<|return|>") else "length")
    assert {one.text for one in found} >= {""}  # some thought and returned


def test_a_stop_string_in_thought_ends_nothing(engine):
    found = engine.generate([CHAT] * 24, Sampling(1.0, 40, ("=",)), list(range(24)), None)
    raw = [decoded(engine, one.token_ids) for one in found]
    assert {one.text for one in found} == {"pick", ""}
    assert any(said.count("=") > 1 for said in raw)  # one in thought, and one that ended it
    assert all(said.endswith("=") for one, said in zip(found, raw, strict=True) if one.text)


def test_a_call_ends_a_completion_too(engine):
    stopper = engine._chat.stopper(())
    ids = {text: engine._chat._tokenizer.convert_tokens_to_ids(text) for text in (*MARKS, *WORDS)}
    thought = [ids["<|channel|>"], ids["analysis"], ids["<|message|>"]]
    assert stopper.stops([*thought, ids["<|call|>"]])
    assert stopper.stops([*thought, ids["<|return|>"]])
    assert not stopper.stops([*thought, ids["<|end|>"]])
    assert stopper.text([*thought, ids["<|call|>"]]) == ""


# -- rollouts, updates, and what is served -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rolled(engine, tmp_path_factory):
    """Rollouts of the Task-Agent with generation 0's harness, as the trainer is handed them."""
    blobs, domain, tape = DirectoryBlobs(tmp_path_factory.mktemp("blobs")), MidBinary(Sizes()), Tape()
    candidate = Candidate(blobs.put(first_harness(domain.spec).encoded(), "x"))
    items = [item.id for item in domain.items("search")][:2]
    slots = tuple(Slot("search", item, n, seed_for(7, item, n)) for item in items for n in range(12))
    tape.add(requested())
    (fact,) = tape.add(RolloutsRequested("e", "candidate", candidate, slots, 0, 1))
    for sandbox in confined():
        asked = ports(engine, Remembering(sandbox), blobs, [])
        ((*events, _),) = sample_shard(tape.state, fact, domain, asked)
    assert all(isinstance(event, RolloutRecorded) for event in events)
    return [
        Rollout(
            f"{e.item}/{e.index:02d}",
            e.item,
            e.reward,
            e.success,
            e.failure,
            decode_trajectory(blobs.get(e.trajectory)),
        )
        for e in events
    ]


def test_rollouts_are_scored_by_their_final_message(rolled, engine):
    assert {rollout.failure for rollout in rolled} == {None, "parse"}
    assert {rollout.reward for rollout in rolled} == {0.0, 1.0}
    for rollout in rolled:
        turn = rollout.trajectory.turns[-1]
        assert rollout.failure == (None if turn.text else "parse")
        assert len(turn.logprobs) == len(turn.completion_ids) > len(turn.text)  # the marks are learned from too


@pytest.fixture(scope="module")
def adapters(rolled, model, engine, tmp_path_factory):
    """Algorithm to the adapter file of one round by it."""
    folder, made = tmp_path_factory.mktemp("adapters"), batch_of(rolled, 1024)
    policy = Policy.load(model, "float32", 1, TRAINING, engine.manifest.model_digest, seed=1)
    found = {}
    for algorithm in FEASIBLE:
        policy.set_adapter(None, 1, values=algorithm == "ppo_gae")
        steps, result = finish(train_round(policy, made, algorithm, TRAINING, 2, None, lambda: 0.0))
        assert len(steps) == 2
        assert result.used > 0
        found[algorithm] = folder / f"{algorithm}.safetensors"
        found[algorithm].write_bytes(result.adapter)
    return policy, found


def test_all_six_are_there(adapters):
    assert set(adapters[1]) == {"ppo_gae", "grpo", "entropic", "reinforce_kl", "best_of_n", "dpo"}
    assert len({path.read_bytes() for path in adapters[1].values()}) == 6


@pytest.mark.parametrize("algorithm", FEASIBLE)
def test_a_reloaded_adapter_changes_what_is_sampled_from_and_the_base_comes_back(algorithm, adapters, engine):
    path = adapters[1][algorithm]
    base, trained, again = (
        engine.generate([CHAT], Sampling(0.0, 1), [0], adapter)[0] for adapter in (None, path, None)
    )
    assert trained.logprobs != base.logprobs
    assert again == base


def test_the_server_gives_the_policys_own_log_probabilities(adapters, engine):
    """From `resia serve` over HTTP, as the engine for endpoints reads them, against the trainer's."""
    from resia.trainers.batch import Row
    from resia.trainers.packing import pad

    policy, found = adapters
    policy.set_adapter(found["grpo"].read_bytes(), 0)
    seen = {}
    for name, adapter in (("base", None), ("grpo", found["grpo"])):
        with running(engine, name, adapter) as server:
            settings = EndpointSettings(base_url=server.url, logprobs="ids")
            remote = OpenAiEngine(EngineSettings("openai", name), settings, "", "d")
            seen[name] = remote.generate([CHAT] * 3, DRAWN, [1, 2, 3], None)
            seen[f"{name} print"] = remote.manifest.fingerprint
    assert seen["base print"] != seen["grpo print"]
    assert [one.logprobs for one in seen["base"]] != [one.logprobs for one in seen["grpo"]]
    for one in seen["grpo"]:
        row = Row(0, 0, one.prompt_ids, one.token_ids, one.logprobs, 1.0, 0.0)
        with torch.no_grad():
            own = policy.logprobs(pad([row]))[0]
        torch.testing.assert_close(torch.tensor(one.logprobs), own.float(), atol=1e-3, rtol=0)
