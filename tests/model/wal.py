"""PostgreSQL in small: who streams from whom, WAL that flows, commits that are acknowledged."""

from __future__ import annotations

from tests.model.parts import ALONE, NAMES, NOBODY, Violation, World, broken, with_peer, with_pg


def timeline(entry: int) -> int:
    return entry // 100


def streams(world: World, me: int) -> bool:
    """This standby's receiver streams: PostgreSQL checks positions and timelines, never what the WAL says."""
    one = world.peers[me]
    pg = one.pg
    if pg is None or pg.primary or pg.upstream is None or (me, pg.upstream) in world.cut:
        return False
    if pg.sealed is not None and "the receiver outlives the seal" not in broken:
        return False
    theirs = world.peers[pg.upstream]
    if theirs.pg is None or one.wal is None or theirs.wal is None:
        return False
    end, mine = len(one.wal), timeline(one.wal[-1]) if one.wal else 0
    if end > len(theirs.wal):
        return ahead(world, me)
    later = next((at for at, entry in enumerate(theirs.wal) if timeline(entry) > mine), len(theirs.wal))
    known = any(timeline(entry) == mine for entry in theirs.wal) or not mine
    return known and end <= later


def ahead(world: World, me: int) -> bool:
    """This standby has more than the primary that it follows, on the same timeline: it is served all the same."""
    pg, mine = world.peers[me].pg, world.peers[me].wal
    theirs = world.peers[pg.upstream] if pg and pg.upstream is not None else None
    if theirs is None or theirs.pg is None or not theirs.pg.primary or not theirs.wal or not mine:
        return False
    return len(mine) > len(theirs.wal) and timeline(mine[-1]) == timeline(theirs.wal[-1])


def append(world: World, me: int, *, new_timeline: bool = False) -> World:
    """One more entry in this primary's WAL: a commit, or the record with which a timeline begins."""
    wal = world.peers[me].wal
    assert wal is not None
    line = max((timeline(entry) for entry in wal), default=0) if wal else 0
    entry = max(1, line + new_timeline) * 100 + world.minted
    return with_peer(world, me, wal=(*wal, entry))._replace(minted=world.minted + 1)


def flow(world: World, me: int) -> World | None:
    """The next entry reaches this standby's disk, and the upstream may hear of it."""
    if not streams(world, me):
        return None
    one = world.peers[me]
    assert one.pg is not None
    assert one.pg.upstream is not None
    assert one.wal is not None
    theirs = world.peers[one.pg.upstream]
    assert theirs.wal is not None
    assert theirs.pg is not None
    end = len(one.wal)
    if one.wal[: len(theirs.wal)] != theirs.wal[:end]:
        raise Violation(f"promise 3: {NAMES[me]} follows {NAMES[one.pg.upstream]}, from which it has diverged")
    if end >= len(theirs.wal):
        return None
    world = with_peer(world, me, wal=(*one.wal, theirs.wal[end]))
    return hear_of(world, one.pg.upstream)


def hear_of(world: World, primary: int) -> World:
    """The primary hears how far the standby that it waits for has flushed, if that streams."""
    pg = world.peers[primary].pg
    if pg is None or not pg.primary or pg.waits_for < 0:
        return world
    other = world.peers[pg.waits_for]
    if other.pg and other.pg.upstream == primary and streams(world, pg.waits_for) and other.wal:
        return with_pg(world, primary, confirmed=max(pg.confirmed, len(other.wal)))
    return world


def acknowledge(world: World, me: int) -> World | None:
    """The primary answers its clients for everything that is confirmed."""
    one = world.peers[me]
    if one.pg is None or not one.pg.primary or one.wal is None or one.pg.waits_for == NOBODY:
        return None
    confirmed = len(one.wal) if one.pg.waits_for == ALONE else one.pg.confirmed
    news, state = world.acked.union(one.wal[:confirmed]), world.state
    if len(news) == len(world.acked):
        return None
    if world.forgot or (state and state.forced == "due"):
        return world._replace(acked=news)  # what the operator gives up is not told yet
    current = state is not None and state.primary == me and one.memory.generation == state.generation
    if not current and not news <= world.acked.union(*world.begins[-1:]):
        # An answer that was on its way when the next generation was declared may come late: it lies below the seal.
        raise Violation(f"promise 2: {NAMES[me]} acknowledges under an old generation")
    waits_for = ALONE if state is None or state.sync is None else state.sync
    if current and one.pg.waits_for != waits_for and not news <= world.acked.union(*world.begins[-1:]):
        raise Violation(f"promise 1: {NAMES[me]} acknowledges what its sync may not hold")
    if current and not world.acked <= set(one.wal):
        raise Violation(f"promise 1: {NAMES[me]} acknowledges without commits acknowledged before")
    return world._replace(acked=news)
