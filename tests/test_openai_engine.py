"""Rollouts from an endpoint on loopback: what is sent, what is read, what a failure becomes, and what is paid twice."""

from __future__ import annotations

import json
import threading

import msgspec
import pytest
from chat_given import KEY, KEY_MARK, Endpoint, Reply, endpoint, failing, saying
from scripted import GOOD, ScriptedEngine, Tape, confined, ports, small_domain
from test_chat_server import running
from test_rate_limit import Time

from given import requested
from resia.agents.episode import chat
from resia.agents.ports import NO_ROOM, REFUSED, Sampling
from resia.agents.proposing import first_harness
from resia.agents.rollout import sample_shard
from resia.agents.structured import answer_schema, asking_for_json, json_extraction
from resia.domains.base import Parameter
from resia.events import (
    Candidate,
    EndpointSettings,
    EngineSettings,
    Message,
    RolloutFailed,
    RolloutRecorded,
    RolloutsRequested,
    ShardSampled,
    Slot,
    Usage,
    decode_trajectory,
)
from resia.events.errors import EndpointRefused, ModelError
from resia.runtime.engines import harmony
from resia.runtime.engines.chat_line import Clocks
from resia.runtime.engines.openai_engine import OpenAiEngine

ENGINE = EngineSettings("openai", "m")
PROMPT = (Message("system", "s"), Message("user", "u"))
DRAWN = Sampling(0.7, 20, ("\n",))


def engine(at: Endpoint | str, time: Time | None = None, key: str = KEY, **settings) -> OpenAiEngine:
    time = time or Time()
    url = at if isinstance(at, str) else at.url
    made = EndpointSettings(**{"base_url": url, "concurrency": 1, "retries": 1, **settings})
    return OpenAiEngine(ENGINE, made, key, "d" * 64, Clocks(time.sleep, lambda: time.now, lambda: time.now))


def body(text: str | None = "x", finish: str = "stop", usage=(7, 3), message=None, **more) -> Reply:
    whole = {
        "choices": [
            {"message": {"content": text, **(message or {})}, "finish_reason": finish, **more.pop("choice", {})}
        ],
        **({"usage": {"prompt_tokens": usage[0], "completion_tokens": usage[1]}} if usage else {}),
        **more,
    }
    return Reply(200, json.dumps(whole).encode())


def ask(made: OpenAiEngine, *seeds: int, sampling: Sampling = DRAWN):
    return made.generate([PROMPT] * len(seeds), sampling, seeds, None)


# -- what is sent ------------------------------------------------------------------------------------------------------


def sent(sampling: Sampling = DRAWN, **settings) -> dict:
    with endpoint(body()) as there:
        ask(engine(there, **settings), 2**40 + 5, sampling=sampling)
    (heard,) = there.heard
    return {name: value for name, value in heard.items() if name not in ("model", "messages")}


def test_a_request_has_the_sampling_and_a_seed():
    assert sent() == {"max_tokens": 20, "temperature": 0.7, "stop": ["\n"], "seed": 5}


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"token_field": "max_completion_tokens"}, {"max_completion_tokens": 20, "max_tokens": None}),
        ({"seed_field": "none"}, {"seed": None}),
        ({"seed_field": "random_seed"}, {"seed": None, "random_seed": 5}),
        ({"temperature": False}, {"temperature": None}),
        ({"max_temperature": 0.5}, {"temperature": 0.5}),
        ({"stops": 0}, {"stop": None}),
        ({"blank_stops": False}, {"stop": None}),
        ({"logprobs": "values"}, {"logprobs": True, "return_token_ids": None}),
        ({"logprobs": "ids"}, {"logprobs": True, "return_token_ids": True}),
        ({"extra": {"reasoning_effort": "low"}}, {"reasoning_effort": "low"}),
        ({"response_format": "json_schema"}, {"response_format": None}),
    ],
)
def test_only_what_the_endpoint_knows_is_sent(settings, wanted):
    found = sent(**settings)
    assert {name: found.get(name) for name in wanted} == wanted


