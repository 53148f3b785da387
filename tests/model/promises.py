"""What is never to be: writes of the cluster state that break a promise, and worlds in which one is broken."""

from __future__ import annotations

from tests.model.parts import ALONE, NAMES, NOBODY, One, State, Violation, World
from tests.model.wal import streams


def land(world: World, by: int | None, new: State, *, late: bool = False) -> World:
    """The cluster state is written; an open write of anybody can no longer land."""
    old, begins, past = world.state, world.begins, world.past
    if world.forgot and by is not None and world.peers[by].lag is None and known_newer(world, world.peers[by]):
        raise Violation("promise 6: a ZooKeeper that forgot is believed")
    if old is None:
        if new.generation != 1 or world.acked or any(one.wal for one in world.peers):
            raise Violation("promise 4: a shard is set up beside data")
        begins = ((),)
    elif world.forgot:
        pass
    elif new.forced and new.generation != old.generation:
        begins, past = (*begins, *([()] * (new.generation - old.generation))), old
    elif new.forced == "taken" and old.forced == "due":
        world = _given_up(world, new)
        begins = world.begins
    elif new.generation != old.generation:
        assert by is not None
        _check_declaration(world, by, old, new)
        begin, sync = (world.peers[new.primary].wal or ())[: new.init_wal], world.peers[new.sync or 0].wal or ()
        if not old.alone and not late and sync[: len(begin)] != begin:
            raise Violation("the new sync does not hold what its generation begins with")
        wal = world.peers[new.primary].wal
        assert wal is not None
        begins, past = (*begins, wal[: new.init_wal]), old
    elif by is not None:
        _check_same_generation(world, by, old, new)
    peers = tuple(
        one._replace(lag=one.lag._replace(fresh=False)) if one.lag and one.lag.fresh else one for one in world.peers
    )
    return world._replace(state=new, begins=begins, pending=None, peers=peers, past=past)


def _given_up(world: World, new: State) -> World:
    """What the operator has given up is lost: all that the primary of his choice does not have."""
    one = world.peers[new.primary]
    if one.pg is not None or one.wal is None or one.memory.proof != new.generation:
        raise Violation("an operator's word is taken without data, or beside a PostgreSQL that runs")
    kept = world.acked.intersection(one.wal)
    return world._replace(acked=kept, begins=(*world.begins[:-1], one.wal))


def known_newer(world: World, one: One) -> bool:
    """This peer, or one that is present, has acted on a newer generation than ZooKeeper holds."""
    here = world.state.generation if world.state else 0
    return max([one.memory.generation, *(said.generation for _, said in world.active if said)]) > here


def _check_declaration(world: World, by: int, old: State, new: State) -> None:
    wal = world.peers[new.primary].wal
    if new.generation != old.generation + 1:
        raise Violation(f"generation {old.generation} became {new.generation}")
    if new.primary not in (old.primary, old.sync) or new.primary != by:
        raise Violation("the new primary was neither primary nor sync")
    if old.frozen:
        raise Violation("promise 5: a new generation of a frozen shard")
    if wal is None or new.init_wal > len(wal):
        raise Violation("the new primary does not hold what its generation begins with")
    if not world.acked <= set(wal[: new.init_wal]):
        raise Violation("promise 1: a generation begins below an acknowledged commit")
    lost = set(old.deposed) - set(new.deposed)
    if lost and not old.alone:
        raise Violation("a new generation forgets the deposed")
    if new.primary != old.primary and old.primary not in new.deposed:
        raise Violation("the old primary is not deposed")
    if new.promote:
        raise Violation("a new generation keeps the promote")
    if new.alone or new.sync is None:
        raise Violation("a generation without a sync")
    if new.frozen != old.frozen:
        raise Violation("freeze was not kept")


def _check_same_generation(world: World, by: int, old: State, new: State) -> None:
    kept = ("primary", "sync", "init_wal", "frozen", "alone")
    if any(getattr(old, name) != getattr(new, name) for name in kept):
        raise Violation("promise 5: roles, freeze or beginning changed within a generation")
    for gone in set(old.deposed) - set(new.deposed):
        mine, theirs = world.peers[gone].wal, world.peers[old.primary].wal
        if gone != by or mine is None:
            raise Violation("somebody else took a peer off the deposed list")
        if theirs is not None and mine != theirs[: len(mine)]:
            raise Violation("a peer came off the deposed list without its data being a prefix")
    if set(new.deposed) - set(old.deposed):
        raise Violation("a peer was deposed within a generation")


def check(world: World) -> None:
    """What holds of every world in which ZooKeeper forgets nothing."""
    if world.forgot:
        return
    able = [NAMES[me] for me in range(len(world.peers)) if can_acknowledge(world, me)]
    if len(able) > 1:
        raise Violation(f"promise 2: {' and '.join(able)} can acknowledge commits")
    for me, one in enumerate(world.peers):
        proof = one.memory.proof
        if proof and one.wal is not None and proof <= len(world.begins):
            begin = world.begins[proof - 1]
            if one.torn or one.wal[: len(begin)] != begin:
                raise Violation(f"promise 3: {NAMES[me]} has proof of generation {proof}, but lacks its beginning")
    _check_proof_of_the_present(world)


def _check_proof_of_the_present(world: World) -> None:
    """Who has proof of the present generation has a prefix of its primary's data, if that has kept them."""
    state = world.state
    if state is None or world.peers[state.primary].memory.proof < state.generation:
        return
    theirs = world.peers[state.primary].wal
    for me, one in enumerate(world.peers):
        if theirs and one.wal and one.memory.proof >= state.generation and one.wal != theirs[: len(one.wal)]:
            raise Violation(f"promise 3: {NAMES[me]} has proof of the present generation, but has diverged from it")


def can_acknowledge(world: World, me: int) -> bool:
    """A commit that a client makes here now may be acknowledged here."""
    one = world.peers[me]
    pg = one.pg
    if pg is None or not pg.primary or pg.waits_for == NOBODY or one.handing_over:
        return False
    if pg.waits_for == ALONE:
        return True
    other = world.peers[pg.waits_for]
    return bool(other.pg and other.pg.upstream == me and streams(world, pg.waits_for))
