from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.postgresql import Installation, choose, within_reach
from tests.backup.sandbox import Sandbox

_number = itertools.count()


@pytest.fixture(scope="session")
def any_postgresql(postgres_user: str | None, shared_directory: Path) -> Installation:
    """One PostgreSQL, for what does not depend on the version."""
    return within_reach(choose(), postgres_user, shared_directory)


@pytest.fixture
def sandbox(postgres_user: str | None, shared_directory: Path) -> Iterator[Sandbox]:
    root = shared_directory / "backup" / str(next(_number))
    root.mkdir(parents=True)
    sandbox = Sandbox(root, postgres_user)
    try:
        yield sandbox
    finally:
        sandbox.end()
        shutil.rmtree(root)
