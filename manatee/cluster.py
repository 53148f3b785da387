"""What ZooKeeper holds about a shard: the wire format that existing clients and existing peers read.

Every model keeps the fields it does not know, so that a state written by a newer peer survives being rewritten by this
one. A new state is made by copying the whole document and changing the copy (`ClusterState.replace`), never field by
field: a shard was once silently unfrozen by code that forgot a field.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from functools import cached_property
from typing import Any, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.alias_generators import to_camel

from manatee.lsn import Lsn

NAME_LIMIT = 63
"""Bytes of a name that PostgreSQL keeps."""


class BadDocument(ValueError):
    """A document in ZooKeeper that is not what it should be; the message names the path of the first bad field."""


class Wire(BaseModel):
    """A JSON document: camelCase outside, unknown fields kept, never changed in place."""

    model_config = ConfigDict(
        frozen=True, extra="allow", alias_generator=to_camel, validate_by_alias=True, validate_by_name=True
    )

    @classmethod
    def parse(cls, content: bytes | str) -> Self:
        """Read one document; raises BadDocument with the path of the bad field."""
        try:
            document = json.loads(content)
        except ValueError as error:
            raise BadDocument(f"not JSON: {error}") from error
        return cls.of(document)

    @classmethod
    def of(cls, document: object) -> Self:
        """The model of an already decoded document; raises BadDocument with the path of the bad field."""
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            first = error.errors()[0]
            path = ".".join(str(part) for part in first["loc"]) or "document"
            raise BadDocument(f"{path}: {first['msg']}") from error

    def document(self) -> dict[str, Any]:
        """The document as it stands in ZooKeeper: what was read, with what was changed; nothing added."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)

    def content(self) -> bytes:
        return json.dumps(self.document(), ensure_ascii=False).encode()

    def replace(self, *, without: tuple[str, ...] = (), **changes: object) -> Self:
        """A copy with some fields changed and others (named as on the wire) taken out."""
        document = self.document()
        for name, value in changes.items():
            alias = type(self).model_fields[name].alias or name
            document[alias] = _plain(value)
        for alias in without:
            document.pop(alias, None)
        return type(self).of(document)


