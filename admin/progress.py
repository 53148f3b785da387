"""How a long restore is shown: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

import click

from admin.rebuilding import Judgement, amount

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

EVERY = 5.0
"""Seconds between two plain lines that differ by numbers only."""


class Display:
    """Shows what changes. On a terminal one line that moves, else a line for each step and every few seconds."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._text = ""
        self._done = 0
        self._printed = 0.0

    def __enter__(self) -> Self:
        from rich.console import Console

        console = Console()
        if console.is_terminal:
            from rich import progress

            self._bar = progress.Progress(
                progress.TextColumn("{task.description}"),
                progress.BarColumn(),
                progress.DownloadColumn(binary_units=True),
                progress.TransferSpeedColumn(),
                progress.TimeElapsedColumn(),
                progress.TimeRemainingColumn(),
                console=console,
                transient=True,
            )
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, now: Judgement) -> None:
        if self._bar is not None:
            if self._task is None or (now.total is None) != (self._bar.tasks[0].total is None):
                # A task that has a total cannot lose it.
                for task in self._bar.task_ids:
                    self._bar.remove_task(task)
                self._task = self._bar.add_task(now.text, total=now.total)
            self._bar.update(self._task, description=now.text, completed=now.done, total=now.total)
            return
        moment = time.monotonic()
        news = now.text != self._text
        if news or (now.done != self._done and moment - self._printed >= EVERY):
            size = f": {amount(now.done, now.total, now.rate, now.left)}" if now.done else ""
            click.echo(f"{now.text}{size}")
            self._text, self._done, self._printed = now.text, now.done, moment
