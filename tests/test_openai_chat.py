"""The client of an endpoint, against a real one on loopback: what is retried, what is named, and where no key is."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from chat_given import ASKED, KEY, KEY_MARK, SILENCE, Endpoint, Reply, endpoint, failing, llm_settings, recorded, saying

from resia.events import Message
from resia.events.errors import EndpointRefused, ModelError
from resia.runtime.engines import chat_line
from resia.runtime.engines.openai_chat import OpenAiChat

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


class Pauses(list[float]):
    """Stands for `sleep`: what was waited, and no waiting."""

    def __call__(self, seconds: float) -> None:
        self.append(seconds)


def client(at: Endpoint, key: str = KEY, **settings) -> tuple[OpenAiChat, Pauses]:
    pauses = Pauses()
    return OpenAiChat(llm_settings(at.url, **settings), key, pauses, now=NOW.timestamp), pauses


def test_a_recorded_reply_comes_whole_with_what_it_cost():
    with endpoint(recorded("edit_retry_policy")) as there:
        chat, pauses = client(there, temperature=0.3, max_tokens=77)
        reply = chat.complete(ASKED)
    assert json.loads(reply.text)["component"] == "retry_policy"
    assert (reply.finish, reply.model, reply.prompt_tokens, reply.completion_tokens) == (
        "stop",
        "recorded-1",
        1203,
        103,
    )
    assert (reply.failures, pauses) == ((), [])
    assert there.paths == ["/v1/chat/completions"]
    assert there.keys == [f"Bearer {KEY}"]
    assert there.heard == [
        {
            "model": "recorded-1",
            "messages": [{"role": "system", "content": "You edit."}, {"role": "user", "content": "Edit."}],
            "temperature": 0.3,
            "max_tokens": 77,
        }
    ]


def test_without_a_key_none_is_sent_and_the_field_for_tokens_can_be_named():
    with endpoint(saying("x")) as there:
        client(there, key="", token_field="max_completion_tokens", max_tokens=9)[0].complete(ASKED)
    assert there.keys == [None]
    assert there.heard[0]["max_completion_tokens"] == 9
    assert "max_tokens" not in there.heard[0]


def test_an_endpoint_that_does_not_count_is_counted_by_bytes():
    with endpoint(saying("abc" * 10)) as there:
        reply = client(there)[0].complete([Message("user", "u" * 3000)])
    assert reply.completion_tokens == 10
    assert 1000 < reply.prompt_tokens < 1100


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "key is not taken"),
        (403, "may not do this"),
        (404, "no such model or path"),
        (400, "request is not taken"),
    ],
)
def test_a_refusal_is_named_and_not_asked_again(status, words):
    with endpoint(failing(status, f"bad key {KEY_MARK}")) as there:
        chat, pauses = client(there)
        with pytest.raises(EndpointRefused, match=f"HTTP {status}: .*{words}") as refused:
            chat.complete(ASKED)
    assert len(there.heard) == 1
    assert pauses == []
    assert KEY not in str(refused.value)
    assert "bad key [key]" in str(refused.value)


def test_a_redirect_is_not_followed():
    with endpoint(saying("x")) as elsewhere, endpoint(Reply(307, b"", (("Location", elsewhere.url),))) as there:
        chat, _ = client(there)
        with pytest.raises(EndpointRefused, match="HTTP 307"):
            chat.complete(ASKED)
    assert (len(there.heard), elsewhere.heard) == (1, [])


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 529])
def test_a_passing_failure_is_asked_again_after_a_growing_pause(status):
    with endpoint(failing(status, "slow down"), failing(status, "slow down"), saying("good")) as there:
        chat, pauses = client(there)
        reply = chat.complete(ASKED)
    assert reply.text == "good"
    assert reply.failures == (f"HTTP {status}: slow down",) * 2
    assert pauses == [1.0, 2.0]
    assert there.heard[0] == there.heard[2]


@pytest.mark.parametrize(
    ("header", "wait"),
    [
        ("7", 7.0),
        ("0", 0.0),
        (format_datetime(NOW + timedelta(seconds=30), usegmt=True), 30.0),
        (format_datetime(NOW - timedelta(seconds=30), usegmt=True), 0.0),
        ("soon", 1.0),
        ("-5", 1.0),
        ("", 1.0),
    ],
)
def test_a_pause_that_the_endpoint_asks_for_is_kept(header, wait):
    with endpoint(failing(429, "too many", Retry_After=header), saying("good")) as there:
        chat, pauses = client(there)
        assert chat.complete(ASKED).text == "good"
    assert pauses == [wait]


def test_at_once_is_taken_at_its_word_once():
    with endpoint(failing(429, "too many", Retry_After="0")) as there:
        chat, pauses = client(there, retries=3)
        with pytest.raises(ModelError, match="no reply after 4 requests"):
            chat.complete(ASKED)
    assert pauses == [0.0, 2.0, 4.0]


@pytest.mark.parametrize("header", ["301", "99999999999999999999"])
def test_a_pause_that_is_too_long_is_not_waited_for(header):
    with endpoint(failing(429, "tomorrow", Retry_After=header)) as there:
        chat, pauses = client(there)
        with pytest.raises(ModelError, match="no reply after 1 request: HTTP 429: tomorrow"):
            chat.complete(ASKED)
    assert pauses == []


def test_an_outage_that_outlasts_the_retries_is_named_and_bounded():
    with endpoint(failing(500, f"trouble with {KEY_MARK}")) as there:
        chat, pauses = client(there, retries=8)
        with pytest.raises(ModelError, match=r"no reply after 9 requests: HTTP 500: trouble with \[key\]") as outage:
            chat.complete(ASKED)
    assert not isinstance(outage.value, EndpointRefused)
    assert len(there.heard) == 9
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]


HALF = recorded("edit_retry_policy")


def ended(finish: str) -> Reply:
    return Reply(200, json.dumps({"choices": [{"message": {"content": "{"}, "finish_reason": finish}]}).encode())


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (HALF._replace(sent=40), "connection failed: RemoteProtocolError"),
        (Reply(200, HALF.body[:40]), "half a reply"),
        (Reply(200, b""), "half a reply"),
        (Reply(200, b"<html>sign in</html>"), "half a reply"),
        (Reply(200, b"[1]"), "none of a chat completion"),
        (Reply(200, b'{"choices": []}'), "choices"),
        (Reply(200, b'{"choices": [{"message": {}}], "usage": {"prompt_tokens": 1e30}}'), "usage.prompt_tokens"),
        (ended("error"), "finish_reason error"),
        (ended("insufficient_system_resource"), "finish_reason insufficient_system_resource"),
        (ended("abort"), "finish_reason abort"),
    ],
    ids=["cut", "half", "empty", "html", "list", "no choice", "absurd", "error", "no resource", "abort"],
)
def test_half_a_reply_is_asked_for_again(reply, words):
    with endpoint(reply, HALF) as there:
        found = client(there)[0].complete(ASKED)
    assert words in found.failures[0]
    assert json.loads(found.text)["component"] == "retry_policy"


def test_silence_is_named_after_its_time():
    with endpoint(SILENCE) as there:
        chat, pauses = client(there, timeout_s=0.05, retries=1)
        with pytest.raises(ModelError, match=r"no reply after 2 requests: no answer within 0\.05 s"):
            chat.complete(ASKED)
    assert pauses == [1.0]


def test_a_reply_that_trickles_ends_with_its_time():
    """Each byte comes in time for the client's own timeout; the clock of the whole reply says otherwise."""
    ticks = iter([0.0, 11.0, 0.0, 1.0, 1.0, 1.0])
    with endpoint(saying("slow"), saying("good")) as there:
        chat = OpenAiChat(llm_settings(there.url), KEY, Pauses(), clock=lambda: next(ticks))
        reply = chat.complete(ASKED)
    assert (reply.text, reply.failures) == ("good", ("no whole answer within 10 s",))


def test_a_reply_without_end_is_given_up(monkeypatch):
    monkeypatch.setattr(chat_line, "MAX_REPLY_BYTES", 1 << 20)
    with endpoint(saying("x" * (2 << 20)), saying("good")) as there:
        assert client(there)[0].complete(ASKED).failures == ("a reply of more than 1 MB",)


def test_nobody_listens():
    with endpoint(saying("x")) as there:
        gone = there.url
    chat = OpenAiChat(llm_settings(gone, retries=0), KEY, Pauses())
    with pytest.raises(ModelError, match="no reply after 1 request: the connection failed: ConnectError"):
        chat.complete(ASKED)


def test_a_key_that_the_reply_repeats_is_taken_out_of_it():
    with endpoint(saying(f"use {KEY_MARK} twice: {KEY_MARK}")) as there:
        assert client(there)[0].complete(ASKED).text == "use [key] twice: [key]"


def test_a_key_that_is_a_common_word_leaves_the_reply_alone():
    with endpoint(saying("return None")) as there:
        assert client(there, key="None")[0].complete(ASKED).text == "return None"
