"""The driver for machines without ZFS: a snapshot is the tar stream of `pg_basebackup` against the local server.

The WAL travels in the same stream (`-X fetch`: `-X stream` cannot write to a pipe, and with `-X none` a new standby
would need WAL from its upstream that may be gone). A backup taken from a standby is consistent at that standby's
minimum recovery point, which lies within the fetched WAL, so the new peer reaches consistency by itself and streams
only what came after. A temporary replication slot of our own keeps the WAL until it has been fetched; it goes with our
connection. No snapshot is ever kept here.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import threading
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path

from manatee.config import Settings
from manatee.storage import Dropped, Offer, Receiving, Sending, Snapshot, datadir, localserver, pipe, untar
from manatee.storage.child import Account, Child, account, running
from manatee.storage.datadir import Identity
from manatee.storage.errors import NoDatabase, NoSpace, NotServing, ReceiveFailed, SendFailed, StorageError

_RESTORING = "data.restoring-"
_DROPPING = "data.dropping-"
_ADOPTING = "data.adopting-"
"""Complete and checked: it takes the live directory's name as soon as that is free, after a death as well."""
_ISOLATED_IN = "isolated"
_ISOLATED = re.compile(r".+-[0-9]{13}")
_TAR_BLOCK = 512
_NOT_SENT = frozenset(
    {"pg_wal", "pg_replslot", "pg_dynshmem", "pg_notify", "pg_serial", "pg_snapshots", "pg_stat_tmp", "pgsql_tmp"}
)
"""Whose contents `pg_basebackup` leaves out (`basebackup.c`), and the WAL, of which little is sent."""
_ROOM = 1.02
"""Files take a little more than their bytes."""


