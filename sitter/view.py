"""What the core is told and what it answers: `View` -> `Decision`.

Data only. A view is everything one peer knows at one moment; a decision is everything wanted at that moment. The daemon
fills in the one and carries out the other; `sitter.decide` knows nothing else. Times are durations in seconds, measured
by the daemon on the monotonic clock; `View.now` alone is wall-clock time, for the expiry that an operator wrote down.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property

from manatee.cluster import Cluster, ClusterState, Comparison, Peer, PeerStatus, Role
from manatee.lsn import Lsn

# --- What the core is told ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Present:
    """A peer in the active list."""

    peer: Peer
    status: PeerStatus | None = None
    """What it says of itself; None if it has said nothing yet."""
    promises_status: bool = True
    """False for a Manatee 2 peer, which will never say anything."""
    unready_for: float = 0.0
    node: str = ""
    """The name of its election node."""
    evicted_for: float = math.inf
    """How long ago we removed an election node of the session that it still has: it lived, then."""


@dataclass(frozen=True)
class Seal:
    """A seal that holds: nothing above `position` can be acknowledged under `generation` except through us."""

    generation: int
    position: Lsn


@dataclass(frozen=True)
class Memory:
    """What outlives a restart: one small file outside the data, which goes when the data go."""

    identifier: str | None = None
    """The system identifier of the database that the rest speaks of."""
    generation: int = 0
    """The highest generation acted on."""
    proof: int = 0
    """The newest generation whose primary's WAL our data are known to be a prefix of, holding what it began with."""
    seal: Seal | None = None


class Parting(StrEnum):
    """How two logs have diverged."""

    TIMELINES = "timelines"
    """Their timelines part: what pg_rewind can judge."""
    BYTES = "bytes"
    """They differ on the same timelines: to pg_rewind, and to PostgreSQL, they are the same."""
    DATABASE = "database"
    """They are of two databases."""


class Rejoin(StrEnum):
    """What a deposed or returning peer may do by itself (`postgres.rejoin`); each may what the one before may."""

    NEVER = "never"
    """A deposed peer stays deposed until an operator acts."""
    SAFE = "safe"
    """It comes off the deposed list when its data prove to be a prefix."""
    REWIND = "rewind"
    """Data that have diverged are rewound."""
    REBUILD = "rebuild"
    """Data that have diverged and cannot be rewound are restored anew."""

    @property
    def rewinds(self) -> bool:
        return self in (Rejoin.REWIND, Rejoin.REBUILD)


@dataclass(frozen=True)
class Link:
    """How our WAL compared with an upstream's, at one moment (design, section 6)."""

    upstream: str
    """The upstream's id."""
    generation: int
    """The generation in which they were compared."""
    proof: int
    """The upstream's proof then: what a prefix of its data is worth."""
    answer: Comparison
    mark: Lsn
    """What the upstream had flushed then: the proof is ours once we have flushed this."""
    detail: str = ""
    """Where the histories part, in words."""
    parting: Parting | None = None
    """How, if they have diverged."""


@dataclass(frozen=True)
class Incomparable:
    """Our WAL cannot be compared with an upstream's, and will not be: what it would take is gone."""

    upstream: str
    generation: int
    proof: int
    """The upstream's then."""
    detail: str


@dataclass(frozen=True)
class Database:
    """The PostgreSQL of this peer."""

    initialized: bool = False
    identifier: str | None = None
    version: str | None = None
    running: bool = False
    """Processes of it run, whatever they do."""
    online: bool = False
    """It accepts connections."""
    writable_for: float = 0.0
    """How long it has been a primary that accepts connections."""
    end: Lsn | None = None
    """The end of what it has on disk: flushed on a primary, received or replayed on a standby."""
    at_rest: Lsn | None = None
    """The end of its log on disk while it is stopped and is to stay so; None otherwise, and until it is found."""
    sealed: Lsn | None = None
    """The sealed position, while it is sealed."""
    sealed_for: float = 0.0
    unsealed_for: float = math.inf
    """How long ago a seal was given up."""
    upstream: str | None = None
    """The id of the peer it is set to follow."""
    streaming: bool = False
    """It streams from that peer."""
    connected: frozenset[str] = frozenset()
    """The ids of the peers that it has a replication connection with at this very moment, whoever sends."""
    attached: Mapping[str, Lsn] = field(default_factory=dict)
    """The ids of the peers that stream from it, with what each has flushed."""
    ahead: frozenset[str] = frozenset()
    """The ids of the peers that were found to have replayed what this database, a primary's, has not: it has lost it.
    They stay in it until they say that nothing is proven of their data, or this becomes a standby's."""
    link: Link | None = None
    incomparable: Incomparable | None = None
    failing_for: float | None = None
    """Since it was found dead or hung although it should run; None while it runs, or makes its way up."""
    handing_over: bool = False
    """A clean stop for a handover has begun."""
    replacing: Restore | Rewind | None = None
    """What is being done to the data now, as it was wanted: they are rewound, or restored from one of these peers."""
    rewind_begun: bool = False
    """The rewind that is under way has begun to change the data: given up now, it would leave nothing of use."""
    torn: bool = False
    """A rewind was cut short: the data are neither what they were nor what they should be, and must not be started."""
    unrewindable: str | None = None
    """Why these data cannot be rewound, as far as that has been tried."""


@dataclass(frozen=True)
class Death:
    """A peer was seen dead: connections to its sitter and to its PostgreSQL were refused, every one of several."""

    node: str
    """The election node that it had when this was begun to be found out."""
    generation: int
    """The generation of then."""
    detail: str


