"""The table of what can go wrong: how it is done, how it is undone, and what it is meant to bite.

A fault is a function that does it and returns an `Undo`. It is given the lab, the strike, and whom the strike means.
Faults of one run may overlap, and undoing is safe whatever has become of the target. Cuts and slow links are undone by
whoever made them last; a process that two faults have stopped, or a clock that two have set, by the first that ends.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from demo.shard import LocalPeer
from manatee.coordination import CoordinationError
from tests.chaos import operator
from tests.chaos.ensemble import NODES
from tests.chaos.lab import Inapplicable, Lab, kill, resume, suspend
from tests.chaos.schedule import Kind, Strike
from tests.chaos.topology import Pair, Verdict, between


@dataclass(frozen=True)
class Undo:
    """What was done, in words, and how it is undone."""

    said: str
    heal: Callable[[], Awaitable[None]]


@dataclass(frozen=True)
class Fault:
    inject: Callable[[Lab, Strike], Awaitable[Undo]]
    kind: Kind
    bites: str
    """What would be wrong with a sitter that this hurts."""


ROLES = ("primary", "primary", "sync", "sync", "async")


async def _nothing() -> None:
    pass


# --- Whom a strike means --------------------------------------------------------------------------------------------


async def peer_meant(lab: Lab, target: str) -> LocalPeer:
    """A peer by role, in the state that ZooKeeper has or that was last seen; or by its node's name."""
    by_name = {lab.node(peer): peer for peer in lab.peers}
    if target in by_name:
        return by_name[target]
    state = lab.last_state
    if state is None:
        raise Inapplicable("no cluster state is known")
    named = {"primary": state.primary, "sync": state.sync, "async": state.asyncs[0] if state.asyncs else None}
    # Where nobody has the role, whoever comes before in the chain.
    peer = named[target] or state.sync or state.primary
    return lab.peer(peer.id)


async def server_meant(lab: Lab, target: str) -> str:
    """A ZooKeeper server: `leader`, `follower`, or its name."""
    if target in NODES:
        return target
    leader = await lab.ensemble.leader() or NODES[0]
    return leader if target == "leader" else next(node for node in NODES if node != leader)


# --- Processes ------------------------------------------------------------------------------------------------------


def _of_daemon(daemon: str, act: str) -> Callable[[Lab, Strike], Awaitable[Undo]]:
    async def inject(lab: Lab, strike: Strike) -> Undo:
        peer = await peer_meant(lab, strike.target)
        process = lab.program(f"{daemon}-{peer.number}")
        if process is None:
            raise Inapplicable(f"no {daemon} runs on {lab.node(peer)}")
        if act == "kill":
            kill([process])
            return Undo(f"SIGKILL to the {daemon} of {lab.node(peer)}", _nothing)
        suspend([process])

        async def heal() -> None:
            resume([process])

        return Undo(f"SIGSTOP to the {daemon} of {lab.node(peer)}", heal)

    return inject


async def kill_postmaster(lab: Lab, strike: Strike) -> Undo:
    peer = await peer_meant(lab, strike.target)
    postmaster = lab.postmaster(peer)
    if postmaster is None:
        raise Inapplicable(f"no PostgreSQL runs on {lab.node(peer)}")
    kill([postmaster])
    return Undo(f"SIGKILL to the postmaster of {lab.node(peer)}", _nothing)


async def stop_postmaster(lab: Lab, strike: Strike) -> Undo:
    peer = await peer_meant(lab, strike.target)
    postmaster = lab.postmaster(peer)
    if postmaster is None:
        raise Inapplicable(f"no PostgreSQL runs on {lab.node(peer)}")
    suspend([postmaster])

    async def heal() -> None:
        resume([postmaster])

    return Undo(f"SIGSTOP to the postmaster of {lab.node(peer)}", heal)


async def kill_backend(lab: Lab, strike: Strike) -> Undo:
    peer = await peer_meant(lab, strike.target)
    backends = lab.children_of_postgres(peer)
    if not backends:
        raise Inapplicable(f"no PostgreSQL runs on {lab.node(peer)}")
    victim = random.Random(strike.chance).choice(backends)
    title = " ".join(victim.cmdline())[:60]
    kill([victim])
    return Undo(f"SIGKILL to one process of PostgreSQL on {lab.node(peer)}: {title}", _nothing)


