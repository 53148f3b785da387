"""How a peer below the primary comes to follow, and back to the shard: compare, rewind, restore.

PostgreSQL itself looks at positions and timeline numbers alone when it begins to stream. So a peer follows an upstream
only after a comparison of the logs said that its own is a *prefix* of the upstream's. From another link it may change
over to the primary before it has compared, if it has proof of this generation: they were the same, unless the primary
has lost WAL since, which it finds itself. What becomes of data that have *diverged* is for `postgres.rejoin` to say.
They are given up only when it is certain that they hold nothing that was acknowledged: they have departed from data
that are proven of this generation, and are not so themselves (a sync's not even of the generation before). To be
*ahead* is never enough.

Whatever replaces the data erases their proof first, and what has come of it is compared again before it runs.
"""

from __future__ import annotations

from dataclasses import replace

from manatee.cluster import Comparison, Peer
from sitter.shard import Shard
from sitter.view import Compare, Decision, Link, Parting, Rejoin, Restore, Rewind, Standby, Stopped, Write

REBUILD = "manatee-adm rebuild on this peer"
VERIFY = "an operator: manatee-adm verify shows who holds what"


def as_standby(shard: Shard) -> Decision:
    """Follow the upstream, once our WAL is known to be a prefix of its own. An async does nothing else."""
    view, database, upstream = shard.view, shard.view.database, shard.upstream
    if view.leaving:
        return Decision("leaving", Stopped(clean=True), resign=True)
    if replaced := _replaced(shard):
        return replaced
    if not database.initialized:
        return _restored(shard, "this peer has no database")
    compare, link = None if shard.strays else _comparison(shard, upstream), shard.link_to(upstream)
    proven = view.memory.proof >= shard.needed_proof
    # Data without proof may be anybody's, and somebody may be set to follow us: they do not run uncompared.
    alone = Standby(None) if proven else Stopped()
    if link and link.answer is Comparison.DIVERGED:
        return _diverged(shard, upstream, link)
    if link and link.answer is Comparison.AHEAD:
        if upstream.id == shard.state.primary.id:
            reason = f"alarm: the data here are ahead of those of the primary, {upstream.label}: {link.detail}"
            return Decision(reason, alone, compare=compare, waiting_for=VERIFY)
        if not shard.present(shard.state.primary):
            return replace(_departed(upstream, f"they are ahead, {link.detail}"), compare=compare)
        reason = f"waiting: the data here are ahead of {upstream.label}'s"
        return Decision(reason, alone, compare=compare, waiting_for=f"{upstream.label} to catch up")
    if link or (proven and database.upstream == upstream.id) or shard.vouched_for(upstream):
        return Decision(f"following {upstream.label}", Standby(upstream), compare=compare)
    if given_up := _incomparable(shard, upstream):
        return given_up
    comparable = shard.serving(upstream)
    followed = None if comparable and shard.strays else shard.followed
    reason = f"waiting: it is not known yet whether the data here are a prefix of {upstream.label}'s"
    waiting_for = f"the comparison with {upstream.label}" if comparable else f"{upstream.label} to serve"
    return Decision(reason, Standby(followed) if proven else Stopped(), compare=compare, waiting_for=waiting_for)


def as_deposed(shard: Shard) -> Decision:
    """No PostgreSQL. A deposed peer takes itself off the list when its data prove to be a prefix after all."""
    view, state, source = shard.view, shard.state, shard.state.primary
    if view.leaving:
        return Decision("leaving", Stopped(), resign=True)
    if replaced := _replaced(shard):
        return replaced
    if not view.database.initialized:
        if view.rejoin is Rejoin.REBUILD:
            return _restored(shard, "this peer is deposed and has no database")
        return Decision("deposed, without a database", Stopped(), waiting_for=REBUILD)
    if not shard.present(source) and state.sync and shard.proof_of(state.sync) >= state.generation:
        source = state.sync
    link = shard.link_to(source)
    if link and link.answer is Comparison.PREFIX and shard.i_am_present and not view.write_open:
        others = tuple(peer for peer in state.deposed if peer.id != view.me.id)
        if view.rejoin is Rejoin.NEVER:
            reason = f"deposed: the data here are a prefix of {source.label}'s, but postgres.rejoin is never"
            return Decision(reason, Stopped(), waiting_for=f"{REBUILD}, or manatee-adm reap")
        reason = f"no longer deposed: the data here are a prefix of {source.label}'s"
        return Decision(reason, Stopped(), write=Write(state.replace(deposed=others), view.version, reason))
    if link and link.answer is Comparison.DIVERGED:
        return _diverged(shard, source, link)
    if given_up := _incomparable(shard, source):
        return given_up
    reason = f"deposed: it is not known yet whether the data here are a prefix of {source.label}'s"
    return Decision(reason, Stopped(), compare=_comparison(shard, source), waiting_for=f"{source.label}, or {REBUILD}")


