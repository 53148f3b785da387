"""`show`, `peers`, `pg-status`, `verify`: how the shard is."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable
from typing import Any

import click

from admin import tables
from admin.inspection import Inspection, asked, inspect
from admin.main import command
from admin.problems import Finding, findings
from admin.shard import Failed, opened, run, state_of
from admin.standing import told
from admin.target import Target
from manatee.address import postgres_address
from manatee.cluster import ClusterState, Peer
from manatee.coordination import CoordinationError

ROLES = ("primary", "sync", "async", "deposed")


@command("show")
@click.option("-v", "--verbose", is_flag=True, help="Show each peer's full name and address, too.")
def show(target: Target, verbose: bool) -> None:
    """Show the shard: its state, its peers, what their PostgreSQL says, and problems.

    The exit status is not 0 when a PostgreSQL cannot be queried; what is known is printed all the same.
    """
    found = run(_look(target))
    text = tables.show(target.addresses, target.name, found.state, found.seen, found.problems, verbose=verbose)
    click.echo(text, nl=False)
    _end(found)


@command("verify")
@click.option("-v", "--verbose", is_flag=True, help="Say what is well, too, and what each peer holds.")
def verify(target: Target, verbose: bool) -> None:
    """Print the shard's problems, one a line; the exit status is 0 if there are none.

    An error means that service is down, a warning that it is not. Where the shard cannot go on by itself the errors say
    why, what each peer holds of its data, and what would be lost by going on with them.
    """
    found = run(_look(target, thorough=verbose))
    if verbose:
        for finding in (*findings(found.state, found.seen), *(Finding("ok", told(one)) for one in found.held)):
            if finding.level == "ok":
                click.echo(finding)
    for problem in found.problems:
        click.echo(problem)
    if verbose:
        _complain(found)
    if found.problems:
        raise click.exceptions.Exit(1)
    if verbose:
        click.echo("all checks passed")


def _table_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("-o", "--columns", multiple=True, metavar="COLNAME[,...]", help="The columns to print."),
        click.option("-H", "--omitHeader", "omit_header", is_flag=True, help="Print no header."),
        click.option("-r", "--role", type=click.Choice(ROLES), help="Only peers with this role."),
    ):
        function = option(function)
    return function


@command("peers")
@_table_options
def peers(target: Target, columns: tuple[str, ...], omit_header: bool, role: str | None) -> None:
    """List the peers that the shard's state names. Columns: peername, peerabbr, role, ip."""
    selected = _columns(columns, tables.PEERS, with_postgres=False)
    state = run(_state(target))
    click.echo(tables.table(selected, tables.peer_rows(state, role=role), header=not omit_header), nl=False)


@command("pg-status")
@_table_options
@click.option("-w", "--wide", "--cinematic", is_flag=True, help="Full peer names.")
@click.argument("period", type=click.FloatRange(min=0.1), required=False)
@click.argument("count", type=click.IntRange(min=1), required=False)
def pg_status(
    target: Target,
    columns: tuple[str, ...],
    omit_header: bool,
    role: str | None,
    wide: bool,
    period: float | None,
    count: int | None,
) -> None:
    """Show what the peers' PostgreSQL says; every PERIOD seconds if it is given, COUNT times or until interrupted.

    Columns: those of `peers`, and pg-online, pg-repl, pg-sent, pg-write, pg-flush, pg-replay, pg-lag. A row describes
    the replication from its peer; the lag is how far that peer is behind.
    """
    selected = _columns(columns, tables.PG_STATUS_WIDE if wide else tables.PG_STATUS)

    def display(found: Inspection) -> None:
        rows = tables.peer_rows(found.state, found.seen, role=role)
        click.echo(tables.table(selected, rows, header=not omit_header), nl=False)
        if problems := found.problems:
            click.echo("\n" + "\n".join(map(str, problems)), err=True)

    if period is None:
        found = run(_look(target))
        display(found)
        _end(found)
        return

    async def repeat() -> None:
        async with opened(target) as shard:
            for turn in itertools.count(1):
                try:
                    display(await inspect(target, shard))
                except (CoordinationError, Failed) as error:
                    click.echo(f"manatee-adm: {error}", err=True)
                if turn == count:
                    return
                await asyncio.sleep(period)

    with contextlib.suppress(KeyboardInterrupt):
        run(repeat())


def _columns(chosen: tuple[str, ...], default: tuple[str, ...], *, with_postgres: bool = True) -> list[tables.Column]:
    try:
        return tables.columns(chosen, default, with_postgres=with_postgres)
    except tables.NoSuchColumn as error:
        raise click.UsageError(str(error)) from error


async def _state(target: Target) -> ClusterState:
    async with opened(target) as shard:
        return state_of(target, await shard.read())


async def _look(target: Target, *, thorough: bool = False) -> Inspection:
    async with opened(target) as shard:
        return await inspect(target, shard, thorough=thorough)


def _complain(found: Inspection) -> bool:
    """Say why servers could not be queried, on standard error; whether there were any."""
    silent = [peer for peer in asked(found.state) if not found.seen[peer.id].online]
    for peer in silent:
        why = found.seen[peer.id].error
        click.echo(f'manatee-adm: peer "{peer.label}": postgres at {_where(peer)}: {why}', err=True)
    return bool(silent)


def _where(peer: Peer) -> str:
    try:
        return str(postgres_address(peer.pg_url))
    except ValueError:
        return peer.ip


def _end(found: Inspection) -> None:
    if _complain(found):
        raise click.exceptions.Exit(1)
