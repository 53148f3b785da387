"""Shards as plain data, for the tests of what `manatee-adm` decides and prints."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from admin.observed import Observed, Walsender
from manatee.cluster import ClusterState, Peer, PeerStatus, application_name
from manatee.coordination import Active, ShardView
from manatee.lsn import Lsn

NOW = 1_768_550_913.0
"""2026-01-16T08:08:33Z"""


def peer(zone: str, ip: str, port: int = 5432) -> Peer:
    return Peer(
        id=f"{ip}:{port}:12345",
        ip=ip,
        zone_id=zone,
        pg_url=f"tcp://postgres@{ip}:{port}/postgres",
        backup_url=f"http://{ip}:12345",
    )


A = peer("6589d30f-5fe7-4e79-899e-c6b0f540b9c0", "10.65.68.14")
B = peer("5e0a09bb-6f04-4ffe-aeb7-ac1cb23b93ed", "10.65.68.51")
C = peer("a7fdcdaa-1180-468f-bd28-730bdd17aca4", "10.65.68.112")
D = peer("d0d0d0d0-0000-4000-8000-000000000004", "10.65.68.113")
E = peer("e0e0e0e0-0000-4000-8000-000000000005", "10.65.68.114")


def state(**changes: Any) -> ClusterState:
    """Generation 77 of A > B > C, with `changes` named as on the wire."""
    document: dict[str, Any] = {
        "generation": 77,
        "primary": A,
        "sync": B,
        "async": [C],
        "deposed": [],
        "initWal": "B6/952E6978",
        **changes,
    }
    return ClusterState.of({key: _plain(value) for key, value in document.items()})


def _plain(value: Any) -> Any:
    if isinstance(value, Peer):
        return value.document()
    return [_plain(item) for item in value] if isinstance(value, list) else value


def singleton(**changes: Any) -> ClusterState:
    freeze = {"date": "2026-01-16T08:08:33.000Z", "reason": "manatee setup: one node write mode"}
    return state(**{"sync": None, "async": [], "oneNodeWriteMode": True, "freeze": freeze, **changes})


def walsender(follower: Peer, kind: str, *, address: str | None = None, **changes: Any) -> Walsender:
    """The row of a follower that streams."""
    row: dict[str, Any] = {
        "application_name": application_name(follower),
        "address": address or follower.ip,
        "state": "streaming",
        "sync_state": kind,
        "sent": Lsn.parse("B7/20767698"),
        "write": Lsn.parse("B7/20767698"),
        "flush": Lsn.parse("B7/20767698"),
        "replay": Lsn.parse("B7/20765CC0"),
        **changes,
    }
    return Walsender(**row)


def healthy() -> dict[str, Observed]:
    """What the peers of `state()` say when all is well."""
    return {
        A.id: Observed(walsenders=(walsender(B, "sync"),)),
        B.id: Observed(walsenders=(walsender(C, "async"),), lag=3.2),
        C.id: Observed(lag=3.9),
    }


def active(who: Peer, *, generation: int = 77, promises: bool = True, silent: bool = False, **said: Any) -> Active:
    """A peer in the active list, serving and ready unless it is said otherwise."""
    status = PeerStatus(**{"initialized": True, "serving": True, "ready": True, "generation": generation, **said})
    return Active(f"{who.id}-0000000001", who, promises, status if promises and not silent else None)


def view_of(before: ClusterState | None, present: Iterable[Active], **changes: Any) -> ShardView:
    """What ZooKeeper holds: that state, and those peers present."""
    facts: dict[str, Any] = {
        "state": before,
        "state_problem": None,
        "version": None if before is None else 7,
        "cluster": None,
        "cluster_problem": None,
        "has_history": True,
        "active": tuple(present),
        "unreadable": (),
        "joined": None,
    }
    return ShardView(**{**facts, **changes})
