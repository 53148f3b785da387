"""What a restore makes of a backup server's answers: success is only what was said to be, counted and digested."""

from __future__ import annotations

import asyncio
import hashlib
import io
import tarfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
import structlog
from aiohttp import web

from demo.postgresql import Installation
from manatee.cluster import Peer as Identity
from manatee.storage import Storage, StorageError, datadir
from sitter.bootstrap import Restore, RestoreFailed
from tests.backup.attempt import Attempt
from tests.backup.sandbox import Peer, Sandbox, new_address

IDENTIFIER = 7_000_000_000_000_000_001


def archive(without: str = "", extra: tarfile.TarInfo | None = None) -> bytes:
    """What looks like a base backup from the outside."""
    files = {
        "PG_VERSION": b"15\n",
        "global/pg_control": IDENTIFIER.to_bytes(8, "little") + bytes(8184),
        "backup_label": b"START WAL LOCATION: 0/2000028\n",
        "postmaster.pid": b"4711\n",
        "standby.signal": b"",
    }
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as tar:
        folder = tarfile.TarInfo("global")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, content in files.items():
            if name != without:
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        if extra is not None:
            tar.addfile(extra)
    return written.getvalue()


@dataclass
class Source:
    """A backup server that answers as it is told; the stream itself always ends as one that has finished."""

    body: bytes = field(default_factory=archive)
    headers: dict[str, str] = field(default_factory=dict)
    outcome: dict[str, Any] = field(default_factory=dict)
    refusals: list[web.Response] = field(default_factory=list)
    asked: int = 0

    async def backup(self, request: web.Request) -> web.StreamResponse:
        self.asked += 1
        if self.refusals:
            return self.refusals.pop(0)
        response = web.StreamResponse(
            headers={
                "Manatee-Backup": "1",
                "Manatee-Driver": "basebackup",
                "Manatee-Snapshot": "1700000000000",
                "Manatee-System-Identifier": str(IDENTIFIER),
                "Manatee-Postgres-Version": "15",
                "Manatee-Size-Estimate": str(len(self.body)),
                **self.headers,
            }
        )
        await response.prepare(request)
        await response.write(self.body)
        return response

    async def status(self, request: web.Request) -> web.Response:
        said = {"state": "done", "bytes": len(self.body), "sha256": hashlib.sha256(self.body).hexdigest()}
        return web.json_response({**said, **self.outcome})


@asynccontextmanager
async def serving(source: Source) -> AsyncIterator[Identity]:
    application = web.Application()
    application.router.add_get("/v2/backup", source.backup)
    application.router.add_get("/v2/backup/{id}", source.status)
    runner = web.AppRunner(application)
    await runner.setup()
    ip = new_address()
    await web.TCPSite(runner, ip, 12345).start()
    try:
        yield Identity(id=f"{ip}:5432:12345", ip=ip, zone_id="z", pg_url="tcp://x", backup_url=f"http://{ip}:12345")
    finally:
        await runner.cleanup()


@pytest.fixture
def peer(sandbox: Sandbox, any_postgresql: Installation) -> Peer:
    return sandbox.peer(any_postgresql)


