"""How a shard begins: the first present peer declares generation 1, once it is certain that there is nothing to lose.

An empty ZooKeeper proves nothing: it may have been wiped, and then every peer would think it is the first. So whoever
has data never sets a shard up, nor does anyone beside a peer that has data or has not yet said that it has none.
"""

from __future__ import annotations

from manatee.cluster import Cluster, ClusterState, written_time
from manatee.lsn import Lsn
from sitter.view import Decision, Keep, View, Write

SINGLETON_FREEZE = "manatee setup: one node write mode"
RESTORE_ZOOKEEPER = "an operator: restore ZooKeeper's data"


def set_up(view: View) -> Decision:
    """What to do while there is no cluster state."""
    obstacle, waiting_for = _obstacle(view)
    if obstacle:
        return Decision(f"not set up: {obstacle}", Keep(), waiting_for=waiting_for)
    others = [] if view.singleton else [one.peer.document() for one in view.active if one.peer.id != view.me.id]
    document: dict[str, object] = {
        "generation": 1,
        "primary": view.me.document(),
        "sync": others[0] if others else None,
        "async": others[1:],
        "deposed": [],
        "initWal": str(Lsn(0)),
    }
    if view.singleton:
        document["oneNodeWriteMode"] = True
        document["freeze"] = {"date": written_time(view.now), "reason": SINGLETON_FREEZE}
    cluster = Cluster(created=written_time(view.now), by=view.me.id, system_identifier=None, pg_version=None)
    write = Write(ClusterState.of(document), view.version, "the shard is set up", cluster)
    return Decision("setting the shard up: generation 1", Keep(), write=write)


def _obstacle(view: View) -> tuple[str, str] | tuple[None, None]:
    """Why this peer must not set the shard up, and what would change that."""
    if view.database.initialized:
        return "this peer has a database, so the shard existed", RESTORE_ZOOKEEPER
    if view.has_history or view.cluster:
        return "ZooKeeper has a history of this shard", RESTORE_ZOOKEEPER
    if view.write_open:
        return "it is not known yet whether our last write to ZooKeeper landed", "ZooKeeper"
    if view.me.id not in view.present:
        return "this peer is not in the active list yet", "joining"
    if view.singleton:
        return None, None
    for one in view.active:
        if one.peer.id != view.me.id:
            if not one.promises_status or (one.status and one.status.initialized):
                return f"{one.peer.label} has a database, so the shard existed", RESTORE_ZOOKEEPER
            if one.status is None:
                return f"{one.peer.label} has not said yet whether it has data", one.peer.label
    if len(view.active) < 2:
        return "no other peer is present", "a second peer"
    first = view.active[0].peer
    if first.id != view.me.id:
        return f"{first.label} came first and sets the shard up", first.label
    return None, None
