"""What an unprivileged user may do with the permissions that docs/storage.md lists, and no others."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from demo import zfs
from tests.storage.conftest import NewPeer

_REPOSITORY = Path(__file__).parents[2]
_SERVES = """
import asyncio, os, sys
from manatee.config import load
from manatee.storage import open_storage

async def main():
    os.environ["HOME"] = "/"
    storage = open_storage(load(sys.argv[1]))
    await storage.release_stale()
    base = (await storage.take_snapshot()).name
    async with storage.send({"peer": "10.0.0.1:5432:12345", "resumable": "yes"}) as sending:
        os.set_blocking(sending.fd, True)
        while os.read(sending.fd, 1 << 20):
            pass
        await sending.finished()
    await storage.drop_snapshot(base)
    assert [each.shared_with for each in await storage.snapshots()] == ["10.0.0.1:5432:12345"]

asyncio.run(main())
"""


def documented(user: str) -> list[str]:
    """The permissions of the backup server and the snapshotter, as the manual has them."""
    text = (_REPOSITORY / "docs" / "storage.md").read_text()
    found = re.search(r"zfs allow -u manatee-backup (\S+) tank/pg1", text)
    assert found is not None
    return ["-u", user, found[1]]


async def test_a_backup_server_that_is_not_root_takes_sends_and_drops_snapshots(
    new_peer: NewPeer, postgres_user: str | None
) -> None:
    if postgres_user is None:
        pytest.skip("needs root and PostgreSQL's user")
    peer = await new_peer().fill()
    try:
        zfs.run("zfs", "allow", *documented(postgres_user), peer.parent)
    except zfs.ZfsFailed as error:
        pytest.skip(f"this ZFS (zfs-fuse?) delegates nothing: {error}; make test-zfs runs it on one that does")
    done = subprocess.run(
        [sys.executable, "-c", _SERVES, str(peer.path)],
        cwd=_REPOSITORY,
        env={**os.environ, "PATH": zfs.PATH},
        user=postgres_user,
        extra_groups=[],
        timeout=600,
        check=False,
        capture_output=True,
        text=True,
    )
    if "zfs-fuse" in zfs.kind() and done.returncode:
        pytest.skip("zfs-fuse lets root alone reach it: make test-zfs runs this on the kernel's")
    assert done.returncode == 0, done.stderr
    assert peer.holds() == 0
