"""Whose death primary and sync notice at once, and when its election node may be removed (*evicted*) because of it.

A dead peer leaves the active list when its session expires. That need not be waited for where death can be seen: its
sitter and its PostgreSQL both refuse connections, again and again (`sitter.neighbour` finds that out), and replication
with it is gone. Then its neighbour removes its election node, that very one, and the ordinary rules do the rest.

Refused connections can lie. So nothing here is more than what the end of a session is: the seal, the proof and the
state's version protect every commit, whoever is absent for whatever reason. The guards below only keep a lie from
costing more than one needless takeover. A live peer that finds its node removed joins again.
"""

from __future__ import annotations

from sitter.shard import Shard
from sitter.view import Decision, Neighbour, Present, Primary, Standby


def neighbour(shard: Shard) -> Neighbour | None:
    """The sync's is the primary, the primary's is the sync; nobody else has one."""
    one, view = _opposite(shard), shard.view
    if one is None or not view.evict_dead or one.status is None or one.status.status_port is None:
        return None
    others = [other for other in view.active if other.peer.id not in (view.me.id, one.peer.id)]
    witnesses = [(other.peer.ip, other.status.status_port) for other in others if other.status]
    return Neighbour(
        node=one.node,
        generation=shard.state.generation,
        label=one.peer.label,
        sitter=(one.peer.ip, one.status.status_port),
        postgres=(one.peer.ip, one.peer.postgres_port),
        witnesses=tuple((ip, port) for ip, port in witnesses if port is not None),
    )


def evicted(shard: Shard, decision: Decision) -> str | None:
    """The election node to be removed: its peer was seen dead, and the rules will replace it."""
    view, state, death, one = shard.view, shard.state, shard.view.death, _opposite(shard)
    if one is None or death is None or (death.node, death.generation) != (one.node, state.generation):
        return None
    if not view.evict_dead or state.frozen or view.write_open or not shard.i_am_present:
        return None
    goes_on = isinstance(decision.database, Primary | Standby) and not decision.resign and view.database.online
    needed = state.generation if shard.i_am_primary else shard.needed_proof
    if not goes_on or view.memory.proof < needed:
        return None
    if one.peer.id in view.database.connected or one.evicted_for < view.limits.retry_pause:
        return None
    return one.node if _replaceable(shard) else None


def _opposite(shard: Shard) -> Present | None:
    """The other of primary and sync, if it is present and says that it is."""
    state, me = shard.state, shard.view.me.id
    if state.sync is None or me not in (state.primary.id, state.sync.id):
        return None
    one = shard.view.present.get(state.sync.id if shard.i_am_primary else state.primary.id)
    return one if one and one.promises_status else None


def _replaceable(shard: Shard) -> bool:
    """There is an async to become the sync; below the primary none can stream from us before the sync is gone."""
    if shard.i_am_primary:
        return any(shard.serving(peer) for peer in shard.state.asyncs)
    return any(shard.attached(peer, None) for peer in shard.state.asyncs)