@pytest.mark.parametrize(("header", "sent"), [("authorization", f"Bearer {KEY}"), ("api-key", KEY)])
def test_the_key_is_in_its_header_and_in_no_answer(header, sent):
    with endpoint(body(f"it is {KEY_MARK}", model=KEY_MARK)) as there:
        made = engine(there, key_header=header)
        (found,) = ask(made, 1)
    assert there.keys == [sent]
    assert KEY not in found.text + made.manifest.model


def test_a_model_that_thinks_has_room_to():
    with endpoint(body()) as there:
        made = EndpointSettings(base_url=there.url)
        ask(OpenAiEngine(EngineSettings("openai", "m", thinking_tokens=500, effort="low"), made, "", "d"), 1)
    assert (there.heard[0]["max_tokens"], there.heard[0]["reasoning_effort"]) == (520, "low")


# -- what is read ------------------------------------------------------------------------------------------------------


def read(reply: Reply, **settings):
    with endpoint(reply) as there:
        return ask(engine(there, **settings), 1)[0]


def test_text_is_cut_at_the_first_stop_string_and_tokens_are_the_endpoints():
    found = read(body("a=1\nb=2", "length"), stops=0)
    assert (found.text, found.finish, found.usage) == ("a=1", "stop", Usage(7, 3))
    assert (found.prompt_tokens, found.completion_tokens, found.token_ids) == (7, 3, ())


def test_tokens_that_nobody_counted_are_estimated_and_say_so():
    found = read(body("x" * 30, usage=None))
    assert found.usage is not None
    assert (found.usage.completion, found.usage.estimated) == (10, True)
    assert found.usage.prompt > 10


def test_ids_and_log_probabilities_are_kept_where_they_are_given():
    logprobs = {"content": [{"token": "a", "logprob": -0.5}, {"token": "b", "logprob": -1.5}]}
    found = read(body("ab", choice={"logprobs": logprobs, "token_ids": [4, 5]}, prompt_token_ids=[1, 2, 3]))
    assert (found.prompt_ids, found.token_ids, found.logprobs) == ((1, 2, 3), (4, 5), (-0.5, -1.5))


@pytest.mark.parametrize(
    ("reply", "finish"),
    [
        (body("abc", "length"), "length"),
        (body("abc", "max_tokens"), "length"),
        (body("abc", "model_length"), "length"),
        (body("abc", "eos"), "stop"),
        (body("abc", "content_filter"), REFUSED),
        (body(None, message={"refusal": "No."}), REFUSED),
        (failing(400, "The response was filtered"), None),
        (failing(400, "This model's maximum context length is 8192 tokens"), NO_ROOM),
        (failing(413, "prompt is too long: 300 tokens"), NO_ROOM),
    ],
)
def test_how_a_completion_ended(reply, finish):
    if finish is None:
        with pytest.raises(EndpointRefused, match="HTTP 400"):
            read(reply)
    else:
        found = read(reply)
        assert (found.finish, found.usage is not None) == (finish, True)


def test_a_prompt_that_a_filter_stopped_is_a_refusal():
    stopped = Reply(400, json.dumps({"error": {"message": "filtered", "code": "content_filter"}}).encode())
    assert read(stopped).finish == REFUSED


def test_harmony_that_a_server_passes_on_is_read_to_its_final_message():
    raw = "<|channel|>analysis<|message|>a=9<|end|><|start|>assistant<|channel|>final<|message|>a=1<|return|>"
    assert read(body(raw)).text == "a=1"
    assert read(body(raw.partition("<|end|>")[0], "length")).text == ""


@pytest.mark.parametrize(
    ("raw", "final"),
    [
        ("<|channel|>final<|message|>x", "x"),
        ("<|channel|>final <|constrain|>json<|message|>{}<|return|>", "{}"),
        ("<|channel|>commentary to=functions.f<|message|>{}<|call|>", None),
        ("<|channel|>final<|message|>one<|end|><|start|>assistant<|channel|>final<|message|>two<|return|>", "two"),
        ("<|channel|>final<|mess", None),
        ("plain", None),
    ],
)
def test_the_final_message_of_harmony(raw, final):
    assert harmony.final_text(raw) == final


