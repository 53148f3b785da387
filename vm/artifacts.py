"""What the machine is made of, built once and kept outside the checkout: below `$XDG_CACHE_HOME/manatee-vm`.

Each artifact is a directory that one script writes. It is named after a digest of its recipe, the files that it is made
from, so that it is built anew when one of them changes; what it replaces is removed.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from demo.process import Child
from demo.screen import Screen

HERE = Path(__file__).parent


class BuildFailed(Exception):
    """An artifact could not be built; the message ends with what its script said last."""


@dataclass(frozen=True)
class Artifact:
    name: str
    about: str
    script: Path
    files: tuple[Path, ...]
    """What else it is made from."""

    @property
    def digest(self) -> str:
        digest = hashlib.sha256()
        for path in (self.script, *self.files):
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()[:16]


KERNEL = Artifact(
    "kernel",
    "Debian's kernel, and OpenZFS's module for it, which takes the compiler some minutes",
    HERE / "kernel.sh",
    (HERE / "apt.sh", HERE / "init"),
)
ROOT = Artifact(
    "root",
    "a small Debian with OpenZFS's programs, PostgreSQL and ZooKeeper",
    HERE / "root.sh",
    (HERE / "apt.sh",),
)
PYTHON = Artifact(
    "python", "the Python packages of requirements.lock", HERE / "python.sh", (HERE.parent / "requirements.lock",)
)


def cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "manatee-vm"


async def obtain(artifact: Artifact, screen: Screen) -> Path:
    """The artifact's directory; built now, unless it is there. Raises BuildFailed.

    Whoever asks for it while it is being built waits. What an unfinished build has left is removed by the next one.
    """
    place = cache() / f"{artifact.name}-{artifact.digest}"
    async with _locked(cache() / f"{artifact.name}.lock"):
        if place.exists():
            return place
        for stale in cache().glob(f"{artifact.name}-*"):
            shutil.rmtree(stale)
        screen.step(f"Building {artifact.about}")
        began = time.monotonic()
        work = Path(tempfile.mkdtemp(prefix=f"{artifact.name}-unfinished-", dir=cache()))
        try:
            (work / "out").mkdir()
            await _run(artifact, work, screen)
            (work / "out").rename(place)
        finally:
            shutil.rmtree(work)
        screen.say(f"built in {time.monotonic() - began:.0f} s")
    return place


async def _run(artifact: Artifact, work: Path, screen: Screen) -> None:
    """Run its script in a process namespace of its own, which ends with the script, and the script with us."""
    log = work / "log"
    contained = ("unshare", "--pid", "--mount-proc", "--fork", "--kill-child")
    script = await Child.start([*contained, artifact.script, work, work / "out"], log=log)
    ended = asyncio.create_task(script.wait())
    try:
        with screen.waiting(f"building {artifact.name}") as show:
            while not ended.done():
                await asyncio.wait([ended], timeout=0.5)
                show(_lines(log)[-1][:80] if _lines(log) else "")
    finally:
        await script.kill()
        await ended
    if script.returncode != 0:
        said = "\n".join(_lines(log)[-40:])
        raise BuildFailed(f"{artifact.script.name} ended with status {script.returncode}:\n{said}")


def _lines(log: Path) -> list[str]:
    return log.read_text(errors="replace").splitlines()


@asynccontextmanager
async def _locked(path: Path) -> AsyncIterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await asyncio.sleep(0.5)
        yield
