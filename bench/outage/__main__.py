"""`python -m bench.outage [--rounds N] [--only EVENT ...] [--against NAME ...] [--json FILE]`."""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import click

from bench.client import Client
from bench.machine import describe
from bench.outage.contestant import Contestant, Entry
from bench.outage.deeds import EVENTS, Event
from bench.outage.manatee import Manatee
from bench.outage.patroni import DEFAULTS, FASTEST, VERSION, Patroni

PATIENCE = 120.0

ENTRIES: dict[str, Entry] = {
    "manatee": Manatee("Manatee, session timeout 4 s", 4.0),
    "patroni-fastest": Patroni(f"Patroni {VERSION}, the fastest settings it accepts", FASTEST),
    "patroni": Patroni(f"Patroni {VERSION}, defaults", DEFAULTS),
}

Result = dict[str, list[float]]


@click.command()
@click.option("--rounds", default=5, show_default=True)
@click.option("--only", multiple=True, type=click.Choice(list(EVENTS)))
@click.option("--against", multiple=True, type=click.Choice(list(ENTRIES)), help="Whom to measure; all unless given.")
@click.option("--json", "raw", type=click.Path(path_type=Path), help="Where the single results go.")
def main(rounds: int, only: Sequence[str], against: Sequence[str], raw: Path | None) -> None:
    """The write outage after each event: medians, and in brackets the least and the greatest, in seconds."""
    results: dict[str, Result] = {}
    missing = 0
    for name in against or ENTRIES:
        results[name], lost = asyncio.run(_measure(ENTRIES[name], only or list(EVENTS), rounds))
        missing += lost
    click.echo(describe())
    click.echo(table(results))
    click.echo(f"acknowledged rows that are missing: {missing}")
    if raw:
        raw.write_text(json.dumps({"machine": describe(), "seconds": results}, indent=1) + "\n")
    sys.exit(1 if missing else 0)


def table(results: dict[str, Result]) -> str:
    """Markdown: a row for each event, a column for each contestant."""
    lines = ["| no write acknowledged for, s | " + " | ".join(ENTRIES[name].name for name in results) + " |"]
    lines.append("| --- |" + " ---: |" * len(results))
    for key, event in EVENTS.items():
        if any(key in measured for measured in results.values()):
            cells = [_cell(measured.get(key, [])) for measured in results.values()]
            lines.append(f"| {event.name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(seconds: list[float]) -> str:
    if not seconds:
        return "-"
    return f"**{statistics.median(seconds):.2f}** ({min(seconds):.2f} to {max(seconds):.2f})"


async def _measure(entry: Entry, events: Sequence[str], rounds: int) -> tuple[Result, int]:
    result: Result = {}
    async with entry.cluster() as cluster:
        await cluster.whole()
        client = Client(cluster.addresses)
        task = asyncio.create_task(client.run())
        try:
            for key in events:
                for number in range(rounds):
                    seconds = await _one(cluster, client, EVENTS[key])
                    result.setdefault(key, []).append(seconds)
                    click.echo(f"{entry.name}: {EVENTS[key].name}, {number + 1}: {seconds:.2f} s", err=True)
            return result, len(await client.missing())
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def _one(cluster: Contestant, client: Client, event: Event) -> float:
    primary, sync = await cluster.whole()
    await _steady(client)
    moment = time.monotonic()
    await event.do(cluster, primary, sync)
    await _steady(client, after=moment)
    seconds = client.outage(moment)[0]
    await cluster.bring_back(sync if event.harms_sync else primary)
    return seconds


async def _steady(client: Client, *, after: float = 0.0) -> None:
    """Wait for a second of acknowledgements; with `after`, one that began after that moment or runs past its outage."""
    count = len(client.acknowledged)
    begun = time.monotonic()
    async with asyncio.timeout(PATIENCE):
        while True:
            await asyncio.sleep(0.05)
            recent = client.acknowledged[count:]
            now = time.monotonic()
            if len(recent) >= 50 and recent[-1][1] > now - 0.2 and now - begun > 1.0 and recent[-1][1] > after + 1.0:
                return


if __name__ == "__main__":
    main()
