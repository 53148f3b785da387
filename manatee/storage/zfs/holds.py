"""Holds through zfs(8), which cannot tie them to a process: each is written down first, and who took it.

A property of the live dataset, `manatee:hold-<tag>`, keeps the snapshot's guid for every hold `manatee-<tag>`: guids
stay when datasets are renamed and snapshots change hands by a promotion, and not every ZFS can list holds. The tag
names the process, so that what a dead one has held, or a live one could not release, can be told and released.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from dataclasses import dataclass
from pathlib import Path

import structlog

from manatee.storage.zfs import command
from manatee.storage.zfs.command import zfs
from manatee.storage.zfs.errors import Missing, ZfsError
from manatee.storage.zfs.names import HOLD, Names

_numbers = itertools.count(1)
_own: set[str] = set()
"""The tags of this process's holds."""


@dataclass(frozen=True)
class Hold:
    tag: str
    guid: str
    snapshot: str


async def take(names: Names, snapshot: str) -> Hold:
    """Raises Missing if the snapshot is gone."""
    found = await command.get(snapshot, ("guid",))
    if found is None:
        raise Missing(f"{snapshot} does not exist")
    hold = Hold(f"{os.getpid()}-{_started(os.getpid())}-{next(_numbers)}", found["guid"], snapshot)
    _own.add(hold.tag)
    try:
        await zfs("set", f"{HOLD}{hold.tag}={hold.guid}", names.live)
        await zfs("hold", f"manatee-{hold.tag}", snapshot)
    except BaseException:
        await release(names, hold)
        raise
    return hold


async def release(names: Names, hold: Hold) -> None:
    """Release it, wherever the snapshot has gone meanwhile, and forget it.

    What was sent is not worth less for a hold that stays: that is logged, and from now on it is a stale one.
    """
    try:
        try:
            await _release(hold.tag, hold.snapshot)
        except Missing:
            await _release_anywhere(names, hold.tag, hold.guid)
        await _forget(names, hold.tag)
    except ZfsError as error:
        structlog.get_logger().warning(
            "a snapshot stays held for now", snapshot=hold.snapshot, hold=f"manatee-{hold.tag}", error=str(error)
        )
    finally:
        _own.discard(hold.tag)


async def release_stale(names: Names) -> int:
    """Release what processes that are gone have held; how many there were."""
    stale = [
        (dataset, key, value)
        for dataset in await datasets(names)
        for key, value in (await command.local(dataset)).items()
        if key.startswith(HOLD) and not _alive(key.removeprefix(HOLD))
    ]
    for dataset, key, guid in stale:
        await _release_anywhere(names, key.removeprefix(HOLD), guid)
        await zfs("inherit", key, dataset)
    return len(stale)


async def datasets(names: Names) -> list[str]:
    """The filesystems that are or were this peer's: live, being received, isolated."""
    beside = [each.name for each in await command.below(names.parent, ()) if "@" not in each.name]
    isolated = [each.name for each in await command.below(names.isolated, ()) if "@" not in each.name]
    ours = [name for name in beside if name == names.live or names.is_restoring(name)]
    return ours + [name for name in isolated if names.is_isolated(name)]


async def _release_anywhere(names: Names, tag: str, guid: str) -> None:
    for dataset in await datasets(names):
        for each in await command.below(dataset, ("guid",)):
            if "@" in each.name and each["guid"] == guid:
                with contextlib.suppress(Missing):
                    await _release(tag, each.name)


async def _release(tag: str, snapshot: str) -> None:
    await zfs("release", f"manatee-{tag}", snapshot)


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
    pid, started, _ = tag.split("-")
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
