"""What an operator may ask of a shard, and the state that says so: freeze, unfreeze, promote or not after all, reap.

Pure: a state in, the new state out, or `Refused` with the reason in one sentence. Each starts from the whole state that
was read, so that whatever else it holds is kept. Nothing here declares a generation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from manatee.cluster import ClusterState, Freeze, Peer, Promote, Role, written_time
from manatee.coordination import Active

PROMOTE_DEADLINE = 30.0
"""Seconds a request to promote is good for."""
_SETTLING = 10.0
"""Seconds after that in which a step begun in time may still show."""


class Refused(Exception):
    """The shard is not in a state in which this can be asked of it; the message is for the operator."""


def freeze(state: ClusterState, reason: str, now: float) -> ClusterState:
    if not reason.strip():
        raise Refused("a reason is needed: whoever finds the shard frozen will want to know")
    if state.frozen:
        raise Refused(f"the shard is already frozen {_since(state)}")
    return state.replace(freeze=Freeze(date=written_time(now), reason=reason))


def unfreeze(state: ClusterState) -> ClusterState:
    if not state.frozen:
        raise Refused("the shard is not frozen")
    return state.replace(without=("freeze",))


def undeposed(state: ClusterState, peer_id: str) -> ClusterState | None:
    """The state without the peer on the list of the deposed, in the same generation; None if it is not on it."""
    if all(peer.id != peer_id for peer in state.deposed):
        return None
    return state.replace(deposed=[peer for peer in state.deposed if peer.id != peer_id])


def reap(state: ClusterState, active: Sequence[Active], name: str, *, force: bool = False) -> ClusterState:
    """The state without a deposed peer that is gone for good, called by zone name, label, id or address.

    Refused while the peer is connected, unless forced: it is not gone, and comes off the list by `rebuild`, or by
    itself. Any other peer than a deposed one leaves the state by itself when it is absent.
    """
    peer = find_peer(state, name)
    if state.role_of(peer.id) is not Role.DEPOSED:
        held = _the(state.role_of(peer.id), _index(state, peer))
        raise Refused(f"{peer.label} is {held}, not deposed: who is not deposed leaves by itself when it is gone")
    if any(each.peer.id == peer.id for each in active) and not force:
        raise Refused(
            f"{peer.label} is connected to ZooKeeper, so it is not gone: `manatee-adm rebuild` there brings it back; "
            "with --force it joins with the data that it has, and follows if they are a prefix of the shard's"
        )
    without = undeposed(state, peer.id)
    assert without is not None
    return without


def clear_promote(state: ClusterState) -> ClusterState:
    """The state without the request to promote, be it valid, expired or illegible."""
    if state.promote is None:
        raise Refused("no promotion is asked for")
    return state.replace(without=("promote",))


def find_peer(state: ClusterState, name: str) -> Peer:
    """The peer that a zone's name, a label, an id or an address stands for; raises Refused."""
    known = [*state.assigned, *state.deposed]
    found = [peer for peer in known if name in (peer.zone_id, peer.id)]
    found = found or [peer for peer in known if name in (peer.label, peer.ip)]
    if not found:
        raise Refused(f'no peer is called "{name}": there are {", ".join(peer.label for peer in known)}')
    if len(found) > 1:
        raise Refused(f'"{name}" could be {" or ".join(peer.id for peer in found)}: say which by its id')
    return found[0]


