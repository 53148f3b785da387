"""Whom an operator may make primary by his word alone, and what he must be told before he does.

Pure: what is known of a shard in, candidates and refusals out. The rules of the forced state itself are in
`manatee.override`. It is refused wherever the shard can go on by itself, or goes on already: a forced generation gives
up what its primary does not have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from admin.observed import NOT_ASKED, Observations
from admin.requests import Refused
from admin.standing import Holding, acted_on, loss
from manatee.cluster import ClusterState, Peer, Role
from manatee.coordination import HistoryEntry, ShardView
from manatee.override import forced_state


@dataclass(frozen=True)
class Candidate:
    """A peer whose data the shard could go on with."""

    holding: Holding
    lost: str
    """What the shard would lose, in words."""


def check_stuck(view: ShardView, held: Sequence[Holding], seen: Observations) -> None:
    """Raises Refused, with what to do instead, unless nothing but an operator's word gets the shard going."""
    state = view.state
    forgotten = state is None or max([0, *acted_on(held)]) > state.generation
    for one in held:
        if one.writable and not forgotten:
            raise Refused(_lives(one))
        if not one.present and seen.get(one.peer.id, NOT_ASKED).online:
            raise Refused(
                f"{one.label} is not in the active list, but its PostgreSQL answers at {one.peer.ip}: it may still "
                "acknowledge commits. Bring its sitter back, or stop its PostgreSQL"
            )
    if state is None:
        if not any(one.initialized for one in held):
            raise Refused("no peer that is present has a database: there is nothing to go on with")
        return
    if not forgotten:
        _check_by_itself(state, {one.peer.id: one for one in held})


def _check_by_itself(state: ClusterState, held: dict[str, Holding]) -> None:
    """Raises Refused if the ordinary rules lead on, at once or once something has come back that is there."""
    primary = held[state.primary.id]
    if primary.present and primary.proof >= state.generation and primary.serving:
        raise Refused(_lives(primary))
    if state.sync is None:
        return
    sync = held[state.sync.id]
    successor = next((one for one in held.values() if one.role is Role.ASYNC and one.present and one.serving), None)
    if sync.present and sync.serving and sync.proof >= max(1, state.generation - 1) and successor:
        if state.frozen:
            raise Refused("the shard is frozen, and could go on by itself if it were not: `manatee-adm unfreeze`")
        raise Refused(
            f"a takeover is possible without losing anything: {sync.label} has all that was acknowledged, and "
            f"{successor.label} can become its sync. Wait for it; manatee-adm verify says what it waits for"
        )


def _lives(primary: Holding) -> str:
    return (
        f"the primary lives: {primary.label} has all that was acknowledged. If its commits wait, they wait for a sync: "
        "start a peer, or add a new one, which restores from it"
    )


def candidates(view: ShardView, held: Sequence[Holding]) -> list[Candidate]:
    """The peers that have a database of this shard and a sitter that lives, those that lose least first.

    Not those whose data a rewind has left half done, nor those whose data may be others when the word is read.
    """
    cluster = view.cluster
    shard = cluster.system_identifier if cluster else None
    able = [
        one
        for one in held
        if one.reachable and one.promises_status and one.initialized and shard in (None, one.identifier)
        if not one.torn and not one.replacing
    ]
    able.sort(key=_worth, reverse=True)
    return [Candidate(one, loss(one, held, view.state)) for one in able]


def _worth(one: Holding) -> tuple[bool, bool, int, bool, bool, int]:
    return (
        one.writable,
        one.diverged is None,
        one.proof,
        one.role is Role.PRIMARY,
        one.role is Role.SYNC,
        one.flushed or 0,
    )


def chosen(found: Sequence[Candidate], name: str) -> Candidate:
    """The candidate that a zone's name, label, id or address stands for; raises Refused."""
    matching = [one for one in found if name in (one.holding.peer.zone_id, one.holding.peer.id)] or [
        one for one in found if name in (one.holding.label, one.holding.peer.ip)
    ]
    if len(matching) == 1:
        return matching[0]
    able = ", ".join(one.holding.label for one in found) or "nobody"
    if matching:
        raise Refused(f'"{name}" could be {" or ".join(one.holding.peer.id for one in matching)}: say which by its id')
    raise Refused(f'"{name}" cannot be forced: {able} has a database of this shard, and a sitter that answers')


def forced(
    view: ShardView, held: Sequence[Holding], history: Sequence[HistoryEntry], who: Holding, *, now: float, reason: str
) -> ClusterState:
    """The state to write: `who` is primary, the present follow, those likeliest to be a prefix of it first."""
    if not reason.strip():
        raise Refused("a reason is needed: whoever reads the history will want to know")
    known = [*acted_on(held), *(entry.generation for entry in history if entry.generation is not None)]
    beside = sorted(
        (one for one in held if one.present and one is not who), key=lambda one: _likely(one, who), reverse=True
    )
    present: list[Peer] = [one.peer for one in beside]
    return forced_state(view.state, who.peer, present, acted_on=known, now=now, reason=reason)


def _likely(one: Holding, primary: Holding) -> tuple[bool, bool, int, int]:
    """How likely its data are a prefix of the forced primary's; a peer without data can always be restored."""
    beyond = one.flushed is not None and primary.flushed is not None and one.flushed > primary.flushed
    return (one.diverged is None and not beyond, one.initialized, one.proof, one.flushed or 0)