async def stop_backends(lab: Lab, strike: Strike) -> Undo:
    """Half of them, clients' or not."""
    peer = await peer_meant(lab, strike.target)
    children = lab.children_of_postgres(peer)
    if not children:
        raise Inapplicable(f"no PostgreSQL runs on {lab.node(peer)}")
    chosen = random.Random(strike.chance).sample(children, (len(children) + 1) // 2)
    suspend(chosen)

    async def heal() -> None:
        resume(chosen)

    return Undo(f"SIGSTOP to {len(chosen)} of the {len(children)} processes of PostgreSQL on {lab.node(peer)}", heal)


async def stop_replication(lab: Lab, strike: Strike) -> Undo:
    peer = await peer_meant(lab, strike.target)
    chosen = lab.children_of_postgres(peer, "walsender") + lab.children_of_postgres(peer, "walreceiver")
    if not chosen:
        raise Inapplicable(f"{lab.node(peer)} neither sends nor receives WAL")
    suspend(chosen)

    async def heal() -> None:
        resume(chosen)

    return Undo(f"SIGSTOP to the {len(chosen)} processes that send or receive WAL on {lab.node(peer)}", heal)


async def kill_peer(lab: Lab, strike: Strike) -> Undo:
    peer = await peer_meant(lab, strike.target)
    await lab.kill_peer(peer)

    async def heal() -> None:
        await lab.start_peer(peer)

    return Undo(f"SIGKILL to all of {lab.node(peer)}", heal)


async def kill_two_peers(lab: Lab, strike: Strike) -> Undo:
    """At one moment; they come back one after the other."""
    first = await peer_meant(lab, strike.target)
    second = random.Random(strike.chance).choice([peer for peer in lab.peers if peer is not first])
    await lab.kill_peer(first, second)

    async def heal() -> None:
        await lab.start_peer(second)
        await lab.start_peer(first)

    return Undo(f"SIGKILL to all of {lab.node(first)} and {lab.node(second)}", heal)


async def stop_peer(lab: Lab, strike: Strike) -> Undo:
    peer = await peer_meant(lab, strike.target)
    frozen = lab.all_of(peer)
    suspend(frozen)

    async def heal() -> None:
        # Children first: PostgreSQL must not be found hanging by a sitter that runs again while it does not.
        resume(frozen[::-1])

    return Undo(f"SIGSTOP to all of {lab.node(peer)}", heal)


async def restart_sitter(lab: Lab, strike: Strike) -> Undo:
    peer = await peer_meant(lab, strike.target)
    program = peer.programs[0]
    await lab.supervisor.stop(program)

    async def heal() -> None:
        await lab.supervisor.start(program)

    return Undo(f"the sitter of {lab.node(peer)} is stopped as a service manager does it", heal)


def _of_zookeeper(act: str) -> Callable[[Lab, Strike], Awaitable[Undo]]:
    async def inject(lab: Lab, strike: Strike) -> Undo:
        node = await server_meant(lab, strike.target)
        if act == "kill":
            await lab.supervisor.kill(node)

            async def start() -> None:
                await lab.supervisor.start(node)

            return Undo(f"SIGKILL to {node}", start)
        process = lab.program(node)
        if process is None:
            raise Inapplicable(f"{node} does not run")
        suspend([process])

        async def heal() -> None:
            resume([process])

        return Undo(f"SIGSTOP to {node}", heal)

    return inject


async def kill_ensemble(lab: Lab, strike: Strike) -> Undo:
    await lab.supervisor.kill(*NODES)

    async def heal() -> None:
        for node in NODES:
            await lab.supervisor.start(node)

    return Undo("SIGKILL to all of ZooKeeper", heal)


# --- The network ----------------------------------------------------------------------------------------------------


async def _cut(lab: Lab, pairs: Sequence[Pair], said: str, verdict: Verdict = "drop") -> Undo:
    await lab.network.cut(pairs, verdict)

    async def heal() -> None:
        await lab.network.mend(pairs, verdict)

    return Undo(said, heal)


def _everyone_else(lab: Lab, *nodes: str) -> list[str]:
    return [node for node in lab.network.nodes if node not in nodes]


async def isolate(lab: Lab, strike: Strike) -> Undo:
    """One client stays on the peer's side: it may be told there what nobody else confirms."""
    node = lab.node(await peer_meant(lab, strike.target))
    client = lab.clients[strike.chance % len(lab.clients)]
    pairs = between([node, client], _everyone_else(lab, node, client))
    return await _cut(lab, pairs, f"{node} and {client} are cut off from all others")


async def cut_from_zookeeper(lab: Lab, strike: Strike) -> Undo:
    node = lab.node(await peer_meant(lab, strike.target))
    return await _cut(lab, between([node], NODES), f"{node} is cut off from ZooKeeper")


async def cut_from_upstream(lab: Lab, strike: Strike) -> Undo:
    node, upstream = await _with_upstream(lab, strike.target)
    return await _cut(lab, between([node], [upstream]), f"{node} and {upstream} are cut apart")


async def _with_upstream(lab: Lab, target: str) -> tuple[str, str]:
    """The node that is meant, and that of the peer before it in the chain."""
    peer = await peer_meant(lab, target)
    assert lab.last_state is not None
    chain = [each.id for each in lab.last_state.assigned]
    place = chain.index(peer.id) if peer.id in chain else 0
    if place == 0:
        raise Inapplicable(f"{lab.node(peer)} has no upstream now")
    return lab.node(peer), lab.node(lab.peer(chain[place - 1]))


async def one_way(lab: Lab, strike: Strike) -> Undo:
    node = lab.node(await peer_meant(lab, strike.target))
    others = _everyone_else(lab, node)
    if strike.chance % 2:
        return await _cut(lab, [(node, other) for other in others], f"nobody hears {node}")
    return await _cut(lab, [(other, node) for other in others], f"{node} hears nobody")


async def refuse(lab: Lab, strike: Strike) -> Undo:
    """A firewall that lies: to the other peers it looks as if nothing ran there, or to it, or to all of them."""
    node = lab.node(await peer_meant(lab, strike.target))
    return await _refused(lab, strike, node, [lab.node(peer) for peer in lab.peers if lab.node(peer) != node])


async def refuse_neighbour(lab: Lab, strike: Strike) -> Undo:
    """The same between two neighbours in the chain; all others hear both."""
    node, upstream = await _with_upstream(lab, strike.target)
    return await _refused(lab, strike, node, [upstream])


async def _refused(lab: Lab, strike: Strike, node: str, others: Sequence[str]) -> Undo:
    """On one side or on both; connections that stand are torn, or left alone as far as the other end serves."""
    way, scope = strike.chance % 3, strike.chance // 3 % 2
    names = " and ".join(others)
    verdict: Verdict = "refuse services" if scope else "refuse"
    what = "connections to its services" if scope else "all TCP"
    if way == 0:
        return await _cut(lab, [(each, node) for each in others], f"{node} refuses {what} from {names}", verdict)
    if way == 1:
        return await _cut(lab, [(node, each) for each in others], f"{names} refuse {what} from {node}", verdict)
    return await _cut(lab, between([node], others), f"{node} and {names} refuse each other's {what}", verdict)


async def evict(lab: Lab, strike: Strike) -> Undo:
    """What a neighbour does that was lied to: its election node is removed."""
    peer = await peer_meant(lab, strike.target)
    try:
        gone = await lab.evict(peer)
    except CoordinationError as error:
        raise Inapplicable(str(error)) from error
    if not gone:
        raise Inapplicable(f"{lab.node(peer)} is not in the active list")
    return Undo(f"{lab.node(peer)} is removed from the active list, although nobody knows that it is dead", _nothing)


async def zookeeper_without_majority(lab: Lab, strike: Strike) -> Undo:
    first = strike.chance % len(NODES)
    away = [NODES[first], NODES[(first + 1) % len(NODES)]]
    pairs = [*between(away, _everyone_else(lab, *away)), *between(away[:1], away[1:])]
    return await _cut(lab, pairs, f"{' and '.join(away)} are cut off from all, and from each other")


async def zookeeper_away(lab: Lab, strike: Strike) -> Undo:
    return await _cut(lab, between(NODES, _everyone_else(lab, *NODES)), "ZooKeeper is cut off from everyone")


async def slow_link(lab: Lab, strike: Strike) -> Undo:
    node = lab.node(await peer_meant(lab, strike.target))
    kilobits = 64 << strike.chance % 4
    await lab.network.slow(node, kilobits * 1000)

    async def heal() -> None:
        await lab.network.hasten(node, kilobits * 1000)

    return Undo(f"{node} sends at {kilobits} kbit/s", heal)


# --- The machine ----------------------------------------------------------------------------------------------------


async def full_disk(lab: Lab, strike: Strike) -> Undo:
    peer = await peer_meant(lab, strike.target)
    filler = lab.fill_disk(peer)

    async def heal() -> None:
        filler.unlink(missing_ok=True)

    return Undo(f"the disk of {lab.node(peer)} is full", heal)


async def clock_jump(lab: Lab, strike: Strike) -> Undo:
    if not lab.clocks:
        raise Inapplicable("libfaketime is not installed")
    peer = await peer_meant(lab, strike.target)
    offset = random.Random(strike.chance).choice((-86_400, -3600, -30, 30, 3600, 86_400))
    lab.clock(peer).write_text(f"{offset:+d}\n")

    async def heal() -> None:
        lab.clock(peer).write_text("+0\n")

    return Undo(f"the clock of {lab.node(peer)} is set {offset:+d} s", heal)


def _by_operator(
    act: Callable[[Lab, str, int], Awaitable[tuple[str, Callable[[], Awaitable[None]]]]],
) -> Callable[[Lab, Strike], Awaitable[Undo]]:
    async def inject(lab: Lab, strike: Strike) -> Undo:
        said, heal = await act(lab, strike.target, strike.chance)
        return Undo(said, heal)

    return inject


_ANY = ("peer1", "peer2", "peer3")
_SHORT, _LONG = (0.5, 3.0), (1.0, 14.0)
_ONCE = (0.0, 0.0)

FAULTS: dict[str, Fault] = {
    "kill-sitter": Fault(_of_daemon("sitter", "kill"), Kind(ROLES, _ONCE), "what only the sitter's memory knew"),
    "stop-sitter": Fault(
        _of_daemon("sitter", "stop"), Kind(ROLES, _LONG), "a primary whose PostgreSQL runs on while it is deposed"
    ),
    "restart-sitter": Fault(restart_sitter, Kind(ROLES, _LONG), "handing over"),
    "kill-postmaster": Fault(
        kill_postmaster, Kind(ROLES, _ONCE), "a restart that opens before the sync has what was recovered"
    ),
    "stop-postmaster": Fault(stop_postmaster, Kind(ROLES, _LONG), "health checks that a hang satisfies"),
    "kill-backend": Fault(kill_backend, Kind(ROLES, _ONCE), "commits that a crash restart makes visible"),
    "stop-backends": Fault(stop_backends, Kind(ROLES, _LONG), "health checks that one process satisfies"),
    "stop-replication": Fault(stop_replication, Kind(ROLES, _LONG), "seals that trust a receiver or sender to obey"),
    "kill-peer": Fault(kill_peer, Kind(ROLES, _LONG, weight=2.0), "a takeover below what was acknowledged"),
    "kill-two-peers": Fault(kill_two_peers, Kind(ROLES, _LONG), "a start that goes ahead with too few"),
    "stop-peer": Fault(stop_peer, Kind(ROLES, _LONG, weight=2.0), "a primary that wakes up and believes itself one"),
    "kill-backupserver": Fault(_of_daemon("backupserver", "kill"), Kind(_ANY, _ONCE), "comparisons and restores"),
    "stop-backupserver": Fault(_of_daemon("backupserver", "stop"), Kind(_ANY, _LONG), "awaits without a deadline"),
    "kill-zookeeper": Fault(_of_zookeeper("kill"), Kind(("leader", "follower"), _LONG), "writes whose answer is lost"),
    "stop-zookeeper": Fault(_of_zookeeper("stop"), Kind(("leader", "follower"), _LONG), "sessions that hang"),
    "kill-ensemble": Fault(kill_ensemble, Kind(("zookeeper",), _LONG), "what is not asked again after a new session"),
    "isolate": Fault(isolate, Kind(ROLES, _LONG, weight=2.0), "a second writer on the other side"),
    "cut-from-zookeeper": Fault(cut_from_zookeeper, Kind(ROLES, _LONG), "a deposed primary that still has its sync"),
    "cut-from-upstream": Fault(cut_from_upstream, Kind(("sync", "sync", "async"), _LONG), "replacement of the sync"),
    "one-way": Fault(one_way, Kind(ROLES, _LONG), "half-open connections"),
    "refuse": Fault(refuse, Kind(ROLES, _LONG), "a refused connection taken for proof of more than it is"),
    "refuse-neighbour": Fault(
        refuse_neighbour, Kind(("sync", "sync", "async"), _LONG), "a peer that lives is evicted again and again"
    ),
    "evict": Fault(evict, Kind(ROLES, _ONCE), "a seal, or a primary, that relies on an eviction being true"),
    "zookeeper-without-majority": Fault(zookeeper_without_majority, Kind(("zookeeper",), _LONG), "reads of old state"),
    "zookeeper-away": Fault(zookeeper_away, Kind(("zookeeper",), _LONG), "a primary that gives up with a sync there"),
    "slow-link": Fault(slow_link, Kind(ROLES, _LONG), "timeouts taken for deaths"),
    "full-disk": Fault(full_disk, Kind(ROLES, _SHORT), "a memory that is not durable before it is acted on"),
    "clock-jump": Fault(clock_jump, Kind(ROLES, _LONG), "safety that rests on clocks"),
    "freeze": Fault(_by_operator(operator.freeze), Kind(("shard",), _LONG), "generations of a frozen shard"),
    "promote": Fault(_by_operator(operator.promote), Kind(("sync", "async"), _ONCE), "handing over at a bad moment"),
    "rebuild": Fault(_by_operator(operator.rebuild), Kind(("async",), _ONCE), "restores beside other faults"),
    "cut-restore": Fault(
        _by_operator(operator.cut_restore), Kind(("async",), _ONCE), "half a restore taken for a database"
    ),
    "reap": Fault(_by_operator(operator.reap), Kind(("shard",), _ONCE), "peers taken off that are needed"),
}
