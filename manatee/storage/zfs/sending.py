"""A snapshot on its way out: what the receiver can make use of decides whether all of it is sent or the difference."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from manatee.storage import Offer, datadir, pipe
from manatee.storage.datadir import Identity
from manatee.storage.errors import SendFailed
from manatee.storage.zfs.command import Dataset, zfs
from manatee.storage.zfs.errors import ZfsError
from manatee.storage.zfs.interface import Interface, Moving, Option, Order
from manatee.storage.zfs.names import is_own

DRIVER = "zfs"
_HEADER = 312
"""Bytes of a stream before each record of a file (`dmu_replay_record_t`): with small records it is a share of all."""
_AROUND = 5
"""About how many such there are of a file beside its contents."""
_RECORD = 128 << 10
_SECTOR = 512


@dataclass(frozen=True)
class Cut:
    """The stream that a `receive_resume_token` belongs to."""

    snapshot: str
    """In full, by the sender's name of then."""
    guid: str
    base: str | None
    """The guid of the snapshot that it builds on."""
    raw: bool


async def read_token(token: str) -> Cut | None:
    """What a token says of itself; None if this machine's zfs(8) makes nothing of it."""
    if not re.fullmatch(r"[0-9a-f-]+", token):
        return None
    try:
        said = await zfs("send", "-nvt", token)
    except ZfsError:
        return None
    name = re.search(r"toname = (\S+)", said)
    guids = {key: str(int(value, 16)) for key, value in re.findall(r"(toguid|fromguid) = (?:0x)?([0-9a-f]+)", said)}
    if name is None or "toguid" not in guids:
        return None
    return Cut(name[1], guids["toguid"], guids.get("fromguid"), "rawok = 1" in said)


def asking(wanted: Mapping[str, str]) -> str:
    """The id of the peer that asks; empty if it does not say, or something that is none."""
    peer = wanted.get("peer", "")
    return peer if re.fullmatch(r"[0-9A-Za-z.:]{1,100}", peer) else ""


def resumable(wanted: Mapping[str, str]) -> bool:
    """Whether the peer that asks can go on with a stream that is cut."""
    return "resumable" in wanted and asking(wanted) != ""


def base_for(wanted: Mapping[str, str], snapshots: Sequence[Dataset]) -> Dataset | None:
    """The newest of our own snapshots that the receiver has as well."""
    theirs = set(wanted.get("guids", "").split(","))
    return next((each for each in reversed(snapshots) if is_own(each.snapshot) and each["guid"] in theirs), None)


def options_for(
    wanted: Mapping[str, str], live: Dataset, base: Dataset | None, able: frozenset[Option]
) -> frozenset[Option]:
    """What both ends understand and these data have any use for."""
    theirs = set(wanted.get("accepts", "").split(","))
    common = {option for option in able if option in theirs}
    # A raw difference needs a base that was received raw as well: its initialization vectors are the same then.
    if not live.encrypted or (base is not None and base["ivsetguid"] not in wanted.get("ivsets", "").split(",")):
        common.discard("raw")
    if "raw" in common:
        return frozenset({"raw"})  # the data as they lie on the disk: compressed, large and embedded as they are
    if live["compression"].startswith("zstd") and "zstd" not in theirs:
        common.discard("compressed")
    return frozenset(common)


def guess(data_dir: Path, live: Dataset) -> int:
    """About how many bytes a stream of all of it has, where ZFS cannot say: rather more than less, as holes count.

    (What the dataset refers to, and how well that is compressed, would count ZFS's own blocks as well.)
    """
    record = live.number("recordsize") or _RECORD

    def in_stream(size: int) -> int:
        records = -(-size // record)
        return min(records * record, -(-size // _SECTOR) * _SECTOR) + (records + _AROUND) * _HEADER

    return datadir.size_on_the_way(data_dir, frozenset(), in_stream)


def guess_difference(live: Dataset, snapshots: Sequence[Dataset], sent: Dataset, base: Dataset) -> int:
    """The same for what has changed since `base`."""
    later = snapshots[snapshots.index(base) :]
    # What was written since is what is new by size, and what took the place of what only older snapshots have.
    size = max(0, sent.number("referenced") - base.number("referenced")) + sum(each.number("used") for each in later)
    with contextlib.suppress(ValueError):
        size = int(size * float(live["compressratio"].rstrip("x")))
    return size + size // (live.number("recordsize") or _RECORD) * _HEADER + (1 << 20)


class Sending:
    """`manatee.storage.Sending`: the format carries checksums, and an end that a receiver insists on."""

    checks_itself = True

    def __init__(self, offer: Offer, fd: int, moving: Moving, timeout: float) -> None:
        self.offer = offer
        self.fd = fd
        self.moved = 0
        self.complete = False
        self._moving = moving
        self._timeout = timeout

    async def finished(self) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                await self._moving.ended()
        except TimeoutError:
            raise SendFailed("ZFS closed its end of the stream and did not say how it went") from None
        except ZfsError as error:
            raise SendFailed(f"ZFS did not send all of it: {error}") from error
        self.complete = True


@asynccontextmanager
async def sending(interface: Interface, order: Order, offer: Offer, timeout: float) -> AsyncIterator[Sending]:
    """The stream of `order`; when the block is left, nothing of it runs any more."""
    read, write = pipe.open_pipe()
    os.set_blocking(read, False)
    try:
        async with interface.send(order, write) as moving:
            os.close(write)
            write = -1
            try:
                yield Sending(offer, read, moving, timeout)
            finally:
                os.close(read)  # who writes into it ends with that
                read = -1
    finally:
        for fd in (read, write):
            if fd >= 0:
                os.close(fd)


def offered(
    order: Order,
    identity: Identity,
    size: int | None,
    *,
    sent: Dataset,
    base: Dataset | None,
    peer: str,
    encrypted: bool,
) -> Offer:
    """The offer of a stream by `peer`, with what only the other end's driver reads."""
    detail = {"form": "rest" if order.token else "increment" if base else "full", "peer": peer}
    if detail["form"] == "increment" and base is not None:
        detail["base"] = base["guid"]
    if detail["form"] == "full":
        detail["space"] = sent["referenced"]
    if encrypted:
        detail["encrypted"] = "yes"
    if "raw" in order.options:
        detail["raw"] = "yes"
    return Offer(DRIVER, order.snapshot.rpartition("@")[2], identity, size, detail, continues=order.token is not None)
