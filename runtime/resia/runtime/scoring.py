"""Scoring a file of answers without a run: the domain is made as a run would make it, and asked for its score.

Which files it takes and what the scores mean is the domain's business.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from resia.domains.base import FileScore, FileScored, Giving
from resia.events import RunSettings
from resia.events.errors import UnknownName, UsageError

from .config import load_settings
from .resources import KERNEL_DOMAINS, domain_for
from .views import Shown

LONG = 1e9  # from which a number is written with an exponent


def score_file(
    name: str,
    protocol: str | None,
    predictions: Path,
    options: Sequence[str],
    cache: Path | None,
    unsafe_local: bool = False,
) -> tuple[FileScore, ...]:
    """Scores of `predictions` under `protocol`, by default the domain's first; `options` are the domain's, as
    name=value. `unsafe_local`: a kernel file may run without a sandbox. UsageError for what cannot be used."""
    if not predictions.exists():
        raise UsageError(f"there is no file {predictions}: check the name given to --predictions")
    settings = load_settings(None, [f"domain_options.{option}" for option in options], RunSettings(domain=name))
    if name in KERNEL_DOMAINS:
        return _bench_file(name, protocol, predictions, settings, unsafe_local)
    domain = domain_for(settings, cache)
    if not isinstance(domain, FileScored):
        raise UsageError(f"domain '{name}' scores no files: it has no score_file")
    chosen = protocol or domain.protocols()[0]
    if chosen not in domain.protocols():
        raise UnknownName(f"protocol of the {name} domain", chosen, domain.protocols())
    return domain.score_file(chosen, predictions)


def _bench_file(
    name: str, protocol: str | None, file: Path, settings: RunSettings, unsafe_local: bool
) -> tuple[FileScore, ...]:
    """A kernel file on the device's public cases, or on the suite that the options name. No domain can judge one."""
    from .kernelwork import PROTOCOLS, filed

    options = dict(settings.domain_options)
    suite = str(options.pop("suite", ""))
    if options:
        raise UnknownName(f"option of a kernel file of the {name} domain", str(next(iter(options))), ("suite",))
    if protocol is not None and protocol not in PROTOCOLS:
        raise UnknownName(f"protocol of the {name} domain", protocol, PROTOCOLS)
    return (filed(file, protocol or PROTOCOLS[0], suite, settings.engine.threads, unsafe_local),)


def write_given(name: str, folder: Path, options: Sequence[str], cache: Path | None) -> Shown:
    """Write what the items of a domain give to whoever answers them, into a new or empty folder."""
    settings = load_settings(None, [f"domain_options.{option}" for option in options], RunSettings(domain=name))
    domain = domain_for(settings, cache)
    if not isinstance(domain, Giving):
        raise UsageError(f"domain '{name}' gives nothing but prompts: it has no write_given")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"'{folder}' is there already and not an empty folder: give another to --out")
    folder.mkdir(parents=True, exist_ok=True)
    written = domain.write_given(folder)
    lines = [{"domain": name, "item": path.stem, "file": str(path)} for path in written]
    return Shown(tuple(lines), (f"{folder}: {len(written)} files, one an item",))


def shown(domain: str, predictions: Path, scores: Sequence[FileScore]) -> Shown:
    """One JSON line a split, or as many lines of text."""
    lines = [{"domain": domain, "predictions": str(predictions), **_plain(score)} for score in scores]
    return Shown(tuple(lines), tuple(_text(score) for score in scores))


def _plain(score: FileScore) -> dict[str, Any]:
    held: dict[str, Any] = msgspec.to_builtins(score)
    if not score.device:
        del held["device"]
    return held


def _text(score: FileScore) -> str:
    values = "  ".join(
        f"{name} {value:{'.4f' if abs(value) < LONG else '.4g'}}" for name, value in sorted(score.scores.items())
    )
    where = f" on {score.device}" if score.device else ""
    head = f"{score.protocol} {score.split}{where}: {values}  ({score.answered} of {score.denominator} answered)"
    return head + _counts("invalid", score.invalid) + _counts("ignored", score.ignored)


def _counts(word: str, counts: Mapping[str, int]) -> str:
    return "".join(f"\n  {word}: {kind}: {count}" for kind, count in sorted(counts.items()))
