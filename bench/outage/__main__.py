"""`python -m bench.outage [--rounds N] [--only EVENT ...] [--against NAME ...] [--spans] [--json FILE]`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from bench.machine import describe
from bench.outage.deeds import EVENTS
from bench.outage.measure import ENTRIES, measure
from bench.page import table


@click.command()
@click.option("--rounds", default=5, show_default=True)
@click.option("--only", multiple=True, type=click.Choice(list(EVENTS)))
@click.option("--against", multiple=True, type=click.Choice(list(ENTRIES)), help="Whom to measure; all unless given.")
@click.option("--spans", is_flag=True, help="Print where the time of our median rounds went.")
@click.option("--json", "raw", type=click.Path(path_type=Path), help="Where the single results go.")
def main(rounds: int, only: Sequence[str], against: Sequence[str], spans: bool, raw: Path | None) -> None:
    """The write outage after each event: medians, and in brackets the least and the greatest, in seconds."""
    section = asyncio.run(measure(rounds, only, against))
    for key, lines in section.spans.items() if spans else ():
        click.echo("\n".join([f"{EVENTS[key].name}:", *lines]))
    click.echo(describe())
    click.echo("\n".join(table(section)))
    click.echo("\n".join([f"acknowledged rows that are missing: {section.missing}", *section.failed]))
    if raw:
        raw.write_text(section.model_dump_json(indent=1) + "\n")
    sys.exit(1 if section.missing or section.failed else 0)


if __name__ == "__main__":
    main()
