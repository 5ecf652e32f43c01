"""What workers there are, resia's own and others', and logins for them: what the commands of `resia worker` show."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from resia.events import NAMES
from resia.events.catalogue import WRITERS
from resia.events.errors import UsageError

from . import plugin_find
from .blobs import DirectoryBlobs
from .grants import admit
from .permissions import inbox
from .plugin import check_emits, check_name, check_role
from .plugin_find import Found, Listed
from .resources import Resources
from .roles import ROLE_NAMES, role


def find(target: str) -> Found:
    """The worker called `target`, in a package or a file; UsageError with the nearest names when there is none."""
    return plugin_find.find(target, ROLE_NAMES)


def listed() -> list[Listed]:
    """The roles of resia, then the workers of installed packages by name."""
    return [*(_built_in(name) for name in ROLE_NAMES), *plugin_find.listed()]


def _built_in(name: str) -> Listed:
    source, emits = f"resia {version('resia')}", tuple(sorted(NAMES[cls] for cls in WRITERS[name]))
    try:
        consumes = role(name, Resources(DirectoryBlobs(Path()), None, False), lambda _: lambda _: None).types()
    except ModuleNotFoundError as cause:  # the thin package lists what it cannot start
        return Listed(name, name, (), emits, source, f"{cause}: pip install 'resia[local]'")
    return Listed(name, name, tuple(consumes), emits, source)


def granted(
    folder: Path, name: str | None, role_name: str | None, emits: Sequence[str], program: str, renew: bool = False
) -> dict[str, Any]:
    """A login for the worker `name`, or for a `program` that writes `emits` as `role_name`: how to connect."""
    if (name is None) == (role_name is None):
        raise UsageError("name a worker, or a program by --role and --emits: one of the two")
    if name is not None:
        if emits:
            raise UsageError(f"worker '{name}' declares what it emits: leave --emits out")
        declared = find(name).declared
        named, program, kinds = declared.role, declared.name, declared.writes
    else:
        named, program, kinds = str(role_name), check_name(program, "program"), tuple(emits)
        check_emits(check_role(named), kinds)
    access, grant = admit(folder, named, program, kinds, renew)
    return {
        "url": access.url,
        "user": grant.login,
        "password": grant.password,
        "subjects": grant.subjects,
        "durable": grant.login,
        "inbox": inbox(grant.login),
    }
