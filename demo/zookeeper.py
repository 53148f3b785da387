"""A real ZooKeeper server on this machine, alone or one of an ensemble: our child, of Debian's jars and a Java.

Sessions end within half a second of their timeout (`tickTime=500`: ZooKeeper rounds an expiry up to its next tick).
What it has answered survives SIGKILL, and the server can be stopped, killed and started again on the same data.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from demo.process import Child, busy

JARS = Path("/usr/share/java")
MAIN = "org.apache.zookeeper.server.quorum.QuorumPeerMain"

_ALWAYS = (
    "-Djava.awt.headless=true",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
)

SMALL = (
    "-Xms32m",
    "-Xmx192m",
    # A demo is over before the optimizing compiler and the parallel collector have paid for themselves.
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-XX:-UsePerfData",
    # We kill processes, not machines, and the page cache survives that: no fsync for each write.
    "-Dzookeeper.forceSync=no",
    # Kilobytes a transaction log is extended by; the default is 64 MB for every server that is started.
    "-Dzookeeper.preAllocSize=1024",
)
"""What a server of a demo or a test is started with: for Java and for ZooKeeper."""


class ZooKeeperFailed(Exception):
    """ZooKeeper cannot be started or ended before it served; the message says where its log is."""


class ZooKeeperServer:
    """One server with its data in `directory`, listening on `address:port`.

    >>> async with ZooKeeperServer(directory, address="127.0.0.1", port=2181) as zookeeper:
    ...     client = KazooClient(zookeeper.servers)
    """

    def __init__(
        self,
        directory: Path,
        *,
        address: str = "127.0.0.1",
        port: int = 2181,
        members: Sequence[str] = (),
        java_options: Sequence[str] = SMALL,
    ) -> None:
        """`members`: the addresses of the ensemble's servers, this one's among them; none for a server alone."""
        self.directory = directory
        self.address = address
        self.port = port
        self.members = members
        self.log = directory / "zookeeper.log"
        self._java_options = java_options
        self._child: Child | None = None

    @property
    def servers(self) -> str:
        """The connect string."""
        return f"{self.address}:{self.port}"

    @property
    def running(self) -> bool:
        return self._child is not None and self._child.returncode is None

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child is not None and self.running else None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.kill()

    def command(self) -> list[str | Path]:
        """What starts the server, after `write_settings`; raises ZooKeeperFailed if Java or the jars are missing."""
        java = shutil.which("java")
        jars = [JARS / name for name in ("zookeeper.jar", "slf4j-simple.jar")]
        if java is None or not all(jar.exists() for jar in jars):
            raise ZooKeeperFailed(
                "ZooKeeper is not installed: expected Java and /usr/share/java/zookeeper.jar,"
                " from Debian's packages default-jre-headless and libzookeeper-java"
            )
        # zookeeper.jar names the jars it needs in its manifest.
        return [java, *_ALWAYS, *self._java_options, "-cp", ":".join(map(str, jars)), MAIN, self.directory / "zoo.cfg"]

    def write_settings(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        ensemble = "".join(f"server.{number}={each}:2888:3888\n" for number, each in enumerate(self.members, 1))
        if self.members:
            (self.directory / "data").mkdir(exist_ok=True)
            (self.directory / "data" / "myid").write_text(f"{self.members.index(self.address) + 1}\n")
        (self.directory / "zoo.cfg").write_text(
            f"dataDir={self.directory / 'data'}\n"
            f"clientPort={self.port}\n"
            f"clientPortAddress={self.address}\n"
            "tickTime=500\n"
            "initLimit=20\n"
            "syncLimit=6\n"
            "minSessionTimeout=1000\n"
            "maxSessionTimeout=60000\n"
            "maxClientCnxns=0\n"
            "admin.enableServer=false\n"
            "4lw.commands.whitelist=srvr,ruok,stat,mntr,cons,dump\n" + ensemble
        )

    async def start(self, *, timeout: float = 180.0) -> None:
        """Start and wait until it serves, `timeout` seconds at most; raises ZooKeeperFailed."""
        if self.running:
            return
        if busy(self.address, self.port):
            raise ZooKeeperFailed(f"port {self.port} of {self.address} is in use: ZooKeeper needs it")
        self.write_settings()
        self._child = await Child.start(self.command(), log=self.log)
        try:
            async with asyncio.timeout(timeout):
                while not await self.serving():
                    if not self.running:
                        raise ZooKeeperFailed(f"ZooKeeper ended with status {self._child.returncode}: see {self.log}")
                    await asyncio.sleep(0.05)
        except TimeoutError:
            await self.kill()
            raise ZooKeeperFailed(f"ZooKeeper does not serve after {timeout:.0f} s: see {self.log}") from None
        except BaseException:
            await self.kill()
            raise

    async def stop(self, *, grace: float = 10.0) -> None:
        """Stop it cleanly; after `grace` seconds it is killed."""
        if self._child is not None:
            await self._child.terminate(grace=grace)

    async def kill(self) -> None:
        """SIGKILL; returns when it is gone."""
        if self._child is not None:
            await self._child.kill()

    async def serving(self) -> bool:
        return await self.mode() is not None

    async def mode(self) -> str | None:
        """`standalone`, `leader`, `follower`, or None while it serves nobody."""
        said = await four_letters("srvr", self.address, self.port)
        return next((line.split()[1] for line in said.splitlines() if line.startswith("Mode: ")), None)


async def four_letters(word: str, address: str, port: int, *, timeout: float = 2.0) -> str:
    """What the server answers to one of ZooKeeper's four-letter words; empty if it does not answer in time."""
    try:
        async with asyncio.timeout(timeout):
            reader, writer = await asyncio.open_connection(address, port)
            try:
                writer.write(word.encode())
                return (await reader.read()).decode(errors="replace")
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return ""
