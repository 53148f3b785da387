"""What all tests share: how hard Hypothesis tries, which PostgreSQL there is, and that nothing is left running."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import structlog
from hypothesis import HealthCheck, settings

from demo.directory import run_directory
from demo.postgresql import Installation, installations, unprivileged_user, within_reach
from demo.process import alive

# Two cores shared with PostgreSQL, ZooKeeper and Java: how long an example takes says nothing here.
settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("default")


TESTS = Path(__file__).parent

# Whole shards wait most of the time: they come first, so that what is short fills the gaps.
ORDER = ("chaos", "storage", "shard", "backup", "postgres", "admin", "demo", "coordination", "model")


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Which tests may run beside each other (pytest -n): those of one directory share addresses, so they may not.

    Whole shards get networks by worker, so that their files may.
    """

    def group(item: pytest.Item) -> str:
        directory, *file = item.path.relative_to(TESTS).parts
        return f"shard/{file[0]}" if directory == "shard" else directory

    def place(item: pytest.Item) -> int:
        directory = group(item).split("/")[0]
        return ORDER.index(directory) if directory in ORDER else len(ORDER)

    items.sort(key=place)
    for item in items:
        item.add_marker(pytest.mark.xdist_group(group(item)))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Groups that nobody heeds would have tests take each other's ports."""
    if getattr(session.config.option, "loadgroup", False):
        assert all("@" in item.nodeid for item in session.items), "pytest-xdist did not take the groups up"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Tests of ZFS that could not run are not to be overlooked."""
    skipped = [each for each in terminalreporter.stats.get("skipped", []) if each.nodeid.startswith("tests/storage/")]
    reasons = [str(each.longrepr[2]) for each in skipped if isinstance(each.longrepr, tuple)]
    missing = [reason for reason in reasons if "no ZFS" in reason]
    if missing:
        terminalreporter.section("ZFS", sep="!", red=True, bold=True)
        terminalreporter.line(
            f"{len(missing)} tests of ZFS did NOT run. {missing[0].removeprefix('Skipped: ')}", red=True
        )


@pytest.fixture(scope="session", autouse=True)
def _nothing_is_left_running() -> Iterator[None]:
    yield
    left = [child for child in psutil.Process().children(recursive=True) if alive(child)]
    said = [f"{child.pid} {' '.join(child.cmdline())}" for child in left]
    for child in left:
        child.kill()
    assert said == []


@pytest.fixture(autouse=True)
def _logging_is_not_left_configured() -> Iterator[None]:
    """A program that is called in-process sets up logging for itself: it must not silence the next test."""
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def postgres_user() -> str | None:
    """Whom PostgreSQL must run as, if we are root."""
    return unprivileged_user()


@pytest.fixture(scope="session")
def shared_directory(postgres_user: str | None) -> Iterator[Path]:
    """A directory that the PostgreSQL user can enter, as it cannot enter pytest's when we are root."""
    with run_directory(readable_by=postgres_user) as directory:
        yield directory


@pytest.fixture(scope="session", params=installations(), ids=lambda installation: f"pg{installation.major}")
def postgresql(request: pytest.FixtureRequest, postgres_user: str | None, shared_directory: Path) -> Installation:
    """Each PostgreSQL of this machine in turn, where the PostgreSQL user can execute it."""
    return within_reach(request.param, postgres_user, shared_directory)


@pytest.fixture
def needs_root() -> None:
    if os.getuid() != 0:
        pytest.skip("needs root")
