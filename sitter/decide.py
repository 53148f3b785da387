"""Who may acknowledge writes: the rules of a shard, `decide(view) -> Decision`.

This file does no I/O, keeps no memory and knows no clock: it is given everything one peer knows now (`View`) and
answers with everything wanted now (`Decision`). It is asked again whenever something changed, so it never says what to
do next, only what should be; a step that has become pointless is simply no longer asked for.

A shard is a chain: the *primary* takes writes, the *sync* confirms every commit before it is acknowledged, the
*asyncs* follow, each the one before it. Who is what stands in the cluster state in ZooKeeper, numbered by its
*generation*. Every peer computes its role from it. Only two peers ever write a new generation: the sync, when the
primary is gone (a takeover), and the primary, when the sync is (a replacement). No commit that was acknowledged is lost
because

  - the new primary is always the old sync or the old primary, and nobody else has acknowledged anything;
  - before it declares, it *seals*: it makes certain that nothing more can be acknowledged except through itself, and
    takes the position that follows as the new generation's beginning, `initWal`;
  - it has *proof* that its data belong to the shard's history and hold all that the present generation began with, and
    the new sync is *attached*: it has flushed everything up to the seal.

Proof is the number of a generation. It comes from `initdb` (1), from the seal under which one has declared, or from an
upstream that has it, once our WAL compared as a prefix of the upstream's and we have flushed what it had. Being named
in the state is no proof: a zone may come back empty under its old name.

A write to ZooKeeper whose answer was lost is *open*: it may still land. While it is, the seal stays.

Reading order: `decide`, the roles, `_declare`. The words (present, serving, ready, attached, valid promote) are defined
in `sitter.shard`, where proof comes from in `sitter.proof`, how a peer comes to follow in `sitter.follow`, how a shard
begins in `sitter.setup`, what an operator may force in `sitter.forced`, whose death is not waited for in
`sitter.eviction`, the data in `sitter.view`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from manatee.cluster import Cluster, ClusterState, Comparison, Peer, Role, written_time
from manatee.lsn import Lsn
from sitter.eviction import evicted, neighbour
from sitter.follow import VERIFY, as_deposed, as_standby, goes_on
from sitter.forced import take_word
from sitter.proof import remember
from sitter.setup import set_up
from sitter.shard import Shard, promotes_to_sync
from sitter.view import (
    Decision,
    Initialize,
    Keep,
    Primary,
    Restore,
    Rewind,
    Seal,
    Standby,
    Stopped,
    View,
    Write,
)

SOON = 0.02
"""Seconds after which to look again for what PostgreSQL tells only when asked: how far a standby has flushed."""


def decide(view: View) -> Decision:
    """What this peer should do now. The first rule that matches wins."""
    refusal = _refusal(view)
    if view.leaving and (refusal or view.state is None):
        return Decision("leaving", Stopped(), memory=view.memory, resign=True)
    if refusal:
        return Decision(f"refusing: {refusal}", Keep(), memory=view.memory, waiting_for="an operator")
    if view.state is None:
        return replace(set_up(view), memory=view.memory)
    shard = Shard(replace(view, memory=remember(view, view.state)), view.state)
    role = view.state.role_of(view.me.id)
    return _finish(shard, replace(_RULES[role](shard), role=role))


# --- 1. Refuse ------------------------------------------------------------------------------------------------------


def _refusal(view: View) -> str | None:
    """Why what ZooKeeper says is not to be acted on; None if all is well."""
    state = view.state
    if view.state_problem:
        return f"the cluster state does not validate: {view.state_problem}"
    if state and view.singleton and not state.one_node_write_mode:
        return "this peer is configured as a singleton, but the shard is in normal mode"
    shard, mine = view.cluster and view.cluster.system_identifier, view.database.identifier
    if shard and mine and shard != mine:
        return f"the database here has system identifier {mine}, the shard's is {shard}"
    held = f"ZooKeeper holds generation {state.generation}" if state else "ZooKeeper holds no cluster state"
    here = state.generation if state else 0
    if view.memory.generation > here:
        return f"{held}, but generation {view.memory.generation} was acted on here"
    for one in view.active:
        if one.status and one.status.generation > here:
            return f"{held}, but {one.peer.label} has acted on generation {one.status.generation}"
    return None


# --- 3. Roles: the primary ------------------------------------------------------------------------------------------


def _as_primary(shard: Shard) -> Decision:
    """Take writes with the sync's confirmation; find a new sync when it is gone; keep the list."""
    if unusable := _unusable(shard):
        return unusable
    if shard.view.memory.proof < shard.state.generation:
        return _without_proof(shard)
    makes_way = _makes_way(shard)
    if makes_way:
        return makes_way
    if shard.state.override_due:
        return take_word(shard)
    if shard.view.cluster and shard.view.cluster.system_identifier is None:
        return Decision("recording the identity of the shard's new database, before it is first started", Stopped())
    decision = _declare(shard, _replacement(shard), Primary(shard.state.sync))
    return replace(decision, write=decision.write or _kept_list(shard))


