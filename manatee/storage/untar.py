"""A tar stream into a directory, safely: plain files and directories only, nothing above or beside the target.

The stream comes from another machine. Links, devices, absolute names, `..` and a name that comes twice are refused, so
no file is ever written through something the stream itself has put there; while it fills, the target is closed to every
other user. Runs in a thread; memory stays flat whatever the size.
"""

from __future__ import annotations

import errno
import os
import tarfile
import threading
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from manatee.storage.child import Account
from manatee.storage.errors import NoSpace, ReceiveFailed

_CHUNK = 1 << 20


def extract(stream: BinaryIO, target: Path, *, owner: Account | None, given_up: threading.Event) -> int:
    """Write the files of the tar `stream` under the existing directory `target`; the number of files.

    Reads the stream to its end. Ends soon after `given_up` is set. Raises ReceiveFailed, NoSpace.
    """
    files = 0
    try:
        with tarfile.open(fileobj=stream, mode="r|", bufsize=_CHUNK) as archive:
            for member in archive:
                _write(archive, member, target, owner, given_up)
                files += 1
                archive.members.clear()  # type: ignore[attr-defined]  # it would remember them all
        while stream.read(_CHUNK):  # the padding after the archive's end
            pass
    except tarfile.TarError as error:
        raise ReceiveFailed(f"the stream is not the tar archive it should be: {error}") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpace(f"no space left in {target.parent}") from error
        raise ReceiveFailed(f"cannot write under {target}: {error}") from error
    return files


def _write(
    archive: tarfile.TarFile, member: tarfile.TarInfo, target: Path, owner: Account | None, given_up: threading.Event
) -> None:
    path = target.joinpath(*_parts(member.name))
    if member.isdir():
        path.mkdir(mode=0o700, exist_ok=True)
        if owner is not None and path != target:
            os.chown(path, owner.uid, owner.gid, follow_symlinks=False)
        return
    if not member.isreg():
        raise ReceiveFailed(
            f'"{member.name}" in the stream is a link or a device: only files and directories are taken'
        )
    content = archive.extractfile(member)
    assert content is not None
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        if owner is not None:
            os.fchown(file, owner.uid, owner.gid)
        left = member.size
        while left:
            if given_up.is_set():
                raise ReceiveFailed("given up")
            chunk = content.read(min(_CHUNK, left))
            if not chunk:
                raise ReceiveFailed(f'the stream ends in the middle of "{member.name}"')
            left -= len(chunk)
            _write_all(file, chunk)
    finally:
        os.close(file)


def _parts(name: str) -> list[str]:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        raise ReceiveFailed(f'"{name}" in the stream would lie outside the data directory')
    return list(path.parts)


def _write_all(file: int, chunk: bytes) -> None:
    rest = memoryview(chunk)
    while rest:
        rest = rest[os.write(file, rest) :]
