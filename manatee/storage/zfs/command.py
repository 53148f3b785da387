"""zfs(8) and zpool(8): run with a deadline, patient with what is busy for a moment, and their answers read.

Only options that every ZFS since pool version 23 has are used here; what else there is, `Capabilities` says.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from manatee.storage.child import output
from manatee.storage.zfs.errors import Busy, Missing, Unusable, ZfsError, from_words

TIMEOUT = 60.0
"""Seconds for one command: renames and destroys wait for a transaction group, on a busy pool for several."""
BUSY_FOR = 15.0
"""Seconds for which what is busy is tried again: right after use it is so for a moment (zfs-fuse above all)."""
_BUSY_PAUSE = 0.1
_unknown: set[str] = set()
"""Properties that the ZFS of this machine does not have."""
_SYSTEM = ("/usr/sbin", "/sbin")
_UNREACHABLE = ("zfs-fuse daemon", "module", "/dev/zfs", "unable to open", "internal error: failed to initialize")


@dataclass(frozen=True)
class Value:
    """A property's value and where it comes from: `local`, `default`, `inherited from ...`, `received`, `-`."""

    value: str
    source: str


@dataclass(frozen=True)
class Dataset:
    """A filesystem or a snapshot and what was asked of it. A property that this ZFS does not have is not there."""

    name: str
    properties: Mapping[str, Value] = field(default_factory=dict)

    def __getitem__(self, name: str) -> str:
        """The value, `-` where there is none."""
        found = self.properties.get(name)
        return found.value if found else "-"

    def number(self, name: str) -> int:
        """A size in bytes, a count or a time; 0 where there is none."""
        return int(value) if (value := self[name]).isdecimal() else 0

    def local(self, name: str) -> str | None:
        """The value that was set on this very dataset."""
        found = self.properties.get(name)
        return found.value if found and found.source in ("local", "received") else None

    def is_default(self, name: str) -> bool:
        """Whether nobody has set it, here or above; not for what this ZFS does not have."""
        found = self.properties.get(name)
        return found is not None and found.source == "default"

    @property
    def encrypted(self) -> bool:
        return self["encryption"] not in ("-", "off")

    @property
    def readable(self) -> bool:
        """Whether its key, if it has one, is loaded."""
        return self["keystatus"] != "unavailable"

    @property
    def snapshot(self) -> str:
        """The part of a snapshot's name after the `@`."""
        return self.name.rpartition("@")[2]

    @property
    def filesystem(self) -> str:
        return self.name.partition("@")[0]


@dataclass(frozen=True)
class Capabilities:
    """What this machine's zfs(8) can do, by its own usage message."""

    send: frozenset[str]
    """Its single-letter options."""
    receive: frozenset[str]
    resume: bool
    """`send -t`."""

    @property
    def resumable(self) -> bool:
        return self.resume and "s" in self.receive

    @property
    def estimates(self) -> bool:
        return {"n", "P"} <= self.send


def program(name: str) -> str:
    """Where `zfs` or `zpool` is. Raises Unusable."""
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), *_SYSTEM))
    found = shutil.which(name, path=path)
    if found is None:
        raise Unusable(f"there is no {name} command here: install ZFS, or use another storage.driver")
    return found


async def zfs(*arguments: str, patient: bool = True) -> str:
    """Run `zfs`; what it has printed. Raises ZfsError and its kinds. `patient`: what is busy is tried again."""
    deadline = time.monotonic() + (BUSY_FOR if patient else 0)
    while True:
        try:
            return await _run("zfs", *arguments)
        except Busy:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(_BUSY_PAUSE)


async def get(dataset: str, properties: Iterable[str]) -> Dataset | None:
    """These properties of one dataset or snapshot; None if it does not exist."""
    return next(iter(await _get(("-Hp",), properties, dataset)), None)


async def below(dataset: str, properties: Iterable[str]) -> list[Dataset]:
    """`dataset`, its children and its snapshots, no deeper; nothing if it does not exist."""
    return await _get(("-Hp", "-r", "-d", "1"), properties, dataset)


