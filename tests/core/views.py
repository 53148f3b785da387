"""Views to ask `decide()` about: a healthy shard A > B > C > D in generation 3, seen by one of its peers, with changes.

Positions are small numbers; generation 3 began at 100 and everyone holds 150.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from manatee.cluster import Cluster, ClusterState, Comparison, Peer, PeerStatus, written_time
from manatee.lsn import Lsn
from sitter.view import Database, Link, Memory, Present, View

NOW = 1_700_000_000.0
GENERATION = 3
BEGINNING = Lsn(100)
END = Lsn(150)
IDENTIFIER = "7000000000000000001"


def peer(name: str) -> Peer:
    ip = f"10.0.0.{ord(name[-1]) - ord('A') + 1}"
    return Peer.of(
        {
            "id": f"{ip}:5432:12345",
            "ip": ip,
            "zoneId": name,
            "pgUrl": f"tcp://postgres@{ip}:5432/postgres",
            "backupUrl": f"http://{ip}:12345",
        }
    )


A, B, C, D, E = (peer(f"zone-{letter}") for letter in "ABCDE")
EVERYONE = (A, B, C, D)


def state(**changes: Any) -> ClusterState:
    """Generation 3 of A > B > C > D; `changes` are named as on the wire, peers as they are; None keeps a null."""
    document: dict[str, Any] = {
        "generation": GENERATION,
        "primary": A,
        "sync": B,
        "async": [C, D],
        "deposed": [],
        "initWal": str(BEGINNING),
        **changes,
    }
    return ClusterState.of({key: _plain(value) for key, value in document.items()})


def _plain(value: Any) -> Any:
    if isinstance(value, Peer):
        return value.document()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def promote(whom: Peer, role: str, index: int | None = None, **changes: Any) -> dict[str, Any]:
    asked: dict[str, Any] = {"id": whom.id, "role": role, "generation": GENERATION}
    asked["expireTime"] = written_time(NOW + 30)
    if index is not None:
        asked["asyncIndex"] = index
    return {**asked, **changes}


def says(whom: Peer, *, unready_for: float = 0.0, **changes: Any) -> Present:
    """A present peer that says all is well, but for the changes."""
    well: dict[str, Any] = {
        "initialized": True,
        "systemIdentifier": IDENTIFIER,
        "serving": True,
        "ready": True,
        "compares": None if whom.id == A.id else Comparison.PREFIX,
        "generation": GENERATION,
        "proof": GENERATION,
    }
    return Present(whom, PeerStatus.of({**well, **changes}), unready_for=unready_for)


def silent(whom: Peer) -> Present:
    return Present(whom)


def manatee_2(whom: Peer) -> Present:
    return Present(whom, promises_status=False)


CLUSTER = Cluster.of(
    {"created": "2026-01-01T00:00:00.000Z", "by": A.id, "systemIdentifier": IDENTIFIER, "pgVersion": "15"}
)
FRESH_CLUSTER = CLUSTER.replace(system_identifier=None, without=("pgVersion",))


def view(me: Peer, **changes: Any) -> View:
    """What `me` knows when all is well. `changes` are fields of View, Database or Memory."""
    upstreams = {B.id: A, C.id: B, D.id: C}
    upstream = upstreams.get(me.id)
    below = next((peer for peer in EVERYONE if upstreams.get(peer.id) is me), None)
    database = Database(
        initialized=True,
        identifier=IDENTIFIER,
        version="15",
        running=True,
        online=True,
        writable_for=1000.0 if upstream is None else 0.0,
        end=END,
        attached={below.id: END} if below else {},
        upstream=upstream.id if upstream else None,
        streaming=upstream is not None,
        link=Link(upstream.id, GENERATION, GENERATION, Comparison.PREFIX, END) if upstream else None,
    )
    for_database = {name: changes.pop(name) for name in list(changes) if name in Database.__dataclass_fields__}
    for_memory = {name: changes.pop(name) for name in ("proof", "seal") if name in changes}
    memory = Memory(IDENTIFIER, GENERATION, GENERATION)
    known: dict[str, Any] = {
        "active": tuple(says(one) for one in EVERYONE),
        "state": state(),
        "version": 7,
        "cluster": CLUSTER,
        "has_history": True,
        "database": replace(database, **for_database),
        "memory": replace(memory, **for_memory),
        **changes,
    }
    return View(me=me, now=NOW, **known)


def active(*who: Peer | Present) -> tuple[Present, ...]:
    return tuple(one if isinstance(one, Present) else says(one) for one in who)


def empty(me: Peer, **changes: Any) -> View:
    """What `me` knows in a shard that was never set up: everyone is there, nobody has data."""
    nobody_has_data = tuple(
        says(one, initialized=False, systemIdentifier=None, serving=False, ready=False, compares=None, generation=0)
        for one in EVERYONE
    )
    known: dict[str, Any] = {"active": nobody_has_data, "database": Database(), "memory": Memory(), **changes}
    return View(me=me, now=NOW, **known)
