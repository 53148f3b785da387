"""What the demo shows: steps, what is going on, and the commands it runs, as a newcomer would type them.

On a terminal what goes on is one line that changes; elsewhere each change is a line of its own.
"""

from __future__ import annotations

import asyncio
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console


class CommandFailed(Exception):
    """A command that the demo ran did not end well; the message says which and how."""


class Screen:
    """Standard output, by the line."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, soft_wrap=True)

    def step(self, text: str) -> None:
        """What comes next."""
        self._console.print()
        self._console.print(f"==> {text}", style="bold", markup=False)

    def say(self, text: str = "") -> None:
        self._console.print(f"    {text}" if text else "", markup=False)

    @contextmanager
    def waiting(self, text: str) -> Iterator[Callable[[object], None]]:
        """While this lasts, something takes its time; the function that is given takes what it has come to."""
        began = time.monotonic()
        if not self._console.is_terminal:
            yield _Plain(began).show
            return
        with self._console.status(text) as status:
            shown: object = ""

            def show(now: object) -> None:
                nonlocal shown
                shown = now
                status.update(f"{text} ({time.monotonic() - began:.0f} s) {shown}")

            show("")
            yield show

    async def run(self, *argv: str | Path, shown: str, env: Mapping[str, str], timeout: float) -> None:
        """Run a command of ours with its output where ours goes; `shown` is how a person would type it.

        Raises CommandFailed.
        """
        self._console.print()
        self._console.print(f"$ {shown}", style="cyan", markup=False)
        sys.stdout.flush()
        process = await asyncio.create_subprocess_exec(*argv, env=env, stdin=asyncio.subprocess.DEVNULL)
        try:
            async with asyncio.timeout(timeout):
                status = await process.wait()
        except TimeoutError:
            raise CommandFailed(f"{shown}: did not end within {timeout:.0f} s") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if status != 0:
            raise CommandFailed(f"{shlex.join(map(str, argv))}: exit status {status}")


class _Plain:
    """A line for each change, once a second at most, and one from time to time if nothing changes."""

    def __init__(self, began: float) -> None:
        self._began = began
        self._last: tuple[float, object] = (began, None)

    def show(self, now: object) -> None:
        at, shown = self._last
        since = time.monotonic() - at
        if since >= (1.0 if now != shown else 10.0):
            self._last = (time.monotonic(), now)
            print(f"    {time.monotonic() - self._began:5.1f} s  {now}", flush=True)
