"""Break glass: the state in which an operator says which peer's data are the shard's, where no rule can.

A shard stays stuck where going on might lose commits that were acknowledged: everyone who could prove to have them is
gone, or ZooKeeper came back older than it was. What is lost then, and who is to go on, only an operator can say. He
says it by a generation of his own, which names a primary and carries an `override`; that counts as the proof which this
primary lacks, once, and is gone with the next generation. Everybody else compares with that primary anew and rejoins,
or has diverged, by the ordinary rules (`docs/safety.md`, "Break glass").

What the operator vouches for: that nobody runs who is absent when he gives it. Those who are present then are waited
for; if one of them goes before it has said that its PostgreSQL is down, it takes another word.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from manatee.cluster import ClusterState, Freeze, Override, Peer, written_time
from manatee.lsn import Lsn

FREEZE = "override: one node write mode"
"""Why a shard whose forced primary is alone is frozen: nobody joins it before an operator has looked."""


def forced_state(
    state: ClusterState | None,
    primary: Peer,
    present: Sequence[Peer],
    *,
    acted_on: Iterable[int],
    now: float,
    reason: str,
) -> ClusterState:
    """The state that makes `primary` the shard's primary by an operator's word alone.

    `state` is what ZooKeeper holds; None if it holds none. `present` are the peers in the active list, those first
    whose data are likeliest to be a prefix of the primary's: the first that is not deposed becomes the sync (a deposed
    one, if there is no other), the others are asyncs. Who was in the chain and is absent is deposed: his data may hold
    what is given up; who was deposed stays so. With nobody beside it the primary takes writes alone, frozen in
    one-node-write mode.

    `acted_on` are all generations that anybody is known to have acted on: by the statuses of the present peers
    (`generation` and `proof`) and by the history. The new generation is two above the greatest of them and of the
    state's, so that no proof from before counts in it: a standby needs proof of the generation before its own, and
    nobody has proof of the one that is skipped.

    Where it begins nobody knows: `initWal` is 0/0, and proof alone says who may take over.
    """
    generation = 2 + max([state.generation if state else 0, *acted_on])
    named = (*state.assigned, *state.deposed) if state else ()
    deposed = {peer.id for peer in state.deposed} if state else set()
    beside = {peer.id: peer for peer in present if peer.id != primary.id}
    chain = sorted(beside.values(), key=lambda peer: peer.id in deposed)
    sync, asyncs = chain[0] if chain else None, [peer for peer in chain[1:] if peer.id not in deposed]
    taken = {primary.id, *(peer.id for peer in asyncs), *((sync.id,) if sync else ())}
    document = state.document() if state else {}
    for gone in ("promote", "oneNodeWriteMode"):
        document.pop(gone, None)
    document |= {
        "generation": generation,
        "primary": primary.document(),
        "sync": sync.document() if sync else None,
        "async": [peer.document() for peer in asyncs],
        "deposed": [peer.document() for peer in named if peer.id not in taken],
        "initWal": str(Lsn(0)),
        "override": Override(id=primary.id, generation=generation, date=written_time(now), reason=reason).document(),
    }
    if sync is None:
        document["oneNodeWriteMode"] = True
        if not (state and state.frozen):
            document["freeze"] = Freeze(date=written_time(now), reason=FREEZE).document()
    return ClusterState.of(document)
