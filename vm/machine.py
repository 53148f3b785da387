"""The virtual machine: QEMU and, to share the checkout with it, virtiofsd. Both end with the `async with` block.

One emulated processor of an old model: with more of them, or a newer one, the emulation is several times slower. Its
clock may count instructions (`-icount`): where others keep this machine busy, time passes more slowly in there, and no
deadline of a test is missed for that. It costs a fifth of the speed.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import shlex
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from demo.directory import run_directory
from demo.process import Child

CHECKOUT = Path(__file__).parents[1]
VIRTIOFSD = Path("/usr/lib/qemu/virtiofsd")
MEMORY = "6G"
"""Of the machine, whose disks are in it. What it does not touch takes none of ours."""


class MachineFailed(Exception):
    """The machine did not do what it was started for; the message says what is the matter."""


@dataclass(frozen=True)
class Parts:
    """Where its artifacts are."""

    kernel: Path
    root: Path
    python: Path


async def run_tests(
    parts: Parts, words: Sequence[str], *, name: str, counting: bool, deadline: float, silence: float
) -> int:
    """Run pytest in a machine of its own; returns pytest's exit status.

    With `counting` its clock counts instructions. Its output is on our standard output, each line with the machine's
    name in front, if it has one. Raises MachineFailed if the machine cannot be started or ends without a status, when
    `deadline` seconds have passed, and when it has said nothing for `silence` seconds.
    """
    with run_directory() as directory:
        console, status = directory / "console", directory / "status"
        os.mkfifo(console)
        async with _virtiofsd(directory) as socket, _output(console) as output:
            qemu = await Child.start(
                _qemu(parts, directory, socket, words, counting=counting), log=directory / "qemu.log"
            )
            try:
                async with asyncio.timeout(deadline):
                    await _relay(output, name, silence)
                    await qemu.wait()
            except TimeoutError:
                raise MachineFailed(f"not through within {deadline:.0f} s: the machine was ended") from None
            finally:
                await qemu.kill()
        said = status.read_text().strip() if status.exists() else ""
        if not said.isdecimal():
            complaint = (directory / "qemu.log").read_text(errors="replace").strip()
            raise MachineFailed(f"the machine ended without saying how the tests went: {complaint or 'see above'}")
        return int(said)


def _qemu(parts: Parts, directory: Path, socket: Path, words: Sequence[str], *, counting: bool) -> list[str | Path]:
    tests = base64.b64encode(shlex.join(words).encode()).decode()
    # A program that lies elsewhere at each start would be translated anew at each start, and `zfs` is started thousands
    # of times: hence norandmaps. The kernel complains of tasks that hang, and of memory that is used up, at level 3.
    kernel = f"console=ttyS0 quiet loglevel=4 panic=-1 mitigations=off norandmaps manatee.tests={tests}"
    images = (parts.root / "root.squashfs", parts.python / "python.squashfs")
    return [
        *("qemu-system-x86_64", "-accel", "tcg,tb-size=512", "-cpu", "Nehalem", "-smp", "1"),
        *(("-icount", "shift=0,sleep=on") if counting else ()),  # a nanosecond for each, which is about what it takes
        *("-machine", "q35,memory-backend=memory", "-m", MEMORY),
        *("-object", f"memory-backend-memfd,id=memory,size={MEMORY},share=on"),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-kernel", parts.kernel / "vmlinuz", "-initrd", parts.kernel / "initramfs", "-append", kernel),
        *(word for image in images for word in ("-drive", f"file={image},if=virtio,format=raw,readonly=on")),
        *("-chardev", f"socket,id=checkout,path={socket}"),
        *("-device", "vhost-user-fs-pci,chardev=checkout,tag=checkout"),
        *("-chardev", f"file,id=console,path={directory / 'console'}", "-serial", "chardev:console"),
        *("-chardev", f"file,id=status,path={directory / 'status'}", "-serial", "chardev:status"),
    ]


@contextlib.asynccontextmanager
async def _virtiofsd(directory: Path) -> AsyncIterator[Path]:
    """Shares the checkout; the socket for QEMU. The machine mounts it read-only and keeps to itself what it writes."""
    socket = directory / "virtiofsd.socket"
    words = (f"--socket-path={socket}", "-o", f"source={CHECKOUT}", "-o", "cache=always", "-o", "sandbox=chroot")
    log = directory / "virtiofsd.log"
    daemon = await Child.start([VIRTIOFSD, *words], log=log)
    try:
        async with asyncio.timeout(10):
            while not socket.exists():
                if daemon.returncode is not None:
                    raise MachineFailed(f"virtiofsd does not start: {log.read_text(errors='replace').strip()}")
                await asyncio.sleep(0.02)
        yield socket
    except TimeoutError:
        raise MachineFailed("virtiofsd does not start within 10 s") from None
    finally:
        await daemon.kill()


@contextlib.asynccontextmanager
async def _output(fifo: Path) -> AsyncIterator[asyncio.StreamReader]:
    """What is written to a FIFO. It is open before there is a writer, which would otherwise wait for us."""
    reader = asyncio.StreamReader()
    descriptor = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(descriptor, "rb", buffering=0)
    )
    try:
        yield reader
    finally:
        transport.close()


async def _relay(output: asyncio.StreamReader, name: str, silence: float) -> None:
    """To our standard output until the machine closes its console. Raises MachineFailed if it falls silent."""
    prefix = f"{name:8}| ".encode() if name else b""
    line = b""
    while True:
        try:
            async with asyncio.timeout(silence):
                said = await output.read(4096)
        except TimeoutError:
            raise MachineFailed(f"nothing was heard of the machine for {silence:.0f} s: it was ended") from None
        if not said:
            break
        *complete, line = (line + said.replace(b"\r", b"")).split(b"\n")
        sys.stdout.buffer.write(b"".join(prefix + each + b"\n" for each in complete))
        sys.stdout.buffer.flush()
    sys.stdout.buffer.write(prefix + line + b"\n" if line else b"")
