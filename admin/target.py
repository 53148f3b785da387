"""Which shard a command is about: options, environment and settings file, in that order.

What was typed wins over what the environment holds, be it an address itself (`-z`) or the file that has it (`-c`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from manatee.config import Settings, ZooKeeper

DEFAULT_PORT = 2181
_ADDRESS = re.compile(r"([^\s:,/]+)(?::(\d{1,5}))?")


@dataclass(frozen=True)
class Options:
    """What was typed, before or after the subcommand."""

    zk: str | None = None
    shard: str | None = None
    config: str | None = None

    def over(self, other: Options) -> Options:
        """These, completed with the others."""
        return Options(self.zk or other.zk, self.shard or other.shard, self.config or other.config)


@dataclass(frozen=True)
class Target:
    """A shard, and where its ZooKeeper is."""

    zookeeper: ZooKeeper
    root: str
    """The shard's path in ZooKeeper."""
    name: str
    settings: Settings | None
    """Of the local peer, if a settings file was named."""

    @property
    def own_settings(self) -> Settings | None:
        """The settings of a peer of this very shard, if they were named."""
        return self.settings if self.settings and self.settings.shard.root == self.root else None

    @property
    def addresses(self) -> str:
        """ZooKeeper's addresses as people write them: the default port left out."""
        return ",".join(server.removesuffix(f":{DEFAULT_PORT}") for server in self.zookeeper.servers.split(","))


def resolve(typed: Options, environment: Mapping[str, str]) -> Target:
    """The target of a command; raises click's usage errors."""
    from manatee.config import BadConfiguration, ZooKeeper, load

    config = typed.config or environment.get("MANATEE_SITTER_CONFIG")
    try:
        settings = load(config) if config else None
    except BadConfiguration as error:
        from admin.shard import Failed

        raise Failed(str(error)) from error
    held = Options(zk=settings.zookeeper.servers, shard=settings.shard.name) if settings else Options()
    environs = Options(zk=environment.get("ZK_IPS"), shard=environment.get("SHARD"))
    merged = typed.over(held).over(environs) if typed.config else typed.over(environs).over(held)
    if not merged.zk:
        raise click.UsageError("option is required: --zk (or ZK_IPS, or a settings file with --config)")
    if not merged.shard:
        raise click.UsageError("option is required: --shard (or SHARD, or a settings file with --config)")
    if settings is not None and merged.shard == settings.shard.name:
        root, name = settings.shard.root, settings.shard.name
    else:
        root, name = _place(merged.shard)
    tuned = settings.zookeeper.model_dump() if settings else {}
    return Target(ZooKeeper(**{**tuned, "servers": servers(merged.zk)}), root, name, settings)


def servers(written: str) -> str:
    """ZooKeeper's servers as `host:port,...` of `10.0.1.1, 10.0.1.2:2182`; raises click's usage error."""
    found = []
    for word in re.split(r"[,\s]+", written.strip(", \t\n")):
        match = _ADDRESS.fullmatch(word)
        if match is None or not 0 < int(match[2] or DEFAULT_PORT) < 65536:
            raise click.UsageError(f'"{word}" is not a ZooKeeper address: expected HOST or HOST:PORT')
        found.append(f"{match[1]}:{match[2] or DEFAULT_PORT}")
    return ",".join(found)


def _place(shard: str) -> tuple[str, str]:
    """The path in ZooKeeper and the name of a shard given as either."""
    path = shard.rstrip("/")
    if shard.startswith("/") and path:
        return path, path.rsplit("/", 1)[1]
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", shard):
        return f"/manatee/{shard}", shard
    raise click.UsageError(f'"{shard}" is not a shard: expected a name such as 1.moray, or an absolute path')
