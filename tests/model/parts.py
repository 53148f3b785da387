"""What the model's world is made of: small, immutable, hashable values.

WAL is a tuple of entries, each unique and with its timeline; the core sees lengths, timeline numbers and comparisons.
"""

from __future__ import annotations

from typing import Any, NamedTuple

NAMES = "ABCDE"
NOBODY = -1
"""The name in synchronous_standby_names that nobody bears."""
ALONE = -2
"""No name at all: one-node-write mode."""

broken: set[str] = set()
"""Ways in which the driver of this world is broken, for the mutants of `tests.model.mutants`."""


class Violation(Exception):
    """A promise is broken."""


class State(NamedTuple):
    """The cluster state, peers by number."""

    generation: int
    primary: int
    sync: int | None
    asyncs: tuple[int, ...] = ()
    deposed: tuple[int, ...] = ()
    init_wal: int = 0
    frozen: bool = False
    promote: tuple[int, str, int | None, int] | None = None
    """Peer, role, index, generation."""
    alone: bool = False
    forced: str | None = None
    """An operator declared this generation: `due` until its primary has taken his word, then `taken`."""


class Said(NamedTuple):
    """A published status."""

    initialized: bool
    serving: bool
    ready: bool
    compares: str | None
    generation: int
    proof: int
    running: bool = False


class Remembered(NamedTuple):
    identified: bool = False
    generation: int = 0
    proof: int = 0
    seal: tuple[int, int] | None = None


class Pg(NamedTuple):
    """A running PostgreSQL."""

    primary: bool
    waits_for: int = NOBODY
    """A primary's: whose confirmation a commit waits for."""
    sealed: int | None = None
    upstream: int | None = None
    """A standby's."""
    confirmed: int = 0
    """What the standby that is waited for has confirmed, as far as this primary may have heard."""


class Lag(NamedTuple):
    """An old reading that a sitter still goes by."""

    fresh: bool
    """The state has not been written since."""
    state: State | None
    cluster: tuple[int, bool] | None
    active: tuple[tuple[int, Said | None], ...]
    renewed: tuple[int, ...] = ()
    """Whose election nodes are others by now."""


class One(NamedTuple):
    """A peer."""

    up: bool = True
    """Its sitter runs."""
    heard: bool = True
    """It has a session that works: it reads, writes and publishes."""
    wal: tuple[int, ...] | None = None
    was_primary: bool = False
    """The data on disk start as a primary, not as a standby."""
    pg: Pg | None = None
    memory: Remembered = Remembered()
    link: tuple[int, int, int, str, int] | None = None
    """Upstream, generation, proof, answer, mark."""
    open: bool = False
    """A write of it has no outcome yet."""
    resigned: bool = False
    lag: Lag | None = None
    failed: bool = False
    """Its PostgreSQL died by itself, and has not been up since. Driver: stopping what is dead does not end that."""
    handing_over: bool = False
    """A clean stop for a handover has begun, and nothing was started since."""
    singleton: bool = False
    """It is configured for one-node-write mode."""
    leaving: bool = False
    """It was asked to stop."""
    rejoin: str = "safe"
    """What it may do by itself to come back."""
    torn: bool = False
    """A rewind of its data was cut short."""
    vain: bool = False
    """A rewind of its data was tried, and does not go."""
    evicted: tuple[int, ...] = ()
    """Whose election nodes it has removed; who joins in another session since is none of them."""
    ahead: tuple[int, ...] = ()
    """Who was found to have more than its primary."""


class World(NamedTuple):
    peers: tuple[One, ...]
    state: State | None
    cluster: tuple[int, bool] | None
    active: tuple[tuple[int, Said | None], ...]
    pending: tuple[int, State] | None
    """A write whose answer was lost and which may still land, unless another does before."""
    acked: frozenset[int]
    begins: tuple[tuple[int, ...], ...]
    """What each generation began with."""
    minted: int
    """Entries written so far: each is unique."""
    budget: tuple[tuple[str, int], ...]
    cut: tuple[tuple[int, int], ...] = ()
    """Replication links (standby, upstream) that are down."""
    past: State | None = None
    """The last state of the generation before, which ZooKeeper might come back with."""
    forgot: bool = False
    """ZooKeeper came back older than it was."""


Step = tuple[str, World]
"""What happens, in the scenarios' language, and the world after it."""


def with_peer(world: World, me: int, **changes: Any) -> World:
    peers = list(world.peers)
    peers[me] = peers[me]._replace(**changes)
    return world._replace(peers=tuple(peers))


def with_pg(world: World, me: int, **changes: Any) -> World:
    pg = world.peers[me].pg
    assert pg is not None
    return with_peer(world, me, pg=pg._replace(**changes))


def spend(world: World, what: str) -> World | None:
    """Take one of these from the budget, and one of `trouble` in all; None if either is used up."""
    left = dict(world.budget)
    for kind in (what, "trouble"):
        if left.get(kind, 0) <= 0:
            return None
        left[kind] -= 1
    return world._replace(budget=tuple(sorted(left.items())))


# --- Symmetry ---


def canonical(world: World) -> tuple[World, list[int] | None]:
    """The same world with the peers renamed in the order of the chain; and who was called what, if that is news."""
    state = world.state
    if state is None:
        return world, None
    order = [state.primary, *(() if state.sync is None else (state.sync,)), *state.asyncs, *state.deposed]
    order += [me for me, _ in world.active if me not in order]
    order += [me for me in range(len(world.peers)) if me not in order]
    if order == list(range(len(order))):
        return world, None
    return renamed(world, {old: new for new, old in enumerate(order)}, order), order


def renamed(world: World, to: dict[int, int], order: list[int]) -> World:
    def state_of(state: State | None) -> State | None:
        if state is None:
            return None
        asked = state.promote
        return state._replace(
            primary=to[state.primary],
            sync=None if state.sync is None else to[state.sync],
            asyncs=tuple(to[one] for one in state.asyncs),
            deposed=tuple(to[one] for one in state.deposed),
            promote=None if asked is None else (to[asked[0]], *asked[1:]),
        )

    def active_of(active: tuple[tuple[int, Said | None], ...]) -> tuple[tuple[int, Said | None], ...]:
        return tuple((to[me], said) for me, said in active)

    def cluster_of(cluster: tuple[int, bool] | None) -> tuple[int, bool] | None:
        return None if cluster is None else (to[cluster[0]], cluster[1])

    def one_of(one: One) -> One:
        pg, lag, link = one.pg, one.lag, one.link
        if pg:
            pg = pg._replace(
                waits_for=to[pg.waits_for] if pg.waits_for >= 0 else pg.waits_for,
                upstream=None if pg.upstream is None else to[pg.upstream],
            )
        if lag:
            renewed = tuple(sorted(to[other] for other in lag.renewed))
            lag = Lag(lag.fresh, state_of(lag.state), cluster_of(lag.cluster), active_of(lag.active), renewed)
        evicted = tuple(sorted(to[other] for other in one.evicted))
        one = one._replace(pg=pg, lag=lag, link=(to[link[0]], *link[1:]) if link else None, evicted=evicted)
        return one._replace(ahead=tuple(sorted(to[other] for other in one.ahead)))

    pending = world.pending
    if pending:
        late = state_of(pending[1])
        assert late is not None
        pending = (to[pending[0]], late)
    return world._replace(
        peers=tuple(one_of(world.peers[me]) for me in order),
        state=state_of(world.state),
        cluster=cluster_of(world.cluster),
        active=active_of(world.active),
        pending=pending,
        cut=tuple(sorted((to[below], to[above]) for below, above in world.cut)),
    )
