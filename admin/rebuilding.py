"""Whether a peer may be rebuilt, and how a rebuild is going.

Pure: states and answers in, words out. A rebuild throws this peer's copy of the data away, so it is refused wherever
that copy may be needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from admin.requests import Refused
from manatee.cluster import ClusterState, Peer, PeerStatus, Role
from manatee.coordination import Active
from manatee.service import State


class NoSource(Refused):
    """Nobody serves now; a peer may do so in a moment, as a new primary does that is not through with its takeover."""


@dataclass(frozen=True)
class Plan:
    """What a rebuild would do."""

    role: str
    """What the peer is now, in words."""
    sources: tuple[Peer, ...]
    """The peers that may give it their data, the primary first."""


def plan(state: ClusterState, active: Sequence[Active], me: Peer, *, force: bool = False) -> Plan:
    """Raises Refused, with one sentence, if the peer `me` must keep its data; NoSource if that may change by itself.
    `force` allows what stops no writes but takes a copy away from a shard that counts on it: the sync's.
    """
    role = state.role_of(me.id)
    if role is Role.PRIMARY:
        raise Refused("this peer is the primary, its data are the shard's: promote the sync first, then rebuild")
    if state.one_node_write_mode:
        raise Refused("the shard is in one-node-write mode: nobody but the primary has data, nothing can be restored")
    present = {each.peer.id: each for each in active}
    sources = tuple(peer for peer in state.assigned if peer.id != me.id and _serves(state, present.get(peer.id)))
    if not sources:
        others = [peer for peer in state.assigned if peer.id != me.id]
        found = ", ".join(f"{peer.label} {_silence(state, present.get(peer.id))}" for peer in others) or "there is none"
        raise NoSource(f"no other peer of the shard serves ({found}): there is nobody to restore from")
    if role is Role.SYNC:
        _check_sync(state, present, me, sources, force=force)
    return Plan(_words(state, me, role), sources)


def _check_sync(
    state: ClusterState, present: Mapping[str, Active], me: Peer, sources: Sequence[Peer], *, force: bool
) -> None:
    """The sync's data are the only other copy of what the primary has acknowledged."""
    first = state.asyncs[0] if state.asyncs else None
    advice = (
        f"promote {first.label} first (manatee-adm promote -r async -n {first.label} -i 0)"
        if first
        else "add an async first"
    )
    if not force:
        raise Refused(f"this peer is the sync, the primary's writes wait for it: {advice}, or say --force")
    if all(peer.id != state.primary.id for peer in sources):
        raise Refused("this peer is the sync and the primary does not serve: this may be the only complete copy")
    mine = present.get(me.id)
    streams = mine is not None and (mine.status is None or mine.status.ready)
    successor = any(_serves(state, present.get(peer.id)) for peer in state.asyncs) and not state.frozen
    if streams and not successor:
        why = "the shard is frozen" if state.frozen else "no async serves that could take its place"
        raise Refused(f"this peer is the sync and {why}: no write would be acknowledged until it is restored")


def _serves(state: ClusterState, peer: Active | None) -> bool:
    """A Manatee 2 peer says nothing, and speaks another protocol for backups."""
    said = peer.status if peer else None
    return said is not None and said.serving and said.generation == state.generation


def _silence(state: ClusterState, peer: Active | None) -> str:
    """Why a peer does not serve, in words."""
    if peer is None:
        return "is absent"
    said = peer.status
    if said is None:
        return "has not said how it is" if peer.promises_status else "is a Manatee 2 peer"
    if said.generation != state.generation:
        return f"has not acted on generation {state.generation} yet"
    return "is being restored" if said.restoring else "does not serve yet"


def _words(state: ClusterState, me: Peer, role: Role) -> str:
    if role is Role.ASYNC:
        return f"async {[peer.id for peer in state.asyncs].index(me.id)}"
    return "not assigned a role" if role is Role.UNASSIGNED else str(role)


@dataclass(frozen=True)
class Look:
    """A rebuilt peer at one moment, once its sitter was started."""

    service: State = State.UNKNOWN
    state: ClusterState | None = None
    present: bool = False
    """In the active list."""
    status: PeerStatus | None = None
    restore: Mapping[str, Any] | None = None
    """What the sitter's `/restore` shows; None without one, or when the sitter does not answer."""
    reason: str | None = None
    """What the sitter says it is doing."""


@dataclass(frozen=True)
class Judgement:
    verdict: Literal["ready", "going on", "failed"]
    text: str
    done: int = 0
    """Bytes."""
    total: int | None = None
    rate: int | None = None
    """Bytes per second, lately."""
    left: float | None = None
    """Seconds."""


def judge(look: Look, me: Peer) -> Judgement:
    """How it is going."""
    state, status = look.state, look.status
    role = state.role_of(me.id) if state else Role.UNASSIGNED
    if look.service is State.FAILED:
        return Judgement("failed", "the sitter's service has failed: see its log")
    if look.restore is not None:
        step = _restoring(look.restore)
        if step is not None:
            return step
    if state is not None and look.present and status is not None:
        if role is Role.DEPOSED:
            return Judgement("failed", f"the peer was deposed again in generation {state.generation}: {look.reason}")
        if status.ready and status.generation == state.generation:
            return Judgement("ready", f"{_words(state, me, role)} of generation {state.generation}, streaming")
    if not look.present:
        return Judgement("going on", "waiting for the sitter to join the shard")
    return Judgement("going on", look.reason or "waiting for the sitter to say how it is")


def _restoring(restore: Mapping[str, Any]) -> Judgement | None:
    """What `/restore` says; None once it is done."""
    source, error = restore.get("source"), restore.get("error")
    done, total = int(restore.get("bytes_done") or 0), restore.get("bytes_total")
    match restore.get("state"):
        case "failed":
            return Judgement("failed", f"the restore has failed: {error or 'no reason given'}")
        case "waiting":
            attempt = restore.get("attempt")
            return Judgement(
                "going on",
                f"attempt {attempt} to restore failed: {error or 'no reason given'}; trying again",
                done,
                total,
            )
        case "running":
            where = f"restoring from {source}" if source else "looking for a peer to restore from"
            return Judgement(
                "going on", where, done, total, restore.get("bytes_per_second"), restore.get("seconds_left")
            )
    return None


def amount(done: int, total: int | None, rate: int | None = None, left: float | None = None) -> str:
    """Bytes as people read them, with the bytes and the seconds that matter.

    >>> amount(1_500_000, 3_000_000), amount(20_000_000, None)
    ('1.4 of 2.9 MiB (50 %)', '19.1 MiB')
    >>> amount(1_500_000, 3_000_000, 12_000, 125.0)
    '1.4 of 2.9 MiB (50 %), 0.0 MiB/s, 2m05s left'
    """
    mib = 1 << 20
    pace = f", {rate / mib:.1f} MiB/s" if rate is not None else ""
    if left is not None:
        pace += f", {int(left) // 60}m{int(left) % 60:02}s left"
    if not total:
        return f"{done / mib:.1f} MiB{pace}"
    return f"{done / mib:.1f} of {total / mib:.1f} MiB ({100 * min(done, total) // total} %){pace}"
