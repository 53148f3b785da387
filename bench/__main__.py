"""`python -m bench [--only SECTION ...] [--rounds N] [--check]`: measure, and write docs/performance.md and .json.

A section that is not measured keeps its last results. Slow is no failure; an acknowledged row that is missing is, and
so is a section that could not be measured.

`BENCH_POSTGRESQL=18` measures another PostgreSQL than the preferred one, `BENCH_NETWORK=127.33` leaves the loopback
addresses 127.32.0.0/16 to somebody else.
"""

from __future__ import annotations

import asyncio
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import click

from bench import bootstrap, cost, decide, footprint, page
from bench.outage.measure import measure as outages
from bench.results import Results, Section, differences
from bench.scale.measure import measure as shards

DOCS = Path(__file__).parents[1] / "docs"

SECTIONS: dict[str, Callable[[int], Section]] = {
    "decide": decide.section,
    "outage": lambda rounds: asyncio.run(outages(rounds)),
    "footprint": lambda rounds: asyncio.run(footprint.measure(rounds)),
    "cost": lambda rounds: asyncio.run(cost.measure(rounds)),
    "bootstrap": bootstrap.measure,
    "scale": lambda _: shards(),
}
"""Given the number of rounds."""


@click.command()
@click.option("--only", multiple=True, type=click.Choice(list(SECTIONS)), help="What to measure; all unless given.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--check", is_flag=True, help="Write nothing: say which medians lie outside the recorded spread.")
@click.option("--output", default=DOCS, type=click.Path(path_type=Path, file_okay=False), help="Instead of docs/.")
def main(only: Sequence[str], rounds: int, check: bool, output: Path) -> None:
    raw = output / "performance.json"
    results, failed = Results.read(raw), []
    for name in only or SECTIONS:
        click.echo(f"==> {page.TITLES[name]}", err=True)
        begun = time.monotonic()
        try:
            section = SECTIONS[name](rounds)
        except Exception:  # noqa: BLE001 - what was measured before and what comes after is worth having
            traceback.print_exc()
            failed.append(f"{name} could not be measured")
            continue
        click.echo("\n".join(page.table(section)))
        click.echo(f"{name}: measured in {(time.monotonic() - begun) / 60:.1f} minutes")
        if section.missing:
            failed.append(f"{name}: {section.missing} acknowledged rows are missing")
        failed += [f"{name}: {words}" for words in section.failed]
        if check:
            _compare(name, results.sections.get(name), section)
        else:
            results = results.merged(name, section)
            results.write(raw)
            (output / "performance.md").write_text(page.page(results))
    sys.exit("; ".join(failed) or 0)


def _compare(name: str, before: Section | None, now: Section) -> None:
    if before is None:
        click.echo(f"{name}: nothing is recorded to compare with")
        return
    different = differences(before, now)
    click.echo(f"{name}: {len(different) or 'no'} medians lie outside the recorded spread")
    for line in different:
        click.echo(f"  {line}")


if __name__ == "__main__":
    main()
