"""What a cluster must keep to itself, made in a folder outside of version control and nowhere else.

ca.pem, ca.key              who signs; the key may be moved away once the nodes have their certificates
nats-1.pem, nats-1.key ...  a certificate a node
users.conf                  every login with its password and what it may say: for the nodes
logins/ROLE.json            how a role reaches nodes on this machine, `compose/ROLE.json` those of compose.yaml
"""

from __future__ import annotations

import json
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec

from resia.events.errors import UsageError
from resia.events.subjects import ROLES
from resia.runtime.permissions import READER, Access, users
from resia.runtime.server import write_private

NODES = ("nats-1", "nats-2", "nats-3")
ALL = "all"  # login file of who starts runs together with their workers
DAYS = 825
_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


def make(
    folder: Path, *, renew: bool = False, hosts: Sequence[str] = (), days: int = DAYS, blobs: str | None = None
) -> bool:
    """Secrets of a cluster in `folder`; False when they are there already. `renew`: new certificates, old passwords.

    `hosts` are further names or IPv4 addresses that the nodes answer under. `blobs`: where the blobs are, as in
    Access; None leaves that as it is. UsageError without openssl, or when the folder cannot be written.
    """
    there = (folder / "users.conf").exists()
    if there and not renew and blobs in (None, blobs_of(folder)):
        return False
    try:
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        if renew or not there:
            _certify(folder, hosts, days)
    except OSError as cause:
        raise UsageError(f"the folder {folder} cannot be used ({cause.strerror}): name another with --folder") from None
    passwords = _passwords(folder)
    access = Access("", passwords, blobs=blobs_of(folder) if blobs is None else blobs)
    write_private(folder / "passwords.json", json.dumps(passwords))
    url = ",".join(f"tls://{node}:4222" for node in NODES)
    write_logins(folder / "compose", url, "ca.pem", passwords, access.blobs)
    # Last: who is killed before does all of it again.
    write_private(folder / "users.conf", f"authorization {{\n  users: {json.dumps(users(access), indent=2)}\n}}\n")
    return True


def passwords_of(folder: Path) -> dict[str, str]:
    """Passwords by login; UsageError when `folder` has no secrets."""
    path = folder / "passwords.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, str])
    except (OSError, msgspec.MsgspecError):
        raise UsageError(f"there are no secrets of a cluster in {folder}: make them with resia cluster init") from None


def blobs_of(folder: Path) -> str:
    """Where the login files say that the blobs are; empty where there are none yet."""
    try:
        return msgspec.json.decode((folder / "compose" / "admin.json").read_bytes(), type=Access).blobs
    except (OSError, msgspec.MsgspecError):
        return ""


def write_logins(folder: Path, url: str, ca: str, passwords: dict[str, str], blobs: str = "") -> None:
    """A login file a role: a worker has its own password, `admin` a reader's beside, `all` every one."""
    folder.mkdir(parents=True, exist_ok=True)
    owners = {login: [login] for login in passwords} | {"admin": ["admin", READER], ALL: list(passwords)}
    for owner, logins in owners.items():
        access = Access(url, {login: passwords[login] for login in logins}, ca, len(NODES), blobs)
        write_private(folder / f"{owner}.json", msgspec.json.encode(access).decode())


def _passwords(folder: Path) -> dict[str, str]:
    """Those that are there, so that new certificates cut nobody off."""
    if (folder / "passwords.json").exists():
        return passwords_of(folder)
    return {login: secrets.token_hex(16) for login in ("admin", READER, *ROLES)}


def _certify(folder: Path, hosts: Sequence[str], days: int) -> None:
    """An authority, and a certificate a node signed by it."""
    with tempfile.TemporaryDirectory() as made:
        place = Path(made)
        _openssl(place, "req", "-x509", *_KEY, "-keyout", "ca.key", "-out", "ca.pem", "-days", str(DAYS),
                 "-subj", "/CN=resia cluster")  # fmt: skip
        for node in NODES:
            names = [f"IP:{host}" if host.replace(".", "").isdigit() else f"DNS:{host}" for host in hosts]
            names = [f"DNS:{node}", "DNS:localhost", "IP:127.0.0.1", *names]
            (place / "names").write_text(f"subjectAltName={','.join(names)}\nextendedKeyUsage=serverAuth,clientAuth\n")
            _openssl(place, "req", "-new", *_KEY, "-keyout", f"{node}.key", "-out", "request", "-subj", f"/CN={node}")
            _openssl(place, "x509", "-req", "-in", "request", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
                     "-days", str(days), "-extfile", "names", "-out", f"{node}.pem")  # fmt: skip
        for name in ("ca", *NODES):
            for suffix in ("key", "pem"):
                write_private(folder / f"{name}.{suffix}", (place / f"{name}.{suffix}").read_text())
    (folder / "ca.pem").chmod(0o644)


def _openssl(place: Path, *arguments: str) -> None:
    if shutil.which("openssl") is None:
        raise UsageError("certificates are made with openssl, which is not on PATH: install it")
    done = subprocess.run(["openssl", *arguments], cwd=place, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UsageError(f"openssl {arguments[0]} fails: {(done.stderr.strip().splitlines() or ['no word'])[-1]}")
