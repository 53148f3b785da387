"""A restore that kills its own process (SIGKILL) after a given step: run as a program by `test_killed`.

    python -m tests.storage.killed SOURCE.toml TARGET.toml STEP

A step is a command of zfs(8) that changes something, or a piece of the stream: ten pieces after the first.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

from manatee.config import load
from manatee.storage import open_storage, pipe
from manatee.storage.child import output as run
from manatee.storage.zfs import command

_LOOKS = frozenset({"get", "list", "send", "receive"})
PIECE = 64 << 10


class Steps:
    """Counts, and ends the process at the one that was asked for."""

    def __init__(self, last: int) -> None:
        self._left = last

    def done(self) -> None:
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


async def restore(source_path: str, target_path: str, steps: Steps) -> None:
    async def output(argv: Sequence[str], **options: Any) -> tuple[int, str, str]:
        answer = await run(argv, **options)
        if argv[1] not in _LOOKS:
            steps.done()
        return answer

    setattr(command, "output", output)  # noqa: B010 - it is not that module's to give
    source, target = open_storage(load(source_path)), open_storage(load(target_path))
    await target.open()
    await target.clear_leftovers()
    async with source.send(await target.wanted()) as sending, target.receive(sending.offer) as receiving:
        moved = 0
        while chunk := await pipe.read(sending.fd, PIECE):
            await pipe.write(receiving.fd, chunk)
            moved += len(chunk)
            if moved in range(PIECE, 4 * PIECE):
                steps.done()
        await sending.finished()
        await receiving.complete()
        steps.done()
        await receiving.adopt("restore")
    await target.drop_isolated(0)


if __name__ == "__main__":
    asyncio.run(restore(sys.argv[1], sys.argv[2], Steps(int(sys.argv[3]))))
