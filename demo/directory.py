"""Where a local shard lives: one directory under `${TMPDIR:-/tmp}`, gone when its owner is done.

The owner holds a lock on it for as long as it lives. What an owner left that was killed itself, the next one clears:
directories of the same user that nobody holds, the processes that were started from them and still run, and the ZFS
pools on files in them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil

from demo import zfs
from demo.process import PID_SUFFIX

KEEP = "MANATEE_KEEP"
"""Set in the environment, it keeps the directory, with the logs in it, for somebody to look at."""

_LOCK = "owner.lock"
_LONGEST = 50
"""Bytes that a temporary directory's path may have: a Unix socket's path, below it, ends at 107."""


def user_name() -> str:
    """Who we are; the number where it has no name."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


@contextlib.contextmanager
def run_directory(*, readable_by: str | None = None) -> Iterator[Path]:
    """A new directory that the user `readable_by` can enter too; removed, with all that is in it, at the end."""
    base = _base(readable_by)
    for stale in base.glob(f"{_prefix()}*"):
        clear(stale)
    directory = Path(tempfile.mkdtemp(prefix=_prefix(), dir=base))
    with (directory / _LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Others pass through to what is theirs in it, and see nothing else.
        directory.chmod(0o711)
        try:
            yield directory
        finally:
            if os.environ.get(KEEP):
                # Without its lock it is nobody's, and never cleared.
                (directory / _LOCK).unlink(missing_ok=True)
            else:
                shutil.rmtree(directory, ignore_errors=True)


def clear(directory: Path) -> bool:
    """Remove a directory whose owner is gone, with the processes started from it; False if it is not such a one."""
    try:
        if directory.is_symlink() or directory.stat().st_uid != os.getuid():
            return False
        lock = (directory / _LOCK).open("r+")
    except FileNotFoundError:
        return False
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        _kill(_left_running(directory))
        zfs.clear(directory)
        shutil.rmtree(directory, ignore_errors=True)
    return True


def may_enter(user: str, path: Path) -> bool:
    """Whether another user reaches a directory. Only root can ask."""
    asked = subprocess.run(["test", "-x", path], user=user, group=_group(user), extra_groups=[], check=False, cwd="/")
    return asked.returncode == 0


def _group(user: str) -> int:
    return pwd.getpwnam(user).pw_gid


def _prefix() -> str:
    return f"manatee-{user_name()}-"


def _base(readable_by: str | None) -> Path:
    """`$TMPDIR`, unless its path is too long for the sockets below it or shut to whom must reach it."""
    wanted = Path(tempfile.gettempdir())
    if len(os.fsencode(wanted)) > _LONGEST or (readable_by is not None and not may_enter(readable_by, wanted)):
        return Path("/tmp")  # noqa: S108
    return wanted


def _left_running(directory: Path) -> list[psutil.Process]:
    """The children recorded below a directory, the postmasters whose data lie there, and the descendants of both."""
    found = {}
    for path in directory.rglob(f"*{PID_SUFFIX}"):
        with contextlib.suppress(OSError, ValueError, psutil.Error):
            number, started = path.read_text().split()
            process = psutil.Process(int(number))
            if process.create_time() == float(started):
                found[process.pid] = process
    for path in directory.rglob("postmaster.pid"):
        with contextlib.suppress(OSError, ValueError, IndexError, psutil.Error):
            process = psutil.Process(int(path.read_text().split()[0]))
            if any(str(path.parent) in argument for argument in process.cmdline()):
                found[process.pid] = process
    for process in list(found.values()):
        with contextlib.suppress(psutil.Error):
            found |= {child.pid: child for child in process.children(recursive=True)}
    return list(found.values())


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.send_signal(signal.SIGKILL)
    psutil.wait_procs(processes, timeout=10)
