"""A fresh database per PostgreSQL version found here, copied for every test."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from demo.postgresql import Installation
from tests.postgres.local import HBA, Machines, as_postgres, give


@pytest.fixture(scope="session")
def installation(postgresql: Installation) -> tuple[int, Path]:
    """Each PostgreSQL of this machine in turn, where its user can execute it."""
    return postgresql.major, postgresql.bin_dir


def _directory() -> Path:
    """A directory that PostgreSQL's user may enter, with a name short enough for a socket's path; in memory if it can
    be: copying a database is most of what these tests do."""
    memory = Path("/dev/shm")
    directory = Path(tempfile.mkdtemp(prefix="manatee-", dir=memory if os.access(memory, os.W_OK) else "/tmp"))
    directory.chmod(0o755)
    give(directory)
    return directory


@pytest.fixture(scope="session")
def template(installation: tuple[int, Path]) -> Iterator[Path]:
    directory = _directory()
    data = directory / "data"
    as_postgres(installation[1] / "initdb", "-D", data, "-U", "postgres", "-E", "UTF8", "--locale=C", "-k", "-N")
    (data / "pg_hba.conf").write_text(HBA)
    yield data
    shutil.rmtree(directory)


@pytest.fixture
async def machines(installation: tuple[int, Path], template: Path) -> AsyncIterator[Machines]:
    directory = _directory()
    machines = Machines(directory, *installation, template)
    try:
        yield machines
    finally:
        await machines.end()
        shutil.rmtree(directory, ignore_errors=True)