class Unwilling:
    """A storage of which what is left of a restore cannot be tidied up."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()

    async def clear_leftovers(self) -> int:
        return 0

    async def related(self) -> frozenset[str]:
        return frozenset()

    async def wanted(self) -> dict[str, str]:
        again = self.asked.is_set()
        self.asked.set()
        try:
            await asyncio.Event().wait()
        finally:
            if not again:
                raise StorageError("cannot unmount: device is busy")
        return {}


async def test_a_cancelled_restore_ends_whatever_fails_on_the_way_out(peer: Peer) -> None:
    async def nothing() -> None:
        pass

    storage = Unwilling()
    restore = Restore(peer.settings, cast(Storage, storage), structlog.get_logger())
    identity = peer.settings.identity
    attempt = restore.run([identity], major_version="15", system_identifier=None, before_adopt=nothing)
    running = asyncio.create_task(attempt)
    await storage.asked.wait()
    running.cancel()
    ended, _ = await asyncio.wait([running], timeout=5)
    running.cancel()
    assert ended
    with pytest.raises(asyncio.CancelledError):
        await running


async def run(peer: Peer, source: Source, **options: Any) -> Attempt:
    attempt = Attempt(peer)
    async with serving(source) as identity:
        await attempt.run(identity, **{"major_version": "15", "attempts": 1, **options})
    return attempt


async def test_what_the_old_server_left_is_not_part_of_the_new_database(peer: Peer) -> None:
    await run(peer, Source())
    mark = datadir.RESTORED  # until it is made this peer's own
    assert {path.name for path in peer.data.iterdir()} == {"PG_VERSION", "global", "backup_label", mark}
    assert peer.names == {"data"}


async def test_a_driver_whose_format_checks_itself_needs_no_digest(peer: Peer) -> None:
    await run(peer, Source(outcome={"sha256": None}))
    assert peer.names == {"data"}


@pytest.mark.parametrize(
    ("outcome", "said"),
    [
        ({"state": "failed", "error": "pg_basebackup died"}, "broke off; the sender says: pg_basebackup died"),
        ({"state": "running"}, "broke off; the sender says: running"),
        ({"bytes": 1 << 30}, r"was cut: 1073741824 bytes were sent and \d+ came"),
        ({"sha256": "0" * 64}, "damaged on the way"),
        ({"bytes": "what"}, "nobody says that it was complete: the sender does not say"),
    ],
)
async def test_a_stream_that_ended_well_is_nothing_unless_the_sender_says_so(
    peer: Peer, outcome: dict[str, Any], said: str
) -> None:
    with pytest.raises(RestoreFailed, match=said):
        await run(peer, Source(outcome=outcome))
    assert peer.names == set()


def _member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (_member("../outside"), "would lie outside"),
        (_member("/tmp/outside"), "would lie outside"),
        (_member("global/../../outside"), "would lie outside"),
        (_member("pg_wal", tarfile.SYMTYPE, "/tmp"), "is a link or a device"),
        (_member("passwd", tarfile.LNKTYPE, "/etc/passwd"), "is a link or a device"),
        (_member("null", tarfile.CHRTYPE), "is a link or a device"),
        (_member("PG_VERSION"), "File exists"),
    ],
)
async def test_nothing_is_written_outside_or_twice(peer: Peer, extra: tarfile.TarInfo, said: str) -> None:
    with pytest.raises(RestoreFailed, match=said):
        await run(peer, Source(archive(extra=extra)))
    assert peer.names == set()
    assert not (peer.root / "outside").exists()
    assert not (peer.root / "db" / "outside").exists()


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "the stream ends between two files"),
        (b"<html>this is the wrong port</html>", "the stream ends between two files"),
        (b"<html>" * 200, "not the tar archive"),
        (archive()[: 512 * 3] + b"garbage!" * 64 + archive()[512 * 4 :], "not the tar archive"),
        (archive()[: 512 * 3], "the stream ends between two files"),
        (archive()[:5000], 'ends in the middle of "global/pg_control"'),
        (archive(without="global/pg_control"), "no complete database"),
        (archive(without="backup_label"), "no backup_label"),
    ],
)
async def test_a_stream_that_is_no_database_is_refused_though_the_sender_is_content(
    peer: Peer, body: bytes, said: str
) -> None:
    with pytest.raises(RestoreFailed, match=said):
        await run(peer, Source(body))
    assert peer.names == set()


async def test_what_is_inside_counts_not_what_the_headers_say(peer: Peer) -> None:
    with pytest.raises(RestoreFailed, match=f"holds the database {IDENTIFIER}, this shard's is 42"):
        await run(peer, Source(headers={"Manatee-System-Identifier": "42"}), system_identifier="42")
    assert peer.names == set()


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ({"Manatee-Driver": "zfs"}, "of the zfs driver, the storage here is basebackup"),
        ({"Manatee-Size-Estimate": str(1 << 60)}, "needs about 1099511627776 MiB"),
        ({"Manatee-Size-Estimate": "much"}, "does not say what it sends"),
    ],
)
async def test_an_offer_that_will_not_do_is_refused_before_a_byte(
    peer: Peer, headers: dict[str, str], said: str
) -> None:
    with pytest.raises(RestoreFailed, match=said):
        await run(peer, Source(headers=headers))
    assert peer.names == set()


async def test_a_busy_source_is_waited_for_as_long_as_it_asks_and_does_not_use_up_attempts(peer: Peer) -> None:
    busy = [
        web.json_response({"error": "all streams are taken"}, status=429, headers={"Retry-After": "1"})
        for _ in range(2)
    ]
    source = Source(refusals=busy)
    attempt = await run(peer, source)
    assert source.asked == 3
    assert attempt.restore.progress.attempt == 3
    assert attempt.seconds >= 2
    assert attempt.errors == [f"{attempt.restore.progress.source} is busy: all streams are taken"]


async def test_an_old_peer_without_this_protocol_is_said_to_be_one(peer: Peer) -> None:
    with pytest.raises(RestoreFailed, match="no version 2 of the protocol"):
        await run(peer, Source(refusals=[web.Response(status=404)]))


async def test_no_source_at_all_is_a_failure_at_once(peer: Peer) -> None:
    with pytest.raises(RestoreFailed, match="no peer to restore from"):
        await Attempt(peer).run()
