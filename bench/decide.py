"""How long `decide()` takes for a shard of ten peers: it is meant to take less than 100 microseconds on every turn.

    python -m bench.decide

Fails if the median of any case is over the limit.
"""

from __future__ import annotations

import sys
import time
import timeit
from collections.abc import Mapping
from dataclasses import replace

from bench.machine import machine
from bench.page import table
from bench.results import OURS, Row, Section
from manatee.cluster import Cluster, ClusterState, Comparison, Peer, PeerStatus
from manatee.lsn import Lsn
from sitter.decide import decide
from sitter.view import Database, Link, Memory, Present, View

LIMIT = 100e-6
"""Seconds."""

PEERS = 10
TIMES = 200
IDENTIFIER = "7000000000000000001"
END = Lsn.parse("B6/952E6978")


def peer(number: int) -> Peer:
    ip = f"10.0.0.{number}"
    return Peer.of(
        {
            "id": f"{ip}:5432:12345",
            "ip": ip,
            "zoneId": f"6589d30f-5fe7-4e79-899e-c6b0f540b9{number:02}",
            "pgUrl": f"tcp://postgres@{ip}:5432/postgres",
            "backupUrl": f"http://{ip}:12345",
        }
    )


def healthy(me: int) -> View:
    """What the peer with this number knows when all is well."""
    peers = [peer(number) for number in range(PEERS)]
    state = ClusterState.of(
        {
            "generation": 77,
            "primary": peers[0].document(),
            "sync": peers[1].document(),
            "async": [one.document() for one in peers[2:]],
            "deposed": [],
            "initWal": str(END),
        }
    )
    well = PeerStatus(initialized=True, serving=True, ready=True, compares=Comparison.PREFIX, generation=77, proof=77)
    upstream = peers[me - 1] if me else None
    database = Database(
        initialized=True,
        identifier=IDENTIFIER,
        online=True,
        writable_for=0.0 if me else 1000.0,
        end=END,
        upstream=upstream.id if upstream else None,
        streaming=upstream is not None,
        attached={peers[me + 1].id: END} if me + 1 < PEERS else {},
        link=Link(upstream.id, 77, 77, Comparison.PREFIX, END) if upstream else None,
    )
    return View(
        me=peers[me],
        now=1_700_000_000.0,
        active=tuple(Present(one, well) for one in peers),
        state=state,
        version=1000,
        cluster=Cluster(created="2026-01-01T00:00:00.000Z", by=peers[0].id, system_identifier=IDENTIFIER),
        has_history=True,
        database=database,
        memory=Memory(IDENTIFIER, 77, 77),
    )


def cases() -> Mapping[str, tuple[str, View]]:
    """Views with their names: those of an ordinary day, which every turn asks about, and one of another."""
    sync = healthy(1)
    gone = replace(sync, active=sync.active[1:])
    return {
        "primary": ("primary", healthy(0)),
        "sync": ("sync", sync),
        "async": ("last async", healthy(PEERS - 1)),
        "takeover": ("sync whose primary is gone, before the seal", gone),
    }


def measure(view: View) -> list[float]:
    """Seconds of a processor for one decision, of many runs."""
    view.present  # noqa: B018 - what is cached in a view is part of making it
    runs = timeit.repeat(lambda: decide(replace(view)), number=TIMES, repeat=15, timer=time.process_time)
    return [seconds / TIMES for seconds in runs]


def section(_: int = 0) -> Section:
    """All cases."""
    on = machine()
    rows = {
        key: Row(what=name, unit="µs", digits=1, values={OURS: [seconds * 1e6 for seconds in measure(view)]})
        for key, (name, view) in cases().items()
    }
    note = f"`decide()`, which every sitter asks on every turn, for a shard of {PEERS} peers."
    return Section(columns={OURS: "one decision"}, rows=rows, machine=on, notes=(note,))


def main() -> int:
    measured = section()
    print("\n".join(table(measured)))
    slow = any(row.median(OURS) > LIMIT * 1e6 for row in measured.rows.values())
    if slow:
        print(f"over the limit of {LIMIT * 1e6:.0f} µs", file=sys.stderr)
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