def _unusable(shard: Shard) -> Decision | None:
    """Data that are being replaced, or that a rewind has left half done, are nobody's to start. Only an operator's word
    can make their peer the primary, and it was not given for them.
    """
    database = shard.view.database
    if database.replacing:
        return Decision("this peer is named primary: giving up what was to replace its data", Stopped())
    if database.torn:
        reason = "resigned: this peer is named primary, but a rewind of its data was cut short: they are of no use"
        return Decision(reason, Stopped(), resign=True, waiting_for="an operator: manatee-adm force-primary of another")
    return None


def _without_proof(shard: Shard) -> Decision:
    """A primary opens only with proof of this generation. In generation 1 `initdb` gives it, to the one who set up."""
    state, view, cluster = shard.state, shard.view, shard.view.cluster
    if not view.database.initialized:
        if state.generation == 1 and cluster and cluster.by == view.me.id and cluster.system_identifier is None:
            return Decision("creating the shard's database", Initialize())
        why = "has no database"
    elif cluster is None and view.database.at_rest is None:
        why = "it is not known yet where its log ends"  # of a shard inherited from Manatee 2, that is proof
    else:
        why = f"cannot prove that its data hold what generation {state.generation} began with"
    return Decision(
        f"resigned: this peer is named primary, but {why}",
        Stopped(),
        resign=True,
        waiting_for="the sync, which takes over if it can; else " + VERIFY,
    )


def _makes_way(shard: Shard) -> Decision | None:
    """The reasons for a primary to stop and leave the active list, so that the sync takes over."""
    view, database, limits = shard.view, shard.view.database, shard.view.limits
    possible = shard.takeover_obstacle is None
    contradicts = shard.sync_contradicts
    if view.leaving:
        return Decision("leaving: handing over" if possible else "leaving", Stopped(clean=possible), resign=True)
    if contradicts:
        relation = "ahead of" if contradicts is Comparison.AHEAD else "diverged from"
        reason = f"resigned: the sync's data are {relation} ours, so ours may lack commits"
        return Decision(reason, Stopped(), resign=True, waiting_for=VERIFY)
    if view.resigned_for is not None:
        left = limits.handover_timeout - view.resigned_for
        if left > 0:
            reason = "resigned: giving the sync time to take over"
            return Decision(reason, Stopped(), resign=True, waiting_for="the sync", look_again=left)
        if shard.state.promote:
            reason = "nobody took over: withdrawing the request to promote, then coming back"
            withdrawn = shard.state.replace(without=("promote",))
            write = None if view.write_open else Write(withdrawn, view.version, "the promote of the sync is withdrawn")
            return Decision(reason, Stopped(), resign=True, write=write)
        return None  # nobody took over: it is to be tried again
    if possible and _hands_over(shard):
        return Decision("handing over: an operator promotes the sync", Stopped(clean=True), resign=True)
    if possible and database.failing_for is not None and database.failing_for >= limits.crash_restart_timeout:
        reason = f"resigned: PostgreSQL did not come back within {limits.crash_restart_timeout:g} s"
        return Decision(reason, Stopped(), resign=True, waiting_for="the sync")
    if possible and shard.out_of_reach:
        reason = f"resigned: no standby has reached this primary for {2 * limits.sync_grace:g} s"
        return Decision(reason, Stopped(), resign=True, waiting_for="the sync")
    return None


