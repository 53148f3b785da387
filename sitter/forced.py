"""Break glass: what the primary of a generation that an operator has declared does before it opens.

The operator's word (`manatee.override`) counts as its proof, once: the proof is remembered, the word is marked as
taken, and only then PostgreSQL runs. And not before everyone else who is present has left what went before, and
everyone who was when the word was given: otherwise an old primary and its old sync could go on acknowledging beside it.
"""

from __future__ import annotations

from manatee.cluster import Override, written_time
from sitter.shard import Shard
from sitter.view import Decision, Stopped, Write

WAY_OUT = "that peer; or switch it off, and manatee-adm force-primary once more"


def take_word(shard: Shard) -> Decision:
    """Mark the operator's word as taken, when nobody whom it does not vouch for acts on an earlier generation."""
    view, state = shard.view, shard.state
    assert isinstance(state.override, Override)
    forced = f"primary by an operator's word ({state.override.reason or 'no reason given'})"
    busy = _still_busy(shard)
    if busy:
        return Decision(f"{forced}; waiting: {busy}", Stopped(), waiting_for=WAY_OUT)
    if view.database.running:
        return Decision(f"{forced}; stopping what runs here", Stopped())
    if view.write_open or not shard.i_am_present:
        what = "ZooKeeper" if view.write_open else "joining"
        return Decision(f"{forced}; waiting to say so", Stopped(), waiting_for=what)
    taken = state.replace(override=state.override.replace(taken=written_time(view.now)))
    return Decision(forced, Stopped(), write=Write(taken, view.version, "the operator's word is taken"))


def _still_busy(shard: Shard) -> str | None:
    """Who else may still run PostgreSQL under an earlier generation, in words.

    The chain below is who was present when the word was given. An operator has vouched for nobody of these: who is gone
    since may have stood still with its PostgreSQL, and go on in a moment.
    """
    for peer in shard.state.assigned[1:]:
        if not shard.present(peer):
            return f"{peer.label} has gone since the word was given, and may still run PostgreSQL"
    for one in shard.view.active:
        if one.peer.id == shard.view.me.id or not one.promises_status:
            continue
        if one.status is None or one.status.generation < shard.state.generation:
            return f"{one.peer.label} has not acted on generation {shard.state.generation} yet"
        if one.status.running is not False:
            return f"{one.peer.label} still runs PostgreSQL"
    return None