def _plain(value: object) -> object:
    if isinstance(value, Wire):
        return value.document()
    if isinstance(value, Lsn):
        return str(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


class Role(StrEnum):
    """What the cluster state makes of a peer."""

    PRIMARY = "primary"
    SYNC = "sync"
    ASYNC = "async"
    DEPOSED = "deposed"
    UNASSIGNED = "unassigned"


class Peer(Wire):
    """A peer's identity, as it stands in its election node and in the cluster state."""

    id: StrictStr = Field(min_length=1)
    """`ip:postgresPort:backupPort`."""
    ip: StrictStr = Field(min_length=1)
    zone_id: StrictStr = Field(min_length=1)
    pg_url: StrictStr = Field(min_length=1)
    backup_url: StrictStr | None = None

    @property
    def label(self) -> str:
        """The first eight characters of the zone's name: how operators call the peer."""
        return self.zone_id[:8]

    @property
    def postgres_port(self) -> int:
        return int(self.pg_url.rsplit(":", 1)[1].split("/", 1)[0])


class Freeze(Wire):
    """Why and since when no new generation is declared."""

    date: StrictStr = ""
    """Empty where whoever froze the shard did not say: existing tools write any object."""
    reason: StrictStr = ""


class Promote(Wire):
    """An operator's request to move a peer up. Its fields are not trusted here: `sitter.decide` judges it."""

    id: Any = None
    role: Any = None
    async_index: Any = None
    generation: Any = None
    expire_time: Any = None

    def expires(self) -> float:
        """When the request ends, in seconds since the epoch; minus infinity if it does not say so legibly."""
        try:
            moment = datetime.fromisoformat(self.expire_time)
        except (TypeError, ValueError):
            return -math.inf
        return moment.replace(tzinfo=moment.tzinfo or UTC).timestamp()


class Override(Wire):
    """An operator's word that a peer's data are the shard's (`manatee.override`). Not trusted here, as `Promote`."""

    id: Any = None
    generation: Any = None
    date: Any = None
    reason: Any = None
    taken: Any = None
    """When the peer acted on it: it counts once."""


class ClusterState(Wire):
    """Who is what in the shard, in which generation."""

    generation: StrictInt = Field(ge=0)
    primary: Peer
    sync: Peer | None
    asyncs: tuple[Peer, ...] = Field(alias="async")
    deposed: tuple[Peer, ...] = ()
    init_wal: Lsn
    freeze: StrictBool | Freeze | None = None
    one_node_write_mode: StrictBool = False
    promote: Promote | None = None
    override: Override | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.sync is None and not self.one_node_write_mode:
            raise ValueError("sync is null outside of one-node-write mode")
        ids = [peer.id for peer in self.assigned] + [peer.id for peer in self.deposed]
        twice = {id for id in ids if ids.count(id) > 1}
        if twice:
            raise ValueError(f"{min(twice)} is named more than once")
        return self

    @cached_property
    def assigned(self) -> tuple[Peer, ...]:
        """The replication chain, from the primary on down."""
        return (self.primary, *((self.sync,) if self.sync else ()), *self.asyncs)

    @property
    def frozen(self) -> bool:
        return bool(self.freeze)

    @property
    def forced(self) -> bool:
        """This generation was declared by an operator, and its primary's data are the shard's by his word alone."""
        said = self.override
        return said is not None and type(said.generation) is int and said.generation == self.generation

    @property
    def override_due(self) -> bool:
        """The primary has yet to act on the operator's word."""
        said = self.override
        return said is not None and self.forced and said.id == self.primary.id and said.taken is None

    def role_of(self, peer_id: str) -> Role:
        if peer_id == self.primary.id:
            return Role.PRIMARY
        if self.one_node_write_mode:
            return Role.UNASSIGNED
        if self.sync and peer_id == self.sync.id:
            return Role.SYNC
        if any(peer.id == peer_id for peer in self.asyncs):
            return Role.ASYNC
        if any(peer.id == peer_id for peer in self.deposed):
            return Role.DEPOSED
        return Role.UNASSIGNED


class Comparison(StrEnum):
    """How a peer's WAL stands to its upstream's (design, section 6)."""

    PREFIX = "prefix"
    DIVERGED = "diverged"
    AHEAD = "ahead"


class PeerStatus(Wire):
    """What a peer says of itself, in an ephemeral node of the session that holds its election node."""

    initialized: StrictBool
    """It has a database."""
    system_identifier: StrictStr | None = None
    serving: StrictBool = False
    ready: StrictBool = False
    compares: Comparison | None = None
    restoring: StrictBool = False
    torn: StrictBool = False
    """A rewind of its data was cut short: they must not be started."""
    generation: StrictInt = 0
    """The newest generation it has acted on."""
    proof: StrictInt = 0
    timeline: StrictInt | None = None
    lsn: Lsn | None = None
    """How far its WAL is on disk, whether PostgreSQL runs or not."""
    redo: Lsn | None = None
    """Where its recovery would begin: who keeps WAL for it keeps it from there on."""
    running: StrictBool | None = None
    """A PostgreSQL of it runs, whatever it is worth; None if it does not say."""
    status_port: StrictInt | None = None
    """Of its sitter's HTTP server; None if it does not say, or says what is no port."""
    diverged: StrictStr | None = None
    """From whom its data have diverged, and where, in a sentence; None if they have not, or it is not known."""
    version: StrictStr = ""

    @field_validator("status_port", mode="before")
    @classmethod
    def _port(cls, said: object) -> int | None:
        """The rest of what it says is worth as much without it."""
        return said if type(said) is int and 0 < said < 65536 else None


class Cluster(Wire):
    """Who set the shard up, and the database's identity: null until `initdb` is through."""

    created: StrictStr
    by: StrictStr
    """The id of the peer that runs `initdb`."""
    system_identifier: StrictStr | None = None
    pg_version: StrictStr | None = None


def election_data(peer: Peer) -> Mapping[str, object]:
    """The content of a peer's election node: its identity without the id, and that a status will follow."""
    document = {key: value for key, value in peer.document().items() if key != "id"}
    return {**document, "status": True}


def written_time(seconds: float) -> str:
    """A moment as the cluster state writes it: `2026-01-16T08:08:33.000Z`."""
    moment = datetime.fromtimestamp(seconds, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"


def application_name(peer: Peer) -> str:
    """The name a standby connects under, which is its entry in `synchronous_standby_names`: its pgUrl.

    PostgreSQL cuts names at 63 bytes (NAMEDATALEN), which could make two peers one; a longer pgUrl is therefore
    shortened here, with a digest of the whole in its end.
    """
    name = peer.pg_url.encode()
    if len(name) <= NAME_LIMIT:
        return peer.pg_url
    digest = hashlib.sha256(name).hexdigest()[:16]
    return name[: NAME_LIMIT - 17].decode(errors="ignore") + "~" + digest
