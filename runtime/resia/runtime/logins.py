"""Login files: how one role reaches a log, in a file of its own. What `--nats` takes beside a plain address.

A file is the JSON of an `Access` with the passwords that its owner may have, one role's for a worker, all of them for
who starts runs. A relative `ca` is seen from the file's folder. The files of a cluster are made by `cluster.secrets`.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from resia.events.errors import UsageError

from .connecting import bare
from .permissions import JETSTREAM, Access


def access_to(nats: str) -> Access:
    """What `nats` names, an address or a login file. UsageError for neither."""
    if "://" in nats:
        return Access(nats)
    path = Path(nats)
    try:
        access = msgspec.json.decode(path.read_bytes(), type=Access)
    except FileNotFoundError:
        raise UsageError(
            f"'{nats[:80]}' is not a server's address, and there is no login file of that name: write nats://HOST:PORT"
            " or the path of the file"
        ) from None
    except (OSError, msgspec.MsgspecError) as cause:
        raise UsageError(f"the login file {nats} cannot be read ({cause}): take one of resia cluster init") from None
    if not access.url or access.replicas < 1:
        raise UsageError(f"the login file {nats} has no url, or replicas below 1: take one of resia cluster init")
    check_blobs(access.blobs)
    ca = str(path.parent.resolve() / access.ca) if access.ca else ""
    return msgspec.structs.replace(access, ca=ca)


def check_blobs(blobs: str) -> None:
    """UsageError for what is no place of blobs; whether it can be reached is seen when it is used."""
    named = blobs.startswith("/") or blobs.partition("://")[2].strip("/")
    if blobs and blobs != JETSTREAM and not named:
        raise UsageError(
            f"blobs are in '{blobs[:80]}', which is no place for them: name an fsspec URL such as s3://bucket/folder,"
            f" or '{JETSTREAM}' for the servers' own object store"
        )


def address(nats: str) -> str:
    """Where a log is, without who asks."""
    return ",".join(bare(url) for url in access_to(nats).url.split(","))