def test_the_manifest_says_who_answered():
    with endpoint(
        body(model="m-2026", system_fingerprint="fp_1"), body(model="m-2026", system_fingerprint="fp_2")
    ) as at:
        made = engine(at)
        assert (made.manifest.model, made.manifest.fingerprint) == ("m", "")
        ask(made, 1, 2)
        said = made.manifest
    assert (said.model, said.fingerprint, said.endpoint) == ("m-2026", "fp_1,fp_2", at.url)
    assert (said.model_digest, said.threads, said.dtype) == ("d" * 64, 0, "")


# -- an answer as an object --------------------------------------------------------------------------------------------

SHAPED = Sampling(0.7, 20, (), '{"type": "object"}')


@pytest.mark.parametrize(
    ("known", "wanted"), [("json_schema", "json_schema"), ("json_object", "json_object"), ("none", None)]
)
def test_a_schema_is_asked_for_as_the_endpoint_knows_it(known, wanted):
    found = sent(SHAPED, response_format=known).get("response_format")
    assert (found or {}).get("type") == wanted
    if wanted == "json_schema":
        assert found["json_schema"] == {"name": "answer", "strict": True, "schema": {"type": "object"}}


def test_an_endpoint_that_refuses_a_schema_is_asked_for_less_and_not_again():
    no = failing(400, "response_format of this type is unavailable now")
    with endpoint(no, no, body("{}"), body("{}")) as there:
        made = engine(there, response_format="json_schema")
        ask(made, 1, sampling=SHAPED)
        ask(made, 2, sampling=SHAPED)
    asked = [(heard.get("response_format") or {}).get("type") for heard in there.heard]
    assert asked == ["json_schema", "json_object", None, None]


def test_the_schema_names_every_argument_and_its_choices():
    spec = small_domain().spec
    schema = json.loads(answer_schema(spec))
    assert list(schema["properties"]) == schema["required"] == [p.name for p in spec.parameters]
    assert schema["properties"]["knn"] == {"type": "integer", "enum": list(spec.parameters[0].choices)}
    assert schema["additionalProperties"] is False


def test_a_program_is_any_text():
    spec = msgspec.structs.replace(
        small_domain().spec, parameters=(Parameter("source", (), "", "a program", code=True),)
    )
    assert json.loads(answer_schema(spec))["properties"] == {"source": {"type": "string"}}


# -- failures ----------------------------------------------------------------------------------------------------------


def test_what_may_pass_is_asked_again_when_the_endpoint_says():
    time = Time()
    with endpoint(failing(429, "slow down", Retry_After="9"), body()) as there:
        ask(engine(there, time), 1)
    assert time.now == 109.0
    assert len(there.heard) == 2


def test_a_pause_that_was_asked_for_holds_the_others_too():
    time = Time()
    with endpoint(failing(503, Retry_After="4"), body(), body()) as there:
        ask(engine(there, time, retries=2), 1, 2)
    assert time.now == 104.0


def test_a_limit_of_requests_is_kept():
    time = Time()
    with endpoint(body()) as there:
        ask(engine(there, time, requests_per_minute=6), *range(7))
    assert time.now >= 100.0 + 60.0
    assert len(there.heard) == 7


def test_what_came_before_a_failure_is_not_paid_for_again():
    with endpoint(body("one"), failing(500), failing(500), body("two"), body("three")) as there:
        made = engine(there)
        with pytest.raises(ModelError, match="gave no reply after 2 requests: HTTP 500"):
            ask(made, 1, 2)
        assert [found.text for found in ask(made, 1, 2)] == ["one", "two"]
        assert [found.text for found in ask(made, 1)] == ["three"]  # kept for that try alone
    assert len(there.heard) == 5


def test_a_key_that_is_not_taken_is_named():
    with endpoint(failing(401, "bad key")) as there, pytest.raises(EndpointRefused) as cause:
        ask(engine(there), 1)
    assert "check the environment variable that endpoint.key_env names (bad key)" in str(cause.value)


def test_an_adapter_is_refused(tmp_path):
    with endpoint(body()) as there, pytest.raises(ModelError, match="takes no adapter"):
        engine(there).generate([PROMPT], DRAWN, [1], tmp_path / "a.safetensors")
    assert there.heard == []


