"""All that can be found out about a shard at one moment, and what is wrong with it.

Most of the time ZooKeeper and the peers' PostgreSQL say that all is well, and nobody else is asked. Where they do not,
the sitters are asked too: what they wait for, and what each peer holds (`admin.standing`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from admin import sitters
from admin.observed import NOT_ASKED, Observations
from admin.postgres import observe
from admin.problems import Finding, problems
from admin.shard import Failed, state_of
from admin.standing import Holding, acted_on, holdings, loss, standstill, told
from admin.target import Target
from manatee.cluster import ClusterState, Peer, PeerStatus
from manatee.coordination import Coordination, ShardView


@dataclass(frozen=True)
class Inspection:
    """What was found."""

    view: ShardView
    state: ClusterState
    seen: Observations
    held: Sequence[Holding] = ()
    """Empty where nobody had to be asked."""

    @property
    def problems(self) -> list[Finding]:
        """The errors, then the warnings: what PostgreSQL shows, then what ZooKeeper and the sitters say."""
        found = [*problems(self.state, self.seen), *_troubles(self)]
        return [f for f in found if f.level == "error"] + [f for f in found if f.level == "warning"]


async def inspect(target: Target, shard: Coordination, *, thorough: bool = False) -> Inspection:
    """Look at the shard; `thorough` asks the sitters even if all is well. Raises Failed, CoordinationError."""
    view = await shard.read()
    if view.state is None and view.state_problem is None:
        raise Failed(stateless(target.name, await ask(view, target)))
    state = state_of(target, view)
    found = Inspection(view, state, await observe(asked(state), target.own_settings))
    if not thorough and not found.problems:
        return found
    return Inspection(view, state, found.seen, await ask(view, target))


def stateless(name: str, held: Sequence[Holding]) -> str:
    """What a shard without a cluster state lacks: peers to set it up, or a ZooKeeper that remembers."""
    known = max(acted_on(held), default=0)
    if known:
        who = next(one.label for one in held if known in (one.acted_on, one.proof))
        return (
            f"ZooKeeper holds no cluster state of {name}, but {who} knows of generation {known}: ZooKeeper has lost "
            "its data. Restore them; if there is no backup, manatee-adm force-primary says who holds what"
        )
    says = "; ".join(f"{one.label} says: {one.reason}" for one in held if one.reason)
    return f"the shard {name} is not set up: it has no cluster state yet" + (f"; {says}" if says else "")


async def ask(view: ShardView, target: Target) -> list[Holding]:
    """What each peer holds, by its status and its sitter."""
    state = view.state
    named = (*state.assigned, *state.deposed) if state else ()
    peers = {peer.id: peer for peer in (*named, *(each.peer for each in view.active))}
    return holdings(view, await sitters.states(peers.values(), target.settings))


def asked(state: ClusterState) -> tuple[Peer, ...]:
    """The peers that should be running PostgreSQL."""
    return (state.primary,) if state.one_node_write_mode else state.assigned


def _troubles(found: Inspection) -> Iterator[Finding]:
    """What ZooKeeper holds, and what the peers say of their data."""
    state, view = found.state, found.view
    for name, problem in view.unreadable:
        yield Finding("warning", f'"{name}" in election is not a peer, and stops every Manatee 2 peer: {problem}')
    if view.cluster_problem:
        yield Finding("warning", f"the shard's identity in ZooKeeper does not validate: {view.cluster_problem}")
    if ahead := _ahead(found):
        newest = max(said.generation for _, said in ahead)
        who = ", ".join(label for label, _ in ahead)
        forgot = f"ZooKeeper holds generation {state.generation}, but {who} acted on generation {newest}"
        yield Finding("error", f"{forgot}: ZooKeeper has forgotten, and is not believed")
    for active in view.active:
        if active.status and active.status.diverged:
            yield Finding("warning", f'peer "{active.peer.label}": diverged: {active.status.diverged}')
    if view.cluster is not None and view.cluster.system_identifier is None:
        by = next((peer.label for peer in state.assigned if peer.id == view.cluster.by), view.cluster.by)
        yield Finding("error", f'the set-up is not complete: "{by}" has yet to create the database')
    if found.held:
        yield from _stand(found)


def _ahead(found: Inspection) -> list[tuple[str, PeerStatus]]:
    """Who has acted on a generation that ZooKeeper does not know of."""
    said = [(active.peer.label, active.status) for active in found.view.active if active.status]
    return [(label, status) for label, status in said if status.generation > found.state.generation]


def _stand(found: Inspection) -> Iterator[Finding]:
    """Where no commit is acknowledged: why, and where nothing that is under way ends it, who holds what."""
    if acknowledging(found):
        return
    still = standstill(found.view, found.held)
    writing = next((one.label for one in found.held if one.writable), None)
    if _ahead(found) and writing:
        yield Finding("error", f"{writing} is open for writes still, but nobody can take over: {still.why}")
    else:
        yield Finding("error", f"no write is acknowledged: {still.why}")
    if not still.for_good:
        return
    for one in found.held:
        yield Finding("error", told(one))
    for one in found.held:
        if one.initialized and not one.writable:
            lost = loss(one, found.held, found.state)
            yield Finding("error", f'peer "{one.label}": to go on with its data would lose {lost}')


def acknowledging(found: Inspection) -> bool:
    """Whether commits can be acknowledged now, by what PostgreSQL says itself."""
    state, primary = found.state, found.seen.get(found.state.primary.id, NOT_ASKED)
    if not primary.online or primary.in_recovery or primary.read_only:
        return False
    return not any(each.level == "error" for each in problems(state, found.seen))
