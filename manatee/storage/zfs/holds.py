"""Holds through zfs(8), which cannot tie them to a process: each is written down first, and who took it.

A property of the live dataset, `manatee:hold-<tag>`, keeps the snapshots' guids for every hold `manatee-<tag>`: guids
stay when datasets are renamed and snapshots change hands by a promotion, and not every ZFS can list holds. The tag
names the process, so that what a dead one has held, or a live one could not release, can be told and released.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from dataclasses import dataclass
from pathlib import Path

import structlog

from manatee.storage.zfs import command
from manatee.storage.zfs.command import Dataset, zfs
from manatee.storage.zfs.errors import Missing, ZfsError
from manatee.storage.zfs.names import HOLD, Names

_numbers = itertools.count(1)
_own: set[str] = set()
"""The tags of this process's holds."""


@dataclass(frozen=True)
class Hold:
    tag: str
    snapshots: tuple[Dataset, ...]

    @property
    def guids(self) -> str:
        return ",".join(each["guid"] for each in self.snapshots)


async def take(names: Names, *snapshots: Dataset) -> Hold:
    """Raises Missing if one of the snapshots is gone."""
    hold = Hold(f"{os.getpid()}-{_started(os.getpid())}-{next(_numbers)}", snapshots)
    _own.add(hold.tag)
    try:
        await zfs("set", f"{HOLD}{hold.tag}={hold.guids}", names.live)
        await zfs("hold", f"manatee-{hold.tag}", *(each.name for each in snapshots))
    except BaseException:
        await release(names, hold)
        raise
    return hold


async def release(names: Names, hold: Hold) -> None:
    """Release it, wherever the snapshots have gone meanwhile, and forget it.

    What was sent is not worth less for a hold that stays: that is logged, and from now on it is a stale one.
    """
    try:
        try:
            await zfs("release", f"manatee-{hold.tag}", *(each.name for each in hold.snapshots))
        except Missing:
            await _release_anywhere(names, hold.tag, hold.guids)
        await _forget(names, hold.tag)
    except ZfsError as error:
        held = [each.name for each in hold.snapshots]
        structlog.get_logger().warning(
            "snapshots stay held for now", snapshots=held, hold=f"manatee-{hold.tag}", error=str(error)
        )
    finally:
        _own.discard(hold.tag)


async def release_stale(names: Names) -> int:
    """Release what processes that are gone have held; how many there were."""
    stale = [
        (each.name, key, found.value)
        for each in await command.local_below(names.parent, 2)
        if names.is_ours(each.name)
        for key, found in each.properties.items()
        if key.startswith(HOLD) and not _alive(key.removeprefix(HOLD))
    ]
    for dataset, key, guids in stale:
        await _release_anywhere(names, key.removeprefix(HOLD), guids)
        await zfs("inherit", key, dataset)
    return len(stale)


async def datasets(names: Names) -> list[str]:
    """The filesystems that are or were this peer's: live, being received, isolated."""
    return [name for name in await command.tree(names.parent, (), 2) if names.is_ours(name)]


async def _release_anywhere(names: Names, tag: str, guids: str) -> None:
    for each in (await command.tree(names.parent, ("guid",), 3)).values():
        if "@" in each.name and names.is_ours(each.filesystem) and each["guid"] in guids.split(","):
            with contextlib.suppress(Missing):
                await zfs("release", f"manatee-{tag}", each.name)


async def _forget(names: Names, tag: str) -> None:
    """The record moves along when its dataset is renamed."""
    if not await _erase(names.live, tag):
        for dataset in await datasets(names):
            if await _erase(dataset, tag):
                return


async def _erase(dataset: str, tag: str) -> bool:
    """The record of a hold, if this is the dataset that has it."""
    key = f"{HOLD}{tag}"
    found = await command.get(dataset, (key,))
    if found is None or found.local(key) is None:
        return False
    await zfs("inherit", key, dataset)
    return True


def _alive(tag: str) -> bool:
    """Whether the process that took the hold still lives: pids are used again, so its start counts as well."""
    if tag in _own:
        return True
    parts = re.fullmatch(r"(\d+)-(\d*)-\d+", tag)
    if parts is None:
        return True  # none of ours: whoever wrote it may take it away
    pid, started = parts.groups()
    if int(pid) == os.getpid():
        return False
    return _started(int(pid)) == started


def _started(pid: int) -> str:
    """When a process started, in a form that only compares; empty if there is none."""
    directory = Path("/proc") / str(pid)
    try:
        return (directory / "stat").read_text().rpartition(")")[2].split()[19]  # Linux: field 22, in clock ticks
    except (OSError, IndexError):
        pass
    try:
        return str(int((directory).stat().st_mtime))  # illumos: proc(4)
    except OSError:
        return ""
