"""Who holds what of a shard's data, and what would be lost if the shard went on with one peer's: facts and sentences.

Pure: what ZooKeeper holds and what the sitters answered in, words out. What is not known is said to be not known: the
positions of peers that are gone are gone with them.

A commit is acknowledged when the sync has it, so whatever was acknowledged under a generation lies at or below what its
primary and its sync have flushed, and everything that was acknowledged before it lies below its beginning, `initWal`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from admin.sitters import States
from manatee.cluster import ClusterState, Comparison, Peer, PeerStatus, Role
from manatee.coordination import ShardView
from manatee.lsn import Lsn


@dataclass(frozen=True)
class Holding:
    """What is known of one peer and its data."""

    peer: Peer
    role: Role
    index: int | None = None
    """Of an async."""
    present: bool = False
    """In the active list."""
    promises_status: bool = True
    """False for a Manatee 2 peer, which says nothing of itself."""
    heard: bool = False
    """It has said how it is, in ZooKeeper or over HTTP; nothing of what follows is known without."""
    initialized: bool = False
    identifier: str | None = None
    acted_on: int = 0
    """The newest generation it has acted on."""
    proof: int = 0
    """The newest generation of which it knows that its data belong to it (docs/safety.md)."""
    timeline: int | None = None
    flushed: Lsn | None = None
    """How far its WAL is on disk; None where that is not known: where PostgreSQL is starting, or has just stopped."""
    stopped: bool = False
    """PostgreSQL does not run: its WAL was read to its end."""
    serving: bool = False
    ready: bool = False
    restoring: bool = False
    replacing: bool = False
    """Its data may be others at any moment: they are rewound, or restored from somebody who is there."""
    torn: bool = False
    """A rewind of its data was cut short: they are of no use, and are not started."""
    writable: bool = False
    """Its sitter says that it accepts writes."""
    ahead: bool = False
    """Its data are ahead of its upstream's."""
    diverged: str | None = None
    """From whom its data have diverged, and where."""
    reason: str | None = None
    """What its sitter has decided."""
    waiting_for: str | None = None

    @property
    def label(self) -> str:
        return self.peer.label

    @property
    def reachable(self) -> bool:
        """A sitter of it lives, in the active list or not."""
        return self.present or self.reason is not None

    @property
    def what(self) -> str:
        """Its role in words."""
        return f"async {self.index}" if self.role is Role.ASYNC else str(self.role)


def holdings(view: ShardView, states: States) -> list[Holding]:
    """Every peer that the state names, in its order, then the others that are present."""
    state = view.state
    named = (*state.assigned, *state.deposed) if state else ()
    known = {peer.id: peer for peer in named} | {each.peer.id: each.peer for each in view.active}
    present = {each.peer.id: each for each in view.active}
    found = []
    for peer in known.values():
        active = present.get(peer.id)
        found.append(
            _holding(
                state,
                peer,
                active.status if active else None,
                states.get(peer.id, {}),
                present=active is not None,
                promises_status=active is None or active.promises_status,
            )
        )
    return found


def _holding(
    state: ClusterState | None,
    peer: Peer,
    status: PeerStatus | None,
    said: Mapping[str, Any],
    *,
    present: bool,
    promises_status: bool,
) -> Holding:
    postgres, memory = _section(said, "postgres"), _section(said, "memory")
    at_rest = _section(postgres, "atRest")
    asyncs = [each.id for each in state.asyncs] if state else []
    answer = Comparison.DIVERGED if status and status.diverged else status.compares if status else None
    comparison = _section(said, "comparison")
    answer = answer or comparison.get("answer")
    return Holding(
        peer=peer,
        role=state.role_of(peer.id) if state else Role.UNASSIGNED,
        index=asyncs.index(peer.id) if peer.id in asyncs else None,
        present=present,
        promises_status=promises_status,
        heard=status is not None or bool(memory),
        initialized=status.initialized if status else bool(memory.get("identifier")),
        identifier=memory.get("identifier") or (status.system_identifier if status else None),
        acted_on=max(status.generation if status else 0, memory.get("generation") or 0),
        proof=memory.get("proof", status.proof if status else 0),
        timeline=postgres.get("timeline") or at_rest.get("timeline") or (status.timeline if status else None),
        flushed=_lsn(postgres.get("end")) or _lsn(at_rest.get("end")) or (status.lsn if status else None),
        stopped=bool(at_rest) or (not postgres and status is not None and status.running is False),
        serving=bool(said.get("serving", status.serving if status else False)),
        ready=bool(said.get("ready", status.ready if status else False)),
        restoring=status.restoring if status else False,
        replacing=bool(postgres.get("replacing", status.restoring if status else False)),
        torn=bool(postgres.get("torn", status.torn if status else False)),
        writable=bool(postgres.get("writable")),
        ahead=answer == Comparison.AHEAD,
        diverged=(status.diverged if status else None)
        or (str(comparison.get("detail")) if answer == Comparison.DIVERGED else None),
        reason=said.get("reason"),
        waiting_for=said.get("waitingFor"),
    )


