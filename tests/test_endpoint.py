"""The endpoint's settings, checked before anything is written; a key is never repeated."""

from __future__ import annotations

import pytest
from chat_given import KEY

from resia.events import LlmSettings, RunSettings
from resia.events.errors import UsageError
from resia.runtime.config import load_settings
from resia.runtime.endpoint import check_proposer, endpoint_key

URL = "https://models.example/v1"


def settings(**changes) -> RunSettings:
    return RunSettings(proposer="llm", llm=LlmSettings(**{"base_url": URL, "model": "m", **changes}))


def refusal(**changes) -> str:
    with pytest.raises(UsageError) as cause:
        check_proposer(settings(**changes))
    return str(cause.value)


@pytest.mark.parametrize("url", [URL, "http://localhost:8000/v1", "http://[::1]:8000/v1/", "https://x.example"])
def test_a_usable_endpoint_passes(url):
    check_proposer(settings(base_url=url))


def test_the_embedded_proposer_needs_no_endpoint():
    check_proposer(RunSettings())


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "proposer llm needs llm.base_url"),
        ("models.example/v1", "no http or https URL"),
        ("ftp://models.example/v1", "no http or https URL"),
        ("https:///v1", "no http or https URL"),
        ("https://models.example:port/v1", "cannot be read as a URL"),
        ("https://models.example/ v1", "no http or https URL"),
        (f"https://user:{KEY}@models.example/v1", "holds a login or a query"),
        (f"https://models.example/v1?key={KEY}", "holds a login or a query"),
    ],
)
def test_an_unusable_url_is_named_but_not_what_it_hides(url, words):
    said = refusal(base_url=url)
    assert words in said
    assert KEY not in said


def test_a_model_must_be_named():
    assert "llm.model is empty" in refusal(model=" ")


def test_the_key_is_read_from_the_variable_that_is_named(monkeypatch):
    monkeypatch.setenv("MY_KEY", f" {KEY}\n")
    assert endpoint_key(settings(key_env="MY_KEY").llm) == KEY
    assert endpoint_key(settings().llm) == ""


def test_a_variable_that_is_not_set_is_named(monkeypatch):
    monkeypatch.delenv("MY_KEY", raising=False)
    assert "the environment variable MY_KEY, which llm.key_env names, is not set" in refusal(key_env="MY_KEY")


@pytest.mark.parametrize("given", [KEY, "sk key", "k" * 65])
def test_a_key_in_the_place_of_its_name_is_refused_and_not_repeated(given):
    said = refusal(key_env=given)
    assert "no name of an environment variable" in said
    assert given not in said


@pytest.mark.parametrize("key", [f"{KEY} x", "schlüssel-0123", f"{KEY}\nHost: x"])
def test_a_key_that_no_header_takes_is_not_repeated(monkeypatch, key):
    monkeypatch.setenv("MY_KEY", key)
    said = refusal(key_env="MY_KEY")
    assert "MY_KEY holds no key" in said
    assert key not in said


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("llm.prompt_tokens=10", "llm.prompt_tokens is 10: expected `int` >= 500"),
        ("llm.tries=0", "llm.tries is 0"),
        ("llm.temperature=3", "llm.temperature is 3"),
        ("llm.key=abc", "'key': did you mean key_env"),
    ],
)
def test_settings_out_of_range_are_named(override, words):
    with pytest.raises(UsageError) as cause:
        load_settings(None, [override])
    assert words in str(cause.value)