def _hands_over(shard: Shard) -> bool:
    """An operator promotes the sync. Once our PostgreSQL stops, the sync is no longer ready: that calls nothing off."""
    asked, sync, database = shard.state.promote, shard.state.sync, shard.view.database
    if asked is None or sync is None or asked.role != Role.SYNC or asked.id != sync.id:
        return False
    if database.handing_over:
        return shard.in_time(asked)
    return shard.promote is not None and database.writable_for > 0 and shard.attached(sync, None)


# --- 3. Roles: the others -----------------------------------------------------------------------------------------


def _as_sync(shard: Shard) -> Decision:
    """Follow the primary; take over when it is gone; keep the list meanwhile."""
    standby, cause, view = as_standby(shard), _takeover(shard), shard.view
    seal_stays = view.write_open and view.memory.seal is not None
    if not isinstance(standby.database, Standby) or (cause is None and not seal_stays):
        return standby
    decision = replace(_declare(shard, cause, standby.database), compare=standby.compare)
    if decision.write or shard.present(shard.state.primary):
        return decision
    return replace(decision, write=_kept_list(shard))


def _as_unassigned(shard: Shard) -> Decision:
    """No PostgreSQL. A rewind that has begun goes on: given up, it would leave nothing of use."""
    if shard.view.leaving:
        return Decision("leaving", Stopped(), resign=True)
    if shard.state.one_node_write_mode:
        return Decision("idle: the shard is in one-node-write mode", Stopped())
    if replacing := goes_on(shard):
        return replacing
    keeper = f"the primary, {shard.state.primary.label}, to add this peer as an async"
    return Decision("waiting to be assigned", Stopped(), waiting_for=keeper)


_RULES = {
    Role.PRIMARY: _as_primary,
    Role.SYNC: _as_sync,
    Role.ASYNC: as_standby,
    Role.DEPOSED: as_deposed,
    Role.UNASSIGNED: _as_unassigned,
}


# --- 5. Declare -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cause:
    """What calls for a new generation, who may be its sync, and who becomes its first asyncs."""

    reason: str
    candidates: tuple[Peer, ...]
    demoted: tuple[Peer, ...] = ()


def _takeover(shard: Shard) -> Cause | None:
    """The sync takes over when the primary is absent."""
    primary, asked = shard.state.primary, shard.promote
    if not shard.present(primary):
        return Cause(f"the primary {primary.label} is absent", shard.state.asyncs)
    if asked and asked.id == shard.view.me.id and not shard.view.present[primary.id].promises_status:
        return Cause("an operator promotes this peer over a Manatee 2 primary", shard.state.asyncs)
    return None


def _replacement(shard: Shard) -> Cause | None:
    """The primary takes a new sync when it has none that serves, or is asked to."""
    state, view, sync = shard.state, shard.view, shard.state.sync
    if sync is None:
        others = tuple(one.peer for one in view.active if one.peer.id != view.me.id)
        return None if view.singleton else Cause("this peer is no longer configured as a singleton", others)
    if not shard.present(sync):
        return Cause(f"the sync {sync.label} is absent", state.asyncs)
    if min(view.present[sync.id].unready_for, view.database.writable_for) >= view.limits.sync_grace:
        return Cause(f"the sync {sync.label} has not been ready for {view.limits.sync_grace:g} s", state.asyncs)
    if shard.promote and promotes_to_sync(shard.promote):
        return Cause(f"an operator promotes {state.asyncs[0].label} to sync", state.asyncs[:1], demoted=(sync,))
    return None