def _comparison(shard: Shard, upstream: Peer) -> Compare | None:
    """Ask until there is an answer of this generation that cannot pass, and again when the upstream has more proof.

    And when the primary is there and nothing comes from it: it may have lost what we have, of which it says nothing.
    """
    if not shard.serving(upstream):
        return None
    wanted = Compare(upstream, shard.state.generation, shard.proof_of(upstream))
    link = shard.link_to(upstream)
    settled = link and link.proof == wanted.proof and link.answer is not Comparison.AHEAD
    settled = settled and not shard.starves
    return None if settled else wanted


# --- Data that have diverged ----------------------------------------------------------------------------------------


def _diverged(shard: Shard, upstream: Peer, link: Link) -> Decision:
    """Rewind or restore as far as that is allowed and certain to lose nothing; else wait for an operator."""
    rejoin, database, primary = shard.view.rejoin, shard.view.database, shard.state.primary
    waiting = _departed(upstream, link.detail)
    if link.parting is Parting.DATABASE or not _may_be_given_up(shard, link.proof):
        compare = None if shard.follows and shard.strays else _comparison(shard, upstream)
        certain = f"{upstream.label} to prove its data" if link.proof < shard.state.generation else VERIFY
        return replace(waiting, compare=compare, waiting_for=f"{REBUILD}, or {certain}")
    unrewindable = database.unrewindable if link.parting is Parting.TIMELINES else "PostgreSQL sees no difference"
    what = f"the data here have diverged from {upstream.label}'s: {link.detail}"
    if rejoin.rewinds and unrewindable is None:
        if shard.serving(primary):
            return replace(waiting, reason=f"rewinding: {what}", database=Rewind(primary), waiting_for=None)
        return replace(waiting, waiting_for=f"{primary.label} to serve, or {REBUILD}")
    if rejoin is Rejoin.REBUILD:
        return replace(_restored(shard, f"{what}; they cannot be rewound: {unrewindable}"), diverged=waiting.diverged)
    if rejoin.rewinds:
        return replace(waiting, reason=f"stopped: {what}; they cannot be rewound: {unrewindable}")
    return waiting


def _departed(upstream: Peer, detail: str) -> Decision:
    reason = f"stopped: the data here have diverged from {upstream.label}'s: {detail}"
    return Decision(reason, Stopped(), waiting_for=REBUILD, diverged=f"from {upstream.label}: {detail}")


def _incomparable(shard: Shard, upstream: Peer) -> Decision | None:
    """Data that can no longer be compared are restored, where that is allowed: they will never be proven."""
    found = shard.view.database.incomparable
    if found is None or (found.upstream, found.generation) != (upstream.id, shard.state.generation):
        return None
    if shard.view.rejoin is not Rejoin.REBUILD or not _may_be_given_up(shard, found.proof):
        return None
    return _restored(shard, f"the data here cannot be compared with {upstream.label}'s any more: {found.detail}")


def _may_be_given_up(shard: Shard, upstreams: int) -> bool:
    """It is certain that our data hold nothing acknowledged that the shard's history does not.

    The upstream's hold all of it: they are proven of this generation. If ours were proven, too, one of the proofs would
    be wrong, and whose, only an operator can say; of a sync's data, which confirm commits, the older proof is enough.
    """
    follows_first = shard.state.sync is not None and shard.state.sync.id == shard.view.me.id
    too_much = shard.needed_proof if follows_first else shard.state.generation
    proven = shard.view.memory.proof >= too_much
    return upstreams >= shard.state.generation and not proven and not shard.view.write_open


def goes_on(shard: Shard) -> Decision | None:
    """What has begun to replace the data, and goes on.

    A restore goes on through changes of generation, too: the transfer itself notices when its source gives no more. A
    rewind that has changed nothing yet is given up when its source is absent, or not the primary any more.
    """
    database = shard.view.database
    match database.replacing:
        case Rewind(source=source) if database.rewind_begun or shard.leads(source):
            return Decision(f"rewinding to the data of {source.label}", database.replacing)
        case Restore(sources=sources) if any(shard.may_give(peer) for peer in sources):
            return Decision(f"restoring from {sources[0].label}", database.replacing)
    return None


def _replaced(shard: Shard) -> Decision | None:
    """What has begun to replace the data goes on, and what a rewind left half done is restored."""
    database, rejoin = shard.view.database, shard.view.rejoin
    if replacing := goes_on(shard):
        return replacing
    if not database.initialized or not database.torn:
        return None
    torn = "a rewind of the data here was cut short"
    if rejoin.rewinds:
        return _restored(shard, torn)
    return Decision(f"stopped: {torn}: they are of no use any more", Stopped(), waiting_for=REBUILD)


def _restored(shard: Shard, why: str) -> Decision:
    if sources := shard.restore_sources:
        return Decision(f"restoring: {why}", Restore(sources))
    reason = f"waiting: {why}, and nobody can give it one"
    return Decision(reason, Restore(()), waiting_for="a serving peer to restore from")
