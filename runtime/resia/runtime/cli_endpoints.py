"""The endpoints command: which profiles of OpenAI-compatible endpoints there are, and what one of them says."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .cli_options import DONE, JsonOption, emit

if TYPE_CHECKING:
    from .profiles import Profile


def register(app: typer.Typer) -> None:
    """Add this group's commands to the command line."""
    app.command()(endpoints)


def endpoints(
    name: Annotated[str | None, typer.Argument(help="A profile, or FILE.toml; without it all are listed.")] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Where your own profiles are; default: endpoints in resia's.")
    ] = None,
    json: JsonOption = False,
) -> int:
    """Profiles of endpoints that rollouts, drafts and edits can come from. Asks no network and shows no key."""
    from . import profiles

    if name is not None:
        _print(_whole(name, profiles.profile(name, folder)), json)
        return DONE
    for known, path in profiles.names(folder).items():
        found = profiles.profile(str(path))
        if json:
            emit(_whole(known, found))
        else:
            where = found.settings.base_url or found.form
            sys.stdout.write(f"{known:11} {found.title:42} {found.settings.key_env or 'no key':21} {where}\n")
    if not json:
        sys.stdout.write(f"your own: {folder or profiles.own_folder()}/NAME.toml\n")
    return DONE


def _whole(name: str, found: Profile) -> dict[str, Any]:
    import os

    import msgspec

    prices = msgspec.to_builtins(found.prices) if found.prices else None
    settings = msgspec.to_builtins(found.settings)
    key = found.settings.key_env
    return {
        "profile": name,
        "title": found.title,
        "about": found.about,
        "form": found.form,
        "key_is_set": bool(os.environ.get(key)) if key else None,
        "endpoint": {field: value for field, value in settings.items() if field not in ("profile", "answer")},
        "prices": prices,
    }


def _print(whole: dict[str, Any], json: bool) -> None:
    if json:
        emit(whole)
        return
    key = {None: "none is needed", True: "set", False: "NOT SET"}[whole["key_is_set"]]
    lines = [whole["title"], whole["about"], *([f"base_url = {whole['form']}"] if whole["form"] else []), f"key: {key}"]
    lines += [f"endpoint.{field} = {value!r}" for field, value in whole["endpoint"].items()]
    if prices := whole["prices"]:
        lines.append(
            f"prices of {prices['as_of']}, {prices['currency']} a million tokens, which change: {prices['source']}"
        )
        lines += [f"  {model}: {p['prompt']:g} in, {p['completion']:g} out" for model, p in prices["models"].items()]
    else:
        lines.append("prices: none; give [price.models] to count money")
    sys.stdout.write("\n".join(lines) + "\n")
