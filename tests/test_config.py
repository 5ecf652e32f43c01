"""Settings from files and overrides: what is taken, and the sentence for what is not."""

from __future__ import annotations

from contextlib import suppress

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resia.events import RunSettings
from resia.events.errors import UnknownName, UsageError
from resia.runtime.config import NEW_RUN, ProcessConfig, checked, load_settings


def refused(*overrides: str, path=None) -> str:
    with pytest.raises(UsageError) as caught:
        load_settings(path, overrides)
    text = str(caught.value)
    assert "\n" not in text.strip()
    return text


def test_nothing_given_is_the_default():
    assert load_settings(None) == NEW_RUN
    assert load_settings(None, ["gate.retention=greedy"]) == RunSettings()


def test_later_sources_win(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(
        'seed = 3\ndomain = "denoising"\n[loop]\nmode = "H"\npatience_h = 2\n[domain_options]\nsynthetic = true\n'
    )
    base = msgspec.structs.replace(RunSettings(), seed=9, algorithm="grpo")
    found = load_settings(path, ["loop.patience_h=5", "domain_options.search_items=2"], base)
    assert (found.seed, found.loop.mode, found.loop.patience_h, found.algorithm) == (3, "H", 5, "grpo")
    assert found.domain_options == {"synthetic": True, "search_items": 2}


@pytest.mark.parametrize(
    ("override", "where", "value"),
    [
        ("seed=4", "seed", 4),
        (" seed = 4 ", "seed", 4),
        ("loop.mode=W+H", "loop.mode", "W+H"),
        ('loop.mode="H"', "loop.mode", "H"),
        ("training.learning_rate=1e-5", "training.learning_rate", 1e-5),
        ("training.learning_rate=1", "training.learning_rate", 1.0),
        ("training.dr_grpo=true", "training.dr_grpo", True),
        ("engine.model=/a/b=c d", "engine.model", "/a/b=c d"),
        ("domain_options.anything=x", "domain_options.anything", "x"),
        ("algorithm=best_of_n", "algorithm", "best_of_n"),
    ],
)
def test_forms_of_an_override(override, where, value):
    found = msgspec.to_builtins(load_settings(None, [override]))
    for part in where.split("."):
        found = found[part]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("loop.patince_h=2", "'patince_h': did you mean patience_h"),
        ("lop.mode=H", "'lop': did you mean loop"),
        ("sede=1", "'sede': did you mean seed"),
        ("loop.mode=WH", "unknown value of loop.mode 'WH': did you mean W+H or W or H?"),
        ("algorithm=grop", "unknown value of algorithm 'grop': did you mean grpo"),
        ("engine.dtype=float16", "unknown value of engine.dtype 'float16': did you mean bfloat16 or float32"),
        ("proposer=lm", "unknown value of proposer 'lm': did you mean llm"),
        ("loop.max_iterations=0", "setting loop.max_iterations is 0: expected `int` >= 1"),
        ("seed=-1", "setting seed is -1: expected `int` >= 0"),
        ("seed=", "setting seed is '': expected `int`, got `str`"),
        ("seed=1.5", "setting seed is 1.5: expected `int`, got `float`"),
        ("seed=1\nfoo=2", r"setting seed is '1\nfoo=2': expected `int`"),
        ("engine.threads=true", "setting engine.threads is True: expected `int`, got `bool`"),
        ("sampling.shard_size=501", "setting sampling.shard_size is 501: expected `int` <= 500"),
        ("gate.alpha=1", "setting gate.alpha is 1: expected"),
        ("training.learning_rate=nan", "setting training.learning_rate is nan"),
        ("selection.skew=inf", "setting selection.skew is inf: give a finite number"),
        ("selection.tail=-inf", "setting selection.tail is -inf: give a finite number"),
        ("domain_options.x=nan", "setting domain_options.x is nan: give a finite number"),
        ("domain_options.x.y=1", "the settings cannot be used: Expected"),
        ("loop=5", "setting loop is 5: expected `object`, got `int`"),
        ("seed.x=1", "setting seed is {'x': 1}: expected `int`"),
        ("loop..mode=H", "unknown setting"),
        ("seed", "--set takes name=value such as loop.patience_h=1, not 'seed'"),
        ("=1", "--set takes name=value such as loop.patience_h=1, not '=1'"),
        ("", "--set takes name=value such as loop.patience_h=1, not ''"),
    ],
)
def test_a_wrong_override_is_named_with_its_value(override, sentence):
    assert sentence in refused(override)


def test_an_unknown_name_offers_the_nearest_and_says_where_it_stands(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text("[training]\nround = 3\n")
    with pytest.raises(UnknownName, match=r"run\.toml.*'round': did you mean rounds"):
        load_settings(path)


@pytest.mark.parametrize("text", ["seed = ", "seed = 1\nseed = 2", "[loop", "\x00", "= 3"])
def test_broken_toml_is_named_with_its_place(tmp_path, text):
    path = tmp_path / "run.toml"
    path.write_text(text)
    assert refused(path=path).startswith(f"the settings file {path} cannot be read: ")


def test_a_file_that_is_not_there_or_no_text(tmp_path):
    assert refused(path=tmp_path / "no.toml") == (
        f"there is no settings file {tmp_path / 'no.toml'}: check the name given to --config"
    )
    assert "cannot be read" in refused(path=tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    assert "cannot be read" in refused(path=tmp_path / "binary")


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(["seed", "loop", "loop.mode", "gate.alpha", "domain_options.x", "algorithm", ""])
    | st.text(max_size=12),
    value=st.text(max_size=12) | st.sampled_from(["1", "nan", "inf", "[1]", "{a=1}", "1979-05-27", "'", "9" * 50]),
)
def test_any_override_is_taken_or_refused_in_a_sentence(name, value):
    """What is taken is written to the log and read back the same."""
    found = RunSettings()
    with suppress(UsageError):
        found = load_settings(None, [f"{name}={value}"])
    assert msgspec.json.decode(msgspec.json.encode(found), type=RunSettings) == found


def test_a_tree_that_lacks_fields_takes_their_defaults():
    assert checked({"seed": 2}) == RunSettings(seed=2)
    with pytest.raises(UsageError, match="unknown field `sed`"):
        checked({"sed": 2})


def test_a_process_takes_no_field_it_does_not_know():
    config = ProcessConfig(url="nats://h", role="task", worker="task-1", blobs="/b")
    assert ProcessConfig.model_validate_json(config.model_dump_json()) == config
    with pytest.raises(ValueError, match="extra"):
        ProcessConfig(url="u", role="r", worker="w", blobs="/b", secret="s")
