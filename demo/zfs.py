"""ZFS on one machine, to see it at work: a pool on a file, gone without a trace when its owner is done.

The kernel's ZFS serves where there is one, else zfs-fuse, which is started unless it runs already. A machine can have
one zfs-fuse: it is shared, and whoever leaves last stops it, if one of us has started it. A pool bears the name of the
directory that its file lies in, so that what a killed run has left can be found (`clear`).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

SIZE = 8 << 30
"""Bytes of a pool's file, if there is room for as many; it takes up what is written to it."""
TIMEOUT = 60.0
"""Seconds for one command."""
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
"""Where the commands are found."""
_RUN = Path("/run")
_USERS = _RUN / "manatee-zfs-fuse.users"
"""Whoever uses a zfs-fuse of ours holds a shared lock on it."""
_OURS = _RUN / "manatee-zfs-fuse.pid"
"""The pid of the zfs-fuse that one of us has started."""
_FILE = "pool"


class NoZfs(Exception):
    """There is no ZFS to be had here; the message says what is missing."""


class ZfsFailed(Exception):
    """A command of ZFS failed; the message says which, and what it said."""


@contextlib.contextmanager
def pool(directory: Path, *, size: int = SIZE) -> Iterator[str]:
    """A new pool in a file of `directory`, by whose name it goes. Raises NoZfs, ZfsFailed.

    Nothing may run on its datasets any more at the end: they are unmounted, and the pool is destroyed.
    """
    with _reachable():
        name = directory.name
        file = directory / _FILE
        with file.open("wb") as new:
            new.truncate(min(size, shutil.disk_usage(directory).free))
        # The cache of pools would have it looked for at the next start of ZFS, when it is long gone.
        # And a disk that is full where the file lies would have everybody wait for ever, instead of a failure.
        options = ("-o", "cachefile=none", "-o", "failmode=continue")
        run("zpool", "create", "-f", "-m", "none", *options, name, str(file))
        try:
            yield name
        finally:
            _destroy(name)
            file.unlink(missing_ok=True)


def missing() -> str | None:
    """Why there is no ZFS to be had here; None if there is."""
    try:
        with _reachable():
            return None
    except NoZfs as error:
        return str(error)


def kind() -> str:
    """Which ZFS it is, while one can be reached."""
    return "the kernel's ZFS" if Path("/dev/zfs").exists() else "zfs-fuse"


def create(dataset: str) -> None:
    """A dataset that holds others and no files: it is not mounted. Raises ZfsFailed."""
    run("zfs", "create", "-o", "canmount=off", "-o", "mountpoint=none", dataset)


def clear(directory: Path) -> None:
    """Destroy the pool that a killed owner has left in a directory, and unmount what is still mounted below it.

    Does nothing where there was none. Raises ZfsFailed.
    """
    if (directory / _FILE).exists() or _mounted_below(directory):
        with contextlib.suppress(NoZfs), _reachable():
            _destroy(directory.name)
    # A zfs-fuse that has died leaves mounts that answer nothing.
    for mountpoint in _mounted_below(directory):
        subprocess.run(["umount", "-l", mountpoint], check=False, timeout=TIMEOUT, stderr=subprocess.DEVNULL)


def run(*command: str) -> str:
    """Run a command of ZFS; what it wrote. Raises ZfsFailed."""
    done = _attempt(*command)
    if done.returncode != 0:
        raise ZfsFailed(f"{' '.join(command)}: {done.stdout.strip() or f'exit status {done.returncode}'}")
    return done.stdout


def _attempt(*command: str) -> subprocess.CompletedProcess[str]:
    """In a session of its own: Ctrl-C is for us, and what is half done would stay."""
    try:
        return subprocess.run(
            command,
            env={**os.environ, "PATH": PATH, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT,
            start_new_session=True,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ZfsFailed(f"{' '.join(command)}: {error}") from error


def _destroy(name: str) -> None:
    """zfs-fuse says for a moment after its last use that a dataset is busy."""
    ends = time.monotonic() + TIMEOUT
    while _attempt("zpool", "list", "-H", "-o", "name", name).returncode == 0:
        done = _attempt("zpool", "destroy", "-f", name)
        if done.returncode != 0 and time.monotonic() > ends:
            raise ZfsFailed(f"the pool {name} cannot be destroyed: {done.stdout.strip()}")
        if done.returncode != 0:
            time.sleep(0.2)


def _mounted_below(directory: Path) -> list[str]:
    mounts = Path("/proc/self/mounts")
    if not mounts.exists():
        return []
    found = [line.split()[1].encode().decode("unicode_escape") for line in mounts.read_text().splitlines()]
    return sorted((path for path in found if path.startswith(f"{directory}/")), reverse=True)


# --- The daemon -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _reachable() -> Iterator[None]:
    """While this lasts the commands of ZFS reach one. Raises NoZfs."""
    if os.geteuid() != 0:
        raise NoZfs("ZFS needs root: it mounts file systems, and PostgreSQL's files belong to another user than ours")
    if shutil.which("zpool", path=PATH) is None:
        raise NoZfs("ZFS is not installed: expected zpool and zfs, from Debian's zfs-fuse or zfsutils-linux")
    with _USERS.open("w") as users:
        fcntl.flock(users, fcntl.LOCK_SH)
        if not _answers():
            _start()
        try:
            yield
        finally:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _stop()


def _answers() -> bool:
    return _attempt("zpool", "list", "-H", "-o", "name").returncode == 0


def _start() -> None:
    """Start zfs-fuse. It is nobody's child, since others may use it when its starter is gone. Raises NoZfs."""
    program = shutil.which("zfs-fuse", path=PATH)
    if program is None:
        raise NoZfs("there is no ZFS in this kernel, and no zfs-fuse, which Debian's package of that name has")
    if not Path("/dev/fuse").exists():
        raise NoZfs("there is no ZFS in this kernel, and zfs-fuse cannot run: there is no /dev/fuse")
    with (_RUN / "manatee-zfs-fuse.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _answers():
            return
        said = _attempt(program, "--no-kstat-mount", "--pidfile", str(_OURS))
        ends = time.monotonic() + TIMEOUT
        while not _answers():
            if said.returncode != 0 or time.monotonic() > ends:
                raise NoZfs(f"zfs-fuse does not start: {said.stdout.strip() or 'it says nothing'}")
            time.sleep(0.05)


def _stop() -> None:
    """Stop the zfs-fuse that one of us has started; nobody uses it any more. Pools of somebody else keep it."""
    with contextlib.suppress(OSError, ValueError, psutil.Error, ZfsFailed):
        daemon = psutil.Process(int(_OURS.read_text()))
        if daemon.name() != "zfs-fuse" or run("zpool", "list", "-H", "-o", "name").strip():
            return
        daemon.terminate()
        psutil.wait_procs([daemon], timeout=10)
        _OURS.unlink()
