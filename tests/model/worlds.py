"""The beginnings from which worlds are explored, with the trouble that each may meet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.model.parts import World
from tests.model.world import empty, running

INVARIANTS = (
    "promise 1: no generation begins below an acknowledged commit, and its primary holds all of them",
    "promise 1: nothing is acknowledged but with the confirmation of the sync that the state names",
    "promise 2: at no moment can two peers acknowledge; none does under an old generation, but what the seal covers",
    "promise 3: no WAL flows from an upstream that the standby has diverged from",
    "promise 3: whoever has proof of a generation holds all that it began with",
    "promise 3: whoever has proof of the present generation has a prefix of its primary's data",
    "promise 4: initdb before `cluster` is completed, beside no data; no set-up beside data; no primary without data",
    "promise 5: no new generation of a frozen shard; roles, beginning, freeze and mode change by a generation alone",
    "promise 6: who knows of a newer generation, or sees one who does, starts and writes nothing",
    "the generation rises by one; its primary was primary or sync, the old primary is deposed, the sync holds the seal",
    "a peer leaves the deposed list by itself only with data that are a prefix of the primary's",
    "promise 3: data that a rewind has left half done are never started; one that came to nothing is not repeated",
    "after an operator's word: it is taken once, beside nobody who still acts on what was; then all of the above",
    "primary and sync alone evict, only each other, only the node they saw; nobody whom replication goes on with",
    "nobody is evicted in a frozen shard, or twice in one session",
    "the core never fails",
)


@dataclass(frozen=True)
class Beginning:
    name: str
    beginning: Callable[[], World]
    share: int = 1
    """Of the states, in proportion."""
    depth: int = 60


def _shard(peers: int, trouble: int, rejoin: str = "safe", **kinds: int) -> Callable[[], World]:
    budget = {"commit": 1, "trouble": trouble, **kinds}
    return lambda: running(peers, rejoin, **{name.replace("_", "-"): many for name, many in budget.items()})


def _nothing(peers: int, trouble: int, **kinds: int) -> Callable[[], World]:
    return lambda: empty(peers, commit=1, trouble=trouble, **kinds)


WORLDS = (
    Beginning("3 peers, sessions and crashes", _shard(3, 3, expire=2, crash=2, commit=2), 2),
    Beginning(
        "3 peers, one trouble of each kind but two in all",
        _shard(
            3,
            2,
            expire=1,
            crash=1,
            slow=1,
            mute=1,
            lost=1,
            cut=1,
            pg_crash=1,
            wipe=1,
            lose_data=1,
            operator=1,
            old_snapshot=1,
        ),
        2,
    ),
    Beginning("3 peers, answers of writes are lost", _shard(3, 3, expire=2, lost=1, crash=1), 2),
    Beginning("3 peers, sitters lag behind ZooKeeper", _shard(3, 3, slow=1, mute=1, expire=1, lost=1), 2),
    Beginning("3 peers, a zone comes back empty", _shard(3, 3, wipe=1, lose_data=1, expire=1, old_snapshot=1), 2),
    Beginning("3 peers, the operator acts", _shard(3, 3, operator=2, expire=1, crash=1), 2),
    Beginning("3 peers, PostgreSQL crashes and links break", _shard(3, 3, pg_crash=2, cut=1, cut_off=1, expire=1)),
    Beginning("3 peers, ZooKeeper forgets", _shard(3, 3, forget=1, forget_all=1, expire=1, crash=1, wipe=1)),
    Beginning(
        "3 peers, who has diverged is rewound or restored",
        _shard(3, 3, "rebuild", expire=2, crash=1, rewind_cut=1, rewind_in_vain=1, commit=2),
        2,
    ),
    Beginning("3 peers, an operator forces a primary", _shard(3, 3, force=1, expire=1, crash=1, slow=1, commit=2), 2),
    Beginning("3 peers, a primary is forced whose zone comes back empty", _shard(3, 3, force=1, wipe=1, expire=1)),
    Beginning("3 peers, evicted alive or dead", _shard(3, 4, evict=2, cut=2, crash=1, lost=1), 2),
    Beginning("3 peers, evicted while sitters lag", _shard(3, 4, evict=2, cut=1, slow=1, pg_crash=1, expire=1)),
    Beginning("3 peers, set up", _nothing(3, 3, expire=1, crash=1, wipe=1, slow=1)),
    Beginning("4 peers, sessions and crashes", _shard(4, 2, expire=2, crash=2), 2),
    Beginning("4 peers, a zone comes back empty", _shard(4, 2, wipe=1, expire=1, old_snapshot=1), 2),
    Beginning("4 peers, answers of writes are lost, sitters lag", _shard(4, 2, lost=1, slow=1, expire=1), 2),
    Beginning("4 peers, evicted alive or dead", _shard(4, 3, evict=2, cut=1, crash=1, operator=1)),
    Beginning("4 peers, the operator acts", _shard(4, 2, operator=1, crash=1, expire=1)),
)
