"""The backup server: who may ask, how many at once, and that nothing of it outlives a reason to."""

from __future__ import annotations

import asyncio
import hashlib
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import aiohttp
import psutil
import pytest

from demo.postgresql import Installation
from manatee.config import EXIT_BAD_CONFIGURATION
from manatee.lsn import Lsn
from manatee.wal import digest
from tests.backup.sandbox import TOKEN, Peer, Sandbox, eventually, until

BEARER = {"Authorization": f"Bearer {TOKEN}"}


async def ask(peer: Peer, path: str, headers: dict[str, str] | None = None) -> tuple[int, dict[str, str], str]:
    """Status, headers and body of an answer that is short."""
    async with aiohttp.ClientSession() as session:
        url = f"{peer.settings.identity.backup_url}{path}"
        async with session.get(url, headers=BEARER if headers is None else headers) as response:
            return response.status, dict(response.headers), await response.text()


def open_stream(peer: Peer, read: int = 1000) -> socket.socket:
    """A receiver that asked for a snapshot, took its first bytes, and now takes none."""
    stream = socket.create_connection((peer.ip, 12345))
    stream.sendall(f"GET /v2/backup HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode())
    received = b""
    while len(received) < read:
        chunk = stream.recv(1000)
        assert chunk, received
        received += chunk
    return stream


async def test_the_headers_say_what_comes_and_the_status_what_came(standing: Peer) -> None:
    hashed, count = hashlib.sha256(), 0
    async with (
        aiohttp.ClientSession(headers=BEARER) as session,
        session.get(f"{standing.settings.identity.backup_url}/v2/backup") as response,
    ):
        headers = response.headers
        async for chunk in response.content.iter_any():
            hashed.update(chunk)
            count += len(chunk)
        _, _, said = await ask(standing, f"/v2/backup/{headers['Manatee-Backup']}")
    assert headers["Manatee-Driver"] == "basebackup"
    assert re.fullmatch(r"\d{13}", headers["Manatee-Snapshot"])
    assert headers["Manatee-System-Identifier"] == str(
        standing.sql("SELECT system_identifier FROM pg_control_system()")
    )
    assert headers["Manatee-Postgres-Version"] == str(standing.postgresql.major)
    assert 0.9 < count / int(headers["Manatee-Size-Estimate"]) < 1.1
    assert '"state": "done"' in said
    assert f'"bytes": {count}' in said
    assert hashed.hexdigest() in said


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": f"Bearer {TOKEN}x"},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": TOKEN},
        {"Authorization": "Bearer "},
        {"Authorization": "Bearer \u00fc"},
    ],
)
async def test_without_the_token_nothing_is_said(standing: Peer, headers: dict[str, str]) -> None:
    for path in ("/v2/backup", "/v2/backup/1", "/v2/snapshots", "/v2/wal?timeline=1&from=0/0&to=0/1", "/nothing"):
        status, _, body = await ask(standing, path, headers)
        assert (status, body) == (401, '{"error": "wrong or missing token"}')
    for path in ("/ping", "/metrics"):
        assert (await ask(standing, path, headers))[0] == 200
    assert TOKEN not in standing.server_log()
    assert not standing.senders()


async def test_the_token_can_be_changed_while_it_runs(primary: Peer) -> None:
    (primary.root / "token").write_text("new")
    assert (await ask(primary, "/v2/snapshots"))[0] == 401
    assert (await ask(primary, "/v2/snapshots", {"Authorization": "Bearer new"}))[0] == 200
    (primary.root / "token").write_text("")
    assert (await ask(primary, "/v2/snapshots", {"Authorization": "Bearer "}))[0] == 503