def _declare(shard: Shard, cause: Cause | None, running: Primary | Standby) -> Decision:
    """Seal, then write generation + 1 with us as primary; `running` is how PostgreSQL runs without a seal."""
    view, state, sealed = shard.view, shard.state, shard.view.database.sealed
    if view.write_open:
        reason = "waiting: it is not known yet whether our last write to ZooKeeper landed"
        return Decision(reason, replace(running, sealed=view.memory.seal is not None), waiting_for="ZooKeeper")
    if cause is None:
        return Decision(f"primary of generation {state.generation}", running)
    blocked = _blocked(shard, cause)
    if blocked:
        return replace(blocked, reason=f"{cause.reason}; {blocked.reason}", database=running)
    if sealed is None:
        return Decision(f"{cause.reason}; sealing", replace(running, sealed=True))
    new_sync = next((peer for peer in cause.candidates if shard.attached(peer, sealed)), None)
    if state.one_node_write_mode:
        new_sync = cause.candidates[0]
    if new_sync:
        new = _next_generation(shard, cause, sealed, new_sync)
        reason = f"declaring generation {new.generation}: {cause.reason}"
        return Decision(reason, replace(running, sealed=True), write=Write(new, view.version, cause.reason))
    reason = f"{cause.reason}; sealed, waiting until an async has flushed {sealed}"
    return Decision(reason, replace(running, sealed=True), waiting_for="an attached async", look_again=SOON)


def _blocked(shard: Shard, cause: Cause) -> Decision | None:
    """What forbids to seal, or to stay sealed, and what would unblock it."""
    view, state, database = shard.view, shard.state, shard.view.database
    needed = state.generation if shard.i_am_primary else shard.needed_proof

    def because(reason: str, waiting_for: str, look_again: float | None = None) -> Decision:
        return Decision(reason, Keep(), waiting_for=waiting_for, look_again=look_again)

    if state.frozen:
        return because("blocked: the shard is frozen", "manatee-adm unfreeze")
    if view.memory.proof < needed:
        return because(f"blocked: no proof that the data here hold what generation {needed} began with", VERIFY)
    if not shard.i_am_present:
        return because("waiting: this peer is not in the active list yet", "joining")
    if not database.online:
        return because("waiting: PostgreSQL is not online", "PostgreSQL")
    if not any(shard.present(peer) for peer in cause.candidates):
        return because("waiting: no async is present to become the sync", "an async peer")
    if database.sealed is not None:
        if database.sealed < state.init_wal:
            ends = f"end at {database.sealed}, before this generation's beginning, {state.init_wal}"
            return because(f"blocked: the data here {ends}", VERIFY)
        if database.sealed_for >= view.limits.seal_timeout and not _someone_holds(shard, cause, database.sealed):
            return because(f"unsealing: no async has flushed {database.sealed} in time", "an attached async")
        return None
    if not _someone_holds(shard, cause, None):
        if ahead := [peer.label for peer in cause.candidates if peer.id in database.ahead]:
            return because(f"blocked: the data here have lost WAL that is there on {', '.join(ahead)}", VERIFY)
        moment = SOON if any(shard.ready(peer) for peer in cause.candidates) else 10 * SOON  # it is on its way, or down
        return because("waiting: no async streams from this peer, to become the sync", "an attached async", moment)
    pause = view.limits.seal_timeout - database.unsealed_for
    if pause > 0:
        return because("waiting: the last seal was given up", "an attached async", pause)
    return None


def _someone_holds(shard: Shard, cause: Cause, sealed: Lsn | None) -> bool:
    """A candidate is attached. Out of one-node-write mode nobody can be: the others have no PostgreSQL yet."""
    return shard.state.one_node_write_mode or any(shard.attached(peer, sealed) for peer in cause.candidates)


