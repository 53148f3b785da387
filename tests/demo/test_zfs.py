"""ZFS on one machine: the demo on it, and that nothing of a pool outlives its owner, however that ends."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo import zfs
from demo.directory import run_directory
from demo.shard import LocalShard, ShardFailed
from tests.demo.conftest import OPTIONS, ROOT, ended, tells

HOLDER = """
import sys, time
from demo import zfs
from demo.directory import run_directory

with run_directory() as directory, zfs.pool(directory) as pool:
    (directory / "store").mkdir()
    zfs.run("zfs", "create", "-o", f"mountpoint={directory / 'store'}", f"{pool}/data")
    (directory / "store" / "file").write_text("kept in the pool")
    print(pool, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def needs_zfs() -> None:
    if missing := zfs.missing():
        pytest.skip(missing)


def pools() -> list[str]:
    """All of this machine; none where nothing answers."""
    try:
        return zfs.run("zpool", "list", "-H", "-o", "name").split()
    except zfs.ZfsFailed:
        return []


def mounted(place: str) -> bool:
    return place in Path("/proc/self/mounts").read_text()


@pytest.fixture
def holder(needs_zfs: None, temporary: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process that has a pool with a dataset in use, and the name of the pool."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        name = process.stdout.readline().strip()
        assert name in pools()
        assert mounted(name)
        yield process, name
    finally:
        process.kill()
        process.communicate()
        with run_directory():  # which clears what it has left
            pass


def test_ctrl_c_takes_the_pool_along(holder: tuple[subprocess.Popen[str], str], temporary: Path) -> None:
    process, name = holder
    process.send_signal(signal.SIGINT)
    process.wait(60)
    assert name not in pools()
    assert not mounted(name)
    assert list(temporary.iterdir()) == []


def test_what_a_killed_owner_has_left_goes_with_the_next_start(
    holder: tuple[subprocess.Popen[str], str], temporary: Path
) -> None:
    process, name = holder
    process.kill()
    process.wait(10)
    assert name in pools()
    with run_directory():
        assert name not in pools()
        assert not mounted(name)
    assert list(temporary.iterdir()) == []


def test_a_pool_that_is_in_use_is_left_alone(holder: tuple[subprocess.Popen[str], str]) -> None:
    _, name = holder
    with run_directory():
        assert name in pools()
        assert mounted(name)


async def test_without_root_it_is_said_in_one_sentence_and_nothing_starts(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(ShardFailed, match="ZFS needs root: it mounts file systems"):
        async with LocalShard(["127.15.2.2"], zookeeper=("127.15.2.1", 2181), storage="zfs"):
            pass
    assert list(temporary.iterdir()) == []


def test_without_zfs_it_is_said_what_to_install(needs_root: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zfs, "PATH", "/nonexistent")
    assert zfs.missing() == "ZFS is not installed: expected zpool and zfs, from Debian's zfs-fuse or zfsutils-linux"


@pytest.mark.slow
@pytest.mark.timeout(500)
async def test_the_demo_on_zfs_shows_what_was_received_and_leaves_nothing(needs_zfs: None, temporary: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "demo", "--storage", "zfs", *OPTIONS),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    status, said = await ended(process, 400)
    assert status == 0, said
    story = [
        "==> How the data came to the peers: each has a dataset of its own",
        "came first, and made the database",
        "$ zfs list -r -t all",
        "/peer1/manatee@",
        "==> Killing the primary",
        "$ manatee-adm rebuild -y",
        " bytes, only what has changed since a snapshot that both had",
        "/manatee@",
        "nothing is left running",
    ]
    tells(said, story)
    first = said[: said.index("$ zfs list")]
    assert first.count(" bytes, all of it") == 2
    (pool,) = {line.split("/")[0] for line in said.splitlines() if "/peer1/manatee@" in line}
    assert pool not in pools()
    assert not mounted(pool)
    assert list(temporary.iterdir()) == []