def test_no_more_requests_are_under_way_than_allowed():
    """The server counts who is inside at once; a barrier lets nobody out before as many are in as may be."""
    most, gate = [0], threading.Barrier(3)
    inside, lock = [0], threading.Lock()

    with running(ScriptedEngine(lambda prompt, seed: "x")) as server:
        sample = server.sample

        def counted(asked):
            with lock:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
            gate.wait(30)
            with lock:
                inside[0] -= 1
            return sample(asked)

        server.sample = counted
        ask(engine(server.url, concurrency=3), *range(6))
    assert most == [3]


# -- through the Task-Agent --------------------------------------------------------------------------------------------


@pytest.fixture
def sandbox():
    yield from confined()


def shard(domain, harness, blobs, *indexes: int) -> tuple[Tape, object]:
    tape = Tape()
    candidate = Candidate(blobs.put(harness.encoded(), "x"))
    slots = tuple(Slot("search", domain.items("search")[0].id, n, n) for n in indexes)
    tape.add(requested())
    (fact,) = tape.add(RolloutsRequested("e", "candidate", candidate, slots, 0, 1))
    return tape, fact


def test_a_shard_is_recorded_with_the_endpoints_tokens(sandbox, blobs):
    domain = small_domain()
    tape, fact = shard(domain, first_harness(domain.spec), blobs, 0, 1, 2)
    with endpoint(body(GOOD), body(None, "content_filter"), body("knn=", "length")) as there:
        (events,) = sample_shard(tape.state, fact, domain, ports(engine(there), sandbox, blobs, []))
    *rollouts, sampled = events
    assert isinstance(sampled, ShardSampled)
    assert [r.failure for r in rollouts] == [None, "refusal", "truncation"]
    assert (sampled.prompt_tokens, sampled.completion_tokens) == (21, 9)
    assert sampled.manifest.endpoint == there.url
    turn = decode_trajectory(blobs.get(rollouts[0].trajectory)).turns[0]
    assert (turn.usage, turn.completion_ids, turn.text) == (Usage(7, 3), (), GOOD)


def test_an_endpoint_out_of_order_loses_the_shard_and_scores_nothing(sandbox, blobs):
    domain = small_domain()
    tape, fact = shard(domain, first_harness(domain.spec), blobs, 0, 1)
    with endpoint(failing(500, "down")) as there:
        (events,) = sample_shard(tape.state, fact, domain, ports(engine(there), sandbox, blobs, []))
    assert [type(event) for event in events] == [RolloutFailed, RolloutFailed, ShardSampled]
    assert "gave no reply after 2 requests: HTTP 500: down" in events[0].error


def test_an_answer_as_an_object_is_read_and_scored(sandbox, blobs):
    domain = small_domain()
    harness = asking_for_json(first_harness(domain.spec), domain.spec)
    tape, fact = shard(domain, harness, blobs, 0)
    said = json.dumps({"knn": 5, "t": 3}, indent=1)
    with endpoint(body(f"```json\n{said}\n```")) as there:
        made = engine(there, response_format="json_schema")
        asked = ports(made, sandbox, blobs, [])._replace(structured=True)
        ((rollout, _),) = sample_shard(tape.state, fact, domain, asked)
    assert isinstance(rollout, RolloutRecorded)
    assert (rollout.failure, rollout.answer[:11]) == (None, "knn=5 t=3 o")
    assert there.heard[0]["response_format"]["type"] == "json_schema"
    assert "stop" not in there.heard[0]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("{}", None),
        ("no", None),
        ('{"x": 1} {"knn": 5}', {"knn": 5}),
        ('{"knn": 5, "x": 1}', {"knn": 5}),
        ('{"knn": {', None),
        ("[1]", None),
    ],
)
def test_the_first_object_with_an_argument_is_the_answer(sandbox, text, wanted):
    assert sandbox.run(json_extraction(small_domain().spec), "extract", [text]).value == wanted


def test_generation_0_of_such_a_run_asks_for_an_object():
    spec = small_domain().spec
    plain, made = first_harness(spec), asking_for_json(first_harness(spec), spec)
    assert "Answer with one JSON object of this form and nothing else: {" in made.system_prompt.text
    assert made.retry_policy.max_new_tokens > plain.retry_policy.max_new_tokens
    assert len(chat(made, "p")) == len(chat(plain, "p"))


def test_the_text_of_saying_counts_nothing(blobs):
    """A reply without usage, through the whole line."""
    assert read(saying("hm")).usage.estimated