def promote(
    state: ClusterState,
    active: Sequence[Active],
    name: str,
    *,
    role: str,
    async_index: int | None,
    now: float,
    deadline: float = PROMOTE_DEADLINE,
) -> ClusterState:
    """The state with the request to promote a peer that now has `role`.

    The role, and for an async among several its index too, must be what the operator saw: the shard may have moved on.
    """
    peer = find_peer(state, name)
    held, index = state.role_of(peer.id), _index(state, peer)
    if state.frozen:
        raise Refused(f"the shard is frozen {_since(state)}: unfreeze it first")
    if state.one_node_write_mode:
        raise Refused("the shard is in one-node-write mode: there is nobody to promote")
    if held is Role.PRIMARY:
        raise Refused(f"{peer.label} is the primary already")
    if held is Role.DEPOSED:
        raise Refused(f"{peer.label} is deposed: it needs a rebuild first")
    if held != role:
        raise Refused(f"{peer.label} is {_the(held, index)}, not {role}")
    if held is Role.ASYNC:
        if async_index is None and len(state.asyncs) > 1:
            raise Refused(f"there are {len(state.asyncs)} asyncs: confirm which one with --asyncIndex (it is {index})")
        if async_index is not None and async_index != index:
            raise Refused(f"{peer.label} is {_the(held, index)}, not async {async_index}")
    elif async_index is not None:
        raise Refused("--asyncIndex goes with --role=async")
    _check_able(state, active, peer, held)
    if state.promote is not None and _valid_still(state, state.promote, now):
        raise Refused(f"a promotion of {state.promote.id} is under way, until {state.promote.expire_time}")
    wanted = {
        "id": peer.id,
        "role": str(held),
        "generation": state.generation,
        "expireTime": written_time(now + deadline),
    }
    if held is Role.ASYNC:
        wanted["asyncIndex"] = index
    return state.replace(promote=Promote.of(wanted))


def _check_able(state: ClusterState, active: Sequence[Active], peer: Peer, held: Role) -> None:
    present = {said.peer.id: said for said in active}
    if peer.id not in present:
        raise Refused(f"{peer.label} is not connected to ZooKeeper")
    if why := _unready(present[peer.id], state.generation):
        raise Refused(f"{peer.label} {why}")
    if held is not Role.SYNC:
        return
    if not any(each.id in present for each in state.asyncs):
        raise Refused("no async is there to become the new sync: the shard would be read-only")


def _unready(said: Active, generation: int) -> str | None:
    """Why a peer is not ready, in its own words; None if it is. Manatee 2 peers say nothing and count as ready."""
    if not said.promises_status:
        return None
    if said.status is None:
        return "has not yet said how it is"
    if said.status.generation != generation:
        return f"has not yet acted on generation {generation}"
    if said.status.restoring:
        return "is restoring its data"
    if not said.status.serving:
        return "does not serve: its PostgreSQL is not online or its data are not proven"
    return None if said.status.ready else "does not stream from its upstream"


def _valid_still(state: ClusterState, request: Promote, now: float) -> bool:
    return request.generation == state.generation and request.expires() > now


Verdict = Literal["done", "pending", "failed"]


@dataclass(frozen=True)
class Outcome:
    verdict: Verdict
    text: str


def outcome(asked: ClusterState, state: ClusterState, now: float) -> Outcome:
    """What has become of the request in `asked`, the state that was written with it."""
    request = asked.promote
    assert request is not None
    peer = find_peer(asked, request.id)
    before, after = _rank(asked, peer), _rank(state, peer)
    if after is not None and before is not None and after < before:
        held = state.role_of(peer.id)
        news = f"generation {state.generation}: " if state.generation != asked.generation else ""
        return Outcome("done", f"{news}{peer.label} is now {_the(held, _index(state, peer))}")
    if state.generation != asked.generation:
        held = state.role_of(peer.id)
        return Outcome(
            "failed",
            f"the shard moved on to generation {state.generation} in another way: "
            f"{peer.label} is {_the(held, _index(state, peer))}",
        )
    if state.frozen:
        return Outcome("failed", f"the shard was frozen {_since(state)} before {peer.label} was promoted")
    if state.promote != request:
        return Outcome("failed", f"the request was withdrawn before {peer.label} was promoted")
    if now > request.expires() + _SETTLING:
        return Outcome("failed", f"the request expired: nobody acted on it, {peer.label} keeps its place")
    return Outcome("pending", f"waiting for {peer.label} to be promoted")


def _rank(state: ClusterState, peer: Peer) -> int | None:
    """The peer's place in the chain, 0 for the primary."""
    return next((i for i, each in enumerate(state.assigned) if each.id == peer.id), None)


def _index(state: ClusterState, peer: Peer) -> int | None:
    return next((i for i, each in enumerate(state.asyncs) if each.id == peer.id), None)


def _the(role: Role, index: int | None) -> str:
    if role is Role.ASYNC:
        return f"async {index}"
    return f"the {role}" if role in (Role.PRIMARY, Role.SYNC) else str(role)


def _since(state: ClusterState) -> str:
    if isinstance(state.freeze, Freeze):
        return f"since {state.freeze.date} ({state.freeze.reason or 'no reason given'})"
    return "(no reason given)"