async def tree(dataset: str, properties: Iterable[str], depth: int) -> dict[str, Dataset]:
    """`dataset` and all that lies so deep below it, snapshots included, by name; nothing if it does not exist."""
    return {each.name: each for each in await _get(("-Hp", "-r", "-d", str(depth)), properties, dataset)}


async def local(dataset: str) -> dict[str, str]:
    """The properties that were set on this very dataset, and their values."""
    found = await _get(("-Hp", "-s", "local,received"), ("all",), dataset)
    return {name: each.value for one in found for name, each in one.properties.items()}


async def local_below(dataset: str, depth: int) -> list[Dataset]:
    """The properties that were set on each of those so deep below `dataset` themselves."""
    return await _get(("-Hp", "-r", "-d", str(depth), "-s", "local,received"), ("all",), dataset)


async def capabilities() -> Capabilities:
    """Raises Unusable."""
    send, receive = [await _usage(word) for word in ("send", "receive")]
    return Capabilities(letters(send), letters(receive), "-t <receive_resume_token>" in send)


async def features(pool: str) -> frozenset[str]:
    """The pool's features that are enabled, `feature@` left out; none where that cannot be found out."""
    try:
        answer = await _run("zpool", "get", "-H", "all", pool)
    except ZfsError:
        return frozenset()
    rows = (line.split() for line in answer.splitlines())
    return frozenset(
        row[1].removeprefix("feature@")
        for row in rows
        if len(row) > 2 and row[1].startswith("feature@") and row[2] in ("enabled", "active")
    )


async def is_freeing(pool: str) -> bool:
    """Whether the pool still gives back the space of what was destroyed; false where that cannot be found out."""
    try:
        answer = await _run("zpool", "get", "-H", "freeing", pool)
    except ZfsError:
        return False
    row = answer.split()
    return len(row) > 2 and row[2] not in ("-", "0")


async def _get(options: Sequence[str], properties: Iterable[str], dataset: str) -> list[Dataset]:
    wanted = ["type", *properties]
    while True:
        asked = ",".join(name for name in wanted if name not in _unknown) if "all" not in wanted else "all"
        try:
            return _parse(await zfs("get", *options, "-o", "name,property,value,source", asked, dataset))
        except Missing:
            return []
        except ZfsError as error:
            # What this ZFS is too old for is found out by asking for it.
            refused = re.search(r"invalid property '([^']+)'", str(error))
            if refused is None or refused[1] not in asked.split(","):
                raise
            _unknown.add(refused[1])


async def _usage(word: str) -> str:
    try:
        await _run("zfs", word)
    except Unusable:
        raise
    except ZfsError as error:
        return str(error)
    return ""


def letters(usage: str) -> frozenset[str]:
    """
    >>> sorted(letters("send [-RDp] [-[iI] snapshot] <snapshot>; receive [-vM] [-o p=v] [-A]"))
    ['A', 'D', 'M', 'R', 'p', 'v']
    """
    return frozenset("".join(re.findall(r"(?:\[| )-([A-Za-z]+)(?:\]|(?= <))", usage)))


async def _run(name: str, *arguments: str) -> str:
    path = program(name)
    try:
        status, said, complained = await output([path, *arguments], timeout=TIMEOUT)
    except TimeoutError:
        raise ZfsError(f"{name} {' '.join(arguments)}: no answer within {TIMEOUT:g} s") from None
    except OSError as error:
        raise Unusable(f"{path} cannot be run: {error.strerror}") from error
    if status == 0:
        return said
    if len(arguments) > 1:  # else the usage is what was asked for
        complained = complained.partition("usage:")[0]
    words = " ".join(complained.split()) or f"{name} {' '.join(arguments)}: status {status}"
    if any(sign in words for sign in _UNREACHABLE):
        raise Unusable(f"ZFS is not running here: {words}")
    raise from_words(words)


def _parse(answer: str) -> list[Dataset]:
    """Somebody's own property may hold anything; what of it goes on in another line is left out."""
    found: dict[str, dict[str, Value]] = {}
    for line in answer.split("\n"):
        if line.count("\t") < 3:
            continue
        name, key, rest = line.split("\t", 2)
        value, _, source = rest.rpartition("\t")
        found.setdefault(name, {})[key] = Value(value, source)
    return [Dataset(name, properties) for name, properties in found.items()]
