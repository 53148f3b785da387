from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.postgresql import Installation, choose, within_reach
from tests.backup.sandbox import Peer, Sandbox, opened, until


@pytest.fixture(scope="session")
def any_postgresql(postgres_user: str | None, shared_directory: Path) -> Installation:
    """One PostgreSQL, for what does not depend on the version."""
    return within_reach(choose(), postgres_user, shared_directory)


@pytest.fixture
def sandbox(postgres_user: str | None, shared_directory: Path) -> Iterator[Sandbox]:
    with opened(shared_directory, postgres_user) as sandbox:
        yield sandbox


@pytest.fixture(scope="session")
def _standing(any_postgresql: Installation, postgres_user: str | None, shared_directory: Path) -> Iterator[Peer]:
    with opened(shared_directory, postgres_user) as sandbox:
        yield with_a_table(sandbox.peer(any_postgresql).initialize().serve())


@pytest.fixture
def standing(_standing: Peer) -> Iterator[Peer]:
    """As `primary`, for tests that leave it as they found it."""
    yield _standing
    until(lambda: _standing.streams() == 0 and not _standing.senders())


@pytest.fixture
def primary(sandbox: Sandbox, any_postgresql: Installation) -> Peer:
    """A database of some 40 MB and its backup server."""
    return with_a_table(sandbox.peer(any_postgresql).initialize().serve())


def with_a_table(peer: Peer) -> Peer:
    peer.sql("CREATE TABLE t AS SELECT n, repeat('x', 1000) AS filler FROM generate_series(1, 10000) AS n")
    return peer
