"""Profiles of endpoints: all bundled ones are sound, a person's own goes before, and a bad one is one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from resia.events import EndpointSettings
from resia.events.errors import UnknownName, UsageError
from resia.runtime import profiles
from resia.runtime.cli_options import USAGE
from resia.runtime.config import load_settings
from resia.runtime.endpoint import check_engine, endpoint_digest

OWN = """
title = "Mine"
about = "In the cellar."

[endpoint]
base_url = "http://cellar.example/v1"
concurrency = 3

[prices]
as_of = 2026-01-02
source = "my own"
currency = "EUR"
models = { small = { prompt = 1.0, completion = 2.0 } }
"""
ROOT = Path(__file__).parents[1]
PROVIDERS = {"openai", "azure", "anthropic", "openrouter", "together", "groq", "mistral", "deepseek"}
LOCAL = {"vllm", "ollama", "llama-cpp", "resia"}


@pytest.fixture
def own(tmp_path, monkeypatch):
    monkeypatch.setattr(profiles, "own_folder", lambda: tmp_path)
    (tmp_path / "mine.toml").write_text(OWN)
    return tmp_path


def test_the_common_providers_are_there(tmp_path):
    assert set(profiles.names(tmp_path)) == PROVIDERS | LOCAL


@pytest.mark.parametrize("name", sorted(PROVIDERS | LOCAL))
def test_a_bundled_profile_gives_settings_that_a_run_takes(name, tmp_path, monkeypatch):
    found = profiles.profile(name, tmp_path)
    assert bool(found.settings.base_url) != bool(found.form)
    monkeypatch.setenv(found.settings.key_env or "NONE", "some-key-12345")
    settings = load_settings(None, [f"endpoint.profile={name}", "engine.model=m", "loop.mode=H", *own_address(found)])
    check_engine(settings)
    assert (settings.endpoint.profile, settings.engine.kind) == (name, "openai")
    assert (found.settings.key_env == "") == (name in LOCAL)
    for price in found.prices.models.values() if found.prices else ():
        assert 0 < price.prompt <= price.completion


def own_address(found) -> list[str]:
    return [f"endpoint.base_url={found.form.replace('RESOURCE', 'me')}"] if found.form else []


def test_what_a_person_gives_goes_before_the_profile(own):
    given = ["endpoint.concurrency=7", "price.models.small.completion=9.0", "price.models.other.prompt=3.0"]
    settings = load_settings(None, [*given, "endpoint.profile=mine"])
    assert (settings.endpoint.base_url, settings.endpoint.concurrency) == ("http://cellar.example/v1", 7)
    assert settings.price.currency == "EUR"
    assert (settings.price.models["small"].prompt, settings.price.models["small"].completion) == (1.0, 9.0)
    assert settings.price.models["other"].prompt == 3.0


def test_another_profile_leaves_nothing_of_the_last_one(own):
    first = load_settings(None, ["endpoint.profile=groq"])
    then = load_settings(None, ["endpoint.profile=mine"], first)
    assert (then.endpoint.key_env, then.endpoint.requests_per_minute, then.endpoint.stops) == ("", 0, 4)
    assert load_settings(None, ["seed=3"], first).endpoint == first.endpoint


def test_prices_of_another_currency_are_left_out(own):
    settings = load_settings(None, ["endpoint.profile=mine", "price.currency=USD"])
    assert (settings.price.currency, settings.price.models) == ("USD", {})


def test_a_profile_in_a_settings_file_and_by_path(own, tmp_path):
    config = tmp_path / "run.toml"
    config.write_text(f'[endpoint]\nprofile = "{own / "mine.toml"}"\nretries = 1\n')
    settings = load_settings(config)
    assert (settings.endpoint.profile, settings.endpoint.retries) == ("mine", 1)


def test_a_proposer_takes_a_profile_too():
    settings = load_settings(None, ["llm.profile=openai", "llm.retries=1"])
    assert settings.llm.base_url == "https://api.openai.com/v1"
    assert (settings.llm.key_env, settings.llm.token_field) == ("OPENAI_API_KEY", "max_completion_tokens")
    assert (settings.engine.kind, settings.llm.retries) == ("transformers", 1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("title = ", "cannot be used: Invalid value"),
        ('title = "x"\nabout = ""\n', "missing required field `endpoint`"),
        (OWN.replace("concurrency = 3", "concurrency = 0"), "Expected `int` >= 1 - at `$.concurrency`"),
        (OWN.replace("concurrency", "at_once"), "unknown field `at_once`"),
        (OWN.replace("prompt = 1.0", "prompt = -1.0"), "Expected `float` >= 0.0"),
        (OWN.replace("as_of = 2026-01-02", ""), "missing required field `as_of`"),
        (OWN.replace("concurrency = 3", 'answer = "json"'), "sets endpoint.answer, which belongs to a run"),
    ],
)
def test_a_bad_profile_is_one_sentence(own, text, said):
    (own / "mine.toml").write_text(text)
    with pytest.raises(UsageError) as cause:
        load_settings(None, ["endpoint.profile=mine"])
    assert said in str(cause.value)
    assert str(own / "mine.toml") in str(cause.value)


def test_a_profile_that_is_not_there(tmp_path):
    with pytest.raises(UnknownName, match="unknown endpoint profile 'grok': did you mean groq"):
        load_settings(None, ["endpoint.profile=grok"])
    with pytest.raises(UsageError, match="there is no endpoint profile"):
        load_settings(None, [f"endpoint.profile={tmp_path / 'x.toml'}"])


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["loop.mode=W+H"], "mode W\\+H trains weights, and the endpoint of engine.kind openai has none to train"),
        (["loop.mode=W"], "mode W trains weights"),
        (["endpoint.base_url=''"], "engine.kind openai needs endpoint.base_url"),
        (["endpoint.base_url='http://u:p@x/v1'"], "endpoint.base_url holds a login"),
        (["engine.model=' '"], "engine.model is empty"),
        (["endpoint.key_env=NOT_SET_ANYWHERE"], "NOT_SET_ANYWHERE, which endpoint.key_env names, is not set"),
        (["endpoint.extra.seed=1"], "endpoint.extra has seed"),
    ],
)
def test_what_an_endpoint_cannot_do_is_refused(more, said):
    settings = load_settings(None, ["endpoint.profile=vllm", "engine.model=m", "loop.mode=H", *more])
    with pytest.raises(UsageError, match=said):
        check_engine(settings)


@pytest.mark.parametrize("mode", ["H", "random", "best-of-n"])
def test_modes_that_train_nothing_pass(mode):
    check_engine(load_settings(None, ["endpoint.profile=vllm", "engine.model=m", f"loop.mode={mode}"]))


def test_the_digest_is_of_place_and_model():
    there = ["endpoint.profile=vllm", "engine.model=m"]
    first = endpoint_digest(load_settings(None, there))
    assert first == endpoint_digest(load_settings(None, [*there, "endpoint.retries=1"]))
    others = (["engine.model=n"], ["endpoint.base_url=http://localhost:8001/v1"])
    assert first not in {endpoint_digest(load_settings(None, [*there, *other])) for other in others}


def test_the_command_lists_them_and_shows_one_without_its_key(own, say, monkeypatch):
    monkeypatch.setenv("GROQ_API_KEY", "gsk-canary-1234567")
    code, out, _ = say("endpoints", "--json")
    listed = {line["profile"]: line for line in map(json.loads, out.splitlines())}
    assert code == 0
    assert set(listed) == PROVIDERS | LOCAL | {"mine"}
    assert (listed["groq"]["key_is_set"], listed["vllm"]["key_is_set"]) == (True, None)
    assert "canary" not in out
    _, out, _ = say("endpoints", "mine")
    assert "prices of 2026-01-02, EUR a million tokens, which change: my own" in out
    code, _, err = say("endpoints", "grok")
    assert (code, err) == (USAGE, "resia: unknown endpoint profile 'grok': did you mean groq?\n")


@pytest.mark.parametrize("path", sorted((ROOT / "examples" / "endpoints").glob("*.toml")), ids=lambda path: path.stem)
def test_an_example_is_a_settings_file_that_a_run_takes(path):
    settings = load_settings(path)
    check_engine(settings)
    assert settings.endpoint.profile


def test_every_field_is_in_the_documentation():
    page = (ROOT / "docs" / "endpoints.md").read_text()
    missing = [name for name in EndpointSettings.__struct_fields__ if f"`{name}`" not in page]
    assert missing == []
