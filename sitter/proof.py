"""What a peer may remember of its data: where proof comes from, and where it goes.

Proof is the newest generation of which this peer knows that its data are a prefix of that generation's primary's WAL
and hold all that the generation began with. It comes from `initdb`, from one's own seal, or from an upstream that has
it; never from being named, unless an operator gives his word for it, which counts once. It goes with the data it speaks
of.
"""

from __future__ import annotations

from dataclasses import replace

from manatee.cluster import ClusterState, Comparison
from sitter.view import Memory, View


def remember(view: View, state: ClusterState) -> Memory:
    """The memory as this view makes it."""
    database, memory = view.database, view.memory
    generation = max(memory.generation, state.generation)
    if not database.initialized:
        return Memory(generation=generation)
    if memory.identifier not in (None, database.identifier):
        memory = Memory()
    memory = replace(memory, identifier=database.identifier, generation=generation)
    return replace(memory, proof=max(memory.proof, _earned(view, state, memory)))


def _earned(view: View, state: ClusterState, memory: Memory) -> int:
    """The proof that follows from what is known now; 0 if none does."""
    cluster, seal = view.cluster, memory.seal
    if state.primary.id != view.me.id:
        return _from_upstream(view, state)
    if state.override_due:
        unusable = view.database.torn or view.database.replacing
        return 0 if unusable else state.generation  # the word was given for the data that were here
    if state.generation == 1 and cluster and cluster.by == view.me.id and cluster.system_identifier is None:
        return 1  # the database is the one that initdb made here: whoever sets a shard up has no data
    if seal and (state.generation, state.init_wal) == (seal.generation + 1, seal.position):
        return state.generation
    at_rest = view.database.at_rest
    if cluster is None and at_rest is not None and at_rest >= state.init_wal:
        return state.generation  # inherited from Manatee 2, which knows no proof; nothing runs here without
    return 0


def _from_upstream(view: View, state: ClusterState) -> int:
    """The upstream's own proof, once our WAL was a prefix of its WAL and we have flushed what it had then."""
    link, end = view.database.link, view.database.end
    if link is None or link.answer is not Comparison.PREFIX or link.generation != state.generation:
        return 0
    return link.proof if end is not None and end >= link.mark else 0
