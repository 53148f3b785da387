"""A real pool on a file, on the kernel's ZFS or on zfs-fuse; the same tests for each interface that works there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from demo import zfs
from demo.directory import run_directory
from demo.postgresql import Installation, choose, within_reach
from manatee.storage.zfs.errors import Unusable
from manatee.storage.zfs.interface import choose as choose_interface
from manatee.storage.zfs.names import Names
from tests.storage.stage import Peer

POOL_SIZE = 1 << 30


@pytest.fixture(scope="session")
def pool(postgres_user: str | None) -> Iterator[tuple[str, Path]]:
    """The pool and a directory for mountpoints."""
    with run_directory(readable_by=postgres_user) as directory:
        try:
            opened = zfs.pool(directory, size=POOL_SIZE)
            name = opened.__enter__()
        except zfs.NoZfs as error:
            pytest.skip(f"no ZFS: {error}")
        try:
            yield name, directory
        finally:
            opened.__exit__(None, None, None)


@pytest.fixture(scope="session", params=["zfs", "libzfs_core"])
def interface(request: pytest.FixtureRequest, pool: tuple[str, Path]) -> str:
    """Each way to ZFS that works on this machine."""
    wanted: Any = request.param
    try:
        asyncio.run(choose_interface(wanted, Names(f"{pool[0]}/none"), structlog.get_logger()))
    except Unusable as error:
        pytest.skip(f"without {wanted}: {error}")
    return str(wanted)


@pytest.fixture(scope="session")
def any_postgresql(postgres_user: str | None, shared_directory: Path) -> Installation:
    return within_reach(choose(), postgres_user, shared_directory)


NewPeer = Callable[..., Peer]


@pytest.fixture
def new_peer(
    pool: tuple[str, Path], interface: str, postgres_user: str | None, any_postgresql: Installation
) -> Iterator[NewPeer]:
    """Makes peers, with such properties of their parents as are given; their datasets are destroyed at the end."""
    made: list[Peer] = []

    def make(*properties: str) -> Peer:
        made.append(Peer(*pool, interface, postgres_user, any_postgresql.bin_dir, properties))
        return made[-1]

    yield make
    for peer in made:
        peer.destroy()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """zfs-fuse waits for the disk at every step, and the virtual machine is emulated: what hangs is seen later here."""
    for item in items:
        if item.path.parent == Path(__file__).parent and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(600))
