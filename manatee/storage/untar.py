"""A tar stream into a directory, safely: plain files and directories only, nothing above or beside the target.

The stream comes from another machine. Links, devices, absolute names, `..` and a name that comes twice are refused, so
no file is ever written through something the stream itself has put there; while it fills, the target is closed to every
other user. A stream that ends without the archive's end mark is refused as well. Runs in a thread; memory stays flat
whatever the size. (The standard library's own extraction takes a bad header for the end, and remembers every member.)
"""

from __future__ import annotations

import errno
import os
import tarfile
import threading
from io import RawIOBase
from pathlib import Path, PurePosixPath

from manatee.storage.child import Account
from manatee.storage.errors import NoSpace, ReceiveFailed

_BUFFER = 256 << 10
_BLOCK = tarfile.BLOCKSIZE


def extract(stream: RawIOBase, target: Path, *, owner: Account | None, given_up: threading.Event) -> None:
    """Write the files of the tar `stream` under the existing directory `target`, and read it to its end.

    Ends soon after `given_up` is set. Raises ReceiveFailed, NoSpace.
    """
    buffer = memoryview(bytearray(_BUFFER))
    try:
        while not given_up.is_set():
            header = bytes(_take(stream, buffer[:_BLOCK], "between two files"))
            if not any(header):
                break
            member = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
            _write(stream, buffer, member, target.joinpath(*_parts(member.name)), owner, given_up)
        while stream.readinto(buffer):  # the second half of the end mark, and padding
            pass
    except tarfile.TarError as error:
        raise ReceiveFailed(f"the stream is not the tar archive it should be: {error}") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpace(f"no space left in {target.parent}") from error
        raise ReceiveFailed(f"cannot write under {target}: {error}") from error


def _write(
    stream: RawIOBase,
    buffer: memoryview,
    member: tarfile.TarInfo,
    path: Path,
    owner: Account | None,
    given_up: threading.Event,
) -> None:
    if member.isdir():
        path.mkdir(mode=0o700)
        if owner is not None:
            os.chown(path, owner.uid, owner.gid, follow_symlinks=False)
        return
    if not member.isreg():
        raise ReceiveFailed(
            f'"{member.name}" in the stream is a link or a device: only files and directories are taken'
        )
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        if owner is not None:
            os.fchown(file, owner.uid, owner.gid)
        left = member.size
        while left and not given_up.is_set():
            # What is missing to a whole block comes with the end of the file, and is not part of it.
            padded = min(len(buffer), -(-left // _BLOCK) * _BLOCK)
            content = _take(stream, buffer[:padded], f'in the middle of "{member.name}"')[:left]
            left -= len(content)
            while content:
                content = content[os.write(file, content) :]
    finally:
        os.close(file)


def _take(stream: RawIOBase, wanted: memoryview, where: str) -> memoryview:
    """Fill `wanted`. Raises ReceiveFailed if the stream ends before."""
    rest = wanted
    while rest:
        count = stream.readinto(rest)
        if not count:
            raise ReceiveFailed(f"the stream ends {where}")
        rest = rest[count:]
    return wanted


def _parts(name: str) -> tuple[str, ...]:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ReceiveFailed(f'"{name}" in the stream would lie outside the data directory')
    return path.parts
