"""What a run takes from this machine: a slot, with a directory, namespaces, a bridge and a network of its number.

Everything in a slot is named after it, so that `clear` can remove all of it without knowing how far a run has come:
it is how a run ends, and how the next one removes what a run left that was killed itself. A run holds the slot's lock
for as long as it lives.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from demo.process import alive

NEEDED = ("ip", "tc", "nft", "nsenter", "mount", "umount")
SLOTS = range(1, 100)
_BASE = Path("/tmp")
_LOCK = "manatee-chaos-{}.lock"


class Impossible(Exception):
    """This machine cannot run it; the message says what is missing."""


def obstacle() -> str | None:
    """Why no slot can be had here: not root, programs missing, or no right to make namespaces."""
    if os.getuid() != 0:
        return "it needs root, for network namespaces"
    missing = [program for program in NEEDED if shutil.which(program) is None]
    if missing:
        return f"programs are missing: {', '.join(missing)} (Debian: iproute2, nftables); demo/prepare.sh installs them"
    tried = subprocess.run(["unshare", "--net", "true"], capture_output=True, text=True, check=False)
    return f"no network namespaces here: {tried.stderr.strip()}" if tried.returncode else None


@dataclass(frozen=True)
class Slot:
    number: int

    @property
    def directory(self) -> Path:
        return _BASE / f"manatee-chaos-{self.number}"

    @property
    def network(self) -> str:
        """The first three numbers of its addresses."""
        return f"10.213.{self.number}"

    @property
    def bridge(self) -> str:
        return f"mc{self.number}-bridge"

    def link(self, node: str) -> str:
        """The bridge's end of a node's cable; an interface's name has at most 15 characters."""
        return f"mc{self.number}-{node}"

    def namespace(self, node: str) -> str:
        return f"manatee-chaos-{self.number}-{node}"


@contextlib.contextmanager
def claimed() -> Iterator[Slot]:
    """A slot of our own, empty; cleared at the end, however that comes. Raises Impossible."""
    if why := obstacle():
        raise Impossible(why)
    with contextlib.ExitStack() as stack:
        mine: Slot | None = None
        for number in SLOTS:
            path = _BASE / _LOCK.format(number)
            if mine is not None and not path.exists():
                continue
            # Never removed: whoever unlinks a lock file locks another one than who opened it before.
            lock = stack.enter_context(path.open("w"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            clear(Slot(number))
            if mine is None:
                mine = Slot(number)
            else:
                fcntl.flock(lock, fcntl.LOCK_UN)
        if mine is None:
            raise Impossible("every slot is taken by another run")
        mine.directory.mkdir(mode=0o711)
        try:
            yield mine
        finally:
            clear(mine)


def clear(slot: Slot) -> None:
    """Remove all that bears this slot's number: processes, namespaces, interfaces, mounts, files."""
    for namespace in _namespaces(slot):
        _kill_all_in(namespace)
        _run("ip", "netns", "del", namespace)
    for interface in sorted(Path("/sys/class/net").glob(f"mc{slot.number}-*")):
        _run("ip", "link", "del", interface.name)
    for mount in reversed(_mounts(slot.directory)):
        if _run("umount", mount):
            _run("umount", "--lazy", mount)
    shutil.rmtree(slot.directory, ignore_errors=True)


def left(slot: Slot) -> list[str]:
    """What there is of a slot; empty after `clear`."""
    interfaces = [path.name for path in Path("/sys/class/net").glob(f"mc{slot.number}-*")]
    return [*_namespaces(slot), *interfaces, *_mounts(slot.directory), *map(str, _BASE.glob(slot.directory.name))]


def processes_in(namespace: str) -> list[int]:
    """The pids of a network namespace."""
    said = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True, check=False)
    return [int(word) for word in said.stdout.split()]


def _namespaces(slot: Slot) -> list[str]:
    return sorted(path.name for path in Path("/run/netns").glob(slot.namespace("*")))


def _kill_all_in(namespace: str) -> None:
    deadline = time.monotonic() + 10
    while (pids := [pid for pid in processes_in(namespace) if lives(pid)]) and time.monotonic() < deadline:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def lives(pid: int) -> bool:
    """Whether it runs; a zombie does not."""
    import psutil

    try:
        return alive(psutil.Process(pid))
    except psutil.NoSuchProcess:
        return False


def _mounts(directory: Path) -> list[str]:
    places = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    return [place for place in places if place.startswith(f"{directory}/")]


def _run(*argv: str) -> int:
    return subprocess.run(argv, capture_output=True, check=False).returncode