def _section(document: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = document.get(name)
    return section if isinstance(section, Mapping) else {}


def _lsn(written: object) -> Lsn | None:
    try:
        return Lsn.parse(written) if isinstance(written, str) else None
    except ValueError:
        return None


def acted_on(held: Iterable[Holding]) -> list[int]:
    """All generations that anybody is known to have acted on, or to have proof of."""
    return [number for each in held for number in (each.acted_on, each.proof) if number]


# --- What a peer holds, in a sentence ---------------------------------------------------------------------------------


def told(one: Holding) -> str:
    """`peer "5d068733" (sync): proof of generation 3, timeline 3, WAL flushed up to 0/05000000`."""
    return f'peer "{one.label}" ({one.what}): ' + ", ".join(_facts(one))


def _facts(one: Holding) -> list[str]:
    if not one.heard:
        if not one.promises_status:
            return ["a Manatee 2 peer, which says nothing of its data"]
        return ["present, but has not said how it is" if one.present else "absent: what it holds is not known"]
    facts = [] if one.present else ["not in the active list"]
    if not one.initialized:
        return [*facts, "is being restored" if one.restoring else "has no database"]
    facts.append(f"proof of generation {one.proof}" if one.proof else "no proof that its data are the shard's")
    if one.torn:
        facts.append("of no use: a rewind of its data was cut short")
    elif one.replacing:
        facts.append("its data are being replaced")
    if one.flushed is None:
        facts.append("PostgreSQL does not run, and its position is not known")
    else:
        timeline = f"timeline {one.timeline}, " if one.timeline else ""
        facts.append(f"{timeline}WAL {'on disk' if one.stopped else 'flushed'} up to {one.flushed}")
    if one.stopped and one.flushed is not None:
        facts.append("PostgreSQL does not run")
    if one.diverged:
        facts.append(f"diverged: {one.diverged}")
    elif one.ahead:
        facts.append("ahead of the peer that it should follow")
    if one.writable:
        facts.append("open for writes")
    return facts


# --- What would be lost -----------------------------------------------------------------------------------------------


def loss(one: Holding, held: Sequence[Holding], state: ClusterState | None) -> str:
    """What the shard would lose of what it has acknowledged, if it went on with this peer's data: a sentence."""
    newest = max([state.generation if state else 0, *acted_on(held)])
    if state is None or newest > state.generation:
        return _loss_unnamed(one, held, newest)
    generation, begins = state.generation, state.init_wal
    if one.proof == 0:
        return f"it is not known whether its data are the shard's at all{_parts(one)}; {_compared(one, held, state)}"
    if one.role is Role.PRIMARY and _confirms(one, state):
        return f"nothing: it is the primary of generation {generation}, and has all that it wrote"
    if _confirms(one, state):
        return f"nothing: as the sync of generation {generation} it has all that was acknowledged under it"
    if one.proof < generation - 1:
        begun = f"it may lack what generation {generation} began with, at {begins}"
        return f"its data belong to generation {one.proof}; {begun}{_parts(one)}; {_compared(one, held, state)}"
    return f"{_compared(one, held, state)}{_parts(one)}; acknowledged since generation {generation} began, at {begins}"


def _loss_unnamed(one: Holding, held: Sequence[Holding], newest: int) -> str:
    """Where ZooKeeper does not say who was what in the newest generation."""
    if one.writable:
        return f"nothing: it is the primary of generation {newest}, and goes on as that"
    if one.proof == 0:
        return f"it is not known whether its data are the shard's at all{_parts(one)}; {_compared(one, held)}"
    roles = f"ZooKeeper does not say who was primary and sync of generation {newest}"
    return f"{_compared(one, held)}{_parts(one)}; {roles}"


def _compared(one: Holding, held: Sequence[Holding], state: ClusterState | None = None) -> str:
    """How much WAL others have that this one does not, and how much of it may have been acknowledged under `state`."""
    if one.flushed is None:
        return "how much it lacks is not known, as its position is not"
    others = [each for each in held if each is not one and each.proof and not each.diverged and each.flushed]
    # Nothing is acknowledged that not both of them have, so what either has is the limit.
    limits = [each for each in others if state and _confirms(each, state)]
    if limits:
        limit = min(limits, key=lambda each: each.flushed or Lsn(0))
        return _between(one, limit) or f"nothing: {limit.label} has nothing beyond {one.flushed} that was acknowledged"
    gone = _labels(each for each in held if each is not one and _could_have_more(each, state))
    ahead = max(others, key=lambda each: each.flushed or Lsn(0), default=None)
    amount = _between(one, ahead) if ahead else None
    if amount is None:
        return f"all that {gone} had beyond {one.flushed}: how much that is, nobody knows" if gone else _most(one)
    return f"{amount}, and what {gone} had beyond that, which nobody knows" if gone else amount


def _confirms(one: Holding, state: ClusterState) -> bool:
    """It has all that was acknowledged under this generation."""
    if one.role is Role.PRIMARY:
        return one.proof >= state.generation
    return one.role is Role.SYNC and one.proof >= max(1, state.generation - 1) and not one.diverged


def _could_have_more(one: Holding, state: ClusterState | None) -> bool:
    """It could confirm commits, and what it had is not known."""
    return one.role in (Role.PRIMARY, Role.SYNC) if state else not one.heard


def _between(one: Holding, other: Holding) -> str | None:
    """What the other has and this one has not; None if it has nothing."""
    if one.flushed is None or other.flushed is None or other.flushed <= one.flushed:
        return None
    amount = other.flushed - one.flushed
    return f"up to {amount:,} bytes of WAL between {one.flushed} and {other.flushed}, which {other.label} has"


def _most(one: Holding) -> str:
    return f"nothing that any other peer has: none that is here is beyond {one.flushed}"


def _parts(one: Holding) -> str:
    return f"; they part from the others' ({one.diverged})" if one.diverged else ""


def _labels(held: Iterable[Holding]) -> str:
    return " and ".join(each.label for each in held)


# --- Why nobody goes on -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Standstill:
    """Why the shard acknowledges no writes."""

    why: str
    for_good: bool
    """Nothing that is under way will end it: somebody has to come back, or to decide."""


def standstill(view: ShardView, held: Sequence[Holding]) -> Standstill:
    """Who would have to act, and what that peer says of it. For a shard that acknowledges no writes."""
    state = view.state
    by_id = {each.peer.id: each for each in held}
    if state is None:
        return Standstill(f"ZooKeeper holds no cluster state: {_all_say(held)}", for_good=True)
    primary = by_id[state.primary.id]
    if state.frozen and not primary.present:
        return Standstill(f"the primary {primary.label} is absent, and the shard is frozen", for_good=True)
    if primary.present:
        confirms = state.sync.label if state.sync and primary.writable else None
        waits = f"commits on {primary.label} wait for the sync {confirms}; " if confirms else ""
        return Standstill(f"{waits}{_says(primary)}", for_good=primary.waiting_for is not None)
    if state.sync is None:
        return Standstill(f"the primary {primary.label} is absent, and it was alone", for_good=True)
    sync = by_id[state.sync.id]
    why = f"the primary {primary.label} is absent" + (f" (it says: {primary.reason})" if primary.reason else "")
    if not sync.present:
        return Standstill(f"{why}, the sync {sync.label} as well, and nobody else may take over", for_good=True)
    # The sync's own words begin with what they have in common.
    says = _says(sync) if primary.reason or sync.reason is None else _says(sync).replace(f"{why}; ", "")
    return Standstill(f"{why}; {says}", for_good=sync.waiting_for is not None)


def _all_say(held: Iterable[Holding]) -> str:
    """Everybody's words, each once."""
    words: dict[str, list[str]] = {}
    for one in held:
        if one.reason:
            words.setdefault(one.reason + _wants(one), []).append(one.label)
    return "; ".join(f"{', '.join(labels)} says: {said}" for said, labels in words.items()) or "nobody says why"


def _wants(one: Holding) -> str:
    return f", and waits for {one.waiting_for}" if one.waiting_for else ""


def _says(one: Holding) -> str:
    if one.reason is None:
        return f"the sitter of {one.label} ({one.what}) does not answer"
    return f"{one.label} ({one.what}) says: {one.reason}{_wants(one)}"