@dataclass(frozen=True)
class Limits:
    """How long the rules wait, from the settings."""

    sync_grace: float = 10.0
    seal_timeout: float = 5.0
    crash_restart_timeout: float = 5.0
    handover_timeout: float = 5.0
    retry_pause: float = 300.0
    """For how long what came to nothing is not tried again: to evict a peer that lived, or to make way for nobody."""


@dataclass(frozen=True)
class View:
    """Everything a peer knows now."""

    me: Peer
    now: float
    """Seconds since the epoch."""
    active: tuple[Present, ...] = ()
    """The present peers, in the order in which they became active; a peer counts itself."""
    state: ClusterState | None = None
    state_problem: str | None = None
    """Why the state does not validate."""
    version: int | None = None
    """Of the `state` node; None if there is none."""
    cluster: Cluster | None = None
    has_history: bool = False
    database: Database = Database()
    memory: Memory = Memory()
    write_open: bool = False
    """The outcome of a write of ours is not known yet."""
    singleton: bool = False
    leaving: bool = False
    """We were asked to stop."""
    resigned_for: float | None = None
    """How long ago we gave up our election node on purpose; None if we did not, or have come back."""
    returned_for: float = math.inf
    """How long ago we came back from that."""
    unreached_for: float = 0.0
    """How long we have been `Shard.unreached`. Begins while our PostgreSQL takes writes, goes on while it is down."""
    limits: Limits = Limits()
    rejoin: Rejoin = Rejoin.SAFE
    death: Death | None = None
    """Of the neighbour that was asked for, as long as it holds."""
    evict_dead: bool = True
    """Whether a peer that was seen dead may be evicted."""

    def timed(self, unready: Mapping[str, float], *, unreached_for: float) -> View:
        """The same view, with the time for which each peer, by id, has been unready, and we have been unreached."""
        active = tuple(replace(one, unready_for=unready.get(one.peer.id, 0.0)) for one in self.active)
        return replace(self, active=active, unreached_for=unreached_for)

    @cached_property
    def present(self) -> Mapping[str, Present]:
        return {one.peer.id: one for one in self.active}


# --- What the core answers ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Keep:
    """Leave PostgreSQL as it is, running or not."""


@dataclass(frozen=True)
class Stopped:
    """No PostgreSQL."""

    clean: bool = False
    """Stop so that the sync receives the shutdown record (a handover); otherwise at once."""


@dataclass(frozen=True)
class Initialize:
    """Create the shard's database with `initdb`; do not start it yet."""


@dataclass(frozen=True)
class Restore:
    """Fetch a database from the first of these that can give one."""

    sources: tuple[Peer, ...]


@dataclass(frozen=True)
class Rewind:
    """Turn the data back to where they parted from this primary's, and forward to what it has (pg_rewind)."""

    source: Peer


@dataclass(frozen=True)
class Primary:
    """Run as primary."""

    sync: Peer | None
    """Whose confirmation a commit waits for; None only in one-node-write mode."""
    sealed: bool = False
    fenced: bool = False
    """Let no client in. The core does not ask for it: the daemon does, while it has nothing to ask the core about."""


@dataclass(frozen=True)
class Standby:
    """Run as standby."""

    upstream: Peer | None
    """Whom to stream from; None: only replay what is here, and serve whoever is downstream."""
    sealed: bool = False


Wanted = Keep | Stopped | Initialize | Restore | Rewind | Primary | Standby


@dataclass(frozen=True)
class Compare:
    """Find out how our WAL stands to this upstream's, and hand the answer in as `Database.link`."""

    upstream: Peer
    generation: int
    proof: int


@dataclass(frozen=True)
class Neighbour:
    """Whose death is to be noticed at once, and whom to ask whether it is the network that refuses connections."""

    node: str
    """Its election node."""
    generation: int
    label: str
    sitter: tuple[str, int]
    """Host and port; the others likewise."""
    postgres: tuple[str, int]
    witnesses: tuple[tuple[str, int], ...]
    """The sitters of the other present peers."""


@dataclass(frozen=True)
class Write:
    """A complete new state, to be written in one transaction at the version it was decided on."""

    state: ClusterState
    version: int | None
    reason: str
    """What changes and why, for the log."""
    cluster: Cluster | None = None
    """Created in the same transaction, when the shard is set up."""


@dataclass(frozen=True)
class Decision:
    """Everything wanted now.

    The order of carrying it out is part of the contract. First `memory` is durable; nothing else is done before. Then
    `database` is brought about, in the background, and `write` is attempted; neither waits for the other: what must
    come first is a fact that the core waits to see in the view. `resign` is done only once PostgreSQL is dead. All of
    it is void as soon as there is a newer decision.
    """

    reason: str
    """For the log, `/state` and the operator: what is wanted and why."""
    database: Wanted
    role: Role | None = None
    memory: Memory = Memory()
    waiting_for: str | None = None
    """If something is blocked: what would unblock it."""
    compare: Compare | None = None
    neighbour: Neighbour | None = None
    """Hold a connection to this peer's sitter, and hand in as `View.death` what is found out when that breaks."""
    evict: str | None = None
    """Remove this election node, and the status that goes with it: its peer is dead."""
    write: Write | None = None
    cluster: Cluster | None = None
    """The `cluster` node, completed."""
    resign: bool = False
    """Do not be in the active list."""
    serving: bool = False
    ready: bool = False
    compares: Comparison | None = None
    """How our data stand to the upstream's that the rules give, to be said to the others."""
    diverged: str | None = None
    """From whom our data have diverged, and where, to be said to the others."""
    look_again: float | None = None
    """Seconds after which the answer may change although nothing happens."""
