"""One restore in a process of its own, as a sitter does it, with where its time and memory went; for bench.bootstrap.

`python -m bench.requester SETTINGS PEER MAJOR` prints one JSON document.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import sys
import time
from pathlib import Path

import sitter.main  # noqa: F401 - the memory of a whole sitter is what counts
from manatee import log
from manatee.cluster import Peer
from manatee.config import load
from manatee.storage import open_storage
from sitter.bootstrap import Restore

_LOOK = 0.01


async def _measure(settings_file: str, peer: str, major: str) -> dict[str, float]:
    settings = load(settings_file)
    storage = open_storage(settings)
    restore = Restore(settings, storage, log.set_up(settings.log))
    adopting = 0.0

    async def before_adopt() -> None:
        nonlocal adopting
        adopting = time.monotonic()

    began = time.monotonic()
    running = asyncio.create_task(
        restore.run(
            [Peer.parse(peer)], major_version=major, system_identifier=None, before_adopt=before_adopt, attempts=1
        )
    )
    first = last = began
    bytes_done = 0
    while not running.done():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(running), _LOOK)
        if restore.progress.bytes_done != bytes_done:
            last = time.monotonic()
            first = first if bytes_done else last
            bytes_done = restore.progress.bytes_done
    restored = await running
    ended = time.monotonic()
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "bytes": float(restored.bytes),
        "seconds": ended - began,
        "until the first byte": first - began,
        "stream": last - first,
        "until complete and durable": adopting - last,
        "switch": ended - adopting,
        "processor": usage.ru_utime + usage.ru_stime,
        "memory": _most_resident(),
    }


def _most_resident() -> float:
    """MiB. (What getrusage says begins with what the parent had.)"""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asyncio.run(_measure(*sys.argv[1:]))) + "\n")
