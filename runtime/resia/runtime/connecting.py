"""Where a connection goes and what is wrong when it does not come about. Imports no client; that is `bus`'s."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from resia.events.errors import UsageError

_NOT_LET_IN = ("authorization violation", "authorization failed", "authentication")


class Target(NamedTuple):
    """Servers to try, without who asks; `tls` None: encrypt only where the address says so."""

    servers: tuple[str, ...]
    user: str
    password: str
    tls: ssl.SSLContext | None

    @property
    def address(self) -> str:
        """For messages: no password is in it."""
        return ",".join(bare(server) for server in self.servers)


def target_of(url: str, user: str, password: str, ca: str) -> Target:
    """`url` taken apart; a user in it counts where none is given. UsageError for what is no address or authority."""
    servers = []
    for each in url.split(","):
        if not each.startswith(("nats://", "tls://")):
            raise UsageError(f"'{each[:80]}' is not a server's address: write it as nats://HOST:PORT")
        in_url = urlsplit(each)
        if not user and in_url.password is not None:  # the client would send what is written, not what it stands for
            user, password = unquote(in_url.username or ""), unquote(in_url.password)
        servers.append(bare(each) if in_url.password is not None else each)
    return Target(tuple(servers), user, password, _trusting(ca) if ca else None)


def bare(url: str) -> str:
    """A server's address without who asks."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"


def _trusting(ca: str) -> ssl.SSLContext:
    if not Path(ca).is_file():
        raise UsageError(f"there is no certificate of an authority at {ca}: check 'ca' in the login file")
    try:
        return ssl.create_default_context(cafile=ca)
    except (OSError, ssl.SSLError) as cause:
        raise UsageError(f"{ca} is no certificate of an authority ({cause}): check 'ca' in the login file") from None


def refused(target: Target, said: Sequence[str]) -> str:
    """One sentence for a connection that did not come about: what, where, what to do.

    `said` is what came of each attempt: of several nodes one may be down while another says what is really wrong.
    """
    address = target.address
    if why := _with(said, *_NOT_LET_IN):
        who = f"user '{target.user}'" if target.user else "a connection without a user"
        return f"the log at {address} refuses {who} ({why}): check --nats, its user and its password"
    if _with(said, "certificate has expired", "certificate expired"):
        return f"the certificate of the log at {address} has expired: make new ones with resia cluster init --renew"
    if why := _with(said, "certificate"):
        return (
            f"the certificate of the log at {address} is not trusted ({why}): name who signed it, 'ca' in a login file"
        )
    return f"no event log answers at {address} ({said[-1]}): start the server, or check --nats and its user"


def lost(target: Target, said: Sequence[str]) -> str:
    """Why a connection that was there was given up: a password or a certificate that ended, or no server came back."""
    if _with(said, *_NOT_LET_IN, "certificate"):
        return refused(target, said)
    return (
        f"the log at {target.address} went away and did not come back: start its server, then go on with resia run"
        " --resume or resia worker start"
    )


def _with(said: Sequence[str], *telling: str) -> str:
    """The first of `said` that has one of these words in it."""
    return next((why for why in said if any(word in why.lower() for word in telling)), "")
