"""Peers reach each other with a password, encrypted where PostgreSQL was built for it; and what is secret is nowhere to
be read."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from demo.directory import run_directory
from demo.postgresql import Installation, unprivileged_user
from demo.shard import LocalPeer, LocalShard
from tests.shard.conftest import (
    acknowledges,
    adm,
    ask,
    complete,
    next_generation,
    primary_of,
    shard_of,
    sync_of,
    writing,
)

HBA = """\
local   all          all                       peer map=manatee
local   replication  all                       peer map=manatee
{peers}
host    replication  all          all          reject
host    all          replication  all          reject
# The clients of this test.
host    all          postgres     127.0.0.0/8  trust
"""
ENCRYPTED = """\
hostssl replication  replication  127.0.0.0/8  scram-sha-256 clientcert=verify-ca
hostssl postgres     replication  127.0.0.0/8  scram-sha-256 clientcert=verify-ca"""
PLAIN = """\
host    replication  replication  127.0.0.0/8  scram-sha-256
host    postgres     replication  127.0.0.0/8  scram-sha-256"""


@pytest.fixture
def encrypted(postgresql: Installation) -> bool:
    """Whether this PostgreSQL was built with TLS; PyPI's was not."""
    asked: list[str | Path] = [
        postgresql.bin_dir / "postgres",
        "-D",
        "/tmp",
        "-c",
        "config_file=/dev/null",
        "-C",
        "ssl_library",
    ]
    said = subprocess.run(asked, user=unprivileged_user(), capture_output=True, text=True, check=True, cwd="/")
    return bool(said.stdout.strip())


@pytest.fixture
def outside(encrypted: bool) -> Iterator[Path]:
    """A directory with what an operator keeps beside the settings: it is looked through for secrets by nobody."""
    with run_directory(readable_by=unprivileged_user()) as directory:
        (directory / "hba.conf").write_text(HBA.format(peers=ENCRYPTED if encrypted else PLAIN))
        (directory / "password").touch(mode=0o600)
        (directory / "password").write_text(secrets.token_urlsafe(24) + "\n")
        _certificates(directory)
        yield directory


def _certificates(directory: Path) -> None:
    """An authority, and one certificate by it for all the peers."""

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], check=True, capture_output=True, cwd=directory)

    new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    openssl("req", "-x509", *new, "-keyout", "ca.key", "-out", "ca.crt", "-days", "2", "-subj", "/CN=authority")
    openssl("req", *new, "-keyout", "peer.key", "-out", "peer.csr", "-subj", "/CN=replication")
    sign = ("-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2")
    openssl("x509", "-req", "-in", "peer.csr", *sign, "-out", "peer.crt")


@asynccontextmanager
async def guarded(outside: Path, postgresql: Installation, *, encrypted: bool) -> AsyncIterator[LocalShard]:
    overrides: dict[str, dict[str, Any]] = {
        "postgres": {
            "hba_file": outside / "hba.conf",
            "replication_user": "replication",
            "replication_password_file": outside / "password",
            "max_slot_wal_keep_size": 256,
        },
        "log": {"level": "debug"},
    }
    if encrypted:
        names = {"ca_file": "ca.crt", "cert_file": "peer.crt", "key_file": "peer.key"}
        overrides["tls"] = {name: outside / file for name, file in names.items()}
    async with shard_of(3, postgresql, overrides=overrides) as shard:
        yield shard


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_peers_prove_who_they_are_and_nothing_secret_can_be_read(
    outside: Path, postgresql: Installation, encrypted: bool
) -> None:
    """Set up, a changed password, a new sync, a return: all of it by the role, by SCRAM."""
    first = (outside / "password").read_text().strip()
    async with guarded(outside, postgresql, encrypted=encrypted) as shard, writing(shard) as writer:
        before = await complete(shard)
        for peer in shard.peers:
            await _until(lambda peer=peer: _settled(peer, 2))
        for peer in (primary_of(shard, before), sync_of(shard, before)):
            assert await _encrypted(peer) == {encrypted}
        assert "ok" in await _adm(shard, "-c", str(shard.peers[0].settings_file), "show", "-v")

        second = secrets.token_urlsafe(24)
        (outside / "password").write_text(second + "\n")
        for peer in shard.peers:
            _reload(shard, peer)
        for peer in shard.peers:
            await _until(lambda peer=peer: _knows(peer, second))

        await shard.kill_peer(sync_of(shard, before))
        after = await next_generation(shard, before)
        await acknowledges(writer)
        await shard.start_peer(sync_of(shard, before))
        await complete(shard)
        assert await _encrypted(primary_of(shard, after)) == {encrypted}
        await _search(shard, (first.encode(), second.encode()))


def _reload(shard: LocalShard, peer: LocalPeer) -> None:
    sitter = shard.supervisor.status(peer.programs[0]).pid
    assert sitter is not None
    os.kill(sitter, signal.SIGHUP)


async def _settled(peer: LocalPeer, slots: int) -> bool:
    """It keeps a slot for each of the others, and finds nothing amiss."""
    _, state = await ask(peer, "/state")
    told = state["settings"]
    amiss = [
        told[key] for key in ("wrong", "pendingRestart", "broken", "overridden", "refused", "problem") if told[key]
    ]
    return len(told["slots"]) == slots and not amiss


async def _encrypted(peer: LocalPeer) -> set[bool]:
    """Of each connection over which it sends WAL."""
    await _until(lambda: _downstream(peer))
    _, state = await ask(peer, "/state")
    return set(state["settings"]["encrypted"].values())


async def _downstream(peer: LocalPeer) -> bool:
    _, state = await ask(peer, "/state")
    return bool(state["settings"]["encrypted"])


async def _knows(peer: LocalPeer, password: str) -> bool:
    return password in (peer.settings.sitter.state_dir / "replication.pgpass").read_text()


async def _search(shard: LocalShard, hidden: tuple[bytes, ...]) -> None:
    """Neither in a file but the password files, nor in a process' title or environment, nor in what is answered."""
    shutil.copytree(shard.zookeeper.directory, shard.directory / "zookeeper-copy", dirs_exist_ok=True)
    found = []
    for path in shard.directory.rglob("*"):
        try:
            content = path.read_bytes() if path.is_file() else b""
        except OSError:
            continue  # PostgreSQL goes on working
        if any(secret in content for secret in hidden):
            found.append(path.name)
    assert set(found) == {"replication.pgpass"}
    titles = []
    for process in psutil.process_iter():
        try:
            titles.append(repr((process.cmdline(), process.environ())).encode())
        except psutil.Error:
            continue
    answers = [str(await ask(peer, path)).encode() for peer in shard.peers for path in ("/state", "/metrics")]
    said = [(await _adm(shard, *words)).encode() for words in (("show", "-v"), ("zk-state",), ("zk-active",))]
    assert len(titles) > 10
    assert [text for text in (*titles, *answers, *said) if any(secret in text for secret in hidden)] == []


async def _adm(shard: LocalShard, *words: str) -> str:
    return await adm("-z", shard.zookeeper.servers, "-s", shard.name, *words)


async def _until(holds: Any, *, timeout: float = 60) -> None:
    async with asyncio.timeout(timeout):
        while not await holds():
            await asyncio.sleep(0.1)