class BaseBackup:
    """`Storage` of a plain directory: `<directory>/data`, and `isolated/` beside it."""

    driver = "basebackup"
    keeps_snapshots = False

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._directory = settings.storage.directory
        self._user = account(settings.postgres.user)

    @property
    def data_dir(self) -> Path:
        return self._settings.storage.data_dir

    @property
    def detail(self) -> Mapping[str, object]:
        return {"directory": str(self._directory)}

    async def open(self) -> None:
        await asyncio.to_thread(self._finish_adoption)

    def _finish_adoption(self) -> None:
        adopting = [path for path in _entries(self._directory) if path.name.startswith(_ADOPTING)]
        if adopting and not os.path.lexists(self.data_dir):
            _rename(adopting[-1], self.data_dir)

    async def prepare(self) -> None:
        def make() -> None:
            self._directory.mkdir(parents=True, exist_ok=True)
            if self._user and self._directory.stat().st_uid != self._user.uid:
                os.chown(self._directory, self._user.uid, self._user.gid)

        try:
            await asyncio.to_thread(make)
        except OSError as error:
            raise StorageError(f"{self._directory} cannot be made: {error.strerror}") from error

    async def has_data(self) -> bool:
        return await asyncio.to_thread(datadir.has_database, self.data_dir)

    async def identity(self) -> Identity:
        return await asyncio.to_thread(datadir.identity, self.data_dir)

    async def estimate(self) -> int:
        await self._check()
        return await asyncio.to_thread(_tar_size, self.data_dir)

    async def related(self) -> frozenset[str]:
        return frozenset()

    async def wanted(self) -> Mapping[str, str]:
        return {"driver": self.driver}

    def send(self, wanted: Mapping[str, str]) -> AbstractAsyncContextManager[Sending]:
        return self._send(wanted)

    def receive(self, offer: Offer) -> AbstractAsyncContextManager[Receiving]:
        return self._receive(offer)

    async def isolate(self, prefix: str, *, base: bool = True) -> Path | None:  # noqa: ARG002 - always a full one
        # What is left of a restore must not become live by itself when these data have made way.
        await self.clear_leftovers()
        return await asyncio.to_thread(_isolate, self.data_dir, prefix, self._user)

    async def drop_isolated(self, keep: int) -> Dropped:
        def drop() -> Dropped:
            ours = (path for path in _entries(self._directory / _ISOLATED_IN) if _ISOLATED.fullmatch(path.name))
            kept = sorted(ours, key=lambda path: path.name[-13:])
            old = kept[: max(0, len(kept) - keep)]
            return Dropped(sum(_destroy(path, self._directory) for path in old))

        return await asyncio.to_thread(drop)

    async def clear_leftovers(self, *, resumable: bool = False) -> int:  # noqa: ARG002 - nothing to go on from
        def clear() -> int:
            self._finish_adoption()
            found = [
                path for path in _entries(self._directory) if path.name.startswith((_RESTORING, _DROPPING, _ADOPTING))
            ]
            for path in found:
                _remove(path)
            return len(found)

        return await asyncio.to_thread(clear)

    async def release_stale(self) -> int:
        return 0

    async def snapshots(self) -> Sequence[Snapshot]:
        return ()

    async def take_snapshot(self) -> Snapshot:
        raise StorageError("the basebackup driver keeps no snapshots")

    async def drop_snapshot(self, name: str) -> None:
        raise StorageError(f"{name} is not kept here: the basebackup driver keeps no snapshots")

    async def _check(self) -> Identity:
        def check() -> Identity:
            here = datadir.identity(self.data_dir)
            datadir.check_whole(self._settings)
            return here

        return await asyncio.to_thread(check)

    @asynccontextmanager
    async def _send(self, wanted: Mapping[str, str]) -> AsyncIterator[Sending]:
        if wanted.get("driver", self.driver) != self.driver:
            raise StorageError(f"this peer's storage is {self.driver}, the request is for {wanted['driver']}")
        here = await self._check()
        async with AsyncExitStack() as stack:
            server = await stack.enter_async_context(localserver.connect(self._settings, "backup"))
            await server.keep_wal()
            segment = int((await server.row("SELECT setting FROM pg_settings WHERE name = 'wal_segment_size'"))[0])
            size = await asyncio.to_thread(_tar_size, self.data_dir) + segment
            offer = Offer(self.driver, f"{time.time_ns() // 1_000_000:013d}", here, size)
            read, write = pipe.open_pipe()
            stack.callback(os.close, read)
            os.set_blocking(read, False)
            try:
                program = running(self._command(offer.snapshot), user=self._user, stdout=write)
                child = await stack.enter_async_context(program)
            except OSError as error:
                raise NotServing(f"pg_basebackup cannot be run: {error}") from error
            finally:
                os.close(write)
            yield _SendingTar(offer, read, child, self._settings.backup.idle_timeout)

    def _command(self, snapshot: str) -> list[str]:
        return [
            str(self._settings.postgres.bin_dir / "pg_basebackup"),
            *("--pgdata=-", "--format=tar", "--wal-method=fetch", "--checkpoint=fast"),
            *("--no-manifest", "--no-sync", "--no-password"),
            f"--label=manatee {snapshot}",
            f"--host={self._settings.postgres.socket_dir}",
            f"--port={self._settings.peer.postgres_port}",
            f"--username={localserver.USER}",
        ]

    @asynccontextmanager
    async def _receive(self, offer: Offer) -> AsyncIterator[Receiving]:
        if offer.driver != self.driver:
            raise ReceiveFailed(f"the stream is of the {offer.driver} driver, the storage here is {self.driver}")
        await asyncio.to_thread(self._finish_adoption)
        await asyncio.to_thread(_check_room, self._directory, offer.size)
        target = self._directory / f"{_RESTORING}{uuid.uuid4().hex[:8]}"
        try:
            target.mkdir(mode=0o700)
        except OSError as error:
            raise ReceiveFailed(f"cannot create {target}: {error.strerror}") from error
        receiving = _ReceivingTar(target, self.data_dir, self._user)
        try:
            yield receiving
        finally:
            await asyncio.shield(asyncio.create_task(receiving.end()))


class _SendingTar:
    checks_itself = False  # tar has no checksum over the contents of files

    def __init__(self, offer: Offer, fd: int, child: Child, timeout: float) -> None:
        self.offer = offer
        self.fd = fd
        self.moved = 0
        self._child = child
        self._timeout = timeout

    async def finished(self) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                status = await self._child.ended()
        except TimeoutError:
            raise SendFailed("pg_basebackup closed its output and did not end") from None
        if status != 0:
            raise SendFailed(f"pg_basebackup ended with status {status}: {self._child.said or 'it said nothing'}")


