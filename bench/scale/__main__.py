"""`python -m bench.scale [--shards N] [--seconds S] [--json FILE]`."""

from __future__ import annotations

from pathlib import Path

import click

from bench.page import table
from bench.scale import measure


@click.command()
@click.option("--shards", default=300, show_default=True, help="Of three peers each.")
@click.option("--seconds", default=30.0, show_default=True, help="For which what goes on all the time is counted.")
@click.option("--session-timeout", default=10.0, show_default=True)
@click.option("--down", default=30.0, show_default=True, help="Seconds for which all of ZooKeeper is away.")
@click.option("--json", "raw", type=click.Path(path_type=Path, dir_okay=False), help="Where the figures go.")
def main(shards: int, seconds: float, session_timeout: float, down: float, raw: Path | None) -> None:
    """Hundreds of shards on one ZooKeeper ensemble, all of it on this machine."""
    section = measure.measure(shards, seconds, session_timeout, down)
    click.echo("\n".join([*section.notes, "", *table(section)]))
    if raw:
        raw.write_text(section.model_dump_json(indent=1) + "\n")


if __name__ == "__main__":
    main()