async def test_one_stream_too_many_is_asked_to_come_again(sandbox: Sandbox, any_postgresql: Installation) -> None:
    primary = sandbox.peer(any_postgresql, max_streams=2).initialize().serve()
    streams = [await asyncio.to_thread(open_stream, primary) for _ in range(2)]
    status, headers, _ = await ask(primary, "/v2/backup")
    assert status == 429
    assert int(headers["Retry-After"]) > 0
    assert await asyncio.to_thread(primary.streams) == 2
    streams.pop().close()
    await eventually(lambda: primary.streams() == 1)
    streams.append(await asyncio.to_thread(open_stream, primary))
    for stream in streams:
        stream.close()


def test_a_sender_whose_receiver_has_gone_stops_at_once(standing: Peer) -> None:
    stream = open_stream(standing)
    assert len(standing.senders()) == 1
    stream.close()
    until(lambda: not standing.senders() and standing.streams() == 0, within=2.0)
    until(lambda: standing.sql("SELECT count(*) FROM pg_stat_replication") == 0)
    assert standing.sql("SELECT count(*) FROM pg_replication_slots") == 0


def test_a_sender_whose_receiver_takes_nothing_is_ended(sandbox: Sandbox, any_postgresql: Installation) -> None:
    primary = sandbox.peer(any_postgresql, idle_timeout=1.0).initialize().serve()
    with open_stream(primary):
        assert primary.streams() == 1
        until(lambda: not primary.senders() and primary.streams() == 0, within=5.0)
    assert "the receiver took no byte for 1 s" in primary.server_log()


def test_a_sender_that_sends_nothing_is_ended(sandbox: Sandbox, any_postgresql: Installation) -> None:
    primary = sandbox.peer(any_postgresql, idle_timeout=1.0).initialize().serve()
    with open_stream(primary) as stream:
        (sender,) = primary.senders()
        sender.suspend()
        stream.settimeout(10)
        try:
            while stream.recv(1 << 20):
                pass
        except ConnectionResetError:
            pass
    assert "the sender gave no byte for 1 s" in primary.server_log()
    assert not primary.senders()


@pytest.mark.parametrize("streaming", [False, True])
def test_told_to_stop_it_stops_within_two_seconds(primary: Peer, streaming: bool) -> None:
    stream = open_stream(primary) if streaming else None
    assert primary.server is not None
    began = time.monotonic()
    primary.server.terminate()
    assert primary.server.wait(10) == 0
    assert time.monotonic() - began < 2.0
    assert not primary.senders()
    if stream is not None:
        stream.close()


def test_killed_it_leaves_no_process(primary: Peer) -> None:
    with open_stream(primary):
        assert len(primary.senders()) == 1
        assert primary.server is not None
        primary.server.kill()
        primary.server.wait()
        until(lambda: not primary.senders(), within=2.0)


@pytest.mark.parametrize("gone", ["receiver", "server"])
def test_a_sender_that_is_silent_ends_with_its_receiver_and_with_its_server(primary: Peer, gone: str) -> None:
    with primary.checkpointer_stopped():
        stream = open_stream(primary, read=100)
        (sender,) = until(primary.senders)
        if gone == "receiver":
            stream.close()
        else:
            assert primary.server is not None
            primary.server.kill()
        until(lambda: not sender.is_running() or sender.status() == psutil.STATUS_ZOMBIE, within=2.0)
        stream.close()


async def test_pg_basebackup_runs_as_postgresql_does_and_shows_no_secret(standing: Peer, sandbox: Sandbox) -> None:
    with await asyncio.to_thread(open_stream, standing):
        (sender,) = standing.senders()
        assert sandbox.user in (None, sender.username())
        shown = " ".join([*sender.cmdline(), *map("=".join, sender.environ().items())])
        assert TOKEN not in shown


async def test_without_a_database_or_a_server_it_says_why(sandbox: Sandbox, any_postgresql: Installation) -> None:
    peer = sandbox.peer(any_postgresql).serve()
    status, _, body = await ask(peer, "/v2/backup")
    assert (status, "there is no database in" in body) == (503, True)
    peer.initialize()
    peer.stop()
    for path in ("/v2/backup", "/v2/wal?timeline=1&from=0/0&to=0/1"):
        status, _, body = await ask(peer, path)
        assert (status, "PostgreSQL does not accept connections here" in body) == (503, True)


