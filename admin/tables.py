"""The text `manatee-adm` prints: data in, text out, nothing else.

Programs read these tables. Columns have fixed widths with one space between them, the last one padded too; a value that
does not fit its column is printed whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from admin.observed import NOT_ASKED, Observations, Observed, downstream, expected_downstreams
from manatee.cluster import ClusterState, Freeze, Peer, Role

Row = Mapping[str, str]


@dataclass(frozen=True)
class Column:
    """A column by the name that `-o` knows."""

    name: str
    label: str
    width: int
    from_postgres: bool = False
    """Its values come from the peers' PostgreSQL; the others from ZooKeeper."""
    right: bool = False

    def pad(self, text: str) -> str:
        return text.rjust(self.width) if self.right else text.ljust(self.width)


COLUMNS = {
    column.name: column
    for column in (
        Column("role", "ROLE", 8),
        Column("peername", "PEERNAME", 36),
        Column("peerabbr", "PEER", 8),
        Column("ip", "IP", 16),
        Column("pg-online", "PG", 4, from_postgres=True),
        Column("pg-repl", "REPL", 5, from_postgres=True),
        Column("pg-sent", "SENT", 13, from_postgres=True),
        Column("pg-write", "WRITE", 13, from_postgres=True),
        Column("pg-flush", "FLUSH", 13, from_postgres=True),
        Column("pg-replay", "REPLAY", 13, from_postgres=True),
        Column("pg-lag", "LAG", 6, from_postgres=True),
    )
}
ALIASES = {"zonename": "peername", "zoneabbr": "peerabbr"}

PEERS = ("role", "peername", "ip")
PG_STATUS = ("role", "peerabbr", "pg-online", "pg-repl", "pg-sent", "pg-flush", "pg-replay", "pg-lag")
PG_STATUS_WIDE = ("role", "peername", *PG_STATUS[2:])

HISTORY = (
    Column("time", "TIME", 24),
    Column("generation", "G#", 2, right=True),
    Column("mode", "MODE", 5),
    Column("freeze", "FRZ", 3),
    Column("primary", "PRIMARY", 8),
    Column("sync", "SYNC", 8),
    Column("async", "ASYNC", 8),
    Column("deposed", "DEPOSED", 8),
)
SUMMARY = Column("summary", "SUMMARY", 0)


class NoSuchColumn(ValueError):
    """A column that `-o` named and that is not there."""


def columns(chosen: Sequence[str], default: Sequence[str], *, with_postgres: bool = True) -> list[Column]:
    """The columns that `-o` asked for (comma-separated, repeatable), or the default ones; raises NoSuchColumn."""
    names = [name for words in chosen for name in words.split(",") if name] or (list(default) if not chosen else [])
    if not names:
        raise NoSuchColumn("no columns selected")
    selected = []
    for name in names:
        column = COLUMNS.get(ALIASES.get(name, name))
        if column is None:
            raise NoSuchColumn(f'unsupported column: "{name}"')
        if column.from_postgres and not with_postgres:
            raise NoSuchColumn(f'column not available with this subcommand: "{column.label}"')
        selected.append(column)
    return selected


def table(selected: Sequence[Column], rows: Iterable[Row], *, header: bool = True) -> str:
    """The table, each line ended by a newline; a value that a row does not have prints as `-`."""
    lines = [[column.pad(column.label) for column in selected]] if header else []
    lines += [[column.pad(row.get(column.name, "-")) for column in selected] for row in rows]
    return "".join(" ".join(cells) + "\n" for cells in lines)


def peer_rows(state: ClusterState, seen: Observations | None = None, *, role: str | None = None) -> list[Row]:
    """A row per peer in the state's order: the chain, then the deposed; only those of `role` if it is given."""
    followers = expected_downstreams(state)
    members: list[tuple[Role, Peer]] = [(Role.PRIMARY, state.primary)]
    members += [(Role.SYNC, state.sync)] if state.sync else []
    members += [(Role.ASYNC, peer) for peer in state.asyncs]
    members += [(Role.DEPOSED, peer) for peer in state.deposed]
    known = [peer for _, peer in members]
    rows: list[Row] = []
    for held, peer in members:
        if role not in (None, held):
            continue
        identity = {"role": str(held), "peername": peer.zone_id, "peerabbr": peer.label, "ip": peer.ip}
        if seen is not None:
            identity |= _observed(held, seen.get(peer.id, NOT_ASKED), followers.get(peer.id), known)
        rows.append(identity)
    return rows


def _observed(role: Role, seen: Observed, expected: Peer | None, known: list[Peer]) -> dict[str, str]:
    if not seen.online:
        return {"pg-online": "fail"}
    values = {"pg-online": "ok", "pg-lag": "-" if role is Role.PRIMARY else duration(seen.lag)}
    row = downstream(seen.walsenders, expected, known)
    if row is None or not row.sync_state:
        return values
    positions = {"pg-sent": row.sent, "pg-write": row.write, "pg-flush": row.flush, "pg-replay": row.replay}
    values |= {name: str(position) for name, position in positions.items() if position is not None}
    return values | {"pg-repl": row.sync_state}


def duration(seconds: float | None) -> str:
    """Minutes and whole seconds: `87m12s`; `-` for None.

    >>> duration(3.4), duration(86465), duration(None)
    ('0m03s', '1441m05s', '-')
    """
    if seconds is None:
        return "-"
    whole = max(0, int(seconds))
    return f"{whole // 60}m{whole % 60:02d}s"


def overview(zookeeper: str, cluster: str, state: ClusterState) -> str:
    """The lines `show` begins with."""
    lines = [
        f"zookeeper:   {zookeeper}",
        f"cluster:     {cluster}",
        f"generation:  {state.generation} ({state.init_wal})",
        f"mode:        {'singleton (one-node-write)' if state.one_node_write_mode else 'normal'}",
    ]
    if isinstance(state.freeze, Freeze):
        reason = " ".join(state.freeze.reason.splitlines())
        lines += [f"freeze:      frozen since {state.freeze.date}", f"freeze info: {reason}"]
    elif state.freeze:
        lines += ["freeze:      frozen since unknown", "freeze info: unknown"]
    else:
        lines.append("freeze:      not frozen")
    return "".join(line + "\n" for line in lines)


def show(
    zookeeper: str, cluster: str, state: ClusterState, seen: Observations, found: Iterable[object], *, verbose: bool
) -> str:
    """All of what `manatee-adm show` prints: overview, peers if `verbose`, PostgreSQL's status, problems."""
    parts = [overview(zookeeper, cluster, state)]
    if verbose:
        parts.append(table(columns((), PEERS), peer_rows(state)))
    parts.append(table(columns((), PG_STATUS), peer_rows(state, seen)))
    said = "".join(f"{problem}\n" for problem in found)
    return "\n".join([*parts, said] if said else parts)


def labels(peers: Iterable[Peer | None]) -> str:
    """The peers' labels with commas between; `-` for none."""
    return ",".join(peer.label for peer in peers if peer is not None) or "-"


def history_row(time: str, state: ClusterState, summary: str = "") -> Row:
    """One line of the shard's history."""
    return {
        "time": time,
        "generation": str(state.generation),
        "mode": "singl" if state.one_node_write_mode else "multi",
        "freeze": "frz" if state.frozen else "-",
        "primary": state.primary.label,
        "sync": labels([state.sync]),
        "async": labels(state.asyncs),
        "deposed": labels(state.deposed),
        "summary": summary,
    }