def _next_generation(shard: Shard, cause: Cause, sealed: Lsn, sync: Peer) -> ClusterState:
    """Us as primary, that sync, the present asyncs in their order; who was primary is deposed."""
    state, old = shard.state, shard.state.primary
    alone = state.one_node_write_mode
    others = cause.candidates if alone else (*cause.demoted, *state.asyncs)
    deposed = () if alone else state.deposed if shard.i_am_primary else (*state.deposed, old)
    return state.replace(
        generation=state.generation + 1,
        primary=old if shard.i_am_primary else next(peer for peer in state.assigned if peer.id == shard.view.me.id),
        sync=sync,
        asyncs=tuple(peer for peer in others if peer.id != sync.id and shard.present(peer)),
        deposed=deposed,
        init_wal=sealed,
        without=("promote", "override", *(("oneNodeWriteMode",) if alone else ())),
    )


# --- 6. Keep the list -----------------------------------------------------------------------------------------------


def _kept_list(shard: Shard) -> Write | None:
    """Absent asyncs leave, strangers join at the end; the primary also obeys or removes promotes of asyncs."""
    view, state = shard.view, shard.state
    if state.one_node_write_mode or view.write_open or not shard.i_am_present:
        return None
    named = {peer.id for peer in (*state.assigned, *state.deposed)}
    absent = [peer for peer in state.asyncs if not shard.present(peer)]
    strangers = [one.peer for one in view.active if one.peer.id not in named]
    changes = [f"{peer.label} is absent and leaves" for peer in absent]
    changes += [f"{peer.label} joins as the last async" for peer in strangers]
    asyncs = [peer for peer in state.asyncs if peer not in absent] + strangers
    new = replace(shard, state=state.replace(asyncs=asyncs)) if changes else shard
    gone: tuple[str, ...] = ()
    if shard.i_am_primary and state.promote is not None:
        asked = new.promote
        if asked is None:
            gone = ("promote",)
            changes.append("the request to promote is not, or no longer, valid")
        elif not changes and asked.role == Role.ASYNC and asked.async_index > 0:
            gone, above = ("promote",), asked.async_index - 1
            asyncs[above : above + 2] = asyncs[above + 1], asyncs[above]
            changes.append(f"an operator promotes {asyncs[above].label} past {asyncs[above + 1].label}")
    return Write(state.replace(asyncs=asyncs, without=gone), view.version, "; ".join(changes)) if changes else None


# --- What follows from a decision -----------------------------------------------------------------------------------


def _finish(shard: Shard, decision: Decision) -> Decision:
    """Add what is remembered of a seal, what the peer says of itself, and the `cluster` node if it is ours."""
    view, wanted, memory = shard.view, decision.database, shard.view.memory
    if not view.write_open:
        sealed = view.database.sealed if isinstance(wanted, Primary | Standby) and wanted.sealed else None
        seal = Seal(shard.state.generation, sealed) if sealed is not None else None
        memory = replace(memory, seal=seal)
    if view.database.initialized and isinstance(wanted, Restore | Rewind):
        memory = replace(memory, proof=0)
    serving = shard.i_serve and isinstance(wanted, Primary | Standby) and not decision.resign
    ready = serving and (isinstance(wanted, Primary) or shard.i_stream)
    link = shard.link_to(shard.upstream) if shard.follows else None
    evict = evicted(shard, decision)
    return replace(
        decision,
        memory=memory,
        serving=serving,
        ready=ready,
        compares=link.answer if link else None,
        cluster=_completed_cluster(shard),
        neighbour=neighbour(shard),
        evict=evict,
        look_again=SOON if view.death and not evict else decision.look_again,
    )


def _completed_cluster(shard: Shard) -> Cluster | None:
    """The `cluster` node with the database's identity, from the primary that created or inherited it."""
    view, cluster = shard.view, shard.view.cluster
    if not shard.i_am_primary or not view.database.initialized or view.memory.proof < shard.state.generation:
        return None
    if cluster is None:
        cluster = Cluster(created=written_time(view.now), by=view.me.id)
    elif cluster.system_identifier is not None or cluster.by != view.me.id:
        return None
    return cluster.replace(system_identifier=view.database.identifier, pg_version=view.database.version)
