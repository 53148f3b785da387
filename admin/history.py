"""`history`: the states that were written, in their order."""

from __future__ import annotations

import json

import click

from admin import tables
from admin.annals import told
from admin.main import command
from admin.shard import opened, run
from admin.target import Target
from manatee.cluster import written_time
from manatee.coordination import HistoryEntry


@command("history")
@click.option("-v", "--verbose", is_flag=True, help="Say in words what changed from state to state.")
@click.option("-j", "--json", "as_json", is_flag=True, help="One JSON object a line: zkSeq, time, state.")
@click.option("--sort", type=click.Choice(["zkSeq", "time"]), default="zkSeq", show_default=True, help="By what.")
def history(target: Target, verbose: bool, as_json: bool, sort: str) -> None:
    """Show every cluster state that was ever written: one line each, the oldest first."""
    entries = run(_entries(target))
    if sort == "time":
        entries.sort(key=lambda entry: entry.time)
    click.echo(as_lines(entries) if as_json else as_table(entries, verbose=verbose), nl=False)


async def _entries(target: Target) -> list[HistoryEntry]:
    async with opened(target) as shard:
        return await shard.history()


def as_table(entries: list[HistoryEntry], *, verbose: bool) -> str:
    columns = [*tables.HISTORY, tables.SUMMARY] if verbose else tables.HISTORY
    return tables.table(columns, [_row(*pair) for pair in zip(entries, told(entries), strict=True)])


def _row(entry: HistoryEntry, summary: str) -> tables.Row:
    time = written_time(entry.time)
    return {"time": time, "summary": summary} if entry.state is None else tables.history_row(time, entry.state, summary)


def as_lines(entries: list[HistoryEntry]) -> str:
    """For programs: `zkSeq`, `time` and the state as it was written; a state that does not validate is null, and
    `problem` says why."""
    return "".join(json.dumps(_document(entry), ensure_ascii=False) + "\n" for entry in entries)


def _document(entry: HistoryEntry) -> dict[str, object]:
    document: dict[str, object] = {
        "zkSeq": entry.name.rsplit("-", 1)[-1],
        "time": written_time(entry.time),
        "state": entry.state.document() if entry.state else None,
    }
    return document if entry.problem is None else {**document, "problem": entry.problem}
