"""What the PostgreSQL servers of a shard were seen to say, and which of their replication connections matters.

Data and one rule, no I/O: `admin.postgres` fills these in, `admin.tables` and `admin.problems` read them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from manatee.cluster import ClusterState, Peer, application_name
from manatee.lsn import Lsn

_TOOLS = ("pg_basebackup", "pg_receivewal", "pg_recvlogical")


@dataclass(frozen=True)
class Walsender:
    """A row of `pg_stat_replication`: one standby as its upstream sees it."""

    application_name: str
    address: str | None
    """Of the client; None over a Unix socket."""
    state: str
    """`startup`, `catchup`, `streaming`, `backup` or `stopping`."""
    sync_state: str
    """`async`, `potential`, `sync` or `quorum`."""
    sent: Lsn | None = None
    write: Lsn | None = None
    flush: Lsn | None = None
    replay: Lsn | None = None


@dataclass(frozen=True)
class Observed:
    """What one peer's PostgreSQL answered."""

    error: str | None = None
    """Why it could not be asked; None when it answered."""
    walsenders: tuple[Walsender, ...] = ()
    lag: float | None = None
    """Seconds it is behind in replaying; None when it does not know, or does not replay at all."""
    in_recovery: bool = False
    """It is a standby."""
    read_only: bool = False
    """A transaction begun now could not write."""
    pending_restart: tuple[str, ...] = ()
    """Settings that were changed and wait for a restart of PostgreSQL."""

    @property
    def online(self) -> bool:
        return self.error is None


Observations = Mapping[str, Observed]
"""By the peer's id."""

NOT_ASKED = Observed(error="not asked")
"""A deposed peer runs no PostgreSQL, so nobody asks it."""


def expected_downstreams(state: ClusterState) -> dict[str, Peer | None]:
    """For each assigned peer's id, the peer that replicates from it: the next in the chain."""
    chain = state.assigned
    return {peer.id: downstream for peer, downstream in zip(chain, (*chain[1:], None), strict=True)}


def borne_by(walsender: Walsender, known: Iterable[Peer]) -> Peer | None:
    """The peer at the other end of a replication connection.

    By its application name first, its address second: on one machine all connections come from one address, and an
    address translation may stand between peers.
    """
    peers = list(known)
    for peer in peers:
        if walsender.application_name == application_name(peer):
            return peer
    for peer in peers:
        if walsender.address == peer.ip:
            return peer
    return None


def downstream(walsenders: Sequence[Walsender], expected: Peer | None, known: Iterable[Peer]) -> Walsender | None:
    """The connection that stands for the replication from a peer: that of the expected downstream, or else whoever is
    there instead. Backups and other tools do not count.
    """
    peers = list(known)
    standbys = [row for row in walsenders if row.application_name not in _TOOLS and row.state != "backup"]
    if expected is not None:
        for row in standbys:
            bearer = borne_by(row, peers)
            if bearer is not None and bearer.id == expected.id:
                return row
    return standbys[0] if standbys else None