async def test_data_outside_the_data_directory_are_refused(sandbox: Sandbox, any_postgresql: Installation) -> None:
    peer = sandbox.peer(any_postgresql).initialize().serve()
    outside = peer.root / "outside"
    outside.mkdir()
    sandbox.give(outside)
    peer.sql(f"CREATE TABLESPACE elsewhere LOCATION '{outside}'")
    status, _, body = await ask(peer, "/v2/backup")
    assert (status, f"the tablespace in {outside} lies outside" in body) == (503, True)
    peer.sql("DROP TABLESPACE elsewhere")
    peer.stop()
    (peer.data / "pg_wal").rename(outside / "pg_wal")
    (peer.data / "pg_wal").symlink_to(outside / "pg_wal")
    peer.start()
    status, _, body = await ask(peer, "/v2/backup")
    assert (status, "it must lie inside the data directory" in body) == (503, True)


async def test_a_digest_of_the_log_is_given_for_what_is_held(standing: Peer) -> None:
    end = standing.flushed()
    start = Lsn(end - 100_000)
    status, _, body = await ask(standing, f"/v2/wal?timeline=1&from={start}&to={end}")
    assert (status, body) == (200, f'{{"digest": "{digest(standing.data, 1, start, end)}"}}')
    for query, said in [
        (f"timeline=2&from={start}&to={end}", "timeline 2 is not known here"),
        (f"timeline=1&from={start}&to={Lsn(end + (1 << 20))}", "the log ends at"),
    ]:
        status, _, body = await ask(standing, f"/v2/wal?{query}")
        assert (status, said in body) == (404, True)
    for query in (
        "timeline=1&from=0/0",
        "timeline=x&from=0/0&to=0/1",
        "timeline=1&from=1/0&to=0/1",
        "timeline=0&from=0/0&to=0/0",
    ):
        assert (await ask(standing, f"/v2/wal?{query}"))[0] == 400


async def test_a_driver_without_snapshots_has_none(standing: Peer) -> None:
    _, _, body = await ask(standing, "/v2/snapshots")
    assert body == '{"driver": "basebackup", "snapshots": []}'


def run_to_the_end(program: str, settings: Path) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", program, "-c", settings], capture_output=True, text=True, timeout=20, check=False
    )
    return done.returncode, done.stderr


def test_what_keeps_it_from_starting_is_one_line(
    sandbox: Sandbox, any_postgresql: Installation, tmp_path: Path
) -> None:
    peer = sandbox.peer(any_postgresql).serve()
    settings = peer.root / "manatee.toml"
    status, said = run_to_the_end("backupserver.main", settings)
    assert (status, "address already in use" in said, "Traceback" in said) == (1, True, False)
    (peer.root / "token").unlink()
    status, said = run_to_the_end("backupserver.main", settings)
    assert (status, "No such file" in said, "Traceback" in said) == (1, True, False)
    status, said = run_to_the_end("backupserver.main", tmp_path / "none.toml")
    assert (status, said.count("\n")) == (EXIT_BAD_CONFIGURATION, 1)


def test_the_snapshotter_says_once_that_there_is_nothing_to_do_and_stays(
    sandbox: Sandbox, any_postgresql: Installation
) -> None:
    peer = sandbox.peer(any_postgresql)
    log = peer.root / "snapshotter.log"
    with log.open("wb") as said:
        command = [sys.executable, "-m", "backupserver.snapshotter", "-c", str(peer.root / "manatee.toml")]
        snapshotter = subprocess.Popen(command, stderr=said)
    try:
        until(lambda: "keeps no snapshots" in log.read_text())
        assert snapshotter.poll() is None
        snapshotter.send_signal(signal.SIGTERM)
        assert snapshotter.wait(2) == 0
        assert log.read_text().count("\n") == 1
    finally:
        snapshotter.kill()
        snapshotter.wait()
