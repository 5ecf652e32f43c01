"""What each login may say to the embedded server, and the server's configuration made of it.

A subject names who writes and what, so a permission to publish is a permission to state that kind of fact. Measured
on 2.15.1: an answer of the server goes wherever its request says, whoever may publish there. Hence nobody but the
admin may ask for stored bytes as they are (`DIRECT.GET`): a message of one's own could be sent on as another's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from resia.events.errors import UsageError
from resia.events.subjects import ROLES

READER = "reader"  # who may look and write nothing
RESERVED = frozenset({"admin", READER, "user"})  # logins that no worker can have as its role
SCHEMAS = "resia-schemas"  # the bucket of custom namespaces
BLOBS = "resia-blobs"  # the object store of blobs, where they are kept by the log's servers
JETSTREAM = "jetstream"  # stands for it in a login file
_TOKEN = re.compile(r"[A-Za-z0-9_-]+")
WORKERS = tuple(role for role in ROLES if role != "user")
_READ = (
    "$JS.API.INFO",
    "$JS.API.STREAM.INFO.*",
    "$JS.API.STREAM.NAMES",
    "$JS.API.STREAM.MSG.GET.*",
    "$JS.API.CONSUMER.INFO.*.*",
    "$JS.API.CONSUMER.CREATE.*",  # ephemeral: the server refuses a durable here
    "$JS.FC.>",
)


class Access(msgspec.Struct, frozen=True, omit_defaults=True):
    """How to reach a log: address and, by role, user name and password ('admin' beside the roles).

    Of a cluster: `url` lists its servers with commas between, `ca` is the file with the authority that signed their
    certificates (empty: those that the machine trusts), `replicas` is how many of them hold each new log. `blobs` is
    where the blobs are: an fsspec URL, `jetstream` for the servers' own object store, empty for the store's folder.
    """

    url: str
    passwords: dict[str, str] = {}
    ca: str = ""
    replicas: int = 1
    blobs: str = ""

    @property
    def port(self) -> int:
        """The port in `url`, 0 where it names none."""
        port = self.url.rpartition(":")[2]
        return int(port) if port.isdigit() else 0

    def login(self, role: str) -> tuple[str, str]:
        """User and password of `role`; both empty when the server asks for none."""
        return (role, self.passwords[role]) if role in self.passwords else ("", "")

    @property
    def looker(self) -> str:
        """The login to look with: the reader's, or another's that may read too."""
        return READER if READER in self.passwords else min(self.passwords, default=READER)

    def require(self, role: str) -> None:
        """UsageError when the passwords are others' and not that of `role`."""
        if self.passwords and role not in self.passwords:
            raise UsageError(
                f"the login file has no password of '{role}', only of {', '.join(sorted(self.passwords))}: name with"
                f" --nats the file of {role}"
            )


class Grant(msgspec.Struct, frozen=True):
    """A login for one worker of a user's own: it reads, and writes `emits` (wire types) as `role`.

    `login` is the user's name, and the only durable that it may create, ask and acknowledge.
    """

    login: str
    role: str
    emits: tuple[str, ...]
    password: str

    @property
    def subjects(self) -> list[str]:
        """What it may publish into the runs' logs."""
        return [f"resia.*.{self.role}.{kind}.*" for kind in self.emits]

    @property
    def namespaces(self) -> list[str]:
        """Namespaces of the custom types among `emits`, each once."""
        return list(dict.fromkeys(kind.partition("_")[0] for kind in self.emits if "_" in kind))


def server_config(access: Access, port: int, store: Path, grants: Iterable[Grant] = (), sync: str = "always") -> str:
    """The server's configuration: loopback, fsync before every acknowledgement, least permissions a login."""
    return "\n".join(
        [
            f'listen: "127.0.0.1:{port}"',
            "max_payload: 1MB",
            f"pid_file: {json.dumps(str(store.with_name('server.pid')))}",
            "jetstream {",
            f"  store_dir: {json.dumps(str(store))}",
            f"  sync_interval: {sync}",
            "}",
            "authorization {",
            f"  users: {json.dumps(users(access, grants), indent=2)}",
            "}",
            "",
        ]
    )


def inbox(login: str) -> str:
    """Prefix of the subjects on which answers come; a login hears its own alone.

    A user of another's server may have a name that can be no subject token: then the prefix is everybody's.
    """
    return f"_INBOX.{login}" if _TOKEN.fullmatch(login) else "_INBOX"


def users(access: Access, grants: Iterable[Grant] = ()) -> list[dict[str, Any]]:
    """Every login with what it may publish and hear, as the server's configuration takes it."""
    passwords = access.passwords
    return [
        {"user": "admin", "password": passwords["admin"]},
        _user("user", passwords["user"], [*_READ, "resia.*.user.>"], "resia-live.>"),
        _user(READER, passwords[READER], list(_READ), "resia-live.>"),
        *(_user(role, passwords[role], [*_of_role(role), *_of_blobs(access)]) for role in WORKERS),
        *(_user(grant.login, grant.password, _of_grant(grant)) for grant in grants),
    ]


def _user(login: str, password: str, publish: list[str], *hears: str) -> dict[str, Any]:
    subscribe = [f"{inbox(login)}.>", *hears]
    return {"user": login, "password": password, "permissions": {"publish": publish, "subscribe": subscribe}}


def _of_role(role: str) -> list[str]:
    return [*_READ, *_durable(role), f"resia.*.{role}.>", f"resia-live.*.{role}"]


def _of_blobs(access: Access) -> list[str]:
    """To store blobs where the servers keep them; nobody but the admin can delete one."""
    return [f"$O.{BLOBS}.>"] if access.blobs == JETSTREAM else []


def _of_grant(grant: Grant) -> list[str]:
    schemas = [f"$KV.{SCHEMAS}.{namespace}" for namespace in grant.namespaces]
    return [*_READ, *_durable(grant.login), *grant.subjects, *schemas]


def _durable(name: str) -> list[str]:
    """To share the durable `name` of any run, and no other."""
    api = "$JS.API.CONSUMER"
    return [
        f"{api}.CREATE.*.{name}",
        f"{api}.CREATE.*.{name}.>",
        f"{api}.DURABLE.CREATE.*.{name}",
        f"{api}.MSG.NEXT.*.{name}",
        f"$JS.ACK.*.{name}.>",
    ]