class _ReceivingTar:
    """A thread takes the files out of the pipe, so that neither the disk nor the parsing holds up the event loop."""

    def __init__(self, target: Path, data_dir: Path, user: Account | None) -> None:
        self._target = target
        self._data_dir = data_dir
        self._user = user
        self._given_up = threading.Event()
        read, self.fd = pipe.open_pipe()
        os.set_blocking(self.fd, False)
        self._open = True
        self._extraction = asyncio.create_task(asyncio.to_thread(self._extract, read))
        self._adoption: asyncio.Task[Path | None] | None = None

    def _extract(self, read: int) -> None:
        with open(read, "rb", buffering=0) as stream:
            untar.extract(stream, self._target, owner=self._user, given_up=self._given_up)

    async def complete(self) -> Identity:
        self._close()
        await asyncio.shield(self._extraction)
        return await asyncio.to_thread(self._finish)

    def _finish(self) -> Identity:
        try:
            here = datadir.identity(self._target)
        except NoDatabase as error:
            raise ReceiveFailed("the stream was no complete database") from error
        if not (self._target / "backup_label").is_file():
            raise ReceiveFailed("the stream holds no backup_label: it is not a base backup")
        datadir.mark_restored(self._target)
        if self._user is not None:
            os.chown(self._target, self._user.uid, self._user.gid)
        datadir.make_durable(self._target, self._given_up)
        return here

    async def adopt(self, prefix: str) -> Path | None:
        # A cancellation does not stop it half-way: `end` waits for it.
        self._adoption = asyncio.create_task(asyncio.to_thread(self._take_place, prefix))
        return await asyncio.shield(self._adoption)

    def _take_place(self, prefix: str) -> Path | None:
        adopting = self._target.with_name(self._target.name.replace(_RESTORING, _ADOPTING))
        _rename(self._target, adopting)
        old = _isolate(self._data_dir, prefix, self._user)
        _rename(adopting, self._data_dir)
        return old

    async def end(self) -> None:
        """Stop the thread and take away what was not adopted."""
        self._given_up.set()
        self._close()
        with contextlib.suppress(StorageError, OSError):
            await self._extraction
        if self._adoption is not None:
            await asyncio.wait([self._adoption])
        with contextlib.suppress(StorageError):  # what stays is for `clear_leftovers`
            await asyncio.to_thread(_remove, self._target)

    def _close(self) -> None:
        if self._open:
            self._open = False
            os.close(self.fd)


def _tar_size(data_dir: Path) -> int:
    def in_tar(size: int) -> int:
        return _TAR_BLOCK + -(-size // _TAR_BLOCK) * _TAR_BLOCK

    return datadir.size_on_the_way(data_dir, _NOT_SENT, in_tar)


def _check_room(directory: Path, size: int | None) -> None:
    try:
        free = shutil.disk_usage(directory).free
    except OSError as error:
        raise ReceiveFailed(f"{directory} cannot be used: {error.strerror}") from error
    if size is not None and size * _ROOM > free:
        raise NoSpace(f"the snapshot needs about {size >> 20} MiB and {directory} has {free >> 20} MiB free")


def _isolate(data_dir: Path, prefix: str, user: Account | None) -> Path | None:
    isolated = data_dir.parent / _ISOLATED_IN
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", prefix):
        raise ValueError(f'"{prefix}" cannot begin the name of a directory')
    if data_dir.is_symlink():
        raise StorageError(f"{data_dir} is a symbolic link: it must be a directory, so that it can be replaced")
    try:
        if not data_dir.exists():
            return None
        if not any(data_dir.iterdir()):
            data_dir.rmdir()
            return None
        if not isolated.exists():
            isolated.mkdir(mode=0o700)
            if user is not None:
                os.chown(isolated, user.uid, user.gid)
            datadir.sync_directory(isolated.parent)
    except OSError as error:
        raise StorageError(f"{data_dir} cannot be put aside: {error}") from error
    # The time is unique here: data come and go one at a time, milliseconds apart at least.
    target = isolated / f"{prefix}-{time.time_ns() // 1_000_000:013d}"
    _rename(data_dir, target)
    return target


def _rename(old: Path, new: Path) -> None:
    """Durably, and never over something that is there."""
    if os.path.lexists(new):
        raise StorageError(f"{new} exists already: it will not be replaced")
    try:
        old.rename(new)
        for directory in {old.parent, new.parent}:
            datadir.sync_directory(directory)
    except OSError as error:
        raise StorageError(f"{old} cannot be renamed to {new}: {error.strerror}") from error


def _destroy(path: Path, directory: Path) -> bool:
    """Renamed first, so that nobody takes a half of it for the whole. False if somebody else was faster."""
    doomed = directory / f"{_DROPPING}{uuid.uuid4().hex[:8]}"
    try:
        path.rename(doomed)
    except FileNotFoundError:
        return False
    _remove(doomed)
    return True


def _remove(path: Path) -> None:
    if os.path.lexists(path):
        shutil.rmtree(path, ignore_errors=True)
        if os.path.lexists(path):
            raise StorageError(f"{path} cannot be removed")


def _entries(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except FileNotFoundError:
        return []
